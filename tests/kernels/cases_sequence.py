"""sequence_*.cu: all steps, both ways, with weights in registers, in shared memory and read anew;
blocks of fewer threads than units, and blocks that are not full of examples.
And by groups of blocks, the last ones of which have fewer examples and units than the others; by
tensor cores too, where the gold multiplies what they do: float32 rounded to TF32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers.cuda import table
from gpulayers.cuda.table_group import Task, lying
from gpulayers.cuda.table_sequence import CORES, HELD, KINDS, LANES, core_way, held_way
from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    close,
    load,
    poisoned,
    random,
    rounded,
    tf32,
)
from tests.support import sample

Arrays = dict[str, np.ndarray]
BIASES = {"rnn": (1, 1), "lstm": (4,), "gru": (4,)}
ACT = ("elu", 0.75, 0.0)
#: of a kind's kernels, after those of `HELD`: for any size and dtype, and those of `CORES`
ANY, TWO, EIGHT = 2, 3, 4


def tanh(z: np.ndarray) -> np.ndarray:
    return gold.activation("tanh", z, 0.0, 0.0)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return gold.activation("sigmoid", z, 0.0, 0.0)


def product(row: np.ndarray, W: np.ndarray) -> np.ndarray:
    """row W, term by term."""
    total = np.zeros(W.shape[1])
    for k in range(len(row)):
        total += row[k] * W[k]
    return total


def ahead(kind: str, x: np.ndarray, from_state: np.ndarray, b: list[np.ndarray], old: Any) -> Any:
    """(gates, M, new states) of one example and step; `x` is the input's product."""
    h = len(old[0])

    def cut(row: np.ndarray, k: int) -> np.ndarray:
        return row[k * h : (k + 1) * h]

    if kind == "rnn":
        z = x + from_state + b[0] + b[1]
        return z, None, [gold.activation(ACT[0], z, *ACT[1:])]
    if kind == "lstm":
        z = x + from_state + b[0]
        f, u, n, o = sigmoid(cut(z, 0)), sigmoid(cut(z, 1)), tanh(cut(z, 2)), sigmoid(cut(z, 3))
        c = f * old[1] + u * n
        return np.concatenate([f, u, n, o]), None, [o * tanh(c), c]
    z = sigmoid(cut(x, 1) + cut(from_state, 0) + cut(b[0], 1))
    r = sigmoid(cut(x, 2) + cut(from_state, 1) + cut(b[0], 2))
    m = cut(from_state, 2) + cut(b[0], 3)
    n = tanh(cut(x, 0) + cut(b[0], 0) + r * m)
    return np.concatenate([n, z, r]), m, [(1 - z) * n + z * old[0]]


def back(kind: str, gates: np.ndarray, m: Any, old: Any, new: Any, later: Any) -> Any:
    """(dZ, gradients of the old states but for what dZ times the weights gives) of one example and
    step; `later` those of the new ones."""
    h = len(later[0])
    total = later[0]
    if kind == "rnn":
        return total * gold.slope(ACT[0], gates, *ACT[1:]), [0.0]
    if kind == "lstm":
        f, u, n, o = (gates[k * h : (k + 1) * h] for k in range(4))
        s = tanh(new[1])
        dc = later[1] + total * o * (1 - s**2)
        blocks = [
            dc * old[1] * f * (1 - f),
            dc * n * u * (1 - u),
            dc * u * (1 - n**2),
            total * s * o * (1 - o),
        ]
        return np.concatenate(blocks), [0.0, dc * f]
    n, z, r = (gates[k * h : (k + 1) * h] for k in range(3))
    dn = total * (1 - z) * (1 - n**2)
    dz = np.concatenate([dn, total * (old[0] - n) * z * (1 - z), dn * m * r * (1 - r), dn * r])
    return dz, [total * z]


