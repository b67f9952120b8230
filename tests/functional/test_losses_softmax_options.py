"""SoftmaxCrossEntropy: label smoothing, class weights, ignored labels."""

import math

import numpy as np
import pytest

from gpulayers.errors import ParameterError, ShapeError
from gpulayers.losses import SoftmaxCrossEntropy
from tests.functional.test_losses import each_float, is_loss, slope

WEIGHTS = [0.5, 2.0, 0.0, 1.25]
OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"class_weights": WEIGHTS},
    "ignored": {"ignore_index": -100},
    "all": {"label_smoothing": 0.3, "class_weights": WEIGHTS, "ignore_index": 2},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum"])


def draw(options, n=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, 4)) * 3, rng.integers(0, 4, n)
    labels[::3] = options.get("ignore_index", labels[0])
    return logits.astype(dtype), labels


def gold(logits, labels, reduction, label_smoothing=0.0, class_weights=None, ignore_index=None):
    weights = class_weights or [1.0] * 4
    total, counts = 0.0, 0.0
    for row, label in zip(logits.astype(float), labels, strict=True):
        if label == ignore_index:
            continue
        log_sum = math.log(sum(math.exp(v) for v in row))
        total += (1 - label_smoothing) * weights[label] * (log_sum - row[label])
        for k in range(4):
            total += label_smoothing / 4 * weights[k] * (log_sum - row[k])
        counts += weights[label]
    return total / counts if reduction == "mean" else total


@each_float
@each_option
@each_reduction
def test_loss_against_loops(dtype, tolerance, options, reduction, backend):
    logits, labels = draw(options, dtype=dtype)
    objective = SoftmaxCrossEntropy(reduction, **options)
    z, t = backend.asarray(logits), backend.asarray(labels)
    objective(t, z)  # brings the weights to the device
    with backend.forbid("sync", "h2d", "d2h"):
        loss = objective(t, z)
        gradient = objective.backward()
    assert gradient.dtype == np.dtype(dtype)
    assert is_loss(loss, backend, dtype) == pytest.approx(
        gold(logits, labels, reduction, **options), rel=30 * tolerance
    )
    np.testing.assert_array_equal(backend.asnumpy(z), logits)
    np.testing.assert_array_equal(backend.asnumpy(t), labels)


@each_option
@each_reduction
def test_gradient(options, reduction, backend):
    logits, labels = draw(options)
    objective = SoftmaxCrossEntropy(reduction, **options)
    t = backend.asarray(labels)
    want = slope(lambda v: float(objective.loss(t, backend.asarray(v))), logits)
    got = backend.asnumpy(objective.grad(t, backend.asarray(logits)))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@each_option
@each_reduction
def test_against_torch(options, reduction, numpy_backend):
    torch = pytest.importorskip("torch")
    logits, labels = draw(options, 11, seed=5)
    z = torch.tensor(logits, requires_grad=True)
    weights = options.get("class_weights")
    theirs = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(labels),
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        reduction=reduction,
        label_smoothing=options.get("label_smoothing", 0.0),
        ignore_index=options.get("ignore_index", -100),
    )
    theirs.backward()
    objective = SoftmaxCrossEntropy(reduction, **options)
    assert float(objective(labels, logits)) == pytest.approx(theirs.item(), rel=1e-12)
    np.testing.assert_allclose(objective.backward(), z.grad.numpy(), rtol=1e-10, atol=1e-14)


@each_option
def test_options_may_be_changed(options, backend):
    logits, labels = draw(options)
    given = backend.asarray(labels), backend.asarray(logits)
    objective = SoftmaxCrossEntropy()
    objective.loss(backend.asarray(labels % 4), given[1])
    for name, value in options.items():
        setattr(objective, name, value)
    for weights in (objective.class_weights, [3.0, 1.0, 0.5, 0.25]):
        objective.class_weights = weights
        expected = gold(logits, labels, "mean", **{**options, "class_weights": weights})
        assert float(objective.loss(*given)) == pytest.approx(expected, rel=1e-9)


def test_ignored_rows_may_hold_anything(backend):
    logits = np.array([[1.0, 2.0], [np.nan, np.inf]], np.float32)
    t, z = backend.asarray(np.array([1, -1])), backend.asarray(logits)
    objective = SoftmaxCrossEntropy(ignore_index=-1, label_smoothing=0.1)
    with np.errstate(invalid="ignore"):
        loss = float(objective(t, z))
        gradient = backend.asnumpy(objective.backward())
        alone = float(objective(t[:1], z[:1]))
    assert loss == pytest.approx(alone)
    assert not gradient[1].any() and gradient[0].any()


@each_reduction
def test_nothing_counts(reduction, backend):
    """PyTorch's mean is NaN here, which would spoil the parameters."""
    objective = SoftmaxCrossEntropy(reduction, ignore_index=0)
    for n in (0, 3):
        z = backend.asarray(np.ones((n, 2), np.float32))
        assert float(objective(backend.asarray(np.zeros(n, np.int64)), z)) == 0.0
        assert not backend.asnumpy(objective.backward()).any()


def test_labels_out_of_range(backend):
    objective = SoftmaxCrossEntropy(ignore_index=-1, class_weights=[1.0, 1.0])
    t, z = backend.asarray(np.array([0, 2])), backend.asarray(np.zeros((2, 2)))
    if backend.name == "numpy":
        with pytest.raises(ParameterError, match=r"labels must be in 0..1"):
            objective(t, z)
    else:
        assert math.isnan(float(objective(t, z)))


def test_bad_options(backend):
    for bad in (-0.1, 1.5, "x"):
        with pytest.raises(ParameterError, match="label_smoothing"):
            SoftmaxCrossEntropy(label_smoothing=bad)
    for bad in ([], 3.0, [1, -1], [float("nan")]):
        with pytest.raises(ParameterError, match=r"class.weight"):
            SoftmaxCrossEntropy(class_weights=bad)
    with pytest.raises(ParameterError, match="ignore_index must be an integer"):
        SoftmaxCrossEntropy(ignore_index=1.5)
    with pytest.raises(ShapeError, match="logits have 3 classes, there are 2 class weights"):
        SoftmaxCrossEntropy(class_weights=np.ones(2))(
            backend.asarray(np.array([0])), backend.asarray(np.zeros((1, 3)))
        )
    text = str(SoftmaxCrossEntropy("sum", 0.1, [1, 2], -1))
    assert text == (
        "SoftmaxCrossEntropy(reduction=sum, label_smoothing=0.1, class_weights=[1.0, 2.0], "
        "ignore_index=-1)"
    )
