"""A network as a table: what each layer gives, holds, computes and keeps in memory.

    print(gpulayers.summarize(network, (28, 28, 1)))

`network.summary()` is numpy-ml's, the dictionary from which `set_params` restores; with the
shape of an example it is the table of this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.layers import _arguments as check
from gpulayers.layers._group import LayerGroup
from gpulayers.models._watch import (
    as_table,
    bare,
    example,
    forward,
    parts_of,
    shapes_of,
    undisturbed,
    watched,
)
from gpulayers.models.blocks import Residual
from gpulayers.models.composite import Composite
from gpulayers.models.flops import flops

__all__ = ["Row", "Summary", "summarize"]

Shape = tuple[int, ...]
_HEAD = ("layer", "output", "parameters", "FLOPs", "memory forward", "memory backward")
_UNITS = "", " k", " M", " G", " T"


@dataclass(frozen=True)
class Row:
    """One layer, or the sum that a group adds to its layers.

    Attributes
    ----------
    name : str
        Where it stands, as its parameters are called: ``"3.body.0"``.
    layer : str
        Its class.
    output : shape of one example; a tuple of them for several outputs
    parameters : int
        Numbers that are learned.
    flops : int or None
        Operations of the forward pass; None for a class that is not gpulayers' own.
    forward_bytes : int
        What training holds after the layer's forward pass that it did not hold before: the output,
        and what the layer keeps for its backward pass. Seen, not computed.
    backward_bytes : int
        The gradients of the layer's inputs and of its parameters.
    is_group : bool
        Whether it is a block or a module, whose layers have rows of their own below it.
    """

    name: str
    layer: str
    output: tuple[Any, ...]
    parameters: int
    flops: int | None
    forward_bytes: int
    backward_bytes: int
    is_group: bool = False

    def cells(self) -> tuple[str, ...]:
        """The row as text; of a group what it does itself, if it does anything."""
        depth = self.name.count(".")
        unknown = "?" if self.flops is None else _scaled(self.flops, 1000, _UNITS)
        figures = (
            (self.parameters, f"{self.parameters:,}"),
            (self.flops, unknown),
            (self.forward_bytes, _bytes(self.forward_bytes)),
            (self.backward_bytes, _bytes(self.backward_bytes)),
        )
        return (
            "  " * depth + f"{self.name} {self.layer}".strip(),
            str(self.output),
            *("" if self.is_group and value == 0 else text for value, text in figures),
        )


@dataclass(frozen=True)
class Summary:
    """What `summarize` returns; ``print`` shows it as a table.

    Attributes
    ----------
    input_shape : of one example
    batch_size : int
        FLOPs and bytes are those of so many examples.
    rows : list of Row
        In the order in which data runs through them; a group stands before its layers.
    parameters, flops, forward_bytes, backward_bytes : sums
        `flops` leaves out the layers where it is None.
    parameter_bytes : int
        Of all parameters, running statistics too.
    """

    input_shape: tuple[Any, ...]
    batch_size: int
    rows: list[Row]
    parameter_bytes: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops or 0 for row in self.rows)

    @property
    def forward_bytes(self) -> int:
        return sum(row.forward_bytes for row in self.rows)

    @property
    def backward_bytes(self) -> int:
        return sum(row.backward_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "input_shape": self.input_shape,
            "batch_size": self.batch_size,
            "rows": [asdict(row) for row in self.rows],
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
            "flops": self.flops,
            "forward_bytes": self.forward_bytes,
            "backward_bytes": self.backward_bytes,
        }

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            _HEAD,
            ("input", str(tuple(self.input_shape)), "", "", "", ""),
        ]
        lines += [row.cells() for row in self.rows]
        unknown = any(row.flops is None for row in self.rows)
        total = _scaled(self.flops, 1000, _UNITS)
        lines.append(
            (
                "total",
                "",
                f"{self.parameters:,}",
                f"{total} + ?" if unknown else total,
                _bytes(self.forward_bytes),
                _bytes(self.backward_bytes),
            )
        )
        examples = "one example" if self.batch_size == 1 else f"{self.batch_size} examples"
        note = (
            f"FLOPs and memory of {examples}; the parameters themselves take "
            f"{_bytes(self.parameter_bytes)}"
        )
        return f"{as_table(lines)}\n{note}"


def summarize(network: Any, input_shape: Sequence[Any], batch_size: int = 1) -> Summary:
    """Look at `network` layer by layer: output shape, parameters, FLOPs, memory.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
        It is not changed: a copy is run, for training, on zeros. (On a GPU the copy takes memory.)
    input_shape : shape of one example, e.g. (28, 28, 1); for a layer of several inputs a list of
        them
    batch_size : int
        Count FLOPs and bytes for so many examples. Two are run at most: both grow by the same
        amount for every further one.

    Returns
    -------
    Summary

    Raises
    ------
    ParameterError
        If batch_size is no positive integer, or `network` neither network nor layer.
    GPULayersError
        If the network does not take such an input: the failing layer's own error.

    Notes
    -----
    FLOPs as `models.flops` counts them; a backward pass takes about twice those of its forward
    pass (two products instead of one). What `network.compile` makes of the network needs less
    memory: it fuses layers and uses buffers again.
    """
    return look(network, input_shape, batch_size, "summarize")


def look(network: Any, input_shape: Sequence[Any], batch_size: int, owner: str) -> Summary:
    """`summarize` for the function `owner`, which errors name."""
    if isinstance(network, type) or not hasattr(network, "forward"):
        raise ParameterError(f"{owner}: expected a network or a layer, got {network!r}")
    batch_size = check.integer(owner, "batch_size", batch_size)
    sides = [check.plain(n) for one in shapes_of(input_shape, owner) for n in one]
    if any(type(n) is not int or n < 1 for n in sides):
        raise ParameterError(f"{owner}: input_shape must hold positive integers, got {input_shape}")
    shape = tuple(input_shape)
    rows, parameter_bytes = _seen(network, shape, 1)
    if batch_size > 1:
        more, _ = _seen(network, shape, 2)
        rows = [_of_batch(a, b, batch_size) for a, b in zip(rows, more, strict=True)]
    return Summary(shape, batch_size, rows, parameter_bytes)


def _of_batch(one: Row, two: Row, n: int) -> Row:
    """The row of n examples, from those of one and two."""

    def grown(a: int | None, b: int | None) -> Any:
        return None if a is None or b is None else a + (n - 1) * (b - a)

    return replace(
        one,
        flops=grown(one.flops, two.flops),
        forward_bytes=grown(one.forward_bytes, two.forward_bytes),
        backward_bytes=grown(one.backward_bytes, two.backward_bytes),
    )


class _Held:
    """Memory that is held, as the union of the arrays' addresses."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._arrays: list[Array] = []  # kept alive: an address must not be given out again

    def add(self, value: Any) -> int:
        """Hold every array in `value`; return how many bytes are new."""
        inside: Any = value.values() if hasattr(value, "values") else value
        if isinstance(value, (dict, list, tuple)):
            return sum(self.add(v) for v in inside)
        if not hasattr(value, "strides") or not hasattr(value, "nbytes") or not value.nbytes:
            return 0
        start = value.data.ptr if hasattr(value.data, "ptr") else value.ctypes.data
        extent = sum((n - 1) * abs(s) for n, s in zip(value.shape, value.strides, strict=True))
        self._arrays.append(value)
        return self._cover(start, start + extent + value.dtype.itemsize)

    def _cover(self, start: int, stop: int) -> int:
        new = stop - start
        for a, b in self._spans:
            if a < stop and start < b:
                new -= min(b, stop) - max(a, start)
                start, stop = min(a, start), max(b, stop)
        self._spans = [(a, b) for a, b in self._spans if b < start or a > stop]
        self._spans.append((start, stop))
        return new


