"""Layers with several inputs of one shape: their sum, their product."""

from __future__ import annotations

from abc import abstractmethod
from itertools import accumulate
from operator import mul
from typing import Any

from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers._state import Saved
from gpulayers.layers.base import LayerBase
from gpulayers.ops import activation


class _Merge(LayerBase):
    """What the layers with several inputs share."""

    _hyper = ("act_fn",)
    _result: str  # the name of the pre-activation in `derived_variables`

    def __init__(self, act_fn: Any = None, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.act_fn = ActivationInitializer(act_fn)()

    def _new_derived(self) -> dict[str, Any]:
        return {self._result: []}

    def forward(self, X: list[Array], retain_derived: bool = True) -> Array:
        """Merge the inputs.

        Parameters
        ----------
        X : list or tuple of arrays
            At least one; all of one shape (n_ex, ...), one floating dtype and one backend. They
            are not changed. (numpy-ml broadcasts unequal shapes here, and then returns gradients
            of the wrong shape.)
        retain_derived : bool
            Keep what `backward` needs.

        Returns
        -------
        Y : array of the inputs' shape and dtype

        Raises
        ------
        ShapeError
            For an empty list or inputs of different shapes.
        DTypeError
            If X is no list, or holds something else than floating arrays of one dtype.
        BackendError
            If numpy and cupy arrays are mixed.
        """
        return super().forward(X, retain_derived)

    def backward(
        self, dLdY: Array | list[Array], retain_grads: bool = True, input_grad: bool = True
    ) -> Any:
        """Carry the gradient back to each input.

        Parameters
        ----------
        dLdY : array or list of arrays
            Gradient with respect to the output; after several forward passes a list, one each.
        retain_grads : bool
            Without effect: there are no parameters.
        input_grad : bool
            False skips the gradients; the result is then None.

        Returns
        -------
        dLdX : list of arrays
            One per input, each an array of its own; after several forward passes a list of such
            lists.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As in `LayerBase.backward`.
        """
        return super().backward(dLdY, retain_grads, input_grad)

    def _check_input(self, X: Any) -> Any:
        """Return the inputs as a list of C-contiguous arrays that fit each other."""
        if not is_sequence(X):
            raise DTypeError(
                f"{self._name}: expected a list of input arrays, got {type(X).__name__}"
            )
        if not X:
            raise ShapeError(f"{self._name}: expected at least one input, got an empty list")
        homes = [self._check_array(f"input {i}", x) for i, x in enumerate(X)]
        if X[0].ndim == 0:
            raise ShapeError(f"{self._name}: expected inputs with at least one axis, got shape ()")
        for i, x in enumerate(X):
            if homes[i] != homes[0]:
                raise BackendError(
                    f"{self._name}: input {i} is a {homes[i]} array, input 0 a {homes[0]} one; "
                    "move one with gpulayers.backend.to_backend(...)"
                )
            if x.shape != X[0].shape:
                raise ShapeError(
                    f"{self._name}: the inputs must have one shape; input 0 has {X[0].shape}, "
                    f"input {i} has {x.shape}"
                )
            if x.dtype != X[0].dtype:
                raise DTypeError(
                    f"{self._name}: the inputs must have one dtype; input 0 is {X[0].dtype}, "
                    f"input {i} is {x.dtype}"
                )
        return [self._converted(x, None) for x in X]

    def _forward(self, X: Any, training: bool) -> tuple[Array, Saved]:
        """Z = the inputs merged;  Y = act(Z)."""
        Z = self._merge(X)
        Y = activation.bias_activation(Z, None, self.act_fn)
        return Y, {"X": X, self._result: Z}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Any:
        """dZ = dY * act'(Z);  each input's share of dZ as `_split` says."""
        if not inputs:
            return None, {}
        dZ = activation.activation_backward(dLdY, saved[self._result], self.act_fn)
        return self._split(dZ, saved["X"]), {}

    @abstractmethod
    def _merge(self, Xs: list[Array]) -> Array:
        """Return Z, a new array."""

    @abstractmethod
    def _split(self, dZ: Array, Xs: list[Array]) -> list[Array]:
        """Return one new array per input."""


class Add(_Merge):
    """Y = act(X_1 + X_2 + ...), elementwise: residual connections meet in it.

    Parameters
    ----------
    act_fn : str, activation or None
        None is the identity.
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters : none
    derived_variables : sum, the pre-activations
    X : list with one list of inputs per forward pass

    Raises
    ------
    ParameterError
        For an unknown activation.

    Notes
    -----
    Input ``[X1, X2, ...]``, arrays of one shape; output of that shape and dtype. In
    `hyperparameters` and `summary` the layer's name is ``"Sum"``, as in numpy-ml.
    Source: He et al., "Deep residual learning for image recognition" (2016), section 3.2.
    """

    _kind = "Sum"
    _result = "sum"

    def _merge(self, Xs: list[Array]) -> Array:
        """Z = X_1 + X_2 + ..."""
        Z = Xs[0].copy()
        for X in Xs[1:]:
            Z += X
        return Z

    def _split(self, dZ: Array, Xs: list[Array]) -> list[Array]:
        """dX_i = dZ."""
        return [dZ.copy() for _ in Xs]  # a caller may add to one in place


class Multiply(_Merge):
    """Y = act(X_1 * X_2 * ...), elementwise: gates meet what they gate in it.

    Parameters
    ----------
    act_fn : str, activation or None
        None is the identity.
    optimizer : str, optimizer, dict or None
        Unused: there is nothing to learn.

    Attributes
    ----------
    parameters : none
    derived_variables : product, the pre-activations
    X : list with one list of inputs per forward pass

    Raises
    ------
    ParameterError
        For an unknown activation.

    Notes
    -----
    Input ``[X1, X2, ...]``, arrays of one shape; output of that shape and dtype. The gradient does
    not divide by an input, so zeros are right.
    Source: the product rule; as a layer, e.g., Hochreiter & Schmidhuber, "Long short-term memory"
    (1997), section 4.
    """

    _result = "product"

    def _merge(self, Xs: list[Array]) -> Array:
        """Z = X_1 * X_2 * ..."""
        Z = Xs[0].copy()
        for X in Xs[1:]:
            Z *= X
        return Z

    def _split(self, dZ: Array, Xs: list[Array]) -> list[Array]:
        """dX_i = dZ * (product of the inputs before i) * (product of those after i)."""
        before: list[Array] = list(accumulate([dZ, *Xs[:-1]], mul))
        after: list[Array] = list(accumulate(Xs[:0:-1], mul))
        dXs: list[Array] = [
            b * a for b, a in zip(before, reversed(after), strict=False)
        ]  # the last has none after it
        return [*dXs, before[-1] if dXs else dZ.copy()]
