"""Embedding as a layer: states, memory, dtype, errors."""

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
from tests.layers.embeddings import IDS, RAGGED, VOCAB, WIDTH, embedding, run, with_pools
from tests.layers.harness import default_dtype, values
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import embedding as naive


@pytest.fixture(autouse=True)
def float64():
    with default_dtype("float64"):
        yield


# ----------------------------------------------------------------------------- the layer's contract


def test_w_is_there_from_the_start(backend: Backend) -> None:
    layer = embedding()
    W = layer.parameters["W"]
    assert isinstance(W, backend.xp.ndarray)
    assert (W.shape, W.dtype) == ((VOCAB, WIDTH), "float64")
    assert_same_bits(layer.gradients["W"], np.zeros((VOCAB, WIDTH)))
    with backends.use_backend("numpy"):  # the same numbers everywhere
        assert_same_bits(embedding().parameters["W"], W)


def test_w_moves_to_the_first_input_only(emulated: Backend) -> None:
    with backends.use_backend("numpy"):
        layer = embedding()
        assert layer.home == "numpy"
        Y = layer.forward(emulated.asarray(IDS))
    assert isinstance(Y, emulated.xp.ndarray)
    assert layer.home == "cupy"
    for call in (layer.forward, layer.lookup):
        with pytest.raises(
            BackendError, match=r"Embedding: the parameters are cupy arrays, the input is a numpy"
        ):
            call(IDS)


def test_lookup(backend: Backend) -> None:
    layer = embedding("sum").to(backend.library)
    W = host(layer.parameters["W"])
    assert_same_bits(layer.lookup([3, 3, 0]), W[[3, 3, 0]])
    rows = layer.lookup(backend.asarray(IDS))
    assert_same_bits(rows, W[IDS])
    assert layer.X == []
    rows += 1.0
    assert_same_bits(layer.parameters["W"], W)


@with_pools
def test_several_forwards_accumulate(pool: str | None, backend: Backend) -> None:
    layer = embedding(pool)
    batches = [IDS[:2], IDS[2:], IDS[:, :2]]
    W, total, dYs = host(layer.parameters["W"]), np.zeros((VOCAB, WIDTH)), []
    for k, ids in enumerate(batches):
        Y = layer.forward(backend.asarray(ids))
        dYs.append(values(Y.shape, 10 + k))
        total += naive.lookup_grad(W.shape, ids.tolist(), dYs[-1], pool)
    assert len(layer.X) == 3
    held = layer.gradients["W"]
    assert layer.backward([backend.asarray(dY) for dY in dYs]) is None
    assert layer.gradients["W"] is held
    assert_close(held, total)
    with pytest.raises(ShapeError, match="needs a list of 3 gradients, got 1"):
        layer.backward(backend.asarray(dYs[0]))


@with_pools
def test_update_in_place_and_flush(pool: str | None, backend: Backend) -> None:
    layer = embedding(pool, optimizer="SGD(lr=0.5)")
    for _ in range(2):
        W, before = layer.parameters["W"], host(layer.parameters["W"]).copy()
        _, dY = run(layer, backend.asarray(IDS), backend)
        layer.update()
        assert layer.parameters["W"] is W
        assert_close(W, before - 0.5 * naive.lookup_grad(W.shape, IDS.tolist(), dY, pool))
        assert layer.X == []
        assert not host(layer.gradients["W"]).any()
    with pytest.raises(ShapeError, match="Embedding: no input is retained"):
        layer.backward(backend.asarray(dY))


def test_flags(backend: Backend) -> None:
    layer, ids = embedding(), backend.asarray(IDS)
    Y = layer.forward(ids, retain_derived=False)
    assert layer.X == []
    assert_same_bits(layer.forward(ids), Y)
    layer.backward(Y, retain_grads=False)
    assert not host(layer.gradients["W"]).any()
    layer.freeze()
    assert layer.backward(Y) is None
    assert not host(layer.gradients["W"]).any()
    with pytest.raises(FrozenLayerError):
        layer.update()
    layer.unfreeze()
    layer.backward(Y)
    assert host(layer.gradients["W"]).any()


