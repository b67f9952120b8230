"""The numbers that kernels over windows take."""

from __future__ import annotations

from gpulayers.ops._kernels import Shape4
from gpulayers.ops.window import Window


def window_arguments(x_shape: Shape4, window: Window) -> tuple[int, ...]:
    """Return the WINDOW_PARAMETERS of `window.cuh` for images of shape `x_shape`."""
    _, rows, cols, channels = x_shape
    top, _, left, _ = window.pad
    out = window.output_size(rows, cols)
    return (
        *(rows, cols, channels, *out),
        *(*window.kernel, *window.stride, top, left, *window.dilation),
    )
