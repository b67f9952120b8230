"""flat.cu: parameters whose gradients lie in parts, apart and in another order; two steps each."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from tests.kernels.arrays import (
    WIDE,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
    store,
)

DTYPES = (("float32", "int32"), ("float64", "int64"))
EPS, DECAY1, DECAY2, SHRINK = 1e-3, 0.7, 0.95, 0.3
#: sizes of the parameters, parts of their gradients, where those start (a gap at first), rates
SIZES, PARTS, STARTS, RATES = (130, 1, 141), (2, 1, 3), (700, 690, 5), (0.05, 0.1, 0.02)
FACTORS = (0.5, 1.0, 0.125)
BEGINS = (0, 136, 140)  # the first two with room behind them
TOTAL = BEGINS[-1] + SIZES[-1]
FILLED = np.concatenate([np.arange(a, a + n) for a, n in zip(BEGINS, SIZES, strict=True)])
HALVES = (
    ("sgd", ("float16", "int32")),
    ("adam", ("float16", "int64")),
    ("rmsprop", ("bfloat16", "int32")),
    ("adagrad", ("bfloat16", "int64")),
)


def _sections() -> np.ndarray:
    ends = [a + n for a, n in zip(BEGINS, SIZES, strict=True)]
    rows = zip(BEGINS, STARTS, PARTS, (n + 3 for n in SIZES), ends, strict=True)
    return np.array(list(rows), "i8")


def _work(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The memory of the parts, NaN between them, and the gradients."""
    work, sums = np.full(1200, np.nan), []
    for size, parts, start in zip(SIZES, PARTS, STARTS, strict=True):
        values = random(parts, size, seed="part")
        for k in range(parts):
            work[start + k * (size + 3) : start + k * (size + 3) + size] = values[k]
        sums.append(load(store(values, dtype), dtype).sum(axis=0))
    return store(work, dtype), np.concatenate(sums)


def _spread(values: Any) -> np.ndarray:
    """Numbers of the parameters, in their places; 0 between them."""
    out = np.zeros(TOTAL)
    out[FILLED] = values
    return out


def summed(launcher: Launcher, scaled: bool, dtype: str, index: str) -> None:
    work, want = _work(dtype)
    gradient, scale = poisoned(TOTAL, dtype), store(np.array([4.0]), dtype)
    args = (work, _sections(), scale, gradient, len(SIZES), scaled)
    launcher.launch("sum_sections", dtype, index, blocks(TOTAL, "sum_sections"), args)
    close(gradient[FILLED], want / 4 if scaled else want, dtype)
    room = np.setdiff1d(np.arange(TOTAL), FILLED)
    np.testing.assert_array_equal(gradient[room], poisoned(TOTAL, dtype)[room])


