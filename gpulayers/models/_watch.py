"""A copy of a network in which every layer tells when it is called: for tables and times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpulayers import backend, layers, random
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.layers._group import LayerGroup

Listener = Callable[[str, str, Any, Callable[[], Any], tuple[Any, ...]], Any]


def bare(layer: Any) -> Any:
    """The layer inside its wrappers."""
    return getattr(layer, "_base_layer", layer)


def parts_of(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """``(name, part)`` of every layer and every group inside, groups before their layers."""
    if isinstance(part, LayerGroup):
        for key, inner in part._parts().items():
            path = f"{name}.{key}" if name else key
            yield path, inner
            yield from parts_of(inner, path)


def watched(network: Any, listener: Listener, *methods: str) -> Any:
    """A copy of `network` whose parts call ``listener(name, method, part, call, arguments)``.

    `call` runs the method; what the listener returns is what the caller gets. The name of the
    network itself, or of a single layer, is empty.
    """
    twin = copy.deepcopy(network)
    for name, part in [("", twin), *parts_of(twin)]:
        for method in methods:
            setattr(part, method, _told(name, method, part, listener))
    twin.flush_gradients()  # what the original retains is none of ours
    return twin


def _told(name: str, method: str, part: Any, listener: Listener) -> Callable[..., Any]:
    original = getattr(part, method)

    def run(*args: Any, **kwargs: Any) -> Any:
        return listener(name, method, part, lambda: original(*args, **kwargs), args)

    return run


def example(network: Any, input_shape: Any, n: int = 1) -> list[Array]:
    """Zeros as `network` takes them, n examples: on its backend, in its dtype, ids as int64.

    `input_shape` is the shape of one example; for a layer of several inputs a list of shapes.
    """
    arrays = [a for a in _arrays(network) if a is not None]
    home = backend.backend_of(arrays[0]) if arrays else backend.current_backend()
    dtype = arrays[0].dtype if arrays else backend.default_dtype()
    if isinstance(first_layer(network), layers.Embedding):
        dtype = np.dtype("int64")
    return [backend.module(home).zeros((n, *shape), dtype) for shape in shapes_of(input_shape)]


def shapes_of(input_shape: Any, owner: str = "input_shape") -> list[tuple[Any, ...]]:
    """One shape, or a list of shapes, as a list of shapes; an error names the owner."""
    if not is_sequence(input_shape):
        raise ParameterError(
            f"{owner}: expected the shape of one input, a tuple such as (28, 28, 1), got "
            f"{input_shape!r}"
        )
    given: list[Any] = list(input_shape)
    if given and all(isinstance(shape, (list, tuple)) for shape in given):
        return [tuple(shape) for shape in given]
    return [tuple(given)]


def _arrays(network: Any) -> Iterator[Any]:
    leaves = [part for _, part in network.walk()] if isinstance(network, LayerGroup) else [network]
    for leaf in leaves:
        yield from leaf.parameters.values()


def first_layer(network: Any) -> Any:
    """The layer that the input reaches first, without wrappers."""
    while isinstance(network, LayerGroup):
        network = next(iter(network._parts().values()))
    return bare(network)


def forward(network: Any, inputs: list[Array], retain_derived: bool) -> Any:
    """Call `network` with its inputs: a list for those that merge, arguments for the others."""
    if isinstance(bare(network), (layers.Add, layers.Multiply)):
        return network.forward(inputs, retain_derived)
    return network.forward(*inputs, retain_derived=retain_derived)


def as_table(lines: Sequence[tuple[str, ...]], left: int = 2) -> str:
    """Cells in columns: the first `left` of them flush left, figures flush right."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if c < left else f"{cell:>{w}}"
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


class undisturbed:  # noqa: N801 - read as a verb, like contextlib.suppress
    """The library's random numbers go on after the block as if it had drawn none."""

    def __enter__(self) -> None:
        self._before = random.get_state()

    def __exit__(self, *exc: object) -> None:
        random.set_state(self._before)
