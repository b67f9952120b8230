"""Which tile a product goes by, in which precision, and how large its error may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.errors import BackendError, ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Sequential
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._product import product
from tests.conftest import Backend
from tests.kernels.test_engine import WINDOW, launched, numbers

pytestmark = pytest.mark.emulated


def error(got: Any, want: np.ndarray) -> float:
    """Relative, in the Frobenius norm."""
    got = np.asarray(got.get(), dtype=np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def dtype_of(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def old_device(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A GPU of compute capability 7.5."""
    monkeypatch.setattr(emulated.xp.cuda.Device, "compute_capability", "75")
    return emulated


@pytest.mark.parametrize(
    ("dtype", "precision", "kernel", "least", "most"),
    [
        ("float32", "fp32", "<float, float, Wide>", 0.0, 1e-6),
        ("float32", "tf32", "<float, float, Tensor, Terms, Lines>", 1e-5, 1e-3),
        ("float16", "fp32", "<__half, float, Tensor, Terms, Lines>", 1e-5, 1e-3),
        ("bfloat16", "fp32", "<__nv_bfloat16, float, Tensor, Terms, Lines>", 1e-4, 4e-3),
    ],
)
def test_errors_are_as_stated(
    emulated: Backend, dtype: str, precision: str, kernel: str, least: float, most: float
) -> None:
    """Of what is computed from the stored factors; a half type's is its own rounding."""
    from gpulayers.cuda.precision import use_precision

    a, b = (numbers(*shape).astype(dtype_of(dtype)) for shape in ((24, 72), (72, 40)))
    with use_precision(precision), emulated.count() as events:
        got = product(emulated.asarray(a), emulated.asarray(b))
    assert f"gemm{kernel}" in launched(events)
    assert least <= error(got, a.astype("f8") @ b.astype("f8")) < most


def test_a_convolution_in_tf32(emulated: Backend) -> None:
    """The convolution and both gradients go by tensor cores, each within 1e-3."""
    from gpulayers.cuda.precision import use_precision

    x, w, dz = numbers(2, 7, 6, 8), numbers(3, 2, 8, 24), numbers(2, *WINDOW.output_size(7, 6), 24)
    with use_precision("tf32"), emulated.count() as events:
        engine = kernels_for(emulated.asarray(x))
        got = (
            engine.conv2d_forward(emulated.asarray(x), emulated.asarray(w), None, WINDOW),
            engine.conv2d_input_grad(emulated.asarray(dz), emulated.asarray(w), x.shape, WINDOW),
            engine.conv2d_weight_grad(emulated.asarray(x), emulated.asarray(dz), WINDOW),
        )
    assert sum("Tensor" in name for name in launched(events)) == 3
    from gpulayers.ops.reference import Reference

    x, w, dz = (v.astype("f8") for v in (x, w, dz))
    reference = Reference()
    want = (
        reference.conv2d_forward(x, w, None, WINDOW),
        reference.conv2d_input_grad(dz, w, x.shape, WINDOW),
        reference.conv2d_weight_grad(x, dz, WINDOW),
    )
    assert all(error(a, b) < 1e-3 for a, b in zip(got, want, strict=True))


def test_no_numbers_and_infinite_ones_pass_through_tensor_cores(emulated: Backend) -> None:
    from gpulayers.cuda.precision import use_precision

    a, b = numbers(20, 24), np.abs(numbers(24, 20, seed=1)) + 0.1
    a[3, 5], a[7, 23], b[2, 19] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        want = a.astype("f8") @ b.astype("f8")
    with use_precision("tf32"):
        got = product(emulated.asarray(a), emulated.asarray(b)).get()
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2)


def test_factors_at_odd_addresses_are_copied(emulated: Backend) -> None:
    """A large tile reads 16 bytes at a time; a view may begin anywhere."""
    from gpulayers.cuda.precision import use_precision

    a, b = numbers(24, 40), numbers(40, 24, seed=1)
    flat = emulated.asarray(np.concatenate([np.zeros(3, "f4"), b.reshape(-1)]))
    with use_precision("tf32"), emulated.count() as events:
        got = product(emulated.asarray(a), flat[3:].reshape(40, 24))
    assert launched(events) >= {"gemm<float, float, Tensor, Terms, Lines>"}
    assert error(got, a.astype("f8") @ b.astype("f8")) < 1e-3


