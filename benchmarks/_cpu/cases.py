"""What is timed: operations forward and backward, optimizer updates, whole training steps.

A case says its shapes and gives its data, which are the same numbers in every process: images
(n, rows, cols, ch), weights (fr, fc, in_ch, out_ch), sequences (n, features, steps). The sides
turn them into their own layout before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from _cpu.nets import NETS, Net, parameters, products
from gpulayers.errors import ParameterError, suggest

Arrays = dict[str, np.ndarray]
LR, MOMENTUM, STEPS_CHECKED = 0.01, 0.9, 3
"""Of every whole-step case, and how many steps each side must take with the same result."""


@dataclass(frozen=True)
class Case:
    """One thing to time.

    `reach` is what PyTorch's time over ours shall be, without and with compiled kernels;
    `tolerance` the allowed error, relative to the largest number of each result.
    """

    name: str
    kind: str
    title: str
    size: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4
    reach: tuple[float, float] | None = None
    short: bool = False
    peer: bool = False  # whether numpy-ml takes part

    @property
    def is_step(self) -> bool:
        return self.kind == "step"

    @property
    def is_image(self) -> bool:
        """Whether the layout of images in memory matters."""
        return self.kind in ("conv", "pool", "batchnorm", "relu") or (
            self.is_step and self.net.is_image
        )

    @property
    def other(self) -> str | None:
        """PyTorch's second way of doing it."""
        if self.kind == "update":
            return "fused"
        return "channels_last" if self.is_image else None

    @property
    def net(self) -> Net:
        return NETS[self.size["net"]]

    @property
    def x_shape(self) -> tuple[int, ...]:
        s = self.size
        if self.is_step:
            return (s["n"], *self.net.input_shape)
        if self.is_image:
            return (s["n"], s["hw"], s["hw"], s["c"])
        return (s["n"], s["i"], s["t"]) if self.kind == "recurrent" else (s["n"], s.get("i", 0))

    @property
    def out_hw(self) -> int:
        """Rows (and columns) of the output of a convolution or pooling."""
        s = self.size
        reach = s.get("d", 1) * (s["k"] - 1) + 1
        return (s["hw"] + 2 * s.get("p", 0) - reach) // s.get("s", 1) + 1


GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def data(case: Case) -> Arrays:
    """Return the case's arrays by name, float32 (labels int64)."""
    rng = np.random.default_rng(1)
    s, kind = case.size, case.kind

    def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    if kind == "update":
        return {"param": numbers(s["n"]), "grad": numbers(s["n"], scale=0.1)}
    X = numbers(*case.x_shape)
    if kind == "step":
        start = parameters(case.net, numbers)
        labels = rng.integers(0, case.net.classes, s["n"])
        return {"X": X, "labels": labels, **{f"p{i}": p for i, p in enumerate(start)}}
    if kind == "cross_entropy":
        return {"X": X, "labels": rng.integers(0, s["i"], s["n"])}
    if kind in ("relu", "batchnorm", "layernorm"):
        scaler = 1 + numbers(X.shape[-1], scale=0.1)
        return {
            "X": X,
            "scaler": scaler,
            "intercept": numbers(X.shape[-1]),
            "dY": numbers(*X.shape),
        }
    if kind == "pool":
        X = np.maximum(X, 0)  # as after ReLU: windows with ties are common
        return {"X": X, "dY": numbers(s["n"], case.out_hw, case.out_hw, s["c"])}
    if kind == "conv":
        W = numbers(s["k"], s["k"], s["c"], s["o"], scale=0.1)
        return {
            "X": X,
            "W": W,
            "b": numbers(s["o"]),
            "dY": numbers(s["n"], *2 * [case.out_hw], s["o"]),
        }
    if kind == "dense":
        W = numbers(s["i"], s["o"], scale=0.05)
        return {"X": X, "W": W, "b": numbers(s["o"]), "dY": numbers(s["n"], s["o"])}
    gates, h = GATES[s["cell"]], s["h"]
    scale = 1 / math.sqrt(h)
    return {
        "X": X,
        "Wx": numbers(s["i"], gates * h, scale=scale),
        "Wh": numbers(h, gates * h, scale=scale),
        "b": numbers(gates * h, scale=scale),
        "dY": numbers(s["n"], h, s["t"]),
    }


