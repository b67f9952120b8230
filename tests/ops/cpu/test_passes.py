"""Pooling, activations, softmax, normalisation and updates in pure NumPy, cut into many blocks."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.ops import Window
from gpulayers.ops.cpu import Cpu, _blas, _blocks
from gpulayers.ops.reference import Reference
from tests.ops.cpu.conftest import normal
from tests.support.compare import assert_close, assert_same_bits

CPU, REFERENCE = Cpu(), Reference()


# ---------------------------------------------------------------------------------------- pooling

POOLS = {
    "2x2": ((7, 8, 6, 5), Window((2, 2), (2, 2))),
    "2x2, a row and a column unseen": ((7, 9, 7, 5), Window((2, 2), (2, 2))),
    "3x3 every 2": ((5, 9, 8, 3), Window((3, 3), (2, 2))),
    "3x3 every 2, padded": ((5, 9, 8, 3), Window((3, 3), (2, 2), (1, 1, 1, 1))),
    "2x3, padded, apart": ((3, 9, 8, 4), Window((2, 3), (2, 3), (1, 0, 0, 1))),
    "dilated": ((3, 9, 9, 4), Window((2, 2), (1, 2), (0, 0, 0, 0), (3, 2))),
    "gaps": ((3, 9, 9, 4), Window((2, 2), (3, 4))),
    "one channel": ((6, 8, 8, 1), Window((2, 2), (2, 2))),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("content", ["ties", "nan", "-inf", "inf"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_pooling(name: str, content: str, dtype: str, count: int, small_blocks: None) -> None:
    shape, window = POOLS[name]
    rng = np.random.default_rng(0)
    X = rng.integers(-3, 3, shape).astype(dtype)
    if content != "ties":
        X[rng.random(shape) < 0.2] = float(content)
    Y, argmax = CPU.max_pool2d_forward(X, window)
    expected, where = REFERENCE.max_pool2d_forward(X, window)
    assert_same_bits(Y, expected)
    assert_same_bits(argmax, where)
    dY = rng.integers(-8, 8, Y.shape).astype(dtype)
    if content != "ties":
        dY[rng.random(dY.shape) < 0.2] = float(content)
    with np.errstate(invalid="ignore"):
        assert_same_bits(
            CPU.max_pool2d_backward(dY, argmax, X.shape, window),
            REFERENCE.max_pool2d_backward(dY, argmax, X.shape, window),
        )
        assert_close(CPU.avg_pool2d_forward(X, window), REFERENCE.avg_pool2d_forward(X, window))
        assert_close(
            CPU.avg_pool2d_backward(dY, X.shape, window),
            REFERENCE.avg_pool2d_backward(dY, X.shape, window),
        )


# ---------------------------------------------------------------------------- passes over elements

SHAPES = [(1, 1), (7, 3), (130, 5), (1001, 6), (64, 33), (2, 300)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@shapes
@dtypes
@pytest.mark.parametrize("name", ["ReLU", "Tanh", "Sigmoid", "ELU", "Identity"])
def test_activations(
    shape: tuple[int, int], dtype: str, name: str, count: int, small_blocks: None
) -> None:
    act = getattr(activations, name)()
    fresh, b, dY = normal(shape, 1, dtype) * 3, normal(shape[1:], 2, dtype), normal(shape, 3, dtype)
    Z = fresh.copy()
    Y = CPU.bias_activation(Z, b, act)
    wide = fresh.astype(float) + b
    assert_close(Z, wide)
    assert_close(Y, act.fn(wide))
    assert_close(CPU.bias_activation(Z.copy(), None, act), act.fn(wide))
    assert_close(CPU.activation_backward(dY, Z, act), dY * act.grad(wide))
    assert_close(CPU.relu_backward(dY, Y), dY * (Y > 0))
    assert np.shares_memory(Y, Z) == (name == "Identity")


@pytest.mark.parametrize("name", ["ReLU", "Tanh", "Sigmoid"])
@dtypes
def test_activations_at_the_ends(name: str, dtype: str, count: int) -> None:
    act = getattr(activations, name)()
    far = np.finfo(dtype).max
    Z = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, far, -far, -50.0, 50.0, -87.0]], dtype)
    one = np.ones_like(Z)
    np.testing.assert_allclose(
        CPU.bias_activation(Z.copy(), None, act), act.fn(Z), rtol=1e-6, atol=1e-37
    )
    np.testing.assert_allclose(
        CPU.activation_backward(one, Z, act), act.grad(Z), rtol=1e-6, atol=1e-37
    )


@shapes
@dtypes
def test_softmax(shape: tuple[int, int], dtype: str, count: int, small_blocks: None) -> None:
    Z, dY = normal(shape, 1, dtype) * 9, normal(shape, 2, dtype)
    Z[: len(Z) // 2] *= 20  # the exponentials of some blocks overflow
    labels = np.random.default_rng(3).integers(0, shape[1], shape[0])
    wide, wide_dY = Z.astype(float), dY.astype(float)
    Y = CPU.softmax_forward(Z)
    assert_close(Y, REFERENCE.softmax_forward(wide))
    assert_close(CPU.softmax_backward(dY, Y), REFERENCE.softmax_backward(wide_dY, Y.astype(float)))
    losses, probs = CPU.softmax_cross_entropy_forward(Z, labels)
    gold = REFERENCE.softmax_cross_entropy_forward(wide, labels)
    assert_close(losses, gold[0])
    assert_close(probs, gold[1])
    assert_same_bits(
        CPU.softmax_cross_entropy_backward(probs, labels, 0.25),
        REFERENCE.softmax_cross_entropy_backward(probs, labels, 0.25),
    )


def test_small_losses_of_large_scores_keep_their_digits(small_blocks: None) -> None:
    Z = normal((9, 7), 1) + np.linspace(5, 20, 9, dtype=np.float32)[:, None]
    Z[:, 3] += 8
    labels = np.full(9, 3)
    losses, _ = CPU.softmax_cross_entropy_forward(Z, labels)
    gold, _ = REFERENCE.softmax_cross_entropy_forward(Z.astype(float), labels)
    np.testing.assert_allclose(losses, gold, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("few", [False, True])
def test_a_label_out_of_range_is_nan(label: int, few: bool, request: pytest.FixtureRequest) -> None:
    if not few:
        request.getfixturevalue("small_blocks")
    Z, labels = normal((9, 5), 1), np.zeros(9, np.int64)
    labels[4] = label
    losses, probs = CPU.softmax_cross_entropy_forward(Z, labels)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(9) == 4)
    assert_same_bits(CPU.softmax_cross_entropy_backward(probs, labels, 1.0)[4], np.array(probs[4]))


@shapes
@dtypes
@pytest.mark.parametrize("far", [0.0, 300.0])
def test_normalization(
    shape: tuple[int, int],
    dtype: str,
    far: float,
    count: int,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (shape[0] + count) % 2:
        monkeypatch.setattr(_blas, "functions", lambda dtype: None)  # by NumPy alone
    X, dY = normal(shape, 1, dtype) + np.dtype(dtype).type(far), normal(shape, 2, dtype)
    scaler, intercept = normal(shape[1:], 3, dtype), normal(shape[1:], 4, dtype)
    wide = [a.astype(float) for a in (X, scaler, intercept)]
    factor = 1 + far  # what is taken off loses that much
    forward = CPU.batchnorm_forward(X, scaler, intercept, 1e-2)
    for actual, gold in zip(forward, REFERENCE.batchnorm_forward(*wide, 1e-2), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, gold, factor=factor)
    _, X_hat, _, _, inv_std = forward
    backward = CPU.batchnorm_backward(dY, X_hat, scaler, inv_std)
    exact = [a.astype(float) for a in (dY, X_hat, scaler, inv_std)]
    for actual, gold in zip(backward, REFERENCE.batchnorm_backward(*exact), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, gold, factor=5)

    X_hat, inv_std = CPU.standardize_forward(X, (1,), 1e-2)
    gold_hat, gold_std = REFERENCE.standardize_forward(X.astype(float), (1,), 1e-2)
    assert_close(X_hat, gold_hat, factor=factor)
    assert_close(inv_std, gold_std, factor=factor)
    assert_close(
        CPU.standardize_backward(dY, X_hat, inv_std, (1,)),
        REFERENCE.standardize_backward(
            dY.astype(float), X_hat.astype(float), inv_std.astype(float), (1,)
        ),
        factor=5,
    )

    Y, X_hat, inv_std = CPU.layernorm_forward(X, *rows_of_two(shape, dtype), 1e-2)
    gold = REFERENCE.layernorm_forward(X.astype(float), *rows_of_two(shape, "float64"), 1e-2)
    for actual, expected in zip((Y, X_hat, inv_std), gold, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, factor=3 * factor)
    gain = rows_of_two(shape, dtype)[0]
    exact = [a.astype(float) for a in (dY, X_hat, gain, inv_std)]
    backward = CPU.layernorm_backward(dY, X_hat, gain, inv_std)
    for actual, expected in zip(backward, REFERENCE.layernorm_backward(*exact), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, factor=5)


def rows_of_two(shape: tuple[int, int], dtype: str) -> list[np.ndarray]:
    """A scaler and an intercept, of numbers that float32 holds exactly."""
    rng = np.random.default_rng(7)
    return [(rng.integers(-8, 8, shape[1]) / 8).astype(dtype) for _ in range(2)]


def test_the_buffer_size_of_the_user_stays(count: int) -> None:
    X, ones = normal((600, 700), 1), np.ones(700, np.float32)
    before = np.setbufsize(4096)
    try:
        CPU.batchnorm_forward(X, ones, ones, 1e-3)
        with np.errstate(all="raise"), pytest.raises(FloatingPointError):
            CPU.layernorm_forward(X + np.float32(3e38), ones, ones, 1e-3)
        assert np.getbufsize() == 4096
    finally:
        np.setbufsize(before)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (2,), (0, 1, 2), (1,)])
def test_standardizing_any_axes(axes: tuple[int, ...], count: int, small_blocks: None) -> None:
    X = normal((6, 5, 7), 1)
    X_hat, inv_std = CPU.standardize_forward(X, axes, 1e-3)
    gold = REFERENCE.standardize_forward(X.astype(float), axes, 1e-3)
    assert_close(X_hat, gold[0])
    assert_close(inv_std, gold[1])


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (1001,), (2, 3, 50)], ids=str)
@dtypes
@pytest.mark.parametrize(
    "rule", ["sgd", "adagrad", "rmsprop", "adam", "sgd of NumPy", "adam of NumPy"]
)
def test_updates(
    shape: tuple[int, ...],
    dtype: str,
    rule: str,
    count: int,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule, _, by_numpy = rule.partition(" of ")
    if by_numpy:
        monkeypatch.setattr(_blas, "functions", lambda dtype: None)
    settings = {
        "sgd": (0.1, 0.9),
        "adagrad": (0.1, 1e-7),
        "rmsprop": (0.1, 0.9, 1e-7),
        "adam": (0.1, 0.9, 0.99, 1e-7, 3),
    }[rule]
    grad = normal(shape, 2, dtype)
    arrays = [normal(shape, 1, dtype).copy()]
    arrays += [np.asarray(np.abs(normal(shape, k, dtype))) for k in range(3, 4 + (rule == "adam"))]
    gold = [a.astype(float) for a in arrays]
    for _ in range(2):
        getattr(CPU, f"{rule}_update")(arrays[0], grad, *arrays[1:], *settings)
        getattr(REFERENCE, f"{rule}_update")(gold[0], grad.astype(float), *gold[1:], *settings)
    for actual, expected in zip(arrays, gold, strict=True):
        assert_close(actual, expected)


@pytest.mark.skipif(_blas.functions(np.dtype("float32")) is None, reason="a BLAS without axpby")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_multiples_by_blas(dtype: str, count: int, small_blocks: None) -> None:
    x, y = normal((40_001,), 1, dtype), normal((40_001,), 2, dtype)
    total = y.copy()
    blas = _blas.serves((total,), (0.5,))
    assert blas is not None
    at_x, at_total = _blas.address(x), _blas.address(total)
    blas.axpy(x.size, -0.25, at_x, 1, at_total, 1)
    assert_close(total, y.astype(float) - 0.25 * x)
    blas.axpby(x.size, 3.0, at_x, 1, 0.5, at_total, 1)
    assert_close(total, 3.0 * x.astype(float) + 0.5 * (y.astype(float) - 0.25 * x))
    assert _blas.serves((total, y), (0.5,)) is None  # y is read-only: NumPy will say so
    assert _blas.serves((total.astype("float16"),), (0.5,)) is None
    assert _blas.serves((total,), (0.5, 1e-50)) is None or dtype == "float64"


@pytest.mark.parametrize("rows", [1, 2, 5, 31, 1000, 70_001])
@pytest.mark.parametrize("width", [1, 3, 4096])
def test_shares_and_blocks_are_all_rows(
    rows: int, width: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in (1, _blocks._SHARE):
        monkeypatch.setattr(_blocks, "_SHARE", share)
        parts = _blocks.row_shares(rows, width, 3)
        lengths = _blocks.block_lengths(parts, 48)
        found = [i for k, part in enumerate(parts) for i in _blocks.blocks(part, lengths[k])]
        assert [b.start for b in found] == [0, *(b.stop for b in found[:-1])]
        assert found[-1].stop == rows and all(b.start < b.stop for b in found)
        assert len(parts) <= count
        sizes = [part.stop - part.start for part in parts]
        assert sizes[0] == max(sizes) < 0.8 * rows or len(parts) == 1 or rows < 10
        assert all(step < 2.5 * 48 for step in lengths)


def test_nothing_times_nan_is_nan(count: int, small_blocks: None) -> None:
    param, grad, velocity = (np.ones(100, np.float32) for _ in range(3))
    grad[7], velocity[9] = np.nan, np.nan
    CPU.sgd_update(param, grad, velocity, 0.0, 0.0)
    assert np.flatnonzero(np.isnan(param)).tolist() == [7, 9]
