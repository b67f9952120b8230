"""Transforms one after the other, and their description as text: `Compose`, `make_transform`.

augment = make_transform("crop(4), flip, cutout(8), mixup(0.2)")
X, labels = augment(X, labels, generator)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.models import Pixels
from gpulayers.random import Generator
from gpulayers.training.image_transforms import (
    Cutout,
    Normalize,
    RandomCrop,
    RandomFlip,
    Transform,
)
from gpulayers.training.mixed import Mixup

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
        If an entry is no transform (a function of one argument is none), or more than one mixes
        labels.
    """

    def __init__(
        self, transforms: Iterable[Any], normalize: Callable[[Array], Array] | None = None
    ) -> None:
        self.transforms = list(transforms)
        for entry in self.transforms:
            if not _takes_a_batch(entry):
                raise ParameterError(
                    f"Compose: expected transforms, got {entry!r}; one is called with (images, "
                    "labels, generator) and returns images and labels"
                )
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


def _takes_a_batch(entry: Any) -> bool:
    if isinstance(entry, type) or not callable(entry):
        return False
    try:
        inspect.signature(entry).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a function in C that does not tell
        pass
    return True


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
    elif is_sequence(spec):
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


def _described(transform: Any) -> str:
    """What a checkpoint compares: a user's function by its name, not by its address."""
    name = getattr(transform, "__qualname__", None)
    if name is None and type(transform).__repr__ is object.__repr__:
        name = type(transform).__qualname__
    return repr(transform) if name is None else str(name)
