"""C kernels of softmax, normalisation and optimizers on shapes that are awkward for vectors, with
numbers far from zero, and with numbers that are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpulayers.ops import normalization, softmax, update, use_engine
from gpulayers.ops.compiled.softmax import softmax_cross_entropy_both
from gpulayers.threads import use_threads
from tests.ops.test_update import RULES
from tests.support.compare import assert_close, assert_same_bits

pytestmark = pytest.mark.compiled

DTYPES = ["float32", "float64"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
WIDTHS = [1, 2, 3, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257, 1030, 2050]
widths = pytest.mark.parametrize("width", WIDTHS)


def both_engines(call: Callable[[], tuple], threads: int = 2) -> tuple[tuple, tuple]:
    with use_engine("reference"):
        gold = call()
    with use_engine("compiled"), use_threads(threads):
        return call(), gold


def compare(call: Callable[[], tuple], factor: float = 2.0, threads: int = 2) -> None:
    with np.errstate(all="ignore"):
        results, gold = both_engines(call, threads)
    for a, b in zip(results, gold, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, factor=factor)


# --------------------------------------------------------------------------------------- softmax


@dtypes
@widths
def test_softmax(width: int, dtype: str) -> None:
    rng = np.random.default_rng(width)
    for rows in (1, 2, 5):
        Z = (8 * rng.normal(size=(rows, width))).astype(dtype)
        dY = rng.normal(size=Z.shape).astype(dtype)
        labels = rng.integers(0, width, rows)

        def run(Z=Z, dY=dY, labels=labels) -> tuple:
            Y = softmax.softmax_forward(Z)
            losses, probs = softmax.softmax_cross_entropy_forward(Z, labels)
            dlogits = softmax.softmax_cross_entropy_backward(probs, labels, 0.25)
            return Y, softmax.softmax_backward(dY, Y), losses, probs, dlogits

        compare(run)


@dtypes
@pytest.mark.parametrize("width", [1, 3, 8, 11, 40])
def test_softmax_of_numbers_that_are_none(width: int, dtype: str) -> None:
    """One NaN or infinity, at each place of a row, spoils this row and no other."""
    special = [np.nan, np.inf, -np.inf]
    Z = np.random.default_rng(width).normal(size=(3 * width + 2, width)).astype(dtype)
    for k in range(width):
        for j, value in enumerate(special):
            Z[3 * k + j, k] = value
    Z[-1] = -np.inf
    labels = np.arange(len(Z)) % width

    def run() -> tuple:
        losses, probs = softmax.softmax_cross_entropy_forward(Z, labels)
        return softmax.softmax_forward(Z), losses, probs

    with np.errstate(all="ignore"):
        results, gold = both_engines(run)
    for a, b in zip(results, gold, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@dtypes
def test_loss_and_gradient_in_one_pass(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for rows, width in [(0, 3), (1, 1), (5, 10), (64, 33), (300, 7)]:
        logits = (30 * rng.normal(size=(rows, width))).astype(dtype)
        labels = rng.integers(0, width, rows).astype("int32")
        dlogits = np.full_like(logits, np.nan)
        with use_engine("reference"):
            gold_losses, probs = softmax.softmax_cross_entropy_forward(logits, labels)
            gold = softmax.softmax_cross_entropy_backward(probs, labels, 0.5)
        losses = softmax_cross_entropy_both(logits, labels, 0.5, dlogits)
        assert_close(losses, gold_losses)
        assert_close(dlogits, gold)
    labels[[0, 1]] = -1, width  # of no class: told by NaN, and nothing outside is touched
    losses = softmax_cross_entropy_both(logits, labels, 1.0, dlogits)
    assert list(np.flatnonzero(np.isnan(losses))) == [0, 1]
    np.testing.assert_allclose(dlogits.sum(axis=1), [1, 1] + [0] * (rows - 2), atol=1e-5)


def test_labels_of_every_kind_of_integer() -> None:
    logits = np.random.default_rng(2).normal(size=(6, 5)).astype("float32")
    labels = np.array([0, 4, 2, 1, 3, 0])
    with use_engine("compiled"):
        losses, _ = softmax.softmax_cross_entropy_forward(logits, labels)
        for kind in ("uint8", "int16", ">i4", ">i8", "uint64"):
            other, _ = softmax.softmax_cross_entropy_forward(logits, labels.astype(kind))
            assert_same_bits(other, losses)


# ---------------------------------------------------------------------------------- normalisation


@dtypes
@widths
@pytest.mark.parametrize("threads", [1, 3])
def test_batch_normalisation(width: int, dtype: str, threads: int) -> None:
    rng = np.random.default_rng(width)
    for m in (1, 2, 7, 33, 130, 1003 if width < 40 else 70):
        X = rng.normal(1.0, 2.0, (m, width)).astype(dtype)
        dY, scaler = rng.normal(size=X.shape).astype(dtype), rng.normal(size=width).astype(dtype)
        intercept = rng.normal(size=width).astype(dtype)
        eps = 0.1 if m < 3 else 1e-5

        def run(X=X, dY=dY, scaler=scaler, intercept=intercept, eps=eps) -> tuple:
            forward = normalization.batchnorm_forward(X, scaler, intercept, eps)
            backward = normalization.batchnorm_backward(dY, forward[1], scaler, forward[4])
            return *forward, *backward

        compare(run, factor=20, threads=threads)


@dtypes
@widths
def test_standardisation_of_rows(width: int, dtype: str) -> None:
    rng = np.random.default_rng(width)
    for rows in (1, 2, 9):
        X = rng.normal(1.0, 2.0, (rows, width)).astype(dtype)
        dX_hat = rng.normal(size=X.shape).astype(dtype)
        eps = 0.1 if width < 3 else 1e-5

        def run(X=X, dX_hat=dX_hat, eps=eps) -> tuple:
            X_hat, inv_std = normalization.standardize_forward(X, (1,), eps)
            dX = normalization.standardize_backward(dX_hat, X_hat, inv_std, (1,))
            return X_hat, inv_std, dX

        compare(run, factor=20)


@dtypes
@widths
@pytest.mark.parametrize("threads", [1, 3])
def test_layer_normalisation(width: int, dtype: str, threads: int) -> None:
    rng = np.random.default_rng(width)
    for rows in (0, 1, 2, 9, 130, 700 if width > 60 else 200):
        X = rng.normal(1.0, 2.0, (rows, width)).astype(dtype)
        dY = rng.normal(size=X.shape).astype(dtype)
        scaler, intercept = rng.normal(size=(2, width)).astype(dtype)
        eps = 0.1 if width < 3 else 1e-5

        def run(X=X, dY=dY, scaler=scaler, intercept=intercept, eps=eps) -> tuple:
            forward = normalization.layernorm_forward(X, scaler, intercept, eps)
            backward = normalization.layernorm_backward(dY, forward[1], scaler, forward[2])
            return *forward, *backward

        compare(run, factor=20, threads=threads)


def test_standardisation_over_several_axes() -> None:
    X = np.random.default_rng(3).normal(size=(3, 4, 5, 6)).astype("float32")
    for axes in ((3,), (2, 3), (1, 2, 3), (0, 1, 2, 3), (1,), (1, 3), (0,)):

        def run(axes=axes) -> tuple:
            X_hat, inv_std = normalization.standardize_forward(X, axes, 1e-5)
            return X_hat, inv_std, normalization.standardize_backward(X, X_hat, inv_std, axes)

        compare(run, factor=5)


@pytest.mark.parametrize("channels", [1, 3, 8, 50])
@pytest.mark.parametrize("outlier", [False, True])
def test_a_mean_far_from_zero_costs_no_accuracy(channels: int, outlier: bool) -> None:
    """Mean 1e4, deviation 1 in float32; also when the row that distances are taken from is 1e4 off.

    x itself is only known to 5e-4 there, so the gold is computed from the rounded numbers."""
    rng = np.random.default_rng(channels)
    X = rng.normal(1e4, 1.0, (4096, channels)).astype("float32")
    if outlier:
        X[0] = 0.0
        X[64] = -5.0
    exact = X.astype("float64")
    ones, zeros = np.ones(channels, "float32"), np.zeros(channels, "float32")
    with use_engine("compiled"), use_threads(2):
        Y, X_hat, mean, var, _ = normalization.batchnorm_forward(X, ones, zeros, 1e-5)
        rows, _ = normalization.standardize_forward(np.ascontiguousarray(X.T), (1,), 1e-5)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
    # a block of 64 rows whose first is the outlier may lose 65 times the rounding
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-4 if outlier else 2e-5)
    gold = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(X_hat, gold, rtol=5e-5 if outlier else 2e-5, atol=1e-5)
    np.testing.assert_allclose(rows.T, gold, rtol=2e-5, atol=1e-5)
    assert_same_bits(Y, X_hat)


def test_numbers_that_are_none_spoil_their_column_or_row_alone() -> None:
    X = np.random.default_rng(5).normal(size=(70, 9)).astype("float32")
    for place in (0, 1, 32, 69):
        X[place, place % 9] = [np.nan, np.inf, -np.inf, np.nan][place % 4]
    ones, zeros = np.ones(9, "float32"), np.zeros(9, "float32")

    def run() -> tuple:
        forward = normalization.batchnorm_forward(X, ones, zeros, 1e-5)
        rows = normalization.layernorm_forward(X, ones, zeros, 1e-5)
        return *forward, *rows, *normalization.standardize_forward(X, (1,), 1e-5)

    with np.errstate(all="ignore"):
        results, gold = both_engines(run)
    for a, b in zip(results, gold, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_same_bits_twice_for_a_number_of_threads() -> None:
    rng = np.random.default_rng(6)
    X, dY = (rng.normal(size=(5000, 24)).astype("float32") for _ in range(2))
    scaler = rng.normal(size=24).astype("float32")
    for threads in (1, 2, 3, 5):
        results = []
        for _ in range(3):
            with use_engine("compiled"), use_threads(threads):
                forward = normalization.batchnorm_forward(X, scaler, scaler, 1e-5)
                backward = normalization.batchnorm_backward(dY, forward[1], scaler, forward[4])
                rows = normalization.layernorm_forward(X, scaler, scaler, 1e-5)
                last = normalization.layernorm_backward(dY, rows[1], scaler, rows[2])
                results.append((*forward, *backward, *rows, *last))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert_same_bits(b, a)


# ------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("rule", RULES)
@dtypes
def test_updates_of_every_length(rule: str, dtype: str) -> None:
    operation, _, states, hyperparameters = RULES[rule]
    rng = np.random.default_rng(7)
    for size in (0, 1, 3, 8, 31, 1000, 70_001):
        grad = rng.normal(size=size).astype(dtype)
        param = rng.normal(size=size).astype(dtype)
        state = [np.abs(rng.normal(size=size)).astype(dtype) for _ in range(states)]
        results = []
        for engine, threads in [("reference", 1), ("compiled", 1), ("compiled", 3)]:
            arrays = [param.copy(), grad.copy(), *(s.copy() for s in state)]
            with use_engine(engine), use_threads(threads):
                operation(*arrays, *hyperparameters(3))
            assert_same_bits(arrays[1], grad)
            results.append(arrays)
        for a, b, gold in zip(results[1], results[2], results[0], strict=True):
            assert_same_bits(a, b)
            assert_close(a, gold)


@pytest.mark.parametrize("rule", RULES)
@dtypes
def test_updates_do_not_depend_on_where_the_arrays_are(rule: str, dtype: str) -> None:
    """For arrays that lie close together the compiler may keep a loop of its own."""
    operation, _, states, hyperparameters = RULES[rule]
    values = np.abs(np.random.default_rng(3).normal(size=(2 + states, 40))).astype(dtype)
    for size in (1, 4, 7, 8, 15, 16, 33):
        results = []
        for apart in (1000, 0, 1, 2, 4, 8, 16):  # numbers between two arrays
            memory = np.empty((len(values), size + apart), dtype)
            arrays = list(memory[:, :size])
            for array, value in zip(arrays, values, strict=True):
                array[...] = value[:size]
            with use_engine("compiled"):
                operation(*arrays, *hyperparameters(3))
            results.append(memory[:, :size].copy())
        for other in results[1:]:
            assert_same_bits(other, results[0])


def test_updates_refuse_to_write_where_they_must_not(tmp_path) -> None:
    frozen = np.ones(5, dtype="float32")
    frozen.flags.writeable = False
    with use_engine("compiled"):
        for arrays in (
            [frozen, np.ones(5, "f4"), np.ones(5, "f4")],
            [np.ones(5, "f4"), np.ones(5, "f4"), frozen],
        ):
            with pytest.raises(ValueError, match="read-only"):
                update.sgd_update(*arrays, 0.1, 0.9)
        swapped = [np.ones(5, ">f4") for _ in range(3)]
        update.sgd_update(*swapped, 0.5, 0.5)
        np.testing.assert_array_equal(swapped[0], np.zeros(5))
        mapped = np.memmap(tmp_path / "p", dtype="float32", mode="w+", shape=(5,))
        update.sgd_update(mapped, np.ones(5, "f4"), np.ones(5, "f4"), 0.5, 0.5)
        np.testing.assert_array_equal(mapped, -np.ones(5))
