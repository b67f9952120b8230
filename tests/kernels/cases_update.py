"""update.cu: two steps of each optimizer, in place."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels.arrays import COMBINATIONS, Launcher, blocks, close, load, random, rounded, store

SIZE = 259
LR, MOMENTUM, DECAY, DECAY1, DECAY2, EPS = 0.05, 0.8, 0.9, 0.7, 0.95, 1e-3


def _arrays(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    param = store(random(SIZE, seed="param"), dtype)
    grad = store(random(SIZE, seed="grad"), dtype)
    return param, grad


def sgd(launcher: Launcher, dtype: str, index: str) -> None:
    param, grad = _arrays(dtype)
    velocity = store(random(SIZE, seed="velocity"), dtype)
    for _ in range(2):
        p, g, v = (load(a, dtype) for a in (param, grad, velocity))
        args = (param, grad, velocity, SIZE, LR, MOMENTUM)
        launcher.launch("sgd_update", dtype, index, blocks(SIZE, "sgd_update"), args)
        v = MOMENTUM * v + LR * g
        close(velocity, v, dtype)
        close(param, p - v, dtype)


def adagrad(launcher: Launcher, dtype: str, index: str) -> None:
    param, grad = _arrays(dtype)
    cache = store(random(SIZE, seed="cache") ** 2, dtype)
    for _ in range(2):
        p, g, c = (load(a, dtype) for a in (param, grad, cache))
        args = (param, grad, cache, SIZE, LR, EPS)
        launcher.launch("adagrad_update", dtype, index, blocks(SIZE, "adagrad_update"), args)
        c = c + g * g
        close(cache, c, dtype)
        close(param, p - LR * g / (np.sqrt(c) + EPS), dtype)


def rmsprop(launcher: Launcher, dtype: str, index: str) -> None:
    param, grad = _arrays(dtype)
    cache = store(random(SIZE, seed="cache") ** 2, dtype)
    for _ in range(2):
        p, g, c = (load(a, dtype) for a in (param, grad, cache))
        args = (param, grad, cache, SIZE, LR, DECAY, 1 - DECAY, EPS)
        launcher.launch("rmsprop_update", dtype, index, blocks(SIZE, "rmsprop_update"), args)
        c = DECAY * c + (1 - DECAY) * g * g
        close(cache, c, dtype)
        close(param, p - LR * g / (np.sqrt(c) + EPS), dtype)


def adam(launcher: Launcher, dtype: str, index: str) -> None:
    """Against Kingma & Ba's algorithm 1 with its two bias-corrected averages written out."""
    param, grad = _arrays(dtype)
    mean, var = store(np.zeros(SIZE), dtype), store(np.zeros(SIZE), dtype)
    for t in (1, 2):
        p, g, m, v = (load(a, dtype) for a in (param, grad, mean, var))
        step, scale = LR / (1 - DECAY1**t), 1 / np.sqrt(1 - DECAY2**t)
        numbers = (DECAY1, 1 - DECAY1, DECAY2, 1 - DECAY2, step, scale, EPS)
        args = (param, grad, mean, var, SIZE, *numbers)
        launcher.launch("adam_update", dtype, index, blocks(SIZE, "adam_update"), args)
        m, v = DECAY1 * m + (1 - DECAY1) * g, DECAY2 * v + (1 - DECAY2) * g * g
        close(mean, m, dtype)
        close(var, v, dtype)
        m_hat, v_hat = m / (1 - DECAY1**t), v / (1 - DECAY2**t)
        close(param, p - LR * m_hat / (np.sqrt(v_hat) + EPS), dtype)


def still(launcher: Launcher) -> None:
    """No gradient and no state: eps keeps 0 / 0 away and the parameter where it is."""
    param, values = rounded(random(SIZE), "float32")
    grad, cache = np.zeros(SIZE, "f4"), np.zeros(SIZE, "f4")
    args = (param, grad, cache, SIZE, LR, EPS)
    launcher.launch("adagrad_update", "float32", "int32", (2,), args)
    close(param, values, "float32")


CASES = [
    *(
        functools.partial(f, dtype=d, index=i)
        for d, i in COMBINATIONS
        for f in (sgd, adagrad, rmsprop, adam)
    ),
    still,
]
