"""Simple recurrent networks, forward through time and back.

    Z_t = A_{t-1} Waa + ba + X_t Wax + bx          A_t = act(Z_t),  A_0 = 0

A_t is used twice: it leaves as output t, and it enters step t+1. So two gradients reach it, and
they add up. What comes from step t+1 travels in the *accumulator*; that is all there is to
backpropagation through time:

    dZ_t = (dA_t + accumulator) * act'(Z_t)        what reaches A_t, through the activation
    accumulator = dZ_t Waa^T                       what goes on to A_{t-1}

Source: Elman, "Finding structure in time" (1990); Werbos, "Backpropagation through time: what it
does and how to do it" (1990).
"""

from __future__ import annotations

from typing import Any

from gpulayers.backend import Array, xp_of
from gpulayers.errors import ShapeError
from gpulayers.initializers import ActivationInitializer, WeightInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import conv, recurrent
from gpulayers.ops._product import product


def step_forward(
    projected: Array, A_prev: Array, parameters: dict[str, Array], act_fn: Any
) -> tuple[Array, Array]:
    """One step ahead in time: (X_t Wax, A_{t-1}) -> (Z_t, A_t), all (n_ex, n_out)."""
    p = parameters
    return recurrent.rnn_step_forward(
        projected, product(A_prev, p["Waa"]), p["ba"], p["bx"], act_fn
    )


def step_backward(
    dLdA: Array, accumulator: Array | None, Z: Array, parameters: dict[str, Array], act_fn: Any
) -> tuple[Array, Array]:
    """One step back in time: the gradient of Z_t, and the accumulator for step t-1.

    `accumulator` is what step t+1 left, None at the last step. All (n_ex, n_out).
    """
    dLdZ = recurrent.rnn_step_backward(dLdA, accumulator, Z, act_fn)
    return dLdZ, product(dLdZ, parameters["Waa"].T)


def parameter_gradients(X: Array, A_prev: Array, dLdZ: Array) -> dict[str, Array]:
    """Z = A_prev Waa + ba + X Wax + bx is a fully connected layer, seen from its weights.

    The rows may be the examples of one step, or of all steps stacked: a sum over steps is what one
    product over the stack computes.
    """
    db = conv.bias_grad(dLdZ)
    return {"Waa": product(A_prev.T, dLdZ), "Wax": product(X.T, dLdZ), "ba": db, "bx": db}


class _Recurrent(LayerBase):
    """What the cell and the layer over a sequence share."""

    _params = ("ba", "bx", "Wax", "Waa")
    _hyper = ("init", "n_in", "n_out", "act_fn")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out = n_out
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        WeightInitializer(str(self.act_fn), mode=self.init)

    def _init_params(self) -> None:
        weights = WeightInitializer(str(self.act_fn), mode=self.init)
        self._create("Wax", (self.n_in, self.n_out), weights)
        self._create("Waa", (self.n_out, self.n_out), weights)
        self._create("ba", (self.n_out, 1))
        self._create("bx", (self.n_out, 1))

    def _new_derived(self) -> dict[str, Any]:
        return {
            "A": [],
            "Z": [],
            "n_timesteps": 0,
            "current_step": 0,
            "dLdA_accumulator": None,
        }


class RNNCell(_Recurrent):
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
    Input (n_ex, n_in), one step; output (n_ex, n_out). `RNN` runs the cell over a sequence.
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
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
            self.derived_variables["A"] = [A]
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
        step = self.derived_variables["current_step"]
        if step == 0 or step > len(self._retained):
            raise ShapeError(
                f"{self._name}: no step is left to go back through; call forward(X) with "
                "retain_derived=True once for each backward"
            )
        retained = self._retained[step - 1]
        params = retain_grads and self.trainable
        dLdA = self._check_gradient(dLdY, retained)
        dLdX, grads = self._backward(dLdA, retained.saved, params=params, inputs=input_grad)
        self._accumulate(grads)
        self.derived_variables["current_step"] = step - 1
        return dLdX

    def _show(self, saved: Saved) -> None:
        derived = self.derived_variables
        if not derived["A"]:
            derived["A"].append(saved["A_prev"])
        derived["A"].append(saved["A"])
        derived["Z"].append(saved["Z"])
        derived["n_timesteps"] = derived["current_step"] = len(derived["Z"])

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z_t = A_{t-1} Waa + ba + X_t Wax + bx;  A_t = act(Z_t)."""
        states = self.derived_variables["A"]
        A_prev = states[-1] if states else xp_of(X).zeros((len(X), self.n_out), dtype=X.dtype)
        if len(A_prev) != len(X):
            raise ShapeError(
                f"{self._name}: the sequence has {len(A_prev)} examples, this step's input "
                f"{len(X)} (shape {X.shape}); flush_gradients() begins a new sequence"
            )
        projected = product(X, self.parameters["Wax"])
        Z, A = step_forward(projected, A_prev, self.parameters, self.act_fn)
        return A, {"X": X, "A_prev": A_prev, "Z": Z, "A": A}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ_t = (dA_t + accumulator) * act'(Z_t), then as a fully connected layer."""
        derived = self.derived_variables
        dLdZ, derived["dLdA_accumulator"] = step_backward(
            dLdY, derived["dLdA_accumulator"], saved["Z"], self.parameters, self.act_fn
        )
        grads = parameter_gradients(saved["X"], saved["A_prev"], dLdZ) if params else {}
        dLdX = product(dLdZ, self.parameters["Wax"].T) if inputs else None
        return dLdX, grads


