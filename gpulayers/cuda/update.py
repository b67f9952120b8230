"""Optimizer updates on a GPU: one kernel reads and writes parameter and state once."""

from __future__ import annotations

import math

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch_elements
from gpulayers.ops.reference import Reference


def _update(name: str, arrays: tuple[Array, ...], *numbers: float) -> None:
    param = arrays[0]
    args = (*arrays, param.size, *numbers)
    launch_elements(name, param.dtype, param.size, args, table.index_for(param.size))


class CudaUpdate(Reference):
    """The constants are worked out here, in float64, and rounded once: 1 - 0.999 in float32 would
    already be off by 5e-5 of its value."""

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None:
        _update("sgd_update", (param, grad, velocity), lr, momentum)

    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None:
        _update("adagrad_update", (param, grad, cache), lr, eps)

    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None:
        _update("rmsprop_update", (param, grad, cache), lr, decay, 1.0 - decay, eps)

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
        step = lr / (1.0 - decay1**t)
        scale = 1.0 / math.sqrt(1.0 - decay2**t)
        numbers = (decay1, 1.0 - decay1, decay2, 1.0 - decay2, step, scale, eps)
        _update("adam_update", (param, grad, mean, var), *numbers)
