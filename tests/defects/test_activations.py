"""GELU in both forms with its derivatives, and activations far from zero."""

from __future__ import annotations

import cmath
import math
import warnings

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.errors import DTypeError
from tests.conftest import Backend
from tests.defects.support import assert_mended, slope
from tests.support.compare import assert_close

POINTS = [0.0, 1.0, 2.0, -1.5]


def gelu_tanh(z: complex) -> complex:
    return 0.5 * z * (1 + cmath.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


@pytest.mark.defect(33)
def test_gelu_has_an_exact_form(backend: Backend) -> None:
    """numpy-ml's GELU(approximate=False) is the tanh form, 0.841192 at 1; its exact branch would
    raise TypeError for arrays."""
    exact = activations.GELU(approximate=False)
    assert not exact.approximate
    right = [z * 0.5 * (1 + math.erf(z / math.sqrt(2))) for z in POINTS]
    wrong = [gelu_tanh(z).real for z in POINTS]
    assert math.isclose(wrong[1], 0.841192, rel_tol=1e-6)
    assert abs(right[1] - wrong[1]) > 1e-4
    z = backend.asarray(np.array(POINTS))
    assert_close(exact.fn(z), right)
    assert_close(activations.GELU().fn(z), wrong)


@pytest.mark.defect(34)
def test_gelus_derivative_belongs_to_its_form(backend: Backend) -> None:
    """numpy-ml's grad of the tanh form is 0.5, 1.083163, 1.085281 at 0, 1, 2."""
    z = backend.asarray(np.array(POINTS))
    right = [slope(gelu_tanh, x) for x in POINTS]
    assert abs(right[1] - 1.083163) > 1e-4 and abs(right[2] - 1.085281) > 1e-4
    assert_close(activations.GELU().grad(z), right)
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in POINTS]
    exact = [
        0.5 * (1 + math.erf(x / math.sqrt(2))) + x * d for x, d in zip(POINTS, density, strict=True)
    ]
    assert_close(activations.GELU(approximate=False).grad(z), exact)


@pytest.mark.defect(34)
def test_gelus_second_derivative(backend: Backend) -> None:
    """numpy-ml's grad2 is 1.504991, 0.707107, 0.599125 at 0, 1, 2."""
    z = backend.asarray(np.array(POINTS[:3]))
    wrong = [1.504991, 0.707107, 0.599125]
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in POINTS[:3]]
    exact = [d * (2 - x * x) for x, d in zip(POINTS, density, strict=False)]
    assert_mended(activations.GELU(approximate=False).grad2(z), exact, wrong)
    h = 1e-4
    tanh_form = [(slope(gelu_tanh, x + h) - slope(gelu_tanh, x - h)) / (2 * h) for x in POINTS[:3]]
    got = backend.asnumpy(activations.GELU().grad2(z))
    np.testing.assert_allclose(got, tanh_form, rtol=1e-6)
    assert not np.isclose(got, wrong, rtol=1e-2).any()


@pytest.mark.defect(35)
def test_softplus_and_sigmoid_do_not_overflow(backend: Backend) -> None:
    """numpy-ml's SoftPlus(800) is inf with a nan gradient, and Sigmoid(-800) warns of an
    overflow."""
    z = backend.asarray(np.array([800.0, -800.0, 0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(activations.SoftPlus().fn(z), [800.0, 0.0, math.log(2)])
        assert_close(activations.SoftPlus().grad(z), [1.0, 0.0, 0.5])
        assert_close(activations.SoftPlus().grad2(z), [0.0, 0.0, 0.25])
        assert_close(activations.Sigmoid().fn(z), [1.0, 0.0, 0.5])
        assert_close(activations.Sigmoid().grad(z), [0.0, 0.0, 0.25])


@pytest.mark.defect(35)
def test_integers_are_refused_rather_than_rounded(backend: Backend) -> None:
    """numpy-ml's LeakyReLU of the integer -2 is 0, and its grad raises UFuncTypeError."""
    z = np.array([-2, 3])
    for method in ("fn", "grad", "grad2"):
        with pytest.raises(DTypeError, match="int64"):
            getattr(activations.LeakyReLU(), method)(backend.asarray(z))
    assert_close(activations.LeakyReLU().fn(backend.asarray(z, float)), [-0.6, 3.0])
