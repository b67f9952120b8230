"""Transforms of batches: what they do, from which random numbers, and what they leave alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as gl_backend
from gpulayers import random
from gpulayers.errors import DTypeError, NotInitializedError, ParameterError, ShapeError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Pixels
from gpulayers.training import (
    Compose,
    Cutout,
    MixedLabels,
    MixedLoss,
    Mixup,
    Normalize,
    RandomCrop,
    RandomFlip,
    Split,
    make_transform,
)
from gpulayers.training.mixed import _symmetric_beta
from tests.conftest import Backend

EVERY = "crop(3, mode='reflect'), flip, cutout(5), mixup(0.4)"


def images(n: int = 40, rows: int = 7, cols: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 256, (n, rows, cols, channels), np.uint8)


def varied(transform: Any, X: np.ndarray, backend: Backend, seed: int = 3) -> tuple[Any, Any]:
    labels = backend.asarray(np.arange(len(X)))
    Y, labels = transform(backend.asarray(X), labels, random.Generator(seed))
    return backend.asnumpy(Y), labels


# ------------------------------------------------------------------------------------- each of them


def test_crop_is_a_window_of_the_padded_image(backend: Backend) -> None:
    X = images()
    Y, _ = varied(RandomCrop(2, fill=0), X, backend)
    assert Y.shape == X.shape and Y.dtype == np.uint8
    padded = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = set()
    for k in range(len(X)):
        places = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if (padded[k, i : i + 7, j : j + 5] == Y[k]).all()
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {i for i, _ in found} == {j for _, j in found} == {0, 1, 2, 3, 4}


def test_crop_to_a_size(backend: Backend) -> None:
    X = images()
    assert varied(RandomCrop(0, 4), X, backend)[0].shape == (40, 4, 4, 3)
    assert varied(RandomCrop(3, (13, 11)), X, backend)[0].shape == (40, 13, 11, 3)
    whole, _ = varied(RandomCrop(0), X, backend)
    np.testing.assert_array_equal(whole, X)
    with pytest.raises(ShapeError, match="14 x 11 does not fit images of 7 x 5 with 3 pixels"):
        varied(RandomCrop(3, (14, 11)), X, backend)
    for padding, size in ((5, None), (4, (7, 4)), (4, (4, 5))):  # a corner's window shows no pixel
        crop = RandomCrop(padding, size)
        for call in (
            lambda c=crop: varied(c, X, backend),
            lambda c=crop: c.output_shape((7, 5, 3)),
        ):
            with pytest.raises(ShapeError, match=f"padding must be less than {padding}"):
                call()
    assert varied(RandomCrop(5, mode="reflect"), X, backend)[0].all()  # no border: shown mirrored
    assert RandomCrop(4).output_shape((7, 5, 3)) == (7, 5, 3)


def test_flip(backend: Backend) -> None:
    X = images(200)
    Y, _ = varied(RandomFlip(0.25), X, backend)
    mirrored = (X[:, :, ::-1] == Y).all(axis=(1, 2, 3))
    assert (mirrored | (Y == X).all(axis=(1, 2, 3))).all()
    assert 30 < mirrored.sum() < 70
    for p, want in ((0, X), (1.0, X[:, :, ::-1])):
        np.testing.assert_array_equal(varied(RandomFlip(p), X, backend)[0], want)


def test_cutout(backend: Backend) -> None:
    X = images(300)
    Y, _ = varied(Cutout(3, fill=0), X, backend)
    hidden = (Y == 0).all(axis=3)
    assert ((Y == X) | (Y == 0)).all()
    centres_rows = set()
    for mask in hidden:
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[np.ix_(rows, cols)].all()  # a rectangle
        assert 2 <= len(rows) <= 3 and 2 <= len(cols) <= 3  # cut where it reaches over the edge
        centres_rows.add((int(rows[0]), len(rows)))
    assert len(centres_rows) == 7  # every row is the centre of some square
    _, _ = varied(Cutout(100, fill=7), X, backend)
    assert (varied(Cutout(100, fill=7), X, backend)[0] == 7).all()


def test_cutout_leaves_the_mean(backend: Backend) -> None:
    """Without a fill the square is 0 after normalisation, as in the paper."""
    X = images()
    chain = make_transform("normalize(100, 50), cutout(3)")
    assert chain is not None
    Y, _ = varied(chain, X, backend)
    assert Y.dtype == np.float32
    cut = (Y == 0).all(axis=3)
    assert 4 <= cut.sum() / len(X) <= 9
    np.testing.assert_allclose(Y[~cut], (X[~cut] - 100.0) / 50.0, atol=1e-5)


def test_mixup(backend: Backend) -> None:
    X = images().astype("float32")
    Y, mixed = varied(Mixup(1.0), X, backend)
    assert isinstance(mixed, MixedLabels) and 0 < mixed.weight < 1
    first, second = backend.asnumpy(mixed.first), backend.asnumpy(mixed.second)
    assert first.tolist() == list(range(40)) == sorted(second.tolist()) and (first != second).any()
    w = mixed.weight
    np.testing.assert_allclose(Y, w * X + (1 - w) * X[second], rtol=1e-6)
    with pytest.raises(DTypeError, match="expected floating images, got uint8"):
        varied(Mixup(), images(), backend)


@pytest.mark.parametrize("alpha", [0.05, 0.4, 3.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    """Kolmogorov-Smirnov against NumPy's own Beta; 1.95 / sqrt(n / 2) is the 0.1 % point."""
    generator, n = random.Generator(8), 1500
    drawn = np.sort([_symmetric_beta(generator, alpha) for _ in range(n)])
    other = np.sort(np.random.default_rng(1).beta(alpha, alpha, n))
    both = np.concatenate([drawn, other])
    distance = abs(
        np.searchsorted(drawn, both, side="right") - np.searchsorted(other, both, side="right")
    ).max()
    assert distance / n < 1.95 * math.sqrt(2 / n)
    assert drawn[0] >= 0 and drawn[-1] <= 1


