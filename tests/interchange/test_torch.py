"""PyTorch's weights: the same outputs from the same numbers, both ways."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, models, modules
from gpulayers.errors import InterchangeError, NotInitializedError, ParameterError
from gpulayers.interchange import load_torch_state, torch_state
from gpulayers.layers import BatchNorm1D, BatchNorm2D, Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Sequential

torch: Any = pytest.importorskip("torch")
nn = torch.nn


def channels_first(X: Any) -> Any:
    return torch.from_numpy(np.moveaxis(X, -1, 1).copy())


def time_first(X: Any) -> Any:
    """(n_ex, n_in, n_t) as PyTorch's (n_t, n_ex, n_in)."""
    return torch.from_numpy(X.transpose(2, 0, 1).copy())


def plain(X: Any) -> Any:
    return torch.from_numpy(X)


def last_axis(Y: Any) -> np.ndarray:
    return np.moveaxis(Y.numpy(), 1, -1)


def of_sequence(output: Any) -> np.ndarray:
    return output[0].numpy().transpose(1, 2, 0)


@dataclass(frozen=True)
class Pair:
    """One of ours, one of PyTorch's, how the input goes there and the output comes back."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    shape: tuple[int, ...]
    there: Callable[[Any], Any] = plain
    back: Callable[[Any], np.ndarray] = lambda Y: Y.numpy()
    ids: int = 0

    def X(self) -> np.ndarray:
        rng = np.random.default_rng(3)
        if self.ids:
            return rng.integers(0, self.ids, (4, *self.shape))
        return rng.standard_normal((4, *self.shape)).astype(np.float32)

    def model(self) -> Any:
        torch.manual_seed(5)
        model = self.theirs().eval()
        for name, tensor in model.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.uniform_(-0.6, 0.6)
        return model

    def expected(self, model: Any) -> np.ndarray:
        with torch.no_grad():
            return self.back(model(self.there(self.X())))


def _image_net() -> Sequential:
    return Sequential(
        [
            Conv2D(4, (3, 2), pad=(1, 0), act_fn="ReLU"),
            BatchNorm2D(),
            Pool2D(2, stride=2),
            models.Residual([Conv2D(4, 3, 1), BatchNorm2D(), Activation("ReLU")]),
            Flatten(),
            layers.Dropout(0.5),
            BatchNorm1D(),
            FullyConnected(6, act_fn="Tanh"),
            FullyConnected(3),
        ]
    )


class _TorchImageNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, (3, 2), padding=(1, 0)), nn.ReLU())
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.between = nn.BatchNorm1d(4 * 4 * 3)
        self.hidden, self.out = nn.Linear(4 * 4 * 3, 6), nn.Linear(6, 3)

    def forward(self, X: Any) -> Any:
        X = nn.functional.max_pool2d(self.norm(self.stem(X)), 2)
        X = (X + self.block(X)).flatten(1)
        return self.out(torch.tanh(self.hidden(self.between(X))))


class _TorchWords(nn.Module):
    """Embedding and two levels of LSTM, then every state flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(9, 4), nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.out = nn.Linear(6 * 5, 3)

    def forward(self, ids: Any) -> Any:
        return self.out(self.rnn(self.table(ids))[0].flatten(1))


class _SwappedAxes(layers.LayerBase):
    """(n_ex, n_t, n_in) as (n_ex, n_in, n_t), for a recurrent layer after an embedding."""

    def _forward(self, X: Any, training: bool) -> tuple[Any, dict[str, Any]]:
        return X.swapaxes(1, 2).copy(), {}

    def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
        return dLdY.swapaxes(1, 2), {}


def _words() -> Sequential:
    chain = [layers.Embedding(4, 9), _SwappedAxes(), layers.LSTM(5), layers.LSTM(5)]
    return Sequential([*chain, Flatten(), FullyConnected(3)])


