"""Random variations of training batches: crop, flip, cutout, mixup; and normalisation.

A transform is called with a batch and a generator of random numbers, on whichever backend the batch
is. The numbers come from `gpulayers.random`, so a seed gives the same batches on NumPy and on a
GPU. It never changes the arrays it is given, and on a GPU nothing waits or crosses to the host.

    augment = make_transform("crop(4), flip, cutout(8), mixup(0.2)")
    X, labels = augment(X, labels, generator)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array, xp_of
from gpulayers.errors import DTypeError, ParameterError, ShapeError, suggest
from gpulayers.models import Pixels
from gpulayers.ops import augment
from gpulayers.random import Generator
from gpulayers.training.data import Normalizer
from gpulayers.training.mixed import MixedLabels

__all__ = [
    "Compose",
    "Cutout",
    "Mixup",
    "Normalize",
    "RandomCrop",
    "RandomFlip",
    "Transform",
    "make_transform",
]


class Transform(ABC):
    """Base class: ``transform(X, labels, generator)`` returns a varied batch.

    Attributes
    ----------
    floating : bool
        Whether it wants normalised, floating images. Before the first such transform bytes are
        normalised (see `Compose`).
    mixes : bool
        Whether the labels become `MixedLabels`.
    """

    floating = False
    mixes = False
    _settings: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        """Return the images and labels varied; the arguments keep their values.

        Parameters
        ----------
        X : (n, rows, cols, channels), uint8 or floating
        labels : (n,) integer
        generator : Generator
            Its numbers decide; it moves on.

        Raises
        ------
        GPULayersError
            If the batch does not fit the transform.
        """

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (rows, cols, channels) of an image that came in with `shape`."""
        return shape

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
        return f"{type(self).__name__}({values})"


class RandomCrop(Transform):
    """A window at a random place of the image with a border around it.

    With a border of 4 around 32 x 32 pixels, and `RandomFlip`, this is the augmentation of He et
    al., "Deep residual learning for image recognition" (2016), section 4.2.

    Parameters
    ----------
    padding : int
        Width of the border on each side.
    size : int or (rows, cols), optional
        Of the window; None is the image's own size.
    mode : {"constant", "reflect"}
        The border holds `fill`, or the image mirrored at its edge.
    fill : number or sequence of one number for each channel
        In units of the images that come in: 0 is black for bytes.

    Raises
    ------
    ParameterError
        If a value is out of range.
    ShapeError
        When called with images that are smaller, border included, than the window.
    """

    _settings = ("padding", "size", "mode", "fill")

    def __init__(
        self,
        padding: int = 4,
        size: int | Sequence[int] | None = None,
        mode: str = "constant",
        fill: float | Sequence[float] = 0,
    ) -> None:
        self.padding = _spec.integer("RandomCrop", "padding", padding, 0)
        self.size = None if size is None else _size("RandomCrop", size)
        if mode not in ("constant", "reflect"):
            raise ParameterError(
                f"RandomCrop: mode must be 'constant' or 'reflect', got {mode!r}"
                + suggest(str(mode), ("constant", "reflect"))
            )
        self.mode = mode
        self._fill = _Fill("RandomCrop", fill)

    @property
    def fill(self) -> Any:
        return self._fill.value

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.size is None else (*self.size, *shape[2:])

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        n, rows, cols, _ = _shape("RandomCrop", X)
        high, wide = self.size or (rows, cols)
        p, xp = self.padding, xp_of(X)
        if high > rows + 2 * p or wide > cols + 2 * p:
            raise ShapeError(
                f"RandomCrop: a window of {high} x {wide} does not fit images of {rows} x {cols} "
                f"with {p} pixels around them"
            )
        tops = generator.integers(-p, rows + p - high + 1, (n,), xp)
        lefts = generator.integers(-p, cols + p - wide + 1, (n,), xp)
        fill = self._fill(X)
        return augment.crop(X, tops, lefts, (high, wide), self.mode, fill), labels