def test_normalize(backend: Backend) -> None:
    X = images()
    split = Split(X, np.arange(40) % 4)
    Y, _ = varied(Normalize.fit(split), X, backend)
    wide = X.astype(np.float64)
    want = (wide - wide.mean(axis=(0, 1, 2))) / wide.std(axis=(0, 1, 2))
    np.testing.assert_allclose(Y, want, atol=2e-6)
    pixels = Pixels(*(a.tolist() for a in (wide.mean(axis=(0, 1, 2)), wide.std(axis=(0, 1, 2)))))
    assert abs(Y - backend.asnumpy(pixels(backend.asarray(X), np.float32))).max() < 1e-6
    floats, _ = varied(Normalize(2.0, 4.0), X.astype("f8"), backend)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, (wide - 2) / 4, rtol=1e-6)
    with pytest.raises(ShapeError, match="Normalize: its mean and std are of 2 channels"):
        varied(Normalize([1, 2], [1, 1]), X, backend)


# ----------------------------------------------------------------------------------------- together


def test_the_same_bits_on_every_backend(backend: Backend) -> None:
    X = images()
    chain = make_transform(EVERY)
    assert chain is not None and chain.mixes
    Y, mixed = varied(chain, X, backend)
    with gl_backend.use_backend("numpy"):
        want, labels = chain(X, np.arange(40), random.Generator(3))
    assert Y.tobytes() == want.tobytes()
    np.testing.assert_array_equal(backend.asnumpy(mixed.second), labels.second)
    assert mixed.weight == labels.weight
    other, _ = varied(chain, X, backend, seed=4)
    assert (other != Y).any()


def test_nothing_waits_for_the_device(emulated: Backend) -> None:
    chain = make_transform(["crop(2, fill=[1, 2, 3])", "flip", "cutout(2)", "mixup"])
    assert chain is not None
    X, labels = emulated.asarray(images()), emulated.asarray(np.arange(40))
    chain(X, labels, random.Generator(1))  # small constants go to the device once
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        chain(X, labels, random.Generator(2))


def test_the_batch_itself_is_not_touched(backend: Backend) -> None:
    X = images()
    before = X.copy()
    if backend.library == "numpy":
        X.flags.writeable = False
    labels = backend.asarray(np.arange(40))
    given = backend.asarray(X)
    for spec in ("crop(4)", "crop(9, mode='reflect')", "flip(1)", "cutout(3)", EVERY):
        chain = make_transform(spec)
        assert chain is not None
        chain(given, labels, random.Generator(0))
        chain(given.astype("f4"), labels, random.Generator(0))
    np.testing.assert_array_equal(backend.asnumpy(given), before)
    np.testing.assert_array_equal(backend.asnumpy(labels), np.arange(40))