# ------------------------------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    ("size", "shared", "runs", "fp32", "tf32"),
    [
        ((50000, 16, 100), False, True, "_narrow", "_tensor_tall"),
        ((50000, 16, 100), False, False, "_narrow", "_narrow"),
        ((500, 16, 100), False, True, "_narrow", "_tensor"),
        ((50000, 32, 288), False, True, "_tall", "_tensor_tall"),
        ((50000, 128, 576), False, True, "_large", "_tensor_large"),
        ((50000, 128, 576), False, False, "", ""),
        ((2000, 128, 576), False, True, "", "_tensor"),
        ((577, 128, 50000), True, True, "_large", "_tensor_large"),
        ((577, 128, 500), True, True, "", "_tensor"),
        ((289, 32, 50000), True, True, "", "_tensor_tall"),
        ((289, 32, 500), True, True, "", "_tensor"),
        ((2000, 32, 288), False, True, "", "_tensor"),
        ((50000, 36, 288), False, True, "_tall", "_tensor"),
    ],
)
def test_the_rule(
    emulated: Backend, size: tuple[int, int, int], shared: bool, runs: bool, fp32: str, tf32: str
) -> None:
    from gpulayers.cuda.precision import use_precision
    from gpulayers.cuda.product import candidates, tile_of

    dtype = np.dtype("float32")
    assert tile_of("gemm_nn", dtype, *size, shared, runs) == fp32
    found = candidates("gemm_nn", dtype, *size, shared, runs)
    assert found[0].kernel == f"gemm{fp32}"
    assert not any("tensor" in c.kernel for c in found), "nobody asked for TF32"
    assert runs == any(c.kernel == "gemm_large" for c in found)
    assert all(c.span % 8 == 0 for c in found if c.parts > 1), "parts begin with a run"
    assert all((c.parts - 1) * c.span < size[2] <= c.parts * c.span for c in found)
    with use_precision("tf32"):
        assert tile_of("gemm_nn", dtype, *size, shared, runs) == tf32
        assert {c.kernel for c in candidates("gemm_nn", dtype, *size, shared, runs)} > {
            c.kernel for c in found
        } or not runs


def test_half_types_without_tensor_cores(old_device: Backend) -> None:
    a, b = (numbers(16, 16, seed=s).astype("f2") for s in range(2))
    with old_device.count() as events:
        got = product(old_device.asarray(a), old_device.asarray(b))
    assert launched(events) == {"gemm<__half, float, Wide>"}
    assert error(got, a.astype("f8") @ b.astype("f8")) < 1e-3


def test_tf32_without_tensor_cores_is_refused(old_device: Backend) -> None:
    from gpulayers.cuda.precision import use_precision

    x = old_device.asarray(numbers(16, 16))
    with use_precision("tf32"), pytest.raises(BackendError, match=r"capability 8\.0.*has 7\.5"):
        product(x, x)
    with pytest.raises(BackendError, match=r"Sequential.compile: precision 'tf32' needs a GPU"):
        network().compile((4, 8, 8, 8), precision="tf32")


def test_an_unknown_precision_is_refused(emulated: Backend) -> None:
    from gpulayers.cuda.precision import use_precision

    with pytest.raises(ParameterError, match="unknown precision 'tf23', expected one of fp32"):
        use_precision("tf23")


# -------------------------------------------------------------------------------------------- plans


def network() -> Sequential:
    layers = [
        Conv2D(24, (3, 3), pad=1, act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Flatten(),
        FullyConnected(24, act_fn="ReLU"),
        FullyConnected(5),
    ]
    return Sequential(layers, "SGD(lr=0.1)")


def losses(backend: Backend, precision: str) -> tuple[list[float], set[str], str]:
    """Of four steps, the first of them launched, the others replayed; the kernels, the plan."""
    import gpulayers

    gpulayers.random.seed(0)
    plan = network().compile((6, 8, 8, 8), precision=precision)
    x, labels = backend.asarray(numbers(6, 8, 8, 8)), backend.asarray(np.arange(6) % 5)
    with backend.count() as events:
        found = [float(plan.step(x, labels)) for _ in range(4)]
    return found, launched(events), plan.describe()


def test_a_plan_in_tf32(emulated: Backend) -> None:
    """The losses are those of float32 within TF32's error, by other kernels."""
    exact, kernels, text = losses(emulated, "fp32")
    assert not any("Tensor" in name for name in kernels)
    assert "TF32" not in text
    rounded, kernels, text = losses(emulated, "tf32")
    assert {name.split("<")[0] for name in kernels if "Tensor" in name} == {
        *("conv2d_forward", "conv2d_backward", "gemm", "dense_backward")
    }
    assert text.endswith("products in TF32")
    assert rounded != exact
    np.testing.assert_allclose(rounded, exact, rtol=2e-3)
    assert rounded[-1] < rounded[0]


def test_tf32_is_refused_on_the_cpu(numpy_backend: Backend) -> None:
    with pytest.raises(ParameterError, match="'tf32' is that of a GPU's tensor cores"):
        network().compile((4, 8, 8, 8), precision="tf32")
