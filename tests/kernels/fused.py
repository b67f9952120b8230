"""An activation that a kernel takes along, in float64: its values, its slopes, and the inputs that
some values are of."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpulayers.cuda.fusible import RELU, Formula
from tests.kernels import gold
from tests.kernels.arrays import random, rounded

TANH: Formula = ("tanh", 0.0, 0.0)
SIGMOID: Formula = ("sigmoid", 0.0, 0.0)
LEAKY: Formula = ("leaky_relu", 0.375, 0.0)
ELU: Formula = ("elu", 0.75, 0.0)
SELU: Formula = ("selu", 1.5, 1.25)
SOFTPLUS: Formula = ("softplus", 0.0, 0.0)
EXPONENTIAL: Formula = ("exponential", 0.0, 0.0)
BY_VALUE = (TANH, SIGMOID, LEAKY, ELU, SELU, SOFTPLUS, EXPONENTIAL)

_INVERSES: dict[str, Callable[[float, float, float], float]] = {
    "relu": lambda y, a, b: y,
    "tanh": lambda y, a, b: math.atanh(y),
    "sigmoid": lambda y, a, b: math.log(y / (1 - y)),
    "leaky_relu": lambda y, a, b: y if y > 0 else y / a,
    "elu": lambda y, a, b: y if y > 0 else math.log1p(y / a),
    "selu": lambda y, a, b: y / b if y > 0 else math.log1p(y / (a * b)),
    "softplus": lambda y, a, b: math.log(math.expm1(y)),
    "exponential": lambda y, a, b: math.log(y),
}


def value(act: Formula | None, z: np.ndarray) -> np.ndarray:
    return z if act is None else gold.activation(act[0], z, *act[1:])


def slope(act: Formula, z: np.ndarray) -> np.ndarray:
    return gold.slope(act[0], z, *act[1:])


def slope_at_value(act: Formula, y: np.ndarray) -> np.ndarray:
    """By way of the inputs."""
    name, alpha, beta = act
    z = [_INVERSES[name](each, alpha, beta) for each in y.ravel().tolist()]
    return slope(act, np.array(z).reshape(y.shape))


def outputs(
    act: Formula, dtype: str, *shape: int, seed: str = "y"
) -> tuple[np.ndarray, np.ndarray]:
    """Values that it could have given, at its kink too, as stored and in float64; for ReLU any."""
    z = random(*shape, seed=seed)
    z.flat[:1] = 0.0
    return rounded(z if act == RELU else value(act, z), dtype)
