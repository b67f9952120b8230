"""Arrays of more than 2**31 elements: virtual memory, of which a few blocks touch a few pages."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from gpulayers.cuda import table
from tests.kernels.arrays import blocks
from tests.kernels.launchers import EmulatedLauncher
from tests.support.cuda_on_cpu import KernelError

pytestmark = pytest.mark.emulated

#: columns of a 3300 x 3300 x 8 image under 5 x 5 windows: 2.17e9 elements, just over 2**31
COLUMNS = 3296 * 3296 * 25 * 8


def virtual(elements: int) -> np.ndarray:
    """Zeros that take memory only where they are touched, on Linux without reserving any."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=np.float16)


def gather(index: str) -> np.ndarray:
    columns, x = virtual(COLUMNS), virtual(3300 * 3300 * 8)
    columns[-25 * 8 :] = 1.0  # the last window
    grid = blocks(x.size, "col2im_gather")
    numbers = (3300, 3300, 8, 3296, 3296, 5, 5, 1, 1, 0, 0, 1, 1)
    launcher = EmulatedLauncher(only_blocks=4)  # the first, the last and two between
    launcher.launch("col2im_gather", "float16", index, grid, (columns, x, x.size, *numbers))
    return x


def test_64_bit_indices_reach_every_element() -> None:
    x = gather("int64")
    assert (x[-5 * 8 :] == 1.0).all()  # one tap row of the last window
    assert (x[-32 * 8 : -5 * 8] == 0.0).all()


def test_32_bit_indices_would_not() -> None:
    with pytest.raises(KernelError, match="overflow"):
        gather("int32")


def test_so_the_engine_takes_64_bits_there() -> None:
    assert table.index_for(COLUMNS, 3300 * 3300 * 8) == "int64"
    assert table.index_for(3300 * 3300 * 8) == "int32"


def test_so_do_the_weights_of_a_recurrent_network() -> None:
    """More than 2**31 of them, side by side; the biases lie behind them."""
    hidden = 23180
    x, turned, recurrent = virtual(1), virtual(1), virtual(4 * hidden**2)
    given = virtual(hidden**2 + hidden)
    weights, into = virtual(4 * hidden), virtual(4 * hidden)
    b = np.full(hidden, 2.0, np.float16)
    total = recurrent.size + into.size + 4 * hidden
    arrays = (x, *(given,) * 4, *(b,) * 4, turned, recurrent, into, weights)
    args = (*arrays, total, 0, 1, 1, 1, hidden, 4, 0)
    launcher = EmulatedLauncher(only_blocks=2)  # the first and the last
    launcher.launch("sequence_prepare", "float16", "int64", blocks(total, "sequence_prepare"), args)
    assert (weights[-100:] == 2.0).all()
