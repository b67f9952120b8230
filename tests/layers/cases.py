"""The table of layers under test: every test of tests/layers runs over it.

A case names the layer and its settings once; the gold and the PyTorch reference of the same name
are built from the same settings. `test_table.py` fails when a public layer has no case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gpulayers import activations, layers
from tests.layers import gold as golds


@dataclass(frozen=True, eq=False)
class Case:
    """One layer with settings.

    Attributes
    ----------
    id : str
    make : called with optional ``optimizer=``, returns a fresh layer
    shape : of the input, batch first
    gold : see `tests.layers.gold`
    torch : name and settings of the reference in `tests.layers.torch_reference`, or None
    size : (attribute, axis) that the first input fixes, or None
    sequence : whether one forward pass is a step that backward takes back in reverse (RNNCell)
    """

    id: str
    make: Callable[..., layers.LayerBase]
    shape: tuple[int, ...]
    gold: golds.Gold
    torch: tuple[str, dict[str, Any]] | None
    size: tuple[str, int] | None = None
    sequence: bool = False

    @property
    def layer(self) -> str:
        return type(self.make()).__name__

    @property
    def small(self) -> bool:
        """Whether a full difference, one number at a time, is affordable."""
        layer = self.make()
        return functools.reduce(lambda a, b: a * b, self.shape) <= 48 and (
            not layer.parameters or self.shape[-1] <= 4
        )

    def batch_of(self, n: int) -> tuple[int, ...]:
        return (n, *self.shape[1:])


# How the layers are given each activation; the key is its name in the gold.
ACT: dict[str, Any] = {
    "identity": None,
    "sigmoid": "Sigmoid",
    "relu": "ReLU",
    "leaky_relu": "leaky relu(alpha=0.3)",
    "gelu_tanh": "GELU(approximate=True)",
    "gelu_erf": activations.GELU(approximate=False),
    "tanh": activations.Tanh(),
    "affine": "affine(slope=2, intercept=-0.5)",
    "elu": "ELU(alpha=0.7)",
    "exponential": "Exponential",
    "selu": "selu",
    "hard_sigmoid": "Hard Sigmoid",
    "softplus": "SoftPlus",
}


def _fc(name: str, shape: tuple[int, int], n_out: int, act: str = "identity") -> Case:
    def make(**kwargs: Any) -> layers.LayerBase:
        return layers.FullyConnected(n_out, act_fn=ACT[act], **kwargs)

    settings = {"act": act}
    return Case(
        f"fc-{name}",
        make,
        shape,
        golds.fully_connected(**settings),
        ("fully_connected", settings),
        ("n_in", 1),
    )


def _conv2d(name: str, shape: tuple[int, ...], out_ch: int, kernel: Any, **settings: Any) -> Case:
    options = {k: v for k, v in settings.items() if k != "act"}

    def make(**kwargs: Any) -> layers.LayerBase:
        act = ACT[settings.get("act", "identity")]
        return layers.Conv2D(out_ch, kernel, act_fn=act, **options, **kwargs)

    gold = golds.conv2d(**settings)
    return Case(f"conv2d-{name}", make, shape, gold, ("conv2d", settings), ("in_ch", 3))


def _conv1d(name: str, shape: tuple[int, ...], out_ch: int, width: int, **settings: Any) -> Case:
    options = {k: v for k, v in settings.items() if k != "act"}

    def make(**kwargs: Any) -> layers.LayerBase:
        act = ACT[settings.get("act", "identity")]
        return layers.Conv1D(out_ch, width, act_fn=act, **options, **kwargs)

    gold = golds.conv1d(**settings)
    return Case(f"conv1d-{name}", make, shape, gold, ("conv1d", settings), ("in_ch", 2))


def _deconv2d(name: str, shape: tuple[int, ...], out_ch: int, kernel: Any, **settings: Any) -> Case:
    options = {k: v for k, v in settings.items() if k != "act"}

    def make(**kwargs: Any) -> layers.LayerBase:
        act = ACT[settings.get("act", "identity")]
        return layers.Deconv2D(out_ch, kernel, act_fn=act, **options, **kwargs)

    gold = golds.deconv2d(**settings)
    return Case(f"deconv2d-{name}", make, shape, gold, ("deconv2d", settings), ("in_ch", 3))


def _pool2d(name: str, shape: tuple[int, ...], kernel: Any, **settings: Any) -> list[Case]:
    return [
        Case(
            f"pool2d-{mode}-{name}",
            functools.partial(layers.Pool2D, kernel, mode=mode, **settings),
            shape,
            golds.pool2d(kernel, mode=mode, **settings),
            ("pool2d", {"kernel": kernel, "mode": mode, **settings}),
        )
        for mode in ("max", "average")
    ]


def _sparse(name: str, shape: tuple[int, int], n_out: int, act: str) -> Case:
    """Without evolution, which test_sparse looks at; with any numbers as mask."""

    def make(**kwargs: Any) -> layers.LayerBase:
        return layers.SparseEvolution(n_out, zeta=0, epsilon=1, act_fn=ACT[act], **kwargs)

    gold, settings = golds.sparse_evolution(act), {"act": act}
    return Case(f"sparse-{name}", make, shape, gold, ("sparse_evolution", settings), ("n_in", 1))


def _flatten(name: str, shape: tuple[int, ...], keep_dim: Any) -> Case:
    make = functools.partial(layers.Flatten, keep_dim)
    settings = {"keep_dim": keep_dim}
    return Case(f"flatten-{name}", make, shape, golds.flatten(keep_dim), ("flatten", settings))


def _softmax(name: str, shape: tuple[int, ...], dim: int) -> Case:
    make = functools.partial(layers.Softmax, dim)
    gold = golds.softmax_along(dim)
    return Case(f"softmax-{name}", make, shape, gold, ("softmax_along", {"dim": dim}))


def _recurrent(name: str, shape: tuple[int, ...], n_out: int, act: str) -> Case:
    cell = len(shape) == 2

    def make(**kwargs: Any) -> layers.LayerBase:
        return (layers.RNNCell if cell else layers.RNN)(n_out, act_fn=ACT[act], **kwargs)

    kind = "rnn_cell" if cell else "rnn"
    reference = (kind, {"act": act}) if act in ("tanh", "relu") else None
    gold = getattr(golds, kind)(act)
    return Case(f"{kind}-{name}", make, shape, gold, reference, ("n_in", 1), sequence=cell)


def _batchnorm(name: str, shape: tuple[int, ...], **settings: Any) -> Case:
    images = len(shape) == 4
    make = functools.partial(layers.BatchNorm2D if images else layers.BatchNorm1D, **settings)
    options = {k: v for k, v in settings.items() if k == "epsilon"}
    size = ("in_ch", 3) if images else ("n_in", 1)
    kind = "batchnorm2d" if images else "batchnorm1d"
    return Case(f"{kind}-{name}", make, shape, golds.batchnorm(**options), (kind, options), size)


def _layernorm(name: str, shape: tuple[int, ...], **settings: Any) -> Case:
    images = len(shape) == 4
    make = functools.partial(layers.LayerNorm2D if images else layers.LayerNorm1D, **settings)
    size = ("in_ch", 3) if images else ("n_in", 1)
    kind = f"layernorm{2 if images else 1}d-{name}"
    return Case(kind, make, shape, golds.layernorm(**settings), ("layernorm", settings), size)


class LSTMCell(layers.LSTMCell):
    """The cell as the tests here want it: `forward` returns the output alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        A, C = super().forward(*args, **kwargs)
        assert C.shape == A.shape
        return A


