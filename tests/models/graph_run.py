"""A network trained by its layers or by its plan, on the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import random
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from tests.conftest import Backend

BATCH, SHAPE, CLASSES = 5, (9, 8, 2), 3
SGD = "SGD(lr=0.1, momentum=0.9)"


class Run:
    """A network and its data on the stand-in, trained by its layers or by its plan."""

    def __init__(
        self,
        backend: Backend,
        layers: Callable[[], list[Any]],
        optimizer: str,
        shape: tuple[int, ...] = SHAPE,
        classes: int = CLASSES,
    ) -> None:
        random.seed(0)
        rng = np.random.default_rng(0)
        self.backend, self.shape = backend, shape
        self.network: Any = Sequential(layers(), optimizer)
        self.X = backend.asarray(rng.standard_normal((BATCH, *shape)).astype(np.float32))
        self.labels = backend.asarray(rng.integers(0, classes, BATCH))
        self.network.forward(self.X[:1], retain_derived=False)
        self.loss = SoftmaxCrossEntropy()
        self.plan: Any = None

    def compile(self, **options: Any) -> Run:
        self.plan = self.network.compile((BATCH, *self.shape), **options)
        return self

    def step(self, n: int = BATCH) -> float:
        X, labels = self.X[:n], self.labels[:n]
        if self.plan is not None:
            return float(self.plan.step(X, labels))
        value = float(self.loss.forward(labels, self.network.forward(X)))
        self.network.backward(self.loss.backward(), input_grad=False)
        self.network.update()
        return value

    def parameters(self) -> dict[str, np.ndarray]:
        return {k: np.array(self.backend.asnumpy(v)) for k, v in self.network.parameters.items()}


def same(one: Run, other: Run, tolerance: float = 2e-5) -> None:
    theirs = other.parameters()
    for name, array in one.parameters().items():
        np.testing.assert_allclose(array, theirs[name], atol=tolerance, rtol=1e-4, err_msg=name)


def pair(backend: Backend, layers: Any, optimizer: str = SGD) -> tuple[Run, Run]:
    return Run(backend, layers, optimizer), Run(backend, layers, optimizer).compile()
