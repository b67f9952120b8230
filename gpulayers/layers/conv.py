"""Convolutions over sequences and images.

What deep learning calls a convolution is a cross-correlation: the kernel is not flipped. The work
is done by `gpulayers.ops.conv`; `_backward_naive` of either layer says the same in loops.
"""

from __future__ import annotations

from typing import Any

from gpulayers._types import is_sequence
from gpulayers.activations import Identity
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops.window import Window


class Conv2D(LayerBase):
    """Convolution of images.

        Z[n, r, c, o] = b[o] + sum over i, j, k of X_pad[n, r s + i d, c s + j d, k] W[i, j, k, o]
        Y = act(Z)                           with stride s and tap spacing d = dilation + 1

    Parameters
    ----------
    out_ch : int
    kernel_shape : (fr, fc), or one int for both
    pad : int, (rows, cols), (top, bottom, left, right) or ``"same"``
        Zeros around the image. ``"same"``: the output has the input's size for any stride.
    stride : int or (rows, cols)
    dilation : int or (rows, cols)
        Zeros between the kernel's taps, numpy-ml's meaning: one less than PyTorch's.
    act_fn : str, activation or None
    optimizer : str, optimizer, dict or None
        Note the order, numpy-ml's: here `optimizer` comes before `init`.
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
    out = floor((size + padding - (f - 1) d - 1) / s) + 1; a kernel that does not fit into the
    padded input raises ShapeError. Pads may be lists and array-library integers (numpy-ml fails).
    Source: LeCun et al., "Gradient-based learning applied to document recognition" (1998);
    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016).
    """

    _ndim, _axes, _size = 4, "(n_ex, rows, cols, in_ch)", ("in_ch", 3)
    _params = ("W", "b")
    _hyper = ("pad", "init", "in_ch", "out_ch", "stride", "dilation", "act_fn", "kernel_shape")

    def __init__(
        self,
        out_ch: int,
        kernel_shape: Any,
        pad: Any = 0,
        stride: Any = 1,
        dilation: Any = 0,
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
        self.dilation = dilation
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.out_ch = check.integer(self._name, "out_ch", self.out_ch)
        self.kernel_shape = check.pair(check.plain(self.kernel_shape))
        self.pad, self.stride = check.plain(self.pad), check.plain(self.stride)
        self.dilation = check.plain(self.dilation)
        pad = 0 if self.pad == "same" else self.pad
        Window.make(self.kernel_shape, self.stride, pad, self.dilation, name=self._name)
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": [], "out_rows": [], "out_cols": []}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (*self.kernel_shape, self.in_ch, self.out_ch), weights)
        self._create("b", (1, 1, 1, self.out_ch))

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = X * W + b (convolution);  Y = act(Z)."""
        window = check.window_2d(
            self.kernel_shape, self.stride, self.pad, self.dilation, X.shape[1:3], self._name
        )
        W, b = self.parameters["W"], self.parameters["b"]
        if type(self.act_fn) is Identity:
            Y = Z = conv.conv2d_forward(X, W, b.reshape(-1), window)
        else:
            Z = conv.conv2d_forward(X, W, None, window)
            Y = activation.bias_activation(Z, b, self.act_fn)  # adds b to Z in place
        _, out_rows, out_cols, _ = Z.shape
        return Y, {"X": X, "Z": Z, "window": window, "out_rows": out_rows, "out_cols": out_cols}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dW = im2col(X)^T dZ;  db = sum of dZ;  dX = col2im(dZ W^T)."""
        X, W, window = saved["X"], self.parameters["W"], saved["window"]
        dZ = activation.activation_backward(dLdY, saved["Z"], self.act_fn)
        if not params:
            return conv.conv2d_input_grad(dZ, W, X.shape, window) if inputs else None, {}
        if inputs:
            dX, dW, db = conv.conv2d_grads(X, dZ, W, window)
        else:
            dX, (dW, db) = None, conv.conv2d_param_grads(X, dZ, window)
        return dX, {"W": dW, "b": db}

    def _backward_naive(self, dLdy: Any, retain_grads: bool = True) -> Any:
        """`backward` in loops, to read: slow, the same result (numpy-ml's crashes)."""
        return self._run_backward(self._backward_loops, dLdy, retain_grads, True)

    def _backward_loops(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """Each output pixel is a sum of products; its gradient goes back along each of them."""
        X, W, window = saved["X"], self.parameters["W"], saved["window"]
        (fr, fc), (sr, sc), (dr, dc) = window.kernel, window.stride, window.dilation
        top, bottom, left, right = window.pad
        n_ex, rows, cols, _ = X.shape
        xp = xp_of(X)

        X_pad = xp.pad(X, ((0, 0), (top, bottom), (left, right), (0, 0)))
        dX_pad, dW, db = xp.zeros_like(X_pad), xp.zeros_like(W), xp.zeros_like(W[0, 0, 0])
        dZ = dLdY * self.act_fn.grad(saved["Z"])

        for n in range(n_ex):
            for r in range(dZ.shape[1]):
                for c in range(dZ.shape[2]):
                    for i in range(fr):
                        for j in range(fc):
                            row, col = r * sr + i * dr, c * sc + j * dc  # the pixel tap (i, j) saw
                            for o in range(self.out_ch):
                                dz = dZ[n, r, c, o]
                                dW[i, j, :, o] += X_pad[n, row, col] * dz
                                dX_pad[n, row, col] += W[i, j, :, o] * dz
                    db += dZ[n, r, c]
        return dX_pad[:, top : top + rows, left : left + cols], {"W": dW, "b": db}


class Conv1D(LayerBase):
    """Convolution of sequences.

        Z[n, t, o] = b[o] + sum over i, k of X_pad[n, t s + i d, k] W[i, k, o];    Y = act(Z)

    Parameters
    ----------
    out_ch : int
    kernel_width : int
    pad : int, (left, right), ``"same"`` or ``"causal"``
        ``"same"``: the output has the input's length for any stride. ``"causal"``: too, with all
        the padding on the left, so that no output sees a later input.
    stride : int
    dilation : int
        Zeros between the kernel's taps, numpy-ml's meaning: one less than PyTorch's.
    act_fn : str, activation or None
    init : str
        Note the order, numpy-ml's: here `init` comes before `optimizer`.
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : W (kernel_width, in_ch, out_ch), b (1, 1, out_ch)
    derived_variables : Z (pre-activations), out_rows (l_out), out_cols (out_ch)

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, l_in, in_ch), output (n_ex, l_out, out_ch), floating. Computed as a convolution
    of images of one row. Causal, dilated: van den Oord et al., "WaveNet" (2016), section 2.1.
    """

    _ndim, _axes, _size = 3, "(n_ex, l_in, in_ch)", ("in_ch", 2)
    _params = ("W", "b")
    _hyper = ("pad", "init", "in_ch", "out_ch", "stride", "dilation", "act_fn", "kernel_width")

    def __init__(
        self,
        out_ch: int,
        kernel_width: int,
        pad: Any = 0,
        stride: int = 1,
        dilation: int = 0,
        act_fn: Any = None,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.in_ch: int | None = None
        self.out_ch = out_ch
        self.kernel_width = kernel_width
        self.pad = pad
        self.stride = stride
        self.dilation = dilation
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.out_ch = check.integer(self._name, "out_ch", self.out_ch)
        self.kernel_width = check.plain(self.kernel_width)
        self.pad, self.stride = check.plain(self.pad), check.plain(self.stride)
        self.dilation = check.plain(self.dilation)
        pad = 0 if self.pad in ("same", "causal") else self.pad
        if isinstance(pad, str) or (is_sequence(pad) and len(pad) != 2):
            raise ParameterError(
                f"{self._name}: pad must be an int, (left, right), 'same' or 'causal', got {pad!r}"
            )
        Window.make_1d(self.kernel_width, self.stride, pad, self.dilation, name=self._name)
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": [], "out_rows": [], "out_cols": []}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (self.kernel_width, self.in_ch, self.out_ch), weights)
        self._create("b", (1, 1, self.out_ch))

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = X * W + b (convolution);  Y = act(Z)."""
        window = check.window_1d(
            self.kernel_width, self.stride, self.pad, self.dilation, X.shape[1], self._name
        )
        Z = conv.conv2d_forward(X[:, None], self.parameters["W"][None], None, window)[:, 0]
        Y = activation.bias_activation(Z, self.parameters["b"], self.act_fn)  # adds b to Z in place
        _, l_out, out_ch = Z.shape
        return Y, {"X": X, "Z": Z, "window": window, "out_rows": l_out, "out_cols": out_ch}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dW = im2col(X)^T dZ;  db = sum of dZ;  dX = col2im(dZ W^T)."""
        X, W, window = saved["X"][:, None], self.parameters["W"][None], saved["window"]
        dZ = activation.activation_backward(dLdY, saved["Z"], self.act_fn)[:, None]
        grads = {}
        if params:
            grads = {"W": conv.conv2d_weight_grad(X, dZ, window), "b": conv.bias_grad(dZ)}
        dX = conv.conv2d_input_grad(dZ, W, X.shape, window)[:, 0] if inputs else None
        return dX, grads

    def _backward_naive(self, dLdy: Any, retain_grads: bool = True) -> Any:
        """`backward` in loops, to read: slow, the same result."""
        return self._run_backward(self._backward_loops, dLdy, retain_grads, True)

    def _backward_loops(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """Each output is a sum of products; its gradient goes back along each of them."""
        X, W, window = saved["X"], self.parameters["W"], saved["window"]
        (_, fw), (_, stride), (_, spacing) = window.kernel, window.stride, window.dilation
        _, _, left, right = window.pad
        n_ex, l_in, _ = X.shape
        xp = xp_of(X)

        X_pad = xp.pad(X, ((0, 0), (left, right), (0, 0)))
        dX_pad, dW, db = xp.zeros_like(X_pad), xp.zeros_like(W), xp.zeros_like(W[0, 0])
        dZ = dLdY * self.act_fn.grad(saved["Z"])

        for n in range(n_ex):
            for t in range(dZ.shape[1]):
                for i in range(fw):
                    s = t * stride + i * spacing  # the element tap i saw
                    for o in range(self.out_ch):
                        dz = dZ[n, t, o]
                        dW[i, :, o] += X_pad[n, s] * dz
                        dX_pad[n, s] += W[i, :, o] * dz
                db += dZ[n, t]
        return dX_pad[:, left : left + l_in], {"W": dW, "b": db}
