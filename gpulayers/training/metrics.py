"""How good a classifier is: accuracy, confusion matrix, precision and recall of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import DTypeError, ParameterError, ShapeError

__all__ = ["ClassScore", "accuracy", "confusion_matrix", "markdown_table", "per_class"]


def accuracy(labels: Array, predicted: Array) -> float:
    """Return the share of examples whose predicted class is right.

    Parameters
    ----------
    labels, predicted : (n,) integer arrays, n >= 1

    Raises
    ------
    ShapeError
        If the shapes differ, are not (n,), or n is 0.
    DTypeError
        If the arrays are not integer.
    """
    labels, predicted = _checked("accuracy", labels, predicted)
    return float((labels == predicted).mean())


def confusion_matrix(labels: Array, predicted: Array, classes: int | None = None) -> np.ndarray:
    """Return counts (classes, classes): row = true class, column = predicted class.

    Parameters
    ----------
    labels, predicted : (n,) integer arrays, n >= 1
    classes : int, optional
        By default one more than the largest class that occurs.

    Raises
    ------
    ShapeError, DTypeError
        As `accuracy`.
    ParameterError
        If a class is outside 0 .. classes - 1.
    """
    labels, predicted = _checked("confusion_matrix", labels, predicted)
    low, high = min(labels.min(), predicted.min()), max(labels.max(), predicted.max())
    if classes is None:
        classes = int(high) + 1
    if low < 0 or high >= classes:
        raise ParameterError(
            f"confusion_matrix: classes must be in 0..{classes - 1}, got {low}..{high}"
        )
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class: precision = TP / (TP + FP), recall = TP / (TP + FN), F1 their harmonic
    mean (van Rijsbergen, "Information retrieval", 1979); 0 where a denominator is 0."""

    name: str
    examples: int
    precision: float
    recall: float
    f1: float


def per_class(confusion: np.ndarray, names: Sequence[str] | None = None) -> list[ClassScore]:
    """Return the score of each class from a confusion matrix (rows = true classes).

    Raises
    ------
    ShapeError
        If the matrix is not square or the number of names differs.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ShapeError(f"per_class: expected a square matrix, got shape {confusion.shape}")
    names = [str(i) for i in range(len(confusion))] if names is None else list(names)
    if len(names) != len(confusion):
        raise ShapeError(f"per_class: expected {len(confusion)} names, got {len(names)}")
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores: list[ClassScore] = []
    for i, name in enumerate(names):
        precision = float(right[i] / said[i]) if said[i] else 0.0
        recall = float(right[i] / true[i]) if true[i] else 0.0
        total = precision + recall
        f1 = 2.0 * precision * recall / total if total else 0.0
        scores.append(ClassScore(name, int(true[i]), precision, recall, f1))
    return scores


def markdown_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; columns after the first are right-aligned."""
    text = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[c]) for row in text)) for c in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(text[0]), line(rule), *(line(row) for row in text[1:])])


def _checked(name: str, labels: Array, predicted: Array) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = backend.to_cpu(labels), backend.to_cpu(predicted)
    if labels.ndim != 1 or labels.shape != predicted.shape or labels.size == 0:
        raise ShapeError(
            f"{name}: labels and predicted must both have shape (n,) with n >= 1, got "
            f"{labels.shape} and {predicted.shape}"
        )
    if labels.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: expected integer arrays, got {labels.dtype} and {predicted.dtype}"
        )
    return labels, predicted