def work(case: Case) -> tuple[float, float]:
    """Return the floating-point operations of the plain algorithm, and the bytes that cannot be
    avoided: each array read or written once in the forward pass and once in the backward pass.
    """
    s, kind = case.size, case.kind
    if kind == "update":
        arrays = 7 if s["rule"] == "Adam" else 5  # parameter and state read and written, gradient
        return 0.0, 4.0 * arrays * s["n"]
    x = math.prod(case.x_shape)
    if kind == "step":
        flops, passed = products(case.net)
        return s["n"] * flops, 4.0 * s["n"] * passed
    if kind in ("relu", "batchnorm", "layernorm"):
        return 0.0, 4.0 * 5 * x  # X, Y; dY, X, dX
    if kind == "cross_entropy":
        return 0.0, 4.0 * 2 * x
    if kind == "pool":
        return 0.0, 4.0 * 2 * (x + s["n"] * case.out_hw**2 * s["c"])
    if kind == "recurrent":
        width = GATES[s["cell"]] * s["h"]
        rows = s["n"] * s["t"]
        passed = 2 * x + 2 * rows * s["h"] + 2 * rows * width
        return 6.0 * rows * (s["i"] + s["h"]) * width, 4.0 * passed
    if kind == "dense":
        passed = 3 * (x + s["n"] * s["o"] + s["i"] * s["o"])
        return 6.0 * s["n"] * s["i"] * s["o"], 4.0 * passed
    y = s["n"] * case.out_hw**2 * s["o"]
    weights = s["k"] ** 2 * s["c"] * s["o"]
    passes = 2 if s.get("first") else 3
    return 2.0 * passes * y * s["k"] ** 2 * s["c"], 4.0 * passes * (x + y + weights)


def _conv(name: str, n: int, hw: int, c: int, o: int, k: int, **more: Any) -> Case:
    extra = {key: more.pop(key) for key in ("p", "s", "d", "first") if key in more}
    said = "".join(f", {what} {extra[key]}" for key, what in _WORDS if extra.get(key))
    title = f"conv {k}x{k} {c}->{o}, {hw}x{hw}{said}, b{n}" + (
        " (no dX)" * bool(extra.get("first"))
    )
    size = {"n": n, "hw": hw, "c": c, "o": o, "k": k, **extra}
    return Case(name, "conv", title, size, **more)


_WORDS = (("p", "pad"), ("s", "stride"), ("d", "spacing"))


def _pool(name: str, mode: str, n: int, hw: int, c: int, k: int, **more: Any) -> Case:
    title = f"{mode} pool {k}x{k}/2, {n}x{hw}x{hw}x{c}"
    return Case(
        name, "pool", title, {"n": n, "hw": hw, "c": c, "k": k, "s": 2, "mode": mode}, **more
    )


def _recurrent(cell: str, **more: Any) -> Case:
    size = {"cell": cell, "n": 32, "i": 64, "h": 128, "t": 50}
    return Case(cell.lower(), "recurrent", f"{cell} 64->128, T 50, b32", size, **more)


def _step(net: str, n: int, **more: Any) -> Case:
    return Case(net, "step", f"{NETS[net].title} training step, b{n}", {"net": net, "n": n}, **more)


def _rows(kind: str, name: str, title: str, n: int, i: int, **more: Any) -> Case:
    return Case(name, kind, f"{title} {n}x{i}", {"n": n, "i": i}, **more)


def _update(rule: str, **more: Any) -> Case:
    size = {"rule": rule, "n": 1 << 20}
    title = f"{'SGD momentum' if rule == 'SGD' else rule}, 1M parameters"
    return Case(rule.lower(), "update", title, size, **more)


