"""The launchers of normalisation, embedding and what is fused, against the reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops._kernels import kernels_for
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window
from tests.conftest import Backend
from tests.support import fake_cupy
from tests.support.compare import assert_close, assert_same_bits

REFERENCE = Reference()
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
EPS = 1e-5


def numbers(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def both(device: Backend, operation: str, *args: Any, factor: float = 3.0) -> list[np.ndarray]:
    """The engine's results, on the host, after they were compared."""
    on_device = [device.asarray(a.copy()) if isinstance(a, np.ndarray) else a for a in args]
    engine = kernels_for(*[a for a in on_device if isinstance(a, device.xp.ndarray)])
    assert type(engine).__name__ == "Cuda"
    got = getattr(engine, operation)(*on_device)
    floats = [isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in args]
    wide = [a.astype("f8") if f else a for a, f in zip(args, floats, strict=True)]
    want = getattr(REFERENCE, operation)(*wide)
    if not isinstance(got, tuple):
        got, want = (got,), (want,)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert_close(g, w, factor=factor)
    for given, kept in zip(on_device, args, strict=True):
        if isinstance(kept, np.ndarray):
            assert_same_bits(given, kept)
    return [device.asnumpy(g) for g in got]


#: a batch of one, less than a warp, columns in two blocks, many spans, a column alone
COLUMNS = [(1, 3), (7, 2), (300, 35), (5000, 3), (4099, 1)]


@DTYPES
@pytest.mark.parametrize("shape", COLUMNS, ids=str)
def test_batch_normalisation(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    x, dy = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    scaler, intercept = (numbers(shape[1], dtype=dtype, seed=s) for s in (2, 3))
    results = both(device, "batchnorm_forward", x, scaler, intercept, EPS)
    assert {r.dtype for r in results} == {np.dtype(dtype)}
    # one row, or two alike: 1 / sqrt(eps) magnifies what is left of the difference
    results = both(device, "batchnorm_backward", dy, results[1], scaler, results[4], factor=1e3)
    assert {r.dtype for r in results} == {np.dtype(dtype)}


def test_batch_normalisation_far_from_zero(device: Backend) -> None:
    """float32 holds x to 5e-4 only, but its mean of 1e4 costs nothing more."""
    x = numbers(999, 5) + np.float32(1e4)
    one, none = np.ones(5, "f4"), np.zeros(5, "f4")
    y = both(device, "batchnorm_forward", x, one, none, EPS)[0]
    exact = x.astype("f8")
    exact = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + EPS)
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_batch_normalisation_of_nothing(device: Backend, shape: tuple[int, int]) -> None:
    empty, ch = device.asarray(np.empty(shape, "f4")), device.asarray(np.ones(shape[1], "f4"))
    engine = kernels_for(empty)
    if shape[0]:
        assert [a.shape for a in engine.batchnorm_forward(empty, ch, ch, EPS)] == [
            *[shape] * 2,
            *[(0,)] * 3,
        ]
    dx, *grads = engine.batchnorm_backward(empty, empty, ch, ch)
    assert dx.shape == shape
    for grad in grads:
        assert_close(grad, np.zeros(shape[1]))


#: last axes, all axes, groups; the others fall to the reference
AXES = [
    ((9, 35), (1,)),
    ((3, 1100), (1,)),
    ((2, 3, 4, 5), (2, 3)),
    ((4, 5), (0, 1)),
    ((2, 6, 3, 4), (1, 3)),
    ((2, 300, 2, 4), (1, 3)),
    ((6, 4), (0,)),
    ((2, 3, 4), (0, 2)),
    ((0, 4), (1,)),
]


@DTYPES
@pytest.mark.parametrize(("shape", "axes"), AXES, ids=str)
def test_standardisation(
    device: Backend, shape: tuple[int, ...], axes: tuple[int, ...], dtype: str
) -> None:
    x, dy = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    x_hat, inv_std = both(device, "standardize_forward", x, axes, EPS)
    assert inv_std.dtype == ("float32" if dtype == "float16" else dtype)
    both(device, "standardize_backward", dy, x_hat, inv_std, axes)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (9, 35), (3, 1100), (5000, 3), (0, 4)], ids=str)
def test_layer_normalisation(device: Backend, shape: tuple[int, int], dtype: str) -> None:
    x, dy = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    scaler, intercept = (numbers(shape[1], dtype=dtype, seed=s) for s in (2, 3))
    _, x_hat, inv_std = both(device, "layernorm_forward", x, scaler, intercept, 0.1)
    both(device, "layernorm_backward", dy, x_hat, scaler, inv_std)


