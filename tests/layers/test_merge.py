"""Add and Multiply: several inputs, one gradient for each."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import layers, ops
from gpulayers.errors import (
    BackendError,
    DTypeError,
    FrozenLayerError,
    ParameterError,
    ShapeError,
)
from tests.conftest import Backend
from tests.layers.cases import ACT
from tests.layers.harness import values
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import activation as naive_activation
from tests.support.naive import merge as naive

KINDS = {"sum": layers.Add, "product": layers.Multiply}
SHAPES = [(5, 3), (2, 3, 1, 2), (1, 1), (7,)]
with_kinds = pytest.mark.parametrize("kind", KINDS)
with_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_counts = pytest.mark.parametrize("count", [1, 2, 3, 5])


def inputs(shape: tuple[int, ...], count: int, dtype: str = "float64", seed: int = 1) -> list:
    return [values(shape, seed + k, dtype) for k in range(count)]


def on(backend: Backend, arrays: list, dtype: str = "float64") -> list:
    return [backend.asarray(a, dtype) for a in arrays]


# ------------------------------------------------------------------------- values and gradients


@with_kinds
@with_shapes
@with_counts
def test_against_loops(
    kind: str, shape: tuple[int, ...], count: int, backend: Backend, dtype: str
) -> None:
    Xs, dY = inputs(shape, count, dtype), values(shape, 50, dtype)
    layer = KINDS[kind]()
    Y = layer.forward(on(backend, Xs, dtype))
    dXs = layer.backward(backend.asarray(dY, dtype))
    factor = {"float16": 3.0}.get(dtype, 1.0)
    assert_close(Y, naive.merge(Xs, kind), factor=factor)
    assert isinstance(dXs, list)
    assert len(dXs) == count
    for dX, gold in zip(dXs, naive.merge_grads(Xs, dY, kind), strict=True):
        assert_close(dX, gold, factor=factor)
    assert {a.dtype.name for a in (Y, *dXs)} == {dtype}
    assert all(isinstance(a, backend.xp.ndarray) for a in (Y, *dXs))


@pytest.fixture(params=["float64", "float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@with_kinds
@pytest.mark.parametrize("act", ACT)
def test_activations(kind: str, act: str, backend: Backend) -> None:
    Xs, dY = inputs((4, 5), 3), values((4, 5), 50)
    layer = KINDS[kind](act_fn=ACT[act])
    Y = layer.forward(on(backend, Xs))
    dXs = layer.backward(backend.asarray(dY))
    Z = naive.merge(Xs, kind)
    assert_close(Y, naive_activation.value(act, Z))
    dZ = naive_activation.backward(act, dY, Z)
    for dX, gold in zip(dXs, naive.merge_grads(Xs, dZ, kind), strict=True):
        assert_close(dX, gold)
    assert_close(layer.derived_variables[kind][0], Z)


@with_kinds
@with_counts
def test_against_pytorch(kind: str, count: int, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    Xs, dY = inputs((3, 4, 2), count), values((3, 4, 2), 50)
    layer = KINDS[kind](act_fn="Tanh")
    Y = layer.forward(on(backend, Xs))
    dXs = layer.backward(backend.asarray(dY))
    given = [torch.tensor(X, requires_grad=True) for X in Xs]
    stacked = torch.stack(given)
    expected = torch.tanh(stacked.sum(0) if kind == "sum" else stacked.prod(0))
    wanted = torch.autograd.grad(expected, given, torch.tensor(dY))
    assert_close(Y, expected.detach().numpy())
    for dX, gold in zip(dXs, wanted, strict=True):
        assert_close(dX, gold.numpy())


@with_kinds
def test_central_differences(kind: str, backend: Backend) -> None:
    Xs, dY = inputs((3, 4), 3), values((3, 4), 50)
    layer = KINDS[kind](act_fn="SELU")
    layer.forward(on(backend, Xs))
    dXs = [host(dX) for dX in layer.backward(backend.asarray(dY))]
    for k, dX in enumerate(dXs):
        for index in np.ndindex(dX.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [X.copy() for X in Xs]
                moved[k][index] += step
                Y = layer.forward(on(backend, moved), retain_derived=False)
                sides.append(float(np.sum(host(Y) * dY)))
            difference = (sides[0] - sides[1]) / 2e-5
            assert dX[index] == pytest.approx(difference, rel=1e-6, abs=1e-7)


def test_a_product_with_zeros_has_right_gradients(backend: Backend) -> None:
    """Dividing the product by an input would give NaN."""
    Xs = [np.array([0.0, 0.0, 2.0]), np.array([3.0, 0.0, 0.0]), np.array([5.0, 7.0, 11.0])]
    layer = layers.Multiply()
    assert_same_bits(layer.forward(on(backend, Xs)), np.zeros(3))
    dXs = layer.backward(backend.asarray(np.ones(3)))
    for dX, gold in zip(dXs, ([15.0, 0, 0], [0.0, 0, 22], [0.0, 0, 0]), strict=True):
        assert_same_bits(dX, np.array(gold))


@with_kinds
def test_one_array_several_times(kind: str, backend: Backend) -> None:
    X = backend.asarray(values((4, 2), 1))
    layer = KINDS[kind]()
    Y = layer.forward([X, X])
    dXs = layer.backward(backend.asarray(np.ones((4, 2))))
    x = host(X)
    assert_close(Y, 2 * x if kind == "sum" else x * x)
    assert_close(dXs[0] + dXs[1], np.full(x.shape, 2.0) if kind == "sum" else 2 * x)


# ----------------------------------------------------------------------------- the layers' contract


@with_kinds
def test_several_forwards_give_a_list_of_lists(kind: str, backend: Backend) -> None:
    layer = KINDS[kind](act_fn="Sigmoid")
    batches = [inputs((n, 3), count, seed=10 * n) for n, count in ((2, 3), (1, 2), (4, 1))]
    dYs = [values(Xs[0].shape, 50) for Xs in batches]
    for Xs in batches:
        layer.forward(on(backend, Xs))
    assert [len(X) for X in layer.X] == [3, 2, 1]
    assert len(layer.derived_variables[kind]) == 3
    dXs = layer.backward(on(backend, dYs))
    for Xs, dY, given in zip(batches, dYs, dXs, strict=True):
        alone = KINDS[kind](act_fn="Sigmoid")
        alone.forward(on(backend, Xs))
        for dX, expected in zip(given, alone.backward(backend.asarray(dY)), strict=True):
            assert_same_bits(dX, expected)
    with pytest.raises(ShapeError, match="needs a list of 3 gradients, got 2"):
        layer.backward(on(backend, dYs[:2]))


@with_kinds
@with_counts
@pytest.mark.parametrize("act", ["identity", "tanh"])
def test_nothing_given_is_changed_or_shared(
    kind: str, count: int, act: str, backend: Backend
) -> None:
    Xs, dY = on(backend, inputs((3, 4), count)), backend.asarray(values((3, 4), 50))
    kept = [X.copy() for X in (*Xs, dY)]
    layer = KINDS[kind](act_fn=ACT[act])
    Y = layer.forward(Xs)
    before = Y.copy()
    dXs = layer.backward(dY)
    for dX in dXs:
        dX += 1000.0  # what a caller may do with its gradients
    Xs.append(dY)
    for array, expected in zip(Xs, kept, strict=True):
        assert_same_bits(array, expected)
    assert_same_bits(Y, before)
    again = layer.backward(dY)
    for dX, second in zip(dXs, again, strict=True):
        assert_close(second, host(dX) - 1000.0, factor=1e4)


@with_kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(kind: str, layout: str, backend: Backend) -> None:
    Xs, dY = on(backend, inputs((3, 5), 3)), backend.asarray(values((3, 5), 50))
    results = []
    for change in (lambda a: a, lambda a: scrambled(a, layout)):
        layer = KINDS[kind](act_fn="ELU")
        Y = layer.forward([change(Xs[0]), Xs[1], change(Xs[2])])
        results.append([Y, *layer.backward(change(dY))])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@with_kinds
def test_empty_batches(kind: str, backend: Backend) -> None:
    layer = KINDS[kind](act_fn="ReLU")
    Y = layer.forward(on(backend, inputs((0, 3), 2)))
    assert Y.shape == (0, 3)
    assert [dX.shape for dX in layer.backward(Y)] == [(0, 3)] * 2


@with_kinds
def test_flags(kind: str, backend: Backend) -> None:
    Xs, dY = on(backend, inputs((2, 3), 2)), backend.asarray(values((2, 3), 50))
    layer = KINDS[kind]()
    Y = layer.forward(Xs, retain_derived=False)
    assert (layer.X, layer.derived_variables) == ([], {kind: []})
    with pytest.raises(ShapeError, match="no input is retained"):
        layer.backward(dY)
    assert_same_bits(layer.forward(Xs), host(Y))
    assert layer.backward(dY, input_grad=False) is None
    expected = layer.backward(dY)
    layer.freeze()
    for a, b in zip(layer.backward(dY), expected, strict=True):
        assert_same_bits(a, b)
    with pytest.raises(FrozenLayerError):
        layer.update()
    layer.unfreeze()
    layer.update()
    assert (layer.X, layer.derived_variables) == ([], {kind: []})


@with_kinds
def test_summary_and_set_params(kind: str, backend: Backend) -> None:
    layer = KINDS[kind](act_fn="LeakyReLU(alpha=0.25)", optimizer="Adam(lr=0.5)")
    summary = layer.summary()
    name = "Sum" if kind == "sum" else "Multiply"
    assert summary["layer"] == layer.hyperparameters["layer"] == name
    assert summary["parameters"] == {}
    other = KINDS[kind]().set_params(copy.deepcopy(summary))
    assert other.hyperparameters == layer.hyperparameters
    Xs = on(backend, inputs((2, 3), 2))
    assert_same_bits(other.forward(Xs), host(layer.forward(Xs)))
    twin = copy.deepcopy(layer)
    dY = backend.asarray(np.ones((2, 3)))
    for a, b in zip(twin.backward(dY), layer.backward(dY), strict=True):
        assert_same_bits(a, b)
    wrong = "Multiply" if kind == "sum" else "Sum"
    with pytest.raises(ParameterError, match=f"summary of a layer '{wrong}'"):
        layer.set_params({"layer": wrong})


@with_kinds
def test_moving_between_forward_and_backward(kind: str, emulated: Backend) -> None:
    Xs, dY = inputs((2, 3), 3), values((2, 3), 50)
    layer = KINDS[kind](act_fn="Tanh")
    layer.forward(on(emulated, Xs))
    layer.to("numpy")
    dXs = layer.backward(dY)
    assert {type(dX) for dX in dXs} == {np.ndarray}
    stays = KINDS[kind](act_fn="Tanh")
    stays.forward(Xs)
    for a, b in zip(dXs, stays.backward(dY), strict=True):
        assert_close(a, b)


@with_kinds
def test_a_step_neither_waits_nor_copies(kind: str, emulated: Backend) -> None:
    Xs, dY = on(emulated, inputs((4, 3), 3), "float32"), emulated.asarray(np.ones((4, 3), "f4"))
    layer = KINDS[kind](act_fn="ReLU")
    layer.forward(Xs)
    layer.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.forward(Xs)
        layer.backward(dY)
        layer.update()


@with_kinds
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_bfloat16_is_kept(kind: str, engine: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    Xs = [X.astype(bfloat16) for X in inputs((3, 4), 3)]
    layer = KINDS[kind](act_fn="Tanh")
    with ops.use_engine(engine):
        Y = layer.forward(Xs)
        dXs = layer.backward(Y)
    assert {a.dtype for a in (Y, *dXs)} == {bfloat16}
    assert_close(Y, np.tanh(naive.merge([host(X) for X in Xs], kind)))


# ------------------------------------------------------------------------------------------ errors


@with_kinds
@pytest.mark.parametrize(
    "given, error, message",
    [
        ([np.ones(())] * 2, ShapeError, r"inputs with at least one axis, got shape \(\)"),
        ([], ShapeError, "expected at least one input, got an empty list"),
        (np.ones((2, 3)), DTypeError, "expected a list of input arrays, got ndarray"),
        (None, DTypeError, "expected a list of input arrays, got NoneType"),
        ([[1.0, 2.0]], DTypeError, "input 0: expected a numpy or cupy array, got list"),
        ([np.ones(2), 3.0], DTypeError, "input 1: expected a numpy or cupy array, got float"),
        ([np.ones(2), np.ones(2, int)], DTypeError, "input 1 must have a floating dtype, got int"),
        (
            [np.ones((2, 3)), np.ones((2, 1))],  # numpy-ml broadcasts, and loses the gradient
            ShapeError,
            r"input 0 has \(2, 3\), input 1 has \(2, 1\)",
        ),
        (
            [np.ones(2), np.ones(2, np.float32)],
            DTypeError,
            "input 0 is float64, input 1 is float32",
        ),
    ],
)
def test_bad_inputs(kind: str, given: Any, error: type, message: str, numpy_backend: Any) -> None:
    layer = KINDS[kind]()
    with pytest.raises(error, match=rf"{type(layer).__name__}: .*{message}"):
        layer.forward(given)
    assert layer.X == []


@with_kinds
def test_bad_gradients(kind: str, emulated: Backend) -> None:
    layer = KINDS[kind]()
    X = emulated.asarray(np.ones((2, 3)))
    with pytest.raises(BackendError, match="input 1 is a numpy array, input 0 a cupy one"):
        layer.forward([X, np.ones((2, 3))])
    layer.forward([X, X])
    with pytest.raises(BackendError, match="the gradient is a numpy array, the output a cupy one"):
        layer.backward(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"must have the output's shape \(2, 3\), got \(2,\)"):
        layer.backward(emulated.asarray(np.ones(2)))
    with pytest.raises(DTypeError, match="the gradient must have a floating dtype"):
        layer.backward(emulated.asarray(np.ones((2, 3), np.int32)))
    with pytest.raises(ParameterError, match="rellu"):
        KINDS[kind](act_fn="rellu")


def test_the_output_lives_where_the_inputs_do(emulated: Backend) -> None:
    with backends.use_backend("cupy"):
        Y = layers.Add(act_fn="ReLU").forward([np.ones((2, 2)), np.ones((2, 2))])
    assert type(Y) is np.ndarray
