"""The wrapper Dropout around every layer that takes one array; defects D24..D28 of numpy-ml."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from gpulayers.errors import (
    DTypeError,
    ShapeError,
)
from gpulayers.wrappers import Dropout, init_wrappers
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import CASES, Case
from tests.layers.gold import SEED, Result, kept_by_dropout
from tests.support.compare import (
    assert_close,
    assert_same_bits,
    host,
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
