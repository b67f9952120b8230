"""Normalisation of each example alone: layer and group normalisation.

Nothing depends on the other examples of the batch, so training and evaluation are the same.
"""

from __future__ import annotations

import math
from typing import Any

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.layers.normalization import ones
from gpulayers.ops import conv, normalization


class _LayerNorm(LayerBase):
    """Normalisation over all axes but the first, a scaler and intercept for each element."""

    _params = ("scaler", "intercept")

    def __init__(self, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.epsilon = epsilon
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.epsilon = check.number(self._name, "epsilon", self.epsilon, 0, math.inf, "[")

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y = scaler * X_hat + intercept."""
        rows = X.reshape(len(X), math.prod(X.shape[1:]))
        scaler, intercept = (self.parameters[name].reshape(-1) for name in self._params)
        Y, X_hat, inv_std = normalization.layernorm_forward(rows, scaler, intercept, self.epsilon)
        return Y.reshape(X.shape), {"X_hat": X_hat.reshape(X.shape), "inv_std": inv_std}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX_hat = dY * scaler;  dX = inv_std * (dX_hat - mean(dX_hat) - X_hat * mean(dX_hat *
        X_hat)) with the example's means;  dscaler = sum(dY * X_hat), dintercept = sum(dY) over the
        examples.
        """
        rows = (len(dLdY), math.prod(dLdY.shape[1:]))
        dX, dscaler, dintercept = normalization.layernorm_backward(
            dLdY.reshape(rows),
            saved["X_hat"].reshape(rows),
            self.parameters["scaler"].reshape(-1),
            saved["inv_std"],
        )
        grads = {"scaler": dscaler, "intercept": dintercept} if params else {}
        return dX.reshape(dLdY.shape) if inputs else None, grads


class LayerNorm1D(_LayerNorm):
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + epsilon), by example.

    Parameters
    ----------
    epsilon : float >= 0
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : scaler, intercept, each (n_in,)
    derived_variables : none

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input and output (n_ex, n_in), floating. Mean and (biased) variance are those of the example's
    n_in features. scaler starts at one, intercept at zero (numpy-ml draws scaler from [0, 1)).
    Source: Ba, Kiros & Hinton, "Layer normalization" (2016), section 3.
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _hyper = ("act_fn", "n_in", "n_out", "epsilon")

    def __init__(self, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        self.n_in: int | None = None
        self.n_out: int | None = None
        super().__init__(epsilon, optimizer)

    def _init_params(self) -> None:
        self.n_out = self.n_in
        self._create("scaler", (self.n_in,), ones)
        self._create("intercept", (self.n_in,))


class LayerNorm2D(_LayerNorm):
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + epsilon), by image.

    Parameters
    ----------
    epsilon : float >= 0
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : scaler, intercept, each (rows, cols, in_ch): one for each element of an image
    derived_variables : none

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range. `forward` raises ShapeError for images of
        another size than the first ones.

    Notes
    -----
    Input and output (n_ex, rows, cols, in_ch), floating. Mean and (biased) variance are those of
    all rows * cols * in_ch elements of the image. scaler starts at one, intercept at zero (numpy-ml
    draws scaler from [0, 1)).
    Source: Ba, Kiros & Hinton, "Layer normalization" (2016), section 3.
    """

    _ndim, _axes, _size = 4, "(n_ex, rows, cols, in_ch)", ("in_ch", 3)
    _hyper = ("act_fn", "in_ch", "out_ch", "epsilon")

    def __init__(self, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        self.in_ch: int | None = None
        self.out_ch: int | None = None
        self._image: tuple[int, ...] = ()  # rows and columns of the input at hand
        super().__init__(epsilon, optimizer)

    def _init_params(self) -> None:
        self.out_ch = self.in_ch
        loaded = self.parameters["scaler"]
        image = self._image if loaded is None else loaded.shape[:2]
        self._create("scaler", (*image, self.in_ch), ones)
        self._create("intercept", (*image, self.in_ch))

    def _check_input(self, X: Any) -> Array:
        """As in `LayerBase`; the images must not be empty, nor of another size than the first."""
        self._image = getattr(X, "shape", ())[1:3]
        if getattr(X, "ndim", 0) == 4 and 0 in self._image:
            raise ShapeError(
                f"{self._name}: expected an input {self._axes} with rows and cols >= 1, "
                f"got shape {X.shape}"
            )
        X = super()._check_input(X)
        rows, cols, _ = self.parameters["scaler"].shape
        if X.shape[1:3] != (rows, cols):
            raise ShapeError(
                f"{self._name}: expected an input {self._axes} with rows = {rows} and "
                f"cols = {cols}, as the first input had, got shape {X.shape}"
            )
        return X


class GroupNorm(LayerBase):
    """Y = scaler * X_hat + intercept with X_hat = (X - mean) / sqrt(var + epsilon), by image and
    group of channels.

    Parameters
    ----------
    n_groups : int >= 1
        Must divide the number of channels; neighbouring channels form a group. 1 normalises whole
        images (as `LayerNorm2D`, but with a scaler per channel), in_ch each channel by itself
        (instance normalisation).
    epsilon : float >= 0
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : scaler, intercept, each (in_ch,)
    derived_variables : none

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range. `forward` raises ShapeError if n_groups does not
        divide in_ch.

    Notes
    -----
    Input and output (n_ex, rows, cols, in_ch), floating, images of any size. Mean and (biased)
    variance are those of the rows * cols * in_ch / n_groups elements. scaler starts at one,
    intercept at zero. Does not depend on the batch: for small batches, where batch normalisation
    is noisy. (Not in numpy-ml; equals PyTorch's GroupNorm.)
    Source: Wu & He, "Group normalization" (2018), section 3.
    """

    _ndim, _axes, _size = 4, "(n_ex, rows, cols, in_ch)", ("in_ch", 3)
    _params = ("scaler", "intercept")
    _hyper = ("n_groups", "in_ch", "out_ch", "epsilon")

    def __init__(self, n_groups: int, epsilon: float = 1e-5, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.in_ch: int | None = None
        self.out_ch: int | None = None
        self.n_groups = n_groups
        self.epsilon = epsilon
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.n_groups = check.integer(self._name, "n_groups", self.n_groups)
        self.epsilon = check.number(self._name, "epsilon", self.epsilon, 0, math.inf, "[")

    def _init_params(self) -> None:
        self.out_ch = self.in_ch
        self._create("scaler", (self.in_ch,), ones)
        self._create("intercept", (self.in_ch,))

    def _grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(n_ex, pixels, groups, channels of a group); mean and variance go over axes 1 and 3."""
        n, rows, cols, ch = shape
        return n, rows * cols, self.n_groups, ch // self.n_groups

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Y = scaler * X_hat + intercept."""
        _, rows, cols, ch = X.shape
        if ch % self.n_groups or not rows * cols:
            raise ShapeError(
                f"{self._name}: expected an input {self._axes} with rows and cols >= 1 and in_ch "
                f"divisible by n_groups = {self.n_groups}, got shape {X.shape}"
            )
        X_hat, inv_std = normalization.standardize_forward(
            X.reshape(self._grouped(X.shape)), (1, 3), self.epsilon
        )
        X_hat = X_hat.reshape(X.shape)
        Y = self.parameters["scaler"] * X_hat + self.parameters["intercept"]
        return Y, {"X_hat": X_hat, "inv_std": inv_std}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dX_hat = dY * scaler;  dX = inv_std * (dX_hat - mean(dX_hat) - X_hat * mean(dX_hat *
        X_hat)) with the group's means;  dscaler = sum(dY * X_hat), dintercept = sum(dY) over
        examples and pixels.
        """
        X_hat, grouped = saved["X_hat"], self._grouped(dLdY.shape)
        dX: Array | None = None
        grads: dict[str, Array] = {}
        if params:
            grads["scaler"] = conv.bias_grad(dLdY * X_hat)
            grads["intercept"] = conv.bias_grad(dLdY)
        if inputs:
            dX_hat = (dLdY * self.parameters["scaler"]).reshape(grouped)
            dX = normalization.standardize_backward(
                dX_hat, X_hat.reshape(grouped), saved["inv_std"], (1, 3)
            ).reshape(dLdY.shape)
        return dX, grads
