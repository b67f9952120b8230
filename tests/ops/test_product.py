"""The matrix product in every orientation, in memory of every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops._product import add_product, product
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled

# around the tile (6 rows by 16 columns of floats), the block of k, and what one thread gets
SIZES = [
    (1, 1, 1), (2, 3, 5), (7, 17, 5), (64, 10, 84), (64, 120, 401), (13, 16, 33), (5, 40, 900),
    (151, 33, 390), (12, 31, 801), (300, 9, 385), (31, 1030, 20), (6, 2100, 13), (400, 6, 65),
    (121, 70, 300), (0, 3, 4), (3, 0, 2), (2, 3, 0), (70, 50, 0),
]  # fmt: skip
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def operands(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, n, k = size
    A, B = eighths((m, k), 1), eighths((k, n), 2)
    # exact: multiples of 1/64 far below 2^24 / 64 in float32
    gold = np.zeros((m, n))
    for i in range(k):
        gold += A[:, i, None] * B[None, i]
    return A, B, gold


@sizes
def test_added_to_what_is_there(size: tuple[int, int, int], engine: Engine) -> None:
    A, B, gold = operands(size)
    start = eighths(gold.shape, 5)
    for dtype in ("float32", "float64"):
        total = engine.array(start, dtype)
        at, b = engine.array(A.T, dtype), engine.array(B, dtype)
        add_product(total, at.T, b)
        add_product(total, at.T, b)
        assert_same_bits(total, (start + 2 * gold).astype(dtype))


@sizes
def test_against_a_sum_of_outer_products(size: tuple[int, int, int], engine: Engine) -> None:
    A, B, gold = operands(size)
    for dtype in ("float32", "float64"):
        a, b = engine.array(A, dtype), engine.array(B, dtype)
        at, bt = engine.array(A.T, dtype), engine.array(B.T, dtype)
        for left, right in [(a, b), (at.T, b), (a, bt.T), (at.T, bt.T)]:
            C = engine.call(product, left, right)
            assert C.dtype == dtype and C.flags.c_contiguous
            assert_same_bits(C, gold.astype(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(40, 60, 80), (3, 4, 5)])
def test_memory_layout_does_not_matter(
    engine: Engine, layout: str, size: tuple[int, int, int]
) -> None:
    A, B, gold = operands(size)
    a, b = engine.array(A, "float32"), engine.array(B, "float32")
    assert_same_bits(product(scrambled(a, layout), scrambled(b, layout)), gold.astype("float32"))
    assert_same_bits(product(a[:, 1:], b[1:]), product(a[:, 1:].copy(), b[1:].copy()))


def test_rows_that_are_one_row(engine: Engine) -> None:
    row = engine.xp.broadcast_to(engine.array(eighths((1, 80), 1), "float32"), (50, 80))
    B = engine.array(eighths((80, 60), 2), "float32")
    assert_same_bits(product(row, B), product(row.copy(), B))


def test_bytes_swapped_read_only_and_unaligned(numpy_backend: Any) -> None:
    A, B, gold = operands((40, 60, 80))
    swapped = A.astype(">f4"), B.astype(">f4")
    raw = bytearray(A.size * 4 + 1)
    crooked = np.frombuffer(raw, np.float32, A.size, offset=1).reshape(A.shape)
    crooked[...] = A
    frozen = A.astype(np.float32)
    frozen.flags.writeable = False
    for engine in ("numpy", "auto"):
        from gpulayers.ops import use_engine

        with use_engine(engine):
            assert_close(product(*swapped), gold)
            assert_close(product(crooked, B.astype(np.float32)), gold)
            assert_close(product(frozen, B.astype(np.float32)), gold)


def test_nan_and_infinity_reach_only_their_row_and_column(engine: Engine) -> None:
    A, B = np.ones((70, 50)), np.ones((50, 60))
    A[3, 7], B[9, 50] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        C = host(product(engine.array(A, "float32"), engine.array(B, "float32")))
    gold = np.full((70, 60), 50.0)
    gold[:, 50] = np.inf
    gold[3] = np.nan
    np.testing.assert_array_equal(C, gold)


def test_wrong_shapes_and_mixed_dtypes(engine: Engine) -> None:
    A, B = engine.array(np.ones((3, 4)), "float32"), engine.array(np.ones((5, 2)), "float32")
    with pytest.raises(ValueError):
        product(A, B)
    C = product(A, engine.array(np.ones((4, 2)), "float64"))
    assert C.dtype == "float32"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("m, k, n", [(700, 130, 90), (90, 130, 700), (300, 257, 300)])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_numpys_products_are_cut_for_the_threads(
    numpy_backend: Any, count: int, m: int, k: int, n: int, transpose_a: bool, transpose_b: bool
) -> None:
    from gpulayers.ops.cpu import Cpu
    from gpulayers.threads import use_threads

    rng = np.random.default_rng(0)
    A = rng.standard_normal((k, m) if transpose_a else (m, k))
    B = rng.standard_normal((n, k) if transpose_b else (k, n))
    with use_threads(count):
        C = Cpu().matmul(A, B, transpose_a, transpose_b)
    expected = np.einsum("ik,kj->ij", A.T if transpose_a else A, B.T if transpose_b else B)
    np.testing.assert_allclose(C, expected, rtol=0, atol=1e-11)