@pytest.mark.parametrize("n", [0, 1])
def test_no_image_and_one(n: int, backend: Backend) -> None:
    chain = make_transform(EVERY)
    assert chain is not None
    Y, mixed = varied(chain, images(n, 1, 1, 1), backend)
    assert Y.shape == (n, 1, 1, 1) and mixed.first.shape == mixed.second.shape == (n,)


def test_bytes_are_normalised_where_floats_are_wanted(backend: Backend) -> None:
    X = images(4)
    plain = make_transform("flip(0), mixup(1)")
    assert plain is not None
    Y, mixed = varied(plain, X, backend)
    w, order = mixed.weight, backend.asnumpy(mixed.second)
    np.testing.assert_allclose(Y, (w * X + (1 - w) * X[order]) / 255, rtol=1e-5)
    own = Compose(plain.transforms, lambda X: X.astype("float64") - 1)
    Y, _ = varied(own, X, backend)
    assert Y.dtype == np.float64
    np.testing.assert_allclose(Y, w * X + (1 - w) * X[order] - 1.0, rtol=1e-12)


class OwnTransform:
    """No subclass, and no repr of its own."""

    def __call__(self, X: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
        return X + generator.integers(1, 9, (1,), np), labels


def test_a_transform_of_ones_own(numpy_backend: Backend) -> None:
    chain = make_transform([OwnTransform(), "flip"])
    assert chain is not None and chain.output_shape((3, 4, 5)) == (3, 4, 5)
    Y, _ = varied(chain, np.zeros((3, 2, 2, 1)), numpy_backend)
    assert Y.min() == Y.max() >= 1


def test_specifications() -> None:
    assert make_transform(None) is make_transform("") is make_transform([]) is None
    chain = make_transform("crop(4, (8, 6)), RandomFlip(p=0.3),cutout(8) , mixup(0.2)")
    assert chain is not None
    text = repr(chain)
    assert text == (
        "Compose([RandomCrop(padding=4, size=(8, 6), mode='constant', fill=0), "
        "RandomFlip(p=0.3), Cutout(size=8, fill=None), Mixup(alpha=0.2)])"
    )
    inner = text.removeprefix("Compose([").removesuffix("])")
    assert repr(make_transform(inner)) == text
    assert make_transform(chain) is chain
    assert repr(make_transform(Mixup(1))) == "Compose([Mixup(alpha=1.0)])"
    own = Compose([lambda X, y, g: (X, y), RandomFlip(), OwnTransform()])
    assert "0x" not in repr(own) and "OwnTransform" in repr(own) and "<lambda>" in repr(own)
    assert len(make_transform([RandomFlip(), "crop, flip"]).transforms) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_transform("crp(4)"), "unknown transform 'crp'.*mean 'crop'"),
        (lambda: make_transform("crop(4),,flip"), "expected a name"),
        (lambda: make_transform("crop(4"), "cannot read"),
        (lambda: make_transform("crop(padding=-1)"), "padding must be an integer >= 0, got -1"),
        (lambda: make_transform("crop(paddin=1)"), "unknown argument 'paddin'.*mean 'padding'"),
        (lambda: make_transform(3), "expected a text or transforms, got 3"),
        (lambda: RandomCrop(1.5), "padding must be an integer"),  # type: ignore[arg-type]
        (lambda: RandomCrop(size=(1, 2, 3)), r"a number or \(rows, cols\)"),
        (lambda: RandomCrop(size=0), "size must be an integer >= 1"),
        (lambda: RandomCrop(mode="edge"), "'constant' or 'reflect', got 'edge'"),
        (lambda: RandomCrop(fill=float("nan")), "fill must be a finite number"),
        (lambda: RandomFlip(1.1), r"p must be in \[0.0, 1.0\]"),
        (lambda: Cutout(0), "size must be an integer >= 1"),
        (lambda: Mixup(0), "alpha must be in"),
        (lambda: Mixup(math.inf), "alpha must be a finite"),
        (lambda: Normalize(0, 0), "positive stds"),
        (lambda: Normalize([0, 0], [1]), "as many finite means"),
        (lambda: Compose([1]), "expected transforms, got 1"),
        (lambda: make_transform("mixup, flip"), "only the last transform may mix"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make()


def test_bad_batches() -> None:
    generator, y = random.Generator(0), np.arange(2)
    for chain in (RandomCrop(), RandomFlip(), Cutout()):
        with pytest.raises(ShapeError, match=r"\(n, rows, cols, channels\), got \(2, 3\)"):
            chain(np.zeros((2, 3)), y, generator)
    with pytest.raises(ShapeError, match="2 images need as many labels"):
        Mixup()(np.zeros((2, 3, 3, 1)), np.arange(3), generator)
    with pytest.raises(ShapeError, match="fill has 2 channels"):
        RandomCrop(1, fill=(1, 2))(np.zeros((2, 3, 3, 1)), y, generator)
    with pytest.raises(ParameterError, match=r"integers in 0..255, got \[300\]"):
        RandomCrop(1, fill=[300])(np.zeros((2, 3, 3, 1), np.uint8), y, generator)


# ------------------------------------------------------------------------- the loss of mixed labels


def one_hot_loss(logits: np.ndarray, mixed: MixedLabels) -> tuple[float, np.ndarray]:
    """Mean cross-entropy against blended one-hot rows, and its gradient, in float64."""
    n, classes = logits.shape
    eye = np.eye(classes)
    target = mixed.weight * eye[mixed.first] + (1 - mixed.weight) * eye[mixed.second]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-(target * np.log(p)).sum() / n), (p - target) / n


