"""Losses: values by loops, gradients by central differences, PyTorch, bad input."""

import math

import numpy as np
import pytest

from gpulayers import activations as act
from gpulayers import losses
from gpulayers.errors import (
    BackendError,
    DTypeError,
    NotInitializedError,
    ParameterError,
    ShapeError,
)
from gpulayers.losses import CrossEntropy, SoftmaxCrossEntropy, SquaredError

FLOATS = {"float16": 3e-3, "float32": 1e-6, "float64": 1e-13}
each_float = pytest.mark.parametrize("dtype, tolerance", FLOATS.items())


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def slope(f, x, h=1e-6):
    """Central differences of the number f(x), one entry at a time."""
    out = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        out[i] = (f(x + step) - f(x - step)) / (2 * h)
    return out


def test_public_names():
    assert set(losses.__all__) == {
        "VAELoss",
        "WGAN_GPLoss",
        "NCELoss",
        "DiscreteSampler",
        "ObjectiveBase",
        "SquaredError",
        "CrossEntropy",
        "SoftmaxCrossEntropy",
    }
    assert issubclass(SquaredError, losses.ObjectiveBase)


def is_loss(loss, backend, dtype):
    assert isinstance(loss, backend.xp.ndarray)
    assert loss.shape == () and loss.dtype == np.dtype(dtype if dtype != "float16" else "float32")
    return float(loss)


# ------------------------------------------------------------------------------------ squared error


@each_float
@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (2, 3, 4), (5,), (0, 3)])
def test_squared_error(dtype, tolerance, shape, backend):
    rng = np.random.default_rng(0)
    y, y_pred = rng.normal(size=shape), rng.normal(size=shape).astype(dtype)
    y = y.astype(dtype)
    gold = sum(0.5 * (float(a) - float(b)) ** 2 for a, b in zip(y.flat, y_pred.flat, strict=True))
    ours, theirs = backend.asarray(y_pred), backend.asarray(y)
    with backend.forbid("sync", "h2d", "d2h"):
        loss = SquaredError.loss(theirs, ours)
    assert is_loss(loss, backend, dtype) == pytest.approx(gold, rel=10 * tolerance)
    assert float(SquaredError()(theirs, ours)) == float(loss)


def test_squared_error_gradient_is_with_respect_to_the_pre_activation(backend):
    rng = np.random.default_rng(1)
    y, z = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    tanh = act.Tanh()
    gold = slope(lambda z: float(0.5 * ((np.tanh(z) - y) ** 2).sum()), z)
    arrays = [backend.asarray(a) for a in (y, np.tanh(z), z)]
    with backend.forbid("sync", "h2d", "d2h"):
        got = SquaredError.grad(*arrays, tanh)
    np.testing.assert_allclose(backend.asnumpy(got), gold, rtol=1e-7, atol=1e-9)
    one = backend.asarray(np.array(1.0))
    assert isinstance(SquaredError().grad(one, one, one, act_fn=tanh), backend.xp.ndarray)


def test_squared_error_never_promotes(backend):
    y_pred = backend.asarray(np.full((2, 2), 0.5, np.float32))
    for dtype in ("float64", "int64", "bool", "float16"):
        y = backend.asarray(np.ones((2, 2), dtype))
        loss = SquaredError.loss(y, y_pred)
        assert loss.dtype == np.float32 and float(loss) == 0.5
        z = backend.asarray(np.zeros((2, 2)))
        assert SquaredError.grad(y, y_pred, z, act.Identity()).dtype == np.float32


def test_half_types_are_added_up_in_float32(backend):
    y = backend.asarray(np.zeros((300, 300), np.float16))
    y_pred = backend.asarray(np.full((300, 300), 3.0, np.float16))
    assert float(SquaredError.loss(y, y_pred)) == pytest.approx(0.5 * 9 * 90000)  # > 65504


@pytest.mark.parametrize("loss", [SquaredError, CrossEntropy])
def test_bad_pairs(loss, backend):
    ones = backend.asarray(np.full((2, 2), 0.5))
    name = loss.__name__
    with pytest.raises(ShapeError, match=rf"{name}.loss: y_pred must have y's shape \(1, 2\)"):
        loss.loss(ones[:1], ones)
    with pytest.raises(
        DTypeError, match=f"{name}.loss: y_pred must be a floating array, got int64"
    ):
        loss.loss(ones, ones.astype(np.int64))
    with pytest.raises(DTypeError, match=f"{name}.loss: y must be an array of numbers"):
        loss.loss(ones.astype(np.complex128), ones)
    with pytest.raises(DTypeError, match=rf"{name}.loss: y: expected a numpy .* got list"):
        loss.loss([[1, 0]], ones)
    with pytest.raises(DTypeError, match=rf"{name}.loss: y_pred: expected .* got none"):
        loss.loss(ones, None)
    if backend.name != "numpy":
        with pytest.raises(BackendError, match="mixed"):
            loss.loss(np.ones((2, 2)), ones)


