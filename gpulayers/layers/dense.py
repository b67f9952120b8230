"""Fully connected layer."""

from __future__ import annotations

from typing import Any

from gpulayers.activations import Identity
from gpulayers.backend import Array
from gpulayers.errors import BackendError, ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._product import add_product, product


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
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": []}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (self.n_in, self.n_out), weights)
        self._create("b", (1, self.n_out))

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = X W + b;  Y = act(Z)."""
        W, b = self.parameters["W"], self.parameters["b"].reshape(-1)
        act: object = self.act_fn
        if type(act) is Identity and _plain(X, W, b):
            Y = Z = kernels_for(X, W).dense_forward(X, W, b, False)
        else:
            Z = product(X, W)
            Y = activation.bias_activation(Z, b, self.act_fn)  # adds b to Z in place
        return Y, {"X": X, "Z": Z}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dW = X^T dZ;  db = sum of dZ over the examples;  dX = dZ W^T."""
        dZ = self._through_activation(dLdY, saved)
        grads = {"W": product(saved["X"].T, dZ), "b": conv.bias_grad(dZ)} if params else {}
        dX = product(dZ, self.parameters["W"].T) if inputs else None
        return dX, grads

    def _backward_step(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """The same, dW being added up where it is to go."""
        if type(self)._backward is not FullyConnected._backward:  # a subclass has its own
            return super()._backward_step(dLdY, saved, params, inputs)
        dZ = self._through_activation(dLdY, saved)
        if params:
            add_product(self.gradients["W"], saved["X"].T, dZ)
        dX = product(dZ, self.parameters["W"].T) if inputs else None
        return dX, {"b": conv.bias_grad(dZ)} if params else {}

    def _through_activation(self, dLdY: Array, saved: Saved) -> Array:
        act: object = self.act_fn
        if type(act) is Identity:
            return dLdY
        return activation.activation_backward(dLdY, saved["Z"], self.act_fn)

    def _bwd2(
        self, dLdy: Array, X: Array, dLdy_bwd: Array, input_grad: bool = False
    ) -> tuple[Array, ...]:
        """Double backward: the gradient of a loss that looks at dX = backward(dLdy_bwd).

        With U = dLdy and Z = X W + b, where dX = (dLdy_bwd * act'(Z)) W^T:

            ddX = (U W) * act'(Z)                           with respect to dLdy_bwd
            S   = (U W) * dLdy_bwd * act''(Z)               with respect to Z
            ddW = U^T (dLdy_bwd * act'(Z)) + X^T S;  ddB = sum of S over the examples
            ddX_in = S W^T                                  with respect to X

        numpy-ml leaves out X^T S, which is right only for piecewise linear activations.
        (Gradient penalties need it: Gulrajani et al., "Improved training of Wasserstein GANs",
        2017. In a chain of layers, call it from the first layer to the last, each ddX being the
        next layer's dLdy; then S W^T goes back as any gradient of an input does.)

        Parameters
        ----------
        dLdy : (n_ex, n_in)
            Gradient of the loss with respect to dX.
        X : (n_ex, n_in)
            The layer's input.
        dLdy_bwd : (n_ex, n_out)
            The gradient that `backward` was given.
        input_grad : bool
            Return ddX_in too. (Not in numpy-ml.)

        Returns
        -------
        ddX (n_ex, n_out), ddW (n_in, n_out), ddB (1, n_out) [, ddX_in (n_ex, n_in)]
            Nothing is added to `gradients`.

        Raises
        ------
        ShapeError, DTypeError, BackendError
        NotImplementedError
            If the activation is a user's own without `grad2`.
        """
        X = self._ready(X)
        shape = (X.shape[0], self.n_out)
        U = self._check_pair("dLdy", dLdy, X.shape)
        dY = self._check_pair("dLdy_bwd", dLdy_bwd, shape)
        W = self.parameters["W"]
        Z = product(X, W) + self.parameters["b"]
        UW = product(U, W)
        slope = self.act_fn.grad(Z)
        S = UW * dY * self.act_fn.grad2(Z)
        ddW = product(U.T, dY * slope) + product(X.T, S)
        second = (UW * slope, ddW, conv.bias_grad(S).reshape(1, -1))
        return (*second, product(S, W.T)) if input_grad else second

    def _check_pair(self, what: str, array: Array, shape: tuple[int, ...]) -> Array:
        home = self._check_array(what, array)
        if home != self.home:
            raise BackendError(f"{self._name}: {what} is a {home} array, the layer's {self.home}")
        if array.shape != shape:
            raise ShapeError(f"{self._name}: {what} must be {shape}, got {array.shape}")
        return self._converted(array, self.dtype)


def _plain(X: Array, W: Array, b: Array) -> bool:
    """Whether a kernel can take these as they are."""
    flags = X.flags.c_contiguous and W.flags.c_contiguous and b.flags.c_contiguous
    return flags and W.dtype == b.dtype == X.dtype and X.dtype.isnative
