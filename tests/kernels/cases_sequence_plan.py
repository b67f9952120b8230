"""sequence_plan.cu: weights side by side, time to the front; the gradients of all parameters."""

from __future__ import annotations

import functools

import numpy as np

from gpulayers.cuda import table
from gpulayers.cuda.table_sequence import KINDS
from gpulayers.cuda.table_tiles import TILES
from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
    store,
    tf32,
)
from tests.support import sample

#: kind -> gates as the state's weights have them, as the input's have them, and the biases
ORDERS = {
    "lstm": ((0, 1, 2, 3), (0, 1, 2, 3), 4),
    "gru": ((0, 1, 2), (2, 0, 1), 4),
}


def prepare(launcher: Launcher, kind: str, dtype: str = "float32", index: str = "int32") -> None:
    n, n_in, n_t, h = 3, 5, 7, 4
    x, values = rounded(random(n, n_in, n_t, seed="x"), dtype)
    state_order, input_order, biases = ORDERS.get(kind, ((), (), 0))
    gates = len(state_order)
    if not gates:
        h = 0
    w = [store(random(h + n_in, h, seed=f"w{k}"), dtype) for k in range(4)]
    b = [store(random(h, seed=f"b{k}"), dtype) for k in range(4)]
    turned = poisoned((n_t, n, n_in), dtype)
    made = [poisoned(s, dtype) for s in ((h, gates * h), (n_in, gates * h), biases * h)]
    total = x.size + sum(array.size for array in made)
    numbers = (total, x.size, n, n_in, n_t, h, gates or 1, input_order[0] if gates else 0)
    args = (x, *w, *b, turned, *made, *numbers)
    launcher.launch("sequence_prepare", dtype, index, blocks(total, "sequence_prepare"), args)
    close(turned, values.transpose(2, 0, 1), dtype)
    if gates:
        for array, order, rows in (
            (made[0], state_order, slice(0, h)),
            (made[1], input_order, slice(h, h + n_in)),
        ):
            close(array, np.hstack([load(w[k], dtype)[rows] for k in order]), dtype)
        close(made[2], np.concatenate([load(each, dtype) for each in b]), dtype)


def weight_grad(
    launcher: Launcher,
    kind: str,
    size: tuple[int, int, int],
    parts: int = 1,
    dtype: str = "float32",
    index: str = "int32",
    suffix: str = "",
) -> None:
    terms, n_in, h = size
    tile = TILES[suffix]
    gates = KINDS[kind].gates
    width = 4 if kind == "gru" else gates
    extra = {"rnn": 0, "lstm": -1, "gru": 3}[kind]
    (a, A), (x, X), (dz, dZ) = (
        rounded(random(terms, k, seed=s), dtype)
        for k, s in ((h, "a"), (n_in, "x"), (width * h, "dz"))
    )
    numbers = gates * (h + n_in + 1) * h + (extra >= 0) * h
    grads = poisoned((parts, numbers), WIDE[dtype])
    span = -(-terms // parts)
    down = -(-h // tile.rows) + -(-(n_in + 1) // tile.rows)
    grid = ((gates * down + (extra >= 0)) * -(-h // tile.cols) * parts,)
    args = (a, x, dz, grads, terms, h, n_in, span, parts, gates, width, kind == "gru", extra)
    launcher.launch("sequence_weight_grad" + suffix, dtype, index, grid, args)
    if suffix and dtype == "float32":
        A, X, dZ = tf32(A), tf32(X), tf32(dZ)
    for part in range(parts):
        rows = slice(part * span, (part + 1) * span)
        want = []
        for gate in range(gates):
            from_state, from_input = (gate + 1, (1, 2, 0)[gate]) if kind == "gru" else (gate, gate)
            for left, block in ((A, from_state), (X, from_input)):
                dZ_block = dZ[rows, block * h : (block + 1) * h]
                total = np.zeros((left.shape[1], h))
                for row, d in zip(left[rows], dZ_block, strict=True):
                    total += np.outer(row, d)
                want.append(total.ravel())
            want.append(dZ[rows, from_input * h : (from_input + 1) * h].sum(axis=0))
        if extra >= 0:
            want.append(dZ[rows, extra * h : (extra + 1) * h].sum(axis=0))
        close(grads[part], np.concatenate(want), WIDE[dtype], factor=4)


CASES = [
    *(functools.partial(prepare, kind=kind) for kind in KINDS),
    *(functools.partial(prepare, kind="gru", dtype=d, index=i) for d, i in COMBINATIONS[1:]),
    *(functools.partial(weight_grad, kind=kind, size=(5, 3, 2)) for kind in KINDS),
    functools.partial(weight_grad, kind="gru", size=(9, 2, 66), parts=2),
    functools.partial(weight_grad, kind="gru", size=(7, 2, 3), parts=2, dtype="float16"),
    functools.partial(weight_grad, kind="lstm", size=(5, 2, 3), dtype="bfloat16"),
    functools.partial(weight_grad, kind="lstm", size=(4, 64, 3), parts=3),
    functools.partial(
        weight_grad, kind="rnn", size=(20, 65, 5), dtype="float64", index="int64", parts=2
    ),
    # by tensor cores: two tiles across, the second part of fewer terms; a tile of one line
    *(
        functools.partial(weight_grad, kind=kind, size=size, parts=2, dtype=d, suffix="_tensor")
        for kind, size in (("gru", (19, 8, 72)), ("lstm", (5, 16, 8)), ("rnn", (7, 128, 16)))
        for d in sorted(sample.dtypes_met(table.KERNELS["sequence_weight_grad_tensor"]))
    ),
]
