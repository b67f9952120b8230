"""What comes in: left unmodified, any memory layout, any batch size, any floating dtype."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import layers, optimizers
from gpulayers.errors import ShapeError
from gpulayers.models import Activation
from tests.conftest import Backend, switched_to
from tests.layers import harness
from tests.layers.cases import Case, with_cases, with_learning_cases
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled

OPTIMIZERS = ["SGD(lr=0.1, momentum=0.9)", "AdaGrad", "RMSProp", "Adam"]


@with_cases
def test_inputs_and_gradients_are_left_alone(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    X = harness.input_of(case, backend)
    X_before = X.copy()
    Y = harness.forward(layer, X)
    Y_before = Y.copy()
    dY = harness.gradient_like(Y, backend)
    dY_before = dY.copy()
    dX = layer.backward(dY)
    assert_same_bits(Y, Y_before)
    if case.layer != "Flatten" and "Cell" not in case.layer:  # a view of the input; for cells below
        Y[...] = 7
        assert_same_bits(layer.backward(dY), dX)
    layer.update()
    for array, before in ((X, X_before), (dY, dY_before)):
        assert_same_bits(array, before)
    assert_close(dX, harness.gold_of(case).dX)  # the update has not written into it either
    for array in (X, dY):  # and the layer may not write into them through what it keeps
        assert all(array is not held for held in layer.gradients.values())
        assert all(array is not held for held in layer.parameters.values())


@pytest.mark.parametrize("pad", [0, 1])
def test_padding_gives_a_gradient_of_its_own(pad: int, backend: Backend) -> None:
    layer = layers.ZeroPad2D(pad)
    Y = layer.forward(backend.asarray(harness.values((1, 2, 3, 1), 0)))
    dY = harness.gradient_like(Y, backend)
    before = dY.copy()
    layer.backward(dY)[...] = 7
    assert_same_bits(dY, before)


@pytest.mark.parametrize("make", [lambda: layers.Dropout(0.0), lambda: Activation("Identity")])
def test_a_layer_that_changes_nothing_gives_copies(make: Any, backend: Backend) -> None:
    X = backend.asarray(harness.values((4, 3), 0))
    before, layer = X.copy(), make()
    Y, dX = layer.forward(X), layer.backward(before)
    evaluated = layers.Dropout(0.5).forward(X, retain_derived=False)
    for array in (Y, dX, evaluated):
        assert_same_bits(array, before)
    for array in (Y, dX, evaluated):
        array[...] = 7
    assert_same_bits(X, backend.asarray(harness.values((4, 3), 0)))
    assert_same_bits(before, X)


@pytest.mark.parametrize("kind", [layers.RNNCell, layers.LSTMCell, layers.GRUCell])
def test_a_cell_does_not_see_what_is_written_into_its_outputs(
    kind: Any, numpy_backend: Backend
) -> None:
    """The next step's state and the gradients are a twin's, whose outputs are left alone."""
    cell = kind(3)
    Xs = [harness.values((2, 4), k) for k in range(3)]
    cell.forward(Xs[0], retain_derived=False)
    cell.flush_gradients()
    twin = copy.deepcopy(cell)
    for X in Xs:
        given, right = cell.forward(X), twin.forward(X)
        both = (given, right) if isinstance(given, tuple) else ((given,), (right,))
        for array, same in zip(*both, strict=True):
            assert_same_bits(array, same)
            array[...] = 7
    for X in Xs:
        assert_same_bits(cell.backward(X[:, :3]), twin.backward(X[:, :3]))
    for name, grad in twin.gradients.items():
        assert_same_bits(cell.gradients[name], grad)


@with_cases
def test_evaluation_leaves_the_input_alone(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    X = harness.input_of(case, backend)
    before = X.copy()
    harness.forward(layer, X, retain_derived=False)
    assert_same_bits(X, before)


@with_learning_cases
@pytest.mark.parametrize("spec", OPTIMIZERS)
def test_the_optimizer_object_is_left_alone(case: Case, numpy_backend: Backend, spec: str) -> None:
    from gpulayers.initializers import OptimizerInitializer

    optimizer = OptimizerInitializer(spec)()
    assert isinstance(optimizer, optimizers.OptimizerBase)
    before = copy.deepcopy(optimizer.hyperparameters)
    layer = harness.fresh(case, numpy_backend, optimizer=optimizer)
    Y = harness.forward(layer, harness.input_of(case, numpy_backend))
    layer.backward(harness.gradient_like(Y, numpy_backend))
    layer.update()
    assert optimizer.hyperparameters == before
    assert optimizer.cache == {}
    assert optimizer.cur_step == 0
    assert layer.optimizer.cur_step == 1
    assert layer.optimizer is not optimizer


@with_cases
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(case: Case, backend: Backend, layout: str) -> None:
    layer = harness.fresh(case, backend)
    X = harness.input_of(case, backend)
    Y = harness.forward(layer, X)
    dY = harness.gradient_like(Y, backend)
    dX = layer.backward(dY)

    other = harness.fresh(case, backend)
    x, dy = scrambled(X, layout), scrambled(dY, layout)
    assert_same_bits(harness.forward(other, x), Y)
    assert_same_bits(other.backward(dy), dX)
    for name, gradient in layer.gradients.items():
        assert_same_bits(other.gradients[name], gradient)
    assert_same_bits(x, X)
    assert_same_bits(dy, dY)


@with_cases
@pytest.mark.parametrize("batch", [1, 4])
def test_other_batch_sizes(case: Case, backend: Backend, batch: int) -> None:
    gold = harness.gold_of(case, batch=batch)
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend, batch=batch))
    assert_close(Y, gold.Y)
    # a batch of one pixel has variance 0, and 1 / sqrt(epsilon) magnifies the rounding
    factor = 1e3 if case.layer.startswith("BatchNorm") else 1
    assert_close(layer.backward(harness.gradient_like(Y, backend)), gold.dX, factor=factor)
    harness.assert_grads(layer, gold.grads, factor=factor)


@with_cases
def test_an_empty_batch(case: Case, backend: Backend) -> None:
    expected = harness.fresh(case, backend).forward(harness.input_of(case, backend)).shape
    layer = harness.fresh(case, backend)
    before = harness.snapshot(layer.parameters)
    X = harness.input_of(case, backend, batch=0)
    Y = harness.forward(layer, X)
    assert Y.size == 0
    if not case.id.startswith("flatten"):
        assert Y.shape == (0, *expected[1:])
    dX = layer.backward(harness.gradient_like(Y, backend))
    assert dX.shape == X.shape
    assert (Y.dtype, dX.dtype) == ("float64", "float64")
    harness.assert_no_grads(layer)
    layer.update()
    for name, array in before.items():
        assert_same_bits(layer.parameters[name], array)
    # evaluation, and the layer goes on with a full batch
    assert harness.forward(layer, X, retain_derived=False).shape == Y.shape
    layer.flush_gradients()
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert_close(Y, harness.gold_of(case).Y)


@with_cases
def test_the_first_input_may_be_empty(case: Case, backend: Backend) -> None:
    with harness.default_dtype("float64"):
        layer = case.make()
        Y = layer.forward(harness.input_of(case, backend, batch=0))
        assert Y.size == 0
        known = harness.fresh(case, backend).parameters
        assert {n: p.shape for n, p in layer.parameters.items()} == {
            n: p.shape for n, p in known.items()
        }


# -------------------------------------------------------------------------------------- dtypes


@with_cases
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_is_kept(case: Case, backend: Backend, dtype: str) -> None:
    gold = harness.gold_of(case, dtype)
    layer = harness.fresh(case, backend, dtype, optimizer="Adam")
    X = harness.input_of(case, backend, dtype)
    Y = harness.forward(layer, X)
    dX = layer.backward(harness.gradient_like(Y, backend))
    assert (Y.dtype, dX.dtype) == (dtype, dtype)
    factor = {"float16": 6.0, "float32": 10.0, "float64": 1.0}[dtype]
    assert_close(Y, gold.Y, factor=factor)
    assert_close(dX, gold.dX, factor=factor)
    harness.assert_grads(layer, gold.grads, factor=factor)
    assert harness.forward(layer, X, retain_derived=False).dtype == dtype
    layer.update()
    for held in (layer.parameters, layer.gradients):
        assert {str(a.dtype) for a in held.values()} <= {dtype}


@with_cases
def test_the_other_byte_order(case: Case, numpy_backend: Backend) -> None:
    """Results are in the machine's own, and those of the same numbers there."""
    layer, same = (harness.fresh(case, numpy_backend, "float64") for _ in range(2))
    X = harness.input_of(case, numpy_backend, "float64")
    turned = [x.astype(">f8") for x in X] if isinstance(X, list) else X.astype(">f8")
    Y, want = harness.forward(layer, turned), harness.forward(same, X)
    assert Y.dtype == np.float64 and Y.dtype.isnative
    assert_same_bits(Y, want)
    dY = harness.gradient_like(want, numpy_backend)
    assert_same_bits(layer.backward(dY.astype(">f8")), same.backward(dY))


