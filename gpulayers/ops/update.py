"""Optimizer updates, in place on the parameter and the optimizer's state.

Rules and sources stand in `gpulayers.optimizers`.
"""

from __future__ import annotations

from gpulayers.backend import Array, is_floating
from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for, reference_kernels
from gpulayers.ops._protocol import Kernels


def _kernels(op: str, param: Array, grad: Array, **state: Array) -> Kernels:
    """Check that all are contiguous, of one floating dtype and shape; pick the implementation."""
    arrays = {"param": param, "grad": grad, **state}
    for name, array in arrays.items():
        check.array(op, name, array)
    check.one_library(op, *arrays.values())
    for name, array in arrays.items():
        if not is_floating(array.dtype) or array.dtype != param.dtype:
            raise DTypeError(
                f"{op}: {name} must be a floating array of param's dtype {param.dtype}, "
                f"got {array.dtype}"
            )
        if array.shape != param.shape:
            raise ShapeError(f"{op}: {name} must have shape {param.shape}, got {array.shape}")
        if not array.flags.c_contiguous:
            why = "" if name == "grad" else ", it is changed in place"
            raise ShapeError(f"{op}: {name} must be C-contiguous{why}")
    # NumPy's formulas change arrays of the other byte order in place; kernels and BLAS would not
    return kernels_for(param) if param.dtype.isnative else reference_kernels()


def sgd_update(param: Array, grad: Array, velocity: Array, lr: float, momentum: float) -> None:
    """velocity = momentum * velocity + lr * grad; param -= velocity.

    All arrays of one shape and floating dtype, C-contiguous; `grad` is left alone.

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    kernels = _kernels("sgd_update", param, grad, velocity=velocity)
    kernels.sgd_update(param, grad, velocity, float(lr), float(momentum))


def adagrad_update(param: Array, grad: Array, cache: Array, lr: float, eps: float) -> None:
    """cache += grad**2; param -= lr * grad / (sqrt(cache) + eps). As `sgd_update` otherwise."""
    kernels = _kernels("adagrad_update", param, grad, cache=cache)
    kernels.adagrad_update(param, grad, cache, float(lr), float(eps))


def rmsprop_update(
    param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
) -> None:
    """cache = decay * cache + (1 - decay) * grad**2; param -= lr * grad / (sqrt(cache) + eps).

    As `sgd_update` otherwise.
    """
    kernels = _kernels("rmsprop_update", param, grad, cache=cache)
    kernels.rmsprop_update(param, grad, cache, float(lr), float(decay), float(eps))


def adam_update(
    param: Array,
    grad: Array,
    mean: Array,
    var: Array,
    lr: float,
    decay1: float,
    decay2: float,
    eps: float,
    t: int,
) -> None:
    """Adam (Kingma & Ba, 2015, algorithm 1) at step `t` >= 1.

    mean = d1 * mean + (1 - d1) * grad;  var = d2 * var + (1 - d2) * grad**2
    param -= lr * (mean / (1 - d1**t)) / (sqrt(var / (1 - d2**t)) + eps)

    As `sgd_update` otherwise.
    """
    kernels = _kernels("adam_update", param, grad, mean=mean, var=var)
    kernels.adam_update(
        param, grad, mean, var, float(lr), float(decay1), float(decay2), float(eps), int(t)
    )
