"""Embedding: integer arrays, lists, pooling; every occurrence of an id counts."""

from __future__ import annotations

import copy
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
from tests.conftest import Backend
from tests.layers.harness import default_dtype, values
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import embedding as naive

VOCAB, WIDTH = 7, 3
IDS = np.array([[1, 4, 1, 0], [6, 6, 6, 6], [2, 3, 4, 1]])
RAGGED = [[1, 4, 1], [6], [], [2, 2, 2, 2, 5], [0, 6]]
POOLS = [None, "sum", "mean"]
with_pools = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture(autouse=True)
def float64():
    with default_dtype("float64"):
        yield


def embedding(pool: str | None = None, **kwargs: Any) -> layers.Embedding:
    random.seed(5)
    return layers.Embedding(WIDTH, VOCAB, pool, **kwargs)


def run(layer: layers.Embedding, X: Any, backend: Backend) -> tuple[Any, np.ndarray]:
    """The output, and the gradient given to it."""
    Y = layer.forward(X)
    dY = values(Y.shape, 2)
    assert layer.backward(backend.asarray(dY)) is None
    return Y, dY


# ------------------------------------------------------------------------- values and gradients


@with_pools
@pytest.mark.parametrize(
    "ids", [IDS, IDS[:1], IDS[:, :1], IDS[:0], IDS[:, :0]], ids=lambda a: str(a.shape)
)
def test_against_loops(pool: str | None, ids: np.ndarray, backend: Backend) -> None:
    layer = embedding(pool)
    Y, dY = run(layer, backend.asarray(ids), backend)
    W = host(layer.parameters["W"])
    gold = naive.lookup(W, ids.tolist(), pool)
    assert Y.shape == ((len(ids), 1, WIDTH) if pool else (*ids.shape, WIDTH))
    assert_close(Y, gold.reshape(Y.shape))
    assert_close(layer.gradients["W"], naive.lookup_grad(W.shape, ids.tolist(), dY, pool))


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["arrays", "lists", "tuples"])
def test_ragged_lists_against_loops(pool: str, kind: str, backend: Backend) -> None:
    X: Any = {
        "arrays": lambda: [backend.asarray(np.array(ids, np.int32)) for ids in RAGGED],
        "lists": lambda: RAGGED,
        "tuples": lambda: tuple(tuple(ids) for ids in RAGGED),
    }[kind]()
    layer = embedding(pool).to(backend.library)
    Y, dY = run(layer, X, backend)
    W = host(layer.parameters["W"])
    assert Y.shape == (5, 1, WIDTH)
    assert_close(Y, naive.lookup(W, RAGGED, pool))
    assert not host(Y)[2].any()  # no ids: zero, for the mean too (as PyTorch's EmbeddingBag)
    assert_close(layer.gradients["W"], naive.lookup_grad(W.shape, RAGGED, dY, pool))
    assert RAGGED == [[1, 4, 1], [6], [], [2, 2, 2, 2, 5], [0, 6]]


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_lists_of_one_length_equal_the_array(pool: str, backend: Backend) -> None:
    layer, other = embedding(pool).to(backend.library), embedding(pool)
    Y, _ = run(layer, IDS.tolist(), backend)
    expected, _ = run(other, backend.asarray(IDS), backend)
    assert_close(Y, host(expected))
    assert_close(layer.gradients["W"], host(other.gradients["W"]))


def test_lists_without_pooling(backend: Backend) -> None:
    layer = embedding().to(backend.library)
    expected = layer.forward(backend.asarray(IDS))
    assert_same_bits(layer.forward(IDS.tolist()), expected)
    assert_same_bits(layer.forward([backend.asarray(ids) for ids in IDS]), expected)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2)])
def test_other_shapes_without_pooling(shape: tuple[int, ...], backend: Backend) -> None:
    ids = np.random.default_rng(3).integers(0, VOCAB, shape)
    layer = embedding()
    Y, dY = run(layer, backend.asarray(ids), backend)
    W = host(layer.parameters["W"])
    assert_same_bits(Y, W[ids])
    gold = naive.lookup_grad(W.shape, ids.reshape(1, -1).tolist(), dY.reshape(1, -1, WIDTH))
    assert_close(layer.gradients["W"], gold)


@with_pools
def test_against_pytorch(pool: str | None, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    layer = embedding(pool)
    Y, dY = run(layer, backend.asarray(IDS), backend)
    W = torch.tensor(host(layer.parameters["W"]), requires_grad=True)
    if pool is None:
        expected = torch.nn.functional.embedding(torch.tensor(IDS), W)
    else:
        expected = torch.nn.functional.embedding_bag(torch.tensor(IDS), W, mode=pool)[:, None]
    expected.backward(torch.tensor(dY))
    assert_close(Y, expected.detach().numpy())
    assert W.grad is not None
    assert_close(layer.gradients["W"], W.grad.numpy())


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_ragged_lists_against_pytorch(pool: str, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    layer = embedding(pool).to(backend.library)
    Y, dY = run(layer, RAGGED, backend)
    W = torch.tensor(host(layer.parameters["W"]), requires_grad=True)
    starts = np.cumsum([0, *(len(ids) for ids in RAGGED[:-1])])
    joined = torch.tensor([i for ids in RAGGED for i in ids])
    bags = torch.nn.functional.embedding_bag(joined, W, torch.tensor(starts), mode=pool)
    bags.backward(torch.tensor(dY[:, 0]))
    assert_close(Y[:, 0], bags.detach().numpy())
    assert W.grad is not None
    assert_close(layer.gradients["W"], W.grad.numpy())


@with_pools
def test_central_differences(pool: str | None, backend: Backend) -> None:
    layer = embedding(pool)
    ids = backend.asarray(IDS)
    _, dY = run(layer, ids, backend)
    gradient, W = host(layer.gradients["W"]), host(layer.parameters["W"])
    for index in np.ndindex(W.shape):
        sides = []
        for step in (1e-5, -1e-5):
            moved = W.copy()
            moved[index] += step
            layer.parameters["W"][...] = backend.asarray(moved)
            sides.append(np.sum(host(layer.forward(ids, retain_derived=False)) * dY))
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "pool, expected", [(None, [0, 2, 1]), ("sum", [0, 2, 1]), ("mean", [0, 2 / 3, 1 / 3])]
)
def test_d13_a_repeated_id_is_counted_each_time(
    pool: str | None, expected: list[float], backend: Backend
) -> None:
    """numpy-ml gives row 1 here the gradient 1 (sum) and 1/3 (mean), half of what is right."""
    layer = layers.Embedding(2, 3, pool)
    Y = layer.forward(backend.asarray(np.array([[1, 1, 2]])))
    layer.backward(backend.asarray(np.ones(Y.shape)))
    assert_close(layer.gradients["W"], np.array(expected)[:, None] * np.ones(2))


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
        (None, None, DTypeError, "the input: expected at least one array, got none"),
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
