"""The wrapper Dropout around every layer that takes one array; defects D24..D28 of numpy-ml."""

from __future__ import annotations

import copy
import functools
from typing import Any

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
from tests.layers.cases import CASES, Case
from tests.layers.gold import SEED, Result, kept_by_dropout
from tests.support.compare import (
    LAYOUTS,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    host,
    scrambled,
)

P = 0.4
WRAPPED = [case for case in CASES if case.layer != "Dropout"]  # it draws, too
with_cases = pytest.mark.parametrize("case", WRAPPED, ids=lambda case: case.id)
FC = next(case for case in CASES if case.id == "fc-tanh")


def fresh(case: Case, backend: Backend, dtype: str = "float64", **kwargs: Any) -> Dropout:
    return Dropout(harness.fresh(case, backend, dtype, **kwargs), P)


@functools.cache
def gold_of(case: Case, batch: int | None = None) -> Result:
    """The layer's gold on the dropped input; the gradient dropped in the same places."""
    shape = case.shape if batch is None else case.batch_of(batch)
    kept = kept_by_dropout(P, shape, SEED) / (1 - P)
    X = harness.values(shape, 1) * kept
    Y, dX, grads = case.gold(harness.parameters_of(case), X, lambda out: harness.values(out, 2))
    return Result(Y, dX * kept, grads)


def output(Y: Any) -> Any:
    """The output proper: an LSTM's cell returns its memory, too."""
    return Y[0] if isinstance(Y, tuple) else Y


# ------------------------------------------------------------------------- values and gradients


@with_cases
def test_against_loops(case: Case, backend: Backend) -> None:
    gold = gold_of(case)
    wrapper = fresh(case, backend)
    Y = output(harness.forward(wrapper, harness.input_of(case, backend)))
    assert_close(Y, gold.Y, factor=10)
    dX = wrapper.backward(harness.gradient_like(Y, backend))
    assert_close(dX, gold.dX, factor=100)
    harness.assert_grads(wrapper, gold.grads, factor=100)
    mask = wrapper.derived_variables["wrappers"][0]["dropout_mask"][0]
    assert_same_bits(mask, kept_by_dropout(P, case.shape, SEED))


@with_cases
def test_central_differences(case: Case, numpy_backend: Backend) -> None:
    wrapper = fresh(case, numpy_backend)
    X = harness.input_of(case, numpy_backend)
    Y = output(harness.forward(wrapper, X))
    dY = harness.gradient_like(Y, numpy_backend)
    dX = wrapper.backward(dY)
    wrapper.flush_gradients()
    direction = np.random.default_rng(5).normal(size=X.shape)
    sides = []
    for h in (1e-5, -1e-5):
        Y = output(harness.forward(wrapper, X + h * direction))
        sides.append(float(np.sum(Y * dY)))
        wrapper.flush_gradients()
    difference = (sides[0] - sides[1]) / 2e-5
    assert np.sum(dX * direction) == pytest.approx(difference, rel=1e-6, abs=1e-7)


