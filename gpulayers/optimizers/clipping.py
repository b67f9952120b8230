"""Clipping gradients: by value, by the norm of one gradient, by the norm of all together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpulayers import _spec
from gpulayers.backend import Array, home_of, is_floating, xp_of
from gpulayers.errors import DTypeError, ParameterError


def clip_global_norm(gradients: Iterable[Array], max_norm: float) -> Array:
    """Scale all gradients, IN PLACE, so that together they are no longer than `max_norm`.

    Each is multiplied by min(1, max_norm / norm), where norm is that of all entries of all
    gradients: the direction of the whole step stays. (Pascanu, Mikolov & Bengio, "On the difficulty
    of training recurrent neural networks", 2013, algorithm 1.) A GPU is not waited for.

        net.backward(objective.backward())
        clip_global_norm(net.gradients.values(), 1.0)
        net.update()

    Parameters
    ----------
    gradients : iterable of floating arrays, on one backend
    max_norm : float
        > 0.

    Returns
    -------
    norm : 0-d array
        Before clipping; float64 if one of the gradients is, else float32.

    Raises
    ------
    ParameterError
        If there is no gradient, or max_norm is no finite number > 0.
    DTypeError, BackendError
    """
    name = "clip_global_norm"
    limit = float(_spec.real(name, "max_norm", max_norm, 0.0, open_low=True))
    grads = list(gradients)
    if not grads:
        raise ParameterError(f"{name}: expected at least one gradient, got none")
    for grad in grads:
        _check_floating(name, grad)
    xp = xp_of(*grads)
    exact = any(grad.dtype == np.float64 for grad in grads)
    dtype = np.dtype(np.float64 if exact else np.float32)
    limit = min(limit, float(np.finfo(dtype).max))
    filled = [grad.astype(dtype, copy=False) for grad in grads if grad.size]
    peak = xp.full((), np.finfo(dtype).tiny, dtype=dtype)
    for grad in filled:
        peak = xp.maximum(peak, xp.abs(grad).max())
    squares = xp.zeros((), dtype=dtype)
    for grad in filled:  # squares of g / peak neither overflow nor all vanish
        squares = squares + xp.square(grad / peak).sum()
    root = xp.sqrt(squares)
    ratio = limit / xp.maximum(peak, limit * 1e-30)  # at most 1e30, far above the root
    factor = ratio / xp.maximum(root, ratio)
    for grad in grads:
        if grad.dtype.itemsize < 4:  # in which the factor itself would be rounded, to zero at worst
            grad[...] = grad.astype(dtype) * factor
        else:
            grad *= factor.astype(grad.dtype)
    return xp.asarray(root * peak)


def clip_value(gradients: Iterable[Array], limit: float) -> None:
    """Cut every entry of all gradients, IN PLACE, to [-limit, limit]; NaN stays.

    Parameters
    ----------
    gradients : iterable of floating arrays
    limit : float
        > 0.

    Raises
    ------
    ParameterError
        If the limit is no finite number > 0.
    DTypeError
    """
    name = "clip_value"
    limit = float(_spec.real(name, "limit", limit, 0.0, open_low=True))
    for grad in gradients:
        _check_floating(name, grad)
        grad[...] = clipped_value(grad, limit)


def _check_floating(name: str, grad: Array) -> None:
    home_of(name, "a gradient", grad)
    if not is_floating(grad.dtype):
        raise DTypeError(f"{name}: gradients must be floating arrays, got {grad.dtype}")


def clipped_value(grad: Array, limit: float) -> Array:
    """A new array with the entries of `grad` cut to [-limit, limit]."""
    top, xp = grad.dtype.type(min(limit, float(_largest(grad)))), xp_of(grad)
    return xp.asarray(xp.clip(grad, -top, top))  # NumPy makes a number of an array without axes


def _largest(grad: Array) -> float:
    return float(np.finfo(np.float32 if grad.dtype.kind != "f" else grad.dtype).max)


def clipped_norm(grad: Array, limit: float) -> Array:
    """``grad * min(1, limit / ||grad||)``, without waiting for the device to know the norm."""
    if not grad.size:
        return grad
    xp = xp_of(grad)
    wide = grad.astype(np.float32) if grad.dtype.itemsize < 4 else grad
    limit = min(limit, float(np.finfo(wide.dtype).max))
    peak = xp.maximum(xp.abs(wide).max(), limit)  # squares of g / peak cannot overflow
    root = xp.sqrt(xp.square(wide / peak).sum())
    ratio = limit / peak
    return (wide * (ratio / xp.maximum(root, ratio))).astype(grad.dtype, copy=False)
