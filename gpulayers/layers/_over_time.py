"""A recurrent layer over whole sequences; one step and the picture of all are in `_sequence`."""

from __future__ import annotations

from typing import Any, Self

from gpulayers import backend
from gpulayers.backend import Array, xp_of
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.layers import _arguments as check
from gpulayers.layers._sequence import Cell, Recurrent
from gpulayers.layers._state import Saved, _moved
from gpulayers.layers.base import Backward
from gpulayers.ops._product import product

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
        states = given if isinstance(given, (list, tuple)) else (given,)
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
        for name in self.cell._hyper:
            setattr(self.cell, name, getattr(self, name))
        self.cell._placed = True

    def _drop_retained(self) -> None:
        super()._drop_retained()
        self.cell._drop_retained()

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
        states, kept = saved["states"], saved["kept"]
        shown = [self._shown(k) for k in kept]
        self.derived_variables.update(
            {name: [s[k] for s in states] for k, name in enumerate(self._states)}
        )
        self.derived_variables.update({name: [s[name] for s in shown] for name in shown[0]})
        self.derived_variables.update(
            n_timesteps=len(kept), current_step=len(kept), **dict.fromkeys(self._accumulators)
        )

    # ---- through time

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """state_t = ahead(X_t W_x, state_{t-1}) for t = 1..n_t; A_1..A_n_t are the output."""
        xp = xp_of(X)
        n_ex, n_in, n_t = X.shape
        if n_t == 0:
            raise ShapeError(f"{self._name}: expected at least one time step, got shape {X.shape}")
        mask = self._check_mask(X)
        buffers = [xp.empty((n_t + 1, n_ex, self.n_out), dtype=X.dtype) for _ in self._states]
        initial = [0] * len(buffers)
        if self._initial_state is not None:
            initial = self._check_state("initial_state", self._initial_state, X)
        for buffer, state in zip(buffers, initial, strict=True):
            buffer[0] = state

        X = xp.ascontiguousarray(X.transpose(2, 0, 1))  # time first
        if mask is not None:
            X = _only(mask, X)
        X = X.reshape(n_t * n_ex, n_in)
        w = self._weights()
        projected = product(X, w.input).reshape(n_t, n_ex, w.input.shape[1])
        states = [tuple(buffer[t] for buffer in buffers) for t in range(n_t + 1)]
        kept = []
        for t in range(n_t):
            from_state = product(states[t][0], w.recurrent)
            kept.append(self._ahead(w, projected[t], from_state, states[t], states[t + 1]))
            if mask is not None:
                for old, new in zip(states[t], states[t + 1], strict=True):
                    new[...] = xp.where(mask[t], new, old)

        final = tuple(buffer[-1].copy() for buffer in buffers)
        self.final_state = final[0] if len(final) == 1 else final
        if self.return_sequences:
            A = buffers[0][1:] if mask is None else _only(mask, buffers[0][1:])
            Y = xp.ascontiguousarray(A.transpose(1, 2, 0))
        else:
            Y = buffers[0][-1].copy()
        return Y, {"X": X, "A": buffers[0], "states": states, "kept": kept, "mask": mask}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ_t, accumulators = back(dA_t, accumulators) for t = n_t..1; then all steps at once,
        as a fully connected layer.

        A step that the mask leaves out hands the accumulators on as they are. With `truncate` = k
        they start anew at steps k, 2k, ...: no gradient crosses from one stretch to the one before.
        """
        xp, derived = xp_of(dLdY), self.derived_variables
        states, kept, mask = saved["states"], saved["kept"], saved["mask"]
        n_t, n_ex, w = len(kept), len(dLdY), self._weights()
        self._show(saved)
        nothing = xp.zeros((n_ex, self.n_out), dtype=dLdY.dtype)
        accumulators = (nothing,) * len(self._states)
        if self._final_state_grad is not None:
            accumulators = self._check_state("final_state_grad", self._final_state_grad, dLdY)
        if self.return_sequences:
            dLdA = xp.ascontiguousarray(dLdY.transpose(2, 0, 1))  # time first
            dLdA = dLdA if mask is None else _only(mask, dLdA)
        else:
            dLdA = [nothing] * n_t
            accumulators = (accumulators[0] + dLdY, *accumulators[1:])

        width = self._back_blocks * self.n_out
        dLdZ = xp.empty((n_t, n_ex, width), dtype=dLdY.dtype)
        for t in reversed(range(n_t)):
            if self.truncate and t + 1 < n_t and (t + 1) % self.truncate == 0:
                accumulators = (nothing,) * len(self._states)
            later = accumulators
            if mask is not None:
                accumulators = tuple(_only(mask[t], a) for a in later)
            accumulators = self._back(
                w, dLdA[t], accumulators, kept[t], states[t], states[t + 1], dLdZ[t]
            )
            if mask is not None:
                pairs = zip(accumulators, later, strict=True)
                accumulators = tuple(xp.where(mask[t], a, b) for a, b in pairs)
        derived.update(zip(self._accumulators, accumulators, strict=True), current_step=0)

        dLdZ = dLdZ.reshape(n_t * n_ex, width)
        A_prev = saved["A"][:-1].reshape(n_t * n_ex, self.n_out)
        grads = self._gradients(saved["X"], A_prev, dLdZ) if params else {}
        if not inputs:
            return None, grads
        dLdX = self._input_gradient(w, dLdZ).reshape(n_t, n_ex, saved["X"].shape[1])
        return xp.ascontiguousarray(dLdX.transpose(1, 2, 0)), grads


def _only(mask: Array, array: Array) -> Array:
    """`array` where the mask is True, zero elsewhere (a product would let NaN through)."""
    xp = xp_of(array)
    return xp.where(mask, array, xp.zeros((), dtype=array.dtype))
