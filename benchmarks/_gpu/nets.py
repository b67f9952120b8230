"""The networks whose training steps are timed, their weights and batches: the same for all sides.

A network is a list of layers, each a tuple: ("conv", filters, size, pad), ("bn",), ("relu",),
("pool", size), ("flatten",), ("dense", outputs), ("skip", layers), ("rnn", states),
("lstm", states) with the last state put out, ("conv1d", filters, taps, spacing) causal, ("gate",):
tanh of the first half of the channels times the logistic function of the second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Layer = tuple[Any, ...]
Shape = tuple[int, ...]

MOMENTUM = 0.9
CLASSES = 10
BATCHES = 8  # different ones, taken in turn
STEPS_CHECKED = 3
_CONV_TIME = 1024
_TIME, _INPUTS = 100, 64


@dataclass(frozen=True)
class Net:
    """A chain of layers on examples of one shape, ours: channels last, sequences (n_in, time)."""

    title: str
    shape: Shape
    layers: tuple[Layer, ...]
    rate: float = 0.01  # at which the first steps neither stand still nor diverge

    @property
    def is_image(self) -> bool:
        return self.layers[0][0] == "conv"


def _block(filters: int) -> tuple[Layer, ...]:
    return (("conv", filters, 3, 1), ("bn",), ("relu",))


def _active(filters: int) -> tuple[Layer, ...]:
    return (("conv", filters, 3, 1), ("relu",))


def _wavenet(width: int = 32, depth: int = 10) -> tuple[Layer, ...]:
    """Van den Oord et al. (2016), figure 4: a dilated convolution for filter and gate at once, and
    one of a tap behind it that serves the residual and the skip connection both, so that all the
    skips together are what the residuals add up to; then two more of a tap, behind ReLUs."""
    blocks = tuple(
        ("skip", (("conv1d", 2 * width, 2, 2**i), ("gate",), ("conv1d", width, 1, 1)))
        for i in range(depth)
    )
    head: tuple[Layer, ...] = (("relu",), ("conv1d", width, 1, 1), ("relu",))
    return (("conv1d", width, 1, 1), *blocks, *head, ("flatten",), ("dense", CLASSES))


POOL: Layer = ("pool", 2)
NETS: dict[str, Net] = {
    "lenet": Net(
        "LeNet",
        (28, 28, 1),
        (
            *(("conv", 6, 5, 2), ("relu",), POOL, ("conv", 16, 5, 0), ("relu",), POOL),
            *(("flatten",), ("dense", 120), ("relu",), ("dense", 84), ("relu",)),
            ("dense", CLASSES),
        ),
    ),
    "vgg": Net(
        "VGG-small",
        (32, 32, 3),
        (
            *(*_active(32), *_active(32), POOL, *_active(64), *_active(64), POOL),
            *(("flatten",), ("dense", 512), ("relu",), ("dense", CLASSES)),
        ),
    ),
    "resnet9": Net(
        "ResNet-9",
        (32, 32, 3),
        (
            *(*_block(64), *_block(128), POOL, ("skip", (*_block(128), *_block(128)))),
            *(*_block(256), POOL, *_block(512), POOL, ("skip", (*_block(512), *_block(512)))),
            *(("pool", 4), ("flatten",), ("dense", CLASSES)),
        ),
        rate=1e-3,
    ),
    "rnn128": Net("RNN H128", (_INPUTS, _TIME), (("rnn", 128), ("dense", CLASSES))),
    "rnn512": Net("RNN H512", (_INPUTS, _TIME), (("rnn", 512), ("dense", CLASSES))),
    "lstm128": Net("LSTM H128", (_INPUTS, _TIME), (("lstm", 128), ("dense", CLASSES))),
    "lstm512": Net("LSTM H512", (_INPUTS, _TIME), (("lstm", 512), ("dense", CLASSES))),
    "wavenet": Net("WaveNet-like", (_CONV_TIME, 1), _wavenet(), rate=1e-4),
}


@dataclass(frozen=True)
class Item:
    """A training step that is timed: network, examples a batch, precision of the arithmetic."""

    net: str
    batch: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.net} b{self.batch} {self.precision}"


#: part -> what is timed in it
PARTS: dict[str, tuple[Item, ...]] = {
    "lenet": tuple(Item("lenet", n, "fp32") for n in (64, 128, 1024)),
    "vgg": tuple(Item("vgg", n, p) for n in (128, 512) for p in ("tf32", "bf16")),
    "resnet9": (Item("resnet9", 1024, "bf16"),),
    **{
        kind: tuple(Item(f"{kind}{states}", n, "tf32") for states in (128, 512) for n in (32, 256))
        for kind in ("rnn", "lstm")
    },
    "wavenet": (Item("wavenet", 16, "tf32"),),
}

#: item -> ratios to reach, against PyTorch as it comes and against the best of all peers
REACH: dict[str, tuple[float, float]] = {
    "lenet b64 fp32": (10, 3),
    "lenet b128 fp32": (10, 3),
    "lenet b1024 fp32": (5, 2),
    **{f"vgg b{n} {p}": (2.5, 1.3) for n in (128, 512) for p in ("tf32", "bf16")},
    "resnet9 b1024 bf16": (1.2, 1.0),
    "lstm128 b32 tf32": (3, 2.5),
    "lstm512 b32 tf32": (3, 2),
    "lstm512 b256 tf32": (3, 2),
    "wavenet b16 tf32": (8, 3),
}
#: largest error of three steps' update, relative in the Euclidean norm, before a step is timed;
#: and inputs that are off by this, relative, go as far astray as all the rounding does
TOLERANCE = {"fp32": 5e-3, "tf32": 3e-2, "bf16": 2.5e-1, "fp16": 1e-1}
ROUNDING = {"fp32": 2.0**-19, "tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}


def ours(net: Net, optimizer: str | None = None) -> Any:
    """Build the network of gpulayers' layers, with weights that are the same in every process."""
    from gpulayers import random
    from gpulayers.models import Sequential

    random.seed(0)
    rule = optimizer or f"SGD(lr={net.rate}, momentum={MOMENTUM})"
    return Sequential(list(_ours(net.layers)), rule, net.title)


