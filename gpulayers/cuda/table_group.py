"""The kernels of sequence_*.cu whose blocks keep a recurrent network's weights together.

A block keeps the recurrent weights of some units, as many blocks as there are units to be kept are
a group, and a group takes some examples through all steps (see sequence_group.cuh). Its blocks wait
for one another after each step, so all of them have to run at the same time.
"""

from __future__ import annotations

from typing import NamedTuple

from gpulayers.cuda.spec import ARRAY, INT, ITEM_SIZE, REAL, KernelSpec

__all__ = ["GROUP_KINDS", "SPECS", "Group", "group_of"]

#: as in sequence_group.cuh: threads of a block, rows and columns of a warp's tile, a warp's terms
THREADS, SIDE, BAND = 256, 8, 128
#: as many units as leave a thread for each of `SIDE` examples
MOST_UNITS = THREADS // SIDE
#: dtypes of whose sums a tile fits in a thread's registers
DTYPES = ("float32", "float16", "bfloat16")
# What a multiprocessor does in a clock: multiply-adds of float32, and bytes from the L2 cache.
# Which of two groupings is quicker, not how quick it is.
_PRODUCTS, _BYTES = 128, 32
# bytes of shares of gradients: what the L2 caches of large GPUs have room for
_MOST_BETWEEN = 64 << 20


class GroupKind(NamedTuple):
    """Gates of a kind of network, gradients carried back in a block, and its kernels' parameters:
    arrays ahead and back, and numbers."""

    gates: int
    states: int
    arrays: tuple[int, int]
    numbers: tuple[tuple[str, ...], tuple[str, ...]]


_FORWARD, _BACKWARD = (INT,) * 8, (INT,) * 10
_ACT = (INT, REAL, REAL)
GROUP_KINDS = {
    "rnn": GroupKind(1, 1, (8, 9), ((*_FORWARD, *_ACT), (*_BACKWARD, *_ACT))),
    "lstm": GroupKind(4, 2, (9, 12), (_FORWARD, _BACKWARD)),
    "gru": GroupKind(3, 1, (8, 11), (_FORWARD, _BACKWARD)),
}

SPECS = tuple(
    KernelSpec(
        f"{kind}_group_{way}",
        f"sequence_{kind}.cu",
        f"{kind}_group_{way}<{{T}}, {{Acc}}>",
        (*(ARRAY,) * GROUP_KINDS[kind].arrays[back], *GROUP_KINDS[kind].numbers[back]),
        block=THREADS,
        dtypes=DTYPES,
        barriers=True,
        cooperative=True,
    )
    for kind in GROUP_KINDS
    for back, way in enumerate(("forward", "backward"))
)


class Group(NamedTuple):
    """How blocks share the work: kernel, threads and shared bytes of a block, blocks in all and
    groups of them; units of a block, examples of a group and how many of them at a time; the
    numbers that the blocks leave for one another on the way back."""

    kernel: str
    threads: int
    shared: int
    blocks: int
    groups: int
    units: int
    rows: int
    chunk: int
    between: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """As the kernels take them."""
        return self.units, self.rows, self.chunk


def _up(number: int, to: int) -> int:
    return -(-number // to) * to


def _grouping(
    kind: str, back: bool, batch: int, hidden: int, dtype: str, shared: int, units: int, groups: int
) -> Group | None:
    """Blocks of so many units, in so many groups at most; None if a block has no room for it."""
    gates, states, *_ = GROUP_KINDS[kind]
    members, item = -(-hidden // units), ITEM_SIZE[dtype]
    rows = -(-batch // groups)
    groups = -(-batch // rows)
    columns, pitch = _up(units * gates, SIDE), _up(hidden, BAND)
    least = columns * pitch * item + (states * rows * units * 4 if back else 0)
    each = columns * 4 + (0 if back else pitch * item)  # of an example
    most = min(_up(rows, SIDE), THREADS // units, (shared - least) // each)
    chunk = most // SIDE * SIDE
    if chunk < SIDE:
        return None
    return Group(
        f"{kind}_group_{'backward' if back else 'forward'}",
        THREADS,
        least + chunk * each,
        groups * members,
        groups,
        units,
        rows,
        chunk,
        2 * groups * members * members * rows * units if back else 0,
    )


def _cost(group: Group, gates: int, hidden: int, item: int) -> float:
    """Clocks of a step, but for what all groupings have."""
    columns = _up(group.units * gates, SIDE)
    products = _up(group.rows, SIDE) * columns * _up(hidden, BAND)
    moved = group.rows * hidden * (2 * 4 if group.between else item)
    return products / _PRODUCTS + moved / _BYTES


def group_of(
    kind: str, back: bool, batch: int, hidden: int, dtype: str, shared: int, multiprocessors: int
) -> Group | str:
    """The quickest grouping on a device of so many multiprocessors, whose blocks have `shared`
    bytes at most; or why there is none."""
    if dtype not in DTYPES:
        return f"no kernel keeps its weights in many blocks in {dtype}"
    gates, item = GROUP_KINDS[kind].gates, ITEM_SIZE[dtype]
    found: list[Group | None] = []
    for units in range(1, min(MOST_UNITS, hidden) + 1):
        at_once = multiprocessors // -(-hidden // units)
        if at_once:
            groups = min(at_once, -(-batch // SIDE))
            found.append(_grouping(kind, back, batch, hidden, dtype, shared, units, groups))
    fitting = [group for group in found if group is not None]
    if not fitting:
        return (
            f"{multiprocessors} multiprocessors of {shared} bytes of shared memory have no room "
            f"for the recurrent weights of {hidden} units"
        )
    fitting = [group for group in fitting if 4 * group.between <= _MOST_BETWEEN]
    if not fitting:
        return f"{batch} examples leave more than {_MOST_BETWEEN >> 20} MB between the blocks"
    return min(fitting, key=lambda group: (_cost(group, gates, hidden, item), group.blocks))
