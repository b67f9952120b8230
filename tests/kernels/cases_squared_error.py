"""softmax.cu, the squared error of a planned step: rows shorter and longer than a warp; scaled."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels import gold
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


def step(
    launcher: Launcher,
    rows: int,
    width: int,
    dtype: str = "float32",
    index: str = "int32",
    scaled: bool = False,
) -> None:
    outputs, y = rounded(random(rows, width), dtype)
    targets, t = rounded(random(rows, width, seed="t") * 3, dtype)
    losses, doutputs = poisoned(rows, WIDE[dtype]), poisoned(outputs.shape, dtype)
    scale = store(np.array([4.0]), WIDE[dtype])
    args = (outputs, targets, scale, losses, doutputs, rows, width, scaled)
    name = "squared_error_step"
    launcher.launch(name, dtype, index, blocks(32 * rows, name), args)
    close(losses, 0.5 * gold.column_sums(((y - t) ** 2).T), WIDE[dtype], 8.0)
    close(doutputs, (y - t) * (4 if scaled else 1), dtype, 4.0)


CASES = [
    functools.partial(step, rows=9, width=1),
    functools.partial(step, rows=3, width=70, scaled=True),
    *(
        functools.partial(step, rows=5, width=33, dtype=d, index=i, scaled=d == "float16")
        for d, i in COMBINATIONS
    ),
]
