"""A long short-term memory in both directions of time."""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import DTypeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import LSTM
from gpulayers.layers import _arguments as check
from gpulayers.modules.base import ModuleBase


class _Direction(LSTM):
    """One direction; numpy-ml's summaries call it a cell."""

    _kind = "LSTMCell"

    @property
    def _name(self) -> str:
        return "LSTM"  # in messages: this class is nobody's business


class BidirectionalLSTM(ModuleBase):
    """Two `LSTM` over one sequence, the second from its end; their outputs are merged.

        F_t = LSTM_fwd(X_1, ..., X_t)         B_t = LSTM_bwd(X_T, ..., X_t)

    Parameters
    ----------
    n_out : int
        Outputs of each direction.
    act_fn, gate_fn : str, activation or None
        None is Tanh and Sigmoid.
    merge_mode : ``"concat"``, ``"sum"``, ``"average"`` or ``"multiply"``
        [F_t, B_t], F_t + B_t, (F_t + B_t) / 2 or F_t * B_t.
    init : str
    optimizer : str, optimizer, dict or None
        Copied into both components.

    Attributes
    ----------
    component_ids : cell_fwd, cell_bwd
        Parameters as `LSTM`. cell_bwd sees, and shows, the sequence backwards.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in, n_t), time last; output (n_ex, 2 n_out, n_t) for ``"concat"``, else
    (n_ex, n_out, n_t). Several forward passes are several, independent sequences.
    Source: Schuster & Paliwal, "Bidirectional recurrent neural networks" (1997); Graves &
    Schmidhuber, "Framewise phoneme classification with bidirectional LSTM" (2005).
    """

    component_ids = ("cell_fwd", "cell_bwd")
    _hyper = ("init", "n_in", "n_out", "act_fn", "gate_fn", "merge_mode")
    _settings = ("n_out", "act_fn", "gate_fn", "merge_mode", "init")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = None,
        gate_fn: Any = None,
        merge_mode: str = "concat",
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.merge_mode = merge_mode
        self.init = init
        self.act_fn = ActivationInitializer("Tanh" if act_fn is None else act_fn)()
        self.gate_fn = ActivationInitializer("Sigmoid" if gate_fn is None else gate_fn)()
        with self._named():
            self.cell_fwd = _Direction(n_out, self.act_fn, self.gate_fn, init, optimizer)
            self.cell_bwd = _Direction(n_out, self.act_fn, self.gate_fn, init, optimizer)
        self.n_out = self.cell_fwd.n_out

    @property
    def merge_mode(self) -> str:
        return self._merge_mode

    @merge_mode.setter
    def merge_mode(self, mode: str) -> None:
        modes = ("concat", "sum", "average", "multiply")
        self._merge_mode = check.choice(self._name, "merge_mode", mode, modes)

    @property
    def n_in(self) -> int | None:
        return self.cell_fwd.n_in

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Go over the sequence in both directions.

        Parameters
        ----------
        X : (n_ex, n_in, n_t), floating
            It is not changed.
        retain_derived : bool
            As in `LayerBase.forward`.

        Returns
        -------
        Y : (n_ex, 2 n_out or n_out, n_t)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """

        def forward() -> tuple[Array, dict[str, Any]]:
            F = self.cell_fwd.forward(X, retain_derived)
            B = _turned(self.cell_bwd.forward(_turned(X), retain_derived))
            match self.merge_mode:
                case "concat":
                    Y = xp_of(F).concatenate([F, B], axis=1)
                case "sum":
                    Y = F + B
                case "average":
                    Y = (F + B) * F.dtype.type(0.5)
                case _:
                    Y = F * B
            return Y, {"F": F, "B": B, "Y": Y}

        Y = self._run(forward, X, retain_derived)
        self._dv.clear()
        return Y

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Through time in both directions; the two gradients of X add up.

        Parameters
        ----------
        dLdY, retain_grads, input_grad
            As in `LayerBase.backward`.

        Returns
        -------
        dLdX : (n_ex, n_in, n_t), or list of arrays after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        dF: list[Array] = []
        dB: list[Array] = []
        for dY, kept in zip(self._gradients(dLdY, "Y"), self._kept, strict=True):
            if not is_floating(dY.dtype):
                raise DTypeError(
                    f"{self._name}: the gradient must have a floating dtype, got {dY.dtype}"
                )
            dY = dY.astype(kept["Y"].dtype, copy=False)
            match self.merge_mode:
                case "concat":
                    forwards, backwards = dY[:, : self.n_out], dY[:, self.n_out :]
                case "sum":
                    forwards = backwards = dY
                case "average":
                    forwards = backwards = dY * dY.dtype.type(0.5)
                case _:
                    forwards, backwards = dY * kept["B"], dY * kept["F"]
            dF.append(forwards)
            dB.append(_turned(backwards))
        with self._named():
            ahead = self.cell_fwd.backward(dF, retain_grads, input_grad)
            back = self.cell_bwd.backward(dB, retain_grads, input_grad)
        if not input_grad:
            return None
        pairs = zip(self._several(ahead), self._several(back), strict=True)
        return self._as_given([a + _turned(b) for a, b in pairs])


def _turned(X: Array) -> Array:
    """`X` with time, its last axis, backwards."""
    return xp_of(X).ascontiguousarray(X[..., ::-1])
