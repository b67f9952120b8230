"""recurrent.cu: biases, accumulators, activations; the gates block by block, both directions."""

from __future__ import annotations

import functools
import math

import numpy as np

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


def elementwise(fn, *arrays: np.ndarray) -> np.ndarray:
    """`fn` of one number from each array, number by number."""
    flat = zip(*(a.ravel().tolist() for a in arrays), strict=True)
    return np.array([fn(*numbers) for numbers in flat]).reshape(arrays[0].shape)


def block(array: np.ndarray, k: int) -> np.ndarray:
    return array[..., k * HIDDEN : (k + 1) * HIDDEN]


def draw(dtype: str, *shape: int, seed: str) -> tuple[np.ndarray, np.ndarray]:
    return rounded(random(*shape, seed=seed), dtype)


def lstm_forward(launcher: Launcher, dtype: str, index: str) -> None:
    g, projected = draw(dtype, N, 4 * HIDDEN, seed="projected")
    r, recurrent = draw(dtype, N, 4 * HIDDEN, seed="recurrent")
    b, bias = draw(dtype, 4 * HIDDEN, seed="bias")
    cp, c_prev = draw(dtype, N, HIDDEN, seed="c_prev")
    c, a = poisoned(cp.shape, dtype), poisoned(cp.shape, dtype)
    args = (g, r, b, cp, c, a, c.size, HIDDEN)
    launcher.launch("lstm_step_forward", dtype, index, blocks(c.size, "lstm_step_forward"), args)
    total = projected + recurrent + bias
    for k, name in enumerate(("sigmoid", "sigmoid", "tanh", "sigmoid")):
        want = gold.activation(name, block(total, k), ALPHA, BETA)
        close(np.ascontiguousarray(block(g, k)), want, dtype, 2.0)
    forget, update, candidate, output = (block(load(g, dtype), k) for k in range(4))
    state = elementwise(lambda f, x, u, n: f * x + u * n, forget, c_prev, update, candidate)
    close(c, state, dtype, 2.0)
    close(a, elementwise(lambda o, x: o * math.tanh(x), output, load(c, dtype)), dtype, 2.0)


def lstm_backward(launcher: Launcher, dtype: str, index: str) -> None:
    names = ("da", "da_next", "dc_next", "c_prev", "c")
    (d, da), (dn, da_next), (dc, dc_next), (cp, c_prev), (c, state) = (
        draw(dtype, N, HIDDEN, seed=name) for name in names
    )
    g, gates = rounded(np.tanh(random(N, 4 * HIDDEN, seed="gates")), dtype)
    dz, dc_prev = poisoned(g.shape, dtype), poisoned(c.shape, dtype)
    args = (d, dn, dc, g, cp, c, dz, dc_prev, c.size, HIDDEN)
    launcher.launch("lstm_step_backward", dtype, index, blocks(c.size, "lstm_step_backward"), args)
    f, u, n, o = (block(gates, k) for k in range(4))

    def to_state(a, b, x, out, s):
        return x + (a + b) * out * (1 - math.tanh(s) ** 2)

    dstate = elementwise(to_state, da, da_next, dc_next, o, state)
    wanted = (
        elementwise(lambda d, p, f: d * p * f * (1 - f), dstate, c_prev, f),
        elementwise(lambda d, n, u: d * n * u * (1 - u), dstate, n, u),
        elementwise(lambda d, u, n: d * u * (1 - n * n), dstate, u, n),
        elementwise(lambda a, b, s, o: (a + b) * math.tanh(s) * o * (1 - o), da, da_next, state, o),
    )
    for k, want in enumerate(wanted):
        close(np.ascontiguousarray(block(dz, k)), want, dtype, 4.0)
    close(dc_prev, elementwise(lambda d, f: d * f, dstate, f), dtype, 4.0)


def gru_forward(launcher: Launcher, dtype: str, index: str) -> None:
    g, projected = draw(dtype, N, 3 * HIDDEN, seed="projected")
    r, recurrent = draw(dtype, N, 3 * HIDDEN, seed="recurrent")
    b, bias = draw(dtype, 4 * HIDDEN, seed="bias")
    ap, a_prev = draw(dtype, N, HIDDEN, seed="a_prev")
    m, a = poisoned(ap.shape, dtype), poisoned(ap.shape, dtype)
    args = (g, r, b, ap, m, a, a.size, HIDDEN)
    launcher.launch("gru_step_forward", dtype, index, blocks(a.size, "gru_step_forward"), args)
    for k in (1, 2):  # update, reset
        total = block(projected, k) + block(recurrent, k - 1) + block(bias, k)
        want = gold.activation("sigmoid", total, ALPHA, BETA)
        close(np.ascontiguousarray(block(g, k)), want, dtype, 2.0)
    close(m, block(recurrent, 2) + block(bias, 3), dtype, 2.0)
    candidate, update, reset = (block(load(g, dtype), k) for k in range(3))
    x = block(projected, 0) + block(bias, 0)
    want = elementwise(lambda x, r, m: math.tanh(x + r * m), x, reset, load(m, dtype))
    close(np.ascontiguousarray(block(g, 0)), want, dtype, 2.0)
    mixed = elementwise(lambda z, n, p: (1 - z) * n + z * p, update, candidate, a_prev)
    close(a, mixed, dtype, 2.0)


def gru_backward(launcher: Launcher, dtype: str, index: str) -> None:
    (d, da), (dn, da_next), (mm, m), (ap, a_prev) = (
        draw(dtype, N, HIDDEN, seed=name) for name in ("da", "da_next", "m", "a_prev")
    )
    g, gates = rounded(np.tanh(random(N, 3 * HIDDEN, seed="gates")), dtype)
    dz, da_prev = poisoned((N, 4 * HIDDEN), dtype), poisoned(ap.shape, dtype)
    args = (d, dn, g, mm, ap, dz, da_prev, ap.size, HIDDEN)
    launcher.launch("gru_step_backward", dtype, index, blocks(ap.size, "gru_step_backward"), args)
    n, z, r = (block(gates, k) for k in range(3))
    total = da + da_next
    dcandidate = elementwise(lambda d, z, n: d * (1 - z) * (1 - n * n), total, z, n)
    wanted = (
        dcandidate,
        elementwise(lambda d, p, n, z: d * (p - n) * z * (1 - z), total, a_prev, n, z),
        elementwise(lambda d, m, r: d * m * r * (1 - r), dcandidate, m, r),
        elementwise(lambda d, r: d * r, dcandidate, r),
    )
    for k, want in enumerate(wanted):
        close(np.ascontiguousarray(block(dz, k)), want, dtype, 4.0)
    close(da_prev, elementwise(lambda d, z: d * z, total, z), dtype, 4.0)


CASES = [
    *(
        functools.partial(f, name=name, dtype=d, index=i)
        for (d, i), name in zip(COMBINATIONS, ("tanh", "sigmoid", "relu", "affine"), strict=True)
        for f in (forward, backward)
    ),
    *(
        functools.partial(f, dtype=d, index=i)
        for d, i in COMBINATIONS
        for f in (lstm_forward, lstm_backward, gru_forward, gru_backward)
    ),
]