class _TorchConv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(3, 4, 3, dilation=2, bias=False), nn.Linear(4 * 5, 2)

    def forward(self, X: Any) -> Any:
        return self.out(self.conv(X).flatten(1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, X: Any) -> Any:
        return self.attend(X, X, X)[0]


class _SelfAttention(modules.MultiHeadedAttentionModule):
    def forward(self, X: Any, retain_derived: bool = True) -> Any:  # type: ignore[override]
        return super().forward(X, X, X, retain_derived)


L = layers
IMAGE = (channels_first, last_axis)
SEQUENCE = (time_first, of_sequence)
PAIRS = [
    Pair("dense", lambda: L.FullyConnected(3), lambda: nn.Linear(5, 3), (5,)),
    Pair("dense, no bias", lambda: FullyConnected(3), lambda: nn.Linear(5, 3, bias=False), (5,)),
    Pair(
        "conv2d",
        lambda: Conv2D(5, (3, 2), (1, 0), (2, 1), (0, 1)),
        lambda: nn.Conv2d(3, 5, (3, 2), (2, 1), (1, 0), (1, 2)),
        (7, 6, 3),
        *IMAGE,
    ),
    Pair("conv1d", lambda: L.Conv1D(5, 3), lambda: nn.Conv1d(2, 5, 3), (8, 2), *IMAGE),
    Pair(
        "deconv2d",
        lambda: L.Deconv2D(5, (3, 2), stride=2),
        lambda: nn.ConvTranspose2d(3, 5, (3, 2), 2),
        (4, 5, 3),
        *IMAGE,
    ),
    Pair("batchnorm1d", L.BatchNorm1D, lambda: nn.BatchNorm1d(6), (6,)),
    Pair("batchnorm2d", L.BatchNorm2D, lambda: nn.BatchNorm2d(3), (4, 5, 3), *IMAGE),
    Pair(
        "batchnorm2d, plain",
        L.BatchNorm2D,
        lambda: nn.BatchNorm2d(3, affine=False),
        (4, 5, 3),
        *IMAGE,
    ),
    Pair("layernorm1d", L.LayerNorm1D, lambda: nn.LayerNorm(6), (6,)),
    Pair("layernorm2d", L.LayerNorm2D, lambda: nn.LayerNorm((3, 4, 5)), (4, 5, 3), *IMAGE),
    Pair("groupnorm", lambda: L.GroupNorm(2), lambda: nn.GroupNorm(2, 4), (4, 5, 4), *IMAGE),
    Pair("embedding", lambda: L.Embedding(4, 9), lambda: nn.Embedding(9, 4), (5,), ids=9),
    Pair("rnn", lambda: L.RNN(4), lambda: nn.RNN(3, 4), (3, 6), *SEQUENCE),
    Pair("lstm", lambda: L.LSTM(4), lambda: nn.LSTM(3, 4), (3, 6), *SEQUENCE),
    Pair("gru", lambda: L.GRU(4), lambda: nn.GRU(3, 4), (3, 6), *SEQUENCE),
    Pair("gru, no bias", lambda: L.GRU(4), lambda: nn.GRU(3, 4, bias=False), (3, 6), *SEQUENCE),
    Pair("rnn cell", lambda: L.RNNCell(4), lambda: nn.RNNCell(3, 4), (3,)),
    Pair("gru cell", lambda: L.GRUCell(4), lambda: nn.GRUCell(3, 4), (3,)),
    Pair(
        "both directions",
        lambda: modules.BidirectionalLSTM(4),
        lambda: nn.LSTM(3, 4, bidirectional=True),
        (3, 6),
        *SEQUENCE,
    ),
    Pair("attention", lambda: _SelfAttention(2), _Attention, (5, 6)),
    Pair("image network", _image_net, _TorchImageNet, (8, 7, 2), channels_first),
    Pair("sequence", lambda: _conv1d(), _TorchConv1d, (9, 3), channels_first),
    Pair("words", _words, _TorchWords, (6,), ids=9),
]


def _conv1d() -> Sequential:
    return Sequential([L.Conv1D(4, 3, dilation=1), Flatten(), FullyConnected(2)])


@pytest.fixture(autouse=True)
def _attention_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulayers.interchange._torch_layers import FORMS

    monkeypatch.setitem(FORMS, _SelfAttention, FORMS[modules.MultiHeadedAttentionModule])


def output(layer: Any, X: np.ndarray) -> np.ndarray:
    return layer.forward(X, retain_derived=False)


def cast(state: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in state.items()}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("seen", [True, False], ids=["initialised", "new"])
def test_torch_weights_come_in(pair: Pair, seen: bool, numpy_backend: Any) -> None:
    layer, model = pair.ours(), pair.model()
    if seen:
        output(layer, pair.X())
        if hasattr(layer, "flush_gradients"):
            layer.flush_gradients()  # a cell begins anew
    load_torch_state(layer, model.state_dict(), input_shape=pair.shape)
    np.testing.assert_allclose(output(layer, pair.X()), pair.expected(model), atol=2e-6)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_our_weights_go_out(pair: Pair, numpy_backend: Any) -> None:
    """From one model through a network of ours into another model: the very same numbers."""
    layer, model = pair.ours(), pair.model()
    load_torch_state(layer, model.state_dict(), input_shape=pair.shape)
    state = torch_state(layer, like=model.state_dict(), input_shape=pair.shape)
    assert list(state) == list(model.state_dict())
    torch.manual_seed(99)
    other = pair.theirs().eval()
    other.load_state_dict(cast(state))
    np.testing.assert_allclose(pair.expected(other), pair.expected(model), atol=2e-6)


def test_no_torch_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain arrays come in and go out; names are our own without a model to fill."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    network = Sequential([Conv2D(4, 3), BatchNorm2D(), Flatten(), FullyConnected(2)])
    X = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)
    Y = output(network, X)
    state = torch_state(network, input_shape=(5, 4, 3))
    assert list(state) == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"),
        *("1.num_batches_tracked", "3.weight", "3.bias"),
    ]
    assert state["0.weight"].shape == (4, 3, 3, 3) and state["3.weight"].shape == (2, 24)
    assert not np.shares_memory(state["1.weight"], network.parameters["1.scaler"])
    twin = Sequential([Conv2D(4, 3), BatchNorm2D(), Flatten(), FullyConnected(2)])
    load_torch_state(twin, state, input_shape=(5, 4, 3))
    np.testing.assert_array_equal(output(twin, X), Y)


