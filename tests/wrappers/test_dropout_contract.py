"""Dropout around a layer keeps the layers' contract."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import layers, ops, random
from gpulayers.errors import (
    BackendError,
    DTypeError,
    FrozenLayerError,
    ParameterError,
    ShapeError,
)
from gpulayers.wrappers import Dropout, WrapperBase, init_wrappers
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import Case
from tests.support.compare import (
    LAYOUTS,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    host,
    scrambled,
)
from tests.wrappers.test_dropout import FC, P, fresh, gold_of, output, with_cases

# -------------------------------------------------------------------------- the layers' contract


@with_cases
def test_evaluation_is_the_layer(case: Case, backend: Backend) -> None:
    layer, wrapper = harness.fresh(case, backend), fresh(case, backend)
    X, before = harness.input_of(case, backend), random.get_state()
    assert_same_bits(
        output(wrapper.forward(X, retain_derived=False)),
        output(layer.forward(X, retain_derived=False)),
    )
    for one in (layer, wrapper):
        one.flush_gradients()
        one.freeze()
    Y = output(wrapper.forward(X))
    assert_same_bits(Y, output(layer.forward(X)))
    assert random.get_state() == before  # nothing is drawn
    assert wrapper.derived_variables["wrappers"] == [{"dropout_mask": [None]}]
    dY = harness.gradient_like(Y, backend)
    assert_same_bits(wrapper.backward(dY), layer.backward(dY))
    with pytest.raises(FrozenLayerError):
        wrapper.update()


def test_p_zero_draws_nothing(numpy_backend: Backend) -> None:
    layer, same = harness.fresh(FC, numpy_backend), harness.fresh(FC, numpy_backend)
    X, before = harness.input_of(FC, numpy_backend), random.get_state()
    assert_same_bits(Dropout(layer, 0).forward(X), same.forward(X))
    assert random.get_state() == before


def test_flags(backend: Backend) -> None:
    wrapper = fresh(FC, backend)
    X = harness.input_of(FC, backend)
    Y = harness.forward(wrapper, X)
    dY = harness.gradient_like(Y, backend)
    assert_close(wrapper.backward(dY, retain_grads=False), gold_of(FC).dX)
    harness.assert_no_grads(wrapper)
    assert wrapper.backward(dY, input_grad=False) is None
    harness.assert_grads(wrapper, gold_of(FC).grads)
    wrapper.flush_gradients()
    with pytest.raises(ShapeError, match="no input is retained"):
        wrapper.backward(dY)
    wrapper.forward(X, retain_derived=False)
    assert wrapper.derived_variables["wrappers"] == [{"dropout_mask": []}]


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(backend: Backend, batch: int) -> None:
    wrapper = fresh(FC, backend)
    Y = harness.forward(wrapper, harness.input_of(FC, backend, batch=batch))
    dX = wrapper.backward(harness.gradient_like(Y, backend))
    gold = gold_of(FC, batch)
    assert_close(Y, gold.Y)
    assert_close(dX, gold.dX)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(backend: Backend, layout: str) -> None:
    X = harness.input_of(FC, backend)
    results = []
    for change in (lambda a: a, lambda a: scrambled(a, layout)):
        wrapper = fresh(FC, backend)
        x = change(X)
        before = x.copy()
        Y = harness.forward(wrapper, x)
        results.append((Y, wrapper.backward(change(harness.gradient_like(Y, backend)))))
        assert_same_bits(x, before)
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_is_the_layers(backend: Backend, dtype: str) -> None:
    wrapper = fresh(FC, backend, dtype)
    for given in (dtype, "float32"):
        Y = harness.forward(wrapper, harness.input_of(FC, backend, given))
        dX = wrapper.backward(harness.gradient_like(Y, backend, given))
        assert {Y.dtype.name, dX.dtype.name} == {dtype}
        coarser = max(given, dtype, key=TOLERANCE.__getitem__)
        assert_close(Y, gold_of(FC).Y, dtype=coarser, factor=3)
        wrapper.flush_gradients()


def test_bfloat16_is_kept() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    wrapper = Dropout(layers.Flatten(), 0.5)
    X = np.ones((4, 3, 2), bfloat16)
    Y = wrapper.forward(X)
    dX = wrapper.backward(Y)
    assert Y.dtype == dX.dtype == bfloat16
    assert set(np.unique(host(dX))) == {0.0, 4.0}


def test_a_step_neither_waits_nor_copies(emulated: Backend) -> None:
    wrapper = Dropout(fresh(FC, emulated, "float32", optimizer="Adam"), 0.2)
    X = harness.input_of(FC, emulated, "float32")
    dY = harness.gradient_like(wrapper.forward(X), emulated)
    wrapper.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        wrapper.forward(X)
        wrapper.backward(dY)
        wrapper.update()


def test_moving_between_forward_and_backward(emulated: Backend) -> None:
    wrapper = fresh(FC, emulated)
    Y = harness.forward(wrapper, harness.input_of(FC, emulated))
    assert wrapper.to("numpy") is wrapper
    assert wrapper.home == "numpy"
    dX = wrapper.backward(harness.values(Y.shape, 2))
    assert type(dX) is np.ndarray
    assert_close(dX, gold_of(FC).dX)


def test_both_backends_drop_the_same(emulated: Backend) -> None:
    masks = []
    for place in ("numpy", "cupy"):
        X = backends.to_backend(harness.values((6, 5), 1), place)
        wrapper = Dropout(layers.Flatten(), 0.5)
        harness.forward(wrapper, X)
        masks.append(wrapper.derived_variables["wrappers"][0]["dropout_mask"][0])
    assert_same_bits(masks[1], masks[0])


def test_it_looks_like_the_layer(numpy_backend: Backend) -> None:
    layer = harness.fresh(FC, numpy_backend)
    wrapper = Dropout(Dropout(layer, 0.5), 0.25)
    assert isinstance(wrapper, WrapperBase)
    for name in ("parameters", "gradients", "X", "act_fn", "optimizer", "trainable", "dtype"):
        assert getattr(wrapper, name) is getattr(layer, name), name
    assert wrapper.is_initialized
    assert layer.hyperparameters.items() <= wrapper.hyperparameters.items()
    assert repr(wrapper) == f"Dropout(Dropout({layer!r}, p=0.5), p=0.25)"
    wrapper.optimizer = fresh(FC, numpy_backend, optimizer="Adam").optimizer
    assert layer.hyperparameters["optimizer"]["hyperparameters"]["id"] == "Adam"
    twin = copy.deepcopy(wrapper)
    X = harness.input_of(FC, numpy_backend)
    assert_same_bits(harness.forward(twin, X), harness.forward(wrapper, X))
    assert twin.parameters["W"] is not wrapper.parameters["W"]


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_in_a_network(backend: Backend, engine: str) -> None:
    """A Sequential trains wrapped layers like any other."""
    from gpulayers.models import Sequential

    with ops.use_engine(engine), harness.default_dtype("float64"):
        random.seed(3)
        net = Sequential(
            [layers.FullyConnected(8, act_fn="Tanh"), Dropout(layers.FullyConnected(1), 0.1)],
            optimizer="Adam(lr=0.02)",
        )
        X = backend.asarray(harness.values((20, 3), 1))
        target = X[:, :1] * 0.5
        losses = []
        for _ in range(60):
            error = net.forward(X, retain_derived=False) - target
            losses.append(float(host(error * error).mean()))
            net.backward(net.forward(X) - target, input_grad=False)
            net.update()
    assert losses[-1] < 0.2 * losses[0]
    assert set(net.parameters) == {"0.W", "0.b", "1.W", "1.b"}


# ---------------------------------------------------------------------------------------- errors


def test_bad_arguments(numpy_backend: Backend) -> None:
    layer = harness.fresh(FC, numpy_backend)
    for p in (1, 1.0, -0.1, float("nan"), None, "half"):
        with pytest.raises(ParameterError, match=r"Dropout: p must be a number in \[0, 1\), got"):
            Dropout(layer, p)  # type: ignore[arg-type]
    for thing in (None, np.ones(3), layers.FullyConnected):
        with pytest.raises(ParameterError, match="Dropout: expected a layer to wrap, got"):
            Dropout(thing, 0.5)
    for described, message in [
        ([{"wrapper": "Dropuot", "p": 0.5}], "unknown wrapper 'Dropuot'.*did you mean 'Dropout'"),
        ([{"wrapper": "Dropout"}], "init_wrappers: Dropout: .*missing"),
        ([{"wrapper": "Dropout", "q": 1}], "init_wrappers: Dropout: .*unexpected"),
        ([{"wrapper": "Dropout", "p": 1}], r"p must be a number in \[0, 1\), got 1"),
        (["Dropout"], "a wrapper is described by a dict"),
        ([{"p": 0.5}], "a wrapper is described by a dict"),
    ]:
        with pytest.raises(ParameterError, match=message):
            init_wrappers(layer, described)


def test_bad_summaries_change_nothing(numpy_backend: Backend) -> None:
    wrapper = Dropout(fresh(FC, numpy_backend), 0.2)
    good = copy.deepcopy(wrapper.summary())
    before = harness.snapshot(wrapper.parameters)
    other = {name: value + 1 for name, value in before.items()}
    for wrappers, message in [
        ([{"wrapper": "Dropout", "p": 0.5}], r"with the wrappers \['Dropout'\], this one has"),
        ([{"wrapper": "Dropout", "p": 0.5}] * 3, "this one has"),
        ([{"wrapper": "Dropout", "p": 0.5}, {"wrapper": "Dropout", "p": 2}], "p must be"),
        ([{"wrapper": "Dropout", "p": 0.5}, {"wrapper": "Dropout"}], "the one setting p"),
        ([1, 2], "a wrapper is described by a dict"),
    ]:
        bad = {"parameters": other, "hyperparameters": {"wrappers": wrappers}}
        with pytest.raises(ParameterError, match=message):
            wrapper.set_params(bad)
        flat = {**other, "wrappers": wrappers}
        with pytest.raises(ParameterError, match=message):
            wrapper.set_params(flat)
    bad = {"parameters": {"W": np.ones((9, 9))}, "hyperparameters": good["hyperparameters"]}
    bad["hyperparameters"]["wrappers"] = [{"wrapper": "Dropout", "p": 0.7}] * 2
    with pytest.raises(ShapeError, match="parameter 'W' must have shape"):
        wrapper.set_params(bad)
    for name, array in before.items():
        assert_same_bits(wrapper.parameters[name], array)
    assert [w["p"] for w in wrapper.hyperparameters["wrappers"]] == [P, 0.2]
    wrapper.set_params({"parameters": other})
    assert_same_bits(wrapper.parameters["W"], other["W"])


def test_bad_inputs_leave_no_mask_behind(emulated: Backend) -> None:
    wrapper = fresh(FC, emulated)
    X = harness.input_of(FC, emulated)
    for given, error, message in [
        ([X, X], DTypeError, "Dropout: expected one input array, got 2"),
        (3.0, DTypeError, "FullyConnected: the input: expected a numpy or cupy array"),
        (X.astype("int32"), DTypeError, "the input must have a floating dtype, got int32"),
        (X[:, :2], ShapeError, "expected an input"),
        (np.ones(FC.shape), BackendError, "the parameters are cupy arrays"),
    ]:
        with pytest.raises(error, match=message):
            wrapper.forward(given)
    assert wrapper.derived_variables["wrappers"] == [{"dropout_mask": []}]
    Y = harness.forward(wrapper, X)
    assert_close(Y, gold_of(FC).Y)
    for dY, error in [([Y, Y], ShapeError), (Y[:1], ShapeError), (np.ones(Y.shape), BackendError)]:
        with pytest.raises(error):
            wrapper.backward(dY)
    harness.assert_no_grads(wrapper)
    assert_close(wrapper.backward(harness.gradient_like(Y, emulated)), gold_of(FC).dX)
