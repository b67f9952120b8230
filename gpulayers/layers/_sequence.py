"""What all recurrent layers share: one step, and the cell that goes step by step.

A family (simple, LSTM, GRU) says what one step is: its weights side by side (`_weights`), the step
ahead (`_ahead`), the step back (`_back`) and the parameters' gradients (`_gradients`), on 2-D
arrays (n_ex, ...), one row an example. The cell chains steps as it is called; how a layer goes
through whole sequences stands in `gpulayers.ops.sequence`.

A state leaves as output t and enters step t+1, so two gradients reach it and add up. What comes
from step t+1 travels in the *accumulators*: that is all there is to backpropagation through time.

Source: Werbos, "Backpropagation through time: what it does and how to do it" (1990).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops._product import product
from gpulayers.ops.sequence import Weights


class Recurrent(LayerBase):
    """One kind of step, for the cell and the layer over sequences."""

    _states: ClassVar[tuple[str, ...]] = ("A",)  # the first is the output
    _gated: ClassVar[bool] = False
    _back_blocks: ClassVar[int] = 1  # what `_back` writes is (n_ex, blocks * n_out)

    def __init__(self, n_out: int, act_fn: Any, init: str, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out = n_out
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        check.weights(self._name, self.act_fn, self.init)

    # ---- what a family adds

    @abstractmethod
    def _weights(self) -> Weights:
        """The parameters, those that are used in one product side by side."""

    @abstractmethod
    def _ahead(
        self,
        w: Weights,
        projected: Array,
        from_state: Array,
        previous: tuple[Array, ...],
        new: tuple[Array, ...],
    ) -> tuple[Array | None, ...]:
        """Write the new states; return what the way back needs. `projected` may be changed."""

    @abstractmethod
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
        """Write the gradients of the pre-activations; return the accumulators of step t-1."""

    @abstractmethod
    def _gradients(self, X: Array, A_prev: Array, dLdZ: Array) -> dict[str, Array]:
        """The parameters' gradients, from the rows of one step."""

    @abstractmethod
    def _named(self, grads: Weights) -> dict[str, Array]:
        """The parameters' gradients by their names, from those of the weights side by side."""

    @abstractmethod
    def _input_gradient(self, w: Weights, dLdZ: Array) -> Array:
        """The gradient of X, from the rows of one step."""

    @abstractmethod
    def _shown(self, kept: tuple[Any, ...]) -> dict[str, Array]:
        """What one step adds to `derived_variables`, beside the states."""

    # ---- states

    def _new_derived(self) -> dict[str, Any]:
        return {
            **{name: [] for name in self._states},
            **{name: [] for name in self._step_values},
            "n_timesteps": 0,
            "current_step": 0,
            **dict.fromkeys(self._accumulators),
        }

    _step_values: ClassVar[tuple[str, ...]] = ("Z",)

    @property
    def _accumulators(self) -> tuple[str, ...]:
        return tuple(f"dLd{name}_accumulator" for name in self._states)


class Cell(Recurrent):
    """One step at a time; the states are remembered in `derived_variables`."""

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)

    def forward(self, X: Array, retain_derived: bool = True) -> Any:
        """Go one step ahead.

        Parameters
        ----------
        X : (n_ex, n_in), floating
        retain_derived : bool
            False carries the state on without keeping what `backward` needs; not possible in the
            middle of a sequence that is to be gone back through.

        Returns
        -------
        A : (n_ex, n_out), the new state

        Raises
        ------
        ShapeError
            If X does not fit, or a sequence is left half gone back through: finish it, or call
            `flush_gradients`.
        DTypeError, BackendError
        """
        steps, left = (self.derived_variables[k] for k in ("n_timesteps", "current_step"))
        if left > 0 and (left < steps or not retain_derived):
            raise ShapeError(
                f"{self._name}: {left} of {steps} steps wait for backward; finish them or call "
                "flush_gradients() before this forward"
            )
        if steps and not left:
            self._drop_retained()  # the sequence is done with; its gradients stay
        A = super().forward(X, retain_derived)
        if not retain_derived:
            self.derived_variables.update({k: [s] for k, s in self._newest.items()})
        return A

    def backward(
        self, dLdY: Array | list[Array], retain_grads: bool = True, input_grad: bool = True
    ) -> Any:
        """Go one step back: the last step first.

        Parameters
        ----------
        dLdY : (n_ex, n_out)
            Gradient that reaches A_t from outside the cell; the one from step t+1 is in
            ``derived_variables["dLdA_accumulator"]`` and is added here.
        retain_grads, input_grad : bool
            As in `LayerBase.backward`.

        Returns
        -------
        dLdX : (n_ex, n_in), of that step's input

        Raises
        ------
        ShapeError
            If no step is left to go back through, or the shape is wrong.
        DTypeError, BackendError
        """
        step: int = self.derived_variables["current_step"]
        if step == 0 or step > len(self._retained):
            raise ShapeError(
                f"{self._name}: no step is left to go back through; call forward(X) with "
                "retain_derived=True once for each backward"
            )
        self._looked()  # a parameter may have been assigned since the forward pass
        retained = self._retained[step - 1]
        params = retain_grads and self.trainable
        dLdA = self._check_gradient(dLdY, retained)
        dLdX, grads = self._backward(dLdA, retained.saved, params=params, inputs=input_grad)
        self._accumulate(grads)
        self.derived_variables["current_step"] = step - 1
        return dLdX

    def _show(self, saved: Saved) -> None:
        derived = self.derived_variables
        for k, name in enumerate(self._states):
            if not derived[name]:
                derived[name].append(saved["previous"][k])
            derived[name].append(saved["new"][k])
        for name, value in self._shown(saved["kept"]).items():
            derived[name].append(value)
        derived["n_timesteps"] = derived["current_step"] = derived["n_timesteps"] + 1

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """state_t = ahead(X_t W_x, state_{t-1}), from zeros."""
        xp, shape = xp_of(X), (len(X), self.n_out)
        held = [self.derived_variables[name] for name in self._states]
        previous = tuple(s[-1] if s else xp.zeros(shape, dtype=X.dtype) for s in held)
        if len(previous[0]) != len(X):
            raise ShapeError(
                f"{self._name}: the sequence has {len(previous[0])} examples, this step's input "
                f"{len(X)} (shape {X.shape}); flush_gradients() begins a new sequence"
            )
        w = self._weights()
        new = tuple(xp.empty(shape, dtype=X.dtype) for _ in self._states)
        from_state = product(previous[0], w.recurrent)
        kept = self._ahead(w, product(X, w.input), from_state, previous, new)
        self._newest = dict(zip(self._states, new, strict=True))
        out = new[0].copy()  # the caller may write into it, and the next step wants the state
        return out, {"X": X, "previous": previous, "new": new, "kept": kept}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ_t, accumulators = back(dA_t, accumulators), then as a fully connected layer."""
        xp, derived = xp_of(dLdY), self.derived_variables
        accumulators = tuple(
            xp.zeros_like(dLdY) if derived[name] is None else derived[name]
            for name in self._accumulators
        )
        w, previous = self._weights(), saved["previous"]
        dLdZ = xp.empty((len(dLdY), self._back_blocks * self.n_out), dtype=dLdY.dtype)
        accumulators = self._back(
            w, dLdY, accumulators, saved["kept"], previous, saved["new"], dLdZ
        )
        derived.update(zip(self._accumulators, accumulators, strict=True))
        grads = self._gradients(saved["X"], previous[0], dLdZ) if params else {}
        return self._input_gradient(w, dLdZ) if inputs else None, grads
