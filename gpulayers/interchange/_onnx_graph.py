"""An ONNX graph under construction, in which layouts cost nothing until an operator asks for one.

A `Value` has the shape that gpulayers gives it, batch first and channels last, and says in which
order its axes really lie in the ONNX tensor. An elementwise operator takes any order. A convolution
asks for channels first; only then is a Transpose written, and only if the order is another. So two
convolutions that follow each other need none between them, whatever elementwise stands there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import InterchangeError, ShapeError

Shape = tuple[int | None, ...]  # None: known only when the model runs

MISSING = "ONNX export needs the package onnx: pip install onnx"


def require_onnx() -> ModuleType:
    """The package `onnx`; ImportError that says what to install."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(MISSING) from error
    return onnx


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes
    ----------
    name : str
    shape : as in gpulayers, batch first
    order : axis j of the ONNX tensor is axis ``order[j]`` of `shape`
    """

    name: str
    shape: Shape
    order: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def axis(self, ours: int) -> int:
        """Where our axis lies in the ONNX tensor."""
        return self.order.index(ours % self.ndim)

    def batch_free(self, place: str) -> tuple[int, ...]:
        """The sizes behind the batch axis, all of them known."""
        sizes = [size for size in self.shape[1:] if size is not None]
        if len(sizes) < self.ndim - 1:
            raise InterchangeError(
                f"ONNX export: {place}: needs sizes that do not depend on the batch, got "
                f"{_shown(self.shape)}"
            )
        return tuple(sizes)


def as_given(ndim: int) -> tuple[int, ...]:
    """Axes in gpulayers' order."""
    return tuple(range(ndim))


def channels_first(ndim: int) -> tuple[int, ...]:
    """(n_ex, channels, ...), as ONNX's convolutions want it."""
    return (0, ndim - 1, *range(1, ndim - 1))


class Graph:
    """Nodes and weights so far; converters of layers add to it.

    Parameters
    ----------
    dtype : of all floating tensors
    name : str
        Of the network, for messages.
    """

    def __init__(self, dtype: np.dtype, name: str) -> None:
        self.onnx = require_onnx()
        self.dtype = np.dtype(dtype)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._path: list[tuple[str, str]] = [("", name)]
        self._count = 0
        self._turned: dict[tuple[str, tuple[int, ...]], Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # ---- where in the network

    @contextmanager
    def inside(self, key: str, layer: Any) -> Generator[None, None, None]:
        """Names and messages of what is added meanwhile say which part of the network it is."""
        what = f"layer {key}" if key.isdigit() else key
        self._path.append((key, f"{what} ({type(layer).__name__})"))
        try:
            yield
        finally:
            self._path.pop()

    @property
    def place(self) -> str:
        return ", ".join(text for _, text in self._path)

    def refuse(self, why: str) -> InterchangeError:
        """The error for a layer without a form in ONNX."""
        return InterchangeError(f"ONNX export: {self.place}: {why}")

    def expect(self, value: Value, ndim: int | None, axes: str, **sizes: tuple[int, Any]) -> None:
        """Raise ShapeError unless `value` has `ndim` axes, and sizes as ``name=(axis, size)``."""
        fits = ndim is None or value.ndim == ndim
        fits = fits and all(value.shape[a] == size for a, size in sizes.values())
        if not fits:
            wanted = "".join(f", {name} = {size}" for name, (_, size) in sizes.items())
            raise ShapeError(
                f"ONNX export: {self.place}: expected an input {axes}{wanted}, "
                f"got {_shown(value.shape)}"
            )

    # ---- adding

    def _new(self, what: str) -> str:
        self._count += 1
        where = ".".join(key for key, _ in self._path[1:])
        return f"{where}/{what}_{self._count}" if where else f"{what}_{self._count}"

    def add(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Write one node; return the name of its output, a list of them for several."""
        name = self._new(operator)
        results = [name if outputs == 1 else f"{name}:{k}" for k in range(outputs)]
        make = self.onnx.helper.make_node
        self.nodes.append(make(operator, list(inputs), results, name=name, **attributes))
        return results[0] if outputs == 1 else results

    def weight(self, array: Array, what: str = "weight") -> str:
        """An array as a constant of the model, in its dtype; return its name."""
        values = np.ascontiguousarray(backend.to_cpu(array), dtype=self.dtype)
        return self._constant(values, what)

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self._constant(np.array(values, np.int64), "shape")

    def scalar(self, value: float) -> str:
        """A constant of no axes."""
        return self._constant(np.array(value, self.dtype), "value")

    def floats(self, values: Sequence[float], dtype: Any = None) -> str:
        """A constant vector, of the model's dtype unless another is named."""
        return self._constant(np.array(values, dtype or self.dtype), "values")

    def _constant(self, values: np.ndarray, what: str) -> str:
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self._new(what)
            self.weights.append(self.onnx.numpy_helper.from_array(values, name))
        return self._constants[key]

    # ---- common forms

    def turned(self, value: Value, order: tuple[int, ...]) -> Value:
        """`value` with its axes in another order; written once however many ask for it."""
        if value.order == order:
            return value
        key = (value.name, order)
        if key not in self._turned:
            places = [value.order.index(axis) for axis in order]
            name = self.add("Transpose", [value.name], perm=places)
            self._turned[key] = Value(name, value.shape, order)
            self._turned[name, value.order] = value  # turned back it is what it was
        return self._turned[key]

    def given(self, value: Value) -> Value:
        """`value` with its axes in gpulayers' order."""
        return self.turned(value, as_given(value.ndim))

    def each(self, operator: str, value: Value, **attributes: Any) -> Value:
        """An elementwise operator of one tensor."""
        return Value(self.add(operator, [value.name], **attributes), value.shape, value.order)

    def both(self, operator: str, a: Value, b: Value) -> Value:
        """An elementwise operator of two tensors of one shape."""
        b = self.turned(b, a.order)
        return Value(self.add(operator, [a.name, b.name]), a.shape, a.order)

    def with_scalar(self, operator: str, value: Value, number: float) -> Value:
        """An elementwise operator of a tensor and a number."""
        name = self.add(operator, [value.name, self.scalar(number)])
        return Value(name, value.shape, value.order)

    def reshaped(self, value: Value, shape: Shape, sizes: Sequence[int]) -> Value:
        """Elements in gpulayers' order under another shape; `sizes` as ONNX's Reshape has them:
        0 is the input's, -1 what remains."""
        name = self.add("Reshape", [self.given(value).name, self.integers(*sizes)])
        return Value(name, shape, as_given(len(shape)))


def _shown(shape: Shape) -> str:
    return "(" + ", ".join("batch" if n is None else str(n) for n in shape) + ")"
