"""One training step written by hand, as the rules examine it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import models, random
from gpulayers.ops import softmax
from tests.conftest import Backend

BUDGET: dict[str, Any] = json.loads(Path(__file__).with_name("budget.json").read_text())
SLACK = 0.85  # a step that needs less than this share of its budget should have it lowered


class Step:
    """LeNet-5, a batch, and `run`: forward, loss, backward, update."""

    def __init__(self, backend: Backend, optimizer: str, batch: int = 2) -> None:
        random.seed(0)
        rng = np.random.default_rng(0)
        self.network: Any = models.lenet(optimizer=optimizer)
        self.X = backend.asarray(rng.random((batch, 28, 28, 1), np.float32))
        self.labels = backend.asarray(rng.integers(0, 10, batch))
        self.scale = 1.0 / batch
        self.network.forward(self.X, retain_derived=False)  # draws the parameters

    def run(self) -> Any:
        """The losses of the batch, before the update."""
        logits = self.network.forward(self.X)
        losses, probs = softmax.softmax_cross_entropy_forward(logits, self.labels)
        dlogits = softmax.softmax_cross_entropy_backward(probs, self.labels, self.scale)
        self.network.backward(dlogits, input_grad=False)
        self.network.update()
        return losses

    def parameters(self, backend: Backend) -> dict[str, np.ndarray]:
        """Copies of all parameters on the host."""
        return {k: np.array(backend.asnumpy(v)) for k, v in self.network.parameters.items()}
