"""Names that are data in pictures: no formulas, not too many, not too long."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import plot
from gpulayers.errors import ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected
from gpulayers.models import Sequential
from gpulayers.plot._style import shortened, wrapped
from gpulayers.training import Epoch, History

matplotlib = pytest.importorskip("matplotlib")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu.json"
TEX = ["$5_$", "$x_2$", r"a\$b", "$"]  # no formula, a formula, one that is escaped, half of one
LONG = [
    "golden_retriever_adult_female_01",
    "golden_retriever_adult_female_02",
    "a very long name of a class in words",
    "short",
]


def drawn(figure: Any) -> list[str]:
    """The strings that matplotlib really puts into the picture."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, format="svg")
    found = re.findall(r"<text[^>]*>(.*?)</text>", out.getvalue(), re.S)
    return [re.sub(r"<[^>]*>|\s+", " ", text).strip() for text in found]


@pytest.fixture
def network() -> Sequential:
    net = Sequential([Conv2D(3, (3, 3)), Flatten(), FullyConnected(4)], name="$net_1$")
    net.predict(images(2))
    return net


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 7, 6, 1)).astype(np.float32)


class Scores:
    """What a picture needs of a network: these scores, whatever the images."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.scores[: len(X)]


@pytest.fixture(params=[{}, {"text.parse_math": False}], ids=["plain", "parse_math=False"])
def settings(request: Any) -> Any:
    with matplotlib.rc_context(request.param):
        yield


def test_names_are_no_formulas(network: Sequential, settings: None) -> None:
    words = drawn(plot.confusion_matrix(np.eye(4, dtype=int) + 1, TEX))
    assert all(words.count(name) == 2 for name in TEX), words
    truth = (network.predict(images(8)).argmax(axis=1) + 1) % 4
    words = drawn(plot.worst_mistakes(network, images(8), truth, TEX))
    assert {TEX[k] for k in truth} <= set(words), words
    assert any(word.startswith(f"{TEX[(truth[0] - 1) % 4]}, ") for word in words)
    for k, name in enumerate(TEX):
        figure = plot.saliency(network, images(1)[0], k, TEX)
        assert any(word.startswith(f"class {name}: score") for word in drawn(figure))
    assert any(w.startswith("$net_1$: ") for w in drawn(plot.network_diagram(network, (7, 6, 1))))


def test_the_words_of_a_benchmark_are_no_formulas() -> None:
    results = json.loads(RESULTS.read_text())
    results["cpu"] = "$c_1$"
    for case in results["cases"].values():
        case["title"] = "$x_2$"
    words = drawn(plot.roofline(results))
    moving = [case for case in results["cases"].values() if not case["MFLOP"]]
    assert words.count("$x_2$") == len(moving) and any(w.startswith("$c_1$, ") for w in words)
    assert sum(word.endswith(" $x_2$") for word in words) == len(results["cases"]) - len(moving)


def test_titles_may_have_formulas(network: Sequential) -> None:
    history = History([Epoch(1, 1.0, 0.5, 1.0, 0.5, 0.01, 1.0, 1.0)], [1.0])
    for figure in (
        plot.training_curves(history, "loss $x_2$"),
        plot.network_diagram(network, (7, 6, 1), "loss $x_2$"),
    ):
        assert not any("$" in word for word in drawn(figure))


def test_more_names_than_classes_are_refused(network: Sequential) -> None:
    with pytest.raises(ParameterError, match="confusion_matrix: expected at most 2 class names, "):
        plot.confusion_matrix(np.eye(2, dtype=int), ["a", "b", "c"])
    with pytest.raises(ParameterError, match=r"worst_mistakes: expected at most 4 .*, got 5"):
        plot.worst_mistakes(network, images(3), np.zeros(3, int), "abcde")
    with pytest.raises(ParameterError, match=r"saliency: expected at most 4 .*, got 5"):
        plot.saliency(network, images(1)[0], 0, "abcde")
    fewer = plot.confusion_matrix(np.eye(3, dtype=int), ["a", "b"])  # their numbers then
    assert [label.get_text() for label in fewer.axes[0].get_yticklabels()] == ["a", "b", "2"]
    assert "class 3: score" in " ".join(drawn(plot.saliency(network, images(1)[0], 3, "abc")))


@pytest.mark.parametrize("shape", [(7, 6), (28, 28), (6, 18), (24, 8), (40, 6)], ids=str)
@pytest.mark.parametrize("most", [3, 18])
@pytest.mark.parametrize("classes", [LONG, list("abcd")], ids=["long", "short"])
def test_names_of_neighbours_do_not_overlap(
    classes: list[str], most: int, shape: tuple[int, int]
) -> None:
    """Nor those above an image those below the image over it: drawn once, as to save it."""
    scores = np.random.default_rng(5).standard_normal((40, 4))
    truth = (scores.argmax(axis=1) + 1) % 4
    X = np.random.default_rng(6).random((40, *shape, 1))
    figure = plot.worst_mistakes(Scores(scores), X, truth, classes, most)
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_images()]
    shown = [(axes.title, axes.xaxis.label) for axes in panels]
    texts = [text for pair in shown for text in pair]
    boxes = [text.get_window_extent() for text in [*texts, *figure.texts]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    pictures = [axes.get_window_extent().padded(-1) for axes in panels]
    assert not any(box.overlaps(image) for box in boxes for image in pictures)


def test_tall_images_are_as_wide_as_square_ones() -> None:
    scores = np.random.default_rng(5).standard_normal((40, 4))
    truth = (scores.argmax(axis=1) + 1) % 4
    widths: list[float] = []
    for shape in ((8, 8), (14, 8)):
        X = np.random.default_rng(6).random((40, *shape, 1))
        figure = plot.worst_mistakes(Scores(scores), X, truth, most=16)
        figure.draw_without_rendering()
        widths.append(figure.axes[0].get_window_extent().width)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_long_names_beside_a_matrix_leave_room_for_it() -> None:
    figure = plot.confusion_matrix(np.eye(4, dtype=int) + 1, [name * 4 for name in LONG])
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width


def test_wrapping_and_shortening() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 7) == "abc\N{HORIZONTAL ELLIPSIS}hij"
    assert shortened("abcdefghij", 2) == "a\N{HORIZONTAL ELLIPSIS}"
    assert wrapped("short", 18) == "short"
    assert wrapped(LONG[0], 18) == "golden_retriever_\nadult_female_01"
    assert wrapped(LONG[0], 18) != wrapped(LONG[1], 18)  # their ends tell them apart
    assert wrapped("x" * 30, 18) == "x" * 18 + "\n" + "x" * 12
    for name in (*LONG, "x" * 100, "a b " * 50, "-" * 60):
        lines = wrapped(name, 18).split("\n")
        assert len(lines) <= 2 and all(0 < len(line) <= 18 for line in lines), lines
