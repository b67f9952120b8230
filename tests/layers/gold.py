"""What each layer should compute, from the loops in tests/support/naive.

A gold function takes the parameters (by name, float64), the input X and the gradient dY of the
output, and returns the output, the gradient of X and those of the parameters. dY may be a function
of the output's shape, which only the forward pass tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.support.naive import (
    activation,
    conv,
    dense,
    gated,
    image,
    normalization,
    philox,
    pool,
    recurrent,
    softmax,
)

SEED = 7  # what the harness seeds the generator with before each forward pass

Params = dict[str, np.ndarray]


class Result(NamedTuple):
    Y: np.ndarray
    dX: np.ndarray  # noqa: N815
    grads: Params


Gold = Callable[[Params, np.ndarray, Callable[[tuple[int, ...]], np.ndarray]], Result]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _pad4(pad: Any, size: tuple[int, int], kernel, stride, spacing) -> tuple[int, int, int, int]:
    """numpy-ml's pad argument as (top, bottom, left, right)."""
    if pad == "same":
        rows = conv.same_pad(size[0], kernel[0], stride[0], spacing[0])
        cols = conv.same_pad(size[1], kernel[1], stride[1], spacing[1])
        return (*rows, *cols)
    if isinstance(pad, int):
        return (pad,) * 4
    return tuple(pad) if len(pad) == 4 else (pad[0], pad[0], pad[1], pad[1])


def fully_connected(act: str = "identity") -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Z = dense.dense(X, p["W"], p["b"].ravel())
        dX, dW, db = dense.dense_grads(X, p["W"], activation.backward(act, dY(Z.shape), Z))
        return Result(activation.value(act, Z), dX, {"W": dW, "b": db.reshape(1, -1)})

    return gold


def sparse_evolution(act: str = "identity") -> Gold:
    dense_gold = fully_connected(act)

    def gold(p: Params, X, dY) -> Result:
        Y, dX, grads = dense_gold({"W": p["W"] * p["W_mask"], "b": p["b"]}, X, dY)
        return Result(Y, dX, {"W": grads["W"] * p["W_mask"], "b": grads["b"]})

    return gold


def conv2d(stride: Any = 1, pad: Any = 0, dilation: Any = 0, act: str = "identity") -> Gold:
    s, spacing = _pair(stride), tuple(d + 1 for d in _pair(dilation))

    def gold(p: Params, X, dY) -> Result:
        W, kernel = p["W"], p["W"].shape[:2]
        geometry = s, _pad4(pad, X.shape[1:3], kernel, s, spacing), spacing
        Z = conv.conv2d(X, W, p["b"].ravel(), *geometry)
        dZ = activation.backward(act, dY(Z.shape), Z)
        dX = conv.conv2d_input_grad(dZ, W, X.shape, *geometry)
        dW = conv.conv2d_weight_grad(X, dZ, kernel, *geometry)
        db = conv.bias_grad(dZ).reshape(p["b"].shape)
        return Result(activation.value(act, Z), dX, {"W": dW, "b": db})

    return gold


def conv1d(stride: int = 1, pad: Any = 0, dilation: int = 0, act: str = "identity") -> Gold:
    def gold(p: Params, X, dY) -> Result:
        if isinstance(pad, str):
            left, right = conv.same_pad(X.shape[1], p["W"].shape[0], stride, dilation + 1)
            sides = (left + right, 0) if pad == "causal" else (left, right)
        else:
            sides = _pair(pad)
        geometry = stride, sides, dilation + 1
        Z = conv.conv1d(X, p["W"], p["b"].ravel(), *geometry)
        dZ = activation.backward(act, dY(Z.shape), Z)
        dX, dW, db = conv.conv1d_grads(X, p["W"], dZ, *geometry)
        return Result(activation.value(act, Z), dX, {"W": dW, "b": db.reshape(1, 1, -1)})

    return gold


def deconv2d(stride: Any = 1, pad: Any = 0, act: str = "identity") -> Gold:
    s = _pair(stride)

    def gold(p: Params, X, dY) -> Result:
        spread = tuple(s[k] * (X.shape[1 + k] - 1) + 1 for k in (0, 1))
        geometry = s, _pad4(pad, spread, p["W"].shape[:2], (1, 1), (1, 1))
        Z = conv.deconv2d(X, p["W"], p["b"].ravel(), *geometry)
        dZ = activation.backward(act, dY(Z.shape), Z)
        dX, dW, db = conv.deconv2d_grads(X, p["W"], dZ, *geometry)
        return Result(activation.value(act, Z), dX, {"W": dW, "b": db.reshape(p["b"].shape)})

    return gold


def pool2d(kernel: Any, stride: Any = 1, pad: Any = 0, mode: str = "max") -> Gold:
    k, s = _pair(kernel), _pair(stride)

    def gold(p: Params, X, dY) -> Result:
        geometry = k, s, _pad4(pad, X.shape[1:3], k, s, (1, 1))
        if mode == "max":
            Y, _ = pool.max_pool2d(X, *geometry)
            return Result(Y, pool.max_pool2d_grad(X, dY(Y.shape), *geometry), {})
        Y = pool.avg_pool2d(X, *geometry)
        return Result(Y, pool.avg_pool2d_grad(dY(Y.shape), X.shape, *geometry), {})

    return gold


def flatten(keep_dim: Any = "first") -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y = dense.flatten(X, keep_dim)
        return Result(Y, dense.unflatten(dY(Y.shape), X.shape), {})

    return gold


