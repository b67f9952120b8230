"""Scaled dot-product attention."""

from __future__ import annotations

import math
from typing import Any

from gpulayers._types import is_list
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.layers.dropout import draw_kept, drop
from gpulayers.ops import softmax
from gpulayers.ops._product import batched_product


class DotProductAttention(LayerBase):
    """Each query looks at all keys, and takes the average of the values so weighted.

        P = softmax(Q K^T / sqrt(d_k))        Y = dropout(P) V

    Parameters
    ----------
    scale : bool
        Whether to divide the scores by sqrt(d_k).
    dropout_p : float in [0, 1)
        The probability of setting a weight to zero while training; the others are divided by
        1 - dropout_p. (numpy-ml sets scores to zero, before the softmax, and multiplies after it,
        so that every row sums to 1 / (1 - p).)
    init : str
        Unused: there are no weights to draw. numpy-ml lists it.
    optimizer : str, optimizer, dict or None
        Unused.

    Attributes
    ----------
    parameters : none
    derived_variables : attention_weights, P (..., n_q, n_k), whose rows sum to one; dropout_mask,
        the kept weights as bool, or None if none was dropped
    X : list with one tuple (Q, K, V) per forward pass

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input Q (..., n_q, d_k), K (..., n_k, d_k), V (..., n_k, d_v) with any leading dimensions, the
    same for all three (examples, heads); output (..., n_q, d_v); one floating dtype.
    Source: Vaswani et al., "Attention is all you need" (2017), section 3.2.1; dropout on the
    weights as in the authors' code and in PyTorch.
    """

    _hyper = ("init", "scale", "dropout_p")

    def __init__(
        self,
        scale: bool = True,
        dropout_p: float = 0,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.scale = scale
        self.dropout_p = dropout_p
        self.init = init
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.scale = check.choice(self._name, "scale", self.scale, (True, False))
        self.dropout_p = check.number(self._name, "dropout_p", self.dropout_p, 0, 1, "[")
        check.weights(self._name, "Identity", self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"attention_weights": [], "dropout_mask": []}

    def forward(  # type: ignore[override]
        self, Q: Array, K: Array, V: Array, retain_derived: bool = True
    ) -> Array:
        """Attend.

        Parameters
        ----------
        Q : (..., n_q, d_k), queries
        K : (..., n_k, d_k), keys
        V : (..., n_k, d_v), values
            Floating, of one dtype and backend. They are not changed.
        retain_derived : bool
            Keep what `backward` needs. False is evaluation: no weight is dropped.

        Returns
        -------
        Y : (..., n_q, d_v)

        Raises
        ------
        ShapeError, DTypeError, BackendError
            If the inputs do not fit each other.
        """
        return super().forward((Q, K, V), retain_derived)

    def backward(
        self, dLdY: Array | list[Array], retain_grads: bool = True, input_grad: bool = True
    ) -> Any:
        """Carry the gradient back to queries, keys and values.

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
        dQ, dK, dV : arrays; after several forward passes lists of arrays

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As in `LayerBase.backward`.
        """
        grads = super().backward(dLdY, retain_grads, input_grad)
        if input_grad and is_list(grads):
            return tuple(list(column) for column in zip(*grads, strict=True))
        return grads if input_grad else None

    def _check_input(self, X: Any) -> Any:
        """Return Q, K and V, C-contiguous, after checking that they fit each other."""
        homes = [self._check_array(name, x) for name, x in zip("QKV", X, strict=True)]
        Q, K, V = X
        for name, x, home in zip("KV", (K, V), homes[1:], strict=True):
            if home != homes[0]:
                raise BackendError(
                    f"{self._name}: {name} is a {home} array, Q a {homes[0]} one; move one with "
                    "gpulayers.backend.to_backend(...)"
                )
            if x.dtype != Q.dtype:
                raise DTypeError(
                    f"{self._name}: Q, K and V must have one dtype; Q is {Q.dtype}, {name} is "
                    f"{x.dtype}"
                )
        fits = (
            min(Q.ndim, K.ndim, V.ndim) >= 2
            and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
            and Q.shape[-1] == K.shape[-1] >= 1
            and K.shape[-2] == V.shape[-2] >= 1
        )
        if not fits:
            raise ShapeError(
                f"{self._name}: expected Q (..., n_q, d_k), K (..., n_k, d_k), V (..., n_k, d_v) "
                "with the same leading dimensions and n_k, d_k >= 1, got shapes "
                f"{Q.shape}, {K.shape}, {V.shape}"
            )
        return tuple(self._converted(x, None) for x in X)

    def _factor(self, Q: Array) -> Any:
        return Q.dtype.type(1 / math.sqrt(Q.shape[-1]) if self.scale else 1)

    def _forward(self, X: Any, training: bool) -> tuple[Array, Saved]:
        """P = softmax(Q K^T / sqrt(d_k));  Y = dropout(P) V."""
        Q, K, V = (_as_batch(x) for x in X)
        scores = batched_product(Q * self._factor(Q), K.swapaxes(1, 2))
        P = softmax.softmax_forward(scores)
        kept = draw_kept(P, self.dropout_p) if training and self.dropout_p > 0 else None
        used = P if kept is None else drop(P, kept, self.dropout_p)
        lead, weights_shape = X[0].shape[:-2], (*X[0].shape[:-1], X[1].shape[-2])
        Y = batched_product(used, V).reshape(*lead, Q.shape[1], V.shape[2])
        return Y, {
            "X": X,
            "attention_weights": P.reshape(weights_shape),
            "dropout_mask": None if kept is None else kept.reshape(weights_shape),
        }

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward | Any:
        """dV = dropout(P)^T dY;  dP = dropout(dY V^T);  dS = softmax'(dP);
        dQ = dS K / sqrt(d_k);  dK = dS^T Q / sqrt(d_k)."""
        if not inputs:
            return None, {}
        Q, K, V = (_as_batch(x) for x in saved["X"])
        P, kept, dY = _as_batch(saved["attention_weights"]), None, _as_batch(dLdY)
        used, dP = P, batched_product(dY, V.swapaxes(1, 2))
        if saved["dropout_mask"] is not None:
            kept = _as_batch(saved["dropout_mask"])
            used, dP = drop(P, kept, self.dropout_p), drop(dP, kept, self.dropout_p)
        dS = softmax.softmax_backward(dP, P) * self._factor(Q)
        dQ = batched_product(dS, K)
        dK = batched_product(dS.swapaxes(1, 2), Q)
        dV = batched_product(used.swapaxes(1, 2), dY)
        return tuple(
            grad.reshape(x.shape) for grad, x in zip((dQ, dK, dV), saved["X"], strict=True)
        ), {}


def _as_batch(X: Array) -> Array:
    """(..., n, d) as (m, n, d)."""
    return X.reshape(math.prod(X.shape[:-2]), *X.shape[-2:])
