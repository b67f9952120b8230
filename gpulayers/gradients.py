"""Is a backward pass right? A layer's gradients against central differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import DTypeError, GradientError, ParameterError

__all__ = ["check_gradients"]

_STREAM = 0x67726164


def check_gradients(
    layer: Any,
    X: Array,
    *,
    step: float = 1e-6,
    tolerance: float = 1e-5,
    entries: int | None = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Compare what `backward` gives with central differences of `forward`.

    The outputs are weighed with random numbers R, so that L = sum(R * Y), and for an entry v of the
    input or of a parameter

        dL/dv ~ (L(v + h) - L(v - h)) / 2h

    (Nocedal & Wright, "Numerical Optimization" (2006), section 8.1). A wrong `backward` of a layer
    of your own is off by a large part of the gradient; rounding leaves about 1e-9 in float64.

    Parameters
    ----------
    layer : a layer, module or network
        With `forward`, `backward`, `parameters`, `gradients`, `flush_gradients`; float64, because
        differences in float32 tell three digits at the best. One without its sizes yet is created
        in float64. What it has retained before is flushed; the parameters come back as they were.
    X : array, floating
        One input, as `forward` takes it. Keep it away from kinks (ReLU at zero, ties in max
        pooling): there is no gradient there.
    step : float
        h.
    tolerance : float
        Allowed error, relative to the largest gradient of the same array (or to 1, if that is
        smaller).
    entries : int or None
        How many entries of each array are tried, drawn at random; None tries all.
    seed : int

    Returns
    -------
    errors : dict of str to float
        For ``"X"`` and each parameter the largest error found, relative as above.

    Raises
    ------
    GradientError
        If an error is above `tolerance`, or a gradient is missing, not finite, or of another shape
        than its array; the message names the entry and both values.
    DTypeError
        If the layer computes in another dtype than float64.
    ParameterError
        If two forward passes differ (dropout: there is nothing to differentiate), or for a bad
        `step`, `tolerance` or `entries`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpulayers.layers import FullyConnected
    >>> errors = check_gradients(FullyConnected(3, act_fn="Tanh"), np.ones((2, 4)))
    >>> sorted(errors), max(errors.values()) < 1e-8
    (['W', 'X', 'b'], True)
    """
    _check_numbers(step, tolerance, entries)
    X = backend.xp_of(X).array(X, dtype=np.float64)  # a copy: entries of it are moved
    name = type(layer).__name__
    before = {key: array.copy() for key, array in _flat(layer.parameters).items()}
    Y = _forward(layer, X)
    if Y.dtype != np.float64:
        raise DTypeError(
            f"check_gradients: {name} computes in {Y.dtype}, expected float64; create it after "
            'gpulayers.set_default_dtype("float64")'
        )
    # not the stream of default_rng(seed), which the caller may have drawn X from
    rng = np.random.default_rng([seed, _STREAM])
    xp = backend.xp_of(Y)
    R = xp.asarray(rng.standard_normal(Y.shape))
    if not bool((_forward(layer, X) == Y).all()):
        raise ParameterError(
            f"check_gradients: two forward passes of {name} differ; turn off what is random"
        )
    layer.forward(X)
    dX = layer.backward(R)
    found = {"X": dX, **{key: grad.copy() for key, grad in _flat(layer.gradients).items()}}
    parameters = _flat(layer.parameters)
    for key, array in parameters.items():  # of a layer that got its sizes here
        before.setdefault(key, array.copy())

    def loss() -> float:
        return float((_forward(layer, X) * R).sum())

    errors: dict[str, float] = {}
    try:
        for key, grad in found.items():
            array = X if key == "X" else parameters[key]
            if getattr(grad, "shape", None) != array.shape:
                got = "nothing" if grad is None else f"shape {grad.shape}"
                raise GradientError(
                    f"{name}: gradient of {key}: expected shape {array.shape}, got {got}"
                )
            errors[key] = _compare(name, key, array, grad, loss, step, tolerance, entries, rng)
    finally:
        layer.flush_gradients()
        for key, array in parameters.items():
            array[...] = before[key]  # running statistics have moved
    return errors


def _flat(arrays: Any, prefix: str = "") -> dict[str, Array]:
    """A module keeps a dict for each of its layers."""
    found: dict[str, Array] = {}
    for key, value in arrays.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            found[prefix + key] = value
    return found


def _compare(
    name: str,
    key: str,
    array: Array,
    grad: Array,
    loss: Any,
    step: float,
    tolerance: float,
    entries: int | None,
    rng: np.random.Generator,
) -> float:
    """Largest relative error of one array's gradient."""
    analytic = backend.to_cpu(grad)
    if not np.isfinite(analytic).all():
        raise GradientError(f"{name}: gradient of {key} is not finite")
    scale = max(1.0, float(abs(analytic).max(initial=0.0)))
    size: int = array.size
    places = np.arange(size)
    if entries is not None and entries < size:
        places = np.sort(rng.choice(places, entries, replace=False))
    worst = 0.0
    for place in places:
        index = tuple(int(i) for i in np.unravel_index(place, array.shape))
        before = float(array[index])
        try:
            array[index] = before + step
            above = loss()
            array[index] = before - step
            below = loss()
        finally:
            array[index] = before
        numeric = (above - below) / (2 * step)
        error = abs(numeric - float(analytic[index])) / scale
        if not error <= tolerance:  # NaN too
            raise GradientError(
                f"{name}: gradient of {key}{list(index)}: backward gives {analytic[index]:.8g}, "
                f"differences give {numeric:.8g} (relative error {error:.2g}, allowed "
                f"{tolerance:.2g})"
            )
        worst = max(worst, error)
    return worst


def _forward(layer: Any, X: Array) -> Array:
    """The outputs in training mode, with nothing retained; sizes are created in float64."""
    before = backend.default_dtype()
    backend.set_default_dtype("float64")
    try:
        Y = layer.forward(X)
    finally:
        backend.set_default_dtype(before)
    layer.flush_gradients()
    return Y


def _check_numbers(step: float, tolerance: float, entries: int | None) -> None:
    for what, value in (("step", step), ("tolerance", tolerance)):
        if not (math.isfinite(value) and value > 0):
            raise ParameterError(f"check_gradients: {what} must be positive, got {value!r}")
    if entries is not None and entries < 1:
        raise ParameterError(f"check_gradients: entries must be positive or None, got {entries!r}")
