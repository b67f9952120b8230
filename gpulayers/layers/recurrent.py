"""Simple recurrent networks, forward through time and back.

    Z_t = A_{t-1} Waa + ba + X_t Wax + bx          A_t = act(Z_t),  A_0 = 0

    dZ_t = (dA_t + accumulator) * act'(Z_t)        what reaches A_t, through the activation
    accumulator = dZ_t Waa^T                       what goes on to A_{t-1}

How steps are chained stands in `gpulayers.layers._sequence` and `gpulayers.ops.sequence`.

Source: Elman, "Finding structure in time" (1990).
"""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array
from gpulayers.layers import _arguments as check
from gpulayers.layers._over_time import OverTime
from gpulayers.layers._sequence import Cell, Recurrent
from gpulayers.ops import conv, recurrent, sequence
from gpulayers.ops._product import product
from gpulayers.ops.sequence import SequenceGradients, Trace, Weights


class _SimpleStep(Recurrent):
    """The step that the cell and the layer over a sequence share."""

    _params = ("ba", "bx", "Wax", "Waa")
    _hyper = ("init", "n_in", "n_out", "act_fn")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(n_out, act_fn, init, optimizer)
        self._check_hyperparameters()

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("Wax", (self.n_in, self.n_out), weights)
        self._create("Waa", (self.n_out, self.n_out), weights)
        self._create("ba", (self.n_out, 1))
        self._create("bx", (self.n_out, 1))

    def _weights(self) -> Weights:
        p = self.parameters
        return Weights(p["Waa"], p["Wax"], (p["ba"], p["bx"]))

    def _ahead(
        self,
        w: Weights,
        projected: Array,
        from_state: Array,
        previous: tuple[Array, ...],
        new: tuple[Array, ...],
    ) -> tuple[Array | None, ...]:
        """(X_t Wax, A_{t-1} Waa) -> A_t, and Z_t for the way back."""
        ba, bx = w.biases
        Z, _ = recurrent.rnn_step_forward(projected, from_state, ba, bx, self.act_fn, A=new[0])
        return (Z,)

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
        """dZ_t = (dA_t + accumulator) * act'(Z_t), and the accumulator for step t-1."""
        recurrent.rnn_step_backward(dLdA, accumulators[0], kept[0], self.act_fn, dZ=dLdZ)
        return (product(dLdZ, w.recurrent.T),)

    def _gradients(self, X: Array, A_prev: Array, dLdZ: Array) -> dict[str, Array]:
        """Z = A_prev Waa + ba + X Wax + bx is a fully connected layer, seen from its weights."""
        db = conv.bias_grad(dLdZ)
        return self._named(Weights(product(A_prev.T, dLdZ), product(X.T, dLdZ), (db, db)))

    def _named(self, grads: Weights) -> dict[str, Array]:
        ba, bx = grads.biases
        return {"Waa": grads.recurrent, "Wax": grads.input, "ba": ba, "bx": bx}

    def _input_gradient(self, w: Weights, dLdZ: Array) -> Array:
        return product(dLdZ, w.input.T)

    def _shown(self, kept: tuple[Any, ...]) -> dict[str, Array]:
        return {"Z": kept[0]}


class RNNCell(Cell, _SimpleStep):
    """One step of a recurrent network: A_t = act(A_{t-1} Waa + ba + X_t Wax + bx).

    The cell remembers: call `forward` for t = 1..T, then `backward` for t = T..1. After the last
    `backward` the next `forward` begins a new sequence with A_0 = 0 (numpy-ml goes on with the old
    one), and `update` or `flush_gradients` always does (after which numpy-ml's cell crashes).

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
    init : str
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : Waa (n_out, n_out), Wax (n_in, n_out), ba, bx (n_out, 1)
    derived_variables : A (the states, n_timesteps + 1 of them, A[0] the initial one), Z,
        n_timesteps, current_step (steps not yet gone back through), dLdA_accumulator

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), one step; output (n_ex, n_out). ``derived_variables["A"] = [A_0]`` before
    the first step begins elsewhere than at zero. `RNN` runs the cell over a sequence.
    """


class RNN(OverTime, _SimpleStep):
    """A recurrent layer over whole sequences: `RNNCell` at every step, from A_0 = 0.

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
    init : str
    optimizer : str, optimizer, dict or None
    return_sequences : bool
        Whether the output is every A_t, or the last one alone. (Not in numpy-ml.)
    truncate : int, optional
        Truncated backpropagation through time: gradients stay within stretches of so many steps.
        (Not in numpy-ml.)

    Attributes
    ----------
    parameters : Waa (n_out, n_out), Wax (n_in, n_out), ba, bx (n_out, 1)
    derived_variables : those of `RNNCell`, of the sequences last gone through; what is of every
        step is a list in all but its type, whose items are cut out when they are looked at
    cell : RNNCell
        A cell with the same parameters and gradients, to go step by step.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in, n_t), time last; output (n_ex, n_out, n_t), or (n_ex, n_out) with
    ``return_sequences=False``. Several forward passes are several, independent sequences. `forward`
    takes an initial state and a mask, `final_state` is where it ended. numpy-ml's RNN cannot be
    constructed.
    """

    _hyper = (*_SimpleStep._hyper, "return_sequences", "truncate")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        init: str = "glorot_uniform",
        optimizer: Any = None,
        *,
        return_sequences: bool = True,
        truncate: int | None = None,
    ) -> None:
        self.return_sequences, self.truncate = return_sequences, truncate
        super().__init__(n_out, act_fn, init, optimizer)
        self.cell = RNNCell(self.n_out, self.act_fn, self.init)
        self._share_with_cell()

    def _through(
        self, X: Array, first: tuple[Array, ...] | None, mask: Array | None, w: Weights
    ) -> Trace:
        return sequence.rnn_forward(X, first, mask, w, self.act_fn)

    def _back_through(
        self,
        dLdA: Array | None,
        last: tuple[Array, ...] | None,
        trace: Trace,
        w: Weights,
        **how: Any,
    ) -> SequenceGradients:
        return sequence.rnn_backward(dLdA, last, trace, w, self.act_fn, self.truncate, **how)

    def _shown_of(self, kept: tuple[Any, ...]) -> dict[str, Any]:
        return {"Z": kept[0]}
