"""Malformed summaries, modes and inputs: the layer's own words, not Python's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, modules, wrappers
from gpulayers.errors import DTypeError, ParameterError, ShapeError

X = np.ones((2, 3), np.float32)

RESTORED: list[Any] = [
    lambda: layers.FullyConnected(3),
    lambda: layers.LSTM(3),
    lambda: modules.BidirectionalLSTM(2),
    lambda: modules.MultiHeadedAttentionModule(2),
    lambda: wrappers.Dropout(layers.FullyConnected(3), 0.5),
]


@pytest.mark.parametrize("make", RESTORED)
@pytest.mark.parametrize("summary", [None, 3, [], "ab", [("n_out", 3)]])
def test_a_summary_that_is_no_dict(make: Any, summary: Any) -> None:
    thing = make()
    message = f"{type(thing).__name__}: expected a summary, a dict, got {type(summary).__name__}"
    with pytest.raises(ParameterError, match=message):
        thing.set_params(summary)


@pytest.mark.parametrize("make", RESTORED)
@pytest.mark.parametrize("group", ["parameters", "hyperparameters"])
@pytest.mark.parametrize("value", [3, 0, [1], [], "ab", [("n_out", 3)]])
def test_a_group_that_is_no_dict(make: Any, group: str, value: Any) -> None:
    thing = make()
    described = repr(thing)
    message = f": '{group}' in the summary must be a dict, got {type(value).__name__}"
    with pytest.raises(ParameterError, match=message):
        thing.set_params({group: value})
    thing.set_params({group: None})  # nothing
    assert repr(thing) == described


@pytest.mark.parametrize("group", ["parameters", "hyperparameters"])
def test_components_that_are_no_dicts(group: str) -> None:
    module = modules.BidirectionalLSTM(2)
    for components, what in ((3, "'components'"), ({"cell_fwd": [1]}, "'cell_fwd'")):
        with pytest.raises(ParameterError, match=f"BidirectionalLSTM: {what} in the summary must"):
            module.set_params({group: {"components": components}})


@pytest.mark.parametrize("summary", [{"wrappers": 3}, {"hyperparameters": {"wrappers": "ab"}}])
def test_wrappers_that_are_no_list(summary: Any) -> None:
    wrapped = wrappers.Dropout(layers.FullyConnected(3), 0.5)
    with pytest.raises(ParameterError, match="Dropout: 'wrappers' in the summary must be a list"):
        wrapped.set_params(summary)


@pytest.mark.parametrize("init", [np.zeros((3, 2)), np.zeros(1), 3, ["a"], None, {}, "glorot"])
@pytest.mark.parametrize(
    "make",
    [
        lambda init: layers.FullyConnected(3, init=init),
        lambda init: layers.Conv2D(3, 3, init=init),
        lambda init: layers.LSTM(3, init=init),
        lambda init: layers.GRUCell(3, init=init),
        lambda init: layers.Embedding(3, 3, init=init),
        lambda init: layers.DotProductAttention(init=init),
        lambda init: modules.MultiHeadedAttentionModule(2, init=init),
    ],
)
def test_modes_of_drawing(make: Any, init: Any) -> None:
    name = type(make("he_normal")).__name__
    with pytest.raises(ParameterError) as caught:
        make(init)
    said = str(caught.value)
    assert re.match(rf"{name}: .*init: unknown mode ", said)
    assert "expected one of he_normal, he_uniform" in said
    make(np.str_("he_normal"))


@pytest.mark.parametrize("pad", [(1, 2, 3), (1,), [1, 2, 3, 4], "valid"])
def test_padding_of_a_sequence(pad: Any) -> None:
    message = r"Conv1D: pad must be an int, \(left, right\), 'same' or 'causal', got"
    with pytest.raises(ParameterError, match=message):
        layers.Conv1D(3, 3, pad=pad)


def test_the_two_directions_are_lstms() -> None:
    with pytest.raises(ParameterError, match="BidirectionalLSTM: LSTM: n_out must be an integer"):
        modules.BidirectionalLSTM(0)
    module = modules.BidirectionalLSTM(2)
    with pytest.raises(ShapeError, match="BidirectionalLSTM: LSTM: expected an input"):
        module.forward(X)
    assert module.cell_fwd.summary()["layer"] == "LSTMCell", "as in numpy-ml"
    assert "_Direction" not in repr(module.cell_fwd)


def test_no_input() -> None:
    for layer, what in (
        (layers.FullyConnected(3), "the input"),
        (layers.Embedding(3, 3), "the input"),
        (layers.Add(), "input 0"),
    ):
        given: Any = [None] if isinstance(layer, layers.Add) else None
        with pytest.raises(DTypeError, match=f"{layer._name}: {what}: expected .*array, got None"):
            layer.forward(given)
    layer = layers.FullyConnected(3)
    layer.forward(X)
    with pytest.raises(DTypeError, match=r"FullyConnected: the gradient: expected .*, got None"):
        layer.backward(None)


@pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="no wider float here")
def test_a_float_that_is_none_of_ours() -> None:
    with pytest.raises(DTypeError, match=r"\(float16, bfloat16, float32 or float64\), got"):
        layers.FullyConnected(3).forward(X.astype("g"))
