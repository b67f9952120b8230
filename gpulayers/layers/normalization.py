"""Normalisation layers: batch normalisation. Those that treat each example alone: layernorm.py."""

from __future__ import annotations

import math
from typing import Any

from gpulayers.backend import Array
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import normalization


class _BatchNorm(LayerBase):
    """Batch normalisation over all axes but the last."""

    _params = ("scaler", "intercept", "running_var", "running_mean")

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.momentum = momentum
        self.epsilon = epsilon
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.momentum = check.number(self._name, "momentum", self.momentum, 0, 1, "[]")
        self.epsilon = check.number(self._name, "epsilon", self.epsilon, 0, math.inf, "[")

    def _create_all(self, size: int | None) -> None:
        self._create("scaler", (size,), ones)
        self._create("intercept", (size,))
        self._create("running_mean", (size,), learned=False)
        self._create("running_var", (size,), ones, learned=False)

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1. Before the first input they are."""
        if self.is_initialized:
            self.parameters["running_mean"].fill(0)
            self.parameters["running_var"].fill(1)

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y = scaler * X_hat + intercept; keeps the running statistics while training."""
        p = self.parameters
        if not training or X.size == 0:
            inv_std = ((p["running_var"] + self.epsilon) ** -0.5).astype(X.dtype, copy=False)
            Y = (X - p["running_mean"]) * (inv_std * p["scaler"]) + p["intercept"]
            return Y, {"X_hat": None, "inv_std": inv_std}
        rows = X.reshape(-1, X.shape[-1])
        Y, X_hat, mean, var, inv_std = normalization.batchnorm_forward(
            rows, p["scaler"], p["intercept"], self.epsilon
        )
        for running, batch in ((p["running_mean"], mean), (p["running_var"], var)):
            running *= self.momentum
            running += (1.0 - self.momentum) * batch
        return Y.reshape(X.shape), {"X_hat": X_hat, "inv_std": inv_std}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX = scaler * inv_std * (dY - mean(dY) - X_hat * mean(dY * X_hat)): mean and variance
        depend on X too. dscaler = sum(dY * X_hat), dintercept = sum(dY).

        With running statistics, which are constants, dX = dY * scaler * inv_std.
        """
        scaler, X_hat, inv_std = self.parameters["scaler"], saved["X_hat"], saved["inv_std"]
        if X_hat is None:  # frozen, or an empty batch: no gradient for the parameters
            return dLdY * (scaler * inv_std), {}
        rows = dLdY.reshape(X_hat.shape)
        dX, dscaler, dintercept = normalization.batchnorm_backward(rows, X_hat, scaler, inv_std)
        return dX.reshape(dLdY.shape), {"scaler": dscaler, "intercept": dintercept}


class BatchNorm1D(_BatchNorm):
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + epsilon), by feature.

    Mean and variance are those of the batch while training, over the examples; a running average
    of them in evaluation (`retain_derived=False`) and when frozen:

        running = momentum * running + (1 - momentum) * batch

    Parameters
    ----------
    momentum : float in [0, 1]
        The weight of the past: 1 - PyTorch's momentum.
    epsilon : float >= 0
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : scaler, intercept, running_mean, running_var, each (n_in,)
        The running ones are no subject of the optimizer and have no gradient.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input and output (n_ex, n_in), floating. Running variance and first scaler as in `BatchNorm2D`.
    A batch of one example normalises to zero.
    Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1.
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _hyper = ("act_fn", "n_in", "n_out", "epsilon", "momentum")

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        self.n_in: int | None = None
        self.n_out: int | None = None
        super().__init__(momentum, epsilon, optimizer)

    def _init_params(self) -> None:
        self.n_out = self.n_in
        self._create_all(self.n_in)


class BatchNorm2D(_BatchNorm):
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + epsilon), by channel.

    Mean and variance are those of the batch while training, over examples, rows and columns; a
    running average of them in evaluation (`retain_derived=False`) and when frozen:

        running = momentum * running + (1 - momentum) * batch

    Parameters
    ----------
    momentum : float in [0, 1]
        The weight of the past: 1 - PyTorch's momentum.
    epsilon : float >= 0
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : scaler, intercept, running_mean, running_var, each (in_ch,)
        The running ones are no subject of the optimizer and have no gradient.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input and output (n_ex, rows, cols, in_ch), floating. The running variance is the biased one, as
    in numpy-ml (PyTorch's is unbiased). scaler starts at one; numpy-ml draws it from [0, 1), which
    makes a deep network's signal fade.
    Source: Ioffe & Szegedy, "Batch normalization" (2015), algorithm 1 and section 3.
    """

    _ndim, _axes, _size = 4, "(n_ex, rows, cols, in_ch)", ("in_ch", 3)
    _hyper = ("act_fn", "in_ch", "out_ch", "epsilon", "momentum")

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        self.in_ch: int | None = None
        self.out_ch: int | None = None
        super().__init__(momentum, epsilon, optimizer)

    def _init_params(self) -> None:
        self.out_ch = self.in_ch
        self._create_all(self.in_ch)


def ones(shape: tuple[int, ...], dtype: Any, xp: Any) -> Array:
    """An initializer for `LayerBase._create`."""
    return xp.ones(shape, dtype=dtype)