@with_learning_cases
@pytest.mark.parametrize("wide", ["float64", "float16"])
def test_another_dtype_becomes_the_layers(case: Case, backend: Backend, wide: str) -> None:
    layer = harness.fresh(case, backend, "float32")
    X = harness.input_of(case, backend, wide)
    Y = harness.forward(layer, X)
    dY = harness.gradient_like(Y, backend, wide)
    dX = layer.backward(dY)
    assert (X.dtype, dY.dtype) == (wide, wide)

    other = harness.fresh(case, backend, "float32")
    assert_same_bits(harness.forward(other, X.astype("float32")), Y)
    assert_same_bits(other.backward(dY.astype("float32")), dX)
    for name, gradient in layer.gradients.items():
        assert gradient.dtype == "float32"
        assert_same_bits(gradient, other.gradients[name])
    assert dX.dtype == Y.dtype == "float32"


@with_learning_cases
def test_parameters_come_in_the_default_dtype(case: Case, backend: Backend) -> None:
    for dtype in ("float16", "float32", "float64"):
        layer = case.make()
        with harness.default_dtype(dtype):
            Y = layer.forward(harness.input_of(case, backend, "float32"))
        assert {str(p.dtype) for p in layer.parameters.values()} == {dtype}
        assert Y.dtype == dtype
        assert layer.dtype == dtype