@with_pools
def test_ids_and_gradients_are_left_alone(pool: str | None, backend: Backend) -> None:
    layer, ids = embedding(pool), backend.asarray(IDS)
    Y = layer.forward(ids)
    dY = backend.asarray(values(Y.shape, 2))
    kept = [a.copy() for a in (ids, Y, dY)]
    layer.backward(dY)
    layer.update()
    for array, before in zip((ids, Y, dY), kept, strict=True):
        assert_same_bits(array, before)


@with_pools
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(pool: str | None, layout: str, backend: Backend) -> None:
    results = []
    for change in (lambda a: a, lambda a: scrambled(a, layout)):
        layer = embedding(pool)
        Y = layer.forward(change(backend.asarray(IDS)))
        layer.backward(change(backend.asarray(values(Y.shape, 2))))
        results.append((Y, layer.gradients["W"]))
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@with_pools
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_output_has_the_dtype_of_w(pool: str | None, dtype: str, backend: Backend) -> None:
    with default_dtype(dtype):
        layer = embedding(pool, optimizer="Adam")
    Y = layer.forward(backend.asarray(IDS))
    assert Y.dtype == dtype
    gold = naive.lookup(host(layer.parameters["W"]), IDS.tolist(), pool)
    assert_close(Y, gold)
    dY = values(Y.shape, 2, dtype)
    layer.backward(backend.asarray(dY, dtype))
    assert_close(layer.gradients["W"], naive.lookup_grad((VOCAB, WIDTH), IDS.tolist(), dY, pool))
    layer.update()
    held = (*layer.parameters.values(), *layer.gradients.values())
    assert {a.dtype.name for a in held} == {dtype}


@with_pools
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_bfloat16_is_kept(pool: str | None, engine: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with default_dtype("bfloat16"), ops.use_engine(engine):
        layer = embedding(pool)
        for X in (IDS, IDS.tolist()):
            Y = layer.forward(X)
            layer.backward([Y] * len(layer.X))
            assert {a.dtype for a in (Y, layer.gradients["W"])} == {np.dtype(ml_dtypes.bfloat16)}


@with_pools
def test_summary_and_set_params(pool: str | None, backend: Backend) -> None:
    layer = embedding(pool, optimizer="Adam(lr=0.1)")
    run(layer, backend.asarray(IDS), backend)
    layer.update()
    summary = copy.deepcopy(layer.summary())
    assert summary["hyperparameters"]["layer"] == "Embedding"
    assert summary["hyperparameters"].keys() == {
        *("layer", "init", "pool", "n_out", "vocab_size", "optimizer")
    }
    for other in (embedding(pool), layers.Embedding(2, 99, "sum")):  # of other sizes too
        other.set_params(summary)
        assert {k: v for k, v in other.hyperparameters.items() if k != "optimizer"} == {
            k: v for k, v in layer.hyperparameters.items() if k != "optimizer"
        }
        assert_same_bits(other.parameters["W"], layer.parameters["W"])
        twin = copy.deepcopy(layer)
        for each in (twin, other):
            run(each, backend.asarray(IDS), backend)
            each.update()
        assert_same_bits(other.parameters["W"], twin.parameters["W"])
    with pytest.raises(ShapeError, match=r"'W' must have shape \(7, 3\), got \(6, 3\)"):
        layer.set_params({"parameters": {"W": layer.parameters["W"][1:]}})


def test_moving_between_forward_and_backward(emulated: Backend) -> None:
    for X in (emulated.asarray(IDS), RAGGED):
        layer = embedding("mean").to("cupy")
        Y = layer.forward(X)
        layer.to("numpy")
        dY = values(Y.shape, 2)
        layer.backward(dY)
        given = IDS.tolist() if X is not RAGGED else RAGGED
        gold = naive.lookup_grad((VOCAB, WIDTH), given, dY, "mean")
        assert_close(layer.gradients["W"], gold)


@with_pools
def test_a_step_neither_waits_nor_copies(pool: str | None, emulated: Backend) -> None:
    with default_dtype("float32"):
        layer, ids = embedding(pool, optimizer="Adam"), emulated.asarray(IDS)
    dY = emulated.asarray(np.ones(layer.forward(ids).shape, "f4"))
    layer.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.forward(ids)
        layer.backward(dY)
        layer.update()


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "pool, given, error, message",
    [
        (None, [], ShapeError, "expected at least one example, got an empty list"),
        (None, [[1, 2], [3]], ShapeError, "without pool .* same number of ids, got 1 to 2"),
        ("sum", [[1, 2], np.array([3])], DTypeError, "all lists or all arrays"),
        ("sum", [[1, 2.5]], DTypeError, "a list of ids must hold ints"),
        ("sum", [[[1], [2]]], DTypeError, "a list of ids must hold ints"),
        ("sum", [1, 2], DTypeError, "example 0: expected a numpy or cupy array, got int"),
        ("sum", [np.ones(2)], DTypeError, "example 0 must hold integer ids, got float64"),
        ("sum", [IDS], ShapeError, r"example 0 must be a vector of ids, got shape \(3, 4\)"),
        ("mean", IDS[0], ShapeError, r"expected ids \(n_ex, n_in\), got shape \(4,\)"),
        ("sum", IDS[None], ShapeError, r"expected ids \(n_ex, n_in\), got shape \(1, 3, 4\)"),
        (None, np.array(3), ShapeError, r"expected an axis of ids, got shape \(\)"),
        (None, np.ones((2, 3)), DTypeError, "the input must hold integer ids, got float64"),
        (None, np.ones((2, 3), bool), DTypeError, "the input must hold integer ids, got bool"),
        (None, "text", DTypeError, "the input: expected a numpy or cupy array, got str"),
        (None, None, DTypeError, "the input: expected a numpy or cupy array, got None"),
    ],
)
def test_bad_inputs(
    pool: str | None, given: Any, error: type, message: str, numpy_backend: Any
) -> None:
    layer = embedding(pool)
    with pytest.raises(error, match=rf"Embedding: .*{message}"):
        layer.forward(given)
    assert layer.X == []


