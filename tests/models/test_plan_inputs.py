"""What plans take: ids, targets of a regression, batches without an example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Embedding,
    Flatten,
    FullyConnected,
    LayerNorm2D,
)
from gpulayers.losses import SoftmaxCrossEntropy, SquaredError
from gpulayers.models import Sequential
from tests.models.planned import IMAGE, assert_alike, batches, by_example, plain_step, twins


@pytest.mark.parametrize("asked", ["squared_error", SquaredError, SquaredError()])
def test_regression(backend: Any, asked: Any) -> None:
    """As the layers with 0.5 * ||outputs - targets||^2, whose gradient is outputs - targets."""
    plain, planned = twins(by_example, backend)
    plan = planned.compile(batch_shape=(5, *IMAGE), loss=asked)
    rng = np.random.default_rng(0)
    for X, _ in batches(backend, 3, 5):
        outputs = plain.forward(X)
        targets = backend.asarray(rng.standard_normal(outputs.shape).astype(np.float32))
        difference = backend.asnumpy(outputs).astype(np.float64) - backend.asnumpy(targets)
        loss = plan.step(X, targets)
        assert float(loss) == pytest.approx(0.5 * (difference**2).sum(), rel=1e-4)
        plain.backward(outputs - targets)
        plain.update()
    assert_alike(backend, planned, plain, 2e-5)
    with pytest.raises(ShapeError, match="SquaredError"):
        plan.step(X, targets[:, :1])
    assert_alike(backend, planned, plain, 2e-5)


@pytest.mark.parametrize("norm", [BatchNorm1D, BatchNorm2D, LayerNorm2D])
def test_no_example_at_all(backend: Any, norm: Any) -> None:
    """A normalisation has no gradients then; the step is one with gradients of zeros."""

    def network() -> Sequential:
        first = [Flatten(), norm()] if norm is BatchNorm1D else [norm(), Flatten()]
        return Sequential([*first, FullyConnected(3)], "SGD(lr=0.1, momentum=0.9)")

    plain, planned = twins(network, backend)
    plan = planned.compile(batch_shape=(4, *IMAGE))
    rng = np.random.default_rng(0)
    for n in (4, 0, 3):
        X = backend.asarray(rng.standard_normal((n, *IMAGE)).astype(np.float32))
        labels = backend.asarray(np.arange(n) % 3)
        plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        assert float(plan.step(X, labels)) >= 0
    assert_alike(backend, planned, plain, 2e-5)


@pytest.mark.parametrize("pool", [None, "mean"])
def test_ids(backend: Any, pool: str | None) -> None:
    """A network that begins with an embedding takes ids, and nothing else."""

    def words() -> Sequential:
        embedding = Embedding(6, vocab_size=20, pool=pool)
        return Sequential([embedding, Flatten(), FullyConnected(4)], "Adam(lr=0.01)")

    ids = np.random.default_rng(0).integers(0, 20, (5, 7))
    pair: list[Sequential] = []
    for _ in range(2):
        random.seed(5)
        pair.append(words())
        pair[-1].forward(backend.asarray(ids[:1]), False)
    plain, planned = pair
    plan = planned.compile(batch_shape=(5, 7))
    labels = np.arange(5) % 4
    for rows in (slice(5), slice(2), slice(1, 5)):
        X, y = backend.asarray(ids[rows]), backend.asarray(labels[rows])
        plain_step(plain, SoftmaxCrossEntropy(), X, y)
        plan.step(X, y)
    assert_alike(backend, planned, plain, 2e-5)
    with pytest.raises(DTypeError, match="expected a batch of ids, int64 say, got float32"):
        plan.step(backend.asarray(ids.astype("float32")), backend.asarray(labels))
    wide, narrow = backend.asarray(ids), backend.asarray(ids.astype("uint8"))  # no pixels here
    for network in (plain, planned):
        expected = backend.asnumpy(network.forward(wide, False))
        np.testing.assert_array_equal(backend.asnumpy(network.forward(narrow, False)), expected)
        np.testing.assert_array_equal(backend.asnumpy(network.predict(narrow)), expected)
    plain_step(plain, SoftmaxCrossEntropy(), wide, backend.asarray(labels))
    plan.step(narrow, backend.asarray(labels))
    if backend.name == "numpy":  # a GPU is not waited for
        with pytest.raises(ParameterError, match=r"ids must be in 0\.\.19"):
            plan.step(backend.asarray(ids + 20), backend.asarray(labels))
    assert_alike(backend, planned, plain, 2e-5)
