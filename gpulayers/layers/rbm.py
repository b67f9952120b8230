"""The restricted Boltzmann machine."""

from __future__ import annotations

from typing import Any

from gpulayers import random
from gpulayers.activations import Sigmoid
from gpulayers.backend import Array, xp_of
from gpulayers.layers import _arguments as check
from gpulayers.layers._state import Saved
from gpulayers.layers.base import Backward, LayerBase
from gpulayers.ops import activation, conv
from gpulayers.ops._product import product


class RBM(LayerBase):
    """Visible and hidden binary units that draw each other, trained to draw what was seen.

        p(h = 1 | v) = sigmoid(v W + b_out)        p(v = 1 | h) = sigmoid(h W^T + b_in)

    Contrastive divergence (CD-K) compares the data v with what K rounds of drawing make of it, v':

        dW     = v'^T p(h | v') - v^T p(h | v)     summed over the examples,
        db_in  = v' - v,     db_out = p(h | v') - p(h | v)

    which for large K is the gradient of the negative log-likelihood.

    Parameters
    ----------
    n_out : int
        Hidden units.
    K : int
        Rounds of drawing.
    init : str
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    parameters : W (n_in, n_out), b_in (1, n_in), b_out (1, n_out)
    gradients : of the same shapes. An optimizer that goes down them makes the data more likely
        (numpy-ml's have the other sign, and one row an example).
    derived_variables : V, p_H, p_V_prime, p_H_prime (probabilities, given v and in the last round),
        positive_grad, negative_grad (the two terms of dW), one per retained input

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, n_in), floating, of zeros and ones (or probabilities). In the statistics v' is
    drawn, the hidden units are probabilities. numpy-ml's RBM cannot be constructed.
    Source: Hinton, "Training products of experts by minimizing contrastive divergence" (2002);
    Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient" (2008).
    """

    _ndim, _axes, _size = 2, "(n_ex, n_in)", ("n_in", 1)
    _params = ("W", "b_in", "b_out")
    _hyper = ("K", "n_in", "n_out", "init")

    def __init__(
        self,
        n_out: int,
        K: int = 1,
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.n_in: int | None = None
        self.n_out = n_out
        self.K = K
        self.init = init
        self.act_fn: Any = Sigmoid()
        self._rounds = 1
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.n_out = check.integer(self._name, "n_out", self.n_out)
        self.K = check.integer(self._name, "K", self.K)
        check.weights(self._name, self.act_fn, self.init)

    def _new_derived(self) -> dict[str, Any]:
        names = ("V", "p_H", "p_V_prime", "p_H_prime", "positive_grad", "negative_grad")
        return {name: [] for name in names}

    def _init_params(self) -> None:
        weights = check.weights(self._name, self.act_fn, self.init)
        self._create("W", (self.n_in, self.n_out), weights)
        self._create("b_in", (1, self.n_in))
        self._create("b_out", (1, self.n_out))

    # ---- one half of a round

    def _p_hidden(self, V: Array) -> Array:
        Z = product(V, self.parameters["W"])
        return activation.bias_activation(Z, self.parameters["b_out"], self.act_fn)

    def _p_visible(self, H: Array) -> Array:
        Z = product(H, self.parameters["W"].T)
        return activation.bias_activation(Z, self.parameters["b_in"], self.act_fn)

    # ---- contrastive divergence

    def forward(  # type: ignore[override]
        self, V: Array, K: int | None = None, retain_derived: bool = True
    ) -> None:
        """Go through K rounds of drawing, from the data.

        Parameters
        ----------
        V : (n_ex, n_in), floating
            It is not changed.
        K : int, optional
            Instead of the layer's own.
        retain_derived : bool
            Keep what `backward` needs.

        Raises
        ------
        ParameterError
            If K is no positive integer.
        ShapeError, DTypeError, BackendError
            If the input does not fit.
        """
        self._rounds = self.K if K is None else check.integer(self._name, "K", K)
        super().forward(V, retain_derived)

    def backward(  # type: ignore[override]
        self, retain_grads: bool = True, *args: Any
    ) -> None:
        """Add the gradients of all retained inputs to `gradients`.

        Parameters
        ----------
        retain_grads : bool
            False adds nothing.
        *args
            Ignored, as in numpy-ml: there is no gradient from above.

        Raises
        ------
        ShapeError
            If no input is retained.
        """
        likes = [retained.saved["p_H_prime"] for retained in self._retained]
        super().backward(likes, retain_grads)

    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """H ~ p(h | V);  K times: V' ~ p(v | H), H ~ p(h | V')."""
        p_H = p_H_prime = self._p_hidden(X)
        p_V_prime = V_prime = X
        for _ in range(self._rounds):
            p_V_prime = self._p_visible(_draw(p_H_prime))
            V_prime = _draw(p_V_prime)
            p_H_prime = self._p_hidden(V_prime)
        return p_H_prime, {
            "V": X,
            "V_prime": V_prime,
            "p_H": p_H,
            "p_V_prime": p_V_prime,
            "p_H_prime": p_H_prime,
            "positive_grad": product(X.T, p_H),
            "negative_grad": product(V_prime.T, p_H_prime),
        }

    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """dW = V'^T p_H' - V^T p_H;  db_in = sum of V' - V;  db_out = sum of p_H' - p_H."""
        if not params:
            return None, {}
        return None, {
            "W": saved["negative_grad"] - saved["positive_grad"],
            "b_in": conv.bias_grad(saved["V_prime"] - saved["V"]),
            "b_out": conv.bias_grad(saved["p_H_prime"] - saved["p_H"]),
        }

    def CD_update(self, X: Array) -> None:
        """`forward` and `backward`: the gradients of one batch (`update` then takes the step).

        Parameters and errors as `forward`.
        """
        self.forward(X)
        self.backward()

    def reconstruct(self, X: Array, n_steps: int = 10, return_prob: bool = False) -> Array:
        """Draw visible units, beginning at X.

        Parameters
        ----------
        X : (n_ex, n_in), floating
        n_steps : int
            Rounds of drawing.
        return_prob : bool
            Return the last round's probabilities instead of the drawn units.

        Returns
        -------
        V : (n_ex, n_in)

        Raises
        ------
        ParameterError
            If n_steps is no positive integer.
        ShapeError, DTypeError, BackendError
            If the input does not fit.
        """
        n_steps = check.integer(self._name, "n_steps", n_steps)
        p_V = V = self._ready(X)
        for _ in range(n_steps):
            p_V = self._p_visible(_draw(self._p_hidden(V)))
            V = _draw(p_V)
        return p_V if return_prob else V


def _draw(p: Array) -> Array:
    """Zeros and ones, one with probability `p`, from the default generator."""
    uniform = random.default_generator().uniform(p.shape, "float32", xp_of(p))
    return (uniform < p).astype(p.dtype)
