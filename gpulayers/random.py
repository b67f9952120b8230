"""Random numbers that are the same on NumPy and on a GPU.

The generator is Philox4x64-10, counter based (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC'11): the numbers are a function of (key, counter) alone, so the state is a few
integers, it can be saved and restored exactly, and every thread of a GPU computes its own words
without talking to others. The stream is that of `numpy.random.Philox`.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers._dtypes import float_dtype
from gpulayers.backend import Array
from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.ops import random as _ops

__all__ = ["Generator", "default_generator", "get_state", "seed", "set_state"]

_WORD = 2**64


class Generator:
    """A stream of random numbers with a seed and a state.

    Parameters
    ----------
    seed : int
        Any non-negative integer below 2**64.
    stream : int
        Streams of one seed never overlap (it is the second half of Philox's key).

    Raises
    ------
    ParameterError
        If seed or stream is no integer in [0, 2**64).
    """

    def __init__(self, seed: int = 0, stream: int = 0) -> None:
        for name, value in (("seed", seed), ("stream", stream)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise ParameterError(f"Generator: {name} must be an integer, got {value!r}")
            if not 0 <= value < _WORD:
                raise ParameterError(f"Generator: {name} must be in [0, 2**64), got {value}")
        self.key = (int(seed), int(stream))
        self.counter = 0  # in blocks of four 64-bit words

    def __repr__(self) -> str:
        return f"Generator(seed={self.key[0]}, stream={self.key[1]}, counter={self.counter})"

    @property
    def state(self) -> dict[str, Any]:
        """The whole state as plain integers; assign it back to continue the stream exactly."""
        return {"algorithm": "philox4x64-10", "key": list(self.key), "counter": self.counter}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        try:
            algorithm = state["algorithm"]
            key, counter = tuple(int(k) for k in state["key"]), int(state["counter"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "Generator: a state needs the entries algorithm, key (two integers) and counter, "
                f"got {state!r}"
            ) from error
        if algorithm != "philox4x64-10":
            raise CheckpointError(f"Generator: state of {algorithm!r}, expected 'philox4x64-10'")
        if len(key) != 2 or not all(0 <= k < _WORD for k in key) or counter < 0:
            raise CheckpointError(f"Generator: bad key or counter in the state {state!r}")
        self.key, self.counter = key, counter

    def spawn(self, index: int) -> Generator:
        """Return an independent generator: same seed, stream moved on by ``index + 1``.

        ParameterError if `index` is no integer >= 0."""
        index = _spec.integer("Generator.spawn", "index", index, 0)
        return Generator(self.key[0], (self.key[1] + 1 + index) % _WORD)

    def _take(self, words: int) -> int:
        """Reserve `words` 64-bit words and return the counter they start at.

        Everything that a draw is given has been checked by then: an error leaves the state as it
        is.
        """
        start = self.counter
        self.counter += -(-words // 4)
        return start

    # ------------------------------------------------------------------------------ distributions

    def uniform(
        self,
        shape: int | tuple[int, ...],
        dtype: Any = None,
        xp: ModuleType | None = None,
    ) -> Array:
        """Draw uniform numbers in [0, 1).

        Parameters
        ----------
        shape : int or tuple of int
        dtype : dtype, optional
            Floating; the default dtype if None. float64 takes one 64-bit word a number, the
            others half a word; every value is a multiple of 2**-53 (float64), 2**-24 (float32),
            2**-11 (float16) or 2**-8 (bfloat16), so 1.0 is never returned.
        xp : module, optional
            numpy or cupy; the current backend if None.

        Returns
        -------
        array of `shape`: the same bits on both backends.

        Raises
        ------
        ParameterError
            If shape is neither an integer >= 0 nor a tuple of them, dtype not floating, or xp no
            array library. Nothing is drawn then.
        """
        return self._uniform("Generator.uniform", shape, dtype, xp)

    def _uniform(self, name: str, shape: Any, dtype: Any, xp: ModuleType | None) -> Array:
        sizes, dtype, library = _shape(name, shape), _dtype(name, dtype), _library(name, xp)
        n = math.prod(sizes)
        words = n if dtype == np.float64 else -(-n // 2)
        start = self._take(words)
        return _ops.uniform(library, self.key, start, n, dtype).reshape(sizes)

    def normal(
        self,
        shape: int | tuple[int, ...],
        mean: float = 0.0,
        std: float = 1.0,
        dtype: Any = None,
        xp: ModuleType | None = None,
    ) -> Array:
        """Draw normal numbers by the Box-Muller transform (Box & Muller, 1958).

        Computed in float64 and rounded once to `dtype`; between backends the last bit may differ,
        since log and cos do. Parameters and errors as `uniform`; mean a finite number, std one
        >= 0.
        """
        name = "Generator.normal"
        sizes, dtype, library = _shape(name, shape), _dtype(name, dtype), _library(name, xp)
        mean, std = _spec.real(name, "mean", mean), _spec.real(name, "std", std, 0.0)
        n = math.prod(sizes)
        half = -(-n // 2)
        u = self.uniform((2, half), np.float64, library)
        radius = library.sqrt(-2.0 * library.log1p(-u[0]))
        angle = (2.0 * math.pi) * u[1]
        pairs = library.stack([radius * library.cos(angle), radius * library.sin(angle)], axis=1)
        return (mean + std * pairs.reshape(-1)[:n]).astype(dtype).reshape(sizes)

    def integers(
        self, low: int, high: int, shape: int | tuple[int, ...], xp: ModuleType | None = None
    ) -> Array:
        """Draw int64 numbers in [low, high): ``low + floor(uniform * (high - low))``.

        Exactly uniform up to a relative 2**-53 (float64's resolution).

        Raises
        ------
        ParameterError
            If low or high is no integer, ``high <= low``, the range exceeds 2**53, or as `uniform`.
        """
        name = "Generator.integers"
        first, last = _spec.plain(low), _spec.plain(high)
        if not _is_whole(first) or not _is_whole(last) or not 0 < last - first <= 2**53:
            raise ParameterError(
                f"{name}: expected integers low < high <= low + 2**53, got {low!r}, {high!r}"
            )
        u = self._uniform(name, shape, np.float64, xp)
        return (u * float(last - first)).astype(np.int64) + first

    def permutation(self, n: int) -> np.ndarray:
        """Return 0..n-1 in random order: int64, on the host, the same on every backend.

        ParameterError if `n` is no integer >= 0.
        """
        n = _spec.integer("Generator.permutation", "n", n, 0)
        start = self._take(n)
        keys = _ops.words(np, self.key, start, n)
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    """The sizes as Python integers."""
    sizes = _spec.sizes((shape,) if _is_whole(_spec.plain(shape)) else shape)
    if sizes is None:
        raise ParameterError(
            f"{name}: shape must be an integer >= 0 or a tuple of them, got {shape!r}"
        )
    return sizes


def _dtype(name: str, dtype: Any) -> np.dtype:
    return backend.default_dtype() if dtype is None else float_dtype(dtype, f"{name}: dtype")


def _library(name: str, xp: Any) -> ModuleType:
    if xp is None:
        return backend.module(backend.current_backend())
    if not hasattr(xp, "ndarray"):
        raise ParameterError(f"{name}: xp must be the module numpy or cupy, got {xp!r}")
    return xp


_default = Generator(0)


def default_generator() -> Generator:
    """Return the generator that layers and initializers draw from."""
    return _default


def seed(value: int) -> None:
    """Restart the default generator from `value` (an integer in [0, 2**64))."""
    fresh = Generator(value)
    _default.key, _default.counter = fresh.key, fresh.counter


def get_state() -> dict[str, Any]:
    """Return the state of the default generator (plain integers)."""
    return _default.state


def set_state(state: dict[str, Any]) -> None:
    """Restore the default generator to a state that `get_state` gave."""
    _default.state = state
