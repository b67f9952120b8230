"""The Wasserstein GAN with gradient penalty, for vectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers.backend import Array, xp_of
from gpulayers.errors import DivergedError, NotInitializedError, ParameterError, ShapeError
from gpulayers.initializers import OptimizerInitializer, WeightInitializer
from gpulayers.layers import FullyConnected
from gpulayers.losses import WGAN_GPLoss
from gpulayers.models._model import Callback, Model, Part, called, shown

__all__ = ["WGAN_GP"]


class WGAN_GP(Model):  # noqa: N801 - numpy-ml's name
    """A generator and a critic of four dense layers each, FC1 to FC4 (ReLU thrice, then linear).

    The critic learns to tell real examples from generated ones, with the norm of its input gradient
    held at one; the generator learns through the critic. (Gulrajani et al., "Improved training of
    Wasserstein GANs", 2017, algorithm 1.)

    numpy-ml's generator does not learn: its inputs are flushed before its backward pass, and the
    loss's gradient does not pass through the critic. Here it does both.

    Parameters
    ----------
    g_hidden : int
        Width of the hidden layers.
    init : str
    optimizer : str, optimizer, dict or None
        Each layer has a copy.
    debug : bool
        Take no update, and keep the intermediate values of each step in `derived_variables`.

    Attributes
    ----------
    generator, critic : OrderedDict of str to layer
        Made when the first input tells the number of features.
    loss : WGAN_GPLoss
        With ``lambda_`` 10 until `fit` says otherwise.

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Examples (n_ex, n_features), floating. The noise has the examples' shape, as in numpy-ml.
    """

    _parts = ("generator", "critic")
    _hyper = ("g_hidden", "init", "optimizer", "debug")

    def __init__(
        self,
        g_hidden: int = 512,
        init: str = "he_uniform",
        optimizer: Any = "RMSProp(lr=0.0001)",
        debug: bool = False,
    ) -> None:
        self.g_hidden = _spec.integer("WGAN_GP", "g_hidden", g_hidden, 1)
        WeightInitializer("relu", mode=init)
        self.init = init
        self.debug = _spec.flag("WGAN_GP", "debug", debug)
        self._optimizer = OptimizerInitializer(optimizer)()
        self.loss = WGAN_GPLoss()
        self.generator: Part = OrderedDict()
        self.critic: Part = OrderedDict()
        self.n_features: int | None = None
        self._dv: dict[str, Any] = {}

    @property
    def optimizer(self) -> str:
        """What the layers' optimizers are made from."""
        return str(self._optimizer)

    def _make_layers(self, n_features: int) -> None:
        def chain(n_out: int) -> Part:
            options: dict[str, Any] = {"init": self.init, "optimizer": self._optimizer}
            widths = {f"FC{i}": (self.g_hidden, "ReLU") for i in (1, 2, 3)}
            widths["FC4"] = (n_out, "Identity")
            return OrderedDict(
                (key, FullyConnected(n, act_fn=act, **options)) for key, (n, act) in widths.items()
            )

        self.n_features = n_features
        self.generator, self.critic = chain(n_features), chain(1)

    def _prepare(self, parameters: dict[str, Any]) -> None:
        W = parameters.get("critic", {}).get("FC1", {}).get("W")
        if W is None:
            super()._prepare(parameters)
        else:
            self._make_layers(W.shape[0])

    def _kept(self) -> dict[str, Any]:
        return {"n_features": self.n_features, "lambda_": self.loss.lambda_}

    def _restore(self, kept: dict[str, Any]) -> None:
        self.loss = WGAN_GPLoss(kept["lambda_"])
        if kept["n_features"] is not None:
            self._make_layers(kept["n_features"])

    # ------------------------------------------------------------------------ forward, backward

    def forward(
        self, X: Array, module: str, retain_derived: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """Run the generator or the critic.

        Parameters
        ----------
        X : (n_ex, n_features), floating
        module : {"G", "C"}
        retain_derived : bool

        Returns
        -------
        Y : (n_ex, n_features) for "G", (n_ex, 1) for "C"
        Xs : dict
            What goes into each layer under the name of the one before it: "FC0" is X, "FC4" is Y.

        Raises
        ------
        ShapeError, DTypeError, BackendError
        ParameterError
            If the module is unknown.
        """
        X = self._checked(X, 2, "(n_ex, n_features)")
        if self.n_features is None:
            self._make_layers(int(X.shape[1]))
        elif X.shape[1] != self.n_features:
            raise ShapeError(f"WGAN_GP: expected (n_ex, {self.n_features}), got {X.shape}")
        Xs = {"FC0": X}
        for key, layer in self._chain(module).items():
            X = layer.forward(X, retain_derived)
            Xs[key] = X
        return X, Xs

    def backward(
        self, grad: Array | list[Array], module: str, retain_grads: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """Carry a gradient back through the generator or the critic.

        Parameters
        ----------
        grad : array like the output, or a list of them after several forward passes
        module : {"G", "C"}
        retain_grads : bool
            Whether to add to the layers' gradients.

        Returns
        -------
        dX : like the input
        dXs : dict
            The gradients of what `forward` calls Xs: "FC4" is grad, "FC0" is dX.

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        chain = list(self._chain(module).items())
        dXs: dict[str, Any] = {"FC4": grad}
        for i, (_, layer) in reversed(list(enumerate(chain))):
            grad = layer.backward(grad, retain_grads=retain_grads)
            dXs[f"FC{i}"] = grad
        return grad, dXs

    def _chain(self, module: str) -> Part:
        if module not in ("G", "C"):
            raise ParameterError(
                f"WGAN_GP: module must be 'G' (generator) or 'C' (critic), got {module!r}"
            )
        chain = self.generator if module == "G" else self.critic
        if not chain:
            raise NotInitializedError("WGAN_GP: no example was seen; call forward or fit first")
        return chain

    # ----------------------------------------------------------------------------------- learning

    def update_critic(self, X_real: Array) -> Array:
        """One step of the critic on real examples (n_ex, n_features); return its loss, 0-d.

        The penalty looks at the gradient of the critic's output, so its own gradient needs second
        derivatives: `FullyConnected._bwd2`, from FC1 to FC4. The activations are piecewise linear,
        so nothing flows on through the layers' inputs.
        """
        X_real = self._checked(X_real, 2, "(n_ex, n_features)")
        xp, shape = xp_of(X_real), X_real.shape
        generator = random.default_generator()
        noise = generator.normal(shape, dtype=X_real.dtype, xp=xp)
        alpha = generator.uniform((shape[0], 1), dtype=X_real.dtype, xp=xp)
        X_fake, G_Xs = self.forward(noise, "G", retain_derived=False)
        X_interp = alpha * X_real + (1.0 - alpha) * X_fake
        self.flush_gradients("C")

        # gradient of the output at points between real and fake
        Y_interp, Xs = self.forward(X_interp, "C")
        gradInterp, dXs = self.backward(xp.ones_like(Y_interp), "C", retain_grads=False)
        self.flush_gradients("C")

        Y_fake, fake_Xs = self.forward(X_fake, "C")
        Y_real, real_Xs = self.forward(X_real, "C")
        loss = self.loss(Y_fake, "C", Y_real, gradInterp)
        dY_fake, dY_real, dGradInterp = self.loss.grad(Y_fake, "C", Y_real, gradInterp)
        self.backward([dY_fake, dY_real], "C")
        second = dGradInterp
        for i, layer in enumerate(self.critic.values()):
            second, dW, db = layer._bwd2(second, Xs[f"FC{i}"], dXs[f"FC{i + 1}"])
            if layer.trainable:
                layer.gradients["W"] += dW
                layer.gradients["b"] += db

        if self.debug:
            self._dv.update(
                noise=noise,
                alpha=alpha,
                X_fake=X_fake,
                X_real=X_real,
                X_interp=X_interp,
                G_fwd_X_fake=G_Xs,
                C_fwd_Y_fake=fake_Xs,
                C_fwd_Y_real=real_Xs,
                C_fwd_Y_interp=Xs,
                C_dY_interp_wrt=dXs,
                Y_fake=Y_fake,
                Y_real=Y_real,
                Y_interp=Y_interp,
                dY_real=dY_real,
                dC_Y_fake=dY_fake,
                gradInterp=gradInterp,
                dGrad_interp=dGradInterp,
                C_loss=loss,
            )
        else:
            self.update("C", loss)
        return loss

    def update_generator(self, X_shape: tuple[int, ...]) -> Array:
        """One step of the generator on a batch of shape `X_shape`; return its loss, 0-d.

        The loss's gradient goes back through the critic, which is left as it is, into the
        generator.

        Raises
        ------
        NotInitializedError
            If no example was seen.
        """
        first = next(iter(self._chain("G").values()))
        xp = backend.module(first.home or backend.current_backend())
        dtype = first.dtype or backend.default_dtype()
        noise = random.default_generator().normal(tuple(X_shape), dtype=dtype, xp=xp)
        self.flush_gradients("C")
        self.flush_gradients("G")
        X_fake, _ = self.forward(noise, "G")
        Y_fake, _ = self.forward(X_fake, "C")
        loss = self.loss(Y_fake, "G")
        dY_fake = self.loss.grad(Y_fake, "G")
        dX_fake, _ = self.backward(dY_fake, "C", retain_grads=False)
        self.backward(dX_fake, "G")
        self.flush_gradients("C")
        if self.debug:
            self._dv.update(G_loss=loss, dG_Y_fake=dY_fake)
        else:
            self.update("G", loss)
        return loss

    def flush_gradients(self, module: str) -> None:
        """Set the gradients of "G" or "C" to zero and forget its inputs."""
        for layer in self._chain(module).values():
            layer.flush_gradients()

    def update(self, module: str, module_loss: Any = None) -> None:
        """Let the layers of "G" or "C" take a step, and flush them."""
        for layer in self._chain(module).values():
            layer.update(module_loss)

    def fit(
        self,
        X_real: Array,
        lambda_: float = 10,
        n_steps: int = 1000,
        batchsize: int = 128,
        c_updates_per_epoch: int = 5,
        verbose: bool = True,
        callbacks: Callback | Iterable[Callback] = (),
    ) -> list[tuple[float, float]]:
        """Train on real examples.

        Parameters
        ----------
        X_real : (n_ex, n_features), floating
        lambda_ : float
            Weight of the gradient penalty.
        n_steps : int
            Steps of the generator.
        batchsize : int
            Examples drawn (with replacement) for each step.
        c_updates_per_epoch : int
            Steps of the critic before each step of the generator.
        verbose : bool
            Print a line about ten times on the way, below a bar on a terminal or in a notebook.
        callbacks : callable or several
            Called after each step with the model and the number of steps done, for instance to
            save now and then with `gpulayers.training.save`.

        Returns
        -------
        losses : list of (critic, generator)
            After each step. (numpy-ml returns None.)

        Raises
        ------
        ParameterError
            If an argument is out of range.
        DivergedError
            If a loss is not finite; looked at ten times on the way, and at the end.
        ShapeError, DTypeError, BackendError
        """
        owner = "WGAN_GP.fit"
        X_real = self._checked(X_real, 2, "(n_ex, n_features)")
        for name, value in (
            ("n_steps", n_steps),
            ("batchsize", batchsize),
            ("c_updates_per_epoch", c_updates_per_epoch),
        ):
            _spec.integer(owner, name, value, 1)
        self.loss = WGAN_GPLoss(lambda_)
        if self.n_features is None:
            self._make_layers(int(X_real.shape[1]))
        xp, (n, width) = xp_of(X_real), X_real.shape
        callbacks = called(owner, callbacks)
        generator = random.default_generator()
        losses: list[tuple[Any, Any]] = []
        critic_loss: Any = 0.0
        tenth = max(n_steps // 10, 1)
        with shown(verbose) as display:
            display.start(n_steps, label="step")
            for step in range(1, n_steps + 1):
                for _ in range(c_updates_per_epoch):
                    index = generator.integers(0, n, (batchsize,), xp=xp)
                    critic_loss = self.update_critic(X_real[index])
                losses.append((critic_loss, self.update_generator((batchsize, width))))
                if display.due():
                    display.show(step, "step", _figures(losses[-1]))
                if step % tenth == 0 or step == n_steps:
                    self._check_finite(losses[-1], step)
                if step % tenth == 0:
                    display.message(f"step {step}/{n_steps}  {_figures(losses[-1])}")
                for callback in callbacks:
                    callback(self, step)
        return [(float(c), float(g)) for c, g in losses]

    @staticmethod
    def _check_finite(losses: tuple[Any, Any], step: int) -> None:
        told = (float(losses[0]), float(losses[1]))
        if not np.isfinite(told).all():
            raise DivergedError(
                f"WGAN_GP.fit: the losses of critic and generator are {told} in step {step}; lower "
                "the learning rate"
            )

    def sample(self, n: int) -> Array:
        """Return `n` generated examples (n, n_features).

        Raises
        ------
        NotInitializedError
            If no example was seen.
        ParameterError
            If `n` is no positive integer.
        """
        first = self._chain("G")["FC1"]
        n = _spec.integer("WGAN_GP.sample", "n", n, 1)
        xp = backend.module(first.home or backend.current_backend())
        dtype = first.dtype or backend.default_dtype()
        width = self.n_features or 1
        noise = random.default_generator().normal((n, width), dtype=dtype, xp=xp)
        return self.forward(noise, "G", retain_derived=False)[0]


def _figures(losses: tuple[Any, Any]) -> str:
    return f"critic {float(losses[0]):.4f}  generator {float(losses[1]):.4f}"