def _gated(kind: str, name: str, shape: tuple[int, ...], n_out: int, **settings: str) -> Case:
    cell = len(shape) == 2
    classes = {"lstm": (layers.LSTM, LSTMCell), "gru": (layers.GRU, layers.GRUCell)}
    options = {f"{k}_fn": ACT[v] for k, v in settings.items()}

    def make(**kwargs: Any) -> layers.LayerBase:
        return classes[kind][cell](n_out, **options, **kwargs)

    reference = None if settings else (kind, {"cell": cell})
    gold = getattr(golds, kind)(cell=cell, **settings)
    case_id = f"{kind}{'_cell' if cell else ''}-{name}"
    return Case(case_id, make, shape, gold, reference, ("n_in", 1), sequence=cell)


def _image(kind: str, make: Any, name: str, shape: tuple[int, ...], **settings: Any) -> Case:
    gold = getattr(golds, kind)(**settings)
    case = f"{kind.replace('_', '')}-{name}"
    return Case(case, functools.partial(make, **settings), shape, gold, (kind, settings))


def _groupnorm(name: str, shape: tuple[int, ...], **settings: Any) -> Case:
    make = functools.partial(layers.GroupNorm, **settings)
    gold, reference = golds.groupnorm(**settings), ("groupnorm", settings)
    return Case(f"groupnorm-{name}", make, shape, gold, reference, ("in_ch", 3))


