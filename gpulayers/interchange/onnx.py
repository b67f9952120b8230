"""Networks as ONNX models, for the runtimes that read them.

    from gpulayers.interchange import export_onnx
    export_onnx(network, "lenet.onnx", input_shape=(28, 28, 1))

What is written is the network in evaluation. The layout of inputs and outputs is gpulayers' own,
channels last; the batch may have any size; all other sizes are those given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gpulayers
from gpulayers import backend, layers
from gpulayers._dtypes import float_dtype
from gpulayers.errors import DTypeError, InterchangeError, ParameterError
from gpulayers.interchange._onnx_graph import Graph, Shape, Value, as_given, require_onnx
from gpulayers.interchange._onnx_groups import convert, refuse_unknown
from gpulayers.layers._group import LayerGroup
from gpulayers.layers._sequence import Cell
from gpulayers.models import Sequential
from gpulayers.models._watch import bare, example, first_layer, forward, shapes_of

__all__ = ["OPSET", "export_onnx", "onnx_model"]

OPSET = 17  # of ONNX 1.12 (2022): the first with LayerNormalization
_IR_VERSION = 8  # the file format of the same release


def export_onnx(
    network: Any,
    path: str | os.PathLike[str],
    input_shape: Sequence[Any],
    *,
    uint8_input: bool = False,
    dtype: Any = None,
) -> Path:
    """Write `network` as an ONNX model, and return the path.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
        On either backend. Layers that have seen no input yet draw their parameters now.
    path : path of the file, usually ``*.onnx``
    input_shape, uint8_input, dtype
        As `onnx_model`. Runtimes compute every operator in float32, many but some in float64.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        Without the package onnx.
    InterchangeError
        If ONNX cannot express a layer; the message names it and its place in the network.
    ShapeError, DTypeError, ParameterError
        As `onnx_model`.
    """
    try:
        path = Path(path)
    except TypeError:
        raise ParameterError(f"ONNX export: expected the path of a file, got {path!r}") from None
    model = onnx_model(network, input_shape, uint8_input=uint8_input, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def onnx_model(
    network: Any, input_shape: Sequence[Any], *, uint8_input: bool = False, dtype: Any = None
) -> Any:
    """Return `network` as an ``onnx.ModelProto`` of opset 17, checked by ``onnx.checker``.

    The inputs are called ``input`` (several: ``input_0``, ...) and the outputs ``output`` likewise.
    A network that begins with an `Embedding` takes int64 ids, all others floats of the model's
    dtype. The checker takes any; a runtime may lack operators in float64: onnxruntime lacks the
    convolutions, see the documentation's page on ONNX.
    Training has no counterpart: `Dropout` is left out, batch normalisation uses its running
    statistics, and recurrent layers begin with zero states and take no mask.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
    input_shape : shape of one example, e.g. (28, 28, 1); for a layer of several inputs a list of
        them; for a cell its input's and its states', ``[(n_in,), (n_out,)]``, of which the new ones
        are the output
    uint8_input : bool
        The model takes bytes and does to them what the network's `pixels` does.
    dtype : "float32", "float64" or "float16", optional
        In which the model computes, and its weights are rounded to; None is the parameters'. With
        "float32" a network of any dtype becomes a model that runs everywhere.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ImportError
        Without the package onnx.
    InterchangeError
        If ONNX cannot express a layer: `RBM`, a cell inside a network, a layer or an activation of
        your own.
    ShapeError
        If the layers do not take inputs of `input_shape`.
    DTypeError
        If the parameters are bfloat16, and `dtype` names no other.
    ParameterError
        If `input_shape` is no shape, the network has no `pixels` to apply, or `dtype` is none of
        those.

    Notes
    -----
    Source: ONNX operator specification, opset 17 (https://onnx.ai/onnx/operators/).
    """
    onnx = require_onnx()
    wanted = None if dtype is None else float_dtype(dtype, "ONNX export: dtype")
    if wanted is not None and wanted.kind != "f":
        raise ParameterError(
            f"ONNX export: dtype must be float32, float64 or float16, got {dtype!r}"
        )
    shapes = _shapes(input_shape)
    name = getattr(network, "name", type(network).__name__)
    ids = isinstance(first_layer(network), layers.Embedding)
    if uint8_input and (ids or not isinstance(network, Sequential)):
        raise ParameterError(f"ONNX export: {name} has no pixels that bytes could go through")
    refuse_unknown(Graph(backend.default_dtype(), name), network)  # before a layer is run
    _initialised(network, shapes)

    computed = wanted or _dtype(network, name)
    graph = Graph(computed, name)
    element = np.dtype("uint8") if uint8_input else np.dtype("int64") if ids else computed
    inputs = [
        Value(
            "input" if len(shapes) == 1 else f"input_{i}", (None, *shape), as_given(len(shape) + 1)
        )
        for i, shape in enumerate(shapes)
    ]
    values = [_from_bytes(graph, network.pixels, inputs[0])] if uint8_input else inputs
    given = convert(graph, network, *values)
    outputs: list[Value] = [given] if isinstance(given, Value) else list(given)
    named = [
        ("output" if len(outputs) == 1 else f"output_{i}", graph.given(value))
        for i, value in enumerate(outputs)
    ]
    for label, value in named:
        graph.nodes.append(onnx.helper.make_node("Identity", [value.name], [label], name=label))

    info, code = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            name,
            [info(v.name, code(element), _dims(v.shape)) for v in inputs],
            [info(label, code(computed), _dims(v.shape)) for label, v in named],
            graph.weights,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="gpulayers",
        producer_version=gpulayers.__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


# --------------------------------------------------------------------------------- inputs, outputs


def _shapes(input_shape: Any) -> list[tuple[int, ...]]:
    """One shape, or a list of them, as a list."""
    shapes = shapes_of(input_shape, "ONNX export")
    for shape in shapes:
        for size in shape:
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
                raise ParameterError(
                    "ONNX export: input_shape must hold positive integers, such as (28, 28, 1), "
                    f"got {input_shape!r}"
                )
    return [tuple(int(size) for size in shape) for shape in shapes]


def _leaves(network: Any) -> list[Any]:
    return [part for _, part in network.walk()] if isinstance(network, LayerGroup) else [network]


def _initialised(network: Any, shapes: list[tuple[int, ...]]) -> None:
    """Show the network one example, if it has parameters that do not exist yet."""
    if any(a is None for leaf in _leaves(network) for a in leaf.parameters.values()):
        is_cell = isinstance(bare(network), Cell)
        forward(network, example(network, shapes[:1] if is_cell else shapes), False)
        if is_cell:
            network.flush_gradients()  # it has not begun a sequence


def _dtype(network: Any, name: str) -> np.dtype:
    """That of the parameters, the default one without any."""
    arrays = [a for leaf in _leaves(network) for a in leaf.parameters.values() if a is not None]
    dtype = np.dtype(arrays[0].dtype if arrays else backend.default_dtype())
    if dtype.kind != "f":
        raise DTypeError(
            f"ONNX export: {name}: the parameters are {dtype}, expected float32, float64 or "
            'float16; dtype="float32" converts them'
        )
    return dtype


def _from_bytes(graph: Graph, pixels: Any, X: Value) -> Value:
    """(X - mean) / std of bytes, as `Pixels` does it: X * (1 / std) - mean / std."""
    code = graph.onnx.helper.np_dtype_to_tensor_dtype(graph.dtype)
    if len(pixels.mean) not in (1, X.shape[-1]):
        raise InterchangeError(
            f"ONNX export: the network's pixels are of {len(pixels.mean)} channels, the input "
            f"has {X.shape[-1]}"
        )
    mean, std = np.array(pixels.mean), np.array(pixels.std)
    name = graph.add("Cast", [X.name], to=code)
    name = graph.add("Mul", [name, graph.weight(1.0 / std, "scale")])
    if mean.any():
        name = graph.add("Sub", [name, graph.weight(mean / std, "shift")])
    return Value(name, X.shape, X.order)


def _dims(shape: Shape) -> list[int | str]:
    """Sizes that depend on the batch by name."""
    return [f"batch{i or ''}" if size is None else size for i, size in enumerate(shape)]
