"""Long short-term memory, forward through time and back.

    [Z_f, Z_u, Z_c, Z_o] = [A_{t-1}, X_t] [Wf, Wu, Wc, Wo] + [bf, bu, bc, bo]
    Gf = gate(Z_f)      forget: how much of the old memory stays
    Gu = gate(Z_u)      update: how much of the candidate comes in
    Go = gate(Z_o)      output: how much of the memory shows
    Cc = act(Z_c)       the candidate
    C_t = Gf * C_{t-1} + Gu * Cc          A_t = Go * act(C_t),  A_0 = C_0 = 0

Back through time two gradients travel from step t+1 to step t: dLdA_accumulator reaches A_t
through the products, dLdC_accumulator reaches C_t through the forget gate alone. Along C nothing is
squashed or multiplied by weights, which is what the construction is for.

The four weights are used side by side, as one matrix. How steps are chained stands in
`gpulayers.layers._sequence` and `gpulayers.ops.sequence`.

Sources: Hochreiter & Schmidhuber, "Long short-term memory" (1997); the forget gate: Gers,
Schmidhuber & Cummins, "Learning to forget: continual prediction with LSTM" (2000).
"""

from __future__ import annotations

from typing import Any, ClassVar

from gpulayers.backend import Array
from gpulayers.layers import _arguments as check
from gpulayers.layers._gated import Gated
from gpulayers.layers._over_time import OverTime
from gpulayers.layers._sequence import Cell
from gpulayers.ops import conv, recurrent, sequence
from gpulayers.ops._product import product
from gpulayers.ops.sequence import SequenceGradients, Trace, Weights

_GATES = ("f", "u", "c", "o")  # the order of the blocks


class _LSTMStep(Gated):
    """The step that the cell and the layer over a sequence share."""

    _params = ("Wf", "Wu", "Wc", "Wo", "bf", "bu", "bc", "bo")
    _states = ("A", "C")
    _step_values: ClassVar[tuple[str, ...]] = ("Gf", "Gu", "Go", "Gc", "Cc")
    _back_blocks = 4

    def _init_params(self) -> None:
        gates = check.weights(self._name, self.gate_fn, self.init)
        candidate = check.weights(self._name, self.act_fn, self.init)
        shape = (self.n_out + (self.n_in or 0), self.n_out)
        for g in _GATES:
            self._create(f"W{g}", shape, candidate if g == "c" else gates)
        for g in _GATES:
            self._create(f"b{g}", (1, self.n_out))

    def _weights(self) -> Weights:
        p = self.parameters
        W = sequence.joined([p[f"W{g}"] for g in _GATES], axis=1)
        b = sequence.joined([p[f"b{g}"] for g in _GATES], axis=1)
        return Weights(W[: self.n_out], W[self.n_out :], (b,))

    def _ahead(
        self,
        w: Weights,
        projected: Array,
        from_state: Array,
        previous: tuple[Array, ...],
        new: tuple[Array, ...],
    ) -> tuple[Array | None, ...]:
        """Gates, C_t and A_t; `projected` becomes the gates' values."""
        A, C = new
        Z = recurrent.lstm_step_forward(
            projected, from_state, w.biases[0], previous[1], self.act_fn, self.gate_fn, C=C, A=A
        )
        return projected, Z

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
        """dZ of all gates; what A_{t-1} gets through the products, C_{t-1} through the gate."""
        gates, Z = kept
        dLdC = recurrent.lstm_step_backward(
            dLdA,
            accumulators[0],
            accumulators[1],
            Z,
            gates,
            previous[1],
            new[1],
            self.act_fn,
            self.gate_fn,
            dZ=dLdZ,
        )
        return product(dLdZ, w.recurrent.T), dLdC

    def _gradients(self, X: Array, A_prev: Array, dLdZ: Array) -> dict[str, Array]:
        """[A_prev, X] W + b is a fully connected layer of 4 n_out units."""
        db = conv.bias_grad(dLdZ)
        return self._named(Weights(product(A_prev.T, dLdZ), product(X.T, dLdZ), (db,)))

    def _named(self, grads: Weights) -> dict[str, Array]:
        dW = sequence.joined([grads.recurrent, grads.input], axis=0)
        (db,), h = grads.biases, self.n_out
        named = {f"W{g}": dW[:, k * h : (k + 1) * h] for k, g in enumerate(_GATES)}
        return named | {f"b{g}": db[k * h : (k + 1) * h] for k, g in enumerate(_GATES)}

    def _input_gradient(self, w: Weights, dLdZ: Array) -> Array:
        return product(dLdZ, w.input.T)

    def _shown(self, kept: tuple[Any, ...]) -> dict[str, Array]:
        gates, h = kept[0], self.n_out
        names = ("Gf", "Gu", "Cc", "Go")
        return {name: gates[:, k * h : (k + 1) * h] for k, name in enumerate(names)}


