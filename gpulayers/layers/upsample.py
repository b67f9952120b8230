"""Layers that make images larger: by repeating pixels, by a border of zeros. (Not in numpy-ml.)"""

from __future__ import annotations

from typing import Any

from gpulayers._types import is_sequence
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops.window import Window


class Upsample2D(LayerBase):
    """Repeat each pixel: Y[n, r, c, k] = X[n, r // fr, c // fc, k] (nearest neighbour).

    Parameters
    ----------
    factor : int or (fr, fc), >= 1
        How many times as many rows and columns.
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters, derived_variables : none

    Raises
    ------
    ParameterError
        For a factor of the wrong type or range.

    Notes
    -----
    Input (n_ex, rows, cols, ch), output (n_ex, fr * rows, fc * cols, ch), in the input's dtype.
    Followed by a convolution it enlarges without the checkerboards of a transposed convolution.
    Source: Odena, Dumoulin & Olah, "Deconvolution and checkerboard artifacts" (2016).
    """

    _ndim, _axes = 4, "(n_ex, rows, cols, ch)"
    _hyper = ("factor",)
    _keeps_input = False

    def __init__(self, factor: Any = 2, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.factor = factor
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        factor = check.pair(check.plain(self.factor))
        if not is_sequence(factor) or len(factor) != 2:
            raise ParameterError(
                f"{self._name}: factor must be an int or (rows, cols), got {self.factor!r}"
            )
        self.factor = tuple(check.integer(self._name, "factor", f) for f in factor)

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y[n, r fr + i, c fc + j, k] = X[n, r, c, k] for all i < fr, j < fc."""
        n, rows, cols, ch = X.shape
        fr, fc = self.factor
        blocks = (n, rows, fr, cols, fc, ch)
        Y = xp_of(X).empty(blocks, dtype=X.dtype)
        Y[...] = X[:, :, None, :, None, :]
        return Y.reshape(n, rows * fr, cols * fc, ch), {"blocks": blocks}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX[n, r, c, k] = sum over i, j of dY[n, r fr + i, c fc + j, k]."""
        if not inputs:
            return None, {}
        dtype = dLdY.dtype
        wide = "float32" if dtype.itemsize == 2 else dtype
        dX = dLdY.reshape(saved["blocks"]).sum(axis=(2, 4), dtype=wide)
        return dX.astype(dtype, copy=False), {}


class ZeroPad2D(LayerBase):
    """Surround images with zeros.

    Parameters
    ----------
    pad : int, (rows, cols) or (top, bottom, left, right), >= 0
        Rows and columns to add; a pair counts for both sides each.
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters, derived_variables : none

    Raises
    ------
    ParameterError
        For padding of the wrong type or range.

    Notes
    -----
    Input (n_ex, rows, cols, ch), output (n_ex, top + rows + bottom, left + cols + right, ch), in
    the input's dtype. The convolutions pad by themselves; this layer is for padding before
    something else, or for padding of another network's shape.
    Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016), chap. 2.
    """

    _ndim, _axes = 4, "(n_ex, rows, cols, ch)"
    _hyper = ("pad",)
    _keeps_input = False

    def __init__(self, pad: Any = 1, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.pad = pad
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.pad = check.plain(self.pad)
        if isinstance(self.pad, str):
            raise ParameterError(
                f"{self._name}: pad must be an int or a tuple of 2 or 4 ints, got {self.pad!r}"
            )
        self._sides = Window.make(1, 1, self.pad, name=self._name).pad

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y[n, top + r, left + c, k] = X[n, r, c, k], zero elsewhere."""
        n, rows, cols, ch = X.shape
        top, bottom, left, right = self._sides
        Y = xp_of(X).zeros((n, top + rows + bottom, left + cols + right, ch), dtype=X.dtype)
        Y[:, top : top + rows, left : left + cols] = X
        return Y, {"size": (rows, cols)}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX[n, r, c, k] = dY[n, top + r, left + c, k]."""
        if not inputs:
            return None, {}
        (rows, cols), (top, _, left, _) = saved["size"], self._sides
        return dLdY[:, top : top + rows, left : left + cols].copy(), {}
