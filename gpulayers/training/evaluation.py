"""Loss and accuracy of a network on a split of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.models.scale import sample_of
from gpulayers.training import settings
from gpulayers.training.data import Dataset, Split
from gpulayers.training.feed import Feed
from gpulayers.training.metrics import ClassScore, confusion_matrix, markdown_table, per_class

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
    labels : (n,) int64 NumPy array
        The true classes.
    classes : tuple of str
        Their names.
    confusion : (classes, classes) int64 NumPy array
        How often each true class (row) was taken for each class (column).
    per_class : list of ClassScore
        Precision, recall and F1 of each class.
    macro_f1 : float
        The mean of the classes' F1.
    """

    loss: float
    accuracy: float
    predicted: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    @cached_property
    def confusion(self) -> np.ndarray:
        return confusion_matrix(self.labels, self.predicted, len(self.classes))

    @cached_property
    def per_class(self) -> list[ClassScore]:
        return per_class(self.confusion, self.classes)

    @property
    def macro_f1(self) -> float:
        return sum(score.f1 for score in self.per_class) / len(self.per_class)

    def __str__(self) -> str:
        """Loss, accuracy and a Markdown table of the classes."""
        rows = [
            (s.name, s.examples, f"{s.precision:.2%}", f"{s.recall:.2%}", f"{s.f1:.2%}")
            for s in self.per_class
        ]
        table = markdown_table(("class", "examples", "precision", "recall", "F1"), rows)
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.2%}\n\n{table}"


def evaluate(
    network: Sequential,
    split: Split | Dataset,
    loss: Any = None,
    batch_size: int = BATCH,
    flip: bool = False,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Run `split` through `network` in evaluation mode.

        result = evaluate(network, data)
        print(result.accuracy, result.confusion, result.per_class[3].recall)

    Parameters
    ----------
    network : Sequential
    split : Split, or a Dataset, whose test split and names of classes are then used
        Of bytes, if the network was trained on bytes: floats are taken as they are.
    loss : object like `losses.SoftmaxCrossEntropy`, the default
    batch_size : int
    flip : bool
        Take the mean of the outputs for each image and for its mirror image (left and right
        changed). (Krizhevsky et al., "ImageNet classification with deep convolutional neural
        networks", 2012, section 4.1, averages over crops and their mirror images.)
    classes : sequence of str, optional
        Names of the classes; None numbers them.

    Warns
    -----
    ImageScaleWarning
        If the network was trained on standardised bytes, and floating images are on another scale.

    Raises
    ------
    ParameterError
        If an argument is none of those.
    GPULayersError
        If the images do not fit the network.
    """
    network = settings.the_network("evaluate", network)
    if isinstance(split, Dataset):
        split, classes = split.test, split.classes if classes is None else classes
    if not isinstance(split, Split):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"evaluate: split must be a Split or a Dataset, got {split!r}")
    if classes is not None and not isinstance(classes, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"evaluate: classes must be a sequence of names, got {classes!r}")
    if loss is not None and not callable(getattr(loss, "loss", None)):
        raise ParameterError(
            f"evaluate: the loss needs a method loss(labels, outputs), got {loss!r}"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise ParameterError(f"evaluate: batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ParameterError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    flip = _spec.flag("evaluate", "flip", flip)
    if split.images.dtype != np.uint8:
        network.pixels.watch("evaluate", sample_of(split.images))
    feed = Feed(split, network.home or backend.current_backend())
    objective = SoftmaxCrossEntropy() if loss is None else loss
    return evaluate_feed(network, feed, objective, int(batch_size), flip, classes)


def evaluate_feed(
    network: Sequential,
    feed: Feed,
    loss: Any,
    batch_size: int,
    flip: bool = False,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """As `evaluate`; nothing is read from the device before the last batch is on its way."""
    xp, n = feed.xp, feed.count
    predicted, true = xp.empty(n, np.int64), xp.empty(n, np.int64)
    losses: list[Array] = []
    hits: list[Array] = []
    outputs: Any = None
    feed.set_order(None)
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        X, labels = feed.batch(start, stop)
        outputs = network.forward(X, retain_derived=False)
        if flip:
            mirrored = network.forward(xp.ascontiguousarray(X[:, :, ::-1]), retain_derived=False)
            outputs = (outputs + mirrored) * outputs.dtype.type(0.5)
        true[start:stop] = labels
        losses.append(loss.loss(labels, outputs))
        predicted[start:stop] = chosen = outputs.argmax(axis=1)
        hits.append((chosen == labels).sum())
    values = backend.to_cpu(xp.stack(losses)).astype(np.float64)
    if getattr(loss, "reduction", "mean") == "mean":
        last = n - (len(losses) - 1) * batch_size
        values *= np.array([batch_size] * (len(losses) - 1) + [last])
    right = int(backend.to_cpu(xp.stack(hits)).sum())
    names = map(str, range(outputs.shape[1])) if classes is None else classes
    return Evaluation(
        float(values.sum()) / n,
        right / n,
        backend.to_cpu(predicted),
        backend.to_cpu(true),
        tuple(names),
    )
