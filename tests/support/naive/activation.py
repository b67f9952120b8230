"""Activation functions of one number: name -> (value, derivative), written with `math`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Scalar = Callable[[float], float]

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _normal_pdf(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _gelu_tanh(z: float) -> float:
    return 0.5 * z * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def _gelu_tanh_grad(z: float) -> float:
    k = math.sqrt(2.0 / math.pi)
    t = math.tanh(k * (z + 0.044715 * z**3))
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * k * (1.0 + 3 * 0.044715 * z * z)


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


ACTIVATIONS: dict[str, tuple[Scalar, Scalar]] = {
    "identity": (lambda z: z, lambda z: 1.0),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "relu": (lambda z: max(z, 0.0), lambda z: 1.0 if z > 0 else 0.0),
    "leaky_relu": (lambda z: z if z > 0 else 0.3 * z, lambda z: 1.0 if z > 0 else 0.3),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_grad),
    "gelu_erf": (
        lambda z: z * _normal_cdf(z),
        lambda z: _normal_cdf(z) + z * _normal_pdf(z),
    ),
    "tanh": (math.tanh, lambda z: 1.0 - math.tanh(z) ** 2),
    "affine": (lambda z: 2.0 * z - 0.5, lambda z: 2.0),
    "elu": (
        lambda z: z if z > 0 else 0.7 * math.expm1(z),
        lambda z: 1.0 if z > 0 else 0.7 * math.exp(z),
    ),
    "exponential": (math.exp, math.exp),
    "selu": (
        lambda z: _SELU_SCALE * (z if z > 0 else _SELU_ALPHA * math.expm1(z)),
        lambda z: _SELU_SCALE * (1.0 if z > 0 else _SELU_ALPHA * math.exp(z)),
    ),
    "hard_sigmoid": (
        lambda z: min(max(0.2 * z + 0.5, 0.0), 1.0),
        lambda z: 0.2 if -2.5 < z < 2.5 else 0.0,
    ),
    "softplus": (_softplus, _sigmoid),
}


def value(name: str, Z) -> np.ndarray:
    return _each(ACTIVATIONS[name][0], Z)


def backward(name: str, dY, Z) -> np.ndarray:
    """dZ = dY * act'(Z), entry by entry."""
    dZ = _each(ACTIVATIONS[name][1], Z)
    for index in np.ndindex(dZ.shape):
        dZ[index] = float(dY[index]) * dZ[index]
    return dZ


def _each(function: Scalar, Z) -> np.ndarray:
    result = np.zeros(np.shape(Z))
    for index in np.ndindex(result.shape):
        result[index] = function(float(Z[index]))
    return result
