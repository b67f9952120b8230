"""What each module should compute: the loops of the layers' golds, one after another.

A gold takes the parameters of the components (``"conv1.W"``: float64), the inputs and the gradients
of the outputs (or None), and returns outputs, gradients of the inputs, gradients of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.layers import gold as layer
from tests.layers.gold import SEED, Params, kept_by_dropout
from tests.support.naive import activation
from tests.support.naive import attention as naive

Arrays = list[np.ndarray]


class Result(NamedTuple):
    Ys: Arrays
    dXs: Arrays  # noqa: N815
    grads: Params


Gold = Callable[[Params, Arrays, "Arrays | None"], Result]


class Chain:
    """Layers run forward one by one, then backward in any order."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.grads: Params = {}
        self._runs: dict[str, Any] = {}

    def forward(self, name: str, gold: layer.Gold, X: np.ndarray) -> np.ndarray:
        mine = {k.split(".")[1]: v for k, v in self.params.items() if k.split(".")[0] == name}
        self._runs[name] = gold, mine, X
        return gold(mine, X, np.zeros).Y

    def backward(self, name: str, dY: np.ndarray) -> np.ndarray:
        gold, mine, X = self._runs[name]
        result = gold(mine, X, lambda shape: dY.reshape(shape))
        self.grads |= {f"{name}.{k}": v for k, v in result.grads.items()}
        return result.dX


def skip_identity(act: str, epsilon: float = 1e-5, **strides: Any) -> Gold:
    return _skip(act, epsilon, "same", "same", strides, None)


def skip_conv(
    act: str, pads: tuple[Any, Any], skip: dict[str, Any], epsilon: float = 1e-5, **strides: Any
) -> Gold:
    return _skip(act, epsilon, *pads, strides, skip)


def _skip(act: str, epsilon: float, pad1: Any, pad2: Any, strides: Any, skip: Any) -> Gold:
    def gold(p: Params, Xs: Arrays, dYs: Arrays | None) -> Result:
        X, chain, norm = Xs[0], Chain(p), layer.batchnorm(epsilon)
        s1, s2 = strides.get("stride1", 1), strides.get("stride2", 1)
        H = chain.forward("conv1", layer.conv2d(stride=s1, pad=pad1, act=act), X)
        H = chain.forward("batchnorm1", norm, H)
        H = chain.forward("conv2", layer.conv2d(stride=s2, pad=pad2), H)
        Z = chain.forward("batchnorm2", norm, H)
        if skip is None:
            Z = Z + X
        else:
            S = chain.forward("conv_skip", layer.conv2d(**skip), X)
            Z = Z + chain.forward("batchnorm_skip", norm, S)
        if dYs is None:
            return Result([activation.value(act, Z)], [], {})
        dZ = activation.backward(act, dYs[0], Z)
        dX = dZ
        if skip is not None:
            dX = chain.backward("conv_skip", chain.backward("batchnorm_skip", dZ))
        for name in ("batchnorm2", "conv2", "batchnorm1", "conv1"):
            dZ = chain.backward(name, dZ)
        return Result([activation.value(act, Z)], [dX + dZ], chain.grads)

    return gold


def wavenet(dilation: int) -> Gold:
    def gold(p: Params, Xs: Arrays, dYs: Arrays | None) -> Result:
        chain = Chain(p)
        main, skip = Xs
        Z = chain.forward("conv_dilation", layer.conv1d(pad="causal", dilation=dilation), main)
        T, S = activation.value("tanh", Z), activation.value("sigmoid", Z)
        out = chain.forward("conv_1x1", layer.conv1d(), T * S)
        Ys = [main + out, skip + out]
        if dYs is None:
            return Result(Ys, [], {})
        dG = chain.backward("conv_1x1", dYs[0] + dYs[1])
        dZ = activation.backward("tanh", dG * S, Z) + activation.backward("sigmoid", dG * T, Z)
        return Result(Ys, [dYs[0] + chain.backward("conv_dilation", dZ), dYs[1]], chain.grads)

    return gold


def attention(n_heads: int) -> Gold:
    def heads(X: np.ndarray) -> np.ndarray:
        n, T, d = X.shape
        out = np.zeros((n, n_heads, T, d // n_heads))
        for m, h, t, k in np.ndindex(*out.shape):
            out[m, h, t, k] = X[m, t, h * (d // n_heads) + k]
        return out

    def joined(X: np.ndarray) -> np.ndarray:
        n, _, T, latent = X.shape
        out = np.zeros((n, T, n_heads * latent))
        for m, h, t, k in np.ndindex(*X.shape):
            out[m, t, h * latent + k] = X[m, h, t, k]
        return out

    def gold(p: Params, Xs: Arrays, dYs: Arrays | None) -> Result:
        chain, dense = Chain(p), layer.fully_connected()
        sequences = [X[:, None] if X.ndim == 2 else X for X in Xs]
        projected = []
        for name, X in zip("QKV", sequences, strict=True):
            Y = chain.forward(name, dense, X.reshape(-1, X.shape[-1]))
            projected.append(heads(Y.reshape(X.shape)))
        out = joined(naive.attention(*projected)[0])
        Y = chain.forward("O", dense, out.reshape(-1, out.shape[-1])).reshape(out.shape)
        if dYs is None:
            return Result([Y], [], {})
        d_out = chain.backward("O", dYs[0]).reshape(out.shape)
        d_projected = naive.attention_grads(*projected, heads(d_out))
        dXs = []
        for name, X, d in zip("QKV", Xs, d_projected, strict=True):
            dXs.append(chain.backward(name, joined(d)).reshape(X.shape))
        return Result([Y], dXs, chain.grads)

    return gold


def bidirectional(merge: str, act: str = "tanh", gate: str = "sigmoid") -> Gold:
    def gold(p: Params, Xs: Arrays, dYs: Arrays | None) -> Result:
        chain = Chain(p)
        F = chain.forward("cell_fwd", layer.lstm(act, gate), Xs[0])
        B = chain.forward("cell_bwd", layer.lstm(act, gate), Xs[0][:, :, ::-1])[:, :, ::-1]
        Y = {
            "concat": lambda: np.concatenate([F, B], axis=1),
            "sum": lambda: F + B,
            "average": lambda: (F + B) / 2,
            "multiply": lambda: F * B,
        }[merge]()
        if dYs is None:
            return Result([Y], [], {})
        d, n = dYs[0], F.shape[1]
        dF, dB = {
            "concat": lambda: (d[:, :n], d[:, n:]),
            "sum": lambda: (d, d),
            "average": lambda: (d / 2, d / 2),
            "multiply": lambda: (d * B, d * F),
        }[merge]()
        dX = chain.backward("cell_fwd", dF)
        dX = dX + chain.backward("cell_bwd", dB[:, :, ::-1])[:, :, ::-1]
        return Result([Y], [dX], chain.grads)

    return gold


def dropout_factors(p: float, shapes: list[tuple[int, ...]]) -> Arrays:
    """What dropout multiplies by in one forward pass right after `random.seed(SEED)`."""
    start, factors = 0, []
    for shape in shapes:
        size = int(np.prod(shape))
        words = -(-size // 2)
        blocks = -(-words // 4)
        kept = kept_by_dropout(p, (start * 8 + size,), SEED)[start * 8 :]
        factors.append(kept.reshape(shape) / (1 - p))
        start += blocks
    return factors
