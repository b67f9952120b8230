"""pipeline.cuh, group.cuh: no two lanes that shared memory serves together meet in a bank.

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
HEADERS = (
    *("common.cuh", "words.cuh", "activation_functions.cuh", "tile.cuh", "fragments.cuh"),
    *("copies.cuh", "stages.cuh", "pipeline.cuh", "warpgroup.cuh", "group.cuh"),
)
#: the places that a thread writes and reads, by the functions of the kernels
PLACES = r"""
template <typename T, typename Tile, int LINES, bool TERMS>
__global__ void places(int* written, int* read)
{
    using Lies = Layout<T, Tile, LINES, TERMS>;
    const int thread = threadIdx.x;
    for (int s = 0; s < OWN_RUNS<Tile, LINES> && thread < ASKING<Tile, LINES>; ++s)
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

// Where a thread's runs go, and the first line and term of each.
template <typename Side, int LINES, bool TERMS>
__global__ void group_places(int* written, int* lines, int* terms)
{
    using Lies = Layout<__half, Side, LINES, TERMS>;
    const int run = threadIdx.x % Lies::RUNS;
    for (int s = 0; s < OWN_RUNS<Side, LINES>; ++s) {
        const int row = threadIdx.x / Lies::RUNS + s * STEP<Lies>, number = s * 256 + threadIdx.x;
        written[number] = Lies::place_of_run(row, run);
        lines[number] = Lies::line_in(row, run);
        terms[number] = Lies::term_in(row, run);
    }
}
"""
FORMS = [
    f"{kind}, {name}, {lines}, {terms}"
    for name, sizes in (("Tensor", (128, 64)), ("TensorLarge", (128,)), ("TensorTall", (256, 32)))
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
        written = np.full((-(-size // RUN // BLOCK), BLOCK), -1, "i4")
        read_at = np.full((lines // 32 * 4, BLOCK), -1, "i4")
        module[name]((1,), (BLOCK,), (written, read_at))
        written = written[:, : size // RUN]  # of fewer runs than threads the last ones have none
        # each run has a place, and the lanes of a warp read all there is
        assert sorted(written.ravel().tolist()) == list(range(0, size, RUN)), form
        assert set(read_at.ravel().tolist()) == set(range(0, size, RUN)), form
        assert conflicts(written) == conflicts(read_at) == 0, form


@pytest.mark.parametrize("terms", [True, False])
@pytest.mark.parametrize(
    ("side", "lines"),
    [
        ("RowsOf<Warpgroup>", 256),
        ("ColumnsOf<Warpgroup>", 64),
        ("ColumnsOf<WarpgroupLarge>", 128),
    ],
)
def test_where_warpgroups_find_factors(side: str, lines: int, terms: bool) -> None:
    """All runs have places, with no conflicts. Where terms lie together, the eight numbers of a row
    that a thread sums are columns beside one another, and its four rows lines of a window; where
    lines do, its rows are 8 lines apart."""
    from tests.support.cuda_on_cpu import HostModule

    code = "".join(read(header) for header in HEADERS) + PLACES
    code = "\n".join(line for line in code.split("\n") if "#include <" not in line)
    name = f"group_places<{side}, {lines}, {str(terms).lower()}>"
    module = HostModule(code, ["-DGPULAYERS_FLOAT16"], [name], "places.cu")
    count = lines * 128 // RUN
    written, line, term = (np.full((count // BLOCK, BLOCK), -1, "i4") for _ in range(3))
    module[name]((1,), (BLOCK,), (written, line, term))
    assert sorted(written.ravel().tolist()) == list(range(0, lines * 128, RUN))
    assert conflicts(written) == 0
    each = zip(*(values.ravel().tolist() for values in (written, line, term)), strict=True)
    places = {place: (of_line, of_term) for place, of_line, of_term in each}

    def held(row: int) -> int:  # the line of a row of a product, PTX's layout without its swizzle
        place = row * 128 + row % 8 * RUN if terms else row // 64 * 8192 + row % 64 // 8 * RUN
        of_line, of_term = places[place]
        assert of_term == 0
        return of_line + (0 if terms else row % 8)

    for first in range(0, lines, 128 if "Rows" in side else 32):
        if "Rows" in side:
            for warp, g in itertools.product(range(4), range(8)):
                own = [held(first + 64 * h + 16 * warp + 8 * b + g) for h in (0, 1) for b in (0, 1)]
                start = first + (4 * (8 * warp + g) if terms else 32 * warp + g)
                assert own == [start + (1 if terms else 8) * i for i in range(4)]
            continue
        for t in range(4):
            own = [held(first + 8 * j + 2 * t + e) for j in range(4) for e in (0, 1)]
            natural = [first + 8 * j + 2 * t + e for j in range(4) for e in (0, 1)]
            assert own == (list(range(first + 8 * t, first + 8 * t + 8)) if terms else natural)


def test_all_stages_fit() -> None:
    """A block has 99 KB on the smallest device with tensor cores of this kind, with what sums and
    notes take besides (conv_notes.cuh), and 227 KB where there are warpgroups, which make no notes;
    two of the smaller tile go into 100 KB."""
    sums, notes = 2 << 10, 2 * BLOCK * 8
    for tile in TILES.values():
        most = (227 << 10) - sums if tile.only else (99 << 10) - sums - notes
        assert stage_bytes(tile, True) <= most
    assert 2 * (stage_bytes(TILES["_tensor"], False) + sums + notes) <= 100 << 10
