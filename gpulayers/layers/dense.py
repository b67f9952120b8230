"""Fully connected layer."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array
from gpulayers.initializers import ActivationInitializer, WeightInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops._product import product


class FullyConnected(LayerBase):
    """Y = act(X W + b): every output sees every input.

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
        None is the identity.
    init : str
        How W is drawn, see `gpulayers.initializers.WeightInitializer`; b starts at zero.
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : W (n_in, n_out), b (1, n_out)
    derived_variables : Z, the pre-activations X W + b

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), output (n_ex, n_out), floating.
    Source: Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors"
    (1986); Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.5.
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _params = ("W", "b")
    _hyper = ("init", "n_in", "n_out", "act_fn")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = None,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out = n_out
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        WeightInitializer(str(self.act_fn), mode=self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": []}

    def _init_params(self) -> None:
        weights = WeightInitializer(str(self.act_fn), mode=self.init)
        self._create("W", (self.n_in, self.n_out), weights)
        self._create("b", (1, self.n_out))

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = X W + b;  Y = act(Z)."""
        Z = product(X, self.parameters["W"])
        Y = activation.bias_activation(Z, self.parameters["b"], self.act_fn)  # adds b to Z in place
        return Y, {"X": X, "Z": Z}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dW = X^T dZ;  db = sum of dZ over the examples;  dX = dZ W^T."""
        dZ = activation.activation_backward(dLdY, saved["Z"], self.act_fn)
        grads = {"W": product(saved["X"].T, dZ), "b": conv.bias_grad(dZ)} if params else {}
        dX = product(dZ, self.parameters["W"].T) if inputs else None
        return dX, grads
