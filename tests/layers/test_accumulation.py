"""numpy-ml's contract of retained inputs and summed gradients; freezing; updates in place."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import FrozenLayerError, ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import CASES, Case, with_cases, with_learning_cases
from tests.support.compare import assert_close, assert_same_bits, host

several = [case for case in CASES if not case.sequence]
SEQUENCES = ("RNN", "LSTM", "GRU")  # what they show is of the last sequences gone through
with_several = pytest.mark.parametrize("case", several, ids=lambda case: case.id)


@with_several
def test_several_forwards_before_one_backward(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    golds = [harness.gold_of(case, batch=n) for n in (2, 1, 3)]
    Xs = [harness.input_of(case, backend, batch=n) for n in (2, 1, 3)]
    Ys = [harness.forward(layer, X) for X in Xs]
    if layer._keeps_input:
        assert len(layer.X) == 3
    for values in layer.derived_variables.values():
        assert not isinstance(values, list) or case.layer in SEQUENCES or len(values) == 3
    dXs = layer.backward([harness.gradient_like(Y, backend) for Y in Ys])
    assert isinstance(dXs, list)
    for Y, dX, gold in zip(Ys, dXs, golds, strict=True):
        assert_close(Y, gold.Y)
        assert_close(dX, gold.dX, factor=100)
    total = {name: sum(g.grads[name] for g in golds) for name in golds[0].grads}
    harness.assert_grads(layer, total, factor=100)


@with_several
@pytest.mark.parametrize("forwards, backwards", [(1, 2), (2, 1), (2, 3), (3, 2), (1, 0), (0, 1)])
def test_a_wrong_number_of_gradients_raises(
    case: Case, numpy_backend: Backend, forwards: int, backwards: int
) -> None:
    layer = harness.fresh(case, numpy_backend)
    X = harness.input_of(case, numpy_backend)
    Y = harness.forward(layer, X)
    layer.flush_gradients()
    for _ in range(forwards):
        harness.forward(layer, X)
    dYs = [harness.gradient_like(Y, numpy_backend)] * backwards
    expected = {0: "no input is retained", 1: "needs one gradient"}.get(
        forwards, f"needs a list of {forwards} gradients"
    )
    with pytest.raises(ShapeError, match=rf"{case.layer}: .*{expected}"):
        layer.backward(dYs)
    harness.assert_no_grads(layer)
    if backwards == 1:
        with pytest.raises(ShapeError, match=rf"{case.layer}: .*{expected}"):
            layer.backward(dYs[0])


@with_several
def test_a_list_of_one(case: Case, numpy_backend: Backend) -> None:
    layer = harness.fresh(case, numpy_backend)
    Y = harness.forward(layer, harness.input_of(case, numpy_backend))
    dX = layer.backward([harness.gradient_like(Y, numpy_backend)])
    assert isinstance(dX, np.ndarray)
    assert_close(dX, harness.gold_of(case).dX)


@with_several
def test_two_backwards_accumulate(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    gold = harness.gold_of(case)
    Y = harness.forward(layer, harness.input_of(case, backend))
    dY = harness.gradient_like(Y, backend)
    kept = dict(layer.gradients)
    first = layer.backward(dY)
    assert_same_bits(layer.backward(dY), first)
    harness.assert_grads(layer, {n: 2 * g for n, g in gold.grads.items()})
    assert all(layer.gradients[n] is g for n, g in kept.items())


@with_cases
def test_retain_grads_false_adds_nothing(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    dX = layer.backward(harness.gradient_like(Y, backend), retain_grads=False)
    assert_close(dX, harness.gold_of(case).dX)
    harness.assert_no_grads(layer)


@with_cases
def test_input_grad_false_skips_the_input(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert layer.backward(harness.gradient_like(Y, backend), input_grad=False) is None
    harness.assert_grads(layer, harness.gold_of(case).grads)


@with_cases
def test_retain_derived_false_keeps_nothing(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    X = harness.input_of(case, backend)
    Y = harness.forward(layer, X, retain_derived=False)
    assert layer.X == []
    if not case.sequence:  # a cell goes on from its state
        empty = case.make().derived_variables
        assert layer.derived_variables == empty
    if case.layer not in ("BatchNorm1D", "BatchNorm2D", "Dropout"):
        assert_close(Y, harness.gold_of(case).Y)
    with pytest.raises(ShapeError, match=rf"{case.layer}: no (input|step)"):
        layer.backward(harness.gradient_like(Y, backend))


@with_several
def test_evaluation_between_does_not_disturb(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    harness.forward(layer, harness.input_of(case, backend, batch=1), retain_derived=False)
    dX = layer.backward(harness.gradient_like(Y, backend))
    assert_close(dX, harness.gold_of(case).dX)
    harness.assert_grads(layer, harness.gold_of(case).grads)


# -------------------------------------------------------------------------------------- frozen


@with_cases
def test_a_frozen_layer_passes_the_gradient_on_and_keeps_still(
    case: Case, backend: Backend
) -> None:
    layer = harness.fresh(case, backend)
    before = harness.snapshot(layer.parameters)
    layer.freeze()
    assert not layer.trainable
    Y = harness.forward(layer, harness.input_of(case, backend))
    dX = layer.backward(harness.gradient_like(Y, backend))
    if case.layer not in ("BatchNorm1D", "BatchNorm2D", "Dropout"):  # those change to evaluation
        assert_close(Y, harness.gold_of(case).Y)
        assert_close(dX, harness.gold_of(case).dX)
    harness.assert_no_grads(layer)
    for raised in (FrozenLayerError, RuntimeError, AssertionError):  # numpy-ml: AssertionError
        with pytest.raises(raised, match=rf"{case.layer}: the layer is frozen; unfreeze\(\)"):
            layer.update()
    for name, array in before.items():
        assert_same_bits(layer.parameters[name], array)
    layer.flush_gradients()
    assert layer.X == []


@with_cases
def test_unfreezing_learns_again(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    layer.freeze()
    layer.unfreeze()
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert_close(layer.backward(harness.gradient_like(Y, backend)), harness.gold_of(case).dX)
    harness.assert_grads(layer, harness.gold_of(case).grads)
    layer.update()


@with_learning_cases
def test_freezing_between_forward_and_backward(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    layer.freeze()
    dX = layer.backward(harness.gradient_like(Y, backend))
    assert_close(dX, harness.gold_of(case).dX)
    harness.assert_no_grads(layer)


# ------------------------------------------------------------------------------------- updates


@with_cases
def test_update_is_in_place_and_flushes(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend, optimizer="SGD(lr=0.5)")
    before, gold = harness.parameters_of(case), harness.gold_of(case)
    parameters, gradients = dict(layer.parameters), dict(layer.gradients)
    held = layer.parameters, layer.gradients
    Y = harness.forward(layer, harness.input_of(case, backend))
    layer.backward(harness.gradient_like(Y, backend))
    layer.update()
    assert layer.parameters is held[0]
    assert layer.gradients is held[1]
    for name, array in parameters.items():
        assert layer.parameters[name] is array
        if name in gold.grads:
            assert_close(array, before[name] - 0.5 * gold.grads[name])
    assert all(layer.gradients[name] is g for name, g in gradients.items())
    harness.assert_no_grads(layer)
    assert layer.X == []
    assert layer.derived_variables == case.make().derived_variables
    with pytest.raises(ShapeError, match=rf"{case.layer}: no (input|step)"):
        layer.backward(harness.gradient_like(Y, backend))


@with_cases
def test_flush_forgets_everything_but_the_parameters(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    before, gradients = harness.snapshot(layer.parameters), dict(layer.gradients)
    Y = harness.forward(layer, harness.input_of(case, backend))
    layer.backward(harness.gradient_like(Y, backend))
    layer.flush_gradients()
    harness.assert_no_grads(layer)
    assert layer.X == []
    assert layer.derived_variables == case.make().derived_variables
    assert all(layer.gradients[name] is g for name, g in gradients.items())
    for name, array in before.items():
        if "running" not in name:
            assert_same_bits(layer.parameters[name], array)
    case.make().flush_gradients()  # before any input, too


@with_learning_cases
def test_training_steps(case: Case, backend: Backend) -> None:
    """Three steps (a second one crashes numpy-ml's recurrent layers) against gold, step by step."""
    layer = harness.fresh(case, backend, optimizer="SGD(lr=0.05)")
    params = harness.parameters_of(case)
    for step in range(3):
        X = harness.values(case.batch_of(step + 2), 20 + step)
        gold = case.gold(params, X, lambda shape, step=step: harness.values(shape, 30 + step))
        Y = harness.forward(layer, backend.asarray(X))
        assert_close(Y, gold.Y, factor=10)
        dX = layer.backward(backend.asarray(harness.values(Y.shape, 30 + step)))
        assert_close(dX, gold.dX, factor=10)
        harness.assert_grads(layer, gold.grads, factor=10)
        layer.update(cur_loss=1.0)
        for name, gradient in gold.grads.items():
            params[name] = params[name] - 0.05 * gradient
            assert_close(layer.parameters[name], params[name], factor=10)


@with_learning_cases
@pytest.mark.parametrize("spec", ["SGD(lr=0.1, momentum=0.9)", "Adam(lr=0.01)"])
def test_one_optimizer_for_two_layers(case: Case, numpy_backend: Backend, spec: str) -> None:
    """States by parameter name must not mix (numpy-ml: a shape error, or mixed moments)."""
    from gpulayers.initializers import OptimizerInitializer

    def two_steps(layer):
        for batch in (2, 3):
            Y = harness.forward(layer, harness.input_of(case, numpy_backend, batch=batch))
            layer.backward(harness.gradient_like(Y, numpy_backend))
            yield
            layer.update()
        yield

    shared = OptimizerInitializer(spec)()
    one = harness.fresh(case, numpy_backend, optimizer=shared)
    two = harness.fresh(CASES[0], numpy_backend, optimizer=shared)
    alone = harness.fresh(case, numpy_backend, optimizer=spec)
    for _ in zip(two_steps(one), two_steps_of(two, numpy_backend), strict=False):
        pass
    for _ in two_steps(alone):
        pass
    for name, array in alone.parameters.items():
        assert_same_bits(one.parameters[name], array)
    assert one.optimizer.cur_step == 2


def two_steps_of(layer, backend: Backend):
    """Steps of the first case's layer, in between those of the other."""
    for _ in range(3):
        Y = layer.forward(harness.input_of(CASES[0], backend))
        layer.backward(harness.gradient_like(Y, backend))
        layer.update()
        yield


@with_learning_cases
def test_the_loss_goes_down(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend, optimizer="SGD(lr=0.001)")
    X = harness.input_of(case, backend)
    target = harness.forward(layer, X).copy() * 0
    losses = []
    for _ in range(4):
        layer.flush_gradients()
        Y = harness.forward(layer, X)
        losses.append(float(np.sum(host(Y) ** 2)) / 2)
        layer.backward(Y - target)
        layer.update()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