@DTYPES
@pytest.mark.parametrize("n", [0, 1, 200])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (40, 35), (7, 0)])
@pytest.mark.parametrize("compared", [8192, 3])
def test_embedding(
    device: Backend,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    count: int,
    width: int,
    dtype: str,
    compared: int,
) -> None:
    """With 3, the sums of more rows are left to the reference."""
    from gpulayers.cuda import embedding

    monkeypatch.setattr(embedding, "_MOST_COMPARED", compared)
    W, dy = numbers(count, width, dtype=dtype), numbers(n, width, dtype=dtype)
    ids = np.random.default_rng(n).integers(0, count, 2 * n)[::2]
    both(device, "embedding_forward", W, ids)
    both(device, "embedding_backward", dy, ids, count)


def test_sums_of_many_rows_are_left_to_the_reference(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulayers.cuda import embedding

    monkeypatch.setattr(embedding, "_MOST_COMPARED", 3)
    dy, ids = emulated.asarray(numbers(4, 2)), emulated.asarray(np.zeros(4, np.int64))
    for n, kernels in ((3, 1), (4, 0)):
        with emulated.count() as events:
            kernels_for(dy).embedding_backward(dy[:n], ids[:n], 5)
        found = [event for event in events if event.startswith("kernel:embedding_backward")]
        assert len(found) == kernels


def test_embedding_takes_ids_that_lie_apart(device: Backend) -> None:
    """A vector's `reshape` leaves them so."""
    ids = np.array([3, 0, 1, 0, 3, 0, 2, 0])
    W, dy = device.asarray(numbers(4, 5)), device.asarray(numbers(4, 5, seed=1))
    apart = device.asarray(ids)[::2]
    engine = kernels_for(W, apart)
    assert_same_bits(engine.embedding_forward(W, apart), numbers(4, 5)[ids[::2]])
    want = REFERENCE.embedding_backward(numbers(4, 5, seed=1), ids[::2], 4)
    assert_close(engine.embedding_backward(dy, apart, 4), want)


@DTYPES
@pytest.mark.parametrize("n", [2, 0])
def test_fused(device: Backend, dtype: str, n: int) -> None:
    x, w, b = (numbers(*s, dtype=dtype) for s in ((n, 7), (7, 5), (5,)))
    both(device, "dense_forward", x, w, b, True)
    both(device, "dense_forward", x, w, b, False)
    dy, y = numbers(n, 5, dtype=dtype), np.maximum(numbers(n, 5, dtype=dtype, seed=1), 0)
    both(device, "relu_backward", dy, y)
    image, kernel = numbers(n, 6, 6, 3, dtype=dtype), numbers(3, 3, 3, 5, dtype=dtype)
    both(device, "conv2d_relu_forward", image, kernel, b, Window((3, 3)))
    both(device, "conv2d_relu_forward", image, kernel, None, Window((3, 3)))


def test_gradient_of_an_embedding_of_more_columns_than_65535_warps(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's limit of blocks along y holds for the places of ids alone."""
    dy = emulated.asarray(np.ones((1, 65535 * 32 + 1), "f4"))
    # the first and the last among them
    monkeypatch.setattr(fake_cupy.state, "launch_options", {"only_blocks": 4})
    dw = kernels_for(dy).embedding_backward(dy, emulated.asarray(np.zeros(1, np.int64)), 1)
    assert (emulated.asnumpy(dw[0, [0, -1]]) == 1).all()


def test_64_bit_indices_once_any_array_needs_them(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of 100 elements."""
    from gpulayers.cuda import table

    monkeypatch.setattr(table, "INT32_LIMIT", 100)
    x, s, b = (emulated.asarray(numbers(*shape)) for shape in ((12, 9), (9,), (9,)))
    engine = kernels_for(x)
    with emulated.count() as events:
        x_hat, inv_std = engine.batchnorm_forward(x, s, b, EPS)[1::3]
        engine.batchnorm_backward(x, x_hat, s, inv_std)
        x_hat, inv_std = engine.standardize_forward(x, (1,), EPS)
        engine.standardize_backward(x, x_hat, inv_std, (1,))
        few = emulated.asarray(np.zeros(2, np.int64))
        engine.embedding_forward(x, few)  # the table is large, the result is not
        engine.embedding_backward(x[:2].copy(), few, 12)
        engine.embedding_backward(x, emulated.asarray(np.zeros(12, np.int64)), 2)
        engine.relu_backward(x, x_hat)
    names = {event.removeprefix("kernel:") for event in events if event.startswith("kernel:")}
    assert len(names) == 10  # products and convolutions have 64-bit addresses always
    for name in names:
        assert "long long" in name, name


def test_rows_longer_than_32_bits_are_left_to_the_reference(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of a row is an int in the kernels."""
    from gpulayers.cuda import table

    monkeypatch.setattr(table, "INT32_LIMIT", 8)
    x = emulated.asarray(numbers(2, 9))
    with emulated.count() as events:
        kernels_for(x).standardize_forward(x, (1,), EPS)
    assert not [event for event in events if event.startswith("kernel:standardize")]
