"""Activation functions in ONNX, as operators of the graph and as names for recurrent operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpulayers.interchange._onnx_graph import Graph, Value

# ONNX operator, and which of its attributes are our alpha and beta
_OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("Sigmoid", ()),
    "relu": ("Relu", ()),
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "tanh": ("Tanh", ()),
    "elu": ("Elu", ("alpha",)),
    "selu": ("Selu", ("alpha", "gamma")),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "softplus": ("Softplus", ()),
    "exponential": ("Exp", ()),
}
# those that RNN, LSTM and GRU take by name, with how many numbers
_RECURRENT = {
    "identity": ("Affine", 2),
    "affine": ("Affine", 2),
    "sigmoid": ("Sigmoid", 0),
    "relu": ("Relu", 0),
    "leaky_relu": ("LeakyRelu", 1),
    "tanh": ("Tanh", 0),
    "elu": ("Elu", 1),
    "hard_sigmoid": ("HardSigmoid", 2),
    "softplus": ("Softplus", 0),
}


def _kernel(graph: Graph, act: Any) -> tuple[str, float, float]:
    kernel = getattr(act, "kernel", None)
    if kernel is None:
        raise graph.refuse(
            f"the activation {act} is not one of gpulayers' own, so its formula is unknown"
        )
    return kernel


def activated(graph: Graph, value: Value, act: Any) -> Value:
    """act(value), elementwise; `act` None is the identity.

    Raises
    ------
    InterchangeError
        For an activation of the user's own.
    """
    if act is None:
        return value
    name, alpha, beta = _kernel(graph, act)
    if name in _OPERATORS:
        operator, attributes = _OPERATORS[name]
        numbers = dict(zip(attributes, (alpha, beta), strict=False))
        return graph.each(operator, value, **numbers)
    return _COMPOSED[name](graph, value, alpha, beta)


def _identity(graph: Graph, z: Value, alpha: float, beta: float) -> Value:
    return z


def _affine(graph: Graph, z: Value, slope: float, intercept: float) -> Value:
    """slope * z + intercept"""
    return graph.with_scalar("Add", graph.with_scalar("Mul", z, slope), intercept)


def _gelu_erf(graph: Graph, z: Value, alpha: float, beta: float) -> Value:
    """z (1 + erf(z / sqrt 2)) / 2"""
    erf = graph.each("Erf", graph.with_scalar("Mul", z, math.sqrt(0.5)))
    return _half_and_half(graph, z, erf)


def _gelu_tanh(graph: Graph, z: Value, alpha: float, beta: float) -> Value:
    """z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2"""
    inner = graph.with_scalar("Mul", graph.both("Mul", z, z), 0.044715)
    inner = graph.both("Mul", z, graph.with_scalar("Add", inner, 1.0))
    tanh = graph.each("Tanh", graph.with_scalar("Mul", inner, math.sqrt(2.0 / math.pi)))
    return _half_and_half(graph, z, tanh)


def _half_and_half(graph: Graph, z: Value, s: Value) -> Value:
    share = graph.with_scalar("Mul", graph.with_scalar("Add", s, 1.0), 0.5)
    return graph.both("Mul", z, share)


_COMPOSED: dict[str, Callable[[Graph, Value, float, float], Value]] = {
    "identity": _identity,
    "affine": _affine,
    "gelu_erf": _gelu_erf,
    "gelu_tanh": _gelu_tanh,
}


def named(graph: Graph, acts: list[Any]) -> dict[str, list[Any]] | None:
    """The attributes that tell RNN, LSTM or GRU their activations; None if one has no name there.

    ONNX lists the numbers of all activations one after another, without saying whose they are.

    Raises
    ------
    InterchangeError
        For an activation of the user's own.
    """
    names: list[str] = []
    alphas: list[float] = []
    betas: list[float] = []
    for act in acts:
        name, alpha, beta = _kernel(graph, act)
        if name == "identity":
            alpha, beta = 1.0, 0.0
        if name not in _RECURRENT:
            return None
        operator, count = _RECURRENT[name]
        names.append(operator)
        alphas += [alpha][:count]
        betas += [beta][: count - 1] if count else []
    attributes: dict[str, list[Any]] = {"activations": names}
    if alphas:
        attributes["activation_alpha"] = alphas
    if betas:
        attributes["activation_beta"] = betas
    return attributes
