"""PyTorch's ways of taking the same step, each with the settings that make it fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from _gpu import nets
from _gpu.nets import MOMENTUM, STEPS_CHECKED, Item, Layer

#: way -> mode of `torch.compile`, None for none
WAYS: dict[str, str | None] = {
    "torch eager": None,
    "torch graph": None,
    "torch reduce-overhead": "reduce-overhead",
    "torch compiled graph": "max-autotune-no-cudagraphs",
    "torch max-autotune": "max-autotune",
}
_GRAPHS = ("torch graph", "torch compiled graph")
_GRAPH_WARM_UP = 4


class Skip(nn.Module):
    """Y = body(X) + X."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + x


class Causal(nn.Module):
    """A convolution along time that sees no later steps."""

    def __init__(self, channels: int, filters: int, taps: int, spacing: int) -> None:
        super().__init__()
        self.pad = (taps - 1) * spacing
        self.conv = nn.Conv1d(channels, filters, taps, dilation=spacing)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, (self.pad, 0)) if self.pad else x)


class Gate(nn.Module):
    """Channels in two halves: tanh of the first times the logistic function of the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, gate = x.chunk(2, dim=1)
        return torch.tanh(shape) * torch.sigmoid(gate)


class Last(nn.Module):
    """The last state of a recurrent layer, for inputs (time, n, n_in)."""

    def __init__(self, kind: str, inputs: int, states: int) -> None:
        super().__init__()
        self.layer = {"rnn": nn.RNN, "lstm": nn.LSTM}[kind](inputs, states)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][-1]


def _module(layer: Layer, before: nets.Shape) -> nn.Module:
    kind, *n = layer
    if kind == "conv":
        return nn.Conv2d(before[-1], n[0], n[1], padding=n[2])
    if kind == "conv1d":
        return Causal(before[-1], *n)
    if kind == "skip":
        return Skip(model(nets.Net("", before, n[0])))
    if kind in ("rnn", "lstm"):
        return Last(kind, before[0], n[0])
    makers: dict[str, Callable[[], nn.Module]] = {
        "bn": lambda: nn.BatchNorm2d(before[-1], eps=1e-5, momentum=0.1),
        "relu": nn.ReLU,
        "gate": Gate,
        "pool": lambda: nn.MaxPool2d(n[0]),
        "flatten": nn.Flatten,
        "dense": lambda: nn.Linear(before[0], n[0]),
    }
    return makers[kind]()


def model(net: nets.Net) -> nn.Module:
    """Build the network; its parameters come in the order of ours."""
    modules, shape = [], net.shape
    for layer in net.layers:
        modules.append(_module(layer, shape))
        for _, _, after in nets._walk((layer,), shape):
            shape = after
    return nn.Sequential(*modules)


def moved(net: nets.Net, X: np.ndarray, device: str, dtype: Any) -> torch.Tensor:
    """A batch in PyTorch's layout: images channels last in memory."""
    x = torch.from_numpy(np.ascontiguousarray(X)).to(device=device, dtype=dtype)
    if net.is_image:
        return x.permute(0, 3, 1, 2)  # which is memory_format=channels_last
    if net.layers[0][0] == "conv1d":
        return x.permute(0, 2, 1).contiguous()
    return x.permute(2, 0, 1).contiguous()


def loaded(net: nets.Net, device: str, dtype: Any, alike: bool = True) -> nn.Module:
    """The model with our starting weights or, not `alike`, with its own."""
    made = model(net)
    if alike:
        _begin_as_ours(net, made)
    for name, weight in made.named_parameters():  # ours has one bias, which counts once
        weight.requires_grad_(not (name.endswith("bias_hh_l0") and net.layers[0][0] == "lstm"))
    made = made.to(device=device, dtype=dtype)
    return made.to(memory_format=torch.channels_last) if net.is_image else made


def _begin_as_ours(net: nets.Net, made: nn.Module) -> None:
    from gpulayers import backend
    from gpulayers.interchange.torch import torch_state

    former = backend.default_dtype()
    with backend.use_backend("numpy"):
        backend.set_default_dtype("float32")
        try:
            network = nets.ours(net)
            network.forward(np.zeros((1, *net.shape), np.float32), retain_derived=False)
        finally:
            backend.set_default_dtype(former)
        state = torch_state(network, like=made.state_dict(), input_shape=net.shape)
    made.load_state_dict({name: torch.as_tensor(array) for name, array in state.items()})


