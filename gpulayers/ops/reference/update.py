"""Optimizer rules, in place on parameter and state."""

from __future__ import annotations

import math

from gpulayers.backend import Array, xp_of


class ReferenceUpdate:
    """The rules as numpy-ml defines them; see `gpulayers.optimizers` for the sources."""

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None:
        velocity *= momentum
        velocity += lr * grad
        param -= velocity

    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None:
        cache += grad * grad
        param -= lr * grad / (xp_of(param).sqrt(cache) + eps)

    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None:
        cache *= decay
        cache += (1.0 - decay) * (grad * grad)
        param -= lr * grad / (xp_of(param).sqrt(cache) + eps)

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
        mean *= decay1
        mean += (1.0 - decay1) * grad
        var *= decay2
        var += (1.0 - decay2) * (grad * grad)
        # both averages started at zero; the divisions take that bias out
        step = lr / (1.0 - decay1**t)
        scale = 1.0 / math.sqrt(1.0 - decay2**t)
        param -= step * mean / (xp_of(param).sqrt(var) * scale + eps)
