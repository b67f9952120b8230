"""gate.cu: sizes that fill no block, one channel, saturated gates."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
from tests.kernels.arrays import (
    COMBINATIONS,
    Launcher,
    blocks,
    close,
    poisoned,
    random,
    rounded,
)


def halves(rows: int, channels: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The input as stored, tanh of its first half and the logistic function of its second."""
    values = random(rows, 2 * channels) * 3
    values[0, :2] = 40, -40
    x, X = rounded(values, dtype)
    T = gold.activation("tanh", X[:, :channels], 0.0, 0.0)
    return x, T, gold.activation("sigmoid", X[:, channels:], 0.0, 0.0)


def forward(launcher: Launcher, rows: int, channels: int, dtype: str, index: str) -> None:
    x, T, S = halves(rows, channels, dtype)
    y, grid = poisoned((rows, channels), dtype), blocks(rows * channels, "gate_forward")
    launcher.launch("gate_forward", dtype, index, grid, (x, y, y.size, channels))
    close(y, T * S, dtype, 2.0)


def backward(launcher: Launcher, rows: int, channels: int, dtype: str, index: str) -> None:
    x, T, S = halves(rows, channels, dtype)
    dy, dY = rounded(random(rows, channels, seed="dy"), dtype)
    dx, grid = poisoned(x.shape, dtype), blocks(rows * channels, "gate_backward")
    launcher.launch("gate_backward", dtype, index, grid, (dy, x, dx, dy.size, channels))
    close(dx, np.hstack([dY * S * (1 - T * T), dY * T * S * (1 - S)]), dtype, 4.0)


CASES = [
    functools.partial(way, rows=rows, channels=channels, dtype=d, index=i)
    for (d, i), rows, channels in zip(
        (*COMBINATIONS, ("float32", "int64")), (37, 5, 3, 4, 2), (7, 1, 4, 3, 1), strict=True
    )
    for way in (forward, backward)
]
