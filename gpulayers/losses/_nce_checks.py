"""What `NCELoss` asks of its arguments, and what it keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array, backend_of, home_of, is_floating, to_backend, xp_of
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.losses._base import ObjectiveBase


class NCEChecks(ObjectiveBase):
    """The arguments of a loss, checked; its parameters, made from the first ones."""

    n_classes: int
    num_negative_samples: int
    subtract_log_label_prob: bool
    noise_sampler: Any
    n_in: int | None
    is_initialized: bool
    parameters: dict[str, Any]
    gradients: dict[str, Array]
    _weights: Any
    _log_probs: tuple[Array, Array | None] | None

    def _drop_retained(self) -> None:
        self.X: list[Array] = []
        self.derived_variables: dict[str, list[Any]] = {
            key: []
            for key in (
                "y_pred",
                "target",
                "out_labels",
                "target_logits",
                "noise_samples",
                "noise_logits",
            )
        }

    def _inputs(self, X: Array, target: Array) -> tuple[Array, Array]:
        for what, array in (("X", X), ("target", target)):
            home_of("NCELoss", what, array)
        xp = xp_of(X, target)
        if not is_floating(X.dtype):
            raise DTypeError(f"NCELoss: X must be a floating array, got {X.dtype}")
        if X.ndim != 3 or not X.shape[2] or self.n_in not in (None, X.shape[2]):
            raise ShapeError(
                f"NCELoss: X must be (n_ex, n_c, {self.n_in or 'n_in'}), got {X.shape}"
            )
        if target.shape != X.shape[:1]:
            raise ShapeError(f"NCELoss: target must be ({X.shape[0]},), got {target.shape}")
        self._classes("target", target)
        home = backend_of(X)
        if not self.is_initialized:
            self.n_in = int(X.shape[2])
            self.parameters["W"] = self._weights((self.n_classes, self.n_in), xp=xp)
            self.parameters["b"] = xp.zeros((1, self.n_classes), dtype=self.parameters["W"].dtype)
            self.gradients = {key: xp.zeros_like(p) for key, p in self.parameters.items()}
            self.is_initialized = True
        W = self.parameters["W"]
        if backend_of(W) != home:
            raise BackendError(
                f"NCELoss: the parameters are {backend_of(W)} arrays, X is a {home} array; "
                f"move one: loss.to({home!r})"
            )
        return xp.ascontiguousarray(X.astype(W.dtype, copy=False)), target

    def _negatives(self, given: Any, home: str) -> Array:
        noise: Any = self.noise_sampler(self.num_negative_samples) if given is None else given
        if not hasattr(noise, "dtype"):
            noise = np.asarray(noise, np.int64)
        if noise.shape != (self.num_negative_samples,):
            raise ShapeError(
                f"NCELoss: neg_samples must be ({self.num_negative_samples},), got {noise.shape}"
            )
        self._classes("neg_samples", noise)
        return to_backend(noise, home)

    def _classes(self, what: str, classes: Array) -> None:
        if classes.dtype.kind not in "iu":
            raise DTypeError(f"NCELoss: {what} must be integers, got {classes.dtype}")
        if (
            backend_of(classes) == "numpy"
            and classes.size
            and not 0 <= classes.min() <= classes.max() < self.n_classes
        ):
            raise ParameterError(
                f"NCELoss: {what} must be in 0..{self.n_classes - 1}, "
                f"got {classes.min()}..{classes.max()}"
            )

    def _noise(self, xp: Any) -> tuple[Array, Array | None]:
        """Probabilities under the noise, and their logs (None if they are not wanted)."""
        dtype = self.parameters["W"].dtype
        if self._log_probs is None or self._log_probs[0].dtype != dtype:
            probs = np.asarray(backend.to_cpu(self.noise_sampler.probs), np.float64)
            logs = xp.asarray(np.log(probs).astype(dtype)) if self.subtract_log_label_prob else None
            self._log_probs = (xp.asarray(probs.astype(dtype)), logs)
        return self._log_probs
