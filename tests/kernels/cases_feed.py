"""feed.cu: batches in the order of a table, from its midst and across its end; a step's results."""

from __future__ import annotations

import functools

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

#: the table (an example twice), the example that a step begins with, examples of a batch
ORDER, POSITION, BATCH = (4, 1, 2, 0, 2, 3), 2, 3
SHAPE = (5, 3, 7, 3)
WIDTH = 63
SCALE, SHIFT = (0.017, 0.0171, 0.0174), (-2.1, -2.03, 0.0)


def _places() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.array([7, 2**40, 0, 3, 9])
    return labels, np.array(ORDER, "i4"), np.array([POSITION], "i4")


def _check_labels(got: np.ndarray, position: np.ndarray, labels: np.ndarray) -> None:
    assert got.tolist() == [labels[k] for k in ORDER[POSITION : POSITION + BATCH]]
    assert position[0] == POSITION, "read by other blocks too"


def bytes_of(launcher: Launcher, dtype: str, index: str) -> None:
    """To the bits of a product and a sum that are rounded one by one."""
    images = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    labels, order, position = _places()
    _, values = rounded(np.array([SCALE, SHIFT]), dtype)
    factors = values.astype(WIDE[dtype])
    batch, got = poisoned((BATCH, *SHAPE[1:]), dtype), np.full(BATCH, -7)
    args = (images, labels, order, position, factors, batch, got, batch.size, WIDTH, 3, len(ORDER))
    launcher.launch("gather_bytes", dtype, index, blocks(batch.size, "gather_bytes"), args)
    _check_labels(got, position, labels)
    chosen = images[list(ORDER[POSITION : POSITION + BATCH])].astype(np.float64)
    wide = WIDE[dtype]
    product = store((chosen.astype(wide) * factors[0]).astype(wide), dtype)
    want = store((load(product, dtype).astype(wide) + factors[1]).astype(wide), dtype)
    np.testing.assert_array_equal(batch, want)


def rows_of(launcher: Launcher, dtype: str, index: str) -> None:
    images, values = rounded(random(*SHAPE), dtype)
    labels, order, position = _places()
    batch, got = poisoned((BATCH, *SHAPE[1:]), dtype), np.full(BATCH, -7)
    args = (images, labels, order, position, batch, got, batch.size, WIDTH, len(ORDER))
    launcher.launch("gather_rows", dtype, index, blocks(batch.size, "gather_rows"), args)
    _check_labels(got, position, labels)
    close(batch, values[list(ORDER[POSITION : POSITION + BATCH])], dtype)


def single_numbers(launcher: Launcher) -> None:
    """An image may be one number."""
    labels, order, position = _places()
    images, got = np.arange(5, dtype=np.uint8), np.full(BATCH, -7)
    batch = poisoned(BATCH, "float32")
    factors = np.array([2.0, 1.0], "f4")
    args = (images, labels, order, position, factors, batch, got, BATCH, 1, 1, len(ORDER))
    launcher.launch("gather_bytes", "float32", "int32", (1,), args)
    _check_labels(got, position, labels)
    assert batch.tolist() == [5.0, 1.0, 5.0]
    images, got, batch = images.astype("f4"), np.full(BATCH, -7), poisoned(BATCH, "float32")
    args = (images, labels, order, position, batch, got, BATCH, 1, len(ORDER))
    launcher.launch("gather_rows", "float32", "int32", (1,), args)
    _check_labels(got, position, labels)
    assert batch.tolist() == [2.0, 0.0, 2.0]


def behind_the_end(launcher: Launcher, from_bytes: bool) -> None:
    """Nothing is read from there: NaN, and a label that no class has."""
    name = "gather_bytes" if from_bytes else "gather_rows"
    images = np.full((2, 5), 51, np.uint8 if from_bytes else np.float32)
    order, position = np.array([1, 0, 1], "i4"), np.array([2], "i4")
    batch, got = poisoned((3, 5), "float32"), np.full(3, -7)
    factors = (np.tile(np.array([[0.2], [1.0]], "f4"), 5),) if from_bytes else ()
    numbers = (15, 5, 5, 3) if from_bytes else (15, 5, 3)
    args = (images, np.array([4, 6]), order, position, *factors, batch, got, *numbers)
    launcher.launch(name, "float32", "int32", (1,), args)
    assert got.tolist() == [6, -1, -1]
    close(batch[0], np.full(5, 11.2 if from_bytes else 51.0), "float32")
    assert np.isnan(batch[1:]).all()


def finished(launcher: Launcher, n: int, dtype: str, index: str) -> None:
    """Twice, the second time in the record's first row; ties, NaN, a label without class."""
    classes, slots = 5, 3
    outputs, values = rounded(random(n, classes), dtype)
    labels = values.argmax(axis=1)
    labels[::3] = (labels[::3] + 1) % classes
    hits = int((values.argmax(axis=1) == labels).sum())
    if n > 4:
        tie = store(np.zeros(classes), dtype)
        outputs[1], outputs[2] = tie, tie
        hits += sum(
            int(new == 0) - int(values[i].argmax() == labels[i]) for i, new in ((1, 0), (2, 3))
        )
        labels[1], labels[2] = 0, 3
        outputs[4] = store(np.array([9.0, np.nan, 10.0, np.nan, 1.0]), dtype)
        hits += 1 - int(values[4].argmax() == labels[4])
        labels[4] = 1
    if n > 7:
        hits -= int(values[7].argmax() == labels[7])
        labels[7] = -1
    step, position, done = np.array([8], "i4"), np.array([20], "i4"), np.array([2], "i4")
    record = np.full((slots, 2), -7.0, WIDE[dtype])
    totals = []
    for _ in range(2):
        losses, summands = rounded(random(n, seed=str(len(totals))), WIDE[dtype])
        loss = poisoned(1, WIDE[dtype])
        args = (losses, outputs, labels, loss, step, position, done, record, n, classes, slots, 0.5)
        launcher.launch("finish_step", dtype, index, (1,), args)
        totals.append(summands.sum() * 0.5)
        close(loss, totals[-1:], WIDE[dtype], factor=4)
    assert (step[0], position[0], done[0]) == (10, 20 + 2 * n, 4)
    assert record[:, 1].tolist() == [hits, -7.0, hits]
    np.testing.assert_allclose(record[[2, 0], 0], totals, rtol=3e-5, atol=3e-5)


CASES = [
    *(functools.partial(f, dtype=d, index=i) for d, i in COMBINATIONS for f in (bytes_of, rows_of)),
    single_numbers,
    functools.partial(behind_the_end, from_bytes=True),
    functools.partial(behind_the_end, from_bytes=False),
    *(functools.partial(finished, n=300, dtype=d, index=i) for d, i in COMBINATIONS),
    functools.partial(finished, n=1, dtype="float32", index="int32"),
]