def _ours(chain: tuple[Layer, ...]) -> Iterator[Any]:
    from gpulayers import layers
    from gpulayers.models import Activation, GatedActivation, Residual

    for kind, *n in chain:
        if kind == "conv":
            yield layers.Conv2D(n[0], (n[1], n[1]), pad=n[2])
        elif kind == "conv1d":
            yield layers.Conv1D(n[0], n[1], pad="causal", dilation=n[2] - 1)
        elif kind == "relu":
            yield Activation("ReLU")
        elif kind == "gate":
            yield GatedActivation()
        elif kind == "bn":
            yield layers.BatchNorm2D()
        elif kind == "pool":
            yield layers.Pool2D((n[0], n[0]), stride=n[0])
        elif kind == "flatten":
            yield layers.Flatten()
        elif kind == "dense":
            yield layers.FullyConnected(n[0])
        elif kind == "skip":
            yield Residual(list(_ours(n[0])))
        else:
            kinds = {"rnn": layers.RNN, "lstm": layers.LSTM}
            yield kinds[kind](n[0], return_sequences=False)


#: seed and size of the noise on inputs, relative
_shaken: tuple[int, float] | None = None


@contextlib.contextmanager
def shaken(seed: int, size: float) -> Iterator[None]:
    """Within it `batches` gives what it gives else, but for noise of this size."""
    global _shaken
    _shaken = seed, size
    try:
        yield
    finally:
        _shaken = None


def start(net: Net) -> dict[str, np.ndarray]:
    """The weights that all sides begin with, rounded to float32, by name."""
    from gpulayers import backend

    former = backend.default_dtype()
    with backend.use_backend("numpy"):
        backend.set_default_dtype("float32")
        try:
            network = ours(net)
            network.forward(np.zeros((1, *net.shape), np.float32), retain_derived=False)
        finally:
            backend.set_default_dtype(former)
    return weights_of(network)


