"""A fully connected layer with few connections, which move to where they are needed."""

from __future__ import annotations

import math
from typing import Any

from gpulayers import random
from gpulayers._types import is_dict
from gpulayers.backend import Array, xp_of
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops._product import product


class SparseEvolution(LayerBase):
    """Y = act(X (W * W_mask) + b), and after each update some connections give way to new ones.

    At first each connection exists with probability epsilon (n_in + n_out) / (n_in n_out), at most
    1. Then `update` removes the fraction zeta of the positive and of the negative weights, those
    closest to zero, and makes as many new connections in random places.

    Parameters
    ----------
    n_out : int
    zeta : float in [0, 1]
        The fraction that is replaced; 0 keeps the connections as they are.
    epsilon : float > 0
        About how many connections a unit has.
    act_fn : str, activation or None
    init : str
        How W is drawn. A new connection's weight is drawn uniformly with the same variance.
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : W (n_in, n_out), b (1, n_out), W_mask (n_in, n_out) of zeros and ones
        The mask is no subject of the optimizer and has no gradient.
    gradients : W, b
        That of W is zero where there is no connection (numpy-ml's is not).
    derived_variables : Z, the pre-activations

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), output (n_ex, n_out), floating. The optimizer's state (momentum and the
    like) of a new or removed connection starts at zero. In `hyperparameters` and `summary` the
    layer's name is ``"SparseEvolutionary"``, as in numpy-ml, whose layer never ran.
    Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (2018), algorithm 1; there at the end of an epoch,
    here, as in numpy-ml, at every update.
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _params = ("W", "b", "W_mask")
    _hyper = ("init", "zeta", "n_in", "n_out", "epsilon", "act_fn")
    _kind = "SparseEvolutionary"

    def __init__(
        self,
        n_out: int,
        zeta: float = 0.3,
        epsilon: float = 20,
        act_fn: Any = None,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out = n_out
        self.zeta = zeta
        self.epsilon = epsilon
        self.init = init
        self.act_fn = ActivationInitializer(act_fn)()
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        self.zeta = check.number(self._name, "zeta", self.zeta, 0, 1, "[]")
        self.epsilon = check.number(self._name, "epsilon", self.epsilon, 0, math.inf)
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        return {"Z": []}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (self.n_in, self.n_out), weights)
        self._create("b", (1, self.n_out))
        self._create("W_mask", (self.n_in, self.n_out), self._draw_mask, learned=False)

    def _draw_mask(self, shape: tuple[int, int], dtype: Any, xp: Any) -> Array:
        p = min(1.0, self.epsilon * sum(shape) / math.prod(shape))
        return (random.default_generator().uniform(shape, "float32", xp) < p).astype(dtype)

    def _connections(self) -> Array:
        return self.parameters["W"] * self.parameters["W_mask"]

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Z = X (W * W_mask) + b;  Y = act(Z)."""
        Z = product(X, self._connections())
        Y = activation.bias_activation(Z, self.parameters["b"], self.act_fn)  # adds b to Z in place
        return Y, {"X": X, "Z": Z}

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dZ = dY * act'(Z);  dW = (X^T dZ) * W_mask;  db = sum of dZ over the examples;
        dX = dZ (W * W_mask)^T."""
        dZ = activation.activation_backward(dLdY, saved["Z"], self.act_fn)
        grads = {}
        if params:
            dW = product(saved["X"].T, dZ) * self.parameters["W_mask"]
            grads = {"W": dW, "b": conv.bias_grad(dZ)}
        return product(dZ, self._connections().T) if inputs else None, grads

    def update(self, cur_loss: float | None = None) -> None:
        """Let the optimizer take one step, flush, and replace the weakest connections.

        Parameters and errors as `LayerBase.update`.
        """
        super().update(cur_loss)
        if self.is_initialized and self.zeta > 0:
            self._evolve_connections()

    def _evolve_connections(self) -> None:
        """Remove the connections closest to zero, and make as many anew. The counts stay on the
        device: nothing waits for them."""
        W, mask = self.parameters["W"], self.parameters["W_mask"]
        xp, generator = xp_of(W), random.default_generator()
        exists, size = mask != 0, abs(W).astype("float32")

        removed = xp.zeros_like(exists)
        for sign in (W >= 0, W < 0):
            group = exists & sign
            count = xp.floor(group.sum() * self.zeta)
            removed |= _ranks(xp.where(group, size, xp.inf)) < count
        stays = exists & ~removed

        places = generator.uniform(W.shape, "float32", xp)
        new = _ranks(xp.where(stays, xp.inf, places)) < removed.sum()
        drawn = (2 * generator.uniform(W.shape, "float32", xp) - 1) * (math.sqrt(3) * self._std())

        mask[...] = stays | new
        W[...] = xp.where(new, drawn.astype(W.dtype), W * stays.astype(W.dtype))
        state = self.optimizer.cache.get("W")
        for held in state.values() if is_dict(state) else [state]:
            if getattr(held, "shape", None) == W.shape:
                held *= stays.astype(held.dtype)

    def _std(self) -> float:
        """The standard deviation of `init` (the cut of the normal modes left aside)."""
        n_in, n_out = self.parameters["W"].shape
        if self.init.startswith("he"):
            return math.sqrt(2 / n_in)
        if self.init.startswith("glorot"):
            gain = check.weights(self._name, self.act_fn, self.init).gain
            return gain * math.sqrt(2 / (n_in + n_out))
        return 1.0


def _ranks(scores: Array) -> Array:
    """0 for the smallest of all, 1 for the next, ...; in the shape of `scores`."""
    return scores.reshape(-1).argsort().argsort().reshape(scores.shape)
