"""Noise-contrastive estimation."""

from __future__ import annotations

from typing import Any

from gpulayers import _spec
from gpulayers.activations import Sigmoid
from gpulayers.backend import Array, backend_of, to_backend, xp_of
from gpulayers.errors import FrozenLayerError, NotInitializedError, ParameterError, ShapeError
from gpulayers.initializers import OptimizerInitializer, WeightInitializer
from gpulayers.losses._base import wide
from gpulayers.losses._nce_checks import NCEChecks
from gpulayers.ops._product import product
from gpulayers.ops.embedding import embedding_backward, embedding_forward


class NCELoss(NCEChecks):
    """Noise-contrastive estimation: tell the target from noise, instead of summing all classes.

    With s_k(x) = W_k x + b_k - log Q(k) for class k with probability Q(k) under the noise,

        loss = - sum_x [log sigmoid(s_target(x)) + sum_k log sigmoid(-s_k(x))],  k the negatives,

    summed over examples and contexts. (Gutmann & Hyvarinen, "Noise-contrastive estimation", 2010;
    Mnih & Teh, 2012.) As in numpy-ml the number of negatives is left out of the log.

    A target that is among the negatives counts as both, as in the formula (numpy-ml then loses the
    target's part of the gradient).

    Parameters
    ----------
    n_classes : int
    noise_sampler : callable
        ``noise_sampler(n)`` returns n classes; ``.probs`` (n_classes,) are their probabilities,
        see `DiscreteSampler`.
    num_negative_samples : int
        Drawn once for a batch; 0 leaves the targets alone, which no noise holds down.
    optimizer : str, optimizer, dict or None
        For W and b; copied.
    init : str
    subtract_log_label_prob : bool
        False leaves log Q out: negative sampling as word2vec does it (Mikolov et al., 2013).

    Attributes
    ----------
    parameters : W (n_classes, n_in), b (1, n_classes)
        None until the first `loss`; then in the default dtype, on the input's backend.
    gradients : of the same shapes
    X, derived_variables : lists
        One entry for each retained input: y_pred (n_ex, n_c, 1 + negatives), target, out_labels,
        target_logits, noise_samples (negatives, p_target, p_negatives), noise_logits.
    trainable : bool

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range; if probs is not (n_classes,), or 0 for a class
        whose log is needed.
    """

    def __init__(
        self,
        n_classes: int,
        noise_sampler: Any,
        num_negative_samples: int,
        optimizer: Any = None,
        init: str = "glorot_uniform",
        subtract_log_label_prob: bool = True,
    ) -> None:
        name = "NCELoss"
        self.n_classes = _spec.integer(name, "n_classes", n_classes, 1)
        self.num_negative_samples = _spec.integer(
            name, "num_negative_samples", num_negative_samples, 0
        )
        self.subtract_log_label_prob = _spec.flag(
            name, "subtract_log_label_prob", subtract_log_label_prob
        )
        probs: Any = getattr(noise_sampler, "probs", None)
        if not callable(noise_sampler) or getattr(probs, "shape", None) != (n_classes,):
            raise ParameterError(
                f"{name}: noise_sampler must be callable with probs of shape ({n_classes},), such "
                f"as DiscreteSampler(probs), got {noise_sampler!r}"
            )
        if self.subtract_log_label_prob and not (probs > 0).all():
            raise ParameterError(
                f"{name}: each class needs a positive probability, whose log is subtracted; or "
                "set subtract_log_label_prob=False"
            )
        self.noise_sampler: Any = noise_sampler
        self.init = init
        self._weights = WeightInitializer("Sigmoid", mode=init)
        self.optimizer: Any = OptimizerInitializer(optimizer)().copy()
        self.act_fn = Sigmoid()
        self.n_in = None
        self.trainable = True
        self.is_initialized = False
        self.parameters = {"W": None, "b": None}
        self.gradients = {}
        self._log_probs = None
        self._drop_retained()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, n_in, and the optimizer with its state: a new dict."""
        return {
            "id": "NCELoss",
            "n_in": self.n_in,
            "init": self.init,
            "n_classes": self.n_classes,
            "noise_sampler": self.noise_sampler,
            "num_negative_samples": self.num_negative_samples,
            "subtract_log_label_prob": self.subtract_log_label_prob,
            "optimizer": {
                "cache": self.optimizer.cache,
                "hyperparameters": self.optimizer.hyperparameters,
            },
        }

    def __str__(self) -> str:
        values = {k: v for k, v in self.hyperparameters.items() if k not in ("id", "optimizer")}
        arguments = ", ".join(f"{k}={v}" for k, v in values.items())
        return f"NCELoss({arguments}, optimizer={self.optimizer})"

    def summary(self) -> dict[str, Any]:
        """Return ``{"id", "parameters", "hyperparameters"}``; the arrays are the live ones."""
        return {
            "id": "NCELoss",
            "parameters": self.parameters,
            "hyperparameters": self.hyperparameters,
        }

    def set_params(self, summary_dict: dict[str, Any]) -> NCELoss:
        """Restore W, b (copied) and the optimizer from what `summary` returned.

        Raises
        ------
        ShapeError
            If W is not (n_classes, n_in) or b not (1, n_classes).
        """
        parameters = summary_dict.get("parameters", {})
        if parameters.get("W") is not None:
            W, b = parameters["W"], parameters.get("b")
            if b is None or W.ndim != 2 or W.shape[0] != self.n_classes:
                raise ShapeError(f"NCELoss: W must be ({self.n_classes}, n_in), with a b")
            if b.shape != (1, self.n_classes):
                raise ShapeError(f"NCELoss: b must be (1, {self.n_classes}), got {b.shape}")
            self.n_in = int(W.shape[1])
            self.parameters = {"W": W.copy(), "b": b.astype(W.dtype)}
            self.gradients = {key: xp_of(p).zeros_like(p) for key, p in self.parameters.items()}
            self.is_initialized, self._log_probs = True, None
            self._drop_retained()
        optimizer = summary_dict.get("hyperparameters", {}).get("optimizer")
        if optimizer is not None:
            self.optimizer = OptimizerInitializer(optimizer)().copy()
        return self

    # ---------------------------------------------------------------------------- loss, gradient

    def __call__(
        self,
        X: Array,
        target: Array,
        neg_samples: Array | None = None,
        retain_derived: bool = True,
    ) -> tuple[Array, Array]:
        """Return ``loss(...)``."""
        return self.loss(X, target, neg_samples, retain_derived)

    def loss(  # type: ignore[override]  # has parameters, so it is no static method
        self,
        X: Array,
        target: Array,
        neg_samples: Array | None = None,
        retain_derived: bool = True,
    ) -> tuple[Array, Array]:
        """Return the loss and the targets' probabilities.

        Parameters
        ----------
        X : (n_ex, n_c, n_in), floating
            n_c contexts of each example.
        target : (n_ex,), integer
        neg_samples : (num_negative_samples,), integer, optional
            Used instead of drawing.
        retain_derived : bool
            Keep what `grad` needs.

        Returns
        -------
        loss : 0-d array
        y_pred : (n_ex, n_c)
            sigmoid(s_target).

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            On the host, for classes out of range; on a GPU the loss is NaN instead.

        Notes
        -----
        Frozen, it is evaluation: the negatives are left out, as in numpy-ml.
        """
        X, target = self._inputs(X, target)
        xp = xp_of(X)
        W, b = self.parameters["W"], self.parameters["b"]
        n_ex, n_c, n_in = X.shape
        probs, logs = self._noise(xp)
        W_target = embedding_forward(W, target)
        Z_target = (X * W_target[:, None, :]).sum(axis=2) + _entries(b, target)[:, None]
        if logs is not None:
            Z_target = Z_target - _entries(logs, target)[:, None]
        total = xp.logaddexp(0.0, -wide(Z_target)).sum()  # -log sigmoid(z) = log(1 + exp(-z))
        Z_target = Z_target.astype(X.dtype, copy=False)
        predictions = [self.act_fn.fn(Z_target)[:, :, None]]
        noise, Z_noise = None, None
        if self.trainable:
            noise = self._negatives(neg_samples, home=backend_of(X))
            W_noise = embedding_forward(W, noise)
            Z_noise = (product(X.reshape(-1, n_in), W_noise.T) + _entries(b, noise)).reshape(
                n_ex, n_c, -1
            )
            if logs is not None:
                Z_noise = Z_noise - _entries(logs, noise)
            total = total + xp.logaddexp(0.0, wide(Z_noise)).sum()
            Z_noise = Z_noise.astype(X.dtype, copy=False)
            predictions.append(self.act_fn.fn(Z_noise))
        y_pred = xp.concatenate(predictions, axis=2)
        if retain_derived:
            p_noise = None if noise is None else _entries(probs, noise)
            labels = xp.zeros_like(y_pred)
            labels[:, :, :1] = 1
            self.X.append(X)
            for key, value in {
                "y_pred": y_pred,
                "target": target,
                "out_labels": labels,
                "target_logits": Z_target[:, :, None],
                "noise_samples": (noise, _entries(probs, target)[None, :], p_noise),
                "noise_logits": Z_noise,
            }.items():
                self.derived_variables[key].append(value)
        return xp.asarray(total), y_pred[:, :, 0]

    def grad(self, retain_grads: bool = True, update_params: bool = True) -> Any:  # type: ignore[override]
        """Return the gradient with respect to each retained input, and learn.

        Parameters
        ----------
        retain_grads : bool
            Whether to add the gradients of W and b to `gradients`.
        update_params : bool
            Whether to call `update` then; not if `retain_grads` is False.

        Returns
        -------
        dX : (n_ex, n_c, n_in), or a list of them after several losses

        Raises
        ------
        NotInitializedError
            If no input is retained.
        FrozenLayerError
            If the loss is frozen.
        """
        self._not_frozen("grad")
        if not self.X:
            raise NotInitializedError("NCELoss: grad needs a loss(...) with retain_derived=True")
        dXs = [self._grad(i, retain_grads) for i in range(len(self.X))]
        if retain_grads and update_params:
            self.update()
        return dXs[0] if len(dXs) == 1 else dXs

    def _grad(self, i: int, params: bool) -> Array:
        """With g = sigmoid(s) - label:  dX = sum_k g_k W_k;  dW_k = sum g_k x;  db_k = sum g_k."""
        X, W = self.X[i], self.parameters["W"]
        xp = xp_of(X)
        target = self.derived_variables["target"][i]
        noise = self.derived_variables["noise_samples"][i][0]
        g = self.derived_variables["y_pred"][i] - self.derived_variables["out_labels"][i]
        g_target, g_noise = g[:, :, :1], xp.ascontiguousarray(g[:, :, 1:])
        dX = g_target * embedding_forward(W, target)[:, None, :]
        ids, rows, sums = target, (g_target * X).sum(axis=1), g_target.sum(axis=1)
        if noise is not None and noise.size:
            flat = g_noise.reshape(-1, g_noise.shape[2])
            dX = dX + product(flat, embedding_forward(W, noise)).reshape(X.shape)
            ids = xp.concatenate([target, noise])
            rows = xp.concatenate([rows, product(flat.T, X.reshape(-1, X.shape[2]))])
            sums = xp.concatenate([sums, flat.sum(axis=0)[:, None]])
        if params:
            # a class may stand there several times, as target and as negative: each one counts
            dW, db = self.gradients["W"], self.gradients["b"]
            dW += embedding_backward(rows, ids, self.n_classes)
            db += embedding_backward(sums, ids, self.n_classes).reshape(1, -1)
        return dX.astype(X.dtype, copy=False)

    # ---------------------------------------------------------------------------------- learning

    def update(self, cur_loss: float | None = None) -> None:
        """Let the optimizer take one step on W and b, in place, and flush.

        Raises
        ------
        FrozenLayerError
        """
        self._not_frozen("update")
        self.optimizer.step()
        for name, grad in self.gradients.items():
            self.optimizer.update_(self.parameters[name], grad, name, cur_loss)
        self.flush_gradients()

    def flush_gradients(self) -> None:
        """Set the gradients to zero and forget the retained inputs."""
        self._drop_retained()
        for grad in self.gradients.values():
            grad.fill(0)

    def freeze(self) -> None:
        """Evaluate: no negatives, no gradient, no update."""
        self.trainable = False

    def unfreeze(self) -> None:
        """Learn again."""
        self.trainable = True

    def to(self, name: str) -> NCELoss:
        """Move parameters and gradients to backend "numpy" or "cupy"; what is retained is lost."""
        for values in (self.parameters, self.gradients):
            for key, array in values.items():
                if array is not None:
                    values[key] = to_backend(array, name)
        self._log_probs = None
        self._drop_retained()
        return self

    def _not_frozen(self, method: str) -> None:
        if not self.trainable:
            raise FrozenLayerError(f"NCELoss: it is frozen; unfreeze() it for {method}")


def _entries(values: Array, ids: Array) -> Array:
    """values[ids] of a row of numbers; NaN, not a wrong number, for ids out of range on a GPU."""
    return embedding_forward(values.reshape(-1, 1), ids)[:, 0]
