"""Losses of generative models: the variational autoencoder's, the Wasserstein GAN's."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import _spec
from gpulayers.backend import Array, home_of, is_floating, xp_of
from gpulayers.errors import DTypeError, ParameterError, ShapeError, suggest
from gpulayers.losses._base import ObjectiveBase, pair, wide


def _floating(name: str, what: str, array: Array) -> None:
    home_of(name, what, array)
    if not is_floating(array.dtype):
        raise DTypeError(f"{name}: {what} must be a floating array, got {array.dtype}")


class VAELoss(ObjectiveBase):
    """The negative variational lower bound of a Bernoulli VAE with a normal latent code.

    mean over the examples of
        - sum_j [y_j log p_j + (1 - y_j) log(1 - p_j)]              reconstruction
        - 0.5 sum_k [1 + log_var_k - mean_k^2 - exp(log_var_k)]     KL(q(z|x) || N(0, 1))

    (Kingma & Welling, "Auto-encoding variational Bayes", 2014, appendices B and C.1.)
    Probabilities are clipped to [eps, 1 - eps], eps being the dtype's.
    """

    @staticmethod
    def loss(y: Array, y_pred: Array, t_mean: Array, t_log_var: Array) -> Array:
        """Return the loss.

        Parameters
        ----------
        y : (n_ex, n_features), numbers in [0, 1]
            The original.
        y_pred : (n_ex, n_features), floating
            The reconstruction: probabilities.
        t_mean, t_log_var : (n_ex, n_latent), floating
            Mean and log variance of the code.

        Returns
        -------
        0-d array of y_pred's dtype (float32 for half types); 0 for an empty batch

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        y, p, mean, log_var, n = VAELoss._checked("loss", y, y_pred, t_mean, t_log_var)
        xp = xp_of(p)
        reconstruction = -(y * xp.log(p) + (1.0 - y) * xp.log1p(-p)).sum()
        divergence = -0.5 * (1.0 + log_var - mean * mean - xp.exp(log_var)).sum()
        return xp.asarray((reconstruction + divergence) / n)

    @staticmethod
    def grad(
        y: Array, y_pred: Array, t_mean: Array, t_log_var: Array
    ) -> tuple[Array, Array, Array]:
        """Return the gradients with respect to y_pred, t_log_var and t_mean, in this order.

        dL/dp = (p - y) / (p (1 - p)) / n_ex;  dL/dlog_var = (exp(log_var) - 1) / (2 n_ex);
        dL/dmean = mean / n_ex. Arguments and errors as `loss`; each gradient has the shape and
        dtype of its array.
        """
        y, p, mean, log_var, n = VAELoss._checked("grad", y, y_pred, t_mean, t_log_var)
        xp = xp_of(p)
        dY = (p - y) / (p * (1.0 - p)) / n
        dLogVar = 0.5 * (xp.exp(log_var) - 1.0) / n
        dMean = mean / n
        return (
            dY.astype(y_pred.dtype, copy=False),
            dLogVar.astype(t_log_var.dtype, copy=False),
            dMean.astype(t_mean.dtype, copy=False),
        )

    @staticmethod
    def _checked(
        method: str, y: Array, y_pred: Array, t_mean: Array, t_log_var: Array
    ) -> tuple[Array, Array, Array, Array, int]:
        name = f"VAELoss.{method}"
        targets = wide(pair(name, y, y_pred))
        for what, array in (("t_mean", t_mean), ("t_log_var", t_log_var)):
            _floating(name, what, array)
        xp = xp_of(y, y_pred, t_mean, t_log_var)
        if y_pred.ndim != 2:
            raise ShapeError(f"{name}: y_pred must be (n_ex, n_features), got {y_pred.shape}")
        if (
            t_mean.ndim != 2
            or t_mean.shape[0] != y_pred.shape[0]
            or t_log_var.shape != t_mean.shape
        ):
            raise ShapeError(
                f"{name}: t_mean and t_log_var must both be (n_ex, n_latent) with n_ex = "
                f"{y_pred.shape[0]}, got {t_mean.shape} and {t_log_var.shape}"
            )
        eps = float(np.finfo(np.float64 if y_pred.dtype == np.float64 else np.float32).eps)
        p = xp.clip(wide(y_pred), eps, 1.0 - eps)
        dtype = p.dtype
        mean, log_var = (wide(a).astype(dtype, copy=False) for a in (t_mean, t_log_var))
        return targets, p, mean, log_var, max(y_pred.shape[0], 1)