def test_squared_error_bad_z(backend):
    ones = backend.asarray(np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"SquaredError.grad: z must have y_pred's shape"):
        SquaredError.grad(ones, ones, ones[0], act.Identity())
    with pytest.raises(DTypeError, match=r"SquaredError.grad: z: .* got list"):
        SquaredError.grad(ones, ones, [1.0], act.Identity())


@pytest.mark.parametrize("act_fn", ["tanh", None, act.Tanh])
def test_squared_error_bad_activation(act_fn, backend):
    ones = backend.asarray(np.ones((2, 3)))
    with pytest.raises(ParameterError, match=r"SquaredError.grad: act_fn must be an activation"):
        SquaredError.grad(ones, ones, ones, act_fn)


# ------------------------------------------------------------------------------------ cross-entropy


@each_float
def test_cross_entropy(dtype, tolerance, backend):
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(6, 5))).astype(dtype)
    labels = rng.integers(0, 5, 6)
    gold = -sum(math.log(float(probs[i, k])) for i, k in enumerate(labels))
    y, y_pred = backend.asarray(one_hot(labels, 5).astype(np.int64)), backend.asarray(probs)
    with backend.forbid("sync", "h2d", "d2h"):
        loss, gradient = CrossEntropy.loss(y, y_pred), CrossEntropy.grad(y, y_pred)
    assert is_loss(loss, backend, dtype) == pytest.approx(gold, rel=tolerance)
    assert float(CrossEntropy()(y, y_pred)) == float(loss)
    assert gradient.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(
        backend.asnumpy(gradient), (probs - one_hot(labels, 5)).astype(dtype)
    )


@pytest.mark.parametrize("kind", ["one hot", "smoothed", "two classes", "none"])
def test_cross_entropy_gradient_is_with_respect_to_the_softmax_input(kind, backend):
    rng = np.random.default_rng(2)
    z = rng.normal(size=(4, 3))
    y = one_hot([0, 2, 1, 1], 3)
    y = {"one hot": y, "smoothed": 0.9 * y + 0.1 / 3, "two classes": 1 - y, "none": 0 * y}[kind]
    gold = slope(lambda z: float(-(y * np.log(softmax(z))).sum()), z)
    got = CrossEntropy.grad(backend.asarray(y), backend.asarray(softmax(z)))
    np.testing.assert_allclose(backend.asnumpy(got), gold, rtol=1e-6, atol=1e-9)


def test_cross_entropy_of_an_impossible_class_is_finite(backend):
    y = backend.asarray(np.array([[0.0, 1.0]]))
    y_pred = backend.asarray(np.array([[1.0, 0.0]]))
    gold = -math.log(np.finfo(float).eps)
    assert float(CrossEntropy.loss(y, y_pred)) == pytest.approx(gold)
    as_float32 = CrossEntropy.loss(y, y_pred.astype(np.float32))
    assert float(as_float32) == pytest.approx(gold, rel=1e-6)


BAD_VALUES = (
    ([[0.0, 2.0]], [[0.5, 0.5]], r"targets y must be in \[0, 1\]"),
    ([[-1.0, 1.0]], [[0.5, 0.5]], r"targets y must be in \[0, 1\]"),
    ([[0.0, 1.0]], [[0.5, 0.6]], "each row of y_pred must be probabilities .* off by 0.1"),
    ([[0.0, 1.0]], [[1.5, -0.5]], "an entry is outside"),
)


@pytest.mark.parametrize("y, y_pred, message", BAD_VALUES)
def test_cross_entropy_bad_values(y, y_pred, message, backend):
    y, y_pred = backend.asarray(np.array(y)), backend.asarray(np.array(y_pred))
    if backend.name == "numpy":
        for method in (CrossEntropy.loss, CrossEntropy.grad):
            with pytest.raises(ParameterError, match=message):
                method(y, y_pred)
    else:
        with backend.forbid("sync", "h2d", "d2h"):
            loss = CrossEntropy.loss(y, y_pred)
        assert math.isnan(float(loss))


def test_cross_entropy_shows_nan_as_nan(backend):
    y, y_pred = backend.asarray(np.eye(2)), backend.asarray(np.full((2, 2), np.nan))
    assert math.isnan(float(CrossEntropy.loss(y, y_pred)))
    assert np.isnan(backend.asnumpy(CrossEntropy.grad(y, y_pred))).all()


def test_cross_entropy_bad_shapes(backend):
    probs = backend.asarray(np.full((2, 2), 0.5))
    with pytest.raises(ShapeError, match=r"for integer labels and logits there is SoftmaxCross"):
        CrossEntropy.loss(backend.asarray(np.array([0, 1])), probs)
    with pytest.raises(ShapeError, match=r"y_pred must be \(n_ex, n_classes\), got \(2,\)"):
        CrossEntropy.grad(probs[0], probs[0])


# ---------------------------------------------------------------------------- softmax cross-entropy


