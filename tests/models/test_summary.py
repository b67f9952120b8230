"""The table of a network, and the times of its layers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import gpulayers
from gpulayers import layers, models, modules, random
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.layers import BatchNorm2D, Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Residual, Sequential


def network() -> Sequential:
    return Sequential(
        [
            Conv2D(4, (3, 2), act_fn="ReLU"),
            Pool2D(2, stride=2),
            Residual([Conv2D(4, 1), BatchNorm2D()]),
            Flatten(),
            layers.Dropout(0.5),
            FullyConnected(5),
        ]
    )


def test_numbers_of_a_small_network(numpy_backend: Any) -> None:
    """Counted by hand: 8 x 7 x 3 -> 6 x 6 x 4 -> 3 x 3 x 4 -> 36 -> 5, float32."""
    rows = {row.name: row for row in gpulayers.summarize(network(), (8, np.int64(7), 3)).rows}
    assert list(rows) == ["0", "1", "2", "2.body.0", "2.body.1", "3", "4", "5"]
    conv, pool, block, dense = rows["0"], rows["1"], rows["2"], rows["5"]
    assert conv.output == (6, 6, 4) and conv.parameters == 3 * 2 * 3 * 4 + 4
    assert conv.flops == 2 * (3 * 2 * 3) * 6 * 6 * 4 + 6 * 6 * 4  # products and ReLU
    assert conv.forward_bytes == 2 * 4 * 6 * 6 * 4  # pre-activations and output
    assert conv.backward_bytes == 4 * (8 * 7 * 3 + conv.parameters)
    assert pool.flops == 4 * 3 * 3 * 4 and pool.parameters == 0
    assert pool.forward_bytes == (4 + 1) * 3 * 3 * 4  # and the winner of each window in a byte
    assert block.is_group and block.flops == 36 and block.forward_bytes == 4 * 36
    assert rows["3"].forward_bytes == 0  # a view
    assert dense.output == (5,) and dense.parameters == 36 * 5 + 5
    assert dense.flops == 2 * 36 * 5
    assert dense.backward_bytes == 4 * (36 + dense.parameters)


def test_sums_and_batches() -> None:
    net = network()
    one, many = gpulayers.summarize(net, (8, 7, 3)), gpulayers.summarize(net, (8, 7, 3), 10)
    assert one.parameters == many.parameters == _counted(net)
    assert many.flops == 10 * one.flops
    conv = many.rows[0]
    assert conv.forward_bytes == 10 * one.rows[0].forward_bytes
    assert conv.backward_bytes == 4 * (10 * 8 * 7 * 3 + conv.parameters)
    assert json.loads(json.dumps(many.to_dict()))["forward_bytes"] == many.forward_bytes
    assert many.forward_bytes == sum(row.forward_bytes for row in many.rows)
    with pytest.raises(ParameterError, match="batch_size"):
        gpulayers.summarize(net, (8, 7, 3), 0)


def _counted(net: Sequential) -> int:
    net.forward(np.zeros((1, 8, 7, 3), np.float32), False)
    return net.parameter_count


def test_the_table_as_text() -> None:
    text = str(gpulayers.summarize(network(), (8, 7, 3)))
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "layer" and lines[0].endswith("memory backward")
    assert lines[1].split() == ["input", "(8,", "7,", "3)"]
    assert lines[2].split()[:2] == ["0", "Conv2D"] and "5.3 k" in lines[2]
    assert lines[5].startswith("    2.body.0 Conv2D")
    assert len({len(line) for line in lines[:1] + lines[2:-1]}) == 1  # columns are flush
    assert lines[-2].startswith("total") and "parameters themselves" in lines[-1]
    net = network()
    assert net.table((8, 7, 3)) == text and net.parameter_count > 0
    assert net.table((8, 7, 3), 64).splitlines()[-1].startswith("FLOPs and memory of 64 examples")
    assert set(net.summary()) == {"layer", "parameters", "hyperparameters"}  # numpy-ml's


class Mine(FullyConnected):
    pass


def test_layers_of_ones_own_and_single_layers() -> None:
    summary = gpulayers.summarize(Sequential([Mine(3), FullyConnected(2)]), (4,))
    assert summary.rows[0].flops is None and summary.flops == 2 * 3 * 2
    assert "?" in str(summary) and "12 + ?" in str(summary).splitlines()[-2]
    (row,) = gpulayers.summarize(layers.LSTM(4), (3, 5)).rows
    assert row.flops == 5 * 4 * (2 * 4 * (3 + 4) + 9) and row.output == (4, 5)
    heads = gpulayers.summarize(modules.MultiHeadedAttentionModule(2), [(5, 6), (4, 6), (4, 6)])
    assert [r.name for r in heads.rows] == ["", "Q", "K", "V", "attention", "O"]
    assert heads.rows[4].flops == 2 * 5 * 4 * (2 * 3 + 5 + 1 + 2 * 3)
    assert gpulayers.summarize(layers.Add(), [(3,), (3,)]).rows[0].flops == 3
    words = gpulayers.summarize(Sequential([layers.Embedding(4, 9), Flatten()]), (6,))
    assert words.rows[0].parameters == 36 and words.rows[0].backward_bytes == 4 * 36


def test_nothing_is_changed() -> None:
    net = network()
    X = np.random.default_rng(0).standard_normal((2, 8, 7, 3)).astype(np.float32)
    net.forward(X)
    before = {name: array.copy() for name, array in net.parameters.items()}
    state = random.get_state()
    gpulayers.summarize(net, (8, 7, 3), 3)
    gpulayers.profile(net, X, np.array([0, 4]), repeats=1)
    assert random.get_state() == state
    for name, array in net.parameters.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert len(net[0].X) == 1 and not any(g.any() for g in net.gradients.values())


def test_a_wrong_shape_says_where() -> None:
    net = network()
    net.forward(np.zeros((1, 8, 7, 3), np.float32), False)
    with pytest.raises(ShapeError, match=r"layer 0 \(Conv2D\).*in_ch = 3"):
        gpulayers.summarize(net, (8, 7, 2))


def test_on_every_backend(backend: Any) -> None:
    assert gpulayers.summarize(network(), (8, 7, 3)).rows[0].flops == 5328


# ------------------------------------------------------------------------------------------ times


def test_times_add_up() -> None:
    net = network()
    X = np.random.default_rng(0).standard_normal((4, 8, 7, 3)).astype(np.float32)
    measured = gpulayers.profile(net, X, np.arange(4), repeats=3)
    assert [row.name for row in measured.rows] == ["0", "1", "2.body.0", "2.body.1", "3", "4", "5"]
    assert [row.output for row in measured.rows][:2] == [(6, 6, 4), (3, 3, 4)]
    assert measured.batch_size == 4 and measured.repeats == 3
    assert all(row.forward_seconds > 0 and row.backward_seconds > 0 for row in measured.rows)
    assert sum(row.seconds for row in measured.rows) <= measured.step_seconds
    lines = str(measured).splitlines()
    assert lines[0].split() == ["layer", "output", "forward", "ms", "backward", "ms", "share"]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[1:-2]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert json.loads(json.dumps(measured.to_dict()))["rows"][0]["name"] == "0"


def test_a_slow_layer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks at each call of the slow layer only."""
    clock = [0.0]
    monkeypatch.setattr("gpulayers.models.timing.time.perf_counter", lambda: clock[0])

    class Slow(FullyConnected):
        def _forward(self, X: Any, training: bool) -> Any:
            clock[0] += 2.0
            return super()._forward(X, training)

        def _backward(self, *args: Any, **kwargs: Any) -> Any:
            clock[0] += 3.0
            return super()._backward(*args, **kwargs)

    net = Sequential([FullyConnected(3), Slow(4), FullyConnected(2)])
    measured = gpulayers.profile(net, np.ones((2, 5), np.float32), repeats=2)
    assert [(r.forward_seconds, r.backward_seconds) for r in measured.rows] == [
        (0, 0),
        (2.0, 3.0),
        (0, 0),
    ]
    assert measured.step_seconds == 5.0


def test_profiles_of_other_parts() -> None:
    X = np.ones((2, 6, 4), np.float32)
    measured = gpulayers.profile(modules.WavenetResidualModule(4, 5, 1, 3), X, repeats=1)
    assert "conv_dilation" in [row.name for row in measured.rows]
    (row,) = gpulayers.profile(layers.Add(), [X, X], repeats=1).rows
    assert row.layer == "Add" and row.output == (6, 4)
    with pytest.raises(ParameterError, match="repeats"):
        gpulayers.profile(models.mlp(), X, repeats=0)
    with pytest.raises(DTypeError, match="profile: X: expected a numpy or cupy array, got float"):
        gpulayers.profile(models.mlp(), [1.0])


def test_a_network_gives_its_table_for_a_shape_and_its_dictionary_without() -> None:
    network = models.lenet()
    table = network.summary((28, 28, 1), batch_size=2)
    assert str(table) == str(gpulayers.summarize(network, (28, 28, 1), 2))
    described = network.summary()
    assert set(described) == {"layer", "parameters", "hyperparameters"}
    assert described["parameters"].keys() == network.parameters.keys()
    models.lenet().set_params(described)
