"""Transposed convolution."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops.window import Window


class Deconv2D(LayerBase):
    """Transposed convolution of images: each input pixel paints the kernel into the output.

        Z_pad[n, r s + i, c s + j, o] += X[n, r, c, k] W[i, j, k, o],  then the padding is cut off
        Y = act(Z + b)

    It is the adjoint of `Conv2D`, so the gradient of one is the forward pass of the other.

    Parameters
    ----------
    out_ch : int
    kernel_shape : (fr, fc), or one int for both
    pad : int, (rows, cols), (top, bottom, left, right) or ``"same"``
        Cut off the output. ``"same"`` leaves s (rows - 1) + 1 rows: the input's with s - 1 zero
        rows between neighbours.
    stride : int or (rows, cols)
        How far neighbours are moved apart.
    act_fn : str, activation or None
    optimizer : str, optimizer, dict or None
    init : str

    Attributes
    ----------
    parameters : W (fr, fc, in_ch, out_ch), b (1, 1, 1, out_ch)
    derived_variables : Z (pre-activations), out_rows, out_cols

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, rows, cols, in_ch), output (n_ex, out_rows, out_cols, out_ch), floating, with
    out = s (size - 1) + f - padding; nothing left of the output raises ShapeError. Equals PyTorch's
    conv_transpose2d with weight ``W.transpose(2, 3, 0, 1)``. Any padding is right: numpy-ml refuses
    pads beyond f - 1 and shifts the image when they are uneven.
    Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016),
    chapter 4; Zeiler et al., "Deconvolutional networks" (2010).
    """

    _ndim, _axes, _size = 4, "(n_ex, rows, cols, in_ch)", ("in_ch", 3)
    _params = ("W", "b")
    _hyper = ("pad", "init", "in_ch", "out_ch", "stride", "act_fn", "kernel_shape")

    def __init__(
        self,
        out_ch: int,
        kernel_shape: Any,
        pad: Any = 0,
        stride: Any = 1,
        act_fn: Any = None,
        optimizer: Any = None,
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__(optimizer)
        self.in_ch: int | None = None
        self.out_ch = out_ch
        self.kernel_shape = kernel_shape
        self.pad = pad
        self.stride = stride
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.out_ch = check.integer(self._name, "out_ch", self.out_ch)
        self.kernel_shape = check.pair(check.plain(self.kernel_shape))
        self.pad, self.stride = check.plain(self.pad), check.plain(self.stride)
        pad = 0 if self.pad == "same" else self.pad
        Window.make(self.kernel_shape, self.stride, pad, name=self._name)
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": [], "out_rows": [], "out_cols": []}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (*self.kernel_shape, self.in_ch, self.out_ch), weights)
        self._create("b", (1, 1, 1, self.out_ch))

    def _geometry(self, rows: int, cols: int) -> tuple[Window, tuple[int, int]]:
        """The window of the convolution this is the adjoint of, and the size of the output."""
        sr, sc = check.pair(self.stride)
        spread = sr * (rows - 1) + 1, sc * (cols - 1) + 1
        size = spread if self.pad == "same" else None
        same = check.window_2d(self.kernel_shape, 1, self.pad, 0, size, self._name)
        window = Window(same.kernel, (sr, sc), same.pad)
        top, bottom, left, right = window.pad
        fr, fc = window.kernel
        out = spread[0] - 1 + fr - top - bottom, spread[1] - 1 + fc - left - right
        if rows < 1 or cols < 1 or min(out) < 1:
            raise ShapeError(
                f"Deconv2D: an input of {rows} x {cols} pixels leaves an output of {out[0]} x "
                f"{out[1]} (kernel {window.kernel}, stride {(sr, sc)}, pad {window.pad})"
            )
        return window, out

    def _adjoint_weights(self) -> Array:
        """W as the convolution output -> input has it: (fr, fc, out_ch, in_ch)."""
        W = self.parameters["W"]
        return xp_of(W).ascontiguousarray(W.transpose(0, 1, 3, 2))

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = adjoint convolution of X, + b;  Y = act(Z)."""
        n_ex, rows, cols, _ = X.shape
        window, out = self._geometry(rows, cols)
        out_shape = (n_ex, *out, self.out_ch)
        Z = conv.conv2d_input_grad(X, self._adjoint_weights(), out_shape, window)
        Y = activation.bias_activation(Z, self.parameters["b"], self.act_fn)  # adds b to Z in place
        return Y, {"X": X, "Z": Z, "window": window, "out_rows": out[0], "out_cols": out[1]}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dX = dZ * W (convolution);  dW with X and dZ in swapped roles."""
        X, window = saved["X"], saved["window"]
        dZ = activation.activation_backward(dLdY, saved["Z"], self.act_fn)
        grads = {}
        if params:
            dW = conv.conv2d_weight_grad(dZ, X, window).transpose(0, 1, 3, 2)
            grads = {"W": dW, "b": conv.bias_grad(dZ)}
        dX = conv.conv2d_forward(dZ, self._adjoint_weights(), None, window) if inputs else None
        return dX, grads
