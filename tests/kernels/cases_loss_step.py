"""softmax.cu, the loss of a planned step: rows longer than a warp, labels that are none."""

from __future__ import annotations

import functools
import math

import numpy as np

from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    blocks,
    close,
    poisoned,
    random,
    rounded,
    store,
)


def cross_entropy(
    launcher: Launcher,
    rows: int,
    classes: int,
    scaled: bool,
    dtype: str,
    index: str,
    smoothing: float = 0.0,
) -> None:
    """Some logits so large that their powers overflow, some so small that they all vanish, one
    infinite."""
    logits = random(rows, classes) * np.where(np.arange(rows) % 3, 1, 90)[:, None]
    logits[2 % rows] -= 300
    logits[3 % rows, min(32, classes - 1)] += 200
    if not smoothing:
        logits[0, 1] = -np.inf
    logits, values = rounded(logits, dtype)
    labels = (np.arange(rows) * 7 % classes).astype("i8")
    none = {1: -1, 4: classes}
    for row, label in none.items():
        if row < rows:
            labels[row] = label
    losses, dlogits = poisoned(rows, WIDE[dtype]), poisoned(logits.shape, dtype)
    scale, weight = store(np.array([16.0]), WIDE[dtype]), 0.125
    args = (logits, labels, scale, losses, dlogits, rows, classes, scaled, weight, smoothing)
    grid = blocks(32 * rows, "cross_entropy_step")
    launcher.launch("cross_entropy_step", dtype, index, grid, args)
    factor = 16 * weight if scaled else weight
    for row in range(rows):
        highest = max(values[row])
        powers = [math.exp(v - highest) for v in values[row]]
        total, label = math.fsum(powers), int(labels[row])
        share = smoothing / classes
        wanted = [(1 - smoothing) * (c == label) + share for c in range(classes)]
        want = [(p / total - t) * factor for p, t in zip(powers, wanted, strict=True)]
        close(dlogits[row], np.array(want), dtype, 8.0)
        if row in none:
            assert np.isnan(losses[row])
        else:
            logs = [math.log(total) - (v - highest) for v in values[row]]
            loss = math.fsum(t * part for t, part in zip(wanted, logs, strict=True) if t)
            close(losses[row : row + 1], np.array([loss]), WIDE[dtype], 8.0)


CASES = [
    functools.partial(cross_entropy, rows=n, classes=c, scaled=s, dtype=d, index=i)
    for (d, i), n, c, s in zip(
        (COMBINATIONS[0], COMBINATIONS[0], *COMBINATIONS[1:]),
        (9, 3, 5, 6, 4),
        (10, 70, 3, 33, 4),
        (True, False, False, True, True),
        strict=True,
    )
]
CASES += [
    functools.partial(
        cross_entropy, rows=5, classes=c, scaled=s, dtype=d, index="int32", smoothing=share
    )
    for c, s, d, share in (
        (10, False, "float32", 0.1),
        (3, True, "float16", 0.25),
        (40, False, "float64", 1.0),
    )
]
