"""Bias and activation in one pass over memory."""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Activation
from gpulayers.ops.compiled.library import DTYPES, bind
from gpulayers.ops.reference.activation import ReferenceActivation

# in the order of the enumeration in src/activation.c
_NAMES = (
    "identity",
    "sigmoid",
    "relu",
    "leaky_relu",
    "gelu_tanh",
    "gelu_erf",
    "tanh",
    "affine",
    "elu",
    "exponential",
    "selu",
    "hard_sigmoid",
    "softplus",
)
NUMBERS = {name: k for k, name in enumerate(_NAMES)}

_forward = bind("gl_bias_activation", "pppiinff")
_backward = bind("gl_activation_backward", "pppinff")


def relu_backward_into(dY: Array, Y: Array, dZ: Array) -> None:
    """dZ = dY * (Y > 0), from ReLU's output or its input; float32 or float64, unchecked."""
    _backward(dY.dtype, dY, Y, dZ, dY.size, NUMBERS["relu"], 0.0, 0.0)


class CompiledActivation(ReferenceActivation):
    """The built-in activations; a user's own runs its array formulas."""

    def bias_activation(self, Z: Array, b: Array | None, act: Activation) -> Array:
        kernel = act.kernel
        if kernel is None or Z.dtype not in DTYPES or not Z.flags.writeable:
            return super().bias_activation(Z, b, act)
        name, alpha, beta = kernel
        if name == "identity":
            if b is None:
                return Z
            Y = None
        else:
            Y = workspace.empty(Z.shape, Z.dtype)
        ch = 1 if b is None else b.size
        _forward(Z.dtype, Z, b, Y, Z.size // ch if ch else 0, ch, NUMBERS[name], alpha, beta)
        return Z if Y is None else Y

    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array:
        kernel = act.kernel
        if kernel is None or kernel[0] == "identity" or Z.dtype not in DTYPES:
            return super().activation_backward(dY, Z, act)
        name, alpha, beta = kernel
        dZ = workspace.empty(Z.shape, Z.dtype)
        _backward(Z.dtype, dY, Z, dZ, Z.size, NUMBERS[name], alpha, beta)
        return dZ
