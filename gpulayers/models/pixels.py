"""How a network takes images of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.models import scale

__all__ = ["Pixels"]


class Pixels:
    """How a network takes bytes: ``(pixel - mean) / std`` for each channel, in its own dtype.

    Parameters
    ----------
    mean, std : sequences of float, one per channel (or one for all)
        In units of a pixel, 0..255. The default maps 0..255 to 0..1.
    owner : str
        Whose they are, which errors name.

    Raises
    ------
    ParameterError
        If the lengths differ, or a value is not finite or a std not positive.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (255.0,),
        owner: str = "Pixels",
    ) -> None:
        self.mean, self.std = [float(m) for m in mean], [float(s) for s in std]
        finite = all(math.isfinite(v) for v in (*self.mean, *self.std))
        if not self.mean or len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            raise ParameterError(
                f"{owner}: expected as many finite means as positive stds, one per channel, got "
                f"mean={self.mean}, std={self.std}"
            )
        self._owner = owner
        self._factors: dict[Any, tuple[Array, Array]] = {}
        self._looked = False  # at images on a GPU

    @property
    def standardises(self) -> bool:
        """Whether more is done than dividing by 255: then floats from 0 to 1 are something else."""
        return any(self.mean) or any(s != 255 for s in self.std)

    def watch(self, owner: str, images: Any) -> None:
        """Warn if floats are taken as they are that were hardly standardised as bytes are here.

        A few images are looked at. Of those on a GPU, a look at which waits for it, only the first
        that come.

        Parameters
        ----------
        owner : str
            Whom the images were given to.
        images : (n, ...) array

        Warns
        -----
        ImageScaleWarning
        """
        if not self.standardises or not len(images) or not backend.is_floating(images.dtype):
            return
        if backend.backend_of(images) == "cupy":
            if self._looked:
                return
            self._looked = True
        few = scale.sample_of(images)
        text = scale.not_standardised(few, self.mean, self.std, images.dtype)
        if text is not None:
            scale.warn(owner, text)

    def __call__(self, X: Array, dtype: Any) -> Array:
        """Return bytes `X` (..., channels) as a new array of `dtype`."""
        if len(self.mean) not in (1, X.shape[-1]):
            raise ShapeError(
                f"{self._owner}: its mean and std are of {len(self.mean)} channels, "
                f"got images of shape {X.shape}"
            )
        xp, dtype, shape = backend.xp_of(X), np.dtype(dtype), X.shape
        # NumPy is slow along an axis of three numbers: there a whole line of pixels is one axis
        width = max(1, shape[-2]) if xp is np and len(self.mean) > 1 and X.ndim > 2 else 1
        if width > 1:
            X = X.reshape(*shape[:-2], width * shape[-1])
        key = (xp.__name__, dtype, width)  # not the module, so that networks can be copied
        factors = self._factors.get(key)
        if factors is None:
            mean, std = np.array(self.mean), np.array(self.std)
            factors = (
                xp.asarray(np.tile((1.0 / std).astype(dtype), width)),
                xp.asarray(np.tile((mean / std).astype(dtype), width)),
            )
            self._factors[key] = factors
        scale, shift = factors
        if dtype.kind == "f":
            Y = xp.multiply(X, scale, dtype=dtype)
        else:
            Y = X.astype(dtype) * scale  # bfloat16 has no mixed product with bytes
        if any(self.mean):
            Y -= shift
        return Y.reshape(shape)
