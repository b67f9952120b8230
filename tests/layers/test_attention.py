"""Dot-product attention; defects D20..D23 of numpy-ml."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, ops, random
from gpulayers.errors import (
    BackendError,
    DTypeError,
    FrozenLayerError,
    ParameterError,
    ShapeError,
)
from tests.conftest import Backend
from tests.layers.gold import SEED, kept_by_dropout
from tests.layers.harness import values
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import attention as naive

# leading dimensions, n_q, n_k, d_k, d_v
SIZES = {
    "one-sequence": ((), 3, 4, 2, 5),
    "batch": ((2,), 3, 4, 5, 2),
    "heads": ((2, 3), 4, 4, 3, 3),
    "five-axes": ((2, 1, 2), 1, 3, 2, 1),
    "one-key": ((3,), 2, 1, 4, 3),
    "smallest": ((1,), 1, 1, 1, 1),
}
with_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def inputs(size: Any, dtype: str = "float64", seed: int = 1) -> tuple[list, np.ndarray]:
    """(Q, K, V) and a gradient of the output."""
    lead, n_q, n_k, d_k, d_v = size
    shapes = [(*lead, n_q, d_k), (*lead, n_k, d_k), (*lead, n_k, d_v), (*lead, n_q, d_v)]
    *X, dY = [values(shape, seed + k, dtype) for k, shape in enumerate(shapes)]
    return X, dY


def on(backend: Backend, arrays: Any, dtype: str = "float64") -> list:
    return [backend.asarray(a, dtype) for a in arrays]


def run(layer: layers.DotProductAttention, X: list, dY: Any) -> tuple:
    random.seed(SEED)
    Y = layer.forward(*X)
    return (Y, *layer.backward(dY))


def gold(size: Any, p: float = 0.0, scale: bool = True, dtype: str = "float64") -> list:
    """Output and gradients; with dropout that follows `random.seed(SEED)`."""
    X, dY = inputs(size, dtype)
    lead, n_q, n_k, _, _ = size
    factors = kept_by_dropout(p, (*lead, n_q, n_k), SEED) / (1 - p)
    Y, _ = naive.attention(*X, factors, scale)
    return [Y, *naive.attention_grads(*X, dY, factors, scale)]


# ------------------------------------------------------------------------- values and gradients


@with_sizes
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_against_loops(size: Any, scale: bool, p: float, backend: Backend) -> None:
    X, dY = inputs(size)
    layer = layers.DotProductAttention(scale=scale, dropout_p=p)
    results = run(layer, on(backend, X), backend.asarray(dY))
    for actual, expected in zip(results, gold(size, p, scale), strict=True):
        assert_close(actual, expected)
    weights = layer.derived_variables["attention_weights"][0]
    assert_close(weights, naive.attention(*X, scale=scale)[1])
    mask = layer.derived_variables["dropout_mask"][0]
    if p:
        assert_same_bits(mask, kept_by_dropout(p, weights.shape, SEED))
    else:
        assert mask is None


@with_sizes
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_against_pytorch(size: Any, p: float, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    X, dY = inputs(size)
    layer = layers.DotProductAttention(dropout_p=p)
    results = run(layer, on(backend, X), backend.asarray(dY))
    given = [torch.tensor(x, requires_grad=True) for x in X]
    if p:  # its own random numbers differ, so the formula
        Q, K, V = given
        P = torch.softmax(Q @ K.transpose(-1, -2) / Q.shape[-1] ** 0.5, -1)
        kept = torch.tensor(host(layer.derived_variables["dropout_mask"][0]))
        expected = (P * kept / (1 - p)) @ V
    else:
        expected = torch.nn.functional.scaled_dot_product_attention(*given)
    wanted = torch.autograd.grad(expected, given, torch.tensor(dY))
    for actual, reference in zip(results, (expected.detach(), *wanted), strict=True):
        assert_close(actual, reference.numpy(), factor=10)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_central_differences(p: float, backend: Backend) -> None:
    size = ((2, 2), 3, 2, 3, 2)
    X, dY = inputs(size)
    layer = layers.DotProductAttention(dropout_p=p)
    grads = [host(g) for g in run(layer, on(backend, X), backend.asarray(dY))[1:]]
    for k, grad in enumerate(grads):
        for index in np.ndindex(grad.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in X]
                moved[k][index] += step
                random.seed(SEED)
                Y = layer.forward(*on(backend, moved))
                sides.append(float(np.sum(host(Y) * dY)))
            difference = (sides[0] - sides[1]) / 2e-5
            assert grad[index] == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_large_scores_do_not_overflow(backend: Backend) -> None:
    Q = backend.asarray(np.full((1, 1, 1), 1e3))
    K = backend.asarray(np.array([[[1e3], [-1e3]]]))
    V = backend.asarray(np.array([[[5.0], [7.0]]]))
    assert_same_bits(layers.DotProductAttention().forward(Q, K, V), np.array([[[5.0]]]))


# ------------------------------------------------------------------------- numpy-ml's defects


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_any_number_of_training_steps(p: float, backend: Backend) -> None:
    """D20: numpy-ml never flushes its inner softmax: after update() the next backward raises
    AttributeError ('list' has no 'swapaxes')."""
    size = SIZES["batch"]
    X, dY = inputs(size)
    layer = layers.DotProductAttention(dropout_p=p)
    for _ in range(3):
        results = run(layer, on(backend, X), backend.asarray(dY))
        for actual, expected in zip(results, gold(size, p), strict=True):
            assert_close(actual, expected)
        layer.update()
        assert layer.X == []
        assert layer.derived_variables == {"attention_weights": [], "dropout_mask": []}


def test_evaluation_between_does_not_disturb(backend: Backend) -> None:
    """D20: numpy-ml's backward raises the same after forward(retain_derived=False)."""
    size = SIZES["batch"]
    X, dY = inputs(size)
    layer = layers.DotProductAttention(dropout_p=0.4)
    random.seed(SEED)
    layer.forward(*on(backend, X))
    before = random.get_state()
    Y = layer.forward(*on(backend, X), retain_derived=False)
    assert random.get_state() == before
    assert_close(Y, naive.attention(*X)[0])
    for actual, expected in zip(
        layer.backward(backend.asarray(dY)), gold(size, 0.4)[1:], strict=True
    ):
        assert_close(actual, expected)