def update(launcher: Launcher, rule: str, dtype: str, index: str, treated: bool = False) -> None:
    """Two steps; `treated`: by a loss scale of 4, cut off, factors for norms, weights pulled."""
    wide = WIDE[dtype]
    work, g = _work(wide)
    limit, pull = (0.2, 0.01) if treated else (0.0, 0.0)
    if treated:
        g = np.clip(g / 4, -limit, limit) * np.repeat(FACTORS, SIZES)
    g, rates, filled = _spread(g), _spread(np.repeat(RATES, SIZES)), _spread(1) == 1
    narrow, p = rounded(random(TOTAL, seed="param"), dtype)
    param = store(p * (1 + 1e-4), wide)  # rounds to the weight of a half type
    if dtype != wide:
        assert (store(param.astype("f8"), dtype) == narrow).all()
        param[5] = 9.0  # which somebody has changed
        p = np.where(np.arange(TOTAL) == 5, p, param.astype("f8"))
    else:
        narrow, p = narrow[:0], param.astype("f8")
    first, m = rounded(random(TOTAL, seed="first") ** 2, wide)
    second, v = rounded(random(TOTAL, seed="second") ** 2, wide)
    before = p, m, v
    for t in (3, 4):
        old, pulled = p, g + pull * p
        if rule in ("sgd", "nesterov"):
            numbers = (0 if rule == "sgd" else 4, DECAY1, 0, 0, 0, 0, 0, 0, 0)
            m = DECAY1 * m + rates * pulled
            p = p - (m if rule == "sgd" else DECAY1 * m + rates * pulled)
        elif rule == "adagrad":
            numbers = (1, 0, 0, 0, 0, 0, 0, EPS, 0)
            m = m + pulled**2
            p = p - rates * pulled / (np.sqrt(m) + EPS)
        elif rule == "rmsprop":
            numbers = (2, DECAY1, 1 - DECAY1, 0, 0, 0, 0, EPS, 0)
            m = DECAY1 * m + (1 - DECAY1) * pulled**2
            p = p - rates * pulled / (np.sqrt(m) + EPS)
        else:  # Kingma & Ba's algorithm 1, with Loshchilov & Hutter's decay
            decays = (DECAY1, 1 - DECAY1, DECAY2, 1 - DECAY2)
            numbers = (3, *decays, math.log(DECAY1), math.log(DECAY2), EPS, SHRINK)
            m, v = DECAY1 * m + (1 - DECAY1) * pulled, DECAY2 * v + (1 - DECAY2) * pulled**2
            m_hat, v_hat = m / (1 - DECAY1**t), v / (1 - DECAY2**t)
            p = p - rates * SHRINK * old - rates * m_hat / (np.sqrt(v_hat) + EPS)
        p, m, v = (np.where(filled, *pair) for pair in zip((p, m, v), before, strict=True))
        step, rate = np.array([t], "i4"), store(np.array(RATES), wide)
        factors, inverse = (store(np.array(x), wide) for x in (FACTORS, [0.25]))
        args = (param, first, second, narrow, work, _sections(), rate, step, factors, inverse)
        args = (*args, np.ones(1, "i4"), len(SIZES), numbers[0], treated, treated)
        args = (*args, *numbers[1:], limit, pull)
        launcher.launch("flat_update", dtype, index, blocks(TOTAL, "flat_update"), args)
        close(first, m, wide, factor=4)
        close(second, v, wide, factor=4)
        close(param, p, wide, factor=8)
        if dtype != wide:
            np.testing.assert_array_equal(narrow, store(param.astype("f8"), dtype))


def left_out(launcher: Launcher) -> None:
    """A step whose gradients are not finite changes nothing."""
    work, _ = _work("float32")
    arrays = [store(random(TOTAL, seed=k), "float32") for k in ("a", "b", "c")]
    before = [array.copy() for array in arrays]
    none, step = arrays[0][:0], np.array([3], "i4")
    rates, one = store(np.array(RATES), "float32"), np.ones(1, "f4")
    args = (*arrays, none, work, _sections(), rates, step, none, one, np.zeros(1, "i4"))
    args = (*args, len(SIZES), 3, False, True, *(0.5,) * 10)
    grid = blocks(TOTAL, "flat_update")
    launcher.launch("flat_update", "float32", "int32", grid, args)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def loss(launcher: Launcher, count: int, dtype: str, index: str) -> None:
    losses, values = rounded(random(count), dtype)
    loss, step = poisoned(1, dtype), np.array([41], "i4")
    launcher.launch("finish_loss", dtype, index, (1,), (losses, loss, step, count, 0.5))
    close(loss, np.array([values.sum() * 0.5]), dtype, factor=4)
    assert step[0] == 42


CASES = [
    *(
        functools.partial(summed, scaled=scaled, dtype=d, index=i)
        for scaled, (d, i) in zip((False, True, True), (*DTYPES, DTYPES[0]), strict=True)
    ),
    *(
        functools.partial(update, rule=rule, dtype=d, index=i)
        for rule in ("sgd", "nesterov", "adagrad", "rmsprop", "adam")
        for d, i in DTYPES
    ),
    *(
        functools.partial(update, rule=rule, dtype=d, index=i, treated=True)
        for rule, (d, i) in (("adam", DTYPES[0]), ("nesterov", DTYPES[1]), *HALVES)
    ),
    left_out,
    *(functools.partial(loss, count=259, dtype=d, index=i) for d, i in DTYPES),
    functools.partial(loss, count=1, dtype="float32", index="int32"),
]