class RandomFlip(Transform):
    """Each image is mirrored left to right with probability `p`.

    Parameters
    ----------
    p : float in [0, 1]

    Raises
    ------
    ParameterError
        If p is out of range.
    """

    _settings = ("p",)

    def __init__(self, p: float = 0.5) -> None:
        self.p = float(_spec.real("RandomFlip", "p", p, 0.0, 1.0))

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        n = _shape("RandomFlip", X)[0]
        chosen = generator.uniform((n,), np.float64, xp_of(X)) < self.p
        return augment.flip_columns(X, chosen), labels


class Cutout(Transform):
    """A square of each image, its centre anywhere in the image, is overwritten.

    The square may reach over the edge, which the authors found to matter: some images keep most
    of their pixels. (DeVries & Taylor, "Improved regularization of convolutional neural networks
    with cutout", 2017, section 3.2)

    Parameters
    ----------
    size : int >= 1
        Side of the square; the paper has 16 for CIFAR-10, 8 for CIFAR-100.
    fill : number or sequence of one number for each channel, optional
        In units of the images that come in. None is the paper's: the images are normalised first,
        and the square becomes 0, their mean.

    Raises
    ------
    ParameterError
        If a value is out of range.
    """

    _settings = ("size", "fill")

    def __init__(self, size: int = 8, fill: float | Sequence[float] | None = None) -> None:
        self.size = _spec.integer("Cutout", "size", size, 1)
        self._fill = _Fill("Cutout", 0 if fill is None else fill)
        self.floating = fill is None

    @property
    def fill(self) -> Any:
        return None if self.floating else self._fill.value

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        n, high, wide, _ = _shape("Cutout", X)
        rows = generator.integers(0, high, (n,), xp_of(X))
        cols = generator.integers(0, wide, (n,), xp_of(X))
        return augment.cut_squares(X, rows, cols, self.size, self._fill(X)), labels


class Mixup(Transform):
    """Each image is blended with another of the batch, and so are their labels.

    X' = w X + (1 - w) X[order] with a random order and one weight w ~ Beta(alpha, alpha) for the
    batch; the labels become ``MixedLabels(labels, labels[order], w)``, which `MixedLoss` takes.
    (Zhang et al., "mixup: beyond empirical risk minimization", 2018, section 2 and figure 1)

    Parameters
    ----------
    alpha : float > 0
        The paper has 0.1 to 0.4 for ImageNet and 1 for CIFAR-10.

    Raises
    ------
    ParameterError
        If alpha is no finite number above 0.
    DTypeError
        When called with bytes: put `Normalize` before it, or leave that to `Compose`.
    """

    floating = True
    mixes = True
    _settings = ("alpha",)

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = float(_spec.real("Mixup", "alpha", alpha, 0.0, open_low=True))

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        if X.dtype == np.uint8:
            raise DTypeError("Mixup: expected floating images, got uint8; normalise them first")
        xp = xp_of(X, labels)
        if labels.shape != X.shape[:1]:
            raise ShapeError(f"Mixup: {len(X)} images need as many labels, got {labels.shape}")
        weight = _symmetric_beta(generator, self.alpha)
        order = generator.uniform((len(X),), np.float64, xp).argsort()
        mixed = MixedLabels(labels, labels.take(order), weight)
        return augment.mix(X, order, weight), mixed


