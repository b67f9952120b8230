"""Floats that are not on the scale of the training are told, once, where a user gives them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from gpulayers import plot
from gpulayers.errors import ImageScaleWarning
from gpulayers.layers import Conv2D, Flatten, FullyConnected
from gpulayers.models import Pixels, Sequential, mlp, scale
from gpulayers.training import (
    Dataset,
    LazyImages,
    Split,
    Trainer,
    evaluate,
    find_learning_rate,
    make_transform,
)

BYTES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
BYTES[:, 0, :2] = [[0], [255]]
LABELS = np.arange(40) % 3
MEAN, STD = [127.0], [74.0]


def network(trained: bool = True) -> Sequential:
    """As a Trainer leaves one that saw bytes."""
    net = Sequential([Conv2D(2, (3, 3)), Flatten(), FullyConnected(3)], name="net")
    if trained:
        net.pixels = Pixels(MEAN, STD)
    net.forward(BYTES[:1], False)
    return net


def floats(kind: str) -> np.ndarray:
    X = BYTES.astype(np.float32)
    right = (X - MEAN[0]) / STD[0]
    rng = np.random.default_rng(1)
    return {
        "1": X / 255,
        "255": X,
        "bytes twice": X / 255 / 255,
        "far": right * 100,
        "shifted": right + 5,
        "raised": right + 2.5,
        "one high": right + 50 * (np.arange(36) == 9).reshape(6, 6, 1),
        "one low": right - 50 * (np.arange(36) == 9).reshape(6, 6, 1),
        "right": right,
        "noisy": right + rng.normal(0, 0.5, X.shape),
        "attacked": right + 0.3 * np.sign(rng.normal(0, 1, X.shape)),
        "bright": right[right.mean(axis=(1, 2, 3)).argmax()][None].clip(0.1)
        * np.ones((40, 1, 1, 1)),
        "white": np.full_like(right, (255 - MEAN[0]) / STD[0]),
        "black": np.full_like(right, -MEAN[0] / STD[0]) - 1e-6,
        "fog": (X // 8 + 130 - MEAN[0]) / STD[0],
        "nan": right * np.nan,
    }[kind].astype(np.float32)


TOLD = {
    "1": r"float32 from 0 to 1, .*\(255 \* images\)\.round\(\)\.astype\('uint8'\)",
    "255": r"float32 from 0 to 255, .*: images\.round\(\)\.astype\('uint8'\)",
    "bytes twice": "from 0 to 1, ",
    "far": "on another scale",
    "shifted": "on another scale",
    "raised": "on another scale",
    "one high": "on another scale",
    "one low": "on another scale",
}
CALLS: dict[str, tuple[str, Any]] = {
    "evaluate": ("evaluate", lambda net, X: evaluate(net, Split(X, LABELS))),
    "predict": ("net.predict", lambda net, X: net.predict(X)),
    "predict_classes": ("net.predict", lambda net, X: net.predict_classes(X)),
    "saliency": ("saliency", lambda net, X: plot.saliency(net, X[0])),
    "feature_maps": ("feature_maps", lambda net, X: plot.feature_maps(net, X[0])),
    "worst_mistakes": ("net.predict", lambda net, X: plot.worst_mistakes(net, X, LABELS)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["1", "255"])
def test_floats_for_a_network_of_bytes_are_told(call: str, kind: str) -> None:
    if call in ("saliency", "feature_maps", "worst_mistakes"):
        pytest.importorskip("matplotlib")
    owner, run = CALLS[call]
    with pytest.warns(ImageScaleWarning, match=f"^{owner}: the images are {TOLD[kind]}") as told:
        run(network(), floats(kind))
    assert len(told) == 1 and told[0].filename == __file__  # the user's line, not ours
    run(network(), BYTES if call != "worst_mistakes" else floats("right"))  # warnings are errors


@pytest.mark.parametrize("kind", TOLD)
def test_scales_that_are_told(kind: str) -> None:
    for dtype in ("float32", "float64", "float16"):
        with pytest.warns(ImageScaleWarning, match=TOLD[kind].replace("float32", dtype)):
            network().predict(floats(kind).astype(dtype))
    brain = pytest.importorskip("ml_dtypes").bfloat16
    with pytest.warns(ImageScaleWarning, match=TOLD[kind].replace("float32", "bfloat16")):
        network().predict(floats(kind).astype(brain))


@pytest.mark.parametrize(
    "kind", ["right", "noisy", "attacked", "bright", "white", "black", "fog", "nan"]
)
def test_standardised_floats_are_not(kind: str) -> None:
    X = floats(kind)
    for n in (1, 40):
        network().predict(X[:n])
    if kind != "nan":
        evaluate(network(), Split(X, LABELS))
    network().predict(X[:0])


@pytest.mark.parametrize("kind", [*TOLD, "right"])
def test_nothing_is_told_where_nothing_is_known(kind: str) -> None:
    """A network without a standardisation may have learned from any floats; `forward` takes what it
    gets."""
    X = floats(kind)
    network(trained=False).predict(X)
    evaluate(network(trained=False), Split(X, LABELS))
    net = network()
    net.forward(X)
    net.backward(np.ones((40, 3), np.float32))


def test_it_is_told_once_a_line() -> None:
    net = network()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for X in floats("1"):
            net.predict(X[None])
        assert len(told) == 1
        net.predict(floats("255"))  # another line, and another mistake
        assert len(told) == 2


def test_a_gpu_is_waited_for_once(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = scale.sample_of
    monkeypatch.setattr(scale, "sample_of", lambda X: looks.append(len(X)) or real(X))
    net = network().to(backend.name if backend.name in ("numpy", "cupy") else "cupy")
    X = backend.asarray(floats("right"))
    for _ in range(3):
        net.predict(X)
    on_host = isinstance(X, np.ndarray)
    assert len(looks) == (3 if on_host else 1)


# ---------------------------------------------------------------------------------------- training


def dataset(images: Any) -> Dataset:
    return Dataset("made", Split(images, LABELS), Split(images, LABELS), ("a", "b", "c"))


def trainer(images: Any, **more: Any) -> Trainer:
    net = mlp(3, (6, 6, 1), hidden=(4,))
    return Trainer(net, dataset(images), 8, 1, progress=False, device="cpu", **more)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("255", r"float32 from 0 to 255, .*standardised: images\.astype\('uint8'\)$"),
        ("far", r"float32 from -172 to 173, .*standardised: or divide the floats"),
        ("bytes twice", r"float32 from 0 to 0.00392, .*or divide the floats"),
    ],
)
def test_training_images_far_from_one_are_told(kind: str, words: str) -> None:
    with pytest.warns(
        ImageScaleWarning, match=f"^Trainer: the training images are {words}"
    ) as told:
        trainer(floats(kind))
    assert len(told) == 1 and told[0].filename == __file__
    net = mlp(3, (6, 6, 1), hidden=(4,))
    with pytest.warns(ImageScaleWarning, match="^find_learning_rate: the training images"):
        find_learning_rate(net, dataset(floats(kind)), steps=10, batch_size=8)


@pytest.mark.parametrize("kind", ["1", "right", "noisy", "shifted"])
def test_training_on_floats_about_one_says_nothing(kind: str) -> None:
    run = trainer(floats(kind))
    run.fit()
    evaluate(run.network, run.data)
    run.network.predict(floats(kind))
    few = np.zeros_like(BYTES, np.float32)
    few[:, 2, 2] = 1.0  # sparse, and as it should be
    trainer(few)
    trainer(few * 0)


def test_training_never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are standardised, and varied as floats, without a look at the numbers."""

    def look(*_: Any) -> Any:
        raise AssertionError("the training looked at the images")

    monkeypatch.setattr(scale, "sample_of", look)
    run = trainer(BYTES, transform=make_transform("cutout(2), mixup(0.2)"))
    run.fit()
    assert run.network.pixels.standardises and len(run.history) == 1


def test_few_images_of_files_are_read() -> None:
    read: list[int] = []

    class Counted(LazyImages):
        shape, dtype, finite = (40, 6, 6, 1), np.dtype(np.float32), True

        def read(self, indices: np.ndarray) -> np.ndarray:
            read.append(len(indices))
            return floats("255")[indices]

    split = Split(Counted(), LABELS)
    read.clear()
    with pytest.warns(ImageScaleWarning, match="from 0 to 255"):
        Trainer(network(), Dataset("f", split, split, ("a", "b", "c")), progress=False)
    assert sum(read) <= 20
    read.clear()
    with pytest.warns(ImageScaleWarning, match="from 0 to 255"):
        evaluate(network(), split)
    assert sum(read) <= 40 + 20  # all once, and those that were looked at