def softmax_along(dim: int = -1) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y, dX, given = np.zeros(X.shape), np.zeros(X.shape), dY(X.shape)
        axis = dim % X.ndim
        for index in np.ndindex(*(n for k, n in enumerate(X.shape) if k != axis)):
            row = (*index[:axis], slice(None), *index[axis:])
            Y[row] = softmax.softmax(X[row][None])[0]
            dX[row] = softmax.softmax_grad(given[row][None], Y[row][None])[0]
        return Result(Y, dX, {})

    return gold


def rnn(act: str = "tanh") -> Gold:
    def gold(p: Params, X, dY) -> Result:
        weights = p["Wax"], p["Waa"], p["ba"].ravel(), p["bx"].ravel()
        A, _ = recurrent.rnn(X, *weights, act)
        dX, dWax, dWaa, dba, dbx = recurrent.rnn_grads(X, *weights, act, dY(A.shape))
        grads = {"Wax": dWax, "Waa": dWaa, "ba": dba.reshape(-1, 1), "bx": dbx.reshape(-1, 1)}
        return Result(A, dX, grads)

    return gold


def rnn_cell(act: str = "tanh") -> Gold:
    """A sequence of a single step."""
    over_time = rnn(act)

    def gold(p: Params, X, dY) -> Result:
        Y, dX, grads = over_time(p, X[:, :, None], lambda shape: dY(shape[:2])[:, :, None])
        return Result(Y[:, :, 0], dX[:, :, 0], grads)

    return gold


def lstm(act: str = "tanh", gate: str = "sigmoid", cell: bool = False) -> Gold:
    return _gated(gated.lstm, ("Wf", "Wu", "Wc", "Wo"), ("bf", "bu", "bc", "bo"), act, gate, cell)


def gru(act: str = "tanh", gate: str = "sigmoid", cell: bool = False) -> Gold:
    return _gated(gated.gru, ("Wn", "Wz", "Wr"), ("bn", "bz", "br", "ba"), act, gate, cell)


def _gated(loops, W: tuple[str, ...], b: tuple[str, ...], act: str, gate: str, cell: bool) -> Gold:
    """A layer over time, or a cell: a sequence of a single step."""

    def gold(p: Params, X, dY) -> Result:
        weights = [p[name] for name in W], [p[name].ravel() for name in b], act, gate
        X = X[:, :, None] if cell else X
        A = loops(X, *weights)
        given = dY(A.shape[:2])[:, :, None] if cell else dY(A.shape)
        A, dX, dW, db = loops(X, *weights, given)
        grads = dict(zip(W, dW, strict=True))
        grads |= {name: v.reshape(p[name].shape) for name, v in zip(b, db, strict=True)}
        return Result(A[:, :, 0], dX[:, :, 0], grads) if cell else Result(A, dX, grads)

    return gold


def batchnorm(epsilon: float = 1e-5) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        rows, given = X.reshape(-1, X.shape[-1]), dY(X.shape).reshape(-1, X.shape[-1])
        Y = normalization.batchnorm(rows, p["scaler"], p["intercept"], epsilon)[0]
        dX, dscaler, dintercept = normalization.batchnorm_grads(rows, given, p["scaler"], epsilon)
        grads = {"scaler": dscaler, "intercept": dintercept}
        return Result(Y.reshape(X.shape), dX.reshape(X.shape), grads)

    return gold


def global_avg_pool2d() -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y = image.global_average(X)
        return Result(Y, image.global_average_grad(dY(Y.shape), X.shape), {})

    return gold


def upsample2d(factor: Any) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y = image.upsample(X, _pair(factor))
        return Result(Y, image.upsample_grad(dY(Y.shape), X.shape, _pair(factor)), {})

    return gold


def zero_pad2d(pad: Any) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        sides = _pad4(pad, X.shape[1:3], (1, 1), (1, 1), (1, 1))
        Y = image.zero_pad(X, sides)
        return Result(Y, image.zero_pad_grad(dY(Y.shape), X.shape, sides), {})

    return gold


def layernorm(epsilon: float = 1e-5) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y, dX, dscaler, dintercept = normalization.layernorm(
            X, dY(X.shape), p["scaler"], p["intercept"], epsilon
        )
        return Result(Y, dX, {"scaler": dscaler, "intercept": dintercept})

    return gold


def groupnorm(n_groups: int, epsilon: float = 1e-5) -> Gold:
    def gold(p: Params, X, dY) -> Result:
        Y, dX, dscaler, dintercept = normalization.groupnorm(
            X, dY(X.shape), p["scaler"], p["intercept"], n_groups, epsilon
        )
        return Result(Y, dX, {"scaler": dscaler, "intercept": dintercept})

    return gold


def kept_by_dropout(p: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Which entries dropout keeps right after `random.seed(seed)`: those with uniform >= p."""
    n = math.prod(shape)
    halves = [
        half
        for word in philox.words((seed, 0), 0, -(-n // 2))
        for half in (word & 0xFFFFFFFF, word >> 32)
    ]
    kept = [(half >> 8) / 2**24 >= p for half in halves[:n]]
    return np.array(kept, dtype=bool).reshape(shape)


def dropout(p: float) -> Gold:
    def gold(_: Params, X, dY) -> Result:
        kept = kept_by_dropout(p, X.shape, SEED)
        return Result(dense.dropout(X, kept, p), dense.dropout(dY(X.shape), kept, p), {})

    return gold
