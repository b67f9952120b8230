"""recurrent.cu: both biases, the accumulator, several activations."""

from __future__ import annotations

import functools

from gpulayers.cuda import table
from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
)

ALPHA, BETA = 0.75, 1.5
N, HIDDEN = 20, 13


def forward(launcher: Launcher, name: str, dtype: str, index: str) -> None:
    (p, projected), (r, recurrent) = (
        rounded(random(N, HIDDEN, seed=s), dtype) for s in ("projected", "recurrent")
    )
    (ba, a_bias), (bx, x_bias) = (rounded(random(HIDDEN, seed=s), dtype) for s in ("ba", "bx"))
    z, a = poisoned(p.shape, dtype), poisoned(p.shape, dtype)
    args = (p, r, ba, bx, z, a, p.size, HIDDEN, table.ACTIVATIONS.index(name), ALPHA, BETA)
    launcher.launch("rnn_step_forward", dtype, index, blocks(p.size, "rnn_step_forward"), args)
    close(z, recurrent + a_bias + projected + x_bias, dtype, 2.0)
    close(a, gold.activation(name, load(z, dtype), ALPHA, BETA), dtype, 4.0)


def backward(launcher: Launcher, name: str, dtype: str, index: str) -> None:
    (da, upstream), (acc, later), (z, values) = (
        rounded(random(N, HIDDEN, seed=s), dtype) for s in ("da", "accumulator", "z")
    )
    dz = poisoned(z.shape, dtype)
    args = (da, acc, z, dz, z.size, table.ACTIVATIONS.index(name), ALPHA, BETA)
    launcher.launch("rnn_step_backward", dtype, index, blocks(z.size, "rnn_step_backward"), args)
    close(dz, (upstream + later) * gold.slope(name, values, ALPHA, BETA), dtype, 4.0)


CASES = [
    functools.partial(f, name=name, dtype=d, index=i)
    for (d, i), name in zip(COMBINATIONS, ("tanh", "sigmoid", "relu", "affine"), strict=True)
    for f in (forward, backward)
]