class LSTMCell(Cell, _LSTMStep):
    """One step of a long short-term memory (formulas at the top of this file).

    The cell remembers: call `forward` for t = 1..T, then `backward` for t = T..1. After the last
    `backward` the next `forward` begins a new sequence with A_0 = C_0 = 0 (numpy-ml goes on with
    the old one), and `update` or `flush_gradients` always does (after which numpy-ml's cell
    crashes).

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
        For the candidate and the memory that shows.
    gate_fn : str, activation or None
        For the gates. With Tanh and Sigmoid a step is one kernel on a GPU, each way.
    init : str
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : Wf, Wu, Wc, Wo (n_out + n_in, n_out), bf, bu, bc, bo (1, n_out)
        The first n_out rows of a weight are for A_{t-1}, the others for X_t.
    derived_variables : A, C (the states, n_timesteps + 1 of them, the first are the initial ones),
        Gf, Gu, Go, Cc (one array a step), Gc (always empty, as in numpy-ml), n_timesteps,
        current_step (steps not yet gone back through), dLdA_accumulator, dLdC_accumulator

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), one step; output the pair A_t, C_t, (n_ex, n_out) each. `backward` takes the
    gradient of A_t; to give C_T one of its own, set ``derived_variables["dLdC_accumulator"]``
    before the first `backward`. ``derived_variables["A"] = [A_0]``, and C likewise, before the
    first step begins elsewhere than at zero. `LSTM` runs the cell over a sequence.
    """

    def forward(self, X: Array, retain_derived: bool = True) -> tuple[Array, Array]:
        """Go one step ahead.

        Parameters
        ----------
        X : (n_ex, n_in), floating
        retain_derived : bool
            False carries the states on without keeping what `backward` needs; not possible in the
            middle of a sequence that is to be gone back through.

        Returns
        -------
        A, C : (n_ex, n_out), the new states

        Raises
        ------
        ShapeError
            If X does not fit, or a sequence is left half gone back through: finish it, or call
            `flush_gradients`.
        DTypeError, BackendError
        """
        A = super().forward(X, retain_derived)
        return A, self.derived_variables["C"][-1].copy()


class LSTM(OverTime, _LSTMStep):
    """A long short-term memory over whole sequences: `LSTMCell` at every step, from zeros.

    Parameters
    ----------
    n_out : int
    act_fn, gate_fn : str, activation or None
        As in `LSTMCell`. With Tanh and Sigmoid all steps are one kernel on a GPU, each way, unless
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
    parameters : Wf, Wu, Wc, Wo (n_out + n_in, n_out), bf, bu, bc, bo (1, n_out)
    derived_variables : those of `LSTMCell`, of the sequences last gone through; what is of every
        step is a list in all but its type, whose items are cut out when they are looked at
    cell : LSTMCell
        A cell with the same parameters and gradients, to go step by step.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in, n_t), time last; output (n_ex, n_out, n_t), or (n_ex, n_out) with
    ``return_sequences=False``. Several forward passes are several, independent sequences. `forward`
    takes an initial state and a mask, `final_state` is where it ended. numpy-ml's LSTM cannot be
    constructed.
    """

    _hyper = (*_LSTMStep._hyper, "return_sequences", "truncate")

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
        self.cell = LSTMCell(self.n_out, self.act_fn, self.gate_fn, self.init)
        self._share_with_cell()

    def _through(
        self, X: Array, first: tuple[Array, ...] | None, mask: Array | None, w: Weights
    ) -> Trace:
        return sequence.lstm_forward(X, first, mask, w, self.act_fn, self.gate_fn)

    def _back_through(
        self,
        dLdA: Array | None,
        last: tuple[Array, ...] | None,
        trace: Trace,
        w: Weights,
        **how: Any,
    ) -> SequenceGradients:
        acts = self.act_fn, self.gate_fn
        return sequence.lstm_backward(dLdA, last, trace, w, *acts, self.truncate, **how)

    def _shown_of(self, kept: tuple[Any, ...]) -> dict[str, Any]:
        gates, h = kept[0], self.n_out
        names = ("Gf", "Gu", "Cc", "Go")
        return {name: gates[:, :, k * h : (k + 1) * h] for k, name in enumerate(names)}
