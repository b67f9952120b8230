"""Networks that are exported and run in onnxruntime; docs/onnx.md is written from the same table.

A case is a function that makes a layer or a network, and the shape of one example (a list of shapes
for a layer of several inputs). The name up to the first comma is the class that the page lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers import activations, backend, layers, models, modules, random, wrappers
from gpulayers.layers._group import LayerGroup

Shape = tuple[int, ...]
BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Any]
    shapes: list[Shape]
    ids: int = 0  # ids below this number instead of floats

    @property
    def subject(self) -> str:
        return self.name.partition(",")[0]

    def example(self, n: int, seed: int = 0) -> list[np.ndarray]:
        """Inputs for a batch of n."""
        rng = np.random.default_rng((seed, n))
        if self.ids:
            return [rng.integers(0, self.ids, (n, *self.shapes[0]))]
        return [rng.standard_normal((n, *shape)).astype(np.float32) for shape in self.shapes]


ACTIVATIONS: dict[str, Any] = {
    "Affine": activations.Affine(slope=1.5, intercept=-0.25),
    "ELU": activations.ELU(alpha=0.7),
    "Exponential": activations.Exponential(),
    "GELU": activations.GELU(approximate=True),
    "GELU, exact": activations.GELU(approximate=False),
    "HardSigmoid": activations.HardSigmoid(),
    "Identity": activations.Identity(),
    "LeakyReLU": activations.LeakyReLU(alpha=0.2),
    "ReLU": activations.ReLU(),
    "SELU": activations.SELU(),
    "Sigmoid": activations.Sigmoid(),
    "SoftPlus": activations.SoftPlus(),
    "Tanh": activations.Tanh(),
}


def cases() -> list[Case]:
    return [*_layers(), *_recurrent(), *_several_inputs(), *_groups(), *_activations()]


def _case(name: str, make: Callable[[], Any], *shapes: Shape, ids: int = 0) -> Case:
    return Case(name, make, list(shapes), ids)


def _layers() -> Iterator[Case]:
    L = layers
    image, row = (9, 7, 4), (11, 3)
    conv2d: dict[str, dict[str, Any]] = {
        "": {"kernel_shape": (3, 2)},
        ", pad, stride": {"kernel_shape": (3, 3), "pad": (2, 1, 0, 3), "stride": (2, 3)},
        ", dilation": {"kernel_shape": 2, "dilation": (1, 2), "pad": 1},
        ", 'same', stride": {"kernel_shape": (3, 4), "pad": "same", "stride": 2},
        ", ReLU": {"kernel_shape": 1, "act_fn": "ReLU"},
    }
    for what, more in conv2d.items():
        yield _case(f"Conv2D{what}", lambda more=more: L.Conv2D(5, **more), image)
    conv1d: dict[str, dict[str, Any]] = {
        "": {"kernel_width": 3, "pad": (1, 2), "stride": 2},
        ", 'causal', dilation": {"kernel_width": 3, "pad": "causal", "dilation": 2},
        ", 'same', stride": {"kernel_width": 4, "pad": "same", "stride": 3, "act_fn": "Tanh"},
    }
    for what, more in conv1d.items():
        yield _case(f"Conv1D{what}", lambda more=more: L.Conv1D(6, **more), row)
    deconv: dict[str, dict[str, Any]] = {
        "": {"kernel_shape": (3, 2), "stride": 2},
        ", pad": {"kernel_shape": (4, 3), "stride": (3, 2), "pad": (1, 0, 2, 1), "act_fn": "ELU"},
        ", pad above kernel": {"kernel_shape": 2, "stride": 2, "pad": (3, 2, 4, 0)},
        ", 'same'": {"kernel_shape": 3, "stride": 2, "pad": "same"},
    }
    for what, more in deconv.items():
        yield _case(f"Deconv2D{what}", lambda more=more: L.Deconv2D(5, **more), image)
    pool: dict[str, dict[str, Any]] = {
        "": {"kernel_shape": 2, "stride": 2},
        ", pad": {"kernel_shape": (3, 2), "stride": (1, 2), "pad": (1, 2, 0, 1)},
        ", 'same', stride": {"kernel_shape": 3, "stride": 2, "pad": "same"},
    }
    for what, more in pool.items():
        for mode in ("max", "average"):
            size = (2, 3, 3) if what.endswith("stride") and mode == "max" else (4, 5, 3)
            yield _case(
                f"Pool2D, {mode}{what}", lambda m=mode, more=more: L.Pool2D(mode=m, **more), size
            )
    far = lambda: L.Pool2D(2, stride=4, pad=(1, 4, 0, 3))  # noqa: E731
    yield _case("Pool2D, max, pad never reached", far, (4, 5, 3))
    yield _case("GlobalAvgPool2D", L.GlobalAvgPool2D, image)
    yield _case("Upsample2D", lambda: L.Upsample2D((2, 3)), image)
    yield _case("ZeroPad2D", lambda: L.ZeroPad2D((1, 0, 2, 3)), image)
    yield _case("BatchNorm1D", L.BatchNorm1D, (6,))
    yield _case("BatchNorm2D", lambda: L.BatchNorm2D(epsilon=1e-3), image)
    yield _case("LayerNorm1D", L.LayerNorm1D, (6,))
    yield _case("LayerNorm2D", L.LayerNorm2D, image)
    yield _case("GroupNorm", lambda: L.GroupNorm(2), image)
    yield _case("FullyConnected", lambda: L.FullyConnected(7, act_fn="SELU"), (5,))
    yield _case("FullyConnected, in a wrapper", _wrapped, (5,))
    yield _case("SparseEvolution", lambda: L.SparseEvolution(7, epsilon=2, act_fn="ReLU"), (9,))
    yield _case("Embedding", lambda: L.Embedding(4, 11), (5,), ids=11)
    yield _case("Embedding, sum", lambda: L.Embedding(4, 11, pool="sum"), (5,), ids=11)
    yield _case("Embedding, mean", lambda: L.Embedding(4, 11, pool="mean"), (5,), ids=11)
    yield _case("GatedActivation", models.GatedActivation, (5, 6))
    yield _case("GatedActivation, of images", models.GatedActivation, (3, 4, 6))
    yield _case("Flatten", L.Flatten, image)
    yield _case("Flatten, last", lambda: L.Flatten("last"), image)
    yield _case("Flatten, all", lambda: L.Flatten(-1), image)
    yield _case("Softmax", L.Softmax, (6,))
    yield _case("Softmax, axis 1", lambda: L.Softmax(1), image)
    yield _case("Dropout", lambda: L.Dropout(0.5), (6,))


def _wrapped() -> Any:
    return wrappers.Dropout(layers.FullyConnected(4), 0.5)


def _recurrent() -> Iterator[Case]:
    kinds = {"RNN": layers.RNN, "LSTM": layers.LSTM, "GRU": layers.GRU}
    for name, kind in kinds.items():
        yield _case(name, lambda kind=kind: kind(4), (3, 6))
        last: dict[str, Any] = {"return_sequences": False, "act_fn": "leaky relu(alpha=0.1)"}
        yield _case(f"{name}, last state", lambda kind=kind, last=last: kind(4, **last), (3, 6))
        yield _case(f"{name}, GELU", lambda kind=kind: kind(4, act_fn="GELU"), (3, 5))
    gates = {"act_fn": "Affine(slope=0.5, intercept=0.1)", "gate_fn": "Hard Sigmoid"}
    yield _case("LSTM, other gates", lambda: layers.LSTM(4, **gates), (3, 6))
    mixed = {"act_fn": "Affine(slope=0.5, intercept=0.1)", "gate_fn": "leaky relu(alpha=0.2)"}
    yield _case("GRU, numbers of both", lambda: layers.GRU(4, **mixed), (3, 6))
    yield _case("GRU, one step", lambda: layers.GRU(4, act_fn="SELU"), (3, 1))
    cells = {"RNNCell": layers.RNNCell, "LSTMCell": layers.LSTMCell, "GRUCell": layers.GRUCell}
    for name, kind in cells.items():
        shapes = [(3,), *[(4,)] * (2 if name == "LSTMCell" else 1)]
        yield _case(name, lambda kind=kind: kind(4), *shapes)
        yield _case(f"{name}, SELU", lambda kind=kind: kind(4, act_fn="SELU"), *shapes)
    for mode in ("concat", "sum", "average", "multiply"):
        make = lambda mode=mode: modules.BidirectionalLSTM(4, merge_mode=mode)  # noqa: E731
        yield _case(f"BidirectionalLSTM, {mode}", make, (3, 6))
    yield _case("BidirectionalLSTM, GELU", lambda: modules.BidirectionalLSTM(4, "GELU"), (3, 4))


def _several_inputs() -> Iterator[Case]:
    image = (4, 5, 3)
    yield _case("Add", lambda: layers.Add("ReLU"), image, image, image)
    yield _case("Multiply", layers.Multiply, image, image)
    attention = [(2, 5, 4), (2, 6, 4), (2, 6, 3)]
    yield _case("DotProductAttention", layers.DotProductAttention, *attention)
    yield _case(
        "DotProductAttention, unscaled", lambda: layers.DotProductAttention(False), *attention
    )
    heads = lambda: modules.MultiHeadedAttentionModule(2, 0.1)  # noqa: E731
    yield _case("MultiHeadedAttentionModule", heads, (5, 6), (4, 6), (4, 6))
    yield _case("MultiHeadedAttentionModule, numpy-ml's form", heads, (6,), (6,), (6,))
    wavenet = lambda: modules.WavenetResidualModule(4, 5, 1, 3)  # noqa: E731
    yield _case("WavenetResidualModule", wavenet, (9, 4), (9, 4))
    yield _case("WavenetResidualModule, first", wavenet, (9, 4))


def _groups() -> Iterator[Case]:
    image = (8, 6, 4)
    yield _case(
        "SkipConnectionIdentityModule",
        lambda: modules.SkipConnectionIdentityModule(5, 3, 3, act_fn="ReLU"),
        image,
    )
    yield _case(
        "SkipConnectionConvModule",
        lambda: modules.SkipConnectionConvModule(5, 6, 3, 3, 1, 1, 1, act_fn="Tanh"),
        image,
    )
    yield _case("Residual", lambda: models.Residual([layers.Conv2D(4, 3, 1)]), image)
    yield _case(
        "Residual, shortcut",
        lambda: models.Residual([layers.Conv2D(5, 3, 1)], [layers.Conv2D(5, 1)]),
        image,
    )
    yield _case("Sequential, lenet", lambda: models.lenet(10, (16, 12, 1)), (16, 12, 1))
    yield _case("Sequential, mlp", lambda: models.mlp(3, (5, 4)), (5, 4))
    yield _case(
        "Sequential, vgg-small", lambda: models.vgg_small(10, (8, 8, 3), width=4), (8, 8, 3)
    )
    yield _case("Sequential, resnet9", lambda: models.resnet9(10, (8, 8, 3), width=4), (8, 8, 3))
    yield _case("Sequential, layer norm", _normalised, image)
    yield _case("Sequential, words", _words, (7,), ids=20)


def _normalised() -> Any:
    """Layers that take channels first as they come, between two that want them so."""
    between = [layers.LayerNorm2D(), layers.ZeroPad2D((1, 0, 2, 0)), layers.Softmax(1)]
    return models.Sequential([layers.Conv2D(3, 2), *between, layers.Conv2D(2, 2)])


def _words() -> Any:
    chain = [layers.Embedding(6, 20), layers.Conv1D(5, 3, "same"), layers.GRU(4)]
    return models.Sequential([*chain, layers.Flatten(), layers.FullyConnected(2)])


def _activations() -> Iterator[Case]:
    for name, act in ACTIVATIONS.items():
        subject, comma, more = name.partition(",")
        yield _case(f"{subject}{comma}{more}", lambda act=act: models.Activation(act), (40,))


def prepared(case: Case) -> Any:
    """The case's layer, initialised, with biases, scales and statistics that are not neutral."""
    generator = random.default_generator()
    before = generator.state
    random.seed(0)
    layer = case.make()
    forward(layer, case.example(2))
    generator.state = before
    rng = np.random.default_rng(7)
    parts = [p for _, p in layer.walk()] if isinstance(layer, LayerGroup) else [layer]
    for part in parts:
        for name, array in part.parameters.items():
            if name == "W_mask":
                continue
            noise = rng.uniform(0.5, 1.5, array.shape)
            array[...] = noise if name == "running_var" else array + 0.3 * (noise - 1)
    return layer


