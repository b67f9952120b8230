"""The table of modules under test, and how each is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpulayers import modules, random
from gpulayers.backend import use_backend
from tests.conftest import Backend
from tests.layers.cases import ACT
from tests.layers.harness import default_dtype, read_only, values
from tests.modules import gold as golds

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Case:
    """One module with settings; `shapes` are those of its inputs, batch first."""

    id: str
    make: Callable[..., modules.ModuleBase]
    shapes: Shapes
    gold: golds.Gold
    torch: tuple[str, dict[str, Any]] | None

    @property
    def module(self) -> str:
        return type(self.make()).__name__

    def inputs(self, dtype: str = "float64", batch: int | None = None, seed: int = 1) -> list:
        return [
            values(s if batch is None else (batch, *s[1:]), seed + k, dtype)
            for k, s in enumerate(self.shapes)
        ]

    def parameters(self, dtype: str = "float64") -> dict[str, np.ndarray]:
        """Known parameters of all components, by ``"component.name"``, in float64; read-only."""
        return dict(_parameters_of(self, dtype))

    def fresh(self, backend: Backend, dtype: str = "float64", **kwargs: Any) -> modules.ModuleBase:
        """A module that has seen the inputs' shapes and holds the known parameters."""
        module = self.make(**kwargs)
        with default_dtype(dtype):
            forward(module, on(backend, self.inputs(), dtype), retain_derived=False)
        module.flush_gradients()
        known = self.parameters(dtype)
        for name, array in named(module, "parameters").items():
            array[...] = backend.asarray(known[name], dtype)
        return module


@functools.cache
def _parameters_of(case: Case, dtype: str) -> dict[str, np.ndarray]:
    with default_dtype("float64"), use_backend("numpy"):
        module = case.make()
        forward(module, case.inputs(), retain_derived=False)
    known = {}
    for k, (name, array) in enumerate(sorted(named(module, "parameters").items())):
        numbers = 0.5 * values(array.shape, 100 + k)
        known[name] = np.abs(numbers) + 0.5 if name.endswith("running_var") else numbers
    return read_only({name: v.astype(dtype).astype(float) for name, v in known.items()})


def named(module: modules.ModuleBase, attribute: str) -> dict[str, Any]:
    """`parameters` or `gradients` of all components, by ``"component.name"``."""
    parts = getattr(module, attribute)["components"]
    return {f"{part}.{name}": a for part, arrays in parts.items() for name, a in arrays.items()}


def on(backend: Backend, arrays: Any, dtype: str = "float64") -> list:
    return [backend.asarray(a, dtype) for a in arrays]


def forward(module: modules.ModuleBase, Xs: list, **kwargs: Any) -> list:
    """The outputs; for dropout the generator is restarted."""
    random.seed(golds.SEED)
    Y = module.forward(*Xs, **kwargs)
    return list(Y) if isinstance(Y, tuple) else [Y]


def backward(module: modules.ModuleBase, dYs: list, **kwargs: Any) -> list:
    """The gradients of the inputs, from those of the outputs (lists after several forwards)."""
    if isinstance(module, modules.WavenetResidualModule):
        dX = module.backward(dYs[1], dYs[0], **kwargs)
    else:
        dX = module.backward(dYs[0], **kwargs)
    return list(dX) if isinstance(dX, tuple) else [dX]


def gradients_like(Ys: list, backend: Backend) -> list:
    """Known gradients of the outputs."""
    names = [Y.dtype.name for Y in Ys]
    return [
        backend.asarray(values(Y.shape, 20 + k, n), n)
        for k, (Y, n) in enumerate(zip(Ys, names, strict=True))
    ]


def known_gradients(Ys: list) -> list:
    return [values(Y.shape, 20 + k) for k, Y in enumerate(Ys)]


@functools.cache
def gold_of(case: Case, batch: int | None = None, seed: int = 1) -> golds.Result:
    params, Xs = case.parameters(), case.inputs(batch=batch, seed=seed)
    return case.gold(params, Xs, known_gradients(case.gold(params, Xs, None).Ys))


