"""Blocks of layers that the classical networks need: the residual block, a bare activation, the
gate of WaveNet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpulayers._types import is_list, is_sequence
from gpulayers.activations import Sigmoid, Tanh
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers.base import LayerBase
from gpulayers.models.composite import Composite
from gpulayers.models.network import Sequential
from gpulayers.ops import activation as _ops

__all__ = ["Activation", "GatedActivation", "Residual"]

_TANH: Any = Tanh()
_SIGMOID: Any = Sigmoid()


class Activation(LayerBase):
    """An activation function as a layer of its own: Y = act_fn(X), of any shape.

    For where the nonlinearity stands after something else than a dense layer or a convolution,
    e.g. after batch normalisation. (numpy-ml has no such layer.)

    Parameters
    ----------
    act_fn : str or activation
        As `initializers.ActivationInitializer` takes it.
    optimizer : optional
        Unused; every layer has one.

    Raises
    ------
    ParameterError
        If the string names no activation.
    """

    _hyper = ("act_fn",)

    def __init__(self, act_fn: Any = "ReLU", optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.act_fn = ActivationInitializer(act_fn)()

    def _forward(self, X: Array, training: bool) -> tuple[Array, dict[str, Any]]:
        return _ops.bias_activation(X, None, self.act_fn), {"Z": X}

    def _backward(
        self, dLdY: Array, saved: dict[str, Any], params: bool, inputs: bool
    ) -> tuple[Array | None, dict[str, Array]]:
        """dL/dX = dL/dY * act_fn'(X)"""
        if not inputs:
            return None, {}
        return _ops.activation_backward(dLdY, saved["Z"], self.act_fn), {}


class GatedActivation(LayerBase):
    """The gated activation unit: Y = tanh(F) * sigmoid(G), where X = [F, G] along the last axis.

    Behind one convolution of 2 c channels it is WaveNet's gate, with a filter and a gate of c
    channels each. (numpy-ml has no such layer; in its WaveNet block both are the same channels.)

    Parameters
    ----------
    optimizer : optional
        Unused; every layer has one.

    Notes
    -----
    Input (n_ex, ..., 2 c), output (n_ex, ..., c), floating; an odd number of channels raises
    ShapeError. Source: van den Oord et al., "WaveNet: a generative model for raw audio" (2016),
    equation 2.
    """

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(optimizer)

    def _forward(self, X: Array, training: bool) -> tuple[Array, dict[str, Any]]:
        if X.shape[-1] % 2:
            raise ShapeError(
                f"{self._name}: expected an even number of channels, half of them the gates', got "
                f"shape {X.shape}"
            )
        xp, channels = xp_of(X), X.shape[-1] // 2
        F, G = (xp.ascontiguousarray(half) for half in (X[..., :channels], X[..., channels:]))
        T = _ops.bias_activation(F, None, _TANH)
        S = _ops.bias_activation(G, None, _SIGMOID)
        return T * S, {"T": T, "S": S}

    def _backward(
        self, dLdY: Array, saved: dict[str, Any], params: bool, inputs: bool
    ) -> tuple[Array | None, dict[str, Array]]:
        """dF = dL/dY * S * (1 - T^2);  dG = dL/dY * T * S * (1 - S)"""
        if not inputs:
            return None, {}
        T, S = saved["T"], saved["S"]
        dS = dLdY * S
        halves = dS * (1 - T * T), dS * T * (1 - S)
        return xp_of(dLdY).concatenate(halves, axis=-1), {}


class Residual(Composite):
    """A block with a shortcut around it: Y = body(X) + X, or body(X) + shortcut(X).

    Source: He et al., "Deep residual learning for image recognition" (2016), equations 1 and 2;
    without an activation after the sum, as in "Identity mappings in deep residual networks"
    (He et al., 2016).

    Parameters
    ----------
    body : list of layers
    shortcut : list of layers, optional
        Needed where the body changes the shape; None is the identity.
    name : str

    Raises
    ------
    ParameterError
        As `Sequential`.
    """

    def __init__(
        self, body: Iterable[Any], shortcut: Iterable[Any] | None = None, name: str = "Residual"
    ) -> None:
        self.body = body if isinstance(body, Sequential) else Sequential(body, name=f"{name} body")
        if shortcut is None or isinstance(shortcut, Sequential):
            self.shortcut = shortcut
        else:
            self.shortcut = Sequential(shortcut, name=f"{name} shortcut")
        super().__init__(name)

    @property
    def components(self) -> dict[str, Any]:
        """``"body"``, and ``"shortcut"`` where there is one."""
        sides = {"body": self.body, "shortcut": self.shortcut}
        return {key: side for key, side in sides.items() if side is not None}

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Return body(X) + X (or + shortcut(X)).

        Raises
        ------
        ShapeError
            If the two sides have different shapes.
        """
        Y = self.body.forward(X, retain_derived)
        side = X if self.shortcut is None else self.shortcut.forward(X, retain_derived)
        if Y.shape != side.shape:
            raise ShapeError(
                f"{self.name}: the body gives shape {Y.shape}, the shortcut {side.shape}; "
                "they are added, so they must be equal"
            )
        return Y + side

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Return dL/dX: the sum's gradient goes through both sides, and their results add up.

        Parameters as `Sequential.backward`.
        """
        through = self.body.backward(dLdY, retain_grads, input_grad)
        if self.shortcut is not None:
            side = self.shortcut.backward(dLdY, retain_grads, input_grad)
        else:
            side = dLdY
        if not input_grad:
            return None
        if is_list(through):
            side = side if is_sequence(side) else [side]
            return [a + b for a, b in zip(through, side, strict=True)]
        if is_sequence(side):
            side = side[0]
        return through + side

    def __repr__(self) -> str:
        side = "" if self.shortcut is None else f", shortcut={self.shortcut!r}"
        return f"Residual({self.body!r}{side})"
