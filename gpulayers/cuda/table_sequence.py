"""The kernels of sequence_*.cu, and what tells those over all steps apart.

Each kind has three kernels each way: for hidden sizes that a block has a quad of lanes a unit for,
with weights in registers, one example a block or two; and one for any size and dtype.
"""

from __future__ import annotations

from typing import NamedTuple

from gpulayers.cuda.spec import ARRAY, C_TYPES, INDEX, INT, ITEM_SIZE, REAL, KernelSpec

__all__ = ["KINDS", "LANES", "SPECS", "Variant", "Way", "variants", "way_of"]

#: as in sequence.cuh: threads of a block at most, and those that share a unit
MOST_THREADS, LANES = 512, 4
_WARP = 32
# Examples up to which each has a block of its own: a GPU has at least so many multiprocessors, or
# is small. A number, not the device's; the results are the same bits either way.
_BLOCKS = 128


class Kind(NamedTuple):
    """What a kind of network needs in a block, for each example: vectors of all units in shared
    memory, forward and back, and states beside them; and the sizes of its arrays in blocks."""

    gates: int
    vectors: tuple[int, int]
    states: tuple[int, int]
    arrays: tuple[int, int]
    numbers: tuple[tuple[str, ...], tuple[str, ...]]


_FORWARD, _BACKWARD = (INT,) * 9, (INT,) * 11
_ACT = (INT, REAL, REAL)

KINDS = {
    "rnn": Kind(1, (1, 1), (0, 1), (7, 7), ((*_FORWARD, *_ACT), (*_BACKWARD, *_ACT))),
    "lstm": Kind(4, (1, 4), (1, 2), (8, 10), (_FORWARD, _BACKWARD)),
    "gru": Kind(3, (1, 3), (0, 1), (7, 9), (_FORWARD, _BACKWARD)),
}


class Variant(NamedTuple):
    """A template instance: examples of a block, and terms of each sum that a lane has the weights
    of in registers (zero: any hidden size)."""

    suffix: str
    rows: int
    held: int


def variants(kind: str) -> tuple[Variant, Variant, Variant]:
    """Those of a kind: as many weights in registers as 128 of them leave room for."""
    one, two = {"rnn": (32, 32), "lstm": (16, 8), "gru": (20, 20)}[kind]
    return Variant("_one", 1, one), Variant("_two", 2, two), Variant("", 4, 0)


SPECS = tuple(
    KernelSpec(
        f"{kind}_sequence_{way}{variant.suffix}",
        f"sequence_{kind}.cu",
        f"{kind}_sequence_{way}<{{T}}, {{Acc}}, {variant.rows}, {variant.held}>",
        (*(ARRAY,) * KINDS[kind].arrays[back], *KINDS[kind].numbers[back]),
        block=MOST_THREADS,
        dtypes=("float32",) if variant.held else tuple(C_TYPES),
        barriers=True,
    )
    for kind in KINDS
    for back, way in enumerate(("forward", "backward"))
    for variant in variants(kind)
)
SPECS += (
    KernelSpec(
        "sequence_prepare",
        "sequence_plan.cu",
        "sequence_prepare<{T}, {Index}>",
        (*(ARRAY,) * 13, INDEX, INDEX, *(INT,) * 6),
    ),
    KernelSpec(
        "sequence_weight_grad",
        "sequence_plan.cu",
        "sequence_weight_grad<{T}, {Acc}>",
        (*(ARRAY,) * 4, *(INT,) * 9),
        barriers=True,
    ),
)


class Way(NamedTuple):
    """How a kernel goes through the steps: its name, threads and shared bytes of a block, blocks,
    Fours of weights in shared memory (see sequence.cuh), bytes read anew in each step."""

    kernel: str
    threads: int
    shared: int
    blocks: int
    fours: int
    streamed: int


def way_of(kind: str, back: bool, batch: int, hidden: int, dtype: str, shared: int) -> Way | None:
    """The way of a kind of network on a device whose blocks have `shared` bytes at most; None if
    the vectors of an example do not fit there."""
    one, two, other = variants(kind)
    held = dtype == "float32" and hidden <= MOST_THREADS // LANES
    variant = (one if batch <= _BLOCKS else two) if held else other
    gates, item = KINDS[kind].gates, max(ITEM_SIZE[dtype], 4)
    fours = -(-hidden // (4 * LANES))
    pitch = 4 * (max(fours, variant.held // 4) | 1)
    vectors = 2 * KINDS[kind].vectors[back] * LANES * pitch
    least = variant.rows * (vectors + KINDS[kind].states[back] * hidden) * item
    if least > shared:
        return None
    left = max(0, fours - variant.held // 4)
    each = gates * LANES * hidden * 4 * item
    stored = min(left, (shared - least) // each)
    warps = -(-LANES * hidden // _WARP)
    return Way(
        f"{kind}_sequence_{'backward' if back else 'forward'}{variant.suffix}",
        min(MOST_THREADS, _WARP * warps),
        least + stored * each,
        -(-batch // variant.rows),
        stored,
        (left - stored) * gates * LANES * hidden * 4 * ITEM_SIZE[dtype],
    )