def test_float32_is_the_default_of_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPULAYERS_DTYPE", raising=False)
    assert backends.default_dtype() == "float32"


@with_cases
def test_scalars_do_not_widen_derived_values(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend, "float32")
    harness.forward(layer, harness.input_of(case, backend, "float32"))
    for name, held in layer.derived_variables.items():
        for value in held if isinstance(held, list) else [held]:
            if hasattr(value, "dtype") and value.dtype.kind == "f":
                assert value.dtype == "float32", name
                assert isinstance(value, backend.xp.ndarray), name


@with_cases
def test_the_output_lives_where_the_input_does(case: Case, emulated: Backend) -> None:
    """Whatever the current backend: arrays decide."""
    with harness.default_dtype("float64"), backends.use_backend("cupy"):
        layer = case.make()
        X = harness.values(case.shape, 1)
        Y = harness.forward(layer, X)
        assert type(Y) is np.ndarray
        assert type(layer.backward(np.ones(Y.shape))) is np.ndarray
        for held in (layer.parameters, layer.gradients):
            assert {type(a) for a in held.values()} <= {np.ndarray}


@with_cases
def test_both_backends_draw_the_same_parameters(case: Case, emulated: Backend) -> None:
    drawn = []
    for place in ("numpy", "cupy"):
        X = backends.to_backend(harness.values(case.shape, 1).astype("float32"), place)
        layer = case.make()
        harness.forward(layer, X)
        drawn.append({n: host(p) for n, p in layer.parameters.items() if "running" not in n})
    for name, array in drawn[0].items():
        np.testing.assert_array_equal(array, drawn[1][name])


@with_cases
def test_a_step_neither_waits_nor_copies(case: Case, emulated: Backend) -> None:
    layer = harness.fresh(case, emulated, "float32", optimizer="Adam")
    X = harness.input_of(case, emulated, "float32")
    dY = harness.gradient_like(layer.forward(X), emulated)
    layer.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.forward(X)
        layer.backward(dY)
        layer.update()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_that_were_assigned_may_lie_anyhow(layout: str, backend: Backend) -> None:
    layer, X = layers.FullyConnected(32), backend.asarray(harness.values((64, 300), 1))
    layer.forward(X, retain_derived=False)
    W, dtype = harness.values((300, 32), 2), layer.parameters["W"].dtype
    layer.parameters["W"] = scrambled(backend.asarray(W.astype(dtype)), layout)
    expected = host(X).astype(dtype) @ W.astype(dtype)
    assert_close(layer.forward(X), expected, factor=4.0)
    kept = dict(layer.parameters)
    for name, wrong, message in (
        ("W", W[:200], r"parameter 'W' must have shape \(300, 32\), got \(200, 32\)"),
        ("W", W[:, :16], r"parameter 'W' must have shape \(300, 32\), got \(300, 16\)"),
        ("b", np.ones((1, 16)), r"parameter 'b' must have shape \(1, 32\), got \(1, 16\)"),
    ):
        layer.parameters[name] = backend.asarray(wrong.astype(dtype))
        with pytest.raises(ShapeError, match=message):
            layer.forward(X)
        layer.parameters.update(kept)


@pytest.mark.parametrize("kind", [layers.LSTMCell, layers.GRUCell, layers.RNNCell, layers.LSTM])
@pytest.mark.parametrize("engine", ["numpy", pytest.param("compiled", marks=pytest.mark.compiled)])
def test_parameters_of_the_other_byte_order(kind: type, engine: str) -> None:
    with switched_to(engine):
        layer: Any = kind(5)
        X = harness.values((4, 3, 2) if kind is layers.LSTM else (4, 3), 1).astype(np.float32)
        outputs, states = [], []
        for swapped in (False, True):
            if swapped:
                for name, array in layer.parameters.items():
                    layer.parameters[name] = array.astype(array.dtype.newbyteorder())
            Y = layer.forward(X)
            outputs.append(Y[0] if isinstance(Y, tuple) else Y)
            layer.backward(np.ones_like(outputs[-1]))
            states.append({name: grad.copy() for name, grad in layer.gradients.items()})
            layer.flush_gradients()
        assert_close(outputs[1], outputs[0])
        for name, grad in states[0].items():
            assert_close(states[1][name], grad)