class RNN(_Recurrent):
    """A recurrent layer over whole sequences: `RNNCell` at every step, from A_0 = 0.

    Parameters
    ----------
    n_out : int
    act_fn : str, activation or None
    init : str
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : Waa (n_out, n_out), Wax (n_in, n_out), ba, bx (n_out, 1)
    derived_variables : those of `RNNCell`, of the sequences last gone through
    cell : RNNCell
        A cell with the same parameters and gradients, to go step by step.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in, n_t), time last; output (n_ex, n_out, n_t). Several forward passes are
    several, independent sequences. numpy-ml's RNN cannot be constructed.
    """

    _ndim, _axes, _size = 3, "(n_ex, n_in, n_t)", ("n_in", 1)

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(n_out, act_fn, init, optimizer)
        self.cell = RNNCell(self.n_out, self.act_fn, self.init)
        self._share_with_cell()

    def _share_with_cell(self) -> None:
        """One set of dicts for the layer and its cell; they are changed, never replaced."""
        for name in ("parameters", "gradients", "derived_variables", "optimizer", "trainable"):
            setattr(self.cell, name, getattr(self, name))
        for name in ("n_in", "n_out", "act_fn", "init"):
            setattr(self.cell, name, getattr(self, name))
        self.cell._placed = True

    def _drop_retained(self) -> None:
        super()._drop_retained()
        self.cell._drop_retained()

    def set_params(self, summary_dict: dict[str, Any]) -> RNN:
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
        self.derived_variables.update(
            A=saved["A"],
            Z=saved["Z"],
            n_timesteps=len(saved["Z"]),
            current_step=len(saved["Z"]),
            dLdA_accumulator=None,
        )

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z_t = A_{t-1} Waa + ba + X_t Wax + bx;  A_t = act(Z_t), for t = 1..n_t.

        X_t Wax needs no state, so it is one product for all steps.
        """
        xp = xp_of(X)
        n_ex, n_in, n_t = X.shape
        if n_t == 0:
            raise ShapeError(f"{self._name}: expected at least one time step, got shape {X.shape}")
        X = xp.ascontiguousarray(X.transpose(2, 0, 1)).reshape(n_t * n_ex, n_in)  # time first
        projected = product(X, self.parameters["Wax"]).reshape(n_t, n_ex, self.n_out)

        A, Z = [xp.zeros((n_ex, self.n_out), dtype=X.dtype)], []
        for t in range(n_t):
            Z_t, A_t = step_forward(projected[t], A[t], self.parameters, self.act_fn)
            Z.append(Z_t)
            A.append(A_t)
        return xp.stack(A[1:], axis=2), {"X": X, "A": A, "Z": Z}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """From the last step to the first: dZ_t = (dA_t + accumulator) * act'(Z_t) and
        accumulator = dZ_t Waa^T; then all steps at once, as a fully connected layer."""
        xp, derived = xp_of(dLdY), self.derived_variables
        n_ex, n_out, n_t = dLdY.shape
        dLdA = xp.ascontiguousarray(dLdY.transpose(2, 0, 1))  # time first
        self._show(saved)

        dLdZs: list[Array] = [None] * n_t
        for t in reversed(range(n_t)):
            dLdZs[t], derived["dLdA_accumulator"] = step_backward(
                dLdA[t], derived["dLdA_accumulator"], saved["Z"][t], self.parameters, self.act_fn
            )
            derived["current_step"] = t

        dLdZ = xp.stack(dLdZs).reshape(n_t * n_ex, n_out)
        A_prev = xp.stack(saved["A"][:-1]).reshape(n_t * n_ex, n_out)
        grads = parameter_gradients(saved["X"], A_prev, dLdZ) if params else {}
        if not inputs:
            return None, grads
        dLdX = product(dLdZ, self.parameters["Wax"].T).reshape(n_t, n_ex, self.n_in)
        return xp.ascontiguousarray(dLdX.transpose(1, 2, 0)), grads