_BIG = {"n": 64, "hw": 32, "c": 32}
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # A pre-activation at zero that rounds the other way moves a gradient: PyTorch's own float32
        # differs from its float64 by 1.2e-3 after three steps of the CNN, and Winograd's F(4x4),
        # whose outputs are right to 2e-5, moves more winners of the pooling than a direct sum.
        _step("lenet", 64, reach=(1.4, 2.2), short=True, peer=True, tolerance=5e-3),
        _step("cifar", 64, reach=(1.1, 2.0), tolerance=3e-2),
        _step("mlp", 64, short=True, peer=True, tolerance=1e-3),
        _step("vgg", 128, tolerance=5e-2),
        _conv("conv3x3", 32, 32, 32, 64, 3, p=1, reach=(1.1, 1.8), short=True, peer=True),
        _conv("conv3x3-b128", 128, 32, 32, 64, 3, p=1),
        _conv("conv3x3-32", 64, 32, 32, 32, 3, p=1),
        _conv("conv3x3-128", 32, 16, 128, 128, 3, p=1),
        _conv("conv3x3-256", 32, 8, 256, 256, 3, p=1),
        _conv("conv5x5-1", 64, 28, 1, 6, 5, p=2, first=True),
        _conv("conv5x5-6", 64, 14, 6, 16, 5, short=True),
        _conv("conv1x1", 32, 32, 64, 64, 1),
        _conv("conv3x3-stride2", 32, 32, 32, 64, 3, p=1, s=2),
        _conv("conv3x3-dilation2", 32, 32, 32, 64, 3, p=2, d=2),
        _conv("conv3x3-3", 64, 32, 3, 32, 3, p=1, first=True),
        _pool("maxpool2x2", "max", 64, 32, 32, 2, reach=(1.0, 5.0), short=True),
        _pool("maxpool2x2-6", "max", 64, 28, 6, 2),
        _pool("maxpool3x3", "max", 64, 32, 32, 3),
        _pool("avgpool2x2", "average", 64, 32, 32, 2),
        Case("batchnorm", "batchnorm", "BatchNorm2D 64x32x32x32", _BIG, short=True),
        _rows("layernorm", "layernorm", "LayerNorm", 4096, 256),
        _rows("cross_entropy", "softmax-ce-10", "softmax cross-entropy", 64, 10),
        _rows("cross_entropy", "softmax-ce-1000", "softmax cross-entropy", 1024, 1000),
        Case("relu", "relu", "ReLU 64x32x32x32", _BIG),
        Case("dense", "dense", "dense 64x400->120", {"n": 64, "i": 400, "o": 120}, peer=True),
        Case("dense-1024", "dense", "dense 256x1024->1024", {"n": 256, "i": 1024, "o": 1024}),
        _recurrent("RNN", reach=(2.0, 3.0), tolerance=1e-3),
        _recurrent("LSTM", reach=(0.65, 1.1), short=True, tolerance=1e-3),
        _recurrent("GRU", tolerance=1e-3),
        _update("Adam", short=True, tolerance=1e-3),
        _update("SGD", tolerance=1e-3),
    )
}


def choose(names: Iterable[str] | None, short: bool) -> list[Case]:
    """Return the cases named (all, or the short ones, without names), in the table's order.

    Raises
    ------
    ParameterError
        For a name that is no case.
    """
    if names is None:
        return [case for case in CASES.values() if case.short or not short]
    wanted = [name.strip() for name in names if name.strip()]
    for name in wanted:
        if name not in CASES:
            raise ParameterError(
                f"unknown case {name!r}, expected some of {', '.join(CASES)}{suggest(name, CASES)}"
            )
    if not wanted:
        raise ParameterError(f"no case named, expected some of {', '.join(CASES)}")
    return [case for name, case in CASES.items() if name in wanted]