def forward(layer: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs in evaluation."""
    arrays = [backend.asarray(x) for x in inputs]
    if isinstance(layer, (layers.Add, layers.Multiply)):
        outputs = layer.forward(arrays, retain_derived=False)
    elif isinstance(layer, (layers.RNNCell, layers.LSTMCell, layers.GRUCell)):
        layer.flush_gradients()
        layer.derived_variables.update(zip(layer._states, ([a] for a in arrays[1:]), strict=True))
        outputs = layer.forward(arrays[0], retain_derived=False)
    else:
        outputs = layer.forward(*arrays, retain_derived=False)
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    return [backend.to_cpu(y) for y in several]


def difference(layer: Any, case: Case, session: Any, n: int, dtype: Any = None) -> float:
    """The largest difference between our outputs and onnxruntime's, as
    max |a - b| / max(1, max |b|), for a batch of n; of a model of another dtype than the layer's
    with its floats in that one."""
    inputs = case.example(n, seed=1)
    names = [i.name for i in session.get_inputs()]
    ours = forward(layer, inputs)
    if dtype is not None:
        inputs = [X.astype(dtype) if X.dtype.kind == "f" else X for X in inputs]
        ours = [Y.astype(dtype) for Y in ours]
    theirs = session.run(None, dict(zip(names, inputs, strict=True)))
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{case.name}: {a.shape} {a.dtype} here, {b.shape} {b.dtype} there")
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / scale)
    return worst


def tried(layer: Any, case: Case, model: Any, dtype: str) -> tuple[float, str | None]:
    """Difference to what onnxruntime computes with a model of `dtype`, and None; or the operator
    that it lacks, which it says when the model is loaded or run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4  # it prints what it raises
    try:
        run = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return difference(layer, case, run, 3, dtype), None
    except Exception as error:  # classes that it does not export
        text = r"an implementation for (\w+)\(|(\w+) operator does not support double"
        found = re.search(text, str(error))
        if found is None:
            raise
        return 0.0, found[1] or found[2]
