"""Bias and activation."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops._protocol import Activation


class ReferenceActivation:
    """The formulas stand in `gpulayers.activations`; here they are put together."""

    def bias_activation(self, Z: Array, b: Array | None, act: Activation) -> Array:
        if b is not None:
            Z += b
        if act.kernel is not None and act.kernel[0] == "identity":
            return Z
        return act.fn(Z)

    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array:
        # chain rule: dL/dZ = dL/dY * act'(Z)
        if act.kernel is not None and act.kernel[0] == "identity":
            return dY
        return dY * act.grad(Z)
