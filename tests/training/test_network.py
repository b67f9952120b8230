"""Sequential and Residual: the chain rule, names, parameters, evaluation, errors."""

from __future__ import annotations

import copy
import pickle
from unittest.mock import Mock

import numpy as np
import pytest

from gpulayers import random, set_default_dtype
from gpulayers.backend import default_dtype
from gpulayers.errors import (
    DTypeError,
    FrozenLayerError,
    NotInitializedError,
    ParameterError,
    ShapeError,
)
from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected, Pool2D
from gpulayers.models import Activation, Residual, Sequential
from tests.training.networks import conv, dense


@pytest.fixture
def float64():
    former = default_dtype()
    set_default_dtype("float64")
    yield
    set_default_dtype(former)


def small_cnn() -> Sequential:
    same = [Conv2D(3, (3, 3), pad=1), BatchNorm2D(), Activation("Tanh")]
    wider = [Conv2D(5, (3, 3), pad=1, act_fn="Tanh"), Conv2D(5, (1, 1))]
    return Sequential(
        [
            Conv2D(3, (3, 3), act_fn="Tanh"),
            Residual(same),
            Residual(wider, shortcut=[Conv2D(5, (1, 1))]),
            Pool2D((2, 2), stride=2, mode="average"),
            Flatten(),
            Sequential([FullyConnected(7, act_fn="Tanh"), FullyConnected(4)], name="head"),
        ],
        name="small",
    )


def numeric_gradient(f, X: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """Central differences, element by element."""
    gradient = np.zeros_like(X)
    for i in np.ndindex(*X.shape):
        kept = X[i]
        X[i] = kept + eps
        up = f()
        X[i] = kept - eps
        down = f()
        X[i] = kept
        gradient[i] = (up - down) / (2 * eps)
    return gradient


def test_gradients_of_a_nested_network_are_the_finite_differences(float64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, 6, 6, 2))
    weights = rng.standard_normal((3, 4))
    net = small_cnn()

    def value() -> float:
        out = float((net.forward(X) * weights).sum())
        net.flush_gradients()
        return out

    value()
    net.forward(X)
    dX = net.backward(weights)
    gradients = {k: v.copy() for k, v in net.gradients.items()}
    np.testing.assert_allclose(dX, numeric_gradient(value, X), atol=2e-8)
    checked = ["0.W", "1.body.0.W", "1.body.1.scaler", "2.body.1.W", "2.shortcut.0.b", "5.0.b"]
    for name in checked:
        expected = numeric_gradient(value, net.parameters[name])
        np.testing.assert_allclose(gradients[name], expected, atol=2e-8, err_msg=name)


def test_several_forwards_before_one_backward_add_up():
    rng = np.random.default_rng(1)
    X1, X2 = (rng.standard_normal((2, 6, 6, 2)).astype(np.float32) for _ in range(2))
    net = Sequential([Residual([Conv2D(2, (3, 3), pad=1)]), Flatten(), FullyConnected(3)])
    singles, outs = [], []
    for X in (X1, X2):
        outs.append(np.ones_like(net.forward(X)))
        singles.append((net.backward(outs[-1]), {k: v.copy() for k, v in net.gradients.items()}))
        net.flush_gradients()
    net.forward(X1)
    net.forward(X2)
    both = net.backward(outs)
    for dX, (single, _) in zip(both, singles, strict=True):
        np.testing.assert_allclose(dX, single, rtol=1e-5)
    for name, gradient in net.gradients.items():
        expected = singles[0][1][name] + singles[1][1][name]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", [conv, small_cnn])
def test_leaving_out_the_input_gradient_changes_nothing_else(make):
    X = np.random.default_rng(0).standard_normal((4, 10, 10, 1)).astype(np.float32)
    gradients = []
    for input_grad in (True, False):
        random.seed(3)
        net = make()
        Y = net.forward(X)
        dX = net.backward(np.ones_like(Y), input_grad=input_grad)
        assert (dX is None) == (not input_grad)
        gradients.append({k: v.copy() for k, v in net.gradients.items()})
    for name, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradient, gradients[1][name], err_msg=name)


