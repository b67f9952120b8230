"""Accuracy of the C kernels' elementary functions over the whole range of their dtype.

The error is counted in units in the last place (ulp) of the correctly rounded result; among
subnormal results the unit is the smallest subnormal. Measured maxima stand with the limits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.ops import activation, use_engine
from tests.support.compare import assert_same_bits

pytestmark = pytest.mark.compiled

# wider than the dtype under test: long double has 64 bits of mantissa on x86
WIDE = {"float32": np.float64, "float64": np.longdouble}
needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="long double is no wider than double here"
)
DTYPES = ["float32", pytest.param("float64", marks=needs_long_double)]

# name: (activation, gold in the wider type, most ulp allowed); measured in float32 / float64
FUNCTIONS: dict[str, tuple[activations.ActivationBase, Callable, float]] = {
    "exp": (activations.Exponential(), np.exp, 1.25),  # 1.03 / 0.96
    "tanh": (activations.Tanh(), np.tanh, 1.5),  # 1.31 / 1.31
    "expm1": (
        activations.ELU(1.0),
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        1.5,  # 0.85 / 1.15
    ),
    "logistic": (activations.Sigmoid(), lambda x: 1 / (1 + np.exp(-x)), 3.0),  # 2.52 / 2.52
    "softplus": (
        activations.SoftPlus(),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        3.0,  # 2.55 / 2.59: two logarithmic steps, each below 1.5
    ),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def whole_range(dtype: str) -> np.ndarray:
    """Numbers of every exponent and sign, and more of them where the functions bend."""
    rng = np.random.default_rng(0)
    bits = np.dtype(dtype).itemsize * 8
    patterns = rng.integers(0, 2**bits, 300_000, dtype=f"uint{bits}").view(dtype)
    limit = {"float32": 110.0, "float64": 760.0}[dtype]
    near = [rng.uniform(-r, r, 200_000).astype(dtype) for r in (limit, 20.0, 1.0)]
    corners = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.625, -0.625, 88.72283, -103.97])
    return np.concatenate([patterns, *near, corners.astype(dtype)])


def evaluated(act: activations.ActivationBase, z: np.ndarray) -> np.ndarray:
    with use_engine("compiled"):
        return activation.bias_activation(z.copy(), None, act)


@functions
@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp(name: str, dtype: str) -> None:
    act, gold, limit = FUNCTIONS[name]
    z = whole_range(dtype)
    y = evaluated(act, z)
    with np.errstate(all="ignore"):
        exact = gold(z.astype(WIDE[dtype]))
        rounded = exact.astype(dtype)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(rounded))
        infinite = np.isinf(rounded)
        np.testing.assert_array_equal(y[infinite], rounded[infinite])
        unit = np.spacing(np.maximum(np.abs(rounded), np.finfo(dtype).tiny))
        error = np.abs(y.astype(WIDE[dtype]) - exact) / unit
    finite = np.isfinite(rounded)
    worst = int(np.argmax(np.where(finite, error, 0)))
    assert error[worst] <= limit, f"{name}({z[worst]!r}) = {y[worst]!r}: {error[worst]:.2f} ulp"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_at_the_ends_of_the_range(dtype: str) -> None:
    limits = np.finfo(dtype)
    top, bottom = np.log(limits.max), np.log(limits.smallest_subnormal)
    top = np.nextafter(top, np.dtype(dtype).type(0))  # rounded up, its exp may be infinite
    z = np.array([top, top * 1.01, bottom * 1.01, -np.inf, np.inf], dtype=dtype)
    y = evaluated(activations.Exponential(), z)
    assert np.isfinite(y[0])
    np.testing.assert_array_equal(y[1:], [np.inf, 0.0, 0.0, np.inf])
    subnormal = evaluated(activations.Exponential(), np.array([bottom * 0.99], dtype=dtype))
    assert 0 < subnormal[0] < limits.tiny
    np.testing.assert_array_equal(
        evaluated(activations.Tanh(), np.array([-np.inf, -50, 50, np.inf], dtype=dtype)),
        [-1, -1, 1, 1],
    )
    # tanh of a tiny number is that number, with its sign
    tiny = np.array([limits.tiny, -limits.smallest_subnormal, -0.0], dtype=dtype)
    assert_same_bits(evaluated(activations.Tanh(), tiny), tiny)
    assert np.signbit(evaluated(activations.Tanh(), tiny)[2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_against_numpy(dtype: str, approximate: bool) -> None:
    act = activations.GELU(approximate)
    z = np.linspace(-45, 45, 100_001).astype(dtype)
    tolerance = 8 * np.finfo(dtype).eps
    with use_engine("compiled"):
        Y = activation.bias_activation(z.copy(), None, act)
        dZ = activation.activation_backward(np.ones_like(z), z, act)
    np.testing.assert_allclose(Y, act.fn(z.astype("float64")), rtol=1e3 * tolerance, atol=tolerance)
    np.testing.assert_allclose(dZ, act.grad(z.astype("float64")), rtol=tolerance, atol=tolerance)


@functions
def test_every_length_gives_the_same_numbers(name: str) -> None:
    """Lanes at the end of an array are computed as all others."""
    act = FUNCTIONS[name][0]
    for dtype in ("float32", "float64"):
        z = np.random.default_rng(1).normal(scale=4, size=2100).astype(dtype)
        whole = evaluated(act, z)
        for begin, end in [(0, 1), (3, 10), (5, 20), (0, 1023), (1, 1026), (17, 2100)]:
            assert_same_bits(evaluated(act, z[begin:end]), whole[begin:end])
