"""The same layers by PyTorch, whose autograd then gives the gradients.

Each function takes the parameters as tensors by name and the input, in gpulayers' layout, and
returns the output. Import this module only where PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.layers.gold import _pad4, _pair
from tests.support.naive import conv as naive

Reference = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
Recurrent = tuple[
    torch.nn.RNNBase, dict[str, torch.Tensor]
]  # the module, and what it computes with

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.3),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "gelu_erf": F.gelu,
    "tanh": torch.tanh,
    "affine": lambda z: 2.0 * z - 0.5,
    "elu": lambda z: F.elu(z, 0.7),
    "exponential": torch.exp,
    "selu": F.selu,
    "hard_sigmoid": lambda z: torch.clamp(0.2 * z + 0.5, 0.0, 1.0),
    "softplus": F.softplus,
}


def fully_connected(act: str = "identity") -> Reference:
    return lambda p, X: ACTIVATIONS[act](X @ p["W"] + p["b"])


def sparse_evolution(act: str = "identity") -> Reference:
    return lambda p, X: ACTIVATIONS[act](X @ (p["W"] * p["W_mask"]) + p["b"])


def conv2d(stride: Any = 1, pad: Any = 0, dilation: Any = 0, act: str = "identity") -> Reference:
    s, spacing = _pair(stride), tuple(d + 1 for d in _pair(dilation))

    def reference(p, X):
        W = p["W"]
        top, bottom, left, right = _pad4(pad, X.shape[1:3], W.shape[:2], s, spacing)
        images = F.pad(X.permute(0, 3, 1, 2), (left, right, top, bottom))
        Z = F.conv2d(images, W.permute(3, 2, 0, 1).contiguous(), p["b"].reshape(-1), s, 0, spacing)
        return ACTIVATIONS[act](Z.permute(0, 2, 3, 1))

    return reference


def conv1d(stride: int = 1, pad: Any = 0, dilation: int = 0, act: str = "identity") -> Reference:
    def reference(p, X):
        W = p["W"]
        if isinstance(pad, str):
            left, right = naive.same_pad(X.shape[1], W.shape[0], stride, dilation + 1)
            sides = (left + right, 0) if pad == "causal" else (left, right)
        else:
            sides = _pair(pad)
        signals = F.pad(X.permute(0, 2, 1), sides)
        Z = F.conv1d(signals, W.permute(2, 1, 0), p["b"].reshape(-1), stride, 0, dilation + 1)
        return ACTIVATIONS[act](Z.permute(0, 2, 1))

    return reference


def deconv2d(stride: Any = 1, pad: Any = 0, act: str = "identity") -> Reference:
    s = _pair(stride)

    def reference(p, X):
        spread = tuple(s[k] * (X.shape[1 + k] - 1) + 1 for k in (0, 1))
        top, bottom, left, right = _pad4(pad, spread, p["W"].shape[:2], (1, 1), (1, 1))
        weight = p["W"].permute(2, 3, 0, 1).contiguous()
        full = F.conv_transpose2d(X.permute(0, 3, 1, 2).contiguous(), weight, stride=s)
        full = full.permute(0, 2, 3, 1)
        rows, cols = full.shape[1:3]
        Z = full[:, top : rows - bottom, left : cols - right] + p["b"]
        return ACTIVATIONS[act](Z)

    return reference


def pool2d(kernel: Any, stride: Any = 1, pad: Any = 0, mode: str = "max") -> Reference:
    k, s = _pair(kernel), _pair(stride)

    def reference(p, X):
        top, bottom, left, right = _pad4(pad, X.shape[1:3], k, s, (1, 1))
        fill = -float("inf") if mode == "max" else 0.0
        images = F.pad(X.permute(0, 3, 1, 2), (left, right, top, bottom), value=fill)
        pool = F.max_pool2d if mode == "max" else F.avg_pool2d
        return pool(images, k, s).permute(0, 2, 3, 1)

    return reference


def flatten(keep_dim: Any = "first") -> Reference:
    shapes = {"first": lambda X: (X.shape[0], -1), "last": lambda X: (-1, X.shape[-1])}
    return lambda p, X: X.reshape(shapes.get(keep_dim, lambda X: (1, -1))(X))


def softmax_along(dim: int = -1) -> Reference:
    return lambda p, X: torch.softmax(X, dim)


def rnn_module(p: dict[str, torch.Tensor], act: str = "tanh") -> Recurrent:
    n_in, n_out = p["Wax"].shape
    module = torch.nn.RNN(n_in, n_out, nonlinearity=act, dtype=p["Wax"].dtype)
    return module, {
        "weight_ih_l0": p["Wax"].T,
        "weight_hh_l0": p["Waa"].T,
        "bias_ih_l0": p["bx"].reshape(-1),
        "bias_hh_l0": p["ba"].reshape(-1),
    }


def rnn(act: str = "tanh") -> Reference:
    return lambda p, X: _over_time(*rnn_module(p, act), X, cell=False)


def rnn_cell(act: str = "tanh") -> Reference:
    over_time = rnn(act)
    return lambda p, X: over_time(p, X[:, :, None])[:, :, 0]


def global_avg_pool2d() -> Reference:
    return lambda p, X: F.adaptive_avg_pool2d(X.permute(0, 3, 1, 2), 1)[:, :, 0, 0]


def upsample2d(factor: Any) -> Reference:
    def reference(p, X):
        images = X.permute(0, 3, 1, 2)
        scale = tuple(float(f) for f in _pair(factor))
        return F.interpolate(images, scale_factor=scale, mode="nearest").permute(0, 2, 3, 1)

    return reference


def zero_pad2d(pad: Any) -> Reference:
    def reference(p, X):
        top, bottom, left, right = _pad4(pad, X.shape[1:3], (1, 1), (1, 1), (1, 1))
        return F.pad(X, (0, 0, left, right, top, bottom))

    return reference


def layernorm(epsilon: float = 1e-5) -> Reference:
    return lambda p, X: F.layer_norm(X, X.shape[1:], p["scaler"], p["intercept"], epsilon)


def groupnorm(n_groups: int, epsilon: float = 1e-5) -> Reference:
    def reference(p, X):
        images = X.permute(0, 3, 1, 2)
        Y = F.group_norm(images, n_groups, p["scaler"], p["intercept"], epsilon)
        return Y.permute(0, 2, 3, 1)

    return reference


def batchnorm1d(epsilon: float = 1e-5) -> Reference:
    return lambda p, X: F.batch_norm(
        X, None, None, p["scaler"], p["intercept"], training=True, eps=epsilon
    )


def _over_time(module: torch.nn.RNNBase, weights: dict[str, torch.Tensor], X, cell: bool):
    steps = X[None] if cell else X.permute(2, 0, 1)
    A, _ = torch.func.functional_call(module, weights, (steps,))
    return A[0] if cell else A.permute(1, 2, 0)


def lstm_module(p: dict[str, torch.Tensor]) -> Recurrent:
    n_out = p["Wf"].shape[1]
    # PyTorch's blocks: input (our update), forget, cell, output
    W = torch.cat([p["Wu"], p["Wf"], p["Wc"], p["Wo"]], dim=1)
    b = torch.cat([p["bu"], p["bf"], p["bc"], p["bo"]], dim=1).reshape(-1)
    return torch.nn.LSTM(len(W) - n_out, n_out, dtype=W.dtype), {
        "weight_hh_l0": W[:n_out].T,
        "weight_ih_l0": W[n_out:].T,
        "bias_hh_l0": torch.zeros_like(b),
        "bias_ih_l0": b,
    }


def lstm(cell: bool = False) -> Reference:
    return lambda p, X: _over_time(*lstm_module(p), X, cell)


def gru_module(p: dict[str, torch.Tensor]) -> Recurrent:
    n_out = p["Wn"].shape[1]
    W = torch.cat([p["Wr"], p["Wz"], p["Wn"]], dim=1)
    return torch.nn.GRU(len(W) - n_out, n_out, dtype=W.dtype), {
        "weight_hh_l0": W[:n_out].T,
        "weight_ih_l0": W[n_out:].T,
        "bias_hh_l0": torch.cat([p["br"], p["bz"], p["ba"]], dim=1).reshape(-1),
        "bias_ih_l0": torch.cat([0 * p["br"], 0 * p["bz"], p["bn"]], dim=1).reshape(-1),
    }


def gru(cell: bool = False) -> Reference:
    return lambda p, X: _over_time(*gru_module(p), X, cell)


def batchnorm2d(epsilon: float = 1e-5) -> Reference:
    def reference(p, X):
        Y = F.batch_norm(
            X.permute(0, 3, 1, 2),
            None,
            None,
            p["scaler"],
            p["intercept"],
            training=True,
            eps=epsilon,
        )
        return Y.permute(0, 2, 3, 1)

    return reference
