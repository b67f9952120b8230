"""One training step of a `Trainer`: by the network's layers, or by its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpulayers.backend import Array
from gpulayers.models import Sequential
from gpulayers.models.plan import CompiledNetwork
from gpulayers.models.plan_nodes import has_own_methods
from gpulayers.optimizers import clip_global_norm

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
    """

    def __init__(
        self,
        network: Any,
        loss: Any,
        plan: bool,
        batch_shape: tuple[int, ...],
        max_norm: float | None,
        check: Callable[[tuple[int, ...]], None],
    ) -> None:
        self.network, self.loss, self.max_norm = network, loss, max_norm
        self._check = check
        self.batch_shape = batch_shape
        self._wanted = plan and type(network) is Sequential and not has_own_methods(network)
        self._plan: CompiledNetwork | None = None

    def forward(self, X: Array, labels: Array) -> tuple[Any, Array]:
        """Return the loss (0-d) and the outputs; the plan does the backward pass on the way."""
        if self._plan is None and self._wanted and self.network.home is not None:
            plan = self.network.compile(batch_shape=self.batch_shape, loss=self.loss)
            self._check((self.batch_shape[0], *plan.output_shape))
            self._plan = plan
        if self._plan is not None:
            return self._plan.gradients(X, labels), self._plan.outputs
        outputs = self.network.forward(X)
        self._check(outputs.shape)
        return self.loss.forward(labels, outputs), outputs

    def update(self, cur_loss: float | None) -> None:
        """What is left of the step."""
        if self._plan is not None:
            if self.max_norm is not None:
                clip_global_norm(self._plan.gradient_arrays(), self.max_norm)
            self._plan.update(cur_loss)
            return
        self.network.backward(self.loss.backward(), input_grad=False)
        if self.max_norm is not None:
            clip_global_norm(self.network.gradients.values(), self.max_norm)
        self.network.update(cur_loss)
