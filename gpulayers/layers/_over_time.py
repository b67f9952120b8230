"""A recurrent layer over whole sequences; one step is in `_sequence`, the way through time in
`gpulayers.ops.sequence`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

from gpulayers import backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array, xp_of
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._sequence import Cell, Recurrent
from gpulayers.layers._state import Saved, _moved
from gpulayers.layers._steps import Steps
from gpulayers.layers.base import Backward
from gpulayers.ops import sequence
from gpulayers.ops.sequence import SequenceGradients, Trace, Weights

State = Array | tuple[Array, ...]


class OverTime(Recurrent):
    """The cell at every step of a sequence.

    `final_state` is what the last forward pass ended in: A (n_ex, n_out), for an LSTM the pair
    (A, C); None before. It survives `update` and `flush_gradients`, so that the next stretch of
    long sequences can start from it.
    """

    _ndim, _axes, _size = 3, "(n_ex, n_in, n_t)", ("n_in", 1)
    cell: Cell
    return_sequences: bool
    truncate: int | None
    final_state: State | None = None
    _initial_state: Any = None  # arguments of the call that runs
    _mask: Any = None
    _final_state_grad: Any = None
    _showing: Any = None  # what `derived_variables` are of

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        name = self._name
        self.return_sequences = check.choice(
            name, "return_sequences", check.plain(self.return_sequences), (True, False)
        )
        if self.truncate is not None:
            self.truncate = check.integer(name, "truncate", self.truncate)

    # ---- calls

    def forward(
        self,
        X: Array,
        retain_derived: bool = True,
        *,
        initial_state: State | None = None,
        mask: Array | None = None,
    ) -> Array:
        """Go through whole sequences.

        Parameters
        ----------
        X : (n_ex, n_in, n_t), floating
        retain_derived : bool
            As in `LayerBase.forward`.
        initial_state : (n_ex, n_out), or for an LSTM a pair of them, optional
            The states before the first step, A_0 (and C_0); zeros without. Its gradient is in
            ``derived_variables["dLdA_accumulator"]`` (and C's) after `backward`.
        mask : (n_ex, n_t), bool or numbers, optional
            Zero where a sequence has no step: for sequences of different lengths, padded to n_t,
            ``xp.arange(n_t) < lengths[:, None]``. Such a step leaves the states as they are,
            its output is zero, and no gradient comes from it, whatever X holds there.

        Returns
        -------
        A : (n_ex, n_out, n_t), or with ``return_sequences=False`` the last one, (n_ex, n_out)
            (with a mask: after each sequence's last step)

        Raises
        ------
        ShapeError, DTypeError, BackendError
            If an array does not fit; the message says what was expected.
        """
        self._initial_state, self._mask = initial_state, mask
        try:
            return super().forward(X, retain_derived)
        finally:
            self._initial_state = self._mask = None

    def backward(
        self,
        dLdY: Array | list[Array],
        retain_grads: bool = True,
        input_grad: bool = True,
        *,
        final_state_grad: State | None = None,
    ) -> Any:
        """Go back through time.

        Parameters
        ----------
        dLdY, retain_grads, input_grad
            As in `LayerBase.backward`.
        final_state_grad : (n_ex, n_out), or for an LSTM a pair of them, optional
            Gradient with respect to `final_state`, besides that of the output: what the next layer
            that started from this state found in its accumulators. After one forward pass only.

        Returns
        -------
        dLdX : (n_ex, n_in, n_t), or a list after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        if final_state_grad is not None and len(self._retained) > 1:
            raise ShapeError(
                f"{self._name}: final_state_grad needs a single retained input, "
                f"{len(self._retained)} are retained"
            )
        self._final_state_grad = final_state_grad
        try:
            return super().backward(dLdY, retain_grads, input_grad)
        finally:
            self._final_state_grad = None

    def to(self, name: str) -> Self:
        """Move to a backend, as `LayerBase.to`, with the final state."""
        super().to(name)
        if self.home is not None:
            self.final_state = _moved(self.final_state, self.home)
        return self

    def _check_state(self, what: str, given: Any, like: Array) -> tuple[Array, ...]:
        """One array (n_ex, n_out) for each state, on the backend and in the dtype of `like`."""
        states = given if is_sequence(given) else (given,)
        names = ", ".join(self._states)
        if len(states) != len(self._states):
            raise ShapeError(
                f"{self._name}: {what} must be {len(self._states)} array(s) ({names}), "
                f"got {len(states)}"
            )
        shape = (len(like), self.n_out)
        home = backend.backend_of(like)
        for array in states:
            if self._check_array(what, array) != home:
                raise BackendError(f"{self._name}: {what} must be a {home} array, as the input")
            if array.shape != shape:
                raise ShapeError(f"{self._name}: {what} must have shape {shape}, got {array.shape}")
        return tuple(self._converted(array, like.dtype) for array in states)

    def _check_mask(self, X: Array) -> Array | None:
        """The mask as (n_t, n_ex, 1), True at the steps that are; None without one."""
        if self._mask is None:
            return None
        try:
            home = backend.backend_of(self._mask)
        except DTypeError as error:
            raise DTypeError(f"{self._name}: the mask: {error}") from None
        if home != backend.backend_of(X):
            raise BackendError(
                f"{self._name}: the mask is a {home} array, the input a {backend.backend_of(X)} one"
            )
        shape = (X.shape[0], X.shape[2])
        if self._mask.shape != shape:
            raise ShapeError(
                f"{self._name}: the mask must have shape (n_ex, n_t) = {shape}, "
                f"got {self._mask.shape}"
            )
        return xp_of(X).ascontiguousarray((self._mask != 0).T)[:, :, None]

    # ---- one set of parameters, gradients and shown values for the layer and its cell

    def _share_with_cell(self) -> None:
        """The dicts are changed, never replaced."""
        for name in ("parameters", "gradients", "derived_variables", "optimizer", "trainable"):
            setattr(self.cell, name, getattr(self, name))
        for name in self.cell._hyper:  # they are checked, and of the shared parameters
            vars(self.cell)[name] = getattr(self, name)
        if self._shapes:
            self.cell._shapes = self._shapes
        self.cell._placed = True

    def _has_been_assigned(self) -> None:
        self._share_with_cell()

    def _drop_retained(self) -> None:
        super()._drop_retained()
        self.cell._drop_retained()
        self._showing = None

    def set_params(self, summary_dict: dict[str, Any]) -> Any:
        """Restore layer and cell, as `LayerBase.set_params`."""
        super().set_params(summary_dict)
        self._share_with_cell()
        return self

    def freeze(self) -> None:
        """Stop learning, layer and cell."""
        super().freeze()
        self._share_with_cell()

    def unfreeze(self) -> None:
        """Learn again, layer and cell."""
        super().unfreeze()
        self._share_with_cell()

    def _init_params(self) -> None:
        super()._init_params()
        self._share_with_cell()

    def _show(self, saved: Saved) -> None:
        self._showing = saved
        states, n_t = saved["states"], len(saved["X"])
        for name, state in zip(self._states, states, strict=True):
            self.derived_variables[name] = Steps(state)
        for name, values in self._shown_of(saved["kept"]).items():
            self.derived_variables[name] = Steps(values)
        self.derived_variables.update(
            n_timesteps=n_t, current_step=n_t, **dict.fromkeys(self._accumulators)
        )

    # ---- through time

    @abstractmethod
    def _through(
        self, X: Array, first: tuple[Array, ...] | None, mask: Array | None, w: Weights
    ) -> Trace:
        """All steps ahead."""

    @abstractmethod
    def _back_through(
        self,
        dLdA: Array | None,
        last: tuple[Array, ...] | None,
        trace: Trace,
        w: Weights,
        **how: Any,
    ) -> SequenceGradients:
        """All steps back."""

    @abstractmethod
    def _shown_of(self, kept: tuple[Any, ...]) -> dict[str, Any]:
        """What a pass adds to `derived_variables`, beside the states: one item a step each."""

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """state_t = step(X_t, state_{t-1}) for t = 1..n_t; A_1..A_n_t are the output."""
        if X.shape[2] == 0:
            raise ShapeError(f"{self._name}: expected at least one time step, got shape {X.shape}")
        mask, first = self._check_mask(X), None
        if self._initial_state is not None:
            first = self._check_state("initial_state", self._initial_state, X)
        X = sequence.time_first(X, self._gated)
        if mask is not None:
            X = _only(mask, X)
        trace = self._through(X, first, mask, self._weights())

        final = tuple(state[-1].copy() for state in trace.states)
        self.final_state = final[0] if len(final) == 1 else final
        A = trace.states[0]
        if self.return_sequences:
            Y = sequence.time_last(A[1:] if mask is None else _only(mask, A[1:]))
        else:
            Y = A[-1].copy()
        return Y, trace._asdict()

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ_t for t = n_t..1; then all steps at once, as a fully connected layer."""
        trace = Trace(**{name: saved[name] for name in Trace._fields})  # wrappers keep theirs there
        mask, last = trace.mask, None
        derived = self.derived_variables
        if self._showing is not saved or derived["n_timesteps"] != len(trace.X):
            self._show(saved)
        if self._final_state_grad is not None:
            last = self._check_state("final_state_grad", self._final_state_grad, dLdY)
        if self.return_sequences:
            dLdA = sequence.time_first(dLdY, self._gated)
            dLdA = dLdA if mask is None else _only(mask, dLdA)
        else:  # dLdY is the gradient of the last output, which is the last state
            dLdA, xp = None, xp_of(dLdY)
            if last is None:
                last = (dLdY, *(xp.zeros_like(dLdY) for _ in self._states[1:]))
            else:
                last = (last[0] + dLdY, *last[1:])
        grads = self._back_through(dLdA, last, trace, self._weights(), params=params, inputs=inputs)
        derived.update(zip(self._accumulators, grads.states, strict=True), current_step=0)
        dLdX = None if grads.X is None else sequence.time_last(grads.X)
        return dLdX, {} if grads.weights is None else self._named(grads.weights)


def _only(mask: Array, array: Array) -> Array:
    """`array` where the mask is True, zero elsewhere (a product would let NaN through)."""
    xp = xp_of(array)
    return xp.where(mask, array, xp.zeros((), dtype=array.dtype))