def test_several_inputs_before_one_backward(backend: Backend) -> None:
    """D20: numpy-ml's backward raises with two retained inputs, too."""
    sizes = [SIZES["batch"], SIZES["heads"], SIZES["one-key"]]
    layer = layers.DotProductAttention()
    for size in sizes:
        layer.forward(*on(backend, inputs(size)[0]))
    assert [len(x) for x in layer.X] == [3, 3, 3]
    grads = layer.backward([backend.asarray(inputs(size)[1]) for size in sizes])
    assert isinstance(grads, tuple)
    for k, column in enumerate(grads):
        assert isinstance(column, list)
        for actual, size in zip(column, sizes, strict=True):
            assert_close(actual, gold(size)[1 + k])
    with pytest.raises(ShapeError, match="needs a list of 3 gradients, got 1"):
        layer.backward(backend.asarray(inputs(sizes[0])[1]))


def test_heads_have_gradients(backend: Backend) -> None:
    """D21, D23: with 4-D inputs numpy-ml's backward raises ValueError."""
    size = ((2, 4), 5, 6, 3, 2)
    X, dY = inputs(size)
    results = run(layers.DotProductAttention(), on(backend, X), backend.asarray(dY))
    for actual, expected in zip(results, gold(size), strict=True):
        assert_close(actual, expected)


def test_dropout_is_on_the_weights(backend: Backend) -> None:
    """D22: numpy-ml drops scores before the softmax and multiplies after it: with p = 0.5 every
    row of weights sums to 2. Here a row's sum is random, and 1 on average."""
    layer = layers.DotProductAttention(dropout_p=0.5)
    zeros, ones = np.zeros((200, 4, 2)), np.ones((200, 8, 1))
    random.seed(3)
    sums = host(layer.forward(*on(backend, (zeros, np.zeros((200, 8, 2)), ones))))
    assert len(np.unique(sums)) > 3
    assert abs(sums.mean() - 1.0) < 5 * (1 / 8 / sums.size) ** 0.5
    weights = host(layer.derived_variables["attention_weights"][0])
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)


