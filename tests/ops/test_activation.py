"""Bias and activation against loops, for every built-in activation and one of a user's own."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.backend import xp_of
from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import activation
from tests.ops.conftest import Engine, eighths
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import activation as naive

BUILT_IN = {
    "identity": activations.Identity,
    "sigmoid": activations.Sigmoid,
    "relu": activations.ReLU,
    "leaky_relu": lambda: activations.LeakyReLU(alpha=0.3),
    "gelu_tanh": lambda: activations.GELU(approximate=True),
    "gelu_erf": lambda: activations.GELU(approximate=False),
    "tanh": activations.Tanh,
    "affine": lambda: activations.Affine(slope=2.0, intercept=-0.5),
    "elu": lambda: activations.ELU(alpha=0.7),
    "exponential": activations.Exponential,
    "selu": activations.SELU,
    "hard_sigmoid": activations.HardSigmoid,
    "softplus": activations.SoftPlus,
}
names = pytest.mark.parametrize("name", BUILT_IN)


class Cubic:
    """A user's own: no kernel, only array operations."""

    kernel = None

    def fn(self, z):
        return z * z * z

    def grad(self, x):
        return x * x * x.dtype.type(3)


def test_every_built_in_activation_is_in_the_table() -> None:
    classes = {getattr(activations, n) for n in activations.__all__} - {activations.ActivationBase}
    assert {type(make()) for make in BUILT_IN.values()} == classes


@names
def test_the_gold_has_the_kernel_named(name: str) -> None:
    assert BUILT_IN[name]().kernel[0] == name