@each_float
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 10), (1, 1), (1, 7), (33, 2)])
def test_softmax_cross_entropy(dtype, tolerance, reduction, shape, backend):
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=shape)).astype(dtype)
    labels = rng.integers(0, shape[1], shape[0])
    share = 1 / shape[0] if reduction == "mean" else 1.0
    gold, gradient = 0.0, np.empty(shape)
    for i, row in enumerate(logits.astype(np.float64)):
        total = sum(math.exp(v) for v in row)
        gold += share * (math.log(total) - row[labels[i]])
        gradient[i] = [share * (math.exp(v) / total - (k == labels[i])) for k, v in enumerate(row)]
    objective = SoftmaxCrossEntropy(reduction)
    z, t = backend.asarray(logits), backend.asarray(labels)
    objective(t, z)
    with backend.forbid("sync", "h2d", "d2h"):
        loss = objective.forward(t, z)
        dlogits = objective.backward()
    close = {"rel": 10 * tolerance, "abs": 10 * tolerance}
    assert is_loss(loss, backend, dtype) == pytest.approx(gold, **close)
    assert dlogits.dtype == np.dtype(dtype)
    np.testing.assert_allclose(
        backend.asnumpy(dlogits).astype(float), gradient, atol=tolerance, rtol=10 * tolerance
    )
    np.testing.assert_array_equal(backend.asnumpy(z), logits)
    for again in (objective.backward(), objective.grad(t, z)):
        np.testing.assert_array_equal(backend.asnumpy(again), backend.asnumpy(dlogits))
    assert float(objective.loss(t, z)) == float(loss)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_softmax_cross_entropy_gradient(reduction, backend):
    rng = np.random.default_rng(3)
    z, labels = rng.normal(size=(4, 3)), np.array([2, 0, 0, 1])
    objective = SoftmaxCrossEntropy(reduction)
    t = backend.asarray(labels)
    gold = slope(lambda v: float(objective.loss(t, backend.asarray(v))), z)
    np.testing.assert_allclose(
        backend.asnumpy(objective.grad(t, backend.asarray(z))), gold, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_softmax_cross_entropy_against_torch(reduction, numpy_backend):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    logits, labels = 10 * rng.normal(size=(9, 5)), rng.integers(0, 5, 9)
    z = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(z, torch.tensor(labels), reduction=reduction)
    theirs.backward()
    objective = SoftmaxCrossEntropy(reduction)
    assert float(objective(labels, logits)) == pytest.approx(theirs.item(), rel=1e-13)
    np.testing.assert_allclose(objective.backward(), z.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_softmax_cross_entropy_of_huge_logits(backend):
    z = backend.asarray(np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32))
    objective = SoftmaxCrossEntropy("sum")
    assert float(objective(backend.asarray(np.array([1, 1])), z)) == 1e4
    assert backend.asnumpy(objective.backward()).tolist() == [[1.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_softmax_cross_entropy_of_nothing(reduction, backend):
    objective = SoftmaxCrossEntropy(reduction)
    z = backend.asarray(np.zeros((0, 3), np.float32))
    assert float(objective(backend.asarray(np.zeros(0, np.int64)), z)) == 0.0
    assert objective.backward().shape == (0, 3)


def test_validation_leaves_the_training_step_alone(backend):
    objective = SoftmaxCrossEntropy()
    first, other = backend.asarray(np.array([[1.0, 2.0]])), backend.asarray(np.array([[9.0, 2.0]]))
    label = backend.asarray(np.array([0]))
    objective(label, first)
    expected = backend.asnumpy(objective.backward()).copy()
    objective.loss(label, other)
    objective.grad(label, other)
    np.testing.assert_array_equal(backend.asnumpy(objective.backward()), expected)


def test_softmax_cross_entropy_bad_calls(backend):
    with pytest.raises(NotInitializedError, match="backward needs a forward pass first"):
        SoftmaxCrossEntropy().backward()
    for bad in ("men", None, 1):
        with pytest.raises(ParameterError, match="reduction must be 'mean' or 'sum', got"):
            SoftmaxCrossEntropy(bad)
    objective = SoftmaxCrossEntropy()
    z = backend.asarray(np.zeros((2, 3)))
    labels = backend.asarray(np.array([0, 2]))
    with pytest.raises(DTypeError, match="labels must be integers, got float64"):
        objective(labels.astype(np.float64), z)
    with pytest.raises(ShapeError, match=r"labels must have shape \(2,\)"):
        objective(labels[:1], z)
    with pytest.raises(ShapeError, match=r"logits must have shape \(m, classes\)"):
        objective(labels, z[0])
    with pytest.raises(DTypeError, match="logits must be a floating array, got int64"):
        objective(labels, z.astype(np.int64))
    for out in (3, -1):
        wrong = backend.asarray(np.array([0, out]))
        if backend.name == "numpy":
            with pytest.raises(ParameterError, match=r"labels must be in 0..2, got"):
                objective(wrong, z)
        else:
            assert math.isnan(float(objective(wrong, z)))
    assert str(SoftmaxCrossEntropy("sum")) == "SoftmaxCrossEntropy(reduction=sum)"
