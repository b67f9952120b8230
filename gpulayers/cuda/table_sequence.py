"""The kernels of sequence_*.cu, and what tells those over all steps apart.

Each kind has five kernels each way: one for any size and dtype; for hidden sizes whose weights fit
there two with weights in registers in float32, one example a block or two, and two in half types,
two examples or eight, which tensor cores multiply.
"""

from __future__ import annotations

from typing import NamedTuple

from gpulayers.cuda.spec import ARRAY, C_TYPES, INDEX, INT, ITEM_SIZE, REAL, KernelSpec
from gpulayers.cuda.table_tiles import TENSOR_CORES, tiled

__all__ = [
    "CORES",
    "CORE_DTYPES",
    "HELD",
    "KINDS",
    "LANES",
    "SPECS",
    "Held",
    "Way",
    "core_way",
    "held_way",
    "way_of",
]

#: as in sequence_any.cuh: threads of a block at most, and those of a unit (of as many examples)
MOST_THREADS, LANES = 512, 4
#: as in sequence_held.cuh: threads of a block at most, so twice the units
HELD_THREADS = 256
#: as in sequence_cores.cuh: units of a block at most and of a warp, terms of a run, numbers from a
#: line of weights to the next while they come; examples of a block
CORE_UNITS, CORE_LINES, CORE_RUN, STAGE_PITCH = 128, 16, 32, 136
CORES = {"_two_tensor": 2, "_eight_tensor": 8}
CORE_DTYPES = ("float16", "bfloat16")
_WARP = 32
# Examples up to which each has a block of its own: a GPU has at least so many multiprocessors, or
# is small. A number, not the device's: so the results are the same bits on each that has room.
_BLOCKS = 128
# Examples up to which a block of tensor cores takes two, not eight. A step of an LSTM of 128 units
# is 256 products of a block either way, but its gates are four times as many instructions for eight
# examples as for two, and take longer than the products. So blocks of two are ahead until a
# multiprocessor has to take three of them in turn.
_PAIRS = 4 * _BLOCKS


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


class Held(NamedTuple):
    """Weights in registers: the kernel's suffix, examples of a block, lanes of a team, and Fours of
    weights of each lane that are there."""

    suffix: str
    rows: int
    team: int
    fours: int


def _held(team: int, one: int, two: int) -> tuple[Held, Held]:
    return Held("_one", 1, team, one), Held("_two", 2, team, two)


#: of a kind, ahead and back: as many weights in registers as all architectures have room for
HELD = {
    "rnn": (_held(8, 16, 16), _held(8, 16, 16)),
    "lstm": (_held(4, 44, 40), _held(16, 44, 40)),
    "gru": (_held(4, 48, 42), _held(16, 44, 42)),
}


def _specs(kind: str, back: bool) -> tuple[KernelSpec, ...]:
    way, numbers = ("forward", "backward")[back], KINDS[kind].numbers[back]
    arrays = (ARRAY,) * KINDS[kind].arrays[back]
    held = (
        KernelSpec(
            f"{kind}_sequence_{way}{held.suffix}",
            f"sequence_{kind}.cu",
            f"{kind}_sequence_held_{way}<{{T}}, {{Acc}}, "
            f"InTeams<{held.team}, {held.rows}, {held.fours}>>",
            (*arrays, *numbers[1:]),
            block=HELD_THREADS,
            dtypes=("float32",),
            barriers=True,
        )
        for held in HELD[kind][back]
    )
    cores = (
        KernelSpec(
            f"{kind}_sequence_{way}{suffix}",
            f"sequence_{kind}.cu",
            f"{kind}_sequence_held_{way}<{{T}}, {{Acc}}, InFragments<{examples}>>",
            (*arrays, *numbers[1:]),
            block=CORE_UNITS // CORE_LINES * _WARP,
            dtypes=CORE_DTYPES,
            barriers=True,
            oldest=TENSOR_CORES,
        )
        for suffix, examples in CORES.items()
    )
    anything = KernelSpec(
        f"{kind}_sequence_{way}",
        f"sequence_{kind}.cu",
        f"{kind}_sequence_{way}<{{T}}, {{Acc}}>",
        (*arrays, *numbers),
        block=MOST_THREADS,
        dtypes=tuple(C_TYPES),
        barriers=True,
    )
    return (*held, *cores, anything)