def _identity(name: str, shape: tuple[int, ...], act: str, *args: Any, **strides: Any) -> Case:
    def make(**kwargs: Any) -> modules.ModuleBase:
        settings = {"act_fn": ACT[act], **strides, **kwargs}
        return modules.SkipConnectionIdentityModule(*args, **settings)

    gold = golds.skip_identity(act, **strides)
    return Case(
        f"identity-{name}", make, (shape,), gold, ("skip_identity", {"act": act, **strides})
    )


def _conv(
    name: str, shape: tuple[int, ...], act: str, pads: Any, skip: Any, *args: Any, **settings: Any
) -> Case:
    def make(**kwargs: Any) -> modules.ModuleBase:
        return modules.SkipConnectionConvModule(
            *args,
            pad1=pads[0],
            pad2=pads[1],
            stride_skip=skip["stride"],
            act_fn=ACT[act],
            **settings,
            **kwargs,
        )

    options = {"act": act, "pads": pads, "skip": skip, **settings}
    return Case(f"conv-{name}", make, (shape,), golds.skip_conv(**options), ("skip_conv", options))


def _wavenet(name: str, shape: tuple[int, ...], *args: int) -> Case:
    def make(**kwargs: Any) -> modules.ModuleBase:
        return modules.WavenetResidualModule(shape[2], *args, **kwargs)

    settings = {"dilation": args[1]}
    return Case(
        f"wavenet-{name}", make, (shape, shape), golds.wavenet(**settings), ("wavenet", settings)
    )


def _attention(name: str, shapes: Shapes, n_heads: int) -> Case:
    def make(**kwargs: Any) -> modules.ModuleBase:
        return modules.MultiHeadedAttentionModule(n_heads, **kwargs)

    settings = {"n_heads": n_heads}
    return Case(
        f"attention-{name}", make, shapes, golds.attention(n_heads), ("attention", settings)
    )


def _bidirectional(
    name: str, shape: tuple[int, ...], n_out: int, merge: str, act: str = "tanh"
) -> Case:
    def make(**kwargs: Any) -> modules.ModuleBase:
        return modules.BidirectionalLSTM(n_out, act_fn=ACT[act], merge_mode=merge, **kwargs)

    torch = ("bidirectional", {"merge": merge}) if act == "tanh" else None
    return Case(f"bidirectional-{name}", make, (shape,), golds.bidirectional(merge, act), torch)


CASES: list[Case] = [
    _identity("plain", (2, 4, 5, 2), "tanh", 3, (3, 3), (3, 3)),
    _identity("even-kernels-strides", (2, 3, 4, 1), "relu", 2, (2, 3), 2, stride1=2, stride2=3),
    _conv("plain", (2, 6, 7, 2), "tanh", (0, 0), {"stride": 1, "pad": 0}, 3, 2, 3, (2, 1), (4, 3)),
    _conv(
        "all-pads",
        (2, 5, 6, 2),
        "sigmoid",
        ("same", (1, 0, 2, 1)),
        {"stride": 2, "pad": (2, 2, 4, 5)},
        *(2, 3, (3, 3), (3, 3), (3, 3)),
        stride2=1,
    ),
    _conv(
        "strided",
        (2, 8, 8, 1),
        "elu",
        (1, (1, 1)),
        {"stride": 2, "pad": (0, 0, 0, 0)},
        *(2, 2, 3, 3, 1),
        stride1=2,
    ),
    _conv("small", (2, 4, 3, 1), "tanh", (0, 0), {"stride": 1, "pad": 0}, 2, 1, (2, 2), 1, (2, 2)),
    _wavenet("plain", (2, 6, 3), 4, 1, 2),
    _wavenet("wide-kernel", (3, 5, 2), 3, 0, 3),
    _wavenet("dilated-beyond-the-input", (1, 4, 1), 2, 4, 2),
    _attention("sequences", ((2, 3, 6), (2, 4, 6), (2, 4, 6)), 3),
    _attention("small", ((2, 2, 2), (2, 3, 2), (2, 3, 2)), 2),
    _attention("self-sized", ((2, 3, 4),) * 3, 1),
    _attention("numpy-ml-form", ((3, 8),) * 3, 4),
    *(_bidirectional(mode, (2, 3, 4), 2, mode) for mode in ("concat", "sum")),
    *(_bidirectional(mode, (3, 1, 5), 3, mode) for mode in ("average", "multiply")),
    _bidirectional("elu-one-step", (2, 3, 1), 2, "concat", "elu"),
]

with_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
