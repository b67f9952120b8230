"""How each layer is written in ONNX; recurrent ones and groups stand in files of their own.

A converter takes the graph, the layer and its inputs, and returns its output. What it writes is the
layer in evaluation: dropout is nothing, batch normalisation uses its running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import layers
from gpulayers.backend import Array
from gpulayers.interchange._onnx_activations import activated
from gpulayers.interchange._onnx_graph import Graph, Value, as_given, channels_first
from gpulayers.models import Activation, GatedActivation
from gpulayers.ops.window import Window

Converter = Callable[..., Any]


# ---------------------------------------------------------------------------- dense, convolutions


def fully_connected(graph: Graph, layer: Any, X: Value) -> Value:
    """Gemm: Y = X W + b."""
    graph.expect(X, 2, "(n_ex, n_in)", n_in=(1, layer.n_in))
    W = layer.parameters["W"]
    if isinstance(layer, layers.SparseEvolution):
        W = W * layer.parameters["W_mask"]
    weights = [graph.weight(W, "W"), graph.weight(layer.parameters["b"].reshape(-1), "b")]
    name = graph.add("Gemm", [graph.given(X).name, *weights])
    return activated(graph, Value(name, (X.shape[0], layer.n_out), (0, 1)), layer.act_fn)


def conv2d(graph: Graph, layer: Any, X: Value) -> Value:
    """Conv, channels first, kernels (out_ch, in_ch, fr, fc)."""
    graph.expect(X, 4, "(n_ex, rows, cols, in_ch)", in_ch=(3, layer.in_ch))
    rows, cols, _ = X.batch_free(graph.place)
    window = Window.make(
        layer.kernel_shape, layer.stride, layer.pad, layer.dilation, (rows, cols), graph.place
    )
    W = layer.parameters["W"].transpose(3, 2, 0, 1)
    size = window.output_size(rows, cols, graph.place)
    return _conv(graph, layer, X, W, window, (X.shape[0], *size, layer.out_ch), (0, 1))


def conv1d(graph: Graph, layer: Any, X: Value) -> Value:
    """Conv over one axis, kernels (out_ch, in_ch, kernel_width)."""
    graph.expect(X, 3, "(n_ex, l_in, in_ch)", in_ch=(2, layer.in_ch))
    length = X.batch_free(graph.place)[0]
    window = Window.make_1d(
        layer.kernel_width, layer.stride, layer.pad, layer.dilation, length, graph.place
    )
    W = layer.parameters["W"].transpose(2, 1, 0)
    l_out = window.output_size(1, length, graph.place)[1]
    return _conv(graph, layer, X, W, window, (X.shape[0], l_out, layer.out_ch), (1,))


def _conv(
    graph: Graph,
    layer: Any,
    X: Value,
    W: Array,
    window: Window,
    shape: tuple[int | None, ...],
    axes: tuple[int, ...],
) -> Value:
    """`axes` of the window are the image's: (0, 1), of a sequence (1,)."""
    order = channels_first(X.ndim)
    weights = [graph.weight(W, "W"), graph.weight(layer.parameters["b"].reshape(-1), "b")]
    name = graph.add(
        "Conv",
        [graph.turned(X, order).name, *weights],
        kernel_shape=[window.kernel[a] for a in axes],
        strides=[window.stride[a] for a in axes],
        dilations=[window.dilation[a] for a in axes],
        pads=_pads(window, axes),
    )
    return activated(graph, Value(name, shape, order), layer.act_fn)


def _pads(window: Window, axes: tuple[int, ...] = (0, 1)) -> list[int]:
    """ONNX lists all beginnings, then all ends."""
    return [window.pad[2 * a] for a in axes] + [window.pad[2 * a + 1] for a in axes]


