"""Vectors for words: a table of rows looked up by integer ids."""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from gpulayers import backend
from gpulayers.backend import Array, xp_of
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import embedding


class Embedding(LayerBase):
    """Y = W[ids]: each id becomes its row of W; with pooling, each example the sum of its rows.

    Parameters
    ----------
    n_out : int
        Length of the vectors.
    vocab_size : int
        Ids are 0 .. vocab_size - 1.
    pool : None, ``"sum"`` or ``"mean"``
        Over the ids of an example.
    init : str
        How W is drawn, see `gpulayers.initializers.WeightInitializer`.
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : W (vocab_size, n_out), there from the start; it moves to the backend of the first
        input
    derived_variables : none

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), integer; output (n_ex, n_in, n_out), pooled (n_ex, 1, n_out), in the dtype
    of W. Without pooling any other shape works too: Y has one axis more. Lists: see `forward`.
    An id that occurs several times in an example counts as often in the gradient (numpy-ml's pooled
    gradient counts it once). Gradients are added in an order that the ids fix: the same in every
    run, on a GPU too. There is no gradient of the ids: `backward` returns None.
    Source: Bengio et al., "A neural probabilistic language model" (2003), section 2.
    """

    _axes = "(n_ex, n_in)"
    _params = ("W",)
    _hyper = ("init", "pool", "n_out", "vocab_size")

    def __init__(
        self,
        n_out: int,
        vocab_size: int,
        pool: str | None = None,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.n_out = n_out
        self.vocab_size = vocab_size
        self.pool = pool
        self.init = init
        self._check_hyperparameters()
        self._first_home = backend.current_backend()
        self._init_params()
        self.is_initialized = True

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        self.vocab_size = check.integer(self._name, "vocab_size", self.vocab_size)
        self.pool = check.choice(self._name, "pool", self.pool, (None, "sum", "mean"))
        check.weights(self._name, "Identity", self.init)

    def _init_params(self) -> None:
        weights = check.weights(self._name, "Identity", self.init)
        self._create("W", (self.vocab_size, self.n_out), weights)

    def forward(self, X: Any, retain_derived: bool = True) -> Array:
        """Look the ids up.

        Parameters
        ----------
        X : integer array, or list
            (n_ex, n_in); or a list with one vector of ids per example, each an integer array or a
            list of ints. Their lengths may differ if the layer pools; the sum and the mean of no
            ids are zero.
        retain_derived : bool
            Keep what `backward` needs.

        Returns
        -------
        Y : (n_ex, n_in, n_out), or (n_ex, 1, n_out) if pooled

        Raises
        ------
        ParameterError
            For an id out of range, on NumPy. On a GPU looking would make the host wait: there the
            output of such ids is NaN, and they get no gradient.
        ShapeError, DTypeError, BackendError
            If the input does not fit; the message says what was expected.
        """
        return super().forward(X, retain_derived)

    def backward(
        self, dLdY: Array | list[Array], retain_grads: bool = True, input_grad: bool = True
    ) -> None:
        """Add the gradient of W to `gradients`.

        Parameters
        ----------
        dLdY : array or list of arrays
            Gradient with respect to the output; after several forward passes a list, one each.
        retain_grads : bool
            False adds nothing.
        input_grad : bool
            Without effect: ids have no gradient.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            As in `LayerBase.backward`.
        """
        super().backward(dLdY, retain_grads, input_grad)

    def lookup(self, ids: Any) -> Array:
        """Return the rows of W with these ids, without pooling; nothing is retained.

        Parameters
        ----------
        ids : integer array of any shape, or a list of ints

        Returns
        -------
        rows : (*ids.shape, n_out), a copy

        Raises
        ------
        ParameterError, ShapeError, DTypeError, BackendError
            As `forward`.
        """
        if isinstance(ids, (list, tuple)):
            ids = self._uploaded(ids)
        self._settle(self._check_ids("the ids", ids))
        return self._rows(ids)

    # ---- the formula

    def _rows(self, ids: Array) -> Array:
        try:
            return embedding.embedding_forward(self.parameters["W"], ids)
        except ParameterError as error:
            raise ParameterError(f"{self._name}: {error}") from None

    def _forward(self, X: Any, training: bool) -> tuple[Array, Saved]:
        """Y = W[ids];  pooled: the sum over the ids of an example, times 1 / count for the mean."""
        W, ragged = self.parameters["W"], isinstance(X, list)
        ids = xp_of(*X).concatenate(X) if ragged else X
        rows = self._rows(ids)
        if self.pool is None:
            return rows, {"ids": ids}
        counts = [len(x) for x in X] if ragged else [X.shape[1]]
        if ragged:
            example = embedding.segments(counts, xp_of(W))
            Y = embedding.embedding_backward(rows, example, len(X))[:, None, :]
        else:
            example = None
            wide = "float32" if W.dtype.itemsize == 2 else W.dtype
            Y = rows.sum(axis=1, keepdims=True, dtype=wide).astype(W.dtype, copy=False)
        scale = None
        if self.pool == "mean":
            shares = [1.0 / max(count, 1) for count in counts]
            scale = (
                xp_of(W).asarray(shares, dtype=W.dtype)[:, None, None]
                if ragged
                else W.dtype.type(shares[0])
            )
            Y = Y * scale
        return Y, {"ids": ids, "example": example, "scale": scale}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dW[k] = the sum of the gradients of all the places where id k was looked up."""
        if not params:
            return None, {}
        ids, dRows = saved["ids"], dLdY
        if self.pool is not None:
            dPooled = (dLdY if saved["scale"] is None else dLdY * saved["scale"])[:, 0]
            if saved["example"] is None:
                dRows = dPooled[:, None].repeat(ids.shape[1], axis=1)
            else:
                dRows = embedding.embedding_forward(dPooled, saved["example"])
        return None, {"W": embedding.embedding_backward(dRows, ids, self.vocab_size)}

    # ---- checks

    def _check_input(self, X: Any) -> Any:
        """Return an array of ids, or a list of vectors of them for a layer that pools."""
        if isinstance(X, (list, tuple)):
            return self._check_list(X)
        self._settle(self._check_ids("the input", X))
        if X.ndim == 0 or (self.pool is not None and X.ndim != 2):
            raise ShapeError(
                f"{self._name}: expected {'ids (n_ex, n_in)' if self.pool else 'an axis of ids'}, "
                f"got shape {X.shape}"
            )
        return self._converted(X, None)

    def _check_list(self, X: Any) -> Any:
        if not X:
            raise ShapeError(f"{self._name}: expected at least one example, got an empty list")
        lists = [isinstance(x, (list, tuple)) for x in X]
        if any(lists) and not all(lists):
            raise DTypeError(f"{self._name}: the examples must be all lists or all arrays")
        if all(lists):
            joined = self._uploaded([i for x in X for i in x])
            ends = accumulate(len(x) for x in X)
            X = [joined[end - len(x) : end] for x, end in zip(X, ends, strict=True)]
        homes = {self._check_ids(f"example {k}", x) for k, x in enumerate(X)}
        if len(homes) > 1:
            raise BackendError(f"{self._name}: the examples mix numpy and cupy arrays")
        for k, x in enumerate(X):
            if x.ndim != 1:
                raise ShapeError(
                    f"{self._name}: example {k} must be a vector of ids, got shape {x.shape}"
                )
        self._settle(homes.pop())
        if self.pool is not None:
            return list(X)
        lengths = {len(x) for x in X}
        if len(lengths) > 1:
            raise ShapeError(
                f"{self._name}: without pool all examples must have the same number of ids, "
                f"got {min(lengths)} to {max(lengths)}"
            )
        return xp_of(*X).stack(X)

    def _check_ids(self, what: str, ids: Any) -> str:
        """Return the backend of an integer array."""
        home = check.array(self._name, what, ids)
        if ids.dtype.kind not in "iu":
            raise DTypeError(f"{self._name}: {what} must hold integer ids, got {ids.dtype}")
        return home

    def _uploaded(self, ids: Any) -> Array:
        """A list of ints as an array where W is."""
        try:
            numbers = [operator.index(i) for i in ids]
        except TypeError:
            raise DTypeError(f"{self._name}: a list of ids must hold ints") from None
        W = self.parameters["W"]
        check.array(self._name, "parameter 'W'", W)
        return xp_of(W).asarray(numbers, dtype="int64")