def test_the_first_layer_is_told_that_nobody_wants_its_input_gradient():
    asked = []

    class Spy(Conv2D):
        def backward(self, dLdY, retain_grads=True, input_grad=True):
            asked.append(input_grad)
            return super().backward(dLdY, retain_grads, input_grad)

    class NumpyMlStyle(Flatten):
        def backward(self, dLdY, retain_grads=True):  # a layer of one's own need not know it
            asked.append("plain")
            return super().backward(dLdY, retain_grads)

    X = np.ones((2, 5, 5, 1), np.float32)
    net = Sequential([Spy(2, (3, 3)), Spy(2, (3, 3)), Flatten()])
    net.backward(np.ones_like(net.forward(X)), input_grad=False)
    assert asked == [True, False]
    net = Sequential([NumpyMlStyle()])
    assert net.backward(np.ones_like(net.forward(X)), input_grad=False) is None
    assert asked[-1] == "plain"


def test_each_layer_gets_its_own_copy_of_the_optimizer():
    net = dense("Adam(lr=0.5)")
    optimizers = [layer.optimizer for _, layer in net.walk()]
    assert len({id(o) for o in optimizers}) == len(net)
    assert {o.lr for o in optimizers} == {0.5}
    kept = Sequential([FullyConnected(3, optimizer="SGD(lr=0.25)")])
    assert kept[0].optimizer.lr == 0.25  # no optimizer given: the layer keeps its own


def test_update_skips_frozen_layers_and_flushes_them():
    net = dense("SGD(lr=0.5)")
    X = np.random.default_rng(0).standard_normal((4, 2, 2, 1)).astype(np.float32)
    net.forward(X)
    net.flush_gradients()
    net[1].freeze()
    before = {k: v.copy() for k, v in net.parameters.items()}
    Y = net.forward(X)
    net.backward(np.ones_like(Y))
    net.update()
    assert not net[1].X
    np.testing.assert_array_equal(net.parameters["1.W"], before["1.W"])
    assert not np.array_equal(net.parameters["3.b"], before["3.b"])
    net.freeze()
    assert not net.trainable
    with pytest.raises(FrozenLayerError):
        net[3].update()
    net.update()  # a wholly frozen network: nothing to do, no error
    net.unfreeze()
    assert net.trainable


def test_a_frozen_block_inside_a_network_passes_gradients_through():
    net = Sequential([FullyConnected(4), Sequential([FullyConnected(4)]), FullyConnected(2)])
    X = np.ones((3, 4), np.float32)
    net.forward(X)
    net.flush_gradients()
    net[1].freeze()
    before = net.parameters["1.0.W"].copy()
    net.backward(np.ones_like(net.forward(X)))
    assert np.abs(net.gradients["0.W"]).sum() > 0
    assert not net.gradients["1.0.W"].any()
    net.update()
    np.testing.assert_array_equal(net.parameters["1.0.W"], before)


def test_what_a_summary_is_of():
    with pytest.raises(ParameterError, match=r"the shape of one input, a tuple .*, got 3"):
        Sequential([FullyConnected(3)]).summary(3)
    with pytest.raises(ParameterError, match=r"positive integers, got \(8, -1\)"):
        Sequential([FullyConnected(3)]).summary((8, -1))
    with pytest.raises(ParameterError, match="FullyConnected: expected a summary, a dict, got Non"):
        FullyConnected(3).set_params(None)


@pytest.mark.parametrize("what", ["parameters", "gradients"])
def test_what_is_assigned_to_a_dictionary_made_anew_is_refused(what):
    net = small_cnn()
    net.forward(np.ones((2, 8, 8, 1), np.float32))
    shown, before = getattr(net, what), getattr(net.layers[0], what)["W"].copy()
    other = np.ones_like(before)

    def merge():
        nonlocal shown
        shown |= {"0.W": other}

    for change in (
        lambda: getattr(net, what).__setitem__("0.W", other),
        lambda: shown.__delitem__("0.W"),
        lambda: shown.update({"0.W": other}),
        lambda: shown.setdefault("0.X", other),
        lambda: shown.pop("0.W"),
        shown.popitem,
        shown.clear,
        merge,
    ):
        with pytest.raises(ParameterError, match=rf"small\.{what}: .*\.{what}\[\"0.W\"\]\[...\] ="):
            change()
    assert list(getattr(net, what)) == list(shown)
    np.testing.assert_array_equal(getattr(net, what)["0.W"], before)
    getattr(net, what)["0.W"][...] = other  # the arrays are the live ones
    np.testing.assert_array_equal(getattr(net.layers[0], what)["W"], other)
    copies = [dict(shown), shown.copy(), shown | {}, copy.copy(shown), copy.deepcopy(shown)]
    for another in (*copies, pickle.loads(pickle.dumps(shown))):
        assert type(another) is dict and list(another) == list(shown)
        another["0.W"] = before
        assert another["0.W"] is before
    assert shown["0.W"] is getattr(net.layers[0], what)["W"]


