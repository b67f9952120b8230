"""The kernels of sequence_*.cu whose blocks keep a recurrent network's weights together.

A block keeps the recurrent weights of some units, as many blocks as there are units to be kept are
a group, and a group takes some examples through all steps (see sequence_group.cuh). Its blocks wait
for one another after each step, so all of them have to run at the same time. Each kernel is there
twice: its products by FFMA, or by tensor cores (sequence_tensor.cuh).
"""

from __future__ import annotations

from typing import NamedTuple

from gpulayers.cuda.spec import ARRAY, INT, ITEM_SIZE, REAL, KernelSpec
from gpulayers.cuda.table_tiles import TENSOR_CORES

__all__ = ["GROUP_KINDS", "SPECS", "Group", "Task", "group_of", "lying"]

#: as in sequence_group.cuh: threads of a block, rows and columns of a warp's tile, a warp's terms
THREADS, SIDE, BAND = 256, 8, 128
#: as many units as leave a thread for each of `SIDE` examples
MOST_UNITS = THREADS // SIDE
#: dtypes of whose sums a tile fits in a thread's registers
DTYPES = ("float32", "float16", "bfloat16")
#: as in sequence_tensor.cuh: bytes of a run, numbers between the sums of two examples, columns or
#: terms of a fragment
RUN, BESIDE, LINES = 64, 4, 16
# What a multiprocessor does in a clock: multiply-adds of float32, those of tensor cores times the
# bytes of a factor, bytes from the L2 cache and from shared memory. Which of two groupings is
# quicker, not how quick it is.
_PRODUCTS, _TENSOR_PRODUCTS, _BYTES, _SHARED_BYTES = 128, 2048, 32, 128
# examples that tensor cores multiply by the weights that are read once
_AT_ONCE = 16
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
        f"{kind}_group_{way}{suffix}",
        f"sequence_{kind}.cu",
        f"{kind}_group_{way}<{{T}}, {{Acc}}, {by}>",
        (*(ARRAY,) * GROUP_KINDS[kind].arrays[back], *GROUP_KINDS[kind].numbers[back]),
        block=THREADS,
        dtypes=DTYPES,
        barriers=True,
        cooperative=True,
        oldest=oldest,
    )
    for kind in GROUP_KINDS
    for back, way in enumerate(("forward", "backward"))
    for suffix, by, oldest in (("", "ByLanes", 0), ("_tensor", "ByCores", TENSOR_CORES))
)


class Task(NamedTuple):
    """What groups have to do: go through the steps of a kind of network, ahead or `back`, for so
    many examples and units of a dtype, by tensor cores or not."""

    kind: str
    back: bool
    batch: int
    hidden: int
    dtype: str
    tensor: bool = False

    @property
    def item(self) -> int:
        """Bytes of a factor."""
        return ITEM_SIZE[self.dtype]

    @property
    def gates(self) -> int:
        return GROUP_KINDS[self.kind].gates


class Group(NamedTuple):
    """How blocks share the work: kernel, threads and shared bytes of a block, blocks in all and
    groups of them; units of a block, examples of a group and how many of them at a time; the
    numbers that the blocks leave for one another on the way back; whether tensor cores multiply.
    """

    kernel: str
    threads: int
    shared: int
    blocks: int
    groups: int
    units: int
    rows: int
    chunk: int
    between: int
    tensor: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """As the kernels take them."""
        return self.units, self.rows, self.chunk


def _up(number: int, to: int) -> int:
    return -(-number // to) * to


class Lying(NamedTuple):
    """How what a block multiplies lies in its shared memory: the weights' columns and the terms of
    each, zeros included; the bytes of an example beside them."""

    columns: int
    pitch: int
    each: int


def lying(task: Task, units: int, threads: int = THREADS) -> Lying:
    """For a block of so many units."""
    mine = units * task.gates
    if not task.tensor:
        columns, pitch = _up(mine, SIDE), _up(task.hidden, BAND)
        return Lying(columns, pitch, columns * 4 + (0 if task.back else pitch * task.item))
    terms = RUN // task.item
    columns, pitch = _up(mine, terms), _up(task.hidden, terms)
    ahead = threads // 32 * (columns + BESIDE) * 4
    return Lying(columns, pitch, RUN * (columns // terms | 1) if task.back else ahead)


def _grouping(task: Task, shared: int, units: int, groups: int) -> Group | None:
    """Blocks of so many units, in so many groups at most; None if a block has no room for it."""
    kind, back, batch, hidden = task[:4]
    members, rows = -(-hidden // units), -(-batch // groups)
    groups = -(-batch // rows)
    columns, pitch, each = lying(task, units)
    least = columns * pitch * task.item
    least += GROUP_KINDS[kind].states * rows * units * 4 if back else 0
    most = min(_up(rows, SIDE), THREADS // units, (shared - least) // each)
    chunk = most // SIDE * SIDE
    if chunk < SIDE:
        return None
    return Group(
        f"{kind}_group_{'backward' if back else 'forward'}{'_tensor' if task.tensor else ''}",
        THREADS,
        least + chunk * each,
        groups * members,
        groups,
        units,
        rows,
        chunk,
        2 * groups * members * members * rows * units if back else 0,
        task.tensor,
    )


def _cost(task: Task, group: Group) -> float:
    """Clocks of a step, but for what all groupings have."""
    columns, pitch, _ = lying(task, group.units)
    weights, rows = columns * pitch, _up(group.rows, SIDE)
    moved = group.rows * task.hidden * (2 * 4 if task.back else task.item) / _BYTES
    if not task.tensor:
        return rows * weights / _PRODUCTS + moved
    if not task.back:  # some fragments at a time
        weights = pitch * _up(columns, (4 if task.gates > 1 else 2) * LINES)
    times = group.rows // group.chunk * -(-group.chunk // _AT_ONCE)
    times += -(-(group.rows % group.chunk) // _AT_ONCE)
    read = times * weights * task.item / _SHARED_BYTES
    return max(read, rows * weights * task.item / _TENSOR_PRODUCTS) + moved


def group_of(task: Task, shared: int, multiprocessors: int) -> Group | str:
    """The quickest grouping on a device of so many multiprocessors, whose blocks have `shared`
    bytes at most; or why there is none."""
    if task.dtype not in DTYPES:
        return f"no kernel keeps its weights in many blocks in {task.dtype}"
    found: list[Group | None] = []
    for units in range(1, min(MOST_UNITS, task.hidden) + 1):
        at_once = multiprocessors // -(-task.hidden // units)
        if at_once:
            groups = min(at_once, -(-task.batch // SIDE))
            found.append(_grouping(task, shared, units, groups))
    fitting = [group for group in found if group is not None]
    if not fitting:
        return (
            f"{multiprocessors} multiprocessors of {shared} bytes of shared memory have no room "
            f"for the recurrent weights of {task.hidden} units"
        )
    fitting = [group for group in fitting if 4 * group.between <= _MOST_BETWEEN]
    if not fitting:
        return f"{task.batch} examples leave more than {_MOST_BETWEEN >> 20} MB between the blocks"
    return min(fitting, key=lambda group: (_cost(task, group), group.blocks))