def _dropout(name: str, shape: tuple[int, ...], p: float) -> Case:
    return Case(
        f"dropout-{name}", functools.partial(layers.Dropout, p), shape, golds.dropout(p), None
    )


CASES: list[Case] = [
    *(_fc(act, (5, 3), 4, act) for act in ACT),
    _fc("wide", (2, 33), 17, "tanh"),
    _fc("one-to-one", (3, 1), 1, "sigmoid"),
    _sparse("tanh", (5, 3), 4, "tanh"),
    _sparse("wide", (2, 17), 9, "relu"),
    _conv1d("plain", (2, 6, 3), 4, 3, act="tanh"),
    _conv1d("strided-uneven-pad", (3, 7, 2), 3, 4, stride=2, pad=(1, 2), act="relu"),
    _conv1d("dilated", (2, 9, 2), 2, 3, dilation=2, pad=1),
    _conv1d("same", (2, 6, 2), 3, 4, pad="same"),
    _conv1d("same-strided", (2, 5, 2), 2, 3, pad="same", stride=2, act="softplus"),
    _conv1d("causal", (2, 5, 2), 2, 3, pad="causal", act="tanh"),
    _conv1d("causal-strided-dilated", (1, 7, 1), 2, 2, pad="causal", stride=2, dilation=1),
    _conv1d("width-one", (2, 4, 3), 5, 1),
    _conv2d("plain", (2, 5, 6, 3), 4, (3, 3), act="relu"),
    _conv2d("one-number-kernel", (2, 4, 4, 1), 2, 2, act="elu"),
    _conv2d("odd-everything", (3, 7, 5, 2), 3, (2, 3), stride=2, pad=(1, 0, 2, 1), dilation=1),
    _conv2d("stride-and-dilation-pairs", (1, 6, 7, 2), 2, (3, 2), stride=(2, 1), dilation=(0, 2)),
    _conv2d("pad-pair", (2, 3, 4, 2), 2, (3, 3), pad=[2, 1], act="leaky_relu"),
    _conv2d("same-even-kernel", (2, 4, 5, 2), 3, (2, 4), pad="same", act="tanh"),
    _conv2d("same-strided", (2, 5, 4, 1), 2, (3, 3), pad="same", stride=2, act="sigmoid"),
    _conv2d("same-dilated", (1, 4, 5, 2), 2, (3, 2), pad="same", dilation=1),
    _conv2d("pointwise", (2, 3, 4, 3), 5, (1, 1), act="gelu_tanh"),
    _conv2d("whole-image", (2, 3, 4, 2), 3, (3, 4), act="selu"),
    _conv2d("single-channel", (2, 3, 3, 1), 1, (2, 2), act="tanh"),
    _deconv2d("plain", (2, 3, 4, 2), 3, (3, 2), act="tanh"),
    _deconv2d("strided-padded", (2, 3, 3, 2), 2, (3, 3), stride=2, pad=1, act="relu"),
    _deconv2d("uneven-pad", (2, 4, 3, 2), 3, (3, 3), pad=(0, 2, 1, 1)),
    _deconv2d("pad-beyond-kernel", (1, 5, 5, 1), 2, (2, 2), pad=2, stride=2),
    _deconv2d("same-strided-even-kernel", (2, 3, 4, 2), 2, (2, 4), pad="same", stride=2),
    _deconv2d("stride-pair", (2, 2, 3, 3), 2, 2, stride=(3, 1), act="sigmoid"),
    *_pool2d("2x2", (2, 4, 6, 3), (2, 2), stride=2),
    *_pool2d("overlapping-padded", (2, 5, 5, 2), (3, 3), pad=1),
    *_pool2d("k2-s2-p1", (1, 4, 4, 2), 2, stride=2, pad=1),
    *_pool2d("k2-s3-p1", (1, 7, 7, 1), (2, 2), stride=3, pad=1),
    *_pool2d("odd-everything", (3, 4, 7, 2), (2, 3), stride=(1, 2), pad=(1, 0, 2, 1)),
    *_pool2d("same", (2, 4, 5, 2), (3, 2), pad="same"),
    *_pool2d("global", (2, 3, 2, 3), (3, 2)),
    _flatten("first", (3, 2, 4, 2), "first"),
    _flatten("last", (2, 3, 4), "last"),
    _flatten("all", (2, 3, 2), -1),
    _flatten("of-two", (4, 3), "first"),
    _softmax("rows", (4, 6), -1),
    _softmax("columns", (3, 4), 0),
    _softmax("middle-of-three", (2, 4, 3), 1),
    _softmax("images", (2, 2, 3, 4), -1),
    _softmax("rows-of-images", (2, 3, 2, 2), 1),
    _recurrent("tanh", (3, 4), 2, "tanh"),
    _recurrent("softplus", (2, 1), 5, "softplus"),
    _recurrent("tanh", (2, 3, 5), 4, "tanh"),
    _recurrent("relu", (3, 2, 4), 3, "relu"),
    _recurrent("sigmoid-one-step", (2, 3, 1), 2, "sigmoid"),
    _recurrent("one-to-one", (4, 1, 3), 1, "elu"),
    _batchnorm("plain", (3, 4, 5, 2)),
    _batchnorm("one-pixel-images", (7, 1, 1, 3), epsilon=0.1, momentum=0.5),
    _batchnorm("plain", (6, 3)),
    _batchnorm("one-feature", (5, 1), epsilon=0.1, momentum=0.5),
    _batchnorm("wide", (4, 17)),
    _image("global_avg_pool2d", layers.GlobalAvgPool2D, "plain", (3, 4, 5, 2)),
    _image("global_avg_pool2d", layers.GlobalAvgPool2D, "small", (2, 3, 1, 4)),
    _image("upsample2d", layers.Upsample2D, "plain", (2, 3, 4, 2), factor=2),
    _image("upsample2d", layers.Upsample2D, "uneven", (3, 2, 5, 1), factor=[3, 1]),
    _image("upsample2d", layers.Upsample2D, "one", (2, 3, 2, 3), factor=1),
    _image("zero_pad2d", layers.ZeroPad2D, "plain", (2, 3, 4, 2), pad=1),
    _image("zero_pad2d", layers.ZeroPad2D, "pair", (2, 3, 2, 3), pad=[0, 2]),
    _image("zero_pad2d", layers.ZeroPad2D, "four-sides", (1, 2, 4, 2), pad=(1, 0, 3, 2)),
    _image("zero_pad2d", layers.ZeroPad2D, "none", (2, 2, 3, 1), pad=0),
    _layernorm("plain", (5, 4)),
    _layernorm("wide", (3, 33), epsilon=0.1),
    _layernorm("plain", (3, 4, 5, 2)),
    _layernorm("one-row", (4, 1, 3, 1), epsilon=0.01),
    _layernorm("one-pixel-images", (3, 1, 1, 4)),
    _gated("lstm", "plain", (3, 4), 2),
    _gated("lstm", "other-gates", (2, 1), 5, act="softplus", gate="hard_sigmoid"),
    _gated("lstm", "plain", (2, 3, 5), 4),
    _gated("lstm", "other-gates", (3, 2, 4), 3, act="elu", gate="tanh"),
    _gated("lstm", "one-step", (2, 3, 1), 2),
    _gated("lstm", "one-to-one", (4, 1, 3), 1),
    _gated("gru", "plain", (3, 4), 2),
    _gated("gru", "other-gates", (2, 1), 5, act="softplus", gate="hard_sigmoid"),
    _gated("gru", "plain", (2, 3, 5), 4),
    _gated("gru", "other-gates", (3, 2, 4), 3, act="elu", gate="tanh"),
    _gated("gru", "one-step", (2, 3, 1), 2),
    _gated("gru", "one-to-one", (4, 1, 3), 1),
    _groupnorm("plain", (2, 2, 3, 4), n_groups=2),
    _groupnorm("of-three", (3, 4, 3, 6), n_groups=2, epsilon=0.1),
    _groupnorm("one-group", (2, 3, 2, 3), n_groups=1),
    _groupnorm("instances", (2, 3, 4, 2), n_groups=2, epsilon=0.01),
    _dropout("images", (2, 3, 4, 3), 0.3),
    _dropout("half", (6, 5), 0.5),
    _dropout("none", (4, 3), 0.0),
]

with_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
learning = [case for case in CASES if case.make().parameters]
with_learning_cases = pytest.mark.parametrize("case", learning, ids=lambda case: case.id)
