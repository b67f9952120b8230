"""The same modules by PyTorch, whose autograd then gives the gradients.

Each function takes the components' parameters as tensors (``"conv1.W"``) and the inputs, and
returns the list of outputs. Import this module only where PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.layers import torch_reference as layer

Tensors = list[torch.Tensor]
Reference = Callable[[dict[str, torch.Tensor], Tensors], Tensors]


def _of(p: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k.split(".")[1]: v for k, v in p.items() if k.split(".")[0] == name}


def skip_identity(act: str, epsilon: float = 1e-5, **strides: Any) -> Reference:
    return _skip(act, epsilon, "same", "same", strides, None)


def skip_conv(
    act: str, pads: tuple[Any, Any], skip: dict[str, Any], epsilon: float = 1e-5, **strides: Any
) -> Reference:
    return _skip(act, epsilon, *pads, strides, skip)


def _skip(act: str, epsilon: float, pad1: Any, pad2: Any, strides: Any, skip: Any) -> Reference:
    def reference(p, Xs):
        norm = layer.batchnorm2d(epsilon)
        H = layer.conv2d(stride=strides.get("stride1", 1), pad=pad1, act=act)(
            _of(p, "conv1"), Xs[0]
        )
        H = norm(_of(p, "batchnorm1"), H)
        H = layer.conv2d(stride=strides.get("stride2", 1), pad=pad2)(_of(p, "conv2"), H)
        H = norm(_of(p, "batchnorm2"), H)
        side = Xs[0]
        if skip is not None:
            side = norm(_of(p, "batchnorm_skip"), layer.conv2d(**skip)(_of(p, "conv_skip"), side))
        return [layer.ACTIVATIONS[act](H + side)]

    return reference


def wavenet(dilation: int) -> Reference:
    def reference(p, Xs):
        Z = layer.conv1d(pad="causal", dilation=dilation)(_of(p, "conv_dilation"), Xs[0])
        out = layer.conv1d()(_of(p, "conv_1x1"), torch.tanh(Z) * torch.sigmoid(Z))
        return [Xs[0] + out, Xs[1] + out]

    return reference


def attention(n_heads: int) -> Reference:
    """PyTorch's own multi-headed attention, with our parameters."""

    def reference(p, Xs):
        Q, K, V = (X[:, None] if X.ndim == 2 else X for X in Xs)
        module = torch.nn.MultiheadAttention(Q.shape[-1], n_heads, batch_first=True, dtype=Q.dtype)
        weights = {
            "in_proj_weight": torch.cat([p[f"{n}.W"].T for n in "QKV"]),
            "in_proj_bias": torch.cat([p[f"{n}.b"].reshape(-1) for n in "QKV"]),
            "out_proj.weight": p["O.W"].T,
            "out_proj.bias": p["O.b"].reshape(-1),
        }
        return [torch.func.functional_call(module, weights, (Q, K, V))[0]]

    return reference


def bidirectional(merge: str) -> Reference:
    def reference(p, Xs):
        F = layer.lstm()(_of(p, "cell_fwd"), Xs[0])
        B = layer.lstm()(_of(p, "cell_bwd"), Xs[0].flip(2)).flip(2)
        if merge == "concat":
            return [torch.cat([F, B], dim=1)]
        return [{"sum": F + B, "average": (F + B) / 2, "multiply": F * B}[merge]]

    return reference
