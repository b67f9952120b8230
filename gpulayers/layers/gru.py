"""Gated recurrent units, forward through time and back. (Not in numpy-ml.)

    Gz = gate([A_{t-1}, X_t] Wz + bz)                           update: how much of A stays
    Gr = gate([A_{t-1}, X_t] Wr + br)                           reset
    M  = A_{t-1} Wn[:n_out] + ba                                the state's product
    N  = act(X_t Wn[n_out:] + bn + Gr * M)                      the candidate
    A_t = (1 - Gz) * N + Gz * A_{t-1},  A_0 = 0

The reset gate acts on the product, not on the state before it: so all of the recurrent part is one
product with three weights side by side. PyTorch and cuDNN do the same.

Back through time the accumulator holds what A_{t-1} gets from step t: through the three products,
and directly, dA_t * Gz, where nothing is squashed.

How steps are chained stands in `gpulayers.layers._sequence` and `gpulayers.ops.sequence`.

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
machine translation" (2014), section 2.3; the reset gate on the product as in torch.nn.GRU.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gpulayers.backend import Array, xp_of
from gpulayers.layers import _arguments as check
from gpulayers.layers._gated import Gated
from gpulayers.layers._over_time import OverTime
from gpulayers.layers._sequence import Cell
from gpulayers.ops import conv, recurrent, sequence
from gpulayers.ops._product import product
from gpulayers.ops.sequence import SequenceGradients, Trace, Weights

_GATES = ("n", "z", "r")  # the order of the blocks of the input's product


class _GRUStep(Gated):
    """The step that the cell and the layer over a sequence share."""

    _params = ("Wz", "Wr", "Wn", "bz", "br", "bn", "ba")
    _step_values: ClassVar[tuple[str, ...]] = ("Gz", "Gr", "N", "M")
    _back_blocks = 4

    def _init_params(self) -> None:
        gates = check.weights(self._name, self.gate_fn, self.init)
        candidate = check.weights(self._name, self.act_fn, self.init)
        shape = (self.n_out + (self.n_in or 0), self.n_out)
        for name in ("Wz", "Wr", "Wn"):
            self._create(name, shape, candidate if name == "Wn" else gates)
        for name in ("bz", "br", "bn", "ba"):
            self._create(name, (1, self.n_out))

    def _weights(self) -> Weights:
        p, h = self.parameters, self.n_out
        from_state = sequence.joined([p[name][:h] for name in ("Wz", "Wr", "Wn")], axis=1)
        from_input = sequence.joined([p[f"W{g}"][h:] for g in _GATES], axis=1)
        b = sequence.joined([p[name] for name in ("bn", "bz", "br", "ba")], axis=1)
        return Weights(from_state, from_input, (b,))

    def _ahead(
        self,
        w: Weights,
        projected: Array,
        from_state: Array,
        previous: tuple[Array, ...],
        new: tuple[Array, ...],
    ) -> tuple[Array | None, ...]:
        """Gates, M and A_t; `projected` becomes the values of candidate and gates."""
        A = new[0]
        M = xp_of(A).empty(A.shape, dtype=A.dtype)
        Z = recurrent.gru_step_forward(
            projected, from_state, w.biases[0], previous[0], self.act_fn, self.gate_fn, M=M, A=A
        )
        return projected, M, Z

    def _back(
        self,
        w: Weights,
        dLdA: Array,
        accumulators: tuple[Array, ...],
        kept: tuple[Any, ...],
        previous: tuple[Array, ...],
        new: tuple[Array, ...],
        dLdZ: Array,
    ) -> tuple[Array, ...]:
        """[dZ_n, dZ_z, dZ_r, dM], and what A_{t-1} gets directly and through the products."""
        gates, M, Z = kept
        dLdA_prev = recurrent.gru_step_backward(
            dLdA,
            accumulators[0],
            Z,
            gates,
            M,
            previous[0],
            self.act_fn,
            self.gate_fn,
            dZ=dLdZ,
        )
        dLdA_prev += product(dLdZ[:, self.n_out :], w.recurrent.T)
        return (dLdA_prev,)

    def _gradients(self, X: Array, A_prev: Array, dLdZ: Array) -> dict[str, Array]:
        """Two fully connected layers: the input's has the columns n, z, r, the state's z, r, M."""
        h = self.n_out
        from_state = product(A_prev.T, dLdZ[:, h:])
        from_input = product(X.T, dLdZ[:, : 3 * h])
        return self._named(Weights(from_state, from_input, (conv.bias_grad(dLdZ),)))

    def _named(self, grads: Weights) -> dict[str, Array]:
        from_state, from_input, (db,) = grads
        h = self.n_out
        named: dict[str, Array] = {}
        for name, k, m in (("Wz", 0, 1), ("Wr", 1, 2), ("Wn", 2, 0)):
            blocks = [from_state[:, k * h : (k + 1) * h], from_input[:, m * h : (m + 1) * h]]
            named[name] = sequence.joined(blocks, axis=0)
        for k, name in enumerate(("bn", "bz", "br", "ba")):
            named[name] = db[k * h : (k + 1) * h]
        return named

    def _input_gradient(self, w: Weights, dLdZ: Array) -> Array:
        return product(dLdZ[:, : 3 * self.n_out], w.input.T)

    def _shown(self, kept: tuple[Any, ...]) -> dict[str, Array]:
        gates, M, _ = kept
        h = self.n_out
        return {"N": gates[:, :h], "Gz": gates[:, h : 2 * h], "Gr": gates[:, 2 * h :], "M": M}


class GRUCell(Cell, _GRUStep):
    """One step of a gated recurrent unit (formulas at the top of this file).

    The cell remembers: call `forward` for t = 1..T, then `backward` for t = T..1. After the last
    `backward` the next `forward` begins a new sequence with A_0 = 0, and `update` or
    `flush_gradients` always does.

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
        For the candidate.
    gate_fn : str, activation or None
        For the gates. With Tanh and Sigmoid a step is one kernel on a GPU, each way.
    init : str
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : Wz, Wr, Wn (n_out + n_in, n_out), bz, br, bn, ba (1, n_out)
        The first n_out rows of a weight are for A_{t-1}, the others for X_t; ba is the bias inside
        the reset gate.
    derived_variables : A (the states, n_timesteps + 1 of them, A[0] the initial one), Gz, Gr, N, M
        (one array a step), n_timesteps, current_step (steps not yet gone back through),
        dLdA_accumulator

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), one step; output (n_ex, n_out). ``derived_variables["A"] = [A_0]`` before
    the first step begins elsewhere than at zero. `GRU` runs the cell over a sequence.
    """


class GRU(OverTime, _GRUStep):
    """Gated recurrent units over whole sequences: `GRUCell` at every step, from A_0 = 0.

    Parameters
    ----------
    n_out : int
    act_fn, gate_fn : str, activation or None
        As in `GRUCell`. With Tanh and Sigmoid all steps are one kernel on a GPU, each way, unless
        the recurrent weights are too many.
    init : str
    optimizer : str, optimizer, dict or None
    return_sequences : bool
        Whether the output is every A_t, or the last one alone. (Not in numpy-ml.)
    truncate : int, optional
        Truncated backpropagation through time: gradients stay within stretches of so many steps.
        (Not in numpy-ml.)

    Attributes
    ----------
    parameters : Wz, Wr, Wn (n_out + n_in, n_out), bz, br, bn, ba (1, n_out)
    derived_variables : those of `GRUCell`, of the sequences last gone through; what is of every
        step is a list in all but its type, whose items are cut out when they are looked at
    cell : GRUCell
        A cell with the same parameters and gradients, to go step by step.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in, n_t), time last; output (n_ex, n_out, n_t), or (n_ex, n_out) with
    ``return_sequences=False``. Several forward passes are several, independent sequences. `forward`
    takes an initial state and a mask, `final_state` is where it ended.
    """

    _hyper = (*_GRUStep._hyper, "return_sequences", "truncate")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        gate_fn: Any = "Sigmoid",
        init: str = "glorot_uniform",
        optimizer: Any = None,
        *,
        return_sequences: bool = True,
        truncate: int | None = None,
    ) -> None:
        self.return_sequences, self.truncate = return_sequences, truncate
        super().__init__(n_out, act_fn, gate_fn, init, optimizer)
        self.cell = GRUCell(self.n_out, self.act_fn, self.gate_fn, self.init)
        self._share_with_cell()

    def _through(
        self, X: Array, first: tuple[Array, ...] | None, mask: Array | None, w: Weights
    ) -> Trace:
        return sequence.gru_forward(X, first, mask, w, self.act_fn, self.gate_fn)

    def _back_through(
        self,
        dLdA: Array | None,
        last: tuple[Array, ...] | None,
        trace: Trace,
        w: Weights,
        **how: Any,
    ) -> SequenceGradients:
        acts = self.act_fn, self.gate_fn
        return sequence.gru_backward(dLdA, last, trace, w, *acts, self.truncate, **how)

    def _shown_of(self, kept: tuple[Any, ...]) -> dict[str, Any]:
        gates, M, _ = kept
        h = self.n_out
        names = {"N": 0, "Gz": 1, "Gr": 2}
        shown = {name: gates[:, :, k * h : (k + 1) * h] for name, k in names.items()}
        return {**shown, "M": M}
