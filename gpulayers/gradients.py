"""Is a backward pass right? A layer's gradients against central differences."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import DTypeError, GradientError, ParameterError

__all__ = ["check_gradients"]

_STREAM = 0x67726164


def check_gradients(
    layer: Any,
    X: Array | list[Array],
    *others: Any,
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
        Those of a frozen layer, or a frozen part of a network, get no gradient and are left out;
        the gradient of X, which passes through it, is checked all the same.
    X : array, or list of arrays
        The input as `forward` takes it; for a layer of several inputs (`Add`, attention) a list of
        them. Floating, and taken in float64; or integers, such as the ids of an `Embedding`, which
        have no gradient: only that of the parameters is checked then. Keep it away from kinks (ReLU
        at zero, ties in max pooling): there is no gradient there. Inputs behind it are an error
        that says so.
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
        For ``"X"`` (of a list ``"X[0]"``, ``"X[1]"`` ...) and each parameter that is not frozen
        the largest error found, relative as above.

    Raises
    ------
    GradientError
        If an error is above `tolerance`, or a gradient is missing, not finite, or of another shape
        than its array; the message names the entry and both values.
    DTypeError
        If the layer computes in another dtype than float64, or X holds no arrays of numbers.
    ParameterError
        If two forward passes differ (dropout: there is nothing to differentiate), `layer` is none
        or does not take so many inputs, it has several outputs (`LSTMCell`: check `LSTM`), or for a
        bad `step`, `tolerance`, `entries` or `seed`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpulayers.layers import FullyConnected
    >>> errors = check_gradients(FullyConnected(3, act_fn="Tanh"), np.ones((2, 4)))
    >>> sorted(errors), max(errors.values()) < 1e-8
    (['W', 'X', 'b'], True)
    """
    _check_numbers(step, tolerance, entries, seed)
    name = _name_of(layer)
    if others:
        raise ParameterError(
            f"check_gradients: {name}: expected one X, got {1 + len(others)} arguments behind the "
            "layer; several inputs go into one list, "
            f"check_gradients(layer, [{_letters(others)}]), and options by their names, step=1e-6"
        )
    inputs = _inputs(X)
    arguments = _arguments(name, layer, inputs, is_sequence(X))
    before = {key: array.copy() for key, array in _flat(layer.parameters).items()}
    Y = _forward(layer, arguments)
    if not hasattr(Y, "dtype"):
        got = f"{len(Y)} outputs" if is_sequence(Y) else "no array"
        raise ParameterError(
            f"check_gradients: {name}.forward returns {got}, expected one array; of a cell check "
            "the layer that runs it over time, such as LSTM"
        )
    if Y.dtype != np.float64:
        raise DTypeError(
            f"check_gradients: {name} computes in {Y.dtype}, expected float64; create it after "
            'gpulayers.set_default_dtype("float64")'
        )
    # not the stream of default_rng(seed), which the caller may have drawn X from
    rng = np.random.default_rng([seed, _STREAM])
    xp = backend.xp_of(Y)
    R = xp.asarray(rng.standard_normal(Y.shape))
    if not bool((_forward(layer, arguments) == Y).all()):
        raise ParameterError(
            f"check_gradients: two forward passes of {name} differ; turn off what is random"
        )
    layer.forward(*arguments)
    moved, found = _of_inputs(name, inputs, is_sequence(X), layer.backward(R))
    frozen = _of_frozen(layer)
    learned = {k: grad for k, grad in _flat(layer.gradients).items() if id(grad) not in frozen}
    found |= {key: grad.copy() for key, grad in learned.items()}
    parameters = _flat(layer.parameters)
    for key, array in parameters.items():  # of a layer that got its sizes here
        before.setdefault(key, array.copy())

    def loss() -> float:
        return float((_forward(layer, arguments) * R).sum())

    errors: dict[str, float] = {}
    try:
        for key, grad in found.items():
            array = moved[key] if key in moved else parameters[key]
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


