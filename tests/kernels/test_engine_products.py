"""Products and what is made of them: our own kernels and cuBLAS, in the engine."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda.fusible import RELU
from gpulayers.cuda.table_tiles import TILES
from gpulayers.errors import BackendError
from gpulayers.ops import use_engine
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._product import product
from gpulayers.ops.window import Window
from tests.conftest import Backend
from tests.kernels.test_engine import POINT, WINDOW, both, launched, numbers
from tests.support.compare import assert_close, assert_same_bits


@pytest.mark.emulated
def test_a_convolution_is_one_launch(emulated: Backend) -> None:
    x, w, b = (emulated.asarray(numbers(*s)) for s in ((2, 7, 6, 4), (3, 2, 4, 5), (5,)))
    engine = kernels_for(x)
    with emulated.count() as events, emulated.forbid("sync", "h2d", "d2h"):
        z = engine.conv2d_relu_forward(x, w, b, WINDOW)
        engine.conv2d_input_grad(z, w, x.shape, WINDOW)
        engine.conv2d_param_grads(x, z, WINDOW)
    assert events["launch"] == 3
    assert launched(events) == {
        f"conv2d_{name}<float, float, Narrow>" for name in ("forward", "input_grad", "weight_grad")
    }


@pytest.mark.emulated
def test_with_cublas_a_convolution_goes_by_columns(emulated: Backend) -> None:
    x, w, b = (emulated.asarray(numbers(*s)) for s in ((2, 7, 6, 4), (3, 2, 4, 5), (5,)))
    point = emulated.asarray(numbers(1, 1, 4, 5))
    with use_engine("cublas"), emulated.count() as events, emulated.forbid("sync", "h2d", "d2h"):
        engine = kernels_for(x)
        z = engine.conv2d_forward(x, w, b, WINDOW)
        assert (events["launch"], events["kernel:im2col<float, int, 4>"]) == (3, 1)
        assert events["kernel:bias_add<float, float, int>"] == 1
        engine.conv2d_input_grad(z, w, x.shape, WINDOW)
        assert (events["launch"], events["kernel:col2im_gather<float, float, int, 4>"]) == (5, 1)
        z = engine.conv2d_forward(x, point, None, POINT)
        assert events["launch"] == 6, "a 1x1 window needs no im2col"
        engine.conv2d_input_grad(z, point, x.shape, POINT)
        assert events["launch"] == 7, "nor col2im"


@pytest.mark.parametrize("engine", ["raw", "cublas"])
def test_what_a_planned_step_computes(device: Backend, engine: str) -> None:
    x, w, b = numbers(2, 7, 6, 3), numbers(3, 2, 3, 5), numbers(5)
    dz = numbers(2, *WINDOW.output_size(7, 6), 5)
    with use_engine(engine):
        both(device, "conv2d_relu_forward", x, w, b, WINDOW, factor=3)
        both(device, "conv2d_relu_forward", x, w, None, WINDOW, factor=3)
        both(device, "conv2d_param_grads", x, dz, WINDOW, factor=3)
        both(device, "conv2d_weight_grad", x, dz, WINDOW, factor=3)
        for relu in (False, True):
            both(device, "dense_forward", numbers(7, 20), numbers(20, 5), b, relu, factor=3)


# --------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("size", [(3, 70, 5), (1, 1, 1), (2, 3, 400), (0, 3, 2), (3, 0, 2)])
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt", "apart"])
def test_product(device: Backend, size: tuple[int, int, int], layout: str) -> None:
    rows, cols, terms = size
    a, b = numbers(rows, terms), numbers(terms, cols, seed=1)
    want = a.astype("f8") @ b

    def lying(values: np.ndarray, how: str) -> Any:
        if layout == "apart":  # some columns of a wider matrix: rows of which lie apart
            wide = np.full((values.shape[0], values.shape[1] + 3), np.nan, "f4")
            wide[:, 2:-1] = values
            return device.asarray(wide)[:, 2:-1]
        return device.asarray(values.T.copy()).T if how == "t" else device.asarray(values)

    got = product(lying(a, layout[0]), lying(b, layout[1]))
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert_close(got, want, factor=3)


def test_product_without_terms(device: Backend) -> None:
    empty = device.asarray(np.zeros((3, 0), "f4"))
    assert_close(product(empty, empty.T), np.zeros((3, 3)))


def test_a_long_sum_is_shared_and_repeatable(emulated: Backend) -> None:
    a, b = (emulated.asarray(numbers(3000, 4, seed=s)) for s in range(2))
    with emulated.count() as events:
        first = product(a.T, b)
    assert events["kernel:sum_parts<float, float, int>"] == 1
    assert_close(first, emulated.asnumpy(a).astype("f8").T @ emulated.asnumpy(b), factor=3)
    assert_same_bits(product(a.T, b), emulated.asnumpy(first))


@pytest.mark.parametrize("transposed", [False, True])
def test_more_columns_than_a_grid_reaches(
    device: Backend, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulayers.cuda import product as subject

    monkeypatch.setattr(subject, "REACH", 20)
    a, b, bias, gate = numbers(3, 5), numbers(5, 47), numbers(47), numbers(4, 47, seed=2)
    got = subject.gemm(
        *(device.asarray(a), device.asarray(b.T.copy() if transposed else b), False, transposed),
        *(device.asarray(bias), RELU, device.asarray(gate), True),
    )
    want = np.vstack([a, np.ones((1, 5))]).astype("f8") @ b + bias
    assert_close(got, np.where(gate > 0, np.maximum(want, 0), 0), factor=3)


def test_a_grid_has_room_for_them(emulated: Backend) -> None:
    """65535 blocks along y, by CUDA's limits, and no tile of a product is narrower."""
    from gpulayers.cuda import product as subject
    from gpulayers.cuda.compile import launch

    assert 65535 * min(tile.cols for tile in TILES.values()) >= subject.REACH
    a, flags = emulated.asarray(numbers(1, 1)), (-1, 0, 0, 0)
    args = (a, a, a, a, a, a, 1, 1, 1, 1, 1, 1, 1, 1, *flags)
    with pytest.raises(BackendError, match=r"kernel gemm: a grid .* 65535\) .*\(1, 65536\)"):
        launch("gemm", a.dtype, (1, 65536), args, "int32")


