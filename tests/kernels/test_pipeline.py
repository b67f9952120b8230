"""pipeline.cuh: no two lanes that shared memory serves together meet in a bank.

Of 16 bytes a lane, shared memory serves 8 lanes at a time: those that stand together in a warp, or
that say where the rows of one matrix are (ldmatrix). They meet in a bank unless their places are
other 16 bytes of the 128 that the banks hold.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpulayers.cuda.table_tiles import TILES, stage_bytes
from tests.support.mutations import read

pytestmark = pytest.mark.emulated

BANKS, RUN, TOGETHER, BLOCK = 128, 16, 8, 256
HEADERS = ("common.cuh", "words.cuh", "tile.cuh", "fragments.cuh", "copies.cuh", "pipeline.cuh")
#: the places that a thread writes and reads, by the functions of the kernels
PLACES = r"""
template <typename T, typename Tile, int LINES, bool TERMS>
__global__ void places(int* written, int* read)
{
    using Lies = Layout<T, Tile, LINES, TERMS>;
    const int thread = threadIdx.x;
    for (int s = 0; s < OWN_RUNS<Tile, LINES>; ++s)
        written[s * 256 + thread] =
            Lies::place_of_run(thread / Lies::RUNS + s * STEP<Lies>, thread % Lies::RUNS);
    int number = 0;
    for (int group = 0; group < LINES / 32; ++group) {
        const int own = own_place<T, Tile, LINES, TERMS>(group);
        for (int step = 0; step < Tile::ROW / 32; ++step)
            for (int part = 0; part < 2; ++part)
                read[number++ * 256 + thread] =
                    place_to_read<T, Tile, LINES, TERMS>(own, 0, step, part);
    }
}
"""
FORMS = [
    f"{kind}, {name}, {lines}, {terms}"
    for name, sizes in (("Tensor", (128, 64)), ("TensorLarge", (128,)))
    for kind, lines, terms in itertools.product(("float", "__half"), sizes, ("true", "false"))
]


def conflicts(places: np.ndarray) -> int:
    """How often lanes that are served together want another 16 bytes of the same banks."""
    found = 0
    for lanes in places.reshape(-1, TOGETHER):
        runs = {(place % BANKS // RUN, place) for place in lanes.tolist()}
        found += len(runs) - len({bank for bank, _ in runs})
    return found


def test_conflicts_are_counted() -> None:
    apart = np.arange(TOGETHER) * RUN
    assert conflicts(apart) == conflicts(apart * 0) == 0
    assert conflicts(apart * 2) == 4
    assert conflicts(apart * 8) == 7


def test_no_bank_conflicts() -> None:
    from tests.support.cuda_on_cpu import HostModule

    code = "".join(read(header) for header in HEADERS) + PLACES
    code = "\n".join(line for line in code.split("\n") if "#include <" not in line)
    names = [f"places<{form}>" for form in FORMS]
    module = HostModule(code, ["-DGPULAYERS_FLOAT16"], names, "places.cu")
    for form, name in zip(FORMS, names, strict=True):
        lines = int(form.split(", ")[2])
        size = lines * 64
        written = np.full((size // RUN // BLOCK, BLOCK), -1, "i4")
        read_at = np.full((lines // 32 * 4, BLOCK), -1, "i4")
        module[name]((1,), (BLOCK,), (written, read_at))
        # each run has a place, and the lanes of a warp read all there is
        assert sorted(written.ravel().tolist()) == list(range(0, size, RUN)), form
        assert set(read_at.ravel().tolist()) == set(range(0, size, RUN)), form
        assert conflicts(written) == conflicts(read_at) == 0, form


def test_all_stages_fit() -> None:
    """A block has 99 KB on the smallest device with tensor cores of this kind, with what sums take
    besides; two of the smaller tile go into its 100 KB."""
    for tile in TILES.values():
        assert stage_bytes(tile, True) <= (99 - 2) << 10
    assert 2 * (stage_bytes(TILES["_tensor"], False) + (2 << 10)) <= 100 << 10