def _seen(network: Any, shape: tuple[Any, ...], n: int) -> tuple[list[Row], int]:
    """The rows of one training pass of n examples, and the bytes of all parameters."""
    held = _Held()
    rows: dict[str, Row] = {}
    called: dict[str, None] = {}  # groups before their layers, as data runs through them

    def listener(name: str, _: str, part: Any, call: Any, args: tuple[Any, ...]) -> Any:
        called.setdefault(name)
        Y = call()
        inputs = _arrays_in(args)
        layer, output = bare(part), _arrays_in((Y,))
        held.add(list(inputs))
        held.add(_parameters(layer))
        kept = layer._kept[-1:] if hasattr(layer, "_kept") else None
        if not isinstance(layer, LayerGroup):
            kept = [layer.X[-1:], layer._retained[-1].saved if layer._retained else None]
        group = isinstance(layer, LayerGroup)
        new = held.add([kept, list(output)])
        grads = [] if group else [g.nbytes for g in layer.gradients.values()]
        shapes = [a.shape for a in inputs], [a.shape for a in output]
        rows[name] = Row(
            name,
            type(layer).__name__,
            _one(tuple(s[1:] for s in shapes[1])),
            0 if group else sum(g.size for g in layer.gradients.values()),
            _group_flops(layer, shapes[1]) if group else flops(layer, *_first(shapes)),
            new,
            sum(grads) + (_group_backward(layer, inputs) if group else _floats(inputs)),
            group,
        )
        return Y

    twin = watched(network, listener, "forward")
    with undisturbed():
        inputs = example(network, shape, n)
        held.add(inputs)
        forward(twin, inputs, True)
    parts = {"": twin, **dict(parts_of(twin))}
    leaves = [part for _, part in twin.walk()] if isinstance(twin, LayerGroup) else [twin]
    total = sum(_nbytes(_parameters(bare(leaf))) for leaf in leaves)
    return [rows[name] for name in called if _has_row(parts[name])], total