def test_mixed_loss(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(6, 4))
    first, second = rng.integers(0, 4, (2, 6))
    want, gradient = one_hot_loss(Z, MixedLabels(first, second, 0.3))
    mixed = MixedLabels(backend.asarray(first), backend.asarray(second), 0.3)
    objective = MixedLoss(SoftmaxCrossEntropy())
    with pytest.raises(NotInitializedError, match="forward pass first"):
        objective.backward()
    z = backend.asarray(Z)
    for value in (objective.forward(mixed, z), objective.loss(mixed, z), objective(mixed, z)):
        assert value.shape == () and isinstance(value, backend.xp.ndarray)
        assert float(value) == pytest.approx(want, rel=1e-12)
    np.testing.assert_allclose(backend.asnumpy(objective.backward()), gradient, atol=1e-14)
    plain = SoftmaxCrossEntropy()
    assert float(objective.loss(mixed.first, z)) == float(plain.loss(mixed.first, z))
    assert float(objective.forward(mixed.second, z)) == float(plain.forward(mixed.second, z))
    np.testing.assert_array_equal(
        backend.asnumpy(objective.backward()), backend.asnumpy(plain.backward())
    )


def test_mixed_labels() -> None:
    a, b = np.array([1, 2, 3]), np.array([3, 2, 1])
    assert MixedLabels(a, b, 0.5).main is a and MixedLabels(a, b, 0.49).main is b
    part = MixedLabels(a, b, 0.25)[1:]
    assert part.first.tolist() == [2, 3] and part.second.tolist() == [2, 1] and len(part) == 2
    assert part.weight == 0.25 and part.shape == (2,) and "weight=0.25" in repr(part)
    with pytest.raises(ShapeError, match=r"must be alike, got \(3,\), \(2,\)"):
        MixedLabels(a, b[:2], 0.5)
    with pytest.raises(ParameterError, match="weight must be in"):
        MixedLabels(a, b, 1.5)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (6, 5, 3), (5, 3), (0, 6, 5, 3), (4, 5, 0, 3)])
def test_pixels_channel_by_channel(shape: tuple[int, ...], backend: Backend) -> None:
    """The formula for each channel by itself, in the order the library has it, bit for bit."""
    X = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, std = [100.0, 3.5, 200.25], [50.0, 1.25, 7.0]
    for view in (X, X[..., ::-1], np.asfortranarray(X)):
        got = backend.asnumpy(Pixels(mean, std)(backend.asarray(view), np.float32))
        assert got.shape == shape and got.dtype == np.float32
        for c in range(3):
            scale, shift = np.float32(1 / std[c]), np.float32(mean[c] / std[c])
            np.testing.assert_array_equal(got[..., c], view[..., c] * scale - shift)
