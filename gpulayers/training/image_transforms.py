"""Random variations of training images: crop, flip, cutout; and normalisation.

A transform is called with a batch and a generator of random numbers, on whichever backend the batch
is. The numbers come from `gpulayers.random`, so a seed gives the same batches on NumPy and on a
GPU. It never changes the arrays it is given, and on a GPU nothing waits or crosses to the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array, xp_of
from gpulayers.errors import ParameterError, ShapeError, suggest
from gpulayers.models import Pixels
from gpulayers.ops import augment
from gpulayers.random import Generator
from gpulayers.training.data import Normalizer

__all__ = ["Cutout", "Normalize", "RandomCrop", "RandomFlip", "Transform"]


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
        From `output_shape` and when called, with images that are smaller, border included, than
        the window; or if a window may hold nothing but a border of `fill`: where the border is as
        wide as the window.
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
        return (*self._window(*shape[:2]), *shape[2:])

    def _window(self, rows: int, cols: int) -> tuple[int, int]:
        """The window's size in images of this size."""
        high, wide = self.size or (rows, cols)
        p = self.padding
        if high > rows + 2 * p or wide > cols + 2 * p:
            raise ShapeError(
                f"RandomCrop: a window of {high} x {wide} does not fit images of {rows} x {cols} "
                f"with {p} pixels around them"
            )
        if self.mode == "constant" and p >= min(high, wide) > 0:
            raise ShapeError(
                f"RandomCrop: with {p} pixels around images of {rows} x {cols}, a window of {high} "
                f"x {wide} may show nothing of the image; padding must be less than "
                f"{min(high, wide)}"
            )
        return high, wide

    def __call__(self, X: Array, labels: Any, generator: Generator) -> tuple[Array, Any]:
        n, rows, cols, _ = _shape("RandomCrop", X)
        high, wide = self._window(rows, cols)
        p, xp = self.padding, xp_of(X)
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
        self._pixels = Pixels(_numbers(mean), _numbers(std), "Normalize")

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


# --------------------------------------------------------------------------------------- details


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
    return list(value) if is_sequence(value) else [value]


def _size(owner: str, size: Any) -> tuple[int, int]:
    pair = size if is_sequence(size) else (size, size)
    if len(pair) != 2:
        raise ParameterError(f"{owner}: size must be a number or (rows, cols), got {size!r}")
    return _spec.integer(owner, "size", pair[0], 1), _spec.integer(owner, "size", pair[1], 1)


def _shape(owner: str, X: Array) -> tuple[int, int, int, int]:
    if X.ndim != 4:
        raise ShapeError(f"{owner}: images must be (n, rows, cols, channels), got {X.shape}")
    return X.shape