def _of_frozen(layer: Any) -> set[int]:
    """The ids of the gradients that backward leaves alone; a group's names are not its parts'."""
    walk = getattr(layer, "walk", None)
    parts = [layer] if walk is None else [part for _, part in walk()]
    return {
        id(grad)
        for part in parts
        if not getattr(part, "trainable", True)
        for grad in _flat(part.gradients).values()
    }


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


def _forward(layer: Any, arguments: list[Any]) -> Any:
    """The outputs in training mode, with nothing retained; sizes are created in float64."""
    before = backend.default_dtype()
    backend.set_default_dtype("float64")
    try:
        Y = layer.forward(*arguments)
    finally:
        backend.set_default_dtype(before)
    layer.flush_gradients()
    return Y


def _name_of(layer: Any) -> str:
    wanted = ("forward", "backward", "parameters", "gradients", "flush_gradients")
    missing = [what for what in wanted if not hasattr(layer, what)]
    if isinstance(layer, type) or missing:
        why = "a class" if isinstance(layer, type) else f"without {', '.join(missing)}"
        raise ParameterError(
            f"check_gradients: expected a layer, module or network, got {layer!r}, {why}"
        )
    return type(layer).__name__


def _letters(others: tuple[Any, ...]) -> str:
    return ", ".join(f"X{i}" for i in range(1 + len(others)))


def _inputs(X: Any) -> list[Array]:
    """Copies of the inputs, since entries of them are moved: floating ones in float64."""
    copies: list[Array] = []
    for i, given in enumerate(X if is_sequence(X) else [X]):
        what = f"X[{i}]" if is_sequence(X) else "X"
        backend.home_of("check_gradients", what, given)
        if backend.is_floating(given.dtype):
            copies.append(backend.xp_of(given).array(given, dtype=np.float64))
        elif given.dtype.kind in "iub":
            copies.append(given.copy())
        else:
            raise DTypeError(
                f"check_gradients: {what} must be floating or integer, got {given.dtype}"
            )
    return copies


def _arguments(name: str, layer: Any, inputs: list[Array], listed: bool) -> list[Any]:
    """What `forward` is called with: a list that it takes whole, or one argument for each input."""
    wanted = _required(layer.forward)
    if len(wanted) == 1:
        return [inputs] if listed else inputs
    if len(wanted) != len(inputs):
        got = f"a list of {len(inputs)}" if listed else "one array"
        raise ParameterError(
            f"check_gradients: {name}.forward takes {len(wanted)} inputs ({', '.join(wanted)}), "
            f"expected a list of them, got {got}"
        )
    return inputs


def _required(method: Callable[..., Any]) -> list[str]:
    """The arguments without a default value."""
    parameters = inspect.signature(method).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _of_inputs(
    name: str, inputs: list[Array], listed: bool, gradients: Any
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The floating inputs and their gradients, by name."""
    given: list[Any] = list(gradients) if listed and is_sequence(gradients) else [gradients]
    floating = [backend.is_floating(array.dtype) for array in inputs]
    if len(given) != len(inputs) and any(floating):
        raise GradientError(
            f"{name}: backward gives {len(given)} gradients, there are {len(inputs)} inputs"
        )
    names = [f"X[{i}]" if listed else "X" for i in range(len(inputs))]
    moved = {names[i]: inputs[i] for i, is_moved in enumerate(floating) if is_moved}
    return moved, {names[i]: given[i] for i, is_moved in enumerate(floating) if is_moved}


def _check_numbers(step: float, tolerance: float, entries: int | None, seed: int) -> None:
    name = "check_gradients"
    for what, value in (("step", step), ("tolerance", tolerance)):
        _spec.real(name, what, value, 0.0, open_low=True)
    if entries is not None:
        _spec.integer(name, "entries", entries, 1)
    _spec.integer(name, "seed", seed, 0)