def weights_of(net: nets.Net, made: nn.Module) -> dict[str, np.ndarray]:
    """The model's weights in our layout, float64 by our names."""
    from gpulayers import backend
    from gpulayers.interchange.torch import load_torch_state

    former = backend.default_dtype()
    with backend.use_backend("numpy"):
        backend.set_default_dtype("float64")
        try:
            network = nets.ours(net)
            network.forward(np.zeros((1, *net.shape)), retain_derived=False)
        finally:
            backend.set_default_dtype(former)
        state = {name: t.detach().double().cpu() for name, t in made.state_dict().items()}
        load_torch_state(network, state, input_shape=net.shape)
        return nets.weights_of(network)


def set_precision(precision: str) -> None:
    """TF32 as the item says, for products, convolutions and recurrent layers alike."""
    allowed = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True


class Torch:
    """An item on PyTorch.

    Parameters
    ----------
    item : Item
        "bf16" is autocast of float32 weights, as PyTorch recommends; "fp64" is the referee.
    way : a key of WAYS
    device : "cuda" or "cpu"
    alike : bool
        Whether it begins with the weights that all sides have, not with PyTorch's own.
    """

    def __init__(self, item: Item, way: str, device: str = "cuda", alike: bool = True) -> None:
        set_precision(item.precision)
        self._net = net = nets.NETS[item.net]
        dtype = torch.float64 if item.precision == "fp64" else torch.float32
        X, labels = nets.batches(net, item.batch)
        self._data = [
            (moved(net, x, device, dtype), torch.from_numpy(y).to(device))
            for x, y in zip(X, labels, strict=True)
        ]
        self._device, self._place = device, 0
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(item.precision)
        self._made = loaded(net, device, dtype, alike)
        mode = WAYS[way]
        self._call: Any = torch.compile(self._forward, mode=mode) if mode else self._forward
        self._marks = mode is not None and way not in _GRAPHS and device == "cuda"
        learning = [w for w in self._made.parameters() if w.requires_grad]
        fused = {"fused": True} if device == "cuda" else {}
        self._rule = torch.optim.SGD(learning, lr=net.rate, momentum=MOMENTUM, **fused)
        self._losses: list[torch.Tensor] = []
        self._graph: Any = None
        self.multiple = 1  # of steps that a call does
        if way in _GRAPHS:
            self._capture()

    def _forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self._made(x), y)

    def _step(self, x: torch.Tensor, y: torch.Tensor, to_none: bool = True) -> torch.Tensor:
        half = torch.autocast(self._device, self._half) if self._half else contextlib.nullcontext()
        with half:
            loss = self._call(x, y)
        loss.backward()
        self._rule.step()
        self._rule.zero_grad(set_to_none=to_none)
        return loss.detach()

    def _capture(self) -> None:
        """The whole step as one graph, on a batch that is copied to where it takes it from."""
        self._x, self._y = (t.clone(memory_format=torch.preserve_format) for t in self._data[0])
        start = {name: t.clone() for name, t in self._made.state_dict().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_GRAPH_WARM_UP):
                self._step(self._x, self._y, to_none=False)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._graph_loss = self._step(self._x, self._y, to_none=False)
        with torch.no_grad():  # the warm-up steps never were
            for name, t in self._made.state_dict().items():
                t.copy_(start[name])
            for state in self._rule.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"].zero_()

    def run(self, steps: int, keep: bool = False) -> None:
        """Launch so many steps, on the batches in turn."""
        self._losses = []
        for _ in range(steps):
            x, y = self._data[self._place % len(self._data)]
            self._place += 1
            if self._graph is not None:
                self._x.copy_(x)
                self._y.copy_(y)
                self._graph.replay()
                loss = self._graph_loss
            else:
                if self._marks:
                    torch.compiler.cudagraph_mark_step_begin()
                loss = self._step(x, y)
            if keep:
                self._losses.append(loss.clone())

    def wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def losses(self, steps: int) -> list[float]:
        """Take so many more steps; return their losses."""
        self.run(steps, keep=True)
        return torch.stack(self._losses).tolist()

    def checked(self) -> tuple[list[float], dict[str, np.ndarray]]:
        """Losses of the first steps, and the weights after them, float64 by name."""
        return self.losses(STEPS_CHECKED), weights_of(self._net, self._made)

    def peak_bytes(self) -> int:
        """Bytes that PyTorch's allocator took from the device, at most so far."""
        return torch.cuda.max_memory_reserved() if self._device == "cuda" else 0

    def facts(self) -> dict[str, Any]:
        return {}
