"""Optimizer updates in one pass over memory."""

from __future__ import annotations

import math

from gpulayers.backend import Array
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.reference.update import ReferenceUpdate

_sgd = bind("gl_sgd", "pppiff")
_adagrad = bind("gl_adagrad", "pppiff")
_rmsprop = bind("gl_rmsprop", "pppiffff")
_adam = bind("gl_adam", "ppppifffffff")


def adam_scalars(
    lr: float, decay1: float, decay2: float, eps: float, t: int
) -> tuple[float, float, float, float, float, float, float]:
    """What gl_adam takes after the arrays and their size."""
    # both averages started at zero; step and scale take that bias out
    step = lr / (1.0 - decay1**t)
    scale = 1.0 / math.sqrt(1.0 - decay2**t)
    return decay1, 1.0 - decay1, decay2, 1.0 - decay2, step, scale, eps


def _suits(*changed: Array) -> bool:
    """A read-only array is left to NumPy, which refuses to write to it."""
    return changed[0].dtype in DTYPES and all(array.flags.writeable for array in changed)


class CompiledUpdate(ReferenceUpdate):
    """The reference's rules; threads from 64K elements on."""

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None:
        if not _suits(param, velocity):
            return super().sgd_update(param, grad, velocity, lr, momentum)
        _sgd(param.dtype, param, grad, velocity, param.size, lr, momentum)

    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None:
        if not _suits(param, cache):
            return super().adagrad_update(param, grad, cache, lr, eps)
        _adagrad(param.dtype, param, grad, cache, param.size, lr, eps)

    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None:
        if not _suits(param, cache):
            return super().rmsprop_update(param, grad, cache, lr, decay, eps)
        _rmsprop(param.dtype, param, grad, cache, param.size, lr, decay, 1.0 - decay, eps)

    def adam_update(
        self,
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
        if not _suits(param, mean, var):
            return super().adam_update(param, grad, mean, var, lr, decay1, decay2, eps, t)
        scalars = adam_scalars(lr, decay1, decay2, eps, t)
        _adam(param.dtype, param, grad, mean, var, param.size, *scalars)