def deconv2d(graph: Graph, layer: Any, X: Value) -> Value:
    """ConvTranspose without padding, of which a Slice takes what the padding leaves.

    (onnxruntime refuses paddings that are larger than the kernel.)
    """
    graph.expect(X, 4, "(n_ex, rows, cols, in_ch)", in_ch=(3, layer.in_ch))
    rows, cols, _ = X.batch_free(graph.place)
    window, out = layer._geometry(rows, cols)
    W = layer.parameters["W"].transpose(2, 3, 0, 1)
    order = channels_first(4)
    name = graph.add(
        "ConvTranspose",
        [
            graph.turned(X, order).name,
            graph.weight(W, "W"),
            graph.weight(layer.parameters["b"].reshape(-1), "b"),
        ],
        kernel_shape=list(window.kernel),
        strides=list(window.stride),
    )
    if any(window.pad):
        top, _, left, _ = window.pad
        bounds = [graph.integers(top, left), graph.integers(top + out[0], left + out[1])]
        name = graph.add("Slice", [name, *bounds, graph.integers(2, 3)])
    return activated(graph, Value(name, (X.shape[0], *out, layer.out_ch), order), layer.act_fn)


# ------------------------------------------------------------------------------ pooling, resizing


def pool2d(graph: Graph, layer: Any, X: Value) -> Value:
    """MaxPool or AveragePool; padding as our layer counts it: minus infinity, or zeros.

    A window of an average may see nothing but padding, which runtimes refuse; a convolution with
    one kernel 1 / (fr fc) for each channel is the same.
    """
    graph.expect(X, 4, "(n_ex, rows, cols, ch)")
    rows, cols, channels = X.batch_free(graph.place)
    window = Window.make(layer.kernel_shape, layer.stride, layer.pad, 0, (rows, cols), graph.place)
    out = window.output_size(rows, cols, graph.place)
    if layer.mode == "max" and window.blind_outputs(rows, cols):
        raise graph.refuse("a window would see nothing but padding, whose maximum is of nothing")
    image = graph.turned(X, channels_first(4))
    attributes: dict[str, Any] = {
        "kernel_shape": list(window.kernel),
        "strides": list(window.stride),
        "pads": _seen_pads(window, (rows, cols), out),
    }
    operator, inputs = "MaxPool", [image.name]
    if layer.mode == "average":
        beyond = zip(attributes["pads"], window.kernel * 2, strict=True)
        if any(pad >= f for pad, f in beyond):
            share = np.full((channels, 1, *window.kernel), 1.0 / window.taps)
            operator, attributes["group"] = "Conv", channels
            inputs.append(graph.weight(share, "share"))
        else:
            operator, attributes["count_include_pad"] = "AveragePool", 1
    return Value(
        graph.add(operator, inputs, **attributes), (X.shape[0], *out, channels), image.order
    )


def _seen_pads(window: Window, size: tuple[int, int], out: tuple[int, int]) -> list[int]:
    """`_pads` without what no window reaches at the end."""
    begin, end = _pads(window)[:2], _pads(window)[2:]
    for a in range(2):
        reached = (out[a] - 1) * window.stride[a] + window.kernel[a] - size[a] - begin[a]
        end[a] = min(end[a], max(reached, 0))
    return begin + end


def global_avg_pool2d(graph: Graph, layer: Any, X: Value) -> Value:
    """GlobalAveragePool, without the two axes of one pixel that it leaves."""
    graph.expect(X, 4, "(n_ex, rows, cols, ch)")
    name = graph.add("GlobalAveragePool", [graph.turned(X, channels_first(4)).name])
    name = graph.add("Flatten", [name], axis=1)
    return Value(name, (X.shape[0], X.shape[3]), (0, 1))


