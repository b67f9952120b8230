"""Pooling over windows of an image, or all of it."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import pool
from gpulayers.ops.window import Window


class Pool2D(LayerBase):
    """The maximum or the average of each window, channel by channel.

    Parameters
    ----------
    kernel_shape : (fr, fc), or one int for both
    stride : int or (rows, cols)
    pad : int, (rows, cols), (top, bottom, left, right) or ``"same"``
    mode : ``"max"`` or ``"average"``
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters : none
    derived_variables : out_rows, out_cols

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, rows, cols, ch), output (n_ex, out_rows, out_cols, ch), in the input's dtype, with
    out = floor((size + padding - f) / stride) + 1.
    max: padding counts as minus infinity and a window of nothing but padding raises ShapeError
    (numpy-ml pads with zeros, which turns negative borders into 0, and its gradient with padding
    crashes or is wrong). The first maximum in row-major order gets the gradient; NaN propagates.
    average: padding counts as zeros, the divisor is always fr * fc (as numpy-ml).
    Source: LeCun et al. (1998); Scherer, Muller & Behnke (2010).
    """

    _ndim, _axes = 4, "(n_ex, rows, cols, ch)"
    _hyper = ("act_fn", "pad", "mode", "in_ch", "out_ch", "stride", "kernel_shape")

    def __init__(
        self,
        kernel_shape: Any,
        stride: Any = 1,
        pad: Any = 0,
        mode: str = "max",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.in_ch: int | None = None
        self.out_ch: int | None = None
        self.kernel_shape = kernel_shape
        self.stride = stride
        self.pad = pad
        self.mode = mode
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.mode = check.choice(self._name, "mode", self.mode, ("max", "average"))
        self.kernel_shape = check.pair(check.plain(self.kernel_shape))
        self.pad, self.stride = check.plain(self.pad), check.plain(self.stride)
        pad = 0 if self.pad == "same" else self.pad
        Window.make(self.kernel_shape, self.stride, pad, name=self._name)

    def _new_derived(self) -> dict[str, Any]:
        return {"out_rows": [], "out_cols": []}

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y[n, r, c, k] = max or mean over i, j of X_pad[n, r s + i, c s + j, k]."""
        vars(self).update(in_ch=X.shape[3], out_ch=X.shape[3])  # unchecked: it is every pass
        window = check.window_2d(
            self.kernel_shape, self.stride, self.pad, 0, X.shape[1:3], self._name
        )
        if self.mode == "max":
            Y, argmax = pool.max_pool2d_forward(X, window)
        else:
            Y, argmax = pool.avg_pool2d_forward(X, window), None
        saved = {"x_shape": X.shape, "argmax": argmax, "window": window}
        return Y, {**saved, "out_rows": Y.shape[1], "out_cols": Y.shape[2]}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """max: dY goes to the pixel that won. average: dY / (fr fc) goes to each pixel."""
        if not inputs:
            return None, {}
        x_shape, window = saved["x_shape"], saved["window"]
        if saved["argmax"] is not None:
            return pool.max_pool2d_backward(dLdY, saved["argmax"], x_shape, window), {}
        return pool.avg_pool2d_backward(dLdY, x_shape, window), {}


class GlobalAvgPool2D(LayerBase):
    """The average of each channel over the whole image: Y[n, k] = mean of X[n, :, :, k].

    Parameters
    ----------
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters, derived_variables : none

    Notes
    -----
    Input (n_ex, rows, cols, ch), output (n_ex, ch), in the input's dtype; half types are averaged
    in float32. Takes the place of `Flatten` before the last fully connected layer, and then images
    of other sizes fit too. (Not in numpy-ml.)
    Source: Lin, Chen & Yan, "Network in network" (2014), section 3.2.
    """

    _ndim, _axes = 4, "(n_ex, rows, cols, ch)"
    _hyper = ("in_ch", "out_ch")
    _keeps_input = False

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.in_ch: int | None = None
        self.out_ch: int | None = None

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y[n, k] = 1 / (rows cols) sum over r, c of X[n, r, c, k]."""
        _, rows, cols, ch = X.shape
        if not rows * cols:
            raise ShapeError(
                f"{self._name}: expected an input {self._axes} with rows and cols >= 1, "
                f"got shape {X.shape}"
            )
        vars(self).update(in_ch=ch, out_ch=ch)  # unchecked: it is every pass
        wide = "float32" if X.dtype.itemsize == 2 else X.dtype
        # along the columns first: NumPy adds up what lies apart one by one, too long for millions
        Y = X.mean(axis=2, dtype=wide).mean(axis=1).astype(X.dtype, copy=False)
        return Y, {"x_shape": X.shape}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX[n, r, c, k] = dY[n, k] / (rows cols)."""
        if not inputs:
            return None, {}
        x_shape = saved["x_shape"]
        share = dLdY * dLdY.dtype.type(1.0 / (x_shape[1] * x_shape[2]))
        return xp_of(dLdY).broadcast_to(share[:, None, None, :], x_shape).copy(), {}
