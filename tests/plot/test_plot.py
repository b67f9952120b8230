"""What the pictures say: axes, labels, data. How they look was looked at."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, losses, models, modules, plot
from gpulayers.errors import DataError, NotInitializedError, ParameterError, ShapeError
from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected
from gpulayers.models import Residual, Sequential
from gpulayers.plot.weights import input_gradient
from gpulayers.training import Epoch, History, confusion_matrix, plot_curves

pytest.importorskip("matplotlib")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu.json"


def png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    return out.getvalue()


def texts(figure: Any) -> list[str]:
    """Every word in the picture."""
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


@pytest.fixture
def history() -> History:
    epochs = [
        Epoch(k, 1 / k, 0.6 + 0.1 * k, 0.9 / k, v, 0.01, 1.0, 1.0)
        for k, v in ((1, 0.75), (2, 0.95), (3, 0.9))
    ]
    return History(epochs, list(np.linspace(2, 0.3, 300)))


@pytest.fixture
def network() -> Sequential:
    chain = [
        Conv2D(5, 3, pad=1, act_fn="ReLU"),
        BatchNorm2D(),
        Residual([Conv2D(5, 1)]),
        Flatten(),
        Dropout(0.5),
        FullyConnected(4),
    ]
    net = Sequential(chain, name="small")
    net.forward(images(2), False)
    return net


def images(n: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(n)
    return rng.standard_normal((n, 7, 6, channels)).astype(np.float32)


# ----------------------------------------------------------------------------------------- curves


def test_training_curves(history: History) -> None:
    figure = plot.training_curves(history, "a run")
    loss, accuracy = figure.axes
    assert loss.get_yscale() == "log" and loss.get_ylabel() == "cross-entropy (nats)"
    assert accuracy.get_ylabel() == "right (%)" and loss.get_xlabel() == "epoch"
    lines = {line.get_label(): line for line in loss.get_lines()}
    np.testing.assert_allclose(lines["validation"].get_xydata(), [(1, 0.9), (2, 0.45), (3, 0.3)])
    np.testing.assert_allclose(lines["training"].get_ydata(), [1, 1 / 2, 1 / 3])
    steps = lines["training, steps"].get_xydata()
    assert len(steps) == 298 and steps[-1, 0] == 3 and steps[0, 1] == pytest.approx(1.994, abs=1e-3)
    shown = {line.get_label(): line for line in accuracy.get_lines()}
    np.testing.assert_allclose(shown["validation"].get_ydata(), [75, 95, 90])
    named = plot.training_curves(history, held_out="test").axes[0].get_lines()
    assert "test" in {line.get_label() for line in named}
    assert "best: 95.00 %, epoch 2" in texts(figure) and "a run" in texts(figure)
    assert lines["validation"].get_marker() != lines["training"].get_marker()  # without colour, too


def test_curves_of_short_runs(history: History, tmp_path: Path) -> None:
    png(plot.training_curves(History()))
    one = plot.training_curves(History(history.epochs[:1], [1.0]))
    assert one.axes[1].get_lines()[0].get_xdata().tolist() == [1]
    path = plot_curves(history, tmp_path / "new" / "curves.png", "title")
    assert path.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------- weights


def test_filters(network: Sequential) -> None:
    W = network.parameters["0.W"]
    figure = plot.filters(network)
    pictures = [axes.get_images()[0] for axes in figure.axes[:5]]
    for k, shown in enumerate(pictures):
        np.testing.assert_allclose(shown.get_array(), W[:, :, 0, k], rtol=1e-6)
        assert shown.get_clim() == pytest.approx((-np.abs(W).max(), np.abs(W).max()))
    assert "0 Conv2D: 5 filters of 3 x 3" in texts(figure) and "weight" in texts(figure)
    several = plot.filters(network[2].body[0], most=3)
    mean = network.parameters["2.body.0.W"].mean(axis=2)
    np.testing.assert_allclose(several.axes[2].get_images()[0].get_array(), mean[..., 2], rtol=1e-5)
    assert "weight, mean of 5 channels" in texts(several)
    assert "Conv2D: 3 of 5 filters of 1 x 1" in texts(several)


def test_filters_in_colour() -> None:
    conv = Conv2D(9, 2)
    with pytest.raises(NotInitializedError):
        plot.filters(conv)
    conv.forward(images(1, 3))
    figure = plot.filters(conv)
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown.shape == (2, 2, 3) and shown.min() >= 0 and shown.max() <= 1
    assert np.abs(shown - 0.5).max() == pytest.approx(0.5)
    with pytest.raises(ParameterError, match="expected a Conv2D"):
        plot.filters(FullyConnected(2))
    with pytest.raises(ParameterError, match="most must be an integer >= 1"):
        plot.filters(conv, 0)


def test_feature_maps(network: Sequential) -> None:
    image = images(3)[1]
    figure = plot.feature_maps(network, image, most=4)
    Y = network[0].forward(image[None], False)
    Z = network[2].forward(network[1].forward(Y, False), False)
    grid = np.array(figure.axes[: 4 * 5]).reshape(4, 5)
    np.testing.assert_allclose(grid[1, 2].get_images()[0].get_array(), Y[0, :, :, 1], rtol=1e-5)
    np.testing.assert_allclose(grid[3, 4].get_images()[0].get_array(), Z[0, :, :, 3], rtol=1e-5)
    assert grid[1, 1].get_images()[0].get_clim() == pytest.approx((Y.min(), Y.max()))
    words = texts(figure)
    assert "0 Conv2D\n7 x 6 x 5\n4 of 5 drawn" in words and "input\n7 x 6 x 1" in words
    inner = plot.feature_maps(network, image, ["2.body.0"])
    assert "2.body.0 Conv2D\n7 x 6 x 5" in texts(inner)
    with pytest.raises(ParameterError, match=r"no layer '2.body.1'.*did you mean '2.body.0'"):
        plot.feature_maps(network, image, ["2.body.1"])
    with pytest.raises(ShapeError, match=r"expected one image \(rows, cols, channels\)"):
        plot.feature_maps(network, images(2))
    with pytest.raises(ParameterError, match="no layer of the network has an image"):
        plot.feature_maps(models.mlp(2, (7, 6, 1)), image)


def test_the_gradient_of_saliency(network: Sequential) -> None:
    """Against central differences in float64, in evaluation: batch statistics are the running."""
    twin = Sequential(
        [Conv2D(3, 3, act_fn="Tanh"), BatchNorm2D(), Dropout(0.5), Flatten(), FullyConnected(3)]
    )
    X = images(1).astype(np.float64)
    for layer in twin:
        layer.set_params({"parameters": {}})
    from gpulayers import set_default_dtype

    set_default_dtype("float64")
    try:
        twin.forward(X, False)
    finally:
        set_default_dtype("float32")
    twin[1].parameters["running_mean"][...] = 0.3
    scores, gradient, label = input_gradient(twin, X)
    assert label == scores.argmax()
    for place in ((0, 0, 0), (3, 2, 0), (6, 5, 0)):
        step = np.zeros_like(X)
        step[(0, *place)] = 1e-6
        ahead, back = (twin.forward(X + s, False)[0, label] for s in (step, -step))
        assert gradient[place] == pytest.approx((ahead - back) / 2e-6, abs=1e-8)
    assert not any(g.any() for g in twin.gradients.values()) and twin.trainable
    assert not twin[0].X


def test_saliency(network: Sequential) -> None:
    image = (images(1)[0] * 40 + 120).astype(np.uint8)
    figure = plot.saliency(network, image, 2, ["a", "b", "c", "d"])
    X = network.pixels(image[None], np.float32)
    scores, gradient, _ = input_gradient(network, X, 2)
    shown = figure.axes[1].get_images()[0].get_array()
    np.testing.assert_allclose(shown, np.abs(gradient[..., 0]), rtol=1e-5)
    words = texts(figure)
    p = np.exp(scores)[2] / np.exp(scores).sum()
    assert f"class c: score {scores[2]:.2f}, {100 * p:.1f} %" in words
    assert "|d score / d pixel|" in words
    for label in (4, -1, True):
        with pytest.raises(ParameterError, match=r"there are the classes 0\.\.3"):
            plot.saliency(network, image, label)


# -------------------------------------------------------------------------------------- judgement


def test_confusion_matrix() -> None:
    truth, said = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 2, 1, 0, 2])
    matrix = confusion_matrix(truth, said, 4)
    figure = plot.confusion_matrix(matrix, ["ant", "bee", "cat", "dog"])
    axes = figure.axes[0]
    shares = axes.get_images()[0].get_array()
    np.testing.assert_allclose(shares[0], [200 / 3, 0, 100 / 3, 0])
    assert not shares[3].any()  # a class that does not occur
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["ant", "bee", "cat", "dog"]
    words = texts(figure)
    assert "66.67 % of 6 right" in words and "66.7 %" in words and "none" in words
    cells = {t.get_position(): t.get_text() for t in axes.texts if t.get_text().isdigit()}
    assert cells == {(0, 0): "2", (2, 0): "1", (0, 1): "1", (1, 1): "1", (2, 2): "1"}
    large = plot.confusion_matrix(np.eye(50, dtype=int))
    assert not [t for t in large.axes[0].texts if t.get_text() == "1"]
    png(large)
    with pytest.raises(ShapeError, match=r"expected counts \(k, k\)"):
        plot.confusion_matrix(np.zeros((2, 3)))
    with pytest.raises(ParameterError, match="negative"):
        plot.confusion_matrix([[-1]])


def test_worst_mistakes(network: Sequential) -> None:
    X = images(40)
    scores = network.predict(X)
    truth = np.where(np.arange(40) % 2, scores.argmax(axis=1), scores.argmin(axis=1))
    figure = plot.worst_mistakes(network, X, truth, "wxyz", most=5)
    per_image = np.array(
        [losses.SoftmaxCrossEntropy().loss(truth[[i]], scores[[i]]) for i in range(40)]
    )
    expected = np.flatnonzero(scores.argmax(axis=1) != truth)
    expected = expected[np.argsort(-per_image[expected], kind="stable")][:5]
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert len(panels) == 5 and "20 of 40 wrong: the worst 5" in texts(figure)
    low, high = X[expected].min(), X[expected].max()
    for axes, i in zip(panels, expected, strict=True):
        shown = axes.get_images()[0].get_array()
        np.testing.assert_allclose(shown, (X[i, ..., 0] - low) / (high - low), atol=1e-6)
        assert axes.get_title(loc="center") == "wxyz"[truth[i]]
        p = np.exp(scores[i]) / np.exp(scores[i]).sum()
        assert axes.get_xlabel() == f"{'wxyz'[scores[i].argmax()]}, {100 * p.max():.0f} %"
    none = plot.worst_mistakes(network, X, scores.argmax(axis=1))
    assert "no mistakes" in texts(none) and "0 of 40 wrong" in texts(none)
    with pytest.raises(ShapeError, match="expected 40 labels"):
        plot.worst_mistakes(network, X, truth[:3])
    with pytest.raises(ParameterError, match="there is no image"):
        plot.worst_mistakes(network, X[:0], truth[:0])


# ------------------------------------------------------------------------------ diagram, roofline


def test_network_diagram(network: Sequential) -> None:
    words = texts(plot.network_diagram(network, (7, 6, 1)))
    for wanted in (
        *("input", "0  Conv2D  3 x 3, ReLU", "1  BatchNorm2D", "2  Residual", "3  Flatten"),
        *("2.body.0  Conv2D  1 x 1", "4  Dropout  p = 0.5", "5  FullyConnected", "+"),
        *("7 x 6 x 1", "7 x 6 x 5", "210", f"{210 * 4 + 4:,}", "small: 934 parameters"),
    ):
        assert wanted in words, wanted
    assert "2.body  Sequential" not in words
    alone = texts(plot.network_diagram(layers.LSTM(3), (2, 5), "mine"))
    assert "mine: 72 parameters" in alone and "LSTM  Tanh" in alone
    pool = texts(plot.network_diagram(layers.Pool2D((2, 3), (1, 2)), (4, 4, 1)))
    assert "Pool2D  max, 2 x 3, stride 1 x 2" in pool
    with pytest.raises(ParameterError, match=r"^network_diagram: expected a network or a layer"):
        plot.network_diagram(3, (4, 4, 1))


def test_arrows_are_where_data_runs() -> None:
    """Not between the layers of a module, not from a body to its shortcut; rows in the order of
    the calls."""
    net = Sequential(
        [
            modules.SkipConnectionConvModule(3, 4, 3, 3, 1, 1, 1),
            Residual([Conv2D(4, 1)], [Conv2D(4, 1)]),
            Residual([Conv2D(4, 1)]),
        ]
    )
    figure = plot.network_diagram(net, (7, 6, 1))
    words = [t.get_text() for t in figure.axes[0].texts]
    inside = [w.split()[0] for w in words if w.startswith("0.")]
    paths = "conv1 batchnorm1 conv2 batchnorm2 conv_skip batchnorm_skip add3"
    assert inside == [f"0.{part}" for part in paths.split()]
    arrows = [t for t in figure.axes[0].texts if getattr(t, "arrow_patch", None)]
    lines = [t for t in arrows if t.arrow_patch.get_linewidth() == 1.5]
    assert len(lines) == 1 and words.count("+") == 1  # around the second block only
    assert len(arrows) - len(lines) == 5  # to the module, both blocks, both bodies


def test_boxes_do_not_overlap(network: Sequential) -> None:
    from matplotlib.patches import FancyBboxPatch

    figure = plot.network_diagram(network, (7, 6, 1))
    axes = figure.axes[0]
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == 8
    tops = sorted((box.get_y(), box.get_y() + box.get_height()) for box in boxes)
    assert all(a[1] < b[0] for a, b in pairwise(tops))


def test_roofline() -> None:
    figure = plot.roofline(RESULTS)
    left, names, right = figure.axes
    assert left.get_xscale() == left.get_yscale() == "log"
    assert left.get_xlabel().endswith("(FLOP/B)") and left.get_ylabel().endswith("(GFLOP/s)")
    assert right.get_xlabel() == "speed (GB/s)"
    words = " ".join(texts(figure))
    assert "LeNet training step" in words and "matrix product" in words and "Adam" in words
    assert not names.axison
    numbers = [t for t in left.texts if t.get_text().isdigit()]
    boxes = [t.get_window_extent() for t in numbers]
    assert len(numbers) == 20
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_points_of_the_roofline() -> None:
    """Two cases worked out by hand: 2 GFLOP in 10 ms, 50 MB in 2 ms."""
    cases = {
        "a": {"title": "conv", "ms": {"numpy": 20.0, "numpy plan": 10.0}, "MFLOP": 2000, "MB": 100},
        "b": {"title": "copying", "ms": {"compiled": 2.0, "torch": 5.0}, "MFLOP": 0, "MB": 50},
    }
    figure = plot.roofline({"rates": {"copy GB/s": 10.0, "GEMM GFLOP/s": 300.0}, "cases": cases})
    left, _, right = figure.axes
    points = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert points["NumPy"] == [[20.0, 200.0]] and "PyTorch" not in points
    roof = left.get_lines()[0].get_xydata()
    np.testing.assert_allclose(roof[:, 1], np.minimum(10 * roof[:, 0], 300))
    moved = {line.get_label(): line.get_xydata().tolist() for line in right.get_lines()}
    assert moved["compiled"] == [[25.0, 0.0]] and moved["PyTorch"] == [[10.0, 0.0]]
    assert [t.get_text() for t in right.get_yticklabels()] == ["copying"]
    assert "1" in texts(figure)


def test_a_file_that_is_no_benchmark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for given in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(DataError, match="cannot read"):
            plot.roofline(given)
    for wrong in ({}, {"rates": {}, "cases": {}}, {"rates": 3, "cases": {"a": {}}}):
        with pytest.raises(DataError, match="expected the results of"):
            plot.roofline(wrong)


# ------------------------------------------------------------------------------------------ around


def test_on_the_stand_in(emulated: Any) -> None:
    net = Sequential([Conv2D(3, 3, act_fn="ReLU"), Flatten(), FullyConnected(4)])
    X = emulated.asarray(images(6))
    net.forward(X, False)
    labels = emulated.asarray(np.arange(6) % 4)
    plot.filters(net)
    plot.feature_maps(net, X[0])
    plot.saliency(net, X[1])
    plot.worst_mistakes(net, X, labels, most=2)


def test_the_users_settings_stay(history: History) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot.training_curves(history)
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot.training_curves(history)


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Neither by the package, nor matplotlib and onnx by the modules that use them."""
    code = """
import sys, gpulayers
assert not [m for m in sys.modules if m.startswith(("gpulayers.", "matplotlib", "onnx"))]
import gpulayers.plot, gpulayers.interchange, gpulayers.training
late = {"matplotlib", "onnx", "onnxruntime", "torch"}
assert not late & {m.partition(".")[0] for m in sys.modules}
assert gpulayers.plot.roofline and gpulayers.interchange.export_onnx and gpulayers.summarize
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RESULTS.parents[2])