SPECS = tuple(spec for kind in KINDS for back in (False, True) for spec in _specs(kind, back))
SPECS += (
    KernelSpec(
        "sequence_prepare",
        "sequence_plan.cu",
        "sequence_prepare<{T}, {Index}>",
        (*(ARRAY,) * 13, INDEX, INDEX, *(INT,) * 6),
    ),
    *tiled(
        "sequence_weight_grad",
        "sequence_plan.cu",
        (*(ARRAY,) * 4, *(INT,) * 9),
        without=(
            *("_narrow", "_tall", "_large", "_tensor_large", "_tensor_tall"),
            *("_warpgroup", "_warpgroup_large"),
        ),
    ),
)


class Way(NamedTuple):
    """How a kernel goes through the steps: its name, threads and shared bytes of a block, blocks,
    what it takes besides the strides of the weights (their Fours in shared memory, see
    sequence_any.cuh), bytes read anew in each step; whether tensor cores multiply."""

    kernel: str
    threads: int
    shared: int
    blocks: int
    fours: tuple[int, ...]
    streamed: int
    tensor: bool = False


def held_way(kind: str, back: bool, batch: int, hidden: int, held: Held) -> Way:
    """The way with weights in registers, for up to `HELD_THREADS` / 2 units."""
    gates, units = KINDS[kind].gates, held.team // 2
    vectors = KINDS[kind].vectors[back]
    chunks = -(-hidden // (4 * held.team)) * vectors
    fours = chunks * units * gates // vectors
    threads = -(-(-(-hidden // units) * held.team) // _WARP) * _WARP
    stored = max(0, fours - held.fours) * HELD_THREADS
    return Way(
        f"{kind}_sequence_{'backward' if back else 'forward'}{held.suffix}",
        threads,
        16 * (2 * held.rows * chunks * held.team + stored),
        -(-batch // held.rows),
        (),
        0,
    )


def core_way(kind: str, back: bool, batch: int, hidden: int, suffix: str) -> Way:
    """One of the ways by tensor cores, for up to `CORE_UNITS` units of a half type."""
    runs = KINDS[kind].vectors[back] * CORE_UNITS // CORE_RUN
    warps = -(-hidden // CORE_LINES)
    numbers = max(2 * CORES[suffix] * (runs | 1) * CORE_RUN, warps * CORE_LINES * STAGE_PITCH)
    return Way(
        f"{kind}_sequence_{'backward' if back else 'forward'}{suffix}",
        warps * _WARP,
        2 * numbers,
        -(-batch // CORES[suffix]),
        (),
        0,
        True,
    )


def way_of(
    kind: str,
    back: bool,
    batch: int,
    hidden: int,
    dtype: str,
    shared: int,
    tensor: bool = False,
) -> Way | None:
    """The way of a kind of network on a device whose blocks have `shared` bytes at most; `tensor`:
    and which has tensor cores for half types. None if the vectors of an example do not fit there.
    """
    if tensor and dtype in CORE_DTYPES and hidden <= CORE_UNITS:
        suffix = "_eight_tensor" if batch > _PAIRS else "_two_tensor"
        way = core_way(kind, back, batch, hidden, suffix)
        if way.shared <= shared:
            return way
    if dtype == "float32" and hidden <= HELD_THREADS // 2:
        one, two = HELD[kind][back]
        for held in (two, one) if batch > _BLOCKS else (one,):
            way = held_way(kind, back, batch, hidden, held)
            if way.shared <= shared:
                return way
    gates, item = KINDS[kind].gates, max(ITEM_SIZE[dtype], 4)
    fours = -(-hidden // (4 * LANES))
    vectors = 2 * KINDS[kind].vectors[back] * LANES * 4 * (fours | 1)
    least = LANES * (vectors + KINDS[kind].states[back] * hidden) * item
    if least > shared:
        return None
    each = gates * LANES * hidden * 4 * item
    stored = min(fours, (shared - least) // each)
    warps = -(-LANES * hidden // _WARP)
    return Way(
        f"{kind}_sequence_{'backward' if back else 'forward'}",
        min(MOST_THREADS, _WARP * warps),
        least + stored * each,
        -(-batch // LANES),
        (stored,),
        (fours - stored) * gates * LANES * hidden * 4 * ITEM_SIZE[dtype],
    )
