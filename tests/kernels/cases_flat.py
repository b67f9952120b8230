"""flat.cu: parameters whose gradients lie in parts, apart and in another order; two steps each."""

from __future__ import annotations

import functools
import math

import numpy as np

from tests.kernels.arrays import Launcher, blocks, close, load, poisoned, random, rounded, store

DTYPES = (("float32", "int32"), ("float64", "int64"))
EPS, DECAY1, DECAY2, SHRINK = 1e-3, 0.7, 0.95, 0.3
#: sizes of the parameters, parts of their gradients, where those start (a gap at first), rates
SIZES, PARTS, STARTS, RATES = (130, 1, 141), (2, 1, 3), (700, 690, 5), (0.05, 0.1, 0.02)
TOTAL = sum(SIZES)


def _sections() -> np.ndarray:
    starts = np.cumsum((0, *SIZES[:-1]))
    return np.array(list(zip(starts, STARTS, PARTS, (n + 3 for n in SIZES), strict=True)), "i8")


def _work(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The memory of the parts, NaN between them, and the gradients."""
    work, sums = np.full(1200, np.nan), []
    for size, parts, start in zip(SIZES, PARTS, STARTS, strict=True):
        values = random(parts, size, seed="part")
        for k in range(parts):
            work[start + k * (size + 3) : start + k * (size + 3) + size] = values[k]
        sums.append(load(store(values, dtype), dtype).sum(axis=0))
    return store(work, dtype), np.concatenate(sums)


def summed(launcher: Launcher, dtype: str, index: str) -> None:
    work, want = _work(dtype)
    gradient = poisoned(TOTAL, dtype)
    args = (work, _sections(), gradient, TOTAL, len(SIZES))
    launcher.launch("sum_sections", dtype, index, blocks(TOTAL, "sum_sections"), args)
    close(gradient, want, dtype)


def update(launcher: Launcher, rule: str, dtype: str, index: str) -> None:
    work, g = _work(dtype)
    rates = np.repeat(RATES, SIZES)
    param, p = rounded(random(TOTAL, seed="param"), dtype)
    first, m = rounded(random(TOTAL, seed="first") ** 2, dtype)
    second, v = rounded(random(TOTAL, seed="second") ** 2, dtype)
    for t in (3, 4):
        if rule == "sgd":
            numbers = (0, DECAY1, 0, 0, 0, 0, 0, 0, 0)
            m = DECAY1 * m + rates * g
            p = p - m
        elif rule == "adagrad":
            numbers = (1, 0, 0, 0, 0, 0, 0, EPS, 0)
            m = m + g * g
            p = p - rates * g / (np.sqrt(m) + EPS)
        elif rule == "rmsprop":
            numbers = (2, DECAY1, 1 - DECAY1, 0, 0, 0, 0, EPS, 0)
            m = DECAY1 * m + (1 - DECAY1) * g * g
            p = p - rates * g / (np.sqrt(m) + EPS)
        else:  # Kingma & Ba's algorithm 1, with Loshchilov & Hutter's decay
            decays = (DECAY1, 1 - DECAY1, DECAY2, 1 - DECAY2)
            numbers = (3, *decays, math.log(DECAY1), math.log(DECAY2), EPS, SHRINK)
            m, v = DECAY1 * m + (1 - DECAY1) * g, DECAY2 * v + (1 - DECAY2) * g * g
            m_hat, v_hat = m / (1 - DECAY1**t), v / (1 - DECAY2**t)
            p = p - rates * SHRINK * p - rates * m_hat / (np.sqrt(v_hat) + EPS)
        step = np.array([t], "i4")
        args = (param, first, second, work, _sections(), store(np.array(RATES), dtype), step)
        args = (*args, TOTAL, len(SIZES), *numbers)
        launcher.launch("flat_update", dtype, index, blocks(TOTAL, "flat_update"), args)
        close(first, m, dtype, factor=4)
        close(second, v, dtype, factor=4)
        close(param, p, dtype, factor=4)


def loss(launcher: Launcher, count: int, dtype: str, index: str) -> None:
    losses, values = rounded(random(count), dtype)
    loss, step = poisoned(1, dtype), np.array([41], "i4")
    launcher.launch("finish_loss", dtype, index, (1,), (losses, loss, step, count, 0.5))
    close(loss, np.array([values.sum() * 0.5]), dtype, factor=4)
    assert step[0] == 42


CASES = [
    *(functools.partial(summed, dtype=d, index=i) for d, i in DTYPES),
    *(
        functools.partial(update, rule=rule, dtype=d, index=i)
        for rule in ("sgd", "adagrad", "rmsprop", "adam")
        for d, i in DTYPES
    ),
    *(functools.partial(loss, count=259, dtype=d, index=i) for d, i in DTYPES),
    functools.partial(loss, count=1, dtype="float32", index="int32"),
]