def test_more_channels_than_the_grid_of_a_convolution_reaches(
    device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go by im2col and a product, which is cut into columns."""
    from gpulayers.cuda import conv

    monkeypatch.setattr(conv, "REACH", 20)
    for channels, filters in ((2, 21), (21, 2)):
        x, w = numbers(1, 3, 3, channels), numbers(2, 2, channels, filters)
        window, dz = Window((2, 2)), numbers(1, 2, 2, filters, seed=3)
        assert not conv.serves("float32", x.shape, window, filters)
        both(device, "conv2d_forward", x, w, None, window)
        both(device, "conv2d_input_grad", dz, w, x.shape, window)
        both(device, "conv2d_weight_grad", x, dz, window)


def test_a_product_too_large_for_the_kernel_is_refused(
    device: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpulayers.cuda import table

    monkeypatch.setattr(table, "INT32_LIMIT", 10)
    a = device.asarray(numbers(11, 2))
    with pytest.raises(BackendError, match="gemm: a product of 11 x 2 x 11, each may be 10"):
        product(a, a.T)


def test_padding_beyond_32_bits_is_refused() -> None:
    from gpulayers.cuda.geometry import window_arguments

    wide = Window((3, 3), (1 << 30, 1), (1 << 30, 1 << 30, 0, 0))
    with pytest.raises(BackendError, match=r"windows over images of 5 x 5 with padding \(1073"):
        window_arguments((1, 5, 5, 1), wide)


def test_what_the_kernel_does_not_take_goes_by_columns(emulated: Backend) -> None:
    from gpulayers.cuda.conv import serves

    assert serves("float32", (1, 40000, 40000, 1), POINT, 1)
    assert not serves("float32", (2, 40000, 40000, 1), POINT, 1), "more than 2**31 pixels"
    assert serves("float16", (1, 4, 4, 1), POINT, 1)


@pytest.mark.parametrize("limits", [{"MOST_BLOCKS": (9, 9, 2)}, {"REACH": 3}])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_more_pairs_or_longer_sides_than_a_grid_has(
    emulated: Backend,
    limits: dict[str, Any],
    turned: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five pairs by grids of two, and pair by pair where a side is too long."""
    batched = importlib.import_module("gpulayers.cuda.batched")
    for name, value in limits.items():
        monkeypatch.setattr(batched, name, value)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 6, 4)), rng.standard_normal((5, 4, 7))
    A, B = (
        emulated.asarray((x.swapaxes(1, 2) if turn else x).astype(np.float32).copy())
        for x, turn in zip((a, b), turned, strict=True)
    )
    with emulated.count() as events:
        got = emulated.asnumpy(batched.batched_gemm(A, B, *turned))
    want = np.stack([x @ y for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    launches = sum(n for event, n in events.items() if event.startswith("kernel:"))
    assert launches == (3 if "MOST_BLOCKS" in limits else 5)