class Setting:
    """Sizes of a case, and how its kernel is launched."""

    def __init__(
        self, kind: str, which: int, way: int, size: tuple[int, int, int], block: int, fours: int
    ) -> None:
        self.kind, self.gates = kind, KINDS[kind].gates
        self.steps, self.n, self.h = size
        self.states = 2 if kind == "lstm" else 1
        if which != ANY:
            held = HELD[kind][way]
            sizes = kind, bool(way), self.n, self.h
            if which in (TWO, EIGHT):
                how = core_way(*sizes, list(CORES)[which - TWO])
            else:
                how = held_way(*sizes, held[which])
            self.name, self.block, self.bytes, self.blocks, self.fours = how[:5]
            self.numbers = 0
        else:
            self.name = f"{kind}_sequence_{('forward', 'backward')[way]}"
            self.block, self.bytes, self.blocks = block, 0, -(-self.n // LANES)
            vectors = 2 * KINDS[kind].vectors[way] * LANES * 4 * (-(-self.h // (4 * LANES)) | 1)
            self.numbers = LANES * (vectors + KINDS[kind].states[way] * self.h)
            self.numbers += fours * self.gates * LANES * self.h * 4
            self.fours = (fours,)
        self.lying: tuple[int, ...] = ()
        self.together: tuple[np.ndarray, ...] = ()  # what groups of blocks have besides
        act = (table.ACTIVATIONS.index(ACT[0]), *ACT[1:])
        self.act = act if kind == "rnn" else ()

    def in_groups(self, way: int, dtype: str, units: int, rows: int, chunk: int, by: str) -> None:
        """From now on blocks of so many units are a group for so many examples."""
        self.name = f"{self.kind}_group_{('forward', 'backward')[way]}{by}"
        members, groups = -(-self.h // units), -(-self.n // rows)
        self.blocks, self.lying = groups * members, (units, rows, chunk)
        item = table.ITEM_SIZE[dtype]
        task = Task(self.kind, bool(way), self.n, self.h, dtype, bool(by))
        how = lying(task, units, self.block)
        states = KINDS[self.kind].states[1] * rows * units * 4 if way else 0
        self.bytes = how.columns * how.pitch * item + chunk * how.each + states
        between = poisoned(2 * groups * members**2 * rows * units, WIDE[dtype])
        arrived = np.zeros(32 * groups, np.uint32)
        self.together = (between, arrived) if way else (arrived,)

    def factor(self, values: np.ndarray, dtype: str) -> np.ndarray:
        """What the kernel multiplies."""
        return tf32(values) if self.name.endswith("_tensor") and dtype == "float32" else values

    def draw(self, dtype: str, *shape: int, seed: str, scale: float = 1.0) -> Any:
        return rounded(random(*shape, seed=f"{self.name}{seed}", scale=scale), dtype)

    def mask(self, masked: bool) -> np.ndarray:
        """One example has no first step, one no last, the others all."""
        mask = np.ones((self.steps, self.n), np.uint8)
        if masked:
            mask[0, 0] = mask[-1, -1] = 0
        return mask

    def launch(self, launcher: Launcher, dtype: str, index: str, args: tuple[Any, ...]) -> None:
        wide = np.dtype(WIDE[dtype]).itemsize
        grid = (self.blocks,)
        options = {"shared_mem": self.bytes or self.numbers * wide, "block": self.block}
        launcher.launch(self.name, dtype, index, grid, args, **options)


def forward(
    launcher: Launcher,
    kind: str,
    which: int,
    size: tuple[int, int, int],
    block: int = 32,
    fours: int = 0,
    dtype: str = "float32",
    index: str = "int32",
    given: bool = True,
    groups: tuple[int, int, int] | None = None,
    by: str = "",
    astray: bool = False,
) -> None:
    """`astray`: a number of the first example is NaN, and stays its own."""
    s = Setting(kind, which, 0, size, block, fours)
    if groups:
        s.in_groups(0, dtype, *groups, by)
    x, projected = s.draw(dtype, s.steps, s.n, s.gates * s.h, seed="x")
    w, W = s.draw(dtype, s.h, s.gates * s.h, seed="w", scale=s.h**-0.5)
    biases = [s.draw(dtype, k * s.h, seed=f"b{i}") for i, k in enumerate(BIASES[kind])]
    firsts = [s.draw(dtype, s.n, s.h, seed=f"first{k}") for k in range(s.states)]
    if astray:
        for first in firsts[0]:
            first[0, 0] = np.nan
    mask = s.mask(given)
    states = [poisoned((s.steps + 1, s.n, s.h), dtype) for _ in range(s.states)]
    m = poisoned((s.steps, s.n, s.h), dtype)
    kept = (m,) if kind == "gru" else ()
    arrays = (
        x,
        w,
        *(b for b, _ in biases),
        *(f for f, _ in firsts),
        mask,
        *kept,
        *states,
        *s.together,
    )
    lying = s.lying or (1, s.h, s.gates * s.h, *s.fours)
    s.launch(launcher, dtype, index, (*arrays, s.steps, s.n, s.h, *lying, given, given, *s.act))
    for k, state in enumerate(states):
        first = firsts[k][1] if given else np.zeros((s.n, s.h))
        close(state[0], first, dtype)
    old: list[Any]
    for e in range(s.n):
        old = [firsts[k][1][e] if given else np.zeros(s.h) for k in range(s.states)]
        for t in range(s.steps):
            from_state = product(s.factor(old[0], dtype), s.factor(W, dtype))
            given_biases = [b for _, b in biases]
            gates, product_m, new = ahead(kind, projected[t, e], from_state, given_biases, old)
            close(x[t, e], gates, dtype, 4.0)
            if kind == "gru":
                close(m[t, e], product_m, dtype, 4.0)
            if given and not mask[t, e]:
                new = old
            for k, state in enumerate(states):
                close(state[t + 1, e], new[k], dtype, 4.0)
            old = [load(state[t + 1, e], dtype) for state in states]  # as it goes on from there


def backward(
    launcher: Launcher,
    kind: str,
    which: int,
    size: tuple[int, int, int],
    block: int = 32,
    fours: int = 0,
    dtype: str = "float32",
    index: str = "int32",
    given: bool = True,
    turned: bool = False,
    truncate: int = 0,
    groups: tuple[int, int, int] | None = None,
    by: str = "",
) -> None:
    s = Setting(kind, which, 1, size, block, fours)
    if groups:
        s.in_groups(1, dtype, *groups, by)
    blocks = 4 if kind == "gru" else s.gates
    d, dA = s.draw(dtype, s.steps, s.n, s.h, seed="da")
    values = random(s.steps, s.n, s.gates * s.h, seed="gates")
    g, gates = rounded(values if kind == "rnn" else np.tanh(values), dtype)
    mm, m = s.draw(dtype, s.steps, s.n, s.h, seed="m")
    states = [s.draw(dtype, s.steps + 1, s.n, s.h, seed=f"state{k}") for k in range(s.states)]
    lasts = [s.draw(dtype, s.n, s.h, seed=f"last{k}") for k in range(s.states)]
    w, W = s.draw(dtype, s.h, s.gates * s.h, seed="w", scale=s.h**-0.5)
    lying = (1, s.h * s.h, s.h) if turned else (s.gates * s.h, s.h, 1)
    lying = s.lying or (*lying, *s.fours)
    mask = s.mask(given)
    dz = poisoned((s.steps, s.n, blocks * s.h), dtype)
    firsts = [poisoned((s.n, s.h), dtype) for _ in range(s.states)]
    kept = {"rnn": (g,), "lstm": (g, states[-1][0]), "gru": (g, mm, states[0][0])}[kind]
    arrays = (
        *(d, *kept, np.ascontiguousarray(w.T) if turned else w, mask),
        *(*(last for last, _ in lasts), dz, *firsts, *s.together),
    )
    every = 2**s.states - 1
    numbers = (s.steps, s.n, s.h, *lying, given, given * every, given, truncate)
    s.launch(launcher, dtype, index, (*arrays, *numbers, *s.act))
    zeros = np.zeros(s.h)
    for e in range(s.n):
        later = [last[e] if given else zeros for _, last in lasts]
        for t in reversed(range(s.steps)):
            if truncate and t + 1 < s.steps and (t + 1) % truncate == 0:
                later = [zeros] * s.states
            if given and not mask[t, e]:
                close(dz[t, e], np.zeros(blocks * s.h), dtype)
                continue
            total = [later[0] + dA[t, e] * given, *later[1:]]
            old, new = ([state[i, e] for _, state in states] for i in (t, t + 1))
            want, later = back(kind, gates[t, e], m[t, e], old, new, total)
            close(dz[t, e], want, dtype, 16.0)
            stored = load(dz[t, e], dtype)[(blocks - s.gates) * s.h :]  # as it goes on from there
            later[0] = later[0] + product(s.factor(stored, dtype), s.factor(W, dtype).T)
        for first, want in zip(firsts, later, strict=True):
            close(first[e], want, dtype, 16.0)


def case(f: Any, kind: str, which: int, size: tuple[int, int, int], **how: Any) -> Any:
    return functools.partial(f, kind=kind, which=which, size=size, **how)


CASES: dict[str, list[Callable[[Launcher], None]]] = {
    f"sequence_{kind}.cu": [
        # any size and dtype; two units a thread, the second for some; weights in both places
        *(
            case(f, kind, 2, (3, 5, 11), dtype=d, index=i)
            for d, i in COMBINATIONS
            for f in (forward, backward)
        ),
        case(forward, kind, 2, (2, 1, 19), block=64, fours=1, index="int64"),
        case(backward, kind, 2, (4, 2, 19), fours=1, turned=True, truncate=2),
        case(forward, kind, 2, (1, 1, 35), fours=2),
        case(forward, kind, 2, (2, 2, 3), given=False, fours=1),
        case(backward, kind, 2, (2, 2, 3), given=False),
        # weights in registers
        *(
            case(f, kind, which, (3, 3, 9), index=index)
            for f in (forward, backward)
            for which, index in ((0, "int32"), (1, "int64"))
        ),
        case(forward, kind, 0, (2, 2, 1), given=False, index="int64"),
        case(backward, kind, 0, (5, 2, 2), given=False, index="int64", truncate=3),
        # ... and in shared memory, several chunks of them, the last one whole and not
        *(
            case(f, kind, which, size, given=False, index="int32")
            for f in (forward, backward)
            for which, size in ((0, (2, 1, 128)), (1, (2, 2, 100)))
        ),
        case(forward, kind, 1, (2, 3, 5), index="int32"),
        case(backward, kind, 1, (3, 2, 5), index="int32", truncate=1),
        # groups of blocks: two, the second of one example; the third block of a group has one unit
        *(
            case(f, kind, 2, (4, 11, 9), block=64, dtype=d, groups=(4, 10, 8), **how)
            for f, how in ((forward, {}), (backward, {"truncate": 2}))
            for d in sorted(sample.dtypes_met(table.KERNELS[f"{kind}_group_{f.__name__}"]))
        ),
        # numbers of 16 bytes at a time; nothing given
        *(
            case(
                f,
                kind,
                2,
                (2, 2, 8),
                block=64,
                dtype=d,
                groups=(2, 1, 8),
                index="int64",
                given=False,
            )
            for f in (forward, backward)
            for d in sorted(sample.dtypes_met(table.KERNELS[f"{kind}_group_{f.__name__}"]))
        ),
    ]
    for kind in KINDS
}
for kind in KINDS:
    for f in (forward, backward):
        for d in sorted(sample.dtypes_met(table.KERNELS[f"{kind}_group_{f.__name__}_tensor"])):
            how = {"dtype": d, "by": "_tensor", **({"truncate": 2} if f is backward else {})}
            CASES[f"sequence_{kind}.cu"] += [
                # the second group of one example, the third block of one unit; a warp without terms
                case(f, kind, 2, (4, 11, 9), block=64, groups=(4, 10, 8), **how),
                # 16 bytes at a time, chunks of 24 and 14 examples; nothing given
                case(
                    f,
                    kind,
                    2,
                    (2, 38, 24),
                    block=96,
                    groups=(4, 38, 24),
                    given=False,
                    index="int64",
                    **how,
                ),
            ]
CASES["sequence_lstm.cu"] += [
    # not all weights in registers, so half of the warps begin with the others
    case(forward, "lstm", 0, (2, 1, 100)),
    case(backward, "lstm", 1, (2, 3, 66)),
    # more fragments above one another than a warp works on at once; more runs than it asks for
    case(forward, "lstm", 2, (2, 3, 20), block=160, groups=(17, 3, 8), by="_tensor"),
    case(forward, "lstm", 2, (1, 1, 68), block=32, groups=(4, 1, 8), by="_tensor"),
    case(backward, "lstm", 2, (1, 1, 70), block=64, groups=(8, 1, 8), by="_tensor"),
]
CASES["sequence_gru.cu"] += [
    case(forward, "gru", 1, (1, 2, 114), given=False),
    case(backward, "gru", 0, (2, 1, 67)),
]
# weights as fragments in registers: two warps, the second of one unit, and blocks, the last one of
# one example; a single step of a single example; all registers, and the last run not full
for kind in KINDS:
    for f, d, other in ((forward, "float16", "bfloat16"), (backward, "bfloat16", "float16")):
        CASES[f"sequence_{kind}.cu"] += [
            case(f, kind, EIGHT, (4, 9, 17), dtype=d, **({"truncate": 3} if f is backward else {})),
            case(f, kind, TWO, (4, 3, 17), dtype=other, index="int64"),
            case(f, kind, TWO, (1, 1, 9), dtype=d, given=False),
            case(f, kind, EIGHT, (2, 7, 100), dtype=other, index="int64", given=False),
        ]
CASES["sequence_lstm.cu"] += [
    case(forward, "lstm", TWO, (2, 2, 128), dtype="float16"),
    case(backward, "lstm", TWO, (2, 2, 128), dtype="bfloat16"),
    case(backward, "lstm", EIGHT, (2, 13, 128), dtype="float16"),
]
# units that end within a run: what stands beyond them counts as zeros, not as a number times zero
CASES["sequence_rnn.cu"] += [
    case(forward, "rnn", 2, (1, 3, 20), block=64, groups=(10, 3, 8), by="_tensor", astray=True),
    case(forward, "rnn", EIGHT, (2, 9, 20), dtype="float16", astray=True),
]
# more units than a warp reads at once, more examples than a tile has, and all warps
CASES["sequence_rnn.cu"] += [
    case(forward, "rnn", 2, (1, 9, 192), block=256, groups=(16, 9, 16)),
    case(backward, "rnn", 2, (1, 9, 140), block=256, groups=(16, 9, 16), dtype="float16"),
]