def test_a_summary_may_be_changed_and_given_back():
    net = small_cnn()
    net.forward(np.ones((2, 8, 8, 1), np.float32))
    summary = net.summary()
    summary["parameters"]["0.W"] = np.full_like(summary["parameters"]["0.W"], 3.0)
    net.set_params(summary)
    assert (net[0].parameters["W"] == 3.0).all()


def test_set_params_restores_a_summary_also_into_a_new_network():
    X = np.random.default_rng(0).standard_normal((4, 10, 10, 1)).astype(np.float32)
    net = conv()
    net.forward(X)
    net.flush_gradients()
    kept = copy.deepcopy(net.summary())
    expected = net.predict(X)
    identity = net.parameters["0.W"]
    net.parameters["0.W"][...] += 1.0
    net.set_params(kept)
    assert net.parameters["0.W"] is identity
    np.testing.assert_array_equal(net.predict(X), expected)
    fresh = conv()
    fresh.set_params({"parameters": kept["parameters"]})
    np.testing.assert_allclose(fresh.predict(X), expected, rtol=1e-6)
    assert set(kept) == {"layer", "parameters", "hyperparameters"}, (
        "the caller's dict is left alone"
    )


def test_set_params_refuses_what_does_not_fit():
    net = dense()
    net.predict(np.ones((2, 3, 3, 1), np.float32))
    with pytest.raises(ParameterError, match=r"1\.V.*did you mean '1\.W'"):
        net.set_params({"parameters": {"1.V": np.ones((9, 32), np.float32)}})
    with pytest.raises(ShapeError, match=r"1\.W must have shape \(9, 32\), got \(9, 31\)"):
        net.set_params({"parameters": {"1.W": np.ones((9, 31), np.float32)}})
    with pytest.raises(ParameterError, match="'parameters'"):
        net.set_params({"1.W": np.ones((9, 32), np.float32)})
    fits, before = np.ones((9, 32), np.float32), net[1].parameters["W"].copy()
    for wrong in (np.zeros((32, 10), bool), [1.0], "ab"):
        with pytest.raises(DTypeError, match=r"set_params:? ?3\.W"):
            net.set_params({"parameters": {"1.W": fits, "3.W": wrong}})
        np.testing.assert_array_equal(net[1].parameters["W"], before)


def test_errors_name_the_layer_and_keep_their_type():
    net = Sequential([Conv2D(2, (3, 3)), Conv2D(2, (9, 9))], name="mine")
    with pytest.raises(ShapeError, match=r"mine, layer 1 \(Conv2D\): "):
        net.forward(np.ones((1, 8, 8, 1), np.float32))
    with pytest.raises(DTypeError, match=r"mine, layer 0 \(Conv2D\): "):
        net.forward(np.ones((1, 8, 8, 1), np.int64))
    for given in ([[1.0]], None, "ab"):
        with pytest.raises(DTypeError, match=r"mine, layer 0 \(Conv2D\).*the input: expected"):
            net.forward(given)
    inner = Sequential([Residual([Conv2D(3, (3, 3), pad=1)])], name="outer")
    with pytest.raises(ShapeError, match=r"outer, layer 0 \(Residual\): .*must be equal"):
        inner.forward(np.ones((1, 8, 8, 2), np.float32))
    net = Sequential([FullyConnected(2), FullyConnected(3)], name="two")
    net.forward(np.ones((4, 2), np.float32))
    with pytest.raises(ShapeError, match=r"two, layer 1 \(FullyConnected\): "):
        net.backward(np.ones((4, 2), np.float32))


@pytest.mark.parametrize("error", [ShapeError("cut off"), KeyboardInterrupt()])
def test_a_forward_pass_that_fails_leaves_nothing_behind(monkeypatch, error):
    net, X = small_cnn(), np.ones((2, 8, 8, 2), np.float32)
    net.forward(X, retain_derived=False)
    dLdY = np.ones((2, 4), np.float32)
    net.forward(X)
    net.backward(dLdY)
    gradients = {name: grad.copy() for name, grad in net.gradients.items()}
    net._drop_retained()
    with monkeypatch.context() as cut:
        cut.setattr(net[2].shortcut[0], "_forward", Mock(side_effect=error))
        with pytest.raises(type(error)):
            net.forward(X)
    net.forward(X)
    net.backward(dLdY)
    for name, grad in net.gradients.items():  # those of before are still there
        np.testing.assert_allclose(grad, 2 * gradients[name], rtol=1e-4, atol=1e-5)


