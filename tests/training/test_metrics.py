"""Accuracy, confusion matrix, scores of each class, tables."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.training import accuracy, confusion_matrix, per_class
from gpulayers.training.metrics import markdown_table

TRUE = np.array([0, 0, 0, 1, 1, 2])
SAID = np.array([0, 1, 0, 1, 2, 1])


def test_accuracy(backend):
    assert accuracy(backend.asarray(TRUE), backend.asarray(SAID)) == 0.5
    assert accuracy(TRUE.astype(np.uint8), SAID) == 0.5


def test_confusion_matrix_counts_pairs():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    expected = np.zeros((6, 6), int)
    for t, p in zip(true, said, strict=True):
        expected[t, p] += 1
    np.testing.assert_array_equal(confusion_matrix(true, said, 6), expected)
    np.testing.assert_array_equal(confusion_matrix(TRUE, SAID), [[2, 1, 0], [0, 1, 1], [0, 1, 0]])


def test_small_label_types_do_not_overflow():
    labels = np.full(3, 200, np.uint8)
    assert confusion_matrix(labels, labels, 201)[200, 200] == 3


def test_scores_of_each_class():
    a, b, c = per_class(confusion_matrix(TRUE, SAID), ["a", "b", "c"])
    assert (a.name, a.examples, a.precision, a.recall) == ("a", 3, 1.0, pytest.approx(2 / 3))
    assert a.f1 == pytest.approx(0.8)
    assert (b.precision, b.recall, b.f1) == pytest.approx((1 / 3, 1 / 2, 0.4))
    assert (c.examples, c.precision, c.recall, c.f1) == (1, 0.0, 0.0, 0.0)
    empty = per_class(np.array([[0, 0], [0, 4]]))[0]
    assert (empty.name, empty.examples, empty.precision, empty.recall, empty.f1) == (
        "0",
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    "labels, predicted, error, words",
    [
        (TRUE, SAID[:3], ShapeError, r"\(6,\) and \(3,\)"),
        (TRUE[:0], SAID[:0], ShapeError, "n >= 1"),
        (TRUE.reshape(2, 3), SAID.reshape(2, 3), ShapeError, r"shape \(n,\)"),
        (TRUE.astype(float), SAID, DTypeError, "float64"),
        ([0, 1], SAID, DTypeError, "list"),
    ],
)
def test_bad_arrays(labels, predicted, error, words):
    for function in (accuracy, confusion_matrix):
        with pytest.raises(error, match=words):
            function(labels, predicted)


def test_bad_classes_and_matrices():
    with pytest.raises(ParameterError, match=r"0\.\.1, got 0\.\.2"):
        confusion_matrix(TRUE, SAID, 2)
    with pytest.raises(ParameterError):
        confusion_matrix(TRUE - 1, SAID, 3)
    with pytest.raises(ShapeError, match="square"):
        per_class(np.zeros((2, 3), int))
    with pytest.raises(ShapeError, match="2 names, got 1"):
        per_class(np.zeros((2, 2), int), ["a"])


def test_markdown_table():
    table = markdown_table(("name", "n"), [("a|b", 1), ("c", 200)])
    assert table.splitlines() == [
        "| name |   n |",
        "| ---- | --: |",
        "| a\\|b |   1 |",
        "| c    | 200 |",
    ]
