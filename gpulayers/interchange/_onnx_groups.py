"""Networks, blocks and modules in ONNX: their layers, one after another or side by side."""

from __future__ import annotations

from typing import Any

from gpulayers import activations, layers, models, modules
from gpulayers.interchange import _onnx_layers, _onnx_recurrent
from gpulayers.interchange._onnx_activations import activated
from gpulayers.interchange._onnx_graph import Graph, Value, as_given
from gpulayers.interchange._onnx_layers import Converter
from gpulayers.interchange._onnx_recurrent import recurrent
from gpulayers.layers._group import LayerGroup
from gpulayers.wrappers import Dropout, WrapperBase

_NO_FORM = {layers.RBM: "draws random numbers, and returns nothing"}


def convert(graph: Graph, layer: Any, *inputs: Value) -> Any:
    """Write `layer` into the graph; return its output, or a tuple of them.

    Raises
    ------
    InterchangeError
        If ONNX cannot express the layer; the message names it and its place.
    """
    converter, layer = _converter(graph, layer)
    return converter(graph, layer, *inputs)


def refuse_unknown(graph: Graph, layer: Any) -> None:
    """Raise InterchangeError if ONNX cannot express `layer` or a part of it."""
    _converter(graph, layer)
    if isinstance(layer, LayerGroup):
        for key, part in layer._parts().items():
            with graph.inside(key, part):
                refuse_unknown(graph, part)


def _converter(graph: Graph, layer: Any) -> tuple[Converter, Any]:
    """What writes the layer, and the layer without wrappers."""
    if isinstance(layer, WrapperBase):
        for wrapper in layer._chain():
            if type(wrapper) is not Dropout:  # which is nothing in evaluation
                raise graph.refuse(f"the wrapper {type(wrapper).__name__} is unknown")
        layer = layer._base_layer
    kind: type[Any] = layer.__class__
    converter = CONVERTERS.get(kind)
    if converter is None:
        why = next((why for no_form, why in _NO_FORM.items() if isinstance(layer, no_form)), None)
        why = why or "is not one of gpulayers' own layers, so its formula is unknown"
        raise graph.refuse(f"{kind.__name__} {why}")
    return converter, layer


def _part(graph: Graph, group: Any, key: str, *inputs: Value) -> Any:
    """The component of a module by its name."""
    layer = group._parts()[key]
    with graph.inside(key, layer):
        return convert(graph, layer, *inputs)


# ------------------------------------------------------------------------------ networks, blocks


def sequential(graph: Graph, network: Any, X: Value) -> Value:
    for key in network._parts():
        X = _part(graph, network, key, X)
    return X


def residual(graph: Graph, block: Any, X: Value) -> Value:
    """body(X) + X, or + shortcut(X)."""
    Y = _part(graph, block, "body", X)
    side = X if block.shortcut is None else _part(graph, block, "shortcut", X)
    return _sum(graph, Y, side)


def _sum(graph: Graph, Y: Value, side: Value) -> Value:
    if Y.shape != side.shape:
        raise graph.refuse(f"the two sides have the shapes {Y.shape} and {side.shape}")
    return graph.both("Add", Y, side)


# ---------------------------------------------------------------------------------------- modules


def _main_path(graph: Graph, module: Any, X: Value) -> Value:
    for key in ("conv1", "batchnorm1", "conv2", "batchnorm2"):
        X = _part(graph, module, key, X)
    return X


def skip_identity(graph: Graph, module: Any, X: Value) -> Value:
    """act(X + main(X))"""
    return _part(graph, module, "add3", X, _main_path(graph, module, X))


def skip_conv(graph: Graph, module: Any, X: Value) -> Value:
    """act(side(X) + main(X)); the padding of conv_skip follows from the input's size."""
    main = _main_path(graph, module, X)
    before = module.conv_skip.pad
    module.conv_skip.pad = module._pad_for((1, *X.batch_free(graph.place)))
    try:
        side = _part(graph, module, "conv_skip", X)
    finally:
        module.conv_skip.pad = before
    side = _part(graph, module, "batchnorm_skip", side)
    return _part(graph, module, "add3", side, main)