def _has_row(part: Any) -> bool:
    """Chains add nothing of their own to their layers."""
    return not (isinstance(part, Composite) and not isinstance(part, Residual))


def _arrays_in(values: Any) -> list[Array]:
    """Arrays among the arguments of a call, also in lists."""
    found: list[Array] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _arrays_in(value)
        elif hasattr(value, "strides"):
            found.append(value)
    return found


def _parameters(layer: Any) -> list[Array]:
    if isinstance(layer, LayerGroup):
        return []
    return [a for a in layer.parameters.values() if a is not None]


def _nbytes(arrays: list[Array]) -> int:
    return sum(a.nbytes for a in arrays)


def _floats(arrays: list[Array]) -> int:
    """Bytes of the gradients of these inputs; ids have none."""
    return _nbytes([a for a in arrays if a.dtype.kind not in "iu"])


def _one(shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    return shapes[0] if len(shapes) == 1 else shapes


def _first(shapes: tuple[list[Shape], list[Shape]]) -> tuple[list[Shape], Shape]:
    return shapes[0], shapes[1][0] if shapes[1] else ()


def _group_flops(layer: Any, outputs: list[Shape]) -> int:
    """The addition of a residual block; what modules compute between their layers is little."""
    if not isinstance(layer, Residual):
        return 0
    return math.prod(outputs[0])


def _group_backward(layer: Any, inputs: list[Array]) -> int:
    """A residual block adds the gradients of both sides up."""
    return _floats(inputs) if isinstance(layer, Residual) else 0


def _bytes(count: int) -> str:
    return _scaled(count, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(count: int, step: int, units: tuple[str, ...]) -> str:
    value, k = float(count), 0
    while value >= step and k < len(units) - 1:
        value, k = value / step, k + 1
    return f"{value:,.0f}{units[k]}" if k == 0 else f"{value:,.1f}{units[k]}"