def weights_of(network: Any, masters: bool = False) -> dict[str, np.ndarray]:
    """The weights that learn, on the host in float64, by name; if wanted the float32 copies that
    optimizers keep of those in half precision."""
    from gpulayers import backend
    from gpulayers.optimizers._master import parts

    found = {}
    for name, layer in network.walk():
        for key in layer.gradients:
            array = layer.parameters[key]
            if masters and array.dtype.itemsize == 2:
                entry = layer.optimizer.cache.get(key)
                master = None if entry is None else parts(entry)[1]
                array = array if master is None else master
            found[f"{name}.{key}"] = np.array(backend.to_cpu(array), np.float64)
    return found


def batches(net: Net, batch: int, count: int = BATCHES) -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs (count, batch, ...) float32 and labels (count, batch) int64."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((count, batch, *net.shape), dtype=np.float32)
    labels = rng.integers(0, CLASSES, (count, batch))
    if _shaken is not None:
        seed, size = _shaken
        X = X * (1 + size * np.random.default_rng(seed).standard_normal(X.shape))
    return X, labels


def work(net: Net, batch: int) -> tuple[float, float, int]:
    """Return what a step needs at least: floating-point operations, bytes in float32, parameters.

    Operations: products alone, back twice those forward, less the first layer's input gradient.
    Bytes: each activation written, read by the next layer and by the backward pass, its gradient
    written and read; what an activation function or pooling makes of a product takes the product's
    place, and what a gate makes of it is worked out anew where it is needed; states and gates of
    all times of a recurrent layer written and read; the input read twice; each weight read twice,
    and updated with one state.
    """
    flops, passed, parameters, first = 0.0, 0.0, 0, True
    last = 0.0  # of the layer before, where this one may take its place
    for kind, before, after in _walk(net.layers, net.shape):
        count, products = _products(kind, before, after)
        parameters += count
        flops += 2.0 * products * (2 if first and products else 3)
        first = first and not products
        if kind[0] in ("flatten", "gate", "skip"):
            continue
        if kind[0] in ("relu", "pool"):
            passed -= last
        last = 5.0 * math.prod(after)
        if kind[0] in ("rnn", "lstm"):
            passed += 2.0 * before[1] * after[0] * (6 if kind[0] == "lstm" else 1)
        passed += last
    passed += 2.0 * math.prod(net.shape) - 3.0 * CLASSES  # logits are read once, where the loss is
    return batch * flops, 4.0 * (batch * passed + 6.0 * parameters), parameters


def _products(layer: Layer, before: Shape, after: Shape) -> tuple[int, float]:
    """Parameters of a layer, and multiplications of one example forward."""
    kind, *n = layer
    if kind == "conv":
        taps = n[1] ** 2 * before[-1]
        return (taps + 1) * n[0], float(taps * math.prod(after))
    if kind == "conv1d":
        taps = n[1] * before[-1]
        return (taps + 1) * n[0], float(taps * math.prod(after))
    if kind == "dense":
        return (before[0] + 1) * n[0], float(before[0] * n[0])
    if kind == "bn":
        return 2 * before[-1], 0.0
    if kind in ("rnn", "lstm"):
        gates = 4 if kind == "lstm" else 1
        weights = gates * n[0] * (before[0] + n[0])
        return weights + gates * n[0], float(weights * before[1])
    return 0, 0.0


def _walk(chain: tuple[Layer, ...], shape: Shape) -> Iterator[tuple[Layer, Shape, Shape]]:
    """Each layer with the shapes of one example before and after it."""
    for layer in chain:
        kind, *n = layer
        before = shape
        if kind == "conv":
            shape = (*(s + 2 * n[2] - n[1] + 1 for s in shape[:2]), n[0])
        elif kind == "conv1d":
            shape = (shape[0], n[0])
        elif kind == "gate":
            shape = (*shape[:-1], shape[-1] // 2)
        elif kind == "pool":
            shape = (shape[0] // n[0], shape[1] // n[0], shape[2])
        elif kind == "flatten":
            shape = (math.prod(shape),)
        elif kind in ("dense", "rnn", "lstm"):
            shape = (n[0],)
        elif kind == "skip":
            yield from _walk(n[0], shape)
        yield layer, before, shape