def test_construction_refuses_nonsense():
    with pytest.raises(ParameterError, match="at least one layer"):
        Sequential([])
    with pytest.raises(ParameterError, match="entry 1 is 'ReLU'"):
        Sequential([Flatten(), "ReLU"])
    layer = FullyConnected(2)
    layer = FullyConnected(3)
    with pytest.raises(ParameterError, match=r"expected a list of layers, Sequential\(\[...\]\)"):
        Sequential(layer)
    with pytest.raises(ParameterError, match="expected a list of layers"):
        Sequential(layer, FullyConnected(3))
    with pytest.raises(
        ParameterError, match=r"entry 1 is <class .*FullyConnected.*expected a layer"
    ):
        Sequential([layer, FullyConnected])
    with pytest.raises(ParameterError, match="twice"):
        Sequential([layer, layer])
    with pytest.raises(ParameterError, match="did you mean 'Adam'"):
        Sequential([layer], optimizer="Adan(lr=0.1)")


def test_parameter_count_and_table():
    net = conv()
    with pytest.raises(NotInitializedError, match=r"0\.W"):
        _ = net.parameter_count
    table = net.table((10, 10, 1))
    expected = (9 * 4 + 4) + (9 * 16 + 4) + (4 + 4) + (100 * 10 + 10)
    assert net.parameter_count == expected
    lines = table.splitlines()
    assert lines[0].split()[:3] == ["layer", "output", "parameters"]
    assert lines[-2].split()[:2] == ["total", f"{expected:,}"]
    assert lines[3].split()[:5] == ["1", "Residual", "(10,", "10,", "4)"]
    assert lines[4].split()[:6] == ["1.body.0", "Conv2D", "(10,", "10,", "4)", "148"]


def test_the_first_layer_with_a_value_that_is_not_finite_is_named():
    net = dense()
    X = np.ones((2, 3, 3, 1), np.float32)
    assert net.first_not_finite(X) is None
    assert net.backward(net.forward(X)).shape == X.shape  # looking has left nothing behind
    net.parameters["3.W"][0, 0] = np.inf
    net.parameters["1.b"][0, 1] = np.nan
    assert net.first_not_finite(X) == "dense, layer 1 (FullyConnected)"


def test_a_new_head_is_trained_saved_and_counted():
    """As one goes on with a trained network for other classes."""
    net, X = dense(), np.ones((2, 3, 3, 1), np.float32)
    before = net.forward(X, retain_derived=False)
    net.layers[-1] = FullyConnected(before.shape[1] + 3)
    net[1].freeze()
    for _ in range(2):
        net.backward(np.ones_like(net.forward(X)))
        head = copy.deepcopy(net[3].parameters["W"])
        net.update()
    assert np.any(net[3].parameters["W"] != head)
    assert net.parameters["3.W"] is net[3].parameters["W"] and not net[3].X
    other = dense()
    other.layers[-1] = FullyConnected(before.shape[1] + 3)
    other.forward(X, retain_derived=False)
    other.set_params(net.summary())
    np.testing.assert_array_equal(other.predict(X), net.predict(X))
    block = Residual([FullyConnected(2)])
    block.shortcut = Sequential([FullyConnected(2)])
    assert list(block.components) == ["body", "shortcut"]


def test_looking_at_a_network():
    net = dense()
    assert len(net) == 4
    assert list(net) == net.layers and net[-1] is net.layers[3]
    assert repr(net) == (
        "Sequential([Flatten, FullyConnected, Dropout, FullyConnected], name='dense')"
    )
    assert net.home is None and net.dtype == np.float32
    assert list(net.hyperparameters["components"]) == ["0", "1", "2", "3"]


def test_a_dropout_layer_is_the_identity_in_evaluation():
    net = Sequential([Dropout(0.5)])
    X = np.ones((4, 100), np.float32)
    np.testing.assert_array_equal(net.predict(X), X)
    assert not np.array_equal(net.forward(X), X)
