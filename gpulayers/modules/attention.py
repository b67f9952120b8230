"""Multi-headed attention."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, backend_of, is_floating, xp_of
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.layers import DotProductAttention, FullyConnected
from gpulayers.layers import _arguments as check
from gpulayers.modules.base import ModuleBase
from gpulayers.wrappers import Dropout


class MultiHeadedAttentionModule(ModuleBase):
    """Attention between several projections of queries, keys and values at once.

        head_h = attention(Q Wq_h + bq_h, K Wk_h + bk_h, V Wv_h + bv_h)
        Y = [head_1, ..., head_n] Wo + bo

    Parameters
    ----------
    n_heads : int
    dropout_p : float in [0, 1)
        On the attention weights and, as in numpy-ml, on the inputs of the four projections.
    init : str
    optimizer : str, optimizer, dict or None
        Copied into every component.

    Attributes
    ----------
    component_ids : attention (DotProductAttention), Q, K, V, O (each Dropout(FullyConnected))
        W (kqv_dim, kqv_dim), b (1, kqv_dim); head h uses the columns h * latent_dim and after.
    projections : dict with Q, K, V, O
    kqv_dim, latent_dim : int or None
        The size of a query, key or value, and of its part in one head.
    derived_variables : the components'; Q_proj, K_proj, V_proj (n_ex, n_heads, T, latent_dim),
        attention_weights (one per retained input), attention_out (n_ex, T, kqv_dim) of the last
        forward pass; dQ_proj, dK_proj, dV_proj, gradients of the former, of the last backward pass

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Inputs Q (n_ex, T_q, kqv_dim), K and V (n_ex, T_k, kqv_dim); output (n_ex, T_q, kqv_dim).
    numpy-ml's form, three inputs (n_ex, kqv_dim), is taken as sequences of length one and gives
    (n_ex, 1, kqv_dim); it knows no other, so that its attention weights are all 1, and it never
    updates the projections.
    Source: Vaswani et al., "Attention is all you need" (2017), section 3.2.2.
    """

    component_ids = ("attention", "Q", "K", "V", "O")
    _hyper = ("init", "kqv_dim", "latent_dim", "n_heads", "dropout_p")
    _settings = ("n_heads", "dropout_p", "init")

    def __init__(
        self,
        n_heads: int = 8,
        dropout_p: float = 0,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.n_heads = check.integer(self._name, "n_heads", n_heads)
        self.dropout_p, self.init = dropout_p, init
        with self._named():
            self.attention = DotProductAttention(True, dropout_p, init, optimizer)
            # n_out is told by the first input
            self.projections = {
                name: Dropout(FullyConnected(n_heads, None, init, optimizer), dropout_p)
                for name in self.component_ids[1:]
            }

    def _parts(self) -> dict[str, Any]:
        return {"attention": self.attention, **self.projections}

    @property
    def kqv_dim(self) -> int | None:
        return self.projections["Q"].hyperparameters["n_in"]

    @property
    def latent_dim(self) -> int | None:
        return None if self.kqv_dim is None else self.kqv_dim // self.n_heads

    def _check(self, X: tuple[Any, Any, Any]) -> None:
        """Raise unless Q, K and V fit each other and the module."""
        homes: list[str] = []
        for name, x in zip("QKV", X, strict=True):
            try:
                homes.append(backend_of(x))
            except DTypeError as error:
                raise DTypeError(f"{name}: {error}") from None
            if not is_floating(x.dtype):
                raise DTypeError(f"{name} must have a floating dtype, got {x.dtype}")
        if len(set(homes)) > 1:
            raise BackendError(
                f"Q, K and V are {', '.join(homes)} arrays; move them to one backend with "
                "gpulayers.backend.to_backend(...)"
            )
        Q, K, V = X
        dim = self.kqv_dim or (Q.shape[-1] if Q.ndim else 0)
        fits = (
            Q.ndim in (2, 3)
            and Q.ndim == K.ndim
            and K.shape == V.shape
            and Q.shape[0] == K.shape[0]
            and Q.shape[-1] == K.shape[-1] == dim
            and min(K.shape[1:]) >= 1
        )
        if not fits:
            wanted = self.kqv_dim or "kqv_dim"
            raise ShapeError(
                f"expected Q (n_ex, T_q, {wanted}), K and V (n_ex, T_k, {wanted}) with T_k >= 1, "
                f"or all three (n_ex, {wanted}), got shapes {Q.shape}, {K.shape}, {V.shape}"
            )
        if dim % self.n_heads:
            raise ShapeError(
                f"the inputs' last dimension must be a multiple of n_heads = {self.n_heads}, "
                f"got {dim}"
            )

    def _project(self, name: str, X: Array, retain: bool) -> Array:
        """(n_ex, T, kqv_dim) through a projection, as (n_ex, n_heads, T, latent_dim)."""
        n_ex, T, dim = X.shape
        Y = self.projections[name].forward(X.reshape(n_ex * T, dim), retain)
        return _split(Y.reshape(n_ex, T, dim), self.n_heads)

    def forward(self, Q: Array, K: Array, V: Array, retain_derived: bool = True) -> Array:
        """Attend with all heads.

        Parameters
        ----------
        Q : (n_ex, T_q, kqv_dim) or (n_ex, kqv_dim), floating
        K, V : (n_ex, T_k, kqv_dim) or (n_ex, kqv_dim), floating
            They are not changed.
        retain_derived : bool
            As in `LayerBase.forward`.

        Returns
        -------
        Y : (n_ex, T_q, kqv_dim)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """

        def forward() -> tuple[Array, dict[str, Any]]:
            self._check((Q, K, V))
            for layer in self.projections.values():
                if not layer.is_initialized:
                    layer._base_layer.n_out = Q.shape[-1]  # type: ignore[attr-defined]
            shapes = [(x.shape[0], 1, x.shape[1]) if x.ndim == 2 else x.shape for x in (Q, K, V)]
            heads = [
                self._project(name, x.reshape(shape), retain_derived)
                for name, x, shape in zip("QKV", (Q, K, V), shapes, strict=True)
            ]
            out = _join(self.attention.forward(*heads, retain_derived=retain_derived))
            n_ex, T, dim = out.shape
            Y = self.projections["O"].forward(out.reshape(n_ex * T, dim), retain_derived)
            Y = Y.reshape(out.shape)
            kept = {f"{name}_proj": h for name, h in zip("QKV", heads, strict=True)}
            return Y, {**kept, "attention_out": out, "Y": Y}

        Y = self._run(forward, (Q, K, V), retain_derived)
        if retain_derived:
            del self._dv["Y"]
            weights = self.attention.derived_variables["attention_weights"]
            self._dv["attention_weights"] = list(weights)
        return Y

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Back through the output projection, the attention, and the three projections.

        Parameters
        ----------
        dLdY, retain_grads, input_grad
            As in `LayerBase.backward`.

        Returns
        -------
        dQ, dK, dV : of the inputs' shapes; lists of arrays after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        grads = [g.reshape(g.shape[0] * g.shape[1], g.shape[2]) for g in self._gradients(dLdY, "Y")]
        with self._named():
            dOut = self._several(self.projections["O"].backward(grads, retain_grads))
            dHeads = [
                _split(g.reshape(kept["attention_out"].shape), self.n_heads)
                for g, kept in zip(dOut, self._kept, strict=True)
            ]
            dX: list[Any] = []
            for k, (name, column) in enumerate(
                zip("QKV", self.attention.backward(dHeads), strict=True)
            ):
                self._dv[f"d{name}_proj"] = column
                rows = [_join(g) for g in self._several(column)]
                rows = [g.reshape(g.shape[0] * g.shape[1], g.shape[2]) for g in rows]
                through = self.projections[name].backward(rows, retain_grads, input_grad)
                if input_grad:
                    pairs = zip(self._several(through), self.X, strict=True)
                    dX.append(self._as_given([g.reshape(X[k].shape) for g, X in pairs]))
        return tuple(dX) if input_grad else None


def _split(X: Array, n_heads: int) -> Array:
    """(n_ex, T, dim) as (n_ex, n_heads, T, dim / n_heads)."""
    n_ex, T, dim = X.shape
    heads = X.reshape(n_ex, T, n_heads, dim // n_heads)
    return xp_of(X).ascontiguousarray(heads.swapaxes(1, 2))


def _join(X: Array) -> Array:
    """(n_ex, n_heads, T, latent_dim) as (n_ex, T, n_heads * latent_dim)."""
    n_ex, n_heads, T, latent = X.shape
    return xp_of(X).ascontiguousarray(X.swapaxes(1, 2)).reshape(n_ex, T, n_heads * latent)
