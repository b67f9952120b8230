"""SquaredError and CrossEntropy: static, targets first, summed over the batch, as in numpy-ml."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers.activations import ActivationBase
from gpulayers.backend import Array, home_of, xp_of
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.losses._base import ObjectiveBase, library_of, pair, wide


class SquaredError(ObjectiveBase):
    """Half the sum of squares, 0.5 * ||y_pred - y||^2, over all elements."""

    @staticmethod
    def loss(y: Array, y_pred: Array) -> Array:
        """Return the loss.

        Parameters
        ----------
        y : numbers
            Targets; another dtype than y_pred's is converted.
        y_pred : floating, of y's shape

        Returns
        -------
        0-d array of y_pred's dtype (float32 for half types)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        targets = pair("SquaredError.loss", y, y_pred)
        difference = wide(y_pred) - wide(targets)
        return xp_of(y_pred).asarray(0.5 * (difference * difference).sum())

    @staticmethod
    def grad(y: Array, y_pred: Array, z: Array, act_fn: ActivationBase) -> Array:
        """Return the gradient with respect to the pre-activation: (y_pred - y) * act_fn.grad(z).

        Parameters
        ----------
        y, y_pred : as for `loss`
        z : floating, of y's shape
            The last layer's pre-activation, with y_pred = act_fn(z).
        act_fn : ActivationBase

        Returns
        -------
        array of y_pred's shape and dtype

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            If act_fn is no activation object.
        """
        name = "SquaredError.grad"
        targets = pair(name, y, y_pred)
        home_of(name, "z", z)
        if isinstance(act_fn, type) or not callable(getattr(act_fn, "grad", None)):
            raise ParameterError(
                f"{name}: act_fn must be an activation object, such as activations.Tanh(), got "
                f"{act_fn!r}"
            )
        xp = xp_of(y_pred, z)
        if z.shape != y_pred.shape:
            raise ShapeError(f"{name}: z must have y_pred's shape {y_pred.shape}, got {z.shape}")
        slope = act_fn.grad(z).astype(y_pred.dtype, copy=False)
        return xp.asarray((y_pred - targets) * slope)


class CrossEntropy(ObjectiveBase):
    """-sum(y * log(y_pred)) over examples and classes, of probabilities as a softmax gives them.

    Unlike numpy-ml's, targets need not be 0 or 1: smoothed labels work. For training
    `SoftmaxCrossEntropy` is the stabler and faster choice.
    """

    @staticmethod
    def loss(y: Array, y_pred: Array) -> Array:
        """Return the loss; a probability p counts as p + 2.2e-16, so that 0 stays finite.

        Parameters
        ----------
        y : (n_ex, n_classes), numbers in [0, 1]
            Targets, usually one-hot rows.
        y_pred : (n_ex, n_classes), floating
            Probabilities; each row sums to one.

        Returns
        -------
        0-d array of y_pred's dtype (float32 for half types)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            On NumPy, for targets outside [0, 1] or rows that are no probabilities. On a GPU
            looking would stall the device: there the loss is NaN.
        """
        targets, probs, targets_fit, rows_fit = CrossEntropy._checked("loss", y, y_pred)
        xp = xp_of(y_pred)
        total = -(targets * xp.log(xp.maximum(probs, 0.0) + float(np.finfo(np.float64).eps))).sum()
        return xp.asarray(xp.where(targets_fit & rows_fit, total, probs.dtype.type("nan")))

    @staticmethod
    def grad(y: Array, y_pred: Array) -> Array:
        """Return the gradient with respect to the INPUT of the softmax that gave `y_pred`.

        It is y_pred - y for targets whose rows sum to one, y_pred * sum(y) - y in general.
        Arguments and errors as `loss`, but on a GPU bad values go unnoticed.
        """
        targets, probs, _, _ = CrossEntropy._checked("grad", y, y_pred)
        gradient = probs * targets.sum(axis=1, keepdims=True) - targets
        return gradient.astype(y_pred.dtype, copy=False)

    @staticmethod
    def _checked(method: str, y: Array, y_pred: Array) -> tuple[Array, Array, Any, Any]:
        """Targets, probabilities, and two 0-d booleans: whether each holds what it should."""
        name = f"CrossEntropy.{method}"
        xp = library_of(name, y, y_pred)
        if y_pred.ndim != 2:
            raise ShapeError(f"{name}: y_pred must be (n_ex, n_classes), got {y_pred.shape}")
        if y.ndim == 1:
            raise ShapeError(
                f"{name}: y must be (n_ex, n_classes) like y_pred, got {y.shape}; for integer "
                "labels and logits there is SoftmaxCrossEntropy"
            )
        targets, probs = wide(pair(name, y, y_pred)), wide(y_pred)
        # the sum of n rounded probabilities is off by a few roundings
        room = 1e-5 if y_pred.dtype == np.float64 else 1e-3 if y_pred.dtype == np.float32 else 3e-2
        # NaN passes: a loss that is NaN says more than a complaint about its rows
        targets_fit = ~((targets < 0) | (targets > 1)).any()
        off = xp.abs(probs.sum(axis=1) - 1.0)
        rows_fit = ~((probs < 0) | (probs > 1.0 + room)).any() & ~(off > room).any()
        if xp is np:
            if not targets_fit:
                raise ParameterError(f"{name}: targets y must be in [0, 1], got others")
            if not rows_fit:
                worst = float(off.max()) if off.size else 0.0
                raise ParameterError(
                    f"{name}: each row of y_pred must be probabilities that sum to one (the output "
                    f"of a softmax); a sum is off by {worst:.3g}, or an entry is outside [0, 1]"
                )
        return targets, probs, targets_fit, rows_fit