def upsample2d(graph: Graph, layer: Any, X: Value) -> Value:
    """Resize, nearest neighbour."""
    graph.expect(X, 4, "(n_ex, rows, cols, ch)")
    rows, cols, channels = X.batch_free(graph.place)
    fr, fc = layer.factor
    image = graph.turned(X, channels_first(4))
    name = graph.add(
        "Resize",
        [image.name, "", graph.floats((1.0, 1.0, fr, fc), "float32")],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return Value(name, (X.shape[0], rows * fr, cols * fc, channels), image.order)


def zero_pad2d(graph: Graph, layer: Any, X: Value) -> Value:
    """Pad, in whatever order the axes lie."""
    graph.expect(X, 4, "(n_ex, rows, cols, ch)")
    rows, cols, channels = X.batch_free(graph.place)
    top, bottom, left, right = layer._sides
    begin, end = (0, top, left, 0), (0, bottom, right, 0)
    sides = [side[axis] for side in (begin, end) for axis in X.order]
    name = graph.add("Pad", [X.name, graph.integers(*sides)])
    return Value(name, (X.shape[0], top + rows + bottom, left + cols + right, channels), X.order)


# ---------------------------------------------------------------------------------- normalisation


def batch_norm(graph: Graph, layer: Any, X: Value) -> Value:
    """BatchNormalization with the running statistics."""
    channels = layer.parameters["scaler"].size
    graph.expect(X, layer._ndim, layer._axes, in_ch=(X.ndim - 1, channels))
    image = graph.turned(X, channels_first(X.ndim))
    names = ("scaler", "intercept", "running_mean", "running_var")
    weights = [graph.weight(layer.parameters[n], n) for n in names]
    name = graph.add("BatchNormalization", [image.name, *weights], epsilon=float(layer.epsilon))
    return Value(name, X.shape, image.order)


def layer_norm(graph: Graph, layer: Any, X: Value) -> Value:
    """LayerNormalization over all axes but the first, in whatever order they lie."""
    scaler = layer.parameters["scaler"]
    graph.expect(X, scaler.ndim + 1, layer._axes)
    if X.shape[1:] != scaler.shape:
        raise graph.refuse(f"expected an input (n_ex, ...) = {scaler.shape}, got {X.shape[1:]}")
    if X.order[0] != 0:
        X = graph.given(X)
    turn = [axis - 1 for axis in X.order[1:]]
    weights = [graph.weight(layer.parameters[n].transpose(turn), n) for n in layer._params]
    name = graph.add("LayerNormalization", [X.name, *weights], axis=1, epsilon=float(layer.epsilon))
    return Value(name, X.shape, X.order)


def group_norm(graph: Graph, layer: Any, X: Value) -> Value:
    """InstanceNormalization of (n_ex, groups, everything of a group), then scaler and intercept.

    (ONNX's own GroupNormalization is of a later opset.)
    """
    channels = layer.parameters["scaler"].size
    graph.expect(X, 4, layer._axes, in_ch=(3, channels))
    rows, cols, _ = X.batch_free(graph.place)
    image = graph.turned(X, channels_first(4))
    grouped = graph.add("Reshape", [image.name, graph.integers(0, layer.n_groups, -1)])
    ones = [graph.floats([number] * layer.n_groups) for number in (1.0, 0.0)]
    name = graph.add("InstanceNormalization", [grouped, *ones], epsilon=float(layer.epsilon))
    name = graph.add("Reshape", [name, graph.integers(0, channels, rows, cols)])
    for operator, parameter in (("Mul", "scaler"), ("Add", "intercept")):
        array = layer.parameters[parameter].reshape(-1, 1, 1)
        name = graph.add(operator, [name, graph.weight(array, parameter)])
    return Value(name, X.shape, image.order)


# ------------------------------------------------------------------------------------- the others


def embedding(graph: Graph, layer: Any, ids: Value) -> Value:
    """Gather, and a sum over the ids of an example where the layer pools."""
    W = graph.weight(layer.parameters["W"], "W")
    name = graph.add("Gather", [W, graph.given(ids).name])
    if layer.pool is None:
        shape = (*ids.shape, layer.n_out)
        return Value(name, shape, as_given(len(shape)))
    graph.expect(ids, 2, "(n_ex, n_in)")
    count = ids.batch_free(graph.place)[0]
    name = graph.add("ReduceSum", [name, graph.integers(1)], keepdims=1)
    Y = Value(name, (ids.shape[0], 1, layer.n_out), as_given(3))
    return graph.with_scalar("Mul", Y, 1.0 / max(count, 1)) if layer.pool == "mean" else Y


def flatten(graph: Graph, layer: Any, X: Value) -> Value:
    """Reshape, of the axes in gpulayers' order."""
    if layer.keep_dim == -1:
        return graph.reshaped(X, (1, None), (1, -1))
    if layer.keep_dim == "last":
        if X.ndim == 2:
            return X
        return graph.reshaped(X, (None, X.shape[-1]), (-1, _known(graph, X.shape[-1])))
    size = math.prod(X.batch_free(graph.place))
    return X if X.ndim == 2 else graph.reshaped(X, (X.shape[0], size), (0, size))


def _known(graph: Graph, size: int | None) -> int:
    if size is None:
        raise graph.refuse("the size of the last axis depends on the batch")
    return size


def softmax(graph: Graph, layer: Any, X: Value) -> Value:
    """Softmax along the axis, wherever it lies."""
    if not -X.ndim <= layer.dim < X.ndim:
        raise graph.refuse(f"the input has {X.ndim} axes, Softmax goes along axis {layer.dim}")
    return graph.each("Softmax", X, axis=X.axis(layer.dim))


def dropout(graph: Graph, layer: Any, X: Value) -> Value:
    """Nothing: what is exported is the network in evaluation."""
    return X


def activation(graph: Graph, layer: Any, X: Value) -> Value:
    return activated(graph, X, layer.act_fn)


def gated_activation(graph: Graph, layer: Any, X: Value) -> Value:
    """The two halves of the channels, wherever those lie."""
    channels = X.shape[-1]
    if channels is None or channels % 2:
        raise graph.refuse(f"expected an even number of channels, got shape {X.shape}")
    parts = graph.add("Split", [X.name], outputs=2, axis=X.axis(-1))
    shape = (*X.shape[:-1], channels // 2)
    F, G = (Value(part, shape, X.order) for part in parts)
    return graph.both("Mul", graph.each("Tanh", F), graph.each("Sigmoid", G))


def add(graph: Graph, layer: Any, *Xs: Value) -> Value:
    return _merged(graph, layer, "Add", Xs)


def multiply(graph: Graph, layer: Any, *Xs: Value) -> Value:
    return _merged(graph, layer, "Mul", Xs)


def _merged(graph: Graph, layer: Any, operator: str, Xs: tuple[Value, ...]) -> Value:
    Y = Xs[0]
    for X in Xs[1:]:
        if X.shape != Y.shape:
            raise graph.refuse(f"the inputs have the shapes {Y.shape} and {X.shape}")
        Y = graph.both(operator, Y, X)
    return activated(graph, Y, layer.act_fn)


def dot_product_attention(graph: Graph, layer: Any, Q: Value, K: Value, V: Value) -> Value:
    """P = softmax(Q K^T / sqrt(d_k)), Y = P V."""
    d_k = Q.shape[-1]
    fits = Q.ndim == K.ndim == V.ndim >= 2 and d_k == K.shape[-1] and K.shape[-2] == V.shape[-2]
    if not fits or d_k is None:
        raise graph.refuse(f"Q, K and V do not fit: {Q.shape}, {K.shape}, {V.shape}")
    swapped = (*range(Q.ndim - 2), Q.ndim - 1, Q.ndim - 2)
    scores = graph.add("MatMul", [graph.given(Q).name, graph.turned(K, swapped).name])
    P = Value(scores, (*Q.shape[:-1], K.shape[-2]), as_given(Q.ndim))
    if layer.scale:
        P = graph.with_scalar("Mul", P, 1.0 / math.sqrt(d_k))
    P = graph.each("Softmax", P, axis=P.ndim - 1)
    name = graph.add("MatMul", [P.name, graph.given(V).name])
    return Value(name, (*Q.shape[:-1], V.shape[-1]), as_given(Q.ndim))


CONVERTERS: dict[type, Converter] = {
    Activation: activation,
    GatedActivation: gated_activation,
    layers.Add: add,
    layers.BatchNorm1D: batch_norm,
    layers.BatchNorm2D: batch_norm,
    layers.Conv1D: conv1d,
    layers.Conv2D: conv2d,
    layers.Deconv2D: deconv2d,
    layers.DotProductAttention: dot_product_attention,
    layers.Dropout: dropout,
    layers.Embedding: embedding,
    layers.Flatten: flatten,
    layers.FullyConnected: fully_connected,
    layers.GlobalAvgPool2D: global_avg_pool2d,
    layers.GroupNorm: group_norm,
    layers.LayerNorm1D: layer_norm,
    layers.LayerNorm2D: layer_norm,
    layers.Multiply: multiply,
    layers.Pool2D: pool2d,
    layers.Softmax: softmax,
    layers.SparseEvolution: fully_connected,
    layers.Upsample2D: upsample2d,
    layers.ZeroPad2D: zero_pad2d,
}
