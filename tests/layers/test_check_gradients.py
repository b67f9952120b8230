"""`check_gradients`: right layers pass, each kind of wrong backward is told, nothing is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulayers
from gpulayers import modules, wrappers
from gpulayers.backend import default_dtype
from gpulayers.errors import DTypeError, GPULayersError, GradientError, ParameterError
from gpulayers.gradients import check_gradients
from gpulayers.layers import (
    LSTM,
    Add,
    BatchNorm2D,
    Conv2D,
    DotProductAttention,
    Dropout,
    Embedding,
    Flatten,
    FullyConnected,
    LayerNorm1D,
    LSTMCell,
    Multiply,
    Pool2D,
)
from gpulayers.models import Sequential


def normal(*shape: int, dtype: str = "float64") -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


LAYERS = {
    "dense": (lambda: FullyConnected(3, act_fn="Tanh"), (4, 5), {"W", "b"}),
    "conv": (lambda: Conv2D(2, (3, 3), pad=1, act_fn="GELU"), (2, 5, 4, 3), {"W", "b"}),
    "batchnorm": (BatchNorm2D, (3, 4, 4, 2), {"scaler", "intercept"}),
    "layernorm": (LayerNorm1D, (3, 7), {"scaler", "intercept"}),
    "pool": (lambda: Pool2D((2, 2), stride=2), (2, 4, 4, 3), set()),
    "module": (
        lambda: modules.SkipConnectionIdentityModule(3, (3, 3), (3, 3), act_fn="Tanh"),
        (2, 5, 5, 3),
        None,
    ),
    "network": (
        lambda: Sequential([Conv2D(2, (2, 2), act_fn="Sigmoid"), Flatten(), FullyConnected(2)]),
        (2, 4, 4, 1),
        None,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_our_layers_pass(name: str, backend: Any) -> None:
    make, shape, wanted = LAYERS[name]
    errors = check_gradients(make(), backend.asarray(normal(*shape)), entries=20)
    assert wanted is None or set(errors) == wanted | {"X"}
    assert len(errors) >= 1
    assert max(errors.values()) < 1e-6


@pytest.fixture
def float64() -> Any:
    """An embedding draws its table as soon as it is made."""
    before = default_dtype()
    gpulayers.set_default_dtype("float64")
    yield
    gpulayers.set_default_dtype(before)


def test_ids_are_taken_as_they_are(backend: Any, float64: None) -> None:
    """There is no gradient of an integer, that of the table is checked."""
    ids = backend.asarray(np.array([[1, 2, 1], [0, 4, 2]]))
    assert set(check_gradients(Embedding(3, 5), ids)) == {"W"}
    chain = Sequential([Embedding(3, 5), Flatten(), FullyConnected(2, act_fn="Tanh")])
    assert set(check_gradients(chain, ids)) == {"0.W", "2.W", "2.b"}
    wrong = Embedding(3, 5)
    backward = wrong.backward

    def doubled(dLdY: Any, *more: Any) -> None:
        backward(2 * dLdY, *more)

    wrong.backward = doubled
    with pytest.raises(GradientError, match="Embedding: gradient of W"):
        check_gradients(wrong, ids)


def test_several_inputs(backend: Any) -> None:
    A, B = backend.asarray(normal(2, 3)), backend.asarray(normal(2, 3) + 1.0)
    assert set(check_gradients(Add(act_fn="Tanh"), [A, B])) == {"X[0]", "X[1]"}
    assert set(check_gradients(Multiply(), [A, B, A])) == {"X[0]", "X[1]", "X[2]"}
    qkv = [backend.asarray(normal(2, n, 4) + n) for n in (2, 3, 3)]
    assert set(check_gradients(DotProductAttention(), qkv)) == {"X[0]", "X[1]", "X[2]"}
    heads = modules.MultiHeadedAttentionModule(n_heads=2)
    assert {"X[0]", "X[1]", "X[2]"} < set(check_gradients(heads, qkv, entries=10))


def test_a_wrong_gradient_of_one_of_several_inputs_is_told() -> None:
    class Wrong(Add):
        def backward(self, *args: Any, **kwargs: Any) -> Any:
            first, second = super().backward(*args, **kwargs)
            return [first, 2 * second]

    with pytest.raises(GradientError, match=r"Wrong: gradient of X\[1\]\[0, 0\]"):
        check_gradients(Wrong(), [normal(2, 3), normal(2, 3)])

    class Few(Add):
        def backward(self, *args: Any, **kwargs: Any) -> Any:
            return super().backward(*args, **kwargs)[:1]

    with pytest.raises(GradientError, match=r"Few: backward gives 1 gradients, .* 2 inputs"):
        check_gradients(Few(), [normal(2, 3), normal(2, 3)])


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_parameters_are_left_out(name: str) -> None:
    make, shape, _ = LAYERS[name]
    layer = make()
    layer.freeze()
    assert set(check_gradients(layer, normal(*shape), entries=20)) == {"X"}
    layer.unfreeze()
    assert set(check_gradients(layer, normal(*shape), entries=20)) == set(
        check_gradients(make(), normal(*shape), entries=20)
    )


def test_a_frozen_part_of_a_network() -> None:
    chain = Sequential([FullyConnected(4, act_fn="Tanh"), FullyConnected(3), FullyConnected(2)])
    chain.layers[1].freeze()
    wanted = {"X", "0.W", "0.b", "2.W", "2.b"}
    assert set(check_gradients(chain, normal(3, 5))) == wanted
    module = modules.SkipConnectionIdentityModule(3, (3, 3), (3, 3), act_fn="Tanh")
    every = set(check_gradients(module, normal(2, 5, 5, 3), entries=5))
    module.conv1.freeze()
    left = set(check_gradients(module, normal(2, 5, 5, 3), entries=5))
    assert len(every - left) == 2 and all("conv1" in key for key in every - left)
    wrapped = wrappers.Dropout(FullyConnected(2), 0.5)
    wrapped.freeze()
    assert set(check_gradients(wrapped, normal(3, 5))) == {"X"}
    network = LSTM(2)
    network.freeze()
    assert set(check_gradients(network, normal(2, 3, 4))) == {"X"}


def test_the_input_of_a_frozen_layer_is_checked() -> None:
    wrong = _Wrong("X", one_entry)
    wrong.freeze()
    with pytest.raises(GradientError, match="_Wrong: gradient of X"):
        check_gradients(wrong, normal(4, 5))
    behind = _Wrong("b", one_entry)  # a wrong layer is told though another one is frozen
    chain = Sequential([FullyConnected(4), behind])
    chain.layers[0].freeze()
    with pytest.raises(GradientError, match=r"gradient of 1\.b"):
        check_gradients(chain, normal(4, 5))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda X: check_gradients(None, X), ParameterError, "expected a layer, .* got None"),
        (lambda X: check_gradients(Flatten, X), ParameterError, "expected a layer, .* a class"),
        (lambda X: check_gradients(Flatten(), None), DTypeError, "check_gradients: X: expected"),
        (lambda X: check_gradients(Flatten(), "ab"), DTypeError, "check_gradients: X: .* str"),
        (lambda X: check_gradients(Flatten(), X * 1j), DTypeError, "X must be floating or int"),
        (lambda X: check_gradients(Add(), [X, None]), DTypeError, r"check_gradients: X\[1\]"),
        (lambda X: check_gradients(LSTMCell(2), X), ParameterError, "LSTMCell.* 2 outputs.* LSTM"),
        (
            lambda X: check_gradients(DotProductAttention(), X),
            ParameterError,
            r"takes 3 inputs \(Q, K, V\), expected a list of them, got one array",
        ),
        (
            lambda X: check_gradients(DotProductAttention(), [X, X]),
            ParameterError,
            "takes 3 inputs .* got a list of 2",
        ),
        (lambda X: check_gradients(Add(), X), GPULayersError, "Add"),
        (
            lambda X: check_gradients(DotProductAttention(), X, X, X),
            ParameterError,
            r"DotProductAttention: expected one X, got 3 .* one list, .*\(layer, \[X0, X1, X2\]\)",
        ),
        (lambda X: check_gradients(Flatten(), X, 1e-6), ParameterError, "by their names, step="),
        (lambda X: check_gradients(Flatten(), X, step="a"), ParameterError, "step must be"),
        (lambda X: check_gradients(Flatten(), X, entries=2.5), ParameterError, "entries must be"),
        (lambda X: check_gradients(Flatten(), X, seed="a"), ParameterError, "seed must be"),
    ],
)
def test_calls_that_cannot_be_checked(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(normal(4, 5))


def test_nothing_is_changed() -> None:
    with_sizes = BatchNorm2D()
    X = normal(3, 4, 4, 2)
    X.flags.writeable = False
    check_gradients(with_sizes, X)
    before = {key: value.copy() for key, value in with_sizes.parameters.items()}
    check_gradients(with_sizes, X)
    assert default_dtype() == np.float32
    for key, value in with_sizes.parameters.items():
        np.testing.assert_array_equal(value, before[key])
    assert with_sizes.X == []
    assert not any(grad.any() for grad in with_sizes.gradients.values())


class _Wrong(FullyConnected):
    """A dense layer whose gradient of `broken` is changed by `how`."""

    def __init__(self, broken: str, how: Any) -> None:
        super().__init__(3, act_fn="Tanh")
        self._broken, self._how = broken, how

    def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
        dX, grads = super()._backward(dLdY, saved, params, inputs)
        if self._broken == "X":
            return self._how(dX), grads
        return dX, {**grads, self._broken: self._how(grads[self._broken])}


def one_entry(array: Any) -> Any:
    changed = array.copy()
    changed.reshape(-1)[-1] *= 1.01
    return changed


@pytest.mark.parametrize("key", ["X", "W", "b"])
@pytest.mark.parametrize(
    "how",
    [lambda a: -a, lambda a: 2 * a, one_entry, np.zeros_like, lambda a: a + np.nan],
    ids=["sign", "twice", "one entry", "nothing", "nan"],
)
def test_a_wrong_backward_is_told(key: str, how: Any) -> None:
    with pytest.raises(GradientError, match=f"_Wrong: gradient of {key}"):
        check_gradients(_Wrong(key, how), normal(4, 5))


def test_a_gradient_of_another_shape() -> None:
    class Wrong(Flatten):
        def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
            return dLdY, {}

    with pytest.raises(GradientError, match=r"expected shape \(2, 3, 4\), got shape \(2, 12\)"):
        check_gradients(Wrong(), normal(2, 3, 4))


def test_a_message_names_entry_and_values() -> None:
    with pytest.raises(
        GradientError, match=r"gradient of b\[0, 2\]: backward gives .* differences"
    ):
        check_gradients(_Wrong("b", one_entry), normal(4, 5))


def test_few_entries_are_drawn_by_the_seed() -> None:
    layer = FullyConnected(4, act_fn="Tanh")
    X = normal(3, 50)
    first = check_gradients(layer, X, entries=5, seed=1)
    assert first == check_gradients(layer, X, entries=5, seed=1)
    assert first != check_gradients(layer, X, entries=5, seed=2)


def test_the_weights_are_not_the_input() -> None:
    seen: list[Any] = []

    class Watching(Flatten):
        def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
            seen.append(dLdY.copy())
            return super()._backward(dLdY, saved, params, inputs)

    X = np.random.default_rng(5).standard_normal((40, 10))
    check_gradients(Watching(), X, seed=5)
    assert abs(np.corrcoef(seen[0].ravel(), X.ravel())[0, 1]) < 0.3


def test_bad_calls() -> None:
    X = normal(4, 5)
    with pytest.raises(ParameterError, match="two forward passes of Dropout differ"):
        check_gradients(Dropout(0.5), X)
    small = FullyConnected(2)
    small.forward(X.astype("float32"))
    with pytest.raises(DTypeError, match="computes in float32, expected float64"):
        check_gradients(small, X)
    for bad in ({"step": 0.0}, {"step": float("nan")}, {"tolerance": -1.0}, {"entries": 0}):
        with pytest.raises(ParameterError, match=f"check_gradients: {next(iter(bad))} must be"):
            check_gradients(FullyConnected(2), X, **bad)
    with pytest.raises(DTypeError):
        check_gradients(FullyConnected(2), [[1.0]])


def test_it_is_a_name_of_the_package() -> None:
    assert gpulayers.check_gradients is check_gradients