class Normalize(Transform):
    """Y = (X - mean) / std for each channel, in the default dtype; bytes and floats alike.

    Computed as ``X * (1 / std) - mean / std``, as networks treat bytes (`Sequential.pixels`).

    Parameters
    ----------
    mean, std : number, or sequence of one number for each channel
        In units of a pixel as it comes in.

    Raises
    ------
    ParameterError
        If the lengths differ, a value is not finite, or a std not positive.
    ShapeError
        When called with another number of channels.
    """

    _settings = ("mean", "std")

    def __init__(
        self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 255.0
    ) -> None:
        self._pixels = Pixels(_numbers(mean), _numbers(std))

    @classmethod
    def fit(cls, split: Any) -> Normalize:
        """Return the transform with the means and standard deviations of a split's channels."""
        channels = Normalizer.fit(split)
        return cls(channels.mean.tolist(), channels.std.tolist())

    @property
    def mean(self) -> list[float]:
        return self._pixels.mean

    @property
    def std(self) -> list[float]:
        return self._pixels.std

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        dtype = backend.default_dtype()
        if X.dtype != np.uint8:
            X = X.astype(dtype, copy=False)
        return self._pixels(X, dtype), labels


class Compose(Transform):
    """Transforms one after the other.

    Parameters
    ----------
    transforms : iterable of Transform
    normalize : function of the images, optional
        Done to bytes before the first transform that wants floating images; None divides by 255.
        A `Trainer` puts the network's own treatment here.

    Raises
    ------
    ParameterError
        If an entry is no transform, or more than one mixes labels.
    """

    def __init__(
        self, transforms: Iterable[Any], normalize: Callable[[Array], Array] | None = None
    ) -> None:
        self.transforms = list(transforms)
        for entry in self.transforms:
            if not callable(entry):
                raise ParameterError(f"Compose: expected transforms, got {entry!r}")
        mixing = [t for t in self.transforms if getattr(t, "mixes", False)]
        if mixing and (len(mixing) > 1 or mixing[0] is not self.transforms[-1]):
            raise ParameterError(
                f"Compose: only the last transform may mix labels, got {self.transforms}"
            )
        self.normalize = normalize
        self.mixes = bool(mixing)

    def __repr__(self) -> str:
        return "Compose([" + ", ".join(map(_described, self.transforms)) + "])"

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for transform in self.transforms:
            if isinstance(transform, Transform):
                shape = transform.output_shape(shape)
        return shape

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        for transform in self.transforms:
            if getattr(transform, "floating", False) and X.dtype == np.uint8:
                X = self._normalized(X)
            X, labels = transform(X, labels, generator)
        return X, labels

    def _normalized(self, X: Array) -> Array:
        if self.normalize is not None:
            return self.normalize(X)
        return _DIVIDED(X, backend.default_dtype())


_DIVIDED = Pixels()
_KNOWN: dict[str, Callable[..., Any]] = {
    "crop": RandomCrop,
    "randomcrop": RandomCrop,
    "flip": RandomFlip,
    "randomflip": RandomFlip,
    "cutout": Cutout,
    "mixup": Mixup,
    "normalize": Normalize,
}


def make_transform(spec: Any) -> Compose | None:
    """Return the transforms that `spec` describes as one.

    Parameters
    ----------
    spec : None, str, Transform, or list of str and Transform
        As text: ``"crop(4), flip, cutout(8), mixup(0.2)"``; the names are crop, flip, cutout,
        mixup and normalize, with the classes' arguments. None and "" are no transform.

    Raises
    ------
    ParameterError
        If the text cannot be read, a name is unknown (the nearest is suggested), or an argument
        does not fit.
    """
    if isinstance(spec, Compose):
        return spec
    if isinstance(spec, str):
        parts: list[Any] = _calls(spec)
    elif spec is None:
        parts = []
    elif callable(spec):
        parts = [spec]
    elif isinstance(spec, (list, tuple)):
        parts = [
            part
            for entry in spec
            for part in (_calls(entry) if isinstance(entry, str) else [entry])
        ]
    else:
        raise ParameterError(f"make_transform: expected a text or transforms, got {spec!r}")
    listed = "crop, flip, cutout, mixup, normalize"
    made = [
        _spec.build(part, _KNOWN, "make_transform", "transform", listed)
        if isinstance(part, str)
        else part
        for part in parts
    ]
    return Compose(made) if made else None


