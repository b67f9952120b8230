"""Noise to draw from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers.backend import Array
from gpulayers.errors import ParameterError


class DiscreteSampler:
    """Draws classes 0..n-1 with given probabilities (numpy-ml's has the same name and arguments).

    Drawn on the host from `gpulayers.random`, so the same seed gives the same classes on every
    backend: by inverting the cumulative sum, or without replacement as the largest of
    log p_k + Gumbel noise (Vieira, "Gumbel-max trick and weighted reservoir sampling", 2014).

    Parameters
    ----------
    probs : (n,), numbers >= 0
        Divided by their sum.
    log : bool
        Whether `probs` are log probabilities.
    with_replacement : bool
    generator : random.Generator, optional
        The default generator if None.

    Attributes
    ----------
    probs : numpy array (n,), float64

    Raises
    ------
    ParameterError
        If probs is empty, not 1-D, has negative or no positive entries, or is not finite.
    """

    def __init__(
        self,
        probs: Sequence[float] | Array,
        log: bool = False,
        with_replacement: bool = True,
        generator: random.Generator | None = None,
    ) -> None:
        name = "DiscreteSampler"
        try:
            values = np.array(
                backend.to_cpu(probs) if hasattr(probs, "dtype") else probs, np.float64
            )
        except (TypeError, ValueError):
            raise ParameterError(f"{name}: probs must be numbers, got {probs!r}") from None
        if values.ndim != 1 or not values.size:
            raise ParameterError(f"{name}: probs must be (n,), n >= 1, got shape {values.shape}")
        if _spec.flag(name, "log", log):
            values = np.exp(values - values.max())
        if not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ParameterError(f"{name}: probs must be finite, >= 0 and not all 0")
        self.probs = values / values.sum()
        self.with_replacement = _spec.flag(name, "with_replacement", with_replacement)
        self.generator = generator
        self._cumulative = np.cumsum(self.probs)
        self._cumulative /= self._cumulative[-1]  # the last is 1 exactly: no draw lies beyond

    def __call__(self, n_samples: int) -> np.ndarray:
        """Return `n_samples` classes, int64, on the host.

        Raises
        ------
        ParameterError
            If `n_samples` is no integer >= 0, or, without replacement, exceeds the number of
            classes with a positive probability.
        """
        n = _spec.integer("DiscreteSampler", "n_samples", n_samples, 0)
        generator = self.generator or random.default_generator()
        if self.with_replacement:
            u: np.ndarray = generator.uniform(n, np.float64, np)
            return np.searchsorted(self._cumulative, u, side="right").astype(np.int64)
        possible = np.flatnonzero(self.probs)
        if n > possible.size:
            raise ParameterError(
                f"DiscreteSampler: {n} samples without replacement need as many classes with a "
                f"positive probability, there are {possible.size}"
            )
        u = generator.uniform(possible.size, np.float64, np)
        gumbel = -np.log(-np.log1p(-u) + np.finfo(np.float64).tiny)
        keys = np.log(self.probs[possible]) + gumbel
        return possible[np.argsort(-keys, kind="stable")[:n]].astype(np.int64)
