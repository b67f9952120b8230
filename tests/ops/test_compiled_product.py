"""The C matrix products for any number of threads, with bias and ReLU, and with rows apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import threads
from gpulayers.ops.compiled import product as compiled
from gpulayers.ops.compiled.product import product_into, two_products_into
from tests.ops.conftest import eighths
from tests.ops.test_product import operands, sizes
from tests.support.compare import assert_same_bits

pytestmark = pytest.mark.compiled


@sizes
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bias_and_relu_for_any_number_of_threads(size: tuple[int, int, int], count: int) -> None:
    A, B, gold = operands(size)
    bias = eighths((1, size[1]), 3, spread=400)
    with threads.use_threads(count):
        for dtype in ("float32", "float64"):
            for ta in (False, True):
                for tb in (False, True):
                    a = np.array(A.T if ta else A, dtype, order="C")
                    b = np.array(B.T if tb else B, dtype, order="C")
                    out = np.full((size[0] + 1, size[1]), 99, dtype)
                    product_into(a, b, out[:-1], ta, tb, bias.astype(dtype), relu=True)
                    assert_same_bits(out[:-1], np.maximum(gold + bias, 0).astype(dtype))
                    product_into(a, b, out[:-1], ta, tb)
                    assert_same_bits(out[:-1], gold.astype(dtype))
                    assert (out[-1] == 99).all()


@pytest.mark.parametrize("size", [(70, 30, 90), (8, 200, 100), (300, 20, 500)])
def test_rows_apart_in_operands_and_result(size: tuple[int, int, int]) -> None:
    A, B, gold = operands(size)
    m, n, k = size
    for ta in (False, True):
        for tb in (False, True):
            wide = [
                np.full((2 * rows, cols + 3), 99.0, np.float32)
                for rows, cols in [(k, m) if ta else (m, k), (n, k) if tb else (k, n), (m, n)]
            ]
            a, b, out = (w[::2, 1:-2] for w in wide)
            a[...], b[...] = A.T if ta else A, B.T if tb else B
            product_into(a, b, out, ta, tb)
            assert_same_bits(out, gold.astype(np.float32))
            out[...] = 99
            assert (wide[2] == 99).all()


@pytest.mark.parametrize(
    "size",
    [(71, 137, 931), (1024, 49, 1100), (4100, 50, 130), (37, 300, 2100), (2003, 40, 30)],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_a_packed_left_matrix(size: tuple[int, int, int], transposed: bool) -> None:
    """Rows and k beyond what is packed at a time, and many rows, all with a rest."""
    A, B, gold = operands(size)
    a = A.T.astype(np.float32, order="C") if transposed else A.astype(np.float32)
    bias = eighths((1, size[1]), 3, spread=400).astype(np.float32)
    for count in (1, 3):
        with threads.use_threads(count):
            out = np.full((size[0] + 1, size[1]), 99, np.float32)
            product_into(a, B.astype(np.float32), out[:-1], transposed, bias=bias)
        assert_same_bits(out[:-1], (gold + bias).astype(np.float32))
        assert (out[-1] == 99).all()


def test_adding_a_product_of_nothing_changes_nothing() -> None:
    out, empty = np.full((7, 5), 3, np.float32), np.empty((0, 7), np.float32)
    assert compiled._product_onto(out.dtype, empty, 7, True, empty, 5, False, out, 5, 7, 5, 0) == 0
    assert (out == 3).all()


def test_relu_keeps_nan(numpy_backend: Any) -> None:
    A, B = np.ones((7, 3), np.float32), -np.ones((3, 5), np.float32)
    A[2, 1] = np.nan
    out = np.empty((7, 5), np.float32)
    product_into(A, B, out, relu=True)
    np.testing.assert_array_equal(out, np.maximum(A @ B, 0))


def test_same_bits_again(numpy_backend: Any) -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(s).astype(np.float32) for s in ((90, 700), (700, 110)))
    with threads.use_threads(3):
        first, second = np.empty((2, 90, 110), np.float32)
        product_into(A, B, first)
        product_into(A, B, second)
    assert_same_bits(first, second)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "size", [(20, 7, 33, 300), (1, 150, 17, 40), (160, 3, 300, 900), (5, 0, 9, 4), (3, 4, 5, 0)]
)
def test_two_products_of_one_matrix(size: tuple[int, int, int, int], count: int) -> None:
    m, n_in, n, k = size
    A, X, wide = eighths((k, m), 1), eighths((k, n_in), 2), eighths((k, n + 3), 3)
    with threads.use_threads(count):
        for dtype in ("float32", "float64"):
            out_a, out_x = (np.full((rows + 1, n), 99, dtype) for rows in (m, n_in))
            B = wide.astype(dtype)[:, 2:-1]
            two_products_into(A.astype(dtype), X.astype(dtype), B, out_a[:-1], out_x[:-1])
            for out, left in ((out_a, A), (out_x, X)):
                assert_same_bits(out[:-1], (left.T @ wide[:, 2:-1]).astype(dtype))
                assert (out[-1] == 99).all()