def _calls(text: str) -> list[str]:
    """Split ``"a(1, 2), b"`` at the commas outside of brackets."""
    parts: list[str] = []
    depth = start = 0
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    if len(parts) == 1 and not parts[0].strip():
        return []
    return [part.strip() for part in parts]


# --------------------------------------------------------------------------------------- details


def _described(transform: Any) -> str:
    """What a checkpoint compares: a user's function by its name, not by its address."""
    name = getattr(transform, "__qualname__", None)
    if name is None and type(transform).__repr__ is object.__repr__:
        name = type(transform).__qualname__
    return repr(transform) if name is None else str(name)


class _Fill:
    """A number, or one for each channel, as a scalar or an array of the images' kind."""

    def __init__(self, owner: str, value: Any) -> None:
        self.owner = owner
        self.value = value if isinstance(value, (int, float)) else _numbers(value)
        for number in _numbers(value):
            _spec.real(owner, "fill", number)
        self._arrays: dict[Any, Array] = {}

    def __call__(self, X: Array) -> Any:
        if isinstance(self.value, (int, float)):
            return self.value
        if len(self.value) != X.shape[-1]:
            raise ShapeError(
                f"{self.owner}: fill has {len(self.value)} channels, the images {X.shape}"
            )
        key = (xp_of(X), X.dtype)
        if key not in self._arrays:
            host = np.array(self.value)
            if (
                X.dtype == np.uint8
                and not ((host == host.round()) & (host >= 0) & (host < 256)).all()
            ):
                raise ParameterError(
                    f"{self.owner}: fill for bytes must be integers in 0..255, got {self.value}"
                )
            self._arrays[key] = xp_of(X).asarray(host.astype(X.dtype))
        return self._arrays[key]


def _numbers(value: Any) -> list[float]:
    """A number, or a sequence or array of numbers, as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _size(owner: str, size: Any) -> tuple[int, int]:
    pair = size if isinstance(size, (list, tuple)) else (size, size)
    if len(pair) != 2:
        raise ParameterError(f"{owner}: size must be a number or (rows, cols), got {size!r}")
    return _spec.integer(owner, "size", pair[0], 1), _spec.integer(owner, "size", pair[1], 1)


def _shape(owner: str, X: Array) -> tuple[int, int, int, int]:
    if X.ndim != 4:
        raise ShapeError(f"{owner}: images must be (n, rows, cols, channels), got {X.shape}")
    return X.shape


def _symmetric_beta(generator: Generator, alpha: float) -> float:
    """Draw from Beta(alpha, alpha) as the share of one of two gamma variables.

    (Devroye, "Non-uniform random variate generation", 1986, section IX.4.1.) In logarithms,
    because a gamma variable of small alpha is often below the smallest float.
    """
    numbers = _uniform_numbers(generator)
    a, b = _log_gamma_variate(numbers, alpha), _log_gamma_variate(numbers, alpha)
    if a < b:
        ratio = math.exp(a - b)
        return ratio / (1.0 + ratio)
    return 1.0 / (1.0 + math.exp(b - a))


def _log_gamma_variate(numbers: Iterator[float], alpha: float) -> float:
    """The logarithm of a Gamma(alpha, 1) variable.

    (Marsaglia & Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000; for
    alpha below 1 by their section 6: Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).)
    """
    boosted = alpha + 1.0 if alpha < 1.0 else alpha
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        radius = math.sqrt(-2.0 * math.log(next(numbers)))  # a normal variable by Box and Muller
        x = radius * math.cos(2.0 * math.pi * next(numbers))
        u = next(numbers)
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
    value = math.log(d * v)
    if alpha < 1.0:
        value += math.log(next(numbers)) / alpha
    return value


def _uniform_numbers(generator: Generator) -> Iterator[float]:
    """Endless numbers in (0, 1], drawn on the host 16 at a time."""
    while True:
        yield from (1.0 - generator.uniform((16,), np.float64, np)).tolist()