def test_the_order_of_a_flattened_image_matters() -> None:
    """The test of the tests: without the change of places the outputs differ."""
    pair = next(p for p in PAIRS if p.name == "image network")
    network, model = pair.ours(), pair.model()
    load_torch_state(network, model.state_dict(), input_shape=pair.shape)
    W = network.parameters["7.W"]
    W[...] = model.state_dict()["hidden.weight"].numpy().T
    assert np.abs(output(network, pair.X()) - pair.expected(model)).max() > 0.1


def test_an_order_of_ones_own() -> None:
    model = nn.ModuleDict({"b": nn.Linear(3, 2), "a": nn.Linear(5, 3)})
    network = Sequential([FullyConnected(3), FullyConnected(2)])
    X = np.ones((2, 5), np.float32)
    load_torch_state(network, model.state_dict(), order=["1", "0"])
    with torch.no_grad():
        expected = model["b"](model["a"](torch.from_numpy(X))).numpy()
    np.testing.assert_allclose(output(network, X), expected, atol=1e-6)
    for order, what in ((["1", "O"], "no layer 'O'"), (["1", "1"], "each of 0, 1 once")):
        with pytest.raises(ParameterError, match=what):
            load_torch_state(network, model.state_dict(), order=order)


def test_on_the_stand_in(emulated: Any) -> None:
    layer = FullyConnected(3)
    layer.forward(emulated.asarray(np.ones((2, 5), np.float32)))
    W = layer.parameters["W"]
    model = nn.Linear(5, 3)
    load_torch_state(layer, model.state_dict())
    assert layer.parameters["W"] is W and layer.home == "cupy"
    state = torch_state(layer)
    assert type(state["weight"]) is np.ndarray
    np.testing.assert_array_equal(state["weight"], model.weight.detach().numpy())


def test_what_does_not_match_changes_nothing() -> None:
    network = Sequential([Conv2D(4, 3), Flatten(), FullyConnected(2)])
    output(network, np.zeros((1, 5, 5, 3), np.float32))
    before = {name: array.copy() for name, array in network.parameters.items()}
    good = torch_state(network, input_shape=(5, 5, 3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**good, "5.weight": good["2.weight"]}, r"2 layers here .* 3 modules there \(0, 2, 5\)"),
        ({**good, "2.weight": good["2.weight"][:, :-1]}, r"2 \(FullyConnected\) and 2: W has 35"),
        ({**good, "2.bias": np.zeros(3)}, r"b is \(1, 2\) here, and would be \(1, 3\)"),
        ({**good, "0.gain": np.zeros(4)}, r"0 \(Conv2D\) and 0: expected the entries weight, bias"),
        ({k: v for k, v in good.items() if k != "2.weight"}, "expected the entries weight"),
        ({**good, "0.weight": np.zeros((4, 27))}, "expected weight with 4 axes"),
        ({**good, "2.bias": ["a", "b"]}, "2.bias must hold numbers|bias must hold numbers"),
    ]
    for state, what in wrong:
        with pytest.raises(InterchangeError, match=what):
            load_torch_state(network, state, input_shape=(5, 5, 3))
    with pytest.raises(ParameterError, match="pass input_shape"):
        load_torch_state(network, good)
    with pytest.raises(InterchangeError, match=r"no array that NumPy can read.*detach"):
        load_torch_state(FullyConnected(2), {"weight": torch.zeros(2, 3, requires_grad=True)})
    for name, array in network.parameters.items():
        np.testing.assert_array_equal(array, before[name])


def test_what_has_no_counterpart() -> None:
    with pytest.raises(InterchangeError, match="RBM has no counterpart"):
        load_torch_state(layers.RBM(3), {"weight": np.zeros((3, 3))})
    with pytest.raises(NotInitializedError, match="FullyConnected: the shape of W"):
        torch_state(FullyConnected(3))
    layer = FullyConnected(2)
    output(layer, np.ones((1, 3), np.float32))
    layer.parameters["b"][...] = 1
    with pytest.raises(InterchangeError, match="the other side has no bias, and ours is not 0"):
        torch_state(layer, like={"fc.weight": np.zeros((2, 3))})
    with pytest.raises(InterchangeError, match=r"\(2, 4\) there, and would be \(2, 3\)"):
        torch_state(layer, like={"fc.weight": np.zeros((2, 4)), "fc.bias": np.zeros(2)})
    block = Sequential([Conv2D(2, 1), Flatten(), models.Residual([FullyConnected(8)])])
    with pytest.raises(InterchangeError, match="a dense layer must come first"):
        torch_state(block, input_shape=(2, 2, 3))