def test_against_pytorch(backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    wrapper = Dropout(fresh(FC, backend), 0.25)
    X = harness.input_of(FC, backend)
    Y = harness.forward(wrapper, X)
    dY = harness.gradient_like(Y, backend)
    dX = wrapper.backward(dY)
    params = {k: torch.tensor(v, requires_grad=True) for k, v in harness.parameters_of(FC).items()}
    X_torch = torch.tensor(host(X), requires_grad=True)
    dropped = X_torch
    for entry, p in zip(reversed(wrapper.derived_variables["wrappers"]), (0.25, P), strict=True):
        dropped = dropped * torch.tensor(host(entry["dropout_mask"][0])) / (1 - p)
    expected = torch.tanh(dropped @ params["W"] + params["b"])
    wanted = torch.autograd.grad(
        expected, [X_torch, params["W"], params["b"]], torch.tensor(host(dY))
    )
    assert_close(Y, expected.detach().numpy())
    for actual, gold in zip((dX, *wrapper.gradients.values()), wanted, strict=True):
        assert_close(actual, gold.numpy())


# ------------------------------------------------------------------------- numpy-ml's defects


def test_the_gradient_handed_in_is_not_overwritten(backend: Backend) -> None:
    """D24: numpy-ml multiplies the caller's dLdy by 1 / (1 - p) in place."""
    wrapper = fresh(FC, backend)
    Y = wrapper.forward(harness.input_of(FC, backend))
    dY = harness.gradient_like(Y, backend)
    before = dY.copy()
    wrapper.backward(dY)
    assert_same_bits(dY, before)


def test_a_list_of_gradients_is_taken(backend: Backend) -> None:
    """D24: numpy-ml raises TypeError for a list."""
    wrapper = fresh(FC, backend)
    Ys = [harness.forward(wrapper, harness.input_of(FC, backend, batch=n)) for n in (2, 1, 3)]
    dXs = wrapper.backward([harness.gradient_like(Y, backend) for Y in Ys])
    golds = [gold_of(FC, n) for n in (2, 1, 3)]
    for dX, gold in zip(dXs, golds, strict=True):
        assert_close(dX, gold.dX)
    total = {name: sum(g.grads[name] for g in golds) for name in golds[0].grads}
    harness.assert_grads(wrapper, total)
    wrapper.flush_gradients()
    Y = harness.forward(wrapper, harness.input_of(FC, backend))
    assert_close(wrapper.backward([harness.gradient_like(Y, backend)]), gold_of(FC).dX)


def test_integer_gradients_are_refused_by_name(numpy_backend: Backend) -> None:
    """D24: numpy-ml raises UFuncTypeError from inside."""
    wrapper = fresh(FC, numpy_backend)
    Y = wrapper.forward(harness.input_of(FC, numpy_backend))
    with pytest.raises(DTypeError, match="FullyConnected: the gradient must have a floating dtype"):
        wrapper.backward(np.ones(Y.shape, int))


def test_dropped_inputs_get_no_gradient(backend: Backend) -> None:
    """D25: numpy-ml gives all inputs a gradient, the dropped ones too."""
    wrapper = fresh(FC, backend)
    Y = harness.forward(wrapper, harness.input_of(FC, backend))
    dX = host(wrapper.backward(harness.gradient_like(Y, backend)))
    kept = kept_by_dropout(P, FC.shape, SEED)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(dX != 0, kept)


def test_the_kept_inputs_are_scaled_not_the_output(backend: Backend) -> None:
    """D26: with W = 1, b = 1, x = 1, p = 0.5 and ReLU numpy-ml's outputs are 2 or 4, on average 3;
    they should be relu(0 + 1) or relu(2 + 1), on average 2 as in evaluation."""
    with harness.default_dtype("float64"):
        layer = layers.FullyConnected(1, act_fn="ReLU")
        X = backend.asarray(np.ones((4000, 1)))
        layer.forward(X, retain_derived=False)
    layer.parameters["W"][...] = layer.parameters["b"][...] = 1.0
    wrapper = Dropout(layer, 0.5)
    random.seed(1)
    Y = host(wrapper.forward(X))
    assert set(np.unique(Y)) == {1.0, 3.0}
    assert abs(Y.mean() - 2.0) < 5 / 4000**0.5
    assert set(np.unique(host(wrapper.forward(X, retain_derived=False)))) == {2.0}


def test_unfreeze_unfreezes(numpy_backend: Backend) -> None:
    """D27: numpy-ml's unfreeze() freezes."""
    wrapper = Dropout(fresh(FC, numpy_backend), 0.1)
    wrapper.freeze()
    assert not wrapper.trainable
    wrapper.unfreeze()
    assert wrapper.trainable
    wrapper.update()


def test_stacked_wrappers_all_act(backend: Backend) -> None:
    """D28: numpy-ml's outer wrapper calls the innermost layer, the one between is left out."""
    wrapper = Dropout(Dropout(harness.fresh(FC, backend), 0.5), 0.3)
    ones = backend.asarray(np.ones(FC.shape))
    Y = harness.forward(wrapper, ones)
    shown = wrapper.derived_variables["wrappers"]
    inner, outer = (host(entry["dropout_mask"][0]) for entry in shown)
    assert not np.array_equal(inner, outer)
    factor = inner * outer / (0.5 * 0.7)
    gold = FC.gold(harness.parameters_of(FC), factor, lambda s: harness.values(s, 2))
    assert_close(Y, gold.Y)
    dX = wrapper.backward(harness.gradient_like(Y, backend))
    assert_close(dX, gold.dX * factor)


def test_init_wrappers_restores_p(numpy_backend: Backend) -> None:
    """D28: numpy-ml's init_wrappers leaves p = 1 (ZeroDivisionError at the next forward)."""
    wrapper = Dropout(Dropout(harness.fresh(FC, numpy_backend), 0.5), 0.3)
    described = wrapper.hyperparameters["wrappers"]
    assert described == [{"wrapper": "Dropout", "p": 0.5}, {"wrapper": "Dropout", "p": 0.3}]
    again = init_wrappers(harness.fresh(FC, numpy_backend), described)
    assert again.hyperparameters["wrappers"] == described
    X = harness.input_of(FC, numpy_backend)
    assert_same_bits(harness.forward(again, X), harness.forward(wrapper, X))
    layer = harness.fresh(FC, numpy_backend)
    assert init_wrappers(layer, []) is layer


def test_update_needs_no_argument(backend: Backend) -> None:
    """D28: numpy-ml's update() is a TypeError without its positional argument."""
    wrapper = fresh(FC, backend, optimizer="SGD(lr=0.5)")
    Y = harness.forward(wrapper, harness.input_of(FC, backend))
    wrapper.backward(harness.gradient_like(Y, backend))
    before, gold = harness.parameters_of(FC), gold_of(FC)
    wrapper.update()
    for name, gradient in gold.grads.items():
        assert_close(wrapper.parameters[name], before[name] - 0.5 * gradient)
    harness.assert_no_grads(wrapper)
    assert wrapper.X == []
    assert wrapper.derived_variables == {"Z": [], "wrappers": [{"dropout_mask": []}]}
    wrapper.update(cur_loss=1.0)


def test_set_params_returns_the_wrapper(backend: Backend) -> None:
    """D28: numpy-ml's set_params returns the bare layer."""
    wrapper = Dropout(fresh(FC, backend, optimizer="Adam"), 0.2)
    Y = harness.forward(wrapper, harness.input_of(FC, backend))
    wrapper.backward(harness.gradient_like(Y, backend))
    wrapper.update()
    summary = wrapper.summary()
    assert summary.keys() == {"layer", "layer_wrappers", "parameters", "hyperparameters"}
    assert summary["layer"] == "FullyConnected"
    assert summary["layer_wrappers"] == ["Dropout", "Dropout"]
    held = copy.deepcopy(summary)
    other = Dropout(Dropout(FC.make(), 0.9), 0.8)
    assert other.set_params(held) is other
    assert held.keys() == summary.keys()
    assert held["hyperparameters"].keys() == summary["hyperparameters"].keys()
    assert other.hyperparameters["wrappers"] == wrapper.hyperparameters["wrappers"]
    for _ in range(2):
        results = []
        for one in (wrapper, other):
            Y = harness.forward(one, harness.input_of(FC, backend))
            results.append((Y, one.backward(harness.gradient_like(Y, backend))))
            one.update()
        for a, b in zip(*results, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell"])
def test_cells_can_be_wrapped(kind: str, backend: Backend) -> None:
    """D28: numpy-ml's wrapper passes retain_derived, which its cells do not take."""
    if not hasattr(layers, kind):
        pytest.skip("no such cell yet")
    Xs = [harness.values((3, 4), seed) for seed in (1, 2, 3)]
    dYs = [harness.values((3, 2), seed) for seed in (4, 5, 6)]
    with harness.default_dtype("float64"):
        cell = getattr(layers, kind)(2)
        cell.forward(backend.asarray(Xs[0]), retain_derived=False)
        cell.flush_gradients()
        plain = copy.deepcopy(cell)
    wrapper = Dropout(cell, P)
    for _ in range(2):  # two training steps: the masks of the first must not be met again
        random.seed(SEED)
        for X in Xs:
            wrapper.forward(backend.asarray(X))
        masks = wrapper.derived_variables["wrappers"][0]["dropout_mask"]
        factors = [host(mask) / (1 - P) for mask in masks]
        assert len(factors) == 3
        assert not np.array_equal(factors[0], factors[1])
        dropped = [backend.asarray(X * f) for X, f in zip(Xs, factors, strict=True)]
        Ys = [output(plain.forward(X)) for X in dropped]
        assert_same_bits(wrapper.derived_variables["A"][-1], Ys[-1])
        for dY, factor in zip(reversed(dYs), reversed(factors), strict=True):
            dX = wrapper.backward(backend.asarray(dY))
            assert_close(dX, host(plain.backward(backend.asarray(dY))) * factor)
        harness.assert_grads(wrapper, harness.snapshot(plain.gradients))
        wrapper.update()
        plain.update()
    with pytest.raises(ShapeError, match=rf"{kind}: no step is left"):
        wrapper.backward(backend.asarray(dYs[0]))


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