def wavenet(
    graph: Graph, module: Any, X_main: Value, X_skip: Value | None = None
) -> tuple[Value, Value]:
    """Y_main, Y_skip; without X_skip what is skipped ahead begins here."""
    Z = _part(graph, module, "conv_dilation", X_main)
    tanh, sigmoid = (
        activated(graph, Z, act) for act in (activations.Tanh(), activations.Sigmoid())
    )
    out = _part(graph, module, "conv_1x1", _part(graph, module, "multiply_gate", tanh, sigmoid))
    Y_skip = out if X_skip is None else _part(graph, module, "add_skip", X_skip, out)
    return _part(graph, module, "add_residual", X_main, out), Y_skip


def bidirectional_lstm(graph: Graph, module: Any, X: Value) -> Value:
    """Both directions, then what `merge_mode` says."""
    F = recurrent(graph, module.cell_fwd, X)
    B = recurrent(graph, module.cell_bwd, X, reverse=True)
    match module.merge_mode:
        case "concat":
            name = graph.add("Concat", [F.name, B.name], axis=F.axis(1))
            return Value(name, (F.shape[0], 2 * module.n_out, F.shape[2]), F.order)
        case "sum":
            return graph.both("Add", F, B)
        case "average":
            return graph.with_scalar("Mul", graph.both("Add", F, B), 0.5)
        case _:
            return graph.both("Mul", F, B)


def multi_headed_attention(graph: Graph, module: Any, Q: Value, K: Value, V: Value) -> Value:
    """Projections, split into heads; attention; heads joined; the output's projection."""
    dim, heads = module.kqv_dim, module.n_heads
    for X in (Q, K, V):
        if X.ndim not in (2, 3) or X.ndim != Q.ndim or X.shape[-1] != dim:
            raise graph.refuse(
                f"expected Q, K and V (n_ex, T, {dim}) or (n_ex, {dim}), got {X.shape}"
            )
    long = [
        X if X.ndim == 3 else graph.reshaped(X, (X.shape[0], 1, dim), (0, 1, dim))
        for X in (Q, K, V)
    ]
    apart: list[Value] = []
    for key, X in zip("QKV", long, strict=True):
        X = _projected(graph, module, key, X)
        T = X.batch_free(graph.place)[0]
        split = (X.shape[0], T, heads, dim // heads)
        X = graph.reshaped(X, split, (0, T, heads, dim // heads))
        name = graph.turned(X, (0, 2, 1, 3)).name
        apart.append(Value(name, (X.shape[0], heads, T, dim // heads), as_given(4)))
    Y = _part(graph, module, "attention", *apart)
    T = long[0].batch_free(graph.place)[0]
    swapped = Value(Y.name, (Y.shape[0], T, heads, dim // heads), (0, 2, 1, 3))
    joined = graph.reshaped(swapped, (Y.shape[0], T, dim), (0, T, dim))
    return _projected(graph, module, "O", joined)


def _projected(graph: Graph, module: Any, key: str, X: Value) -> Value:
    """X W + b of (n_ex, T, kqv_dim)."""
    p = module.projections[key].parameters
    with graph.inside(key, module.projections[key]):
        name = graph.add("MatMul", [graph.given(X).name, graph.weight(p["W"], "W")])
        name = graph.add("Add", [name, graph.weight(p["b"].reshape(-1), "b")])
    return Value(name, X.shape, as_given(3))


CONVERTERS: dict[type, Converter] = {
    **_onnx_layers.CONVERTERS,
    **_onnx_recurrent.CONVERTERS,
    models.Sequential: sequential,
    models.Residual: residual,
    modules.BidirectionalLSTM: bidirectional_lstm,
    type(modules.BidirectionalLSTM(1).cell_fwd): recurrent,
    modules.MultiHeadedAttentionModule: multi_headed_attention,
    modules.SkipConnectionConvModule: skip_conv,
    modules.SkipConnectionIdentityModule: skip_identity,
    modules.WavenetResidualModule: wavenet,
}