def pre_activations(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Off the kinks by a sixteenth, so that every derivative exists."""
    return eighths(shape, seed, spread=32) + 1 / 16


@names
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 4, 33)], ids=str)
def test_forward_and_backward(engine: Engine, name: str, shape: tuple[int, ...], dtype: str):
    act, b = BUILT_IN[name](), eighths(shape[-1:], 1)
    product, dY = pre_activations(shape, 2), eighths(shape, 3)
    gold_Z = product + b
    Z, bias = engine.array(product, dtype), engine.array(b, dtype)
    Y = activation.bias_activation(Z, bias, act)
    assert_same_bits(Z, gold_Z.astype(dtype))  # eighths and sixteenths add without rounding
    assert_same_bits(bias, b.astype(dtype))
    assert Y.dtype == dtype
    assert_close(Y, naive.value(name, gold_Z))
    assert (Y is Z) == (name == "identity")

    dZ = engine.call(activation.activation_backward, engine.array(dY, dtype), Z, act)
    assert dZ.dtype == dtype
    assert_close(dZ, naive.backward(name, dY, gold_Z), factor=2)


@names
def test_without_bias(engine: Engine, name: str, dtype: str) -> None:
    values = pre_activations((3, 5), 4)
    Z = engine.array(values, dtype)
    Y = activation.bias_activation(Z, None, BUILT_IN[name]())
    assert_same_bits(Z, values.astype(dtype))
    assert_close(Y, naive.value(name, values))


@names
def test_at_the_kinks(engine: Engine, name: str) -> None:
    """Zero, minus zero and the corners of the hard sigmoid: one side's slope, and no NaN."""
    Z = np.array([[0.0, -0.0, 2.5, -2.5]])
    act = BUILT_IN[name]()
    assert_close(activation.bias_activation(engine.array(Z), None, act), naive.value(name, Z))
    slope = host(
        activation.activation_backward(engine.array(np.ones((1, 4))), engine.array(Z), act)
    )
    h = 1e-3
    left = naive.backward(name, np.ones((1, 4)), Z - h)
    right = naive.backward(name, np.ones((1, 4)), Z + h)
    low, high = np.minimum(left, right) - 0.01, np.maximum(left, right) + 0.01
    assert ((low <= slope) & (slope <= high)).all()
    # NumPy's formulas and the CUDA code agree on which side
    np.testing.assert_allclose(slope, act.grad(Z), rtol=1e-12, atol=1e-12)


@names
def test_far_from_zero_nothing_overflows(engine: Engine, name: str, dtype: str) -> None:
    if name == "exponential":
        pytest.skip("exp of a large number is infinite")
    Z = np.array([[-60.0, -30.0, 30.0, 60.0], [-1000.0, -200.0, 200.0, 1000.0]])
    act, ones = BUILT_IN[name](), np.ones(Z.shape)
    Y = activation.bias_activation(engine.array(Z, dtype), None, act)
    assert_close(Y, _saturated(name, Z)[0])
    dZ = activation.activation_backward(engine.array(ones, dtype), engine.array(Z, dtype), act)
    assert_close(dZ, _saturated(name, Z)[1])


def _saturated(name: str, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gold at large |z|, where `math.exp` of the loops would overflow: the limits."""
    low, high = Z < 0, Z > 0
    clipped = np.clip(Z, -60, 60)
    Y, dZ = naive.value(name, clipped), naive.backward(name, np.ones(Z.shape), clipped)
    grows_up = name not in ("sigmoid", "tanh", "hard_sigmoid")
    if grows_up:
        Y[high] = (naive.value(name, clipped)[high] / clipped[high]) * Z[high]
        if name == "affine":
            Y[high] = 2.0 * Z[high] - 0.5
    if name in ("identity", "leaky_relu", "affine"):
        slope, shift = {"identity": (1, 0), "leaky_relu": (0.3, 0), "affine": (2, -0.5)}[name]
        Y[low] = slope * Z[low] + shift
    return Y, dZ


@names
def test_nan_stays_nan(engine: Engine, name: str) -> None:
    Z = np.array([[np.nan, 1.0]])
    Y = host(activation.bias_activation(engine.array(Z), None, BUILT_IN[name]()))
    assert np.isnan(Y[0, 0])
    assert not np.isnan(Y[0, 1])


def test_an_activation_of_a_users_own(engine: Engine, dtype: str) -> None:
    Z, dY = eighths((4, 3), 5), eighths((4, 3), 6)
    Y = activation.bias_activation(engine.array(Z, dtype), None, Cubic())
    assert xp_of(Y) is engine.xp
    assert_close(Y, Z**3)
    dZ = engine.call(
        activation.activation_backward, engine.array(dY, dtype), engine.array(Z, dtype), Cubic()
    )
    assert dZ.dtype == dtype
    assert_close(dZ, dY * 3 * Z**2)


@names
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, name: str, layout: str) -> None:
    act = BUILT_IN[name]()
    Z, dY, b = (engine.array(eighths(s, k)) for k, s in enumerate([(4, 5), (4, 5), (5,)]))
    assert_same_bits(
        engine.call(
            activation.activation_backward, scrambled(dY, layout), scrambled(Z, layout), act
        ),
        activation.activation_backward(dY, Z, act),
    )
    plain, other = Z.copy(), Z.copy()
    assert_same_bits(
        activation.bias_activation(other, scrambled(b, "strided"), act),
        activation.bias_activation(plain, b, act),
    )
    assert_same_bits(other, plain)


def test_an_empty_batch(engine: Engine, dtype: str) -> None:
    Z, b = engine.array(np.zeros((0, 3)), dtype), engine.array(np.ones(3), dtype)
    Y = activation.bias_activation(Z, b, activations.Tanh())
    assert (Y.shape, Y.dtype) == ((0, 3), dtype)
    assert activation.activation_backward(Y, Z, activations.Tanh()).shape == (0, 3)


def test_bias_shapes(engine: Engine) -> None:
    Z = eighths((2, 3, 4), 7)
    for shape in [(4,), (1, 4), (1, 1, 4)]:
        Y = activation.bias_activation(
            engine.array(Z), engine.array(np.arange(4.0).reshape(shape)), activations.Identity()
        )
        assert_close(Y, Z + np.arange(4.0))


def test_wrong_calls(engine: Engine) -> None:
    relu, Z = activations.ReLU(), engine.array(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"bias_activation: b must have \(3,\) elements"):
        activation.bias_activation(Z, engine.array(np.ones(2)), relu)
    with pytest.raises(ShapeError, match="bias_activation: Z must be C-contiguous"):
        activation.bias_activation(Z.T, engine.array(np.ones(2)), relu)
    with pytest.raises(DTypeError, match="bias_activation: b is float32, but Z is float64"):
        activation.bias_activation(Z, engine.array(np.ones(3), "float32"), relu)
    with pytest.raises(DTypeError, match="bias_activation: Z must be a floating array, got int64"):
        activation.bias_activation(engine.array([[1, 2]]), None, relu)
    with pytest.raises(ShapeError, match=r"activation_backward: dY must have shape \(2, 3\)"):
        activation.activation_backward(Z[:1], Z, relu)
    with pytest.raises(DTypeError, match="activation_backward: Z is float64, but dY is float16"):
        activation.activation_backward(Z.astype("float16"), Z, relu)