def test_a_dropped_weight_gives_its_value_no_gradient(backend: Backend) -> None:
    """D22: numpy-ml ignores the mask on the way back."""
    layer = layers.DotProductAttention(dropout_p=0.5)
    X = [np.zeros((1, 1, 2)), np.zeros((1, 16, 2)), np.ones((1, 16, 1))]
    dV = host(run(layer, on(backend, X), backend.asarray(np.ones((1, 1, 1))))[3]).ravel()
    kept = kept_by_dropout(0.5, (16,), SEED)
    assert 0 < kept.sum() < 16
    assert_close(dV, kept / 8)


# -------------------------------------------------------------------------- the layers' contract


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@with_sizes
def test_the_dtype_is_kept(size: Any, dtype: str, backend: Backend) -> None:
    X, dY = inputs(size, dtype)
    layer = layers.DotProductAttention(dropout_p=0.4)
    results = run(layer, on(backend, X, dtype), backend.asarray(dY, dtype))
    for actual, expected in zip(results, gold(size, 0.4, dtype=dtype), strict=True):
        assert actual.dtype == dtype
        assert isinstance(actual, backend.xp.ndarray)
        assert_close(actual, expected, factor=5)
    assert layer.derived_variables["attention_weights"][0].dtype == dtype


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_bfloat16_is_kept(engine: str, backend: Backend) -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    X, dY = inputs(SIZES["heads"])
    layer = layers.DotProductAttention()
    with ops.use_engine(engine):
        results = run(layer, on(backend, X, bfloat16), backend.asarray(dY, bfloat16))
    for actual, expected in zip(results, gold(SIZES["heads"]), strict=True):
        assert actual.dtype == bfloat16
        assert_close(actual, expected, factor=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str, backend: Backend) -> None:
    X, dY = inputs(SIZES["heads"])
    X, dY = on(backend, X), backend.asarray(dY)
    layer = layers.DotProductAttention(dropout_p=0.4)
    expected = [a.copy() for a in run(layer, X, dY)]
    layer.flush_gradients()
    scattered = [scrambled(x, layout) for x in X]
    for actual, reference in zip(
        run(layer, scattered, scrambled(dY, layout)), expected, strict=True
    ):
        assert_same_bits(actual, reference)
    for x, kept in zip(X, inputs(SIZES["heads"])[0], strict=True):
        assert_same_bits(x, kept)


def test_one_array_three_times(backend: Backend) -> None:
    """Self-attention without projections: the three gradients are separate arrays."""
    X = backend.asarray(values((2, 3, 4), 1))
    dY = backend.asarray(values((2, 3, 4), 2))
    before = X.copy()
    results = run(layers.DotProductAttention(), [X, X, X], dY)
    expected = naive.attention_grads(*[host(X)] * 3, host(dY))
    for actual, reference in zip(results[1:], expected, strict=True):
        assert_close(actual, reference)
        actual += 1000.0
    assert_same_bits(X, before)


@pytest.mark.parametrize("size", [((0,), 2, 3, 2, 2), ((2, 0), 2, 3, 2, 2), ((2,), 0, 3, 2, 2)])
def test_empty_batches(size: Any, backend: Backend) -> None:
    X, dY = inputs(size)
    results = run(layers.DotProductAttention(dropout_p=0.5), on(backend, X), backend.asarray(dY))
    assert [a.shape for a in results] == [dY.shape, *(x.shape for x in X)]
    assert not any(host(a).any() for a in results)


def test_flags(backend: Backend) -> None:
    X, dY = inputs(SIZES["batch"])
    X, dY = on(backend, X), backend.asarray(dY)
    layer = layers.DotProductAttention(dropout_p=0.4)
    expected = run(layer, X, dY)[1:]
    assert layer.backward(dY, input_grad=False) is None
    for again, first in zip(layer.backward([dY]), expected, strict=True):
        assert_same_bits(again, first)
    layer.flush_gradients()
    with pytest.raises(ShapeError, match="no input is retained"):
        layer.backward(dY)
    layer.freeze()  # evaluation: nothing is dropped, the gradient passes
    for actual, reference in zip(run(layer, X, dY), gold(SIZES["batch"]), strict=True):
        assert_close(actual, reference)
    with pytest.raises(FrozenLayerError):
        layer.update()


