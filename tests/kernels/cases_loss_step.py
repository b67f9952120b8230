"""softmax.cu, the loss of a planned step: rows longer than a warp, labels that are none, class
weights."""

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
    load,
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


def weighted_cross_entropy(
    launcher: Launcher,
    rows: int,
    classes: int,
    dtype: str = "float32",
    index: str = "int32",
    weighted: bool = True,
    ignored: int | None = None,
    mean: bool = True,
    scaled: bool = False,
    smoothing: float = 0.0,
    nothing: bool = False,
) -> None:
    """A label that is none counts as the class next to it, its loss is NaN; ignored rows may hold
    anything. `nothing`: all examples count nothing, though their targets' classes do."""
    logits = random(rows, classes) * np.where(np.arange(rows) % 3, 1, 90)[:, None]
    logits[5 % rows] -= 300
    logits[3 % rows, min(32, classes - 1)] += 200
    if not smoothing:
        logits[0, 1] = -np.inf
    labels = (np.arange(rows) * 7 % classes).astype("i8")
    none = {row: label for row, label in {1: -3, 4: classes}.items() if row < rows}
    for row, label in none.items():
        labels[row] = label
    if ignored is not None:
        labels[2::4] = ignored
        logits[2, 0], logits[2, 1] = np.nan, np.inf
    stored_weights, weights = rounded(random(classes, seed="w") ** 2, WIDE[dtype])
    if nothing:
        labels[:], none, stored_weights[1], weights[1] = 2 % classes, {}, 1.0, 1.0
        stored_weights[2 % classes] = weights[2 % classes] = 0
    if not weighted:
        stored_weights, weights = stored_weights[:0], np.ones(classes)
    logits, values = rounded(logits, dtype)
    losses, dlogits = poisoned(rows, WIDE[dtype]), poisoned(logits.shape, dtype)
    scale = store(np.array([16.0]), WIDE[dtype])
    flags = (weighted, ignored is not None, mean, scaled, (ignored or 0) % 2**64, smoothing)
    args = (logits, labels, stored_weights, scale, losses, dlogits, rows, classes, *flags)
    name = "weighted_cross_entropy_step"
    launcher.launch(name, dtype, index, blocks(32 * rows, name), args)
    counts = [
        0.0 if label == ignored else weights[min(max(label, 0), classes - 1)]
        for label in labels.tolist()
    ]
    over = math.fsum(counts) if mean else 1.0
    share = smoothing / classes
    for row, label in enumerate(labels.tolist()):
        if label == ignored or not over:
            assert not losses[row] and not load(dlogits[row], dtype).any()
            continue
        highest = max(values[row])
        powers = [math.exp(v - highest) for v in values[row]]
        total, hit = math.fsum(powers), (1 - smoothing) * counts[row]
        wanted = [hit * (c == label) + share * weights[c] for c in range(classes)]
        whole = hit + share * math.fsum(weights)
        want = [p / total * whole - u for p, u in zip(powers, wanted, strict=True)]
        close(dlogits[row], np.array(want) / over * (16 if scaled else 1), dtype, 16.0)
        if row in none:
            assert np.isnan(losses[row])
        else:
            logs = [math.log(total) - (v - highest) for v in values[row]]
            loss = math.fsum(u * part for u, part in zip(wanted, logs, strict=True) if u)
            close(losses[row : row + 1], np.array([loss / over]), WIDE[dtype], 8.0)


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
CASES += [
    functools.partial(weighted_cross_entropy, rows=9, classes=10),
    functools.partial(weighted_cross_entropy, rows=41, classes=3, ignored=-100),
    functools.partial(weighted_cross_entropy, rows=6, classes=40, ignored=1, smoothing=0.25),
    functools.partial(weighted_cross_entropy, rows=5, classes=4, mean=False, scaled=True),
    functools.partial(weighted_cross_entropy, rows=7, classes=33, weighted=False, ignored=-(2**63)),
    functools.partial(weighted_cross_entropy, rows=3, classes=4, nothing=True, smoothing=0.5),
    functools.partial(weighted_cross_entropy, rows=1, classes=7),
    functools.partial(
        weighted_cross_entropy, rows=6, classes=5, weighted=False, mean=False, smoothing=0.25
    ),
    *(
        functools.partial(
            weighted_cross_entropy,
            **{"rows": 35, "classes": 5, "dtype": d, "index": i, "ignored": 2},
            scaled=d == "float16",
            smoothing=0.1,
        )
        for d, i in COMBINATIONS
    ),
]
