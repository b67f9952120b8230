"""Loss and accuracy of a network on a split of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.training.data import Split
from gpulayers.training.feed import Feed

__all__ = ["Evaluation", "evaluate", "evaluate_feed"]

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a split.

    Attributes
    ----------
    loss, accuracy : float
        Means over the examples.
    predicted : (n,) int64 NumPy array
        The class of the largest output.
    """

    loss: float
    accuracy: float
    predicted: np.ndarray


def evaluate(
    network: Sequential, split: Split, loss: Any = None, batch_size: int = BATCH
) -> Evaluation:
    """Run `split` through `network` in evaluation mode.

    Parameters
    ----------
    network : Sequential
    split : Split
    loss : object like `losses.SoftmaxCrossEntropy`, the default
    batch_size : int

    Raises
    ------
    GPULayersError
        If the images do not fit the network.
    """
    feed = Feed(split, network.home or backend.current_backend())
    return evaluate_feed(network, feed, loss or SoftmaxCrossEntropy(), batch_size)


def evaluate_feed(network: Sequential, feed: Feed, loss: Any, batch_size: int) -> Evaluation:
    """As `evaluate`; nothing is read from the device before the last batch is on its way."""
    xp, n = feed.xp, feed.count
    predicted = xp.empty(n, np.int64)
    losses, hits = [], []
    feed.set_order(None)
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        X, labels = feed.batch(start, stop)
        outputs = network.forward(X, retain_derived=False)
        losses.append(loss.loss(labels, outputs))
        predicted[start:stop] = chosen = outputs.argmax(axis=1)
        hits.append((chosen == labels).sum())
    values = backend.to_cpu(xp.stack(losses)).astype(np.float64)
    if getattr(loss, "reduction", "mean") == "mean":
        last = n - (len(losses) - 1) * batch_size
        values *= np.array([batch_size] * (len(losses) - 1) + [last])
    right = int(backend.to_cpu(xp.stack(hits)).sum())
    return Evaluation(float(values.sum()) / n, right / n, backend.to_cpu(predicted))
