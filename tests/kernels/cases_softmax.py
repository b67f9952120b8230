"""softmax.cu: short and long rows, huge logits, NaN, and labels that would wrap in 32 bits."""

from __future__ import annotations

import functools

import numpy as np

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
    store,
)

#: (rows, classes): one class, fewer than a warp, just over one; 9 rows overhang a block of 8 warps
SHORT = ((9, 10), (1, 1), (3, 33))
#: a whole block a row: fewer classes than threads, and more
LONG = ((2, 40), (3, 300))


def _grid(rows: int, long: bool) -> tuple[int]:
    return (rows if long else -(-rows // 8),)


def forward(
    launcher: Launcher, rows: int, classes: int, dtype: str, index: str, long: bool
) -> None:
    z, values = rounded(random(rows, classes, scale=4.0), dtype)
    y = poisoned(z.shape, dtype)
    name = "softmax_forward_long" if long else "softmax_forward"
    launcher.launch(name, dtype, index, _grid(rows, long), (z, y, rows, classes))
    close(y, gold.softmax(values), dtype, 4.0)


def backward(
    launcher: Launcher, rows: int, classes: int, dtype: str, index: str, long: bool
) -> None:
    y, probs = rounded(gold.softmax(random(rows, classes)), dtype)
    dy, upstream = rounded(random(rows, classes, seed="dy"), dtype)
    dz = poisoned(y.shape, dtype)
    name = "softmax_backward_long" if long else "softmax_backward"
    launcher.launch(name, dtype, index, _grid(rows, long), (dy, y, dz, rows, classes))
    want = probs * (upstream - (upstream * probs).sum(axis=1, keepdims=True))
    close(dz, want, dtype, 8.0)
    if dtype == "float64":  # rows that sum to one: the Jacobian itself
        close(dz, gold.softmax_grad(upstream, probs), dtype, 8.0)


def loss(launcher: Launcher, rows: int, classes: int, dtype: str, index: str, long: bool) -> None:
    z, values = rounded(random(rows, classes, scale=4.0), dtype)
    labels = np.arange(rows, dtype=np.int64) * 7 % classes
    losses, probs = poisoned(rows, dtype), poisoned(z.shape, dtype)
    name = "softmax_cross_entropy_forward" + "_long" * long
    args = (z, labels, losses, probs, rows, classes)
    launcher.launch(name, dtype, index, _grid(rows, long), args)
    close(losses, gold.cross_entropy(values, labels), dtype, 4.0)
    close(probs, gold.softmax(values), dtype, 4.0)


def loss_and_gradient(launcher: Launcher, rows: int, classes: int, dtype: str, index: str) -> None:
    z, values = rounded(random(rows, classes, scale=4.0) - 1000.0, dtype)
    labels = np.arange(rows, dtype=np.int64) * 7 % classes
    labels[:3] = (2**32 + 1, 0, classes)[
        :rows
    ]  # of no class, but the 0: the loss is NaN, the gradient that of no label
    losses, dlogits = poisoned(rows, dtype), poisoned(z.shape, dtype)
    args = (z, labels, losses, dlogits, rows, classes, 0.25)
    launcher.launch("softmax_cross_entropy_both", dtype, index, _grid(rows, False), args)
    close(losses, gold.cross_entropy(values, labels), dtype, 4.0)
    hits = np.arange(classes) == labels[:, None]
    close(dlogits, (gold.softmax(values) - hits) * 0.25, dtype, 4.0)


def loss_of_low_logits(launcher: Launcher, long: bool) -> None:
    """exp(z) underflows for every class; only the difference to the row's maximum counts."""
    z, values = rounded(random(3, 40, scale=4.0) - 1000.0, "float32")
    labels = np.array([0, 39, 7], dtype=np.int64)
    losses, probs = poisoned(3, "float32"), poisoned(z.shape, "float32")
    name = "softmax_cross_entropy_forward" + "_long" * long
    launcher.launch(name, "float32", "int32", _grid(3, long), (z, labels, losses, probs, 3, 40))
    close(losses, gold.cross_entropy(values, labels), "float32", 4.0)
    close(probs, gold.softmax(values), "float32", 4.0)


def loss_backward(launcher: Launcher, dtype: str, index: str) -> None:
    probs, values = rounded(gold.softmax(random(27, 10)), dtype)
    labels = np.arange(27, dtype=np.int64) * 7 % 10
    labels[5], labels[6], labels[7] = -1, 10, 2**32 + 3  # hit nothing
    dlogits = poisoned(probs.shape, dtype)
    name = "softmax_cross_entropy_backward"
    args = (probs, labels, dlogits, probs.size, 10, 0.125)
    launcher.launch(name, dtype, index, blocks(probs.size, name), args)
    want = values.copy()
    for row, label in enumerate(labels.tolist()):
        if 0 <= label < 10:
            want[row, label] -= 1.0
    close(dlogits, want * 0.125, dtype)


def labels_out_of_range(launcher: Launcher) -> None:
    """Each gives NaN and reads nothing; 2**32 + 3 would be class 3 in 32 bits."""
    labels = np.array([-1, 5, 2**32 + 3, -(2**63), 2**63 - 1, 0, 4], dtype=np.int64)
    z, values = rounded(random(7, 5), "float32")
    losses, probs = poisoned(7, "float32"), poisoned(z.shape, "float32")
    args = (z, labels, losses, probs, 7, 5)
    launcher.launch("softmax_cross_entropy_forward", "float32", "int32", (1,), args)
    assert np.isnan(losses[:5]).all() and not np.isnan(losses[5:]).any(), losses
    close(losses, gold.cross_entropy(values, labels), "float32", 4.0)
    close(probs, gold.softmax(values), "float32", 4.0)


def extremes(launcher: Launcher, long: bool) -> None:
    """Nothing overflows; a NaN or plus infinity makes its own row NaN and no other."""
    z = store(random(6, 40, scale=4.0), "float32")
    z[0, 3] = 3e38
    z[1] = -3e38
    z[2, 39] = np.nan
    z[3, 0] = np.inf
    z[4, ::2] = -np.inf
    y = poisoned(z.shape, "float32")
    name = "softmax_forward_long" if long else "softmax_forward"
    launcher.launch(name, "float32", "int32", _grid(6, long), (z, y, 6, 40))
    assert np.isnan(y[2:4]).all(), y[2:4]
    good = [0, 1, 4, 5]
    close(y[good], gold.softmax(load(z, "float32")[good]), "float32", 4.0)


CASES = [
    *(
        functools.partial(loss_and_gradient, rows=9, classes=33, dtype=d, index=i)
        for d, i in COMBINATIONS
    ),
    functools.partial(loss_and_gradient, rows=2, classes=10, dtype="float32", index="int32"),
    *(
        functools.partial(f, rows=r, classes=c, dtype="float32", index="int32", long=long)
        for long, shapes in ((False, SHORT), (True, LONG))
        for r, c in shapes
        for f in (forward, backward, loss)
    ),
    labels_out_of_range,
    *(functools.partial(loss_backward, dtype=d, index=i) for d, i in COMBINATIONS),
    functools.partial(loss_of_low_logits, long=False),
    functools.partial(loss_of_low_logits, long=True),
    functools.partial(extremes, long=False),
    functools.partial(extremes, long=True),
    *(
        functools.partial(f, rows=9, classes=13, dtype=d, index=i, long=long)
        for d, i in COMBINATIONS[1:]
        for f in (forward, backward, loss)
        for long in (False, True)
    ),
]