@with_pools
@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_ids_out_of_range(pool: str | None, bad: int, backend: Backend) -> None:
    layer, ids = embedding(pool), IDS.copy()
    ids[1, 2] = bad  # numpy-ml takes -1 for the last row
    if backend.name == "numpy":
        with pytest.raises(ParameterError, match=r"^Embedding: .*ids must be in 0\.\.6, got"):
            layer.forward(ids)
        with pytest.raises(ParameterError, match=r"^Embedding: .*ids must be in 0\.\.6, got"):
            layer.lookup([bad])
        assert layer.X == []
        return
    Y = host(layer.forward(backend.asarray(ids)))
    wrong = np.isnan(Y).all(axis=-1)
    assert np.isnan(Y).any(axis=-1).tolist() == wrong.tolist()
    assert wrong[1].any()
    assert not wrong[[0, 2]].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 3), "n_out must be an integer >= 1, got 0"),
        ((3, 0), "vocab_size must be an integer >= 1, got 0"),
        ((2.5, 3), "n_out must be an integer >= 1, got 2.5"),
        ((3, None), "vocab_size must be an integer >= 1, got None"),
        ((3, 4, "max"), "pool must be one of None, 'sum', 'mean', got 'max'"),
        ((3, 4, None, "glorot"), "unknown mode 'glorot'"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        layers.Embedding(*arguments)


def test_gradients_that_do_not_fit(emulated: Backend) -> None:
    layer = embedding("sum")
    layer.forward(emulated.asarray(IDS))
    with pytest.raises(ShapeError, match=r"output's shape \(3, 1, 3\), got \(3, 4, 3\)"):
        layer.backward(emulated.asarray(np.ones((3, 4, 3))))
    with pytest.raises(BackendError, match="the gradient is a numpy array, the output a cupy"):
        layer.backward(np.ones((3, 1, 3)))
    mixed = [emulated.asarray(IDS[0]), IDS[1]]
    with pytest.raises(BackendError, match="the examples mix numpy and cupy arrays"):
        layer.forward(mixed)
