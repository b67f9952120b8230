"""The numbers that kernels over windows, columns and rows take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.cuda import table
from gpulayers.cuda.compile import launch
from gpulayers.errors import BackendError
from gpulayers.ops._protocol import Shape4
from gpulayers.ops.window import Window

# column sums: rows that a thread should add up at least, and blocks that fill any GPU
_ROWS_A_THREAD = 16
_BLOCKS = 1024
# from here on a row keeps a whole block busy
LONG_ROW = 1024
_WARP = 32


def window_arguments(x_shape: Shape4, window: Window) -> tuple[int, ...]:
    """Return the WINDOW_PARAMETERS of `window.cuh` for images of shape `x_shape`.

    Raises
    ------
    BackendError
        If a side of the padded image is more than 32 bits count.
    """
    _, rows, cols, channels = x_shape
    top, bottom, left, right = window.pad
    if max(rows + top + bottom, cols + left + right) > table.INT32_LIMIT:
        raise BackendError(
            f"windows over images of {rows} x {cols} with padding {window.pad}: expected at most "
            f"{table.INT32_LIMIT} rows and columns with their padding"
        )
    out = window.output_size(rows, cols)
    return (
        *(rows, cols, channels, *out),
        *(*window.kernel, *window.stride, top, left, *window.dilation),
    )


def column_blocks(rows: int, channels: int, block: int) -> tuple[int, int, int]:
    """Return (width, across, down) for sums over the columns of (rows, channels): the columns of a
    block of `block` threads, a power of two, and the grid."""
    width = min(32, 1 << (channels - 1).bit_length())
    across = -(-channels // width)
    wanted = -(-rows * width // (block * _ROWS_A_THREAD))
    return width, across, max(1, min(wanted, _BLOCKS // across))


def launch_rows(name: str, dtype: Any, args: Sequence[Any], rows: int, width: int) -> None:
    """Launch a kernel over rows: a warp a row, or a block for long rows (`name` with ``_long``)."""
    if not rows * width:
        return
    if width >= LONG_ROW:
        name, grid = f"{name}_long", rows
    else:
        grid = -(-rows // (table.KERNELS[name].block // _WARP))
    launch(name, dtype, (grid,), args, table.index_for(rows * width))
