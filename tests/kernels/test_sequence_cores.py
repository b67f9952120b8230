"""sequence_cores.cuh: no two lanes that shared memory serves together meet in a bank.

Of 16 bytes a lane, it serves 8 lanes at a time (test_pipeline.py); of two bytes a whole warp, and
lanes that want the same word of four bytes do not meet.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.cuda.table_sequence import CORE_RUN, CORES
from tests.kernels.test_pipeline import conflicts
from tests.support.mutations import read

pytestmark = pytest.mark.emulated

HEADERS = (
    *("common.cuh", "words.cuh", "fragments.cuh", "activation_functions.cuh", "sequence.cuh"),
    *("barrier.cuh", "sequence_group.cuh", "sequence_tensor.cuh", "sequence_cores.cuh"),
)
#: bytes that a thread reads from on and where it writes, of each vector and each run or pair
PLACES = r"""
template <int IN, int EACH>
__global__ void places(int* read, int* written, int* sizes)
{
    using Block = CoreBlock<__half, 1, IN, EACH>;
    Block block;
    block.sit(EACH, CORE_UNITS);
    const int thread = threadIdx.x, threads = blockDim.x, pairs = Block::PAIRS;
    for (int run = 0; run < IN * Block::RUNS; ++run)
        read[run * threads + thread] = 2 * Block::place_of(thread % 32 / 4 % EACH, run, thread % 4);
    for (int vector = 0; vector < IN; ++vector)
        for (int pair = 0; pair < pairs; ++pair)
            written[(vector * pairs + pair) * threads + thread] = 2 * block.spot(pair, vector);
    if (thread == 0) sizes[0] = 2 * block.size();
}
"""
WARP, BANKS, WORD, THREADS, RUNS = 32, 32, 4, 256, 128 // CORE_RUN


def word_conflicts(places: np.ndarray) -> int:
    """How often lanes of a warp want another word of the same bank."""
    found = 0
    for lanes in places.reshape(-1, WARP):
        words = {int(place) // WORD for place in lanes}
        found += len(words) - len({word % BANKS for word in words})
    return found


def test_conflicts_are_counted() -> None:
    lanes = np.arange(WARP)
    assert word_conflicts(lanes * 2) == word_conflicts(lanes * 4) == 0
    assert word_conflicts(lanes * 8) == 16
    assert word_conflicts(lanes * 128) == 31


@pytest.mark.parametrize("examples", CORES.values())
@pytest.mark.parametrize("vectors", [1, 3, 4])
def test_no_bank_conflicts(vectors: int, examples: int) -> None:
    from tests.support.cuda_on_cpu import HostModule

    code = "".join(read(header) for header in HEADERS) + PLACES
    code = "\n".join(line for line in code.split("\n") if "#include <" not in line)
    name = f"places<{vectors}, {examples}>"
    module = HostModule(code, ["-DGPULAYERS_FLOAT16"], [name], "places.cu")
    read_at = np.full((vectors * RUNS, THREADS), -1, "i4")
    written, size = np.full((vectors * examples // 2, THREADS), -1, "i4"), np.zeros(1, "i4")
    module[name]((1,), (THREADS,), (read_at, written, size))
    assert conflicts(read_at) == word_conflicts(written) == 0
    # every number of every example has a place, and they are what is read, 16 bytes each
    places = written.ravel().tolist()
    assert len(set(places)) == len(places) == vectors * examples * 128
    assert {place // 16 * 16 for place in places} == set(read_at.ravel().tolist())
    assert max(places) < size[0]