class WGAN_GPLoss(ObjectiveBase):  # noqa: N801 - numpy-ml's name
    """The Wasserstein GAN's losses, with the gradient penalty for the critic.

        critic "C":     mean(Y_fake) - mean(Y_real) + lambda * mean_i (||gradInterp_i|| - 1)^2
        generator "G":  -mean(Y_fake)

    (Gulrajani et al., "Improved training of Wasserstein GANs", 2017, algorithm 1.) gradInterp is
    the gradient of the critic's output with respect to its input, at points between real and
    generated examples. Unlike numpy-ml's, `grad` is the gradient of `loss`: there dY_fake and
    dY_real of the critic have the wrong sign, and its model unpacks them in the wrong order, which
    cancels it.

    Parameters
    ----------
    lambda_ : float
        Weight of the penalty, >= 0.

    Raises
    ------
    ParameterError
        If lambda_ is out of range.
    """

    def __init__(self, lambda_: float = 10) -> None:
        self.lambda_ = _spec.real("WGAN_GPLoss", "lambda_", lambda_, 0.0)

    def __str__(self) -> str:
        return f"WGAN_GPLoss(lambda_={self.lambda_})"

    def loss(  # type: ignore[override]  # needs lambda_, so it is no static method
        self,
        Y_fake: Array,
        module: str,
        Y_real: Array | None = None,
        gradInterp: Array | None = None,
    ) -> Array:
        """Return the loss of one of the two networks.

        Parameters
        ----------
        Y_fake : (n_ex,) or (n_ex, 1), floating
            The critic's output for generated examples.
        module : {"C", "G"}
            The critic's or the generator's loss.
        Y_real : (n_ex,) or (n_ex, 1), floating
            The critic's output for real examples; only for "C".
        gradInterp : (n_ex, n_features), floating
            Only for "C"; the norm is over all axes but the first.

        Returns
        -------
        0-d array of Y_fake's dtype (float32 for half types)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            If the module is unknown, or an array that "C" needs is missing.
        """
        if self._module("loss", module) == "G":
            self._critics("loss", "Y_fake", Y_fake)
            return xp_of(Y_fake).asarray(-wide(Y_fake).mean())
        Y_real, gradInterp = self._for_critic("loss", Y_fake, Y_real, gradInterp)
        dtype = wide(Y_fake).dtype
        _, norm = self._norm(gradInterp)
        penalty = self.lambda_ * ((norm - 1.0) ** 2).mean()
        total = wide(Y_fake).mean() - wide(Y_real).mean() + penalty
        return xp_of(Y_fake).asarray(total.astype(dtype))

    def grad(  # type: ignore[override]
        self,
        Y_fake: Array,
        module: str,
        Y_real: Array | None = None,
        gradInterp: Array | None = None,
    ) -> Any:
        """Return the gradient of `loss`, with respect to each array it is given.

        Arguments and errors as `loss`.

        Returns
        -------
        For "C" ``(dY_fake, dY_real, dGradInterp)``:
            1 / n_ex, -1 / n_ex, and 2 lambda (||g|| - 1) g / ||g|| / n_ex for each row g. Where
            g = 0, at which the norm has a kink, the gradient is 0.
        For "G" ``dY_fake``:
            -1 / n_ex.
        Each of the shape and dtype of its array.
        """
        if self._module("grad", module) == "G":
            self._critics("grad", "Y_fake", Y_fake)
            return xp_of(Y_fake).full_like(Y_fake, -1.0 / Y_fake.size)
        real, interp = self._for_critic("grad", Y_fake, Y_real, gradInterp)
        xp = xp_of(Y_fake)
        rows, norm = self._norm(interp)
        positive = xp.where(norm > 0, norm, 1.0)
        factor = (2.0 * self.lambda_ / rows.shape[0]) * (norm - 1.0) / positive
        dGradInterp = (factor[:, None] * rows).reshape(interp.shape)
        return (
            xp.full_like(Y_fake, 1.0 / Y_fake.size),
            xp.full_like(real, -1.0 / real.size),
            dGradInterp.astype(interp.dtype, copy=False),
        )

    @staticmethod
    def _norm(gradInterp: Array) -> tuple[Array, Array]:
        """The gradients as rows, and the Euclidean norm of each."""
        rows = wide(gradInterp).reshape(gradInterp.shape[0], -1)
        return rows, xp_of(rows).sqrt((rows * rows).sum(axis=1))

    @staticmethod
    def _module(method: str, module: Any) -> str:
        if not isinstance(module, str) or module not in ("C", "G"):
            raise ParameterError(
                f"WGAN_GPLoss.{method}: module must be 'C' (critic) or 'G' (generator), "
                f"got {module!r}" + suggest(str(module).upper()[:1], ("C", "G"))
            )
        return module

    @staticmethod
    def _critics(method: str, what: str, Y: Array) -> None:
        name = f"WGAN_GPLoss.{method}"
        _floating(name, what, Y)
        if Y.ndim not in (1, 2) or Y.shape[1:] not in ((), (1,)) or not Y.size:
            raise ShapeError(
                f"{name}: {what} must be (n_ex,) or (n_ex, 1) with n_ex >= 1, got {Y.shape}"
            )

    @staticmethod
    def _for_critic(
        method: str, Y_fake: Array, Y_real: Any, gradInterp: Any
    ) -> tuple[Array, Array]:
        name = f"WGAN_GPLoss.{method}"
        if Y_real is None or gradInterp is None:
            missing = "Y_real" if Y_real is None else "gradInterp"
            raise ParameterError(f"{name}: the critic's loss needs {missing}")
        WGAN_GPLoss._critics(method, "Y_fake", Y_fake)
        WGAN_GPLoss._critics(method, "Y_real", Y_real)
        _floating(name, "gradInterp", gradInterp)
        xp_of(Y_fake, Y_real, gradInterp)
        if gradInterp.ndim < 2 or not gradInterp.size:
            raise ShapeError(
                f"{name}: gradInterp must be (n_ex, n_features), got {gradInterp.shape}"
            )
        return Y_real, gradInterp
