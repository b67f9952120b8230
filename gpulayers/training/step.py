"""One training step of a `Trainer`: by the network's layers, or by its plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.models.plan import CompiledNetwork
from gpulayers.models.plan_nodes import has_own_methods
from gpulayers.optimizers import clip_global_norm
from gpulayers.training.precision import LossScaler, WideLoss

__all__ = ["Step"]


class Step:
    """Forward and loss, a look at the loss, then backward, clipping and update.

    Parameters
    ----------
    network : Sequential
    loss : loss object
    plan : bool
        Compute by `Sequential.compile`. Not done in a network's first step, which draws the
        parameters in the layers' own order, nor for a class or methods of a user's own.
    batch_shape : tuple
        Of the largest batch.
    max_norm : float or None
        Longer gradients (all parameters' together) are scaled down to it.
    check : function of the outputs' shape
        Raises if the loss cannot take them.
    parts : int
        A batch is computed in as many parts, one after the other, whose gradients are added up:
        the same step, up to rounding, in less memory. (Batch normalisation takes the statistics of
        each part.)
    scaler : LossScaler, optional
        For half-precision parameters: the loss is computed in float32 and its gradient scaled; a
        step whose gradients are not finite is left out.
    """

    def __init__(
        self,
        network: Any,
        loss: Any,
        plan: bool,
        batch_shape: tuple[int, ...],
        max_norm: float | None,
        check: Callable[[tuple[int, ...]], None],
        parts: int = 1,
        scaler: LossScaler | None = None,
    ) -> None:
        self.network, self.max_norm, self.scaler = network, max_norm, scaler
        self.loss = loss if scaler is None else WideLoss(loss, scaler)
        self._told_loss = loss
        self._check, self._parts = check, parts
        self.batch_shape = (-(-batch_shape[0] // parts), *batch_shape[1:])
        self._wanted = plan and type(network) is Sequential and not has_own_methods(network)
        self._plan: CompiledNetwork | None = None
        self._has_gradients = False

    def forward(self, X: Array, labels: Any) -> tuple[Any, Any]:
        """Return the loss (0-d) and how many examples were classified right (0-d); the plan, or
        several parts, do the backward pass on the way."""
        if self._plan is None and self._wanted and self.network.home is not None:
            plan = self.network.compile(batch_shape=self.batch_shape, loss=self.loss)
            self._check((self.batch_shape[0], *plan.output_shape))
            self._plan = plan
        parts = slices(len(X), self._parts)
        if len(parts) == 1:
            self._has_gradients = self._plan is not None
            loss, outputs = self._forward(X, labels)
            return loss, _hits(outputs, labels)
        return self._in_parts(X, labels, parts)

    def update(self, cur_loss: float | None) -> None:
        """What is left of the step."""
        if not self._has_gradients:
            self.network.backward(self.loss.backward(), input_grad=False)
        if self.scaler is None or (self._plan is not None and self._plan.scales):
            self._apply(cur_loss, 1.0)
            return
        scale = self.scaler.judge(self._gradients())
        if scale is None:
            self.network.flush_gradients()
            return
        with self.scaler.undone(self.network, scale):
            self._apply(cur_loss, scale)

    def _apply(self, cur_loss: float | None, scale: float) -> None:
        """Clip gradients that are `scale` times too long, and update."""
        if self.max_norm is not None:
            clip_global_norm(self._gradients(), self.max_norm * scale)
        if self._plan is not None:
            self._plan.update(cur_loss)
        else:
            self.network.update(cur_loss)

    def _forward(self, X: Array, labels: Any) -> tuple[Any, Array]:
        if self._plan is not None:
            return self._plan.gradients(X, labels), self._plan.outputs
        outputs = self.network.forward(X)
        self._check(outputs.shape)
        return self.loss.forward(labels, outputs), outputs

    def _gradients(self) -> list[Array]:
        if self._plan is not None:
            return self._plan.gradient_arrays()
        return list(self.network.gradients.values())

    def _in_parts(self, X: Array, labels: Any, parts: list[slice]) -> tuple[Any, Any]:
        """Gradients of the parts, weighted as the loss weights their examples, added up."""
        shares = _shares(self._told_loss, labels, parts)
        total: Any = 0
        hits: Any = 0
        sums: list[Array] = []
        for part, share in zip(parts, shares, strict=True):
            loss, outputs = self._forward(X[part], labels[part])
            if self._plan is None:
                self.network.backward(self.loss.backward(), input_grad=False)
            total, hits = total + loss * share, hits + _hits(outputs, labels[part])
            found = [_times(grad, share) for grad in self._gradients()]
            if sums:
                for have, more in zip(sums, found, strict=True):
                    have += more
            else:
                sums = found
            self.network.flush_gradients()
        for grad, value in zip(self._gradients(), sums, strict=True):
            grad[...] = value
        self._has_gradients = True
        return total, hits


def slices(n: int, parts: int) -> list[slice]:
    """0..n cut into at most `parts` slices of nearly the same length, none empty."""
    parts = max(1, min(parts, n))
    ends = [n * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _hits(outputs: Array, labels: Any) -> Any:
    return (outputs.argmax(axis=1) == getattr(labels, "main", labels)).sum()


def _times(grad: Array, share: Any) -> Array:
    wide = grad.astype(np.float32) if grad.dtype.itemsize < 4 else grad  # parts add up in it
    return wide * (share if isinstance(share, float) else share.astype(wide.dtype))


def _shares(loss: Any, labels: Any, parts: list[slice]) -> list[Any]:
    """How much each part's loss and gradient count in those of the batch."""
    if getattr(loss, "reduction", "mean") == "sum":
        return [1.0] * len(parts)
    base = getattr(loss, "base", loss)
    if not isinstance(base, SoftmaxCrossEntropy) or (
        base.class_weights is None and base.ignore_index is None
    ):
        return [(part.stop - part.start) / parts[-1].stop for part in parts]
    if base is not loss:
        raise ParameterError(
            "Trainer: accumulate with blended labels needs a loss without class weights and "
            "ignored labels, or with reduction='sum'"
        )
    # the mean divides by the sum of the weights of the examples that count
    xp = xp_of(labels)
    counts = xp.ones(len(labels), "float64")
    if base.class_weights is not None:
        weights = xp.asarray(base.class_weights, dtype="float64")
        counts = xp.take(weights, xp.clip(labels, 0, len(weights) - 1))
    if base.ignore_index is not None:
        counts = xp.where(labels == base.ignore_index, 0, counts).astype("float64")
    total = counts.sum()
    return [counts[part].sum() / xp.where(total > 0, total, 1).astype("float64") for part in parts]
