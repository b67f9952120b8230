"""Max and average pooling, and where their gradients go."""

from __future__ import annotations

from gpulayers.backend import Array, xp_of
from gpulayers.ops._protocol import Shape4
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference.conv import cropped, pad_image, taps
from gpulayers.ops.window import Window


def argmax_dtype(window: Window) -> str:
    """uint8 names any of 256 taps; larger windows take int32."""
    return "uint8" if window.taps <= 256 else "int32"


class ReferencePool:
    """Each output remembers which tap won; the gradient is routed back to that tap."""

    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]:
        xp = xp_of(X)
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        padded = pad_image(X, window, value=-float("inf"))
        inside = pad_image(xp.ones((1, rows, cols, 1), dtype=bool), window, value=False)
        Y = xp.full((n, *out, ch), -float("inf"), dtype=X.dtype)
        argmax = xp.zeros(Y.shape, dtype=argmax_dtype(window))
        unset = xp.ones(Y.shape, dtype=bool)  # the first real pixel is taken even if it is -inf
        for i, j, r, c in taps(window, out):
            value, real = padded[:, r, c], inside[:, r, c]
            # strictly greater, so that the first of equals stays; a NaN is taken and then kept
            wins = real & (unset | (value > Y) | ((value != value) & (Y == Y)))
            Y = xp.where(wins, value, Y)
            argmax = xp.where(wins, argmax.dtype.type(i * window.kernel[1] + j), argmax)
            unset &= ~real
        return Y, argmax

    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array:
        # dX[pixel] = sum of dY over the windows that this pixel won
        xp = xp_of(dY)
        n, rows, cols, ch = x_shape
        out = window.output_size(rows, cols)
        padded = xp.zeros((n, *window.padded_size(rows, cols), ch), dtype=sum_dtype(dY))
        for i, j, r, c in taps(window, out):
            padded[:, r, c] += xp.where(argmax == i * window.kernel[1] + j, dY, dY.dtype.type(0))
        return cropped(padded, window, (rows, cols), dY.dtype)

    def avg_pool2d_forward(self, X: Array, window: Window) -> Array:
        # the mean over all taps; padding counts as zeros
        n, rows, cols, ch = X.shape
        out = window.output_size(rows, cols)
        padded = pad_image(X, window)
        Y = xp_of(X).zeros((n, *out, ch), dtype=sum_dtype(X))
        for _, _, r, c in taps(window, out):
            Y += padded[:, r, c]
        Y *= 1.0 / window.taps
        return Y.astype(X.dtype, copy=False)

    def avg_pool2d_backward(self, dY: Array, x_shape: Shape4, window: Window) -> Array:
        # every tap gets an equal share of its window's gradient
        xp = xp_of(dY)
        n, rows, cols, ch = x_shape
        out = window.output_size(rows, cols)
        share = dY * (1.0 / window.taps)
        padded = xp.zeros((n, *window.padded_size(rows, cols), ch), dtype=sum_dtype(dY))
        for _, _, r, c in taps(window, out):
            padded[:, r, c] += share
        return cropped(padded, window, (rows, cols), dY.dtype)