def test_summary_and_set_params(numpy_backend: Backend) -> None:
    layer = layers.DotProductAttention(False, 0.25, "he_normal", "Adam")
    summary = copy.deepcopy(layer.summary())
    assert summary["layer"] == "DotProductAttention"
    assert summary["parameters"] == {}
    hyperparameters = {"layer", "init", "scale", "dropout_p", "optimizer"}
    assert summary["hyperparameters"].keys() == hyperparameters
    other = layers.DotProductAttention().set_params(summary)
    assert other.hyperparameters == layer.hyperparameters
    X, dY = inputs(SIZES["batch"])
    for a, b in zip(run(layer, X, dY), run(copy.deepcopy(other), X, dY), strict=True):
        assert_same_bits(a, b)


def test_moving_between_forward_and_backward(emulated: Backend) -> None:
    X, dY = inputs(SIZES["heads"])
    layer = layers.DotProductAttention(dropout_p=0.4)
    random.seed(SEED)
    layer.forward(*on(emulated, X))
    layer.to("numpy")
    for actual, expected in zip(layer.backward(dY), gold(SIZES["heads"], 0.4)[1:], strict=True):
        assert type(actual) is np.ndarray
        assert_close(actual, expected)


def test_a_step_neither_waits_nor_copies(emulated: Backend) -> None:
    X, dY = inputs(SIZES["heads"])
    X, dY = on(emulated, X, "float32"), emulated.asarray(dY, "float32")
    layer = layers.DotProductAttention(dropout_p=0.4)
    run(layer, X, dY)
    layer.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        run(layer, X, dY)
        layer.update()


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4), (2, 5, 3), (2, 5, 4)),
        ((2, 3, 4), (2, 5, 4), (2, 6, 4)),
        ((2, 3, 4), (1, 5, 4), (1, 5, 4)),
        ((2, 3, 4), (2, 5, 4), (5, 4)),
        ((3, 0), (5, 0), (5, 4)),
        ((3, 4), (0, 4), (0, 4)),
        ((4,), (5, 4), (5, 4)),
        ((), (), ()),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(shapes: Any, backend: Backend) -> None:
    layer = layers.DotProductAttention()
    with pytest.raises(ShapeError, match=r"DotProductAttention: expected Q \(\.\.\., n_q, d_k\)"):
        layer.forward(*on(backend, [np.ones(shape) for shape in shapes]))
    assert layer.X == []


def test_bad_arrays(emulated: Backend) -> None:
    layer = layers.DotProductAttention()
    X, dY = inputs(SIZES["batch"])
    Q, K, V = on(emulated, X)
    for given, error, message in [
        ((Q, K, X[2]), BackendError, "V is a numpy array, Q a cupy one"),
        ((Q, K.astype("float32"), V), DTypeError, "Q is float64, K is float32"),
        ((Q, K, V.astype("int64")), DTypeError, "V must have a floating dtype, got int64"),
        ((Q, [1.0], V), DTypeError, "K: expected a numpy or cupy array, got list"),
    ]:
        with pytest.raises(error, match=f"DotProductAttention: .*{message}"):
            layer.forward(*given)
    layer.forward(Q, K, V)
    with pytest.raises(ShapeError, match="must have the output's shape"):
        layer.backward(Q)
    with pytest.raises(BackendError, match="the gradient is a numpy array"):
        layer.backward(dY)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dropout_p": 1}, r"dropout_p must be a number in \[0, 1\), got 1"),
        ({"dropout_p": None}, "dropout_p must be a number"),
        ({"scale": 2}, "scale must be one of True, False, got 2"),
        ({"init": "glorot"}, "unknown mode 'glorot'"),
        ({"optimizer": "adamm"}, "adamm"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        layers.DotProductAttention(**arguments)
