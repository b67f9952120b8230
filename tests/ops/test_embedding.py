"""Rows by number and sums by number, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.ops import embedding
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import embedding as naive

# (count, width, shape of the ids); a count of 1 or 2 repeats each id many times
SIZES = [
    (5, 3, (4,)),
    (1, 2, (9,)),
    (2, 1, (3, 6)),
    (40, 7, (2, 3, 2)),
    (3, 4, (1,)),
    (6, 2, (257,)),
]
with_sizes = pytest.mark.parametrize("count, width, shape", SIZES, ids=str)
ID_DTYPES = ["int8", "uint8", "int32", "uint32", "int64", "uint64"]


def ids_of(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([count, *shape]).integers(0, count, shape)


@with_sizes
def test_forward_and_backward(engine: Engine, count: int, width: int, shape, dtype: str) -> None:
    W, dY, ids = eighths((count, width), 1), eighths((*shape, width), 2), ids_of(count, shape)
    Y = engine.call(embedding.embedding_forward, engine.array(W, dtype), engine.array(ids))
    assert_same_bits(Y, W.astype(dtype)[ids])
    dW = engine.call(
        embedding.embedding_backward, engine.array(dY, dtype), engine.array(ids), count
    )
    assert dW.dtype == dtype
    gold = naive.lookup_grad(W.shape, ids.reshape(-1, 1), dY.reshape(-1, 1, width))
    assert_close(dW, gold)


@pytest.mark.parametrize("name", ID_DTYPES)
def test_any_integer_is_an_id(engine: Engine, name: str) -> None:
    ids = ids_of(5, (11,))
    W, dY = engine.array(eighths((5, 2), 1)), engine.array(eighths((11, 2), 2))
    for given in (engine.array(ids, name), scrambled(engine.array(ids, name), "strided")):
        assert_same_bits(embedding.embedding_forward(W, given), host(W)[ids])
        assert_same_bits(
            embedding.embedding_backward(dY, given, 5),
            embedding.embedding_backward(dY, engine.array(ids), 5),
        )


def test_no_ids_and_ids_that_do_not_occur(engine: Engine) -> None:
    W, none = engine.array(eighths((4, 3), 1)), engine.array(np.zeros((2, 0), np.int64))
    assert embedding.embedding_forward(W, none).shape == (2, 0, 3)
    dW = embedding.embedding_backward(engine.array(np.zeros((2, 0, 3))), none, 4)
    assert_same_bits(dW, np.zeros((4, 3)))
    dW = embedding.embedding_backward(engine.array(np.ones((1, 3))), engine.array([2]), 4)
    assert_same_bits(dW, np.eye(4)[:, 2:3] * np.ones(3))


def test_a_nan_stays_with_its_id(engine: Engine) -> None:
    dY, ids = np.ones((4, 2)), np.array([1, 0, 1, 2])
    dY[0, 1] = np.nan
    dW = embedding.embedding_backward(engine.array(dY), engine.array(ids), 4)
    assert_same_bits(dW, np.array([[1, 1], [2, np.nan], [1, 1], [0, 0]], float))


def test_half_precision_sums_do_not_stall(engine: Engine) -> None:
    # 4096 ones: a running sum in float16 stops at 2048
    ones = engine.array(np.ones((4096, 1)), "float16")
    dW = embedding.embedding_backward(ones, engine.array(np.zeros(4096, np.int64)), 1)
    assert_same_bits(dW, np.array([[4096]], "float16"))


def test_every_run_adds_in_the_same_order(engine: Engine) -> None:
    ids = engine.array(ids_of(7, (500,)))
    dY = engine.array(np.random.default_rng(1).normal(size=(500, 3)), "float32")
    first = embedding.embedding_backward(dY, ids, 7)
    for _ in range(3):
        assert_same_bits(embedding.embedding_backward(dY, ids, 7), first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    W, dY, ids = (
        engine.array(a) for a in (eighths((5, 3), 1), eighths((4, 6, 3), 2), ids_of(5, (4, 6)))
    )
    assert_same_bits(
        engine.call(embedding.embedding_forward, scrambled(W, layout), scrambled(ids, layout)),
        embedding.embedding_forward(W, ids),
    )
    assert_same_bits(
        engine.call(embedding.embedding_backward, scrambled(dY, layout), scrambled(ids, layout), 5),
        embedding.embedding_backward(dY, ids, 5),
    )


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_ids_out_of_range(engine: Engine, bad: int) -> None:
    """NumPy raises; a GPU does not wait to look: NaN out, no gradient in."""
    W, ids = engine.array(eighths((5, 3), 1)), engine.array(np.array([1, bad, 4]))
    dY = engine.array(np.ones((3, 3)))
    if engine.on_host:
        for call in (
            lambda: embedding.embedding_forward(W, ids),
            lambda: embedding.embedding_backward(dY, ids, 5),
        ):
            with pytest.raises(ParameterError, match=r"ids must be in 0\.\.4, got"):
                call()
        return
    Y = embedding.embedding_forward(W, ids)
    assert_same_bits(Y, np.stack([host(W)[1], np.full(3, np.nan), host(W)[4]]))
    dW = embedding.embedding_backward(dY, ids, 5)
    assert_same_bits(dW, np.array([[0.0], [1], [0], [0], [1]]) * np.ones(3))


def test_neither_waits_nor_copies(emulated) -> None:
    W, ids = emulated.asarray(np.ones((5, 3), "f4")), emulated.asarray(ids_of(5, (4, 6)))
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        Y = embedding.embedding_forward(W, ids)
        embedding.embedding_backward(Y, ids, 5)


def test_segments(engine: Engine) -> None:
    assert_same_bits(embedding.segments([2, 0, 3], engine.xp), np.array([0, 0, 2, 2, 2]))
    assert embedding.segments([0], engine.xp).shape == (0,)


def test_wrong_calls(engine: Engine) -> None:
    W, ids = engine.array(np.ones((4, 3))), engine.array(np.zeros((2, 5), np.int64))
    dY = engine.array(np.ones((2, 5, 3)))
    forward, backward = embedding.embedding_forward, embedding.embedding_backward
    with pytest.raises(ShapeError, match=r"W must have shape \(count, width\), got \(4,\)"):
        forward(W[:, 0], ids)
    with pytest.raises(ShapeError, match=r"W needs at least one row, got shape \(0, 3\)"):
        forward(W[:0], ids)
    with pytest.raises(DTypeError, match="W must be a floating array, got int64"):
        forward(W.astype("int64"), ids)
    for call in (lambda i: forward(W, i), lambda i: backward(dY, i, 4)):
        for wrong in ("float32", "bool"):
            with pytest.raises(DTypeError, match=f"ids must be integers, got {wrong}"):
                call(ids.astype(wrong))
        with pytest.raises(DTypeError, match=r"ids: expected a numpy or cupy array, got list"):
            call([[1, 2]])
    for wrong in (dY[0], dY[:, :, 0], dY[:, :4]):
        with pytest.raises(ShapeError, match=r"dY must have shape \(\*\(2, 5\), width\)"):
            backward(wrong, ids, 4)
    with pytest.raises(DTypeError, match="dY must be a floating array, got int64"):
        backward(dY.astype("int64"), ids, 4)


def test_mixed_libraries(emulated) -> None:
    W, ids = np.ones((4, 3)), np.zeros((2, 5), np.int64)
    with pytest.raises(BackendError, match="embedding_forward: numpy and cupy arrays were mixed"):
        embedding.embedding_forward(emulated.asarray(W), ids)
    with pytest.raises(BackendError, match="embedding_backward: numpy and cupy arrays were mixed"):
        embedding.embedding_backward(np.ones((2, 5, 3)), emulated.asarray(ids), 4)
