"""The variational autoencoder for images whose pixels are probabilities."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers._progress import Display
from gpulayers.backend import Array, xp_of
from gpulayers.errors import DivergedError, NotInitializedError, ParameterError, ShapeError
from gpulayers.initializers import OptimizerInitializer, WeightInitializer
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.losses import VAELoss
from gpulayers.models._model import (
    Callback,
    Model,
    Part,
    called,
    chain_backward,
    chain_forward,
    shown,
)
from gpulayers.utils import minibatch

__all__ = ["BernoulliVAE"]


class BernoulliVAE(Model):
    """A convolutional encoder to T normal variables, a dense decoder back to pixel probabilities.

        encoder: Conv1 (ReLU) - Pool1 - Conv2 (ReLU) - Pool2 - Flatten3 - FC4 (ReLU) - FC5
        code:    z = t_mean + noise * exp(t_log_var / 2), the halves of FC5's output
        decoder: FC1 (ReLU) - FC2 (sigmoid)

    (Kingma & Welling, "Auto-encoding variational Bayes", 2014; the reparametrisation is its section
    2.4.) numpy-ml multiplies the noise by exp(t_log_var), the variance; and its `forward` before
    `fit` and its `hyperparameters` raise AttributeError. Here both work.

    Parameters
    ----------
    T : int
        Variables in the code.
    latent_dim : int
        Width of the dense layers FC4 and FC1.
    enc_conv1_pad, enc_conv2_pad : int, tuple or "same"
    enc_conv1_out_ch, enc_conv2_out_ch : int
    enc_conv1_stride, enc_pool1_stride, enc_conv2_stride, enc_pool2_stride : int
    enc_conv1_kernel_shape, enc_pool1_kernel_shape, enc_conv2_kernel_shape, enc_pool2_kernel_shape
        : pairs of int
    optimizer : str, optimizer, dict or None
        Each layer has a copy.
    init : str

    Attributes
    ----------
    encoder, decoder : OrderedDict of str to layer
        The decoder is made when the first input tells the size of an image.
    derived_variables : noise, t_mean, t_log_var of the last forward pass, and the layers'
    loss : VAELoss

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Images (n_ex, rows, cols, channels), floating, in [0, 1]; reconstructions
    (n_ex, rows * cols * channels).
    """

    _parts = ("encoder", "decoder")
    _hyper = (
        "T",
        "latent_dim",
        "enc_conv1_pad",
        "enc_conv2_pad",
        "enc_conv1_out_ch",
        "enc_conv2_out_ch",
        "enc_conv1_stride",
        "enc_pool1_stride",
        "enc_conv2_stride",
        "enc_pool2_stride",
        "enc_conv1_kernel_shape",
        "enc_pool1_kernel_shape",
        "enc_conv2_kernel_shape",
        "enc_pool2_kernel_shape",
        "optimizer",
        "init",
    )

    def __init__(
        self,
        T: int = 5,
        latent_dim: int = 256,
        enc_conv1_pad: Any = 0,
        enc_conv2_pad: Any = 0,
        enc_conv1_out_ch: int = 32,
        enc_conv2_out_ch: int = 64,
        enc_conv1_stride: int = 1,
        enc_pool1_stride: int = 2,
        enc_conv2_stride: int = 1,
        enc_pool2_stride: int = 1,
        enc_conv1_kernel_shape: tuple[int, int] = (5, 5),
        enc_pool1_kernel_shape: tuple[int, int] = (2, 2),
        enc_conv2_kernel_shape: tuple[int, int] = (5, 5),
        enc_pool2_kernel_shape: tuple[int, int] = (2, 2),
        optimizer: Any = "RMSProp(lr=0.0001)",
        init: str = "glorot_uniform",
    ) -> None:
        self.T = _spec.integer("BernoulliVAE", "T", T, 1)
        self.latent_dim = _spec.integer("BernoulliVAE", "latent_dim", latent_dim, 1)
        self.enc_conv1_pad, self.enc_conv2_pad = enc_conv1_pad, enc_conv2_pad
        self.enc_conv1_out_ch, self.enc_conv2_out_ch = enc_conv1_out_ch, enc_conv2_out_ch
        self.enc_conv1_stride, self.enc_conv2_stride = enc_conv1_stride, enc_conv2_stride
        self.enc_pool1_stride, self.enc_pool2_stride = enc_pool1_stride, enc_pool2_stride
        self.enc_conv1_kernel_shape = enc_conv1_kernel_shape
        self.enc_pool1_kernel_shape = enc_pool1_kernel_shape
        self.enc_conv2_kernel_shape = enc_conv2_kernel_shape
        self.enc_pool2_kernel_shape = enc_pool2_kernel_shape
        WeightInitializer("relu", mode=init)
        self.init = init
        self._optimizer = OptimizerInitializer(optimizer)()
        self.loss = VAELoss()
        self.encoder: Part = self._new_encoder()
        self.decoder: Part = OrderedDict()
        self._dv: dict[str, Any] = {}

    @property
    def optimizer(self) -> str:
        """What the layers' optimizers are made from."""
        return str(self._optimizer)

    def _new_encoder(self) -> Part:
        options: dict[str, Any] = {"init": self.init, "optimizer": self._optimizer}
        return OrderedDict(
            Conv1=Conv2D(
                self.enc_conv1_out_ch,
                self.enc_conv1_kernel_shape,
                pad=self.enc_conv1_pad,
                stride=self.enc_conv1_stride,
                act_fn="ReLU",
                **options,
            ),
            Pool1=Pool2D(self.enc_pool1_kernel_shape, stride=self.enc_pool1_stride),
            Conv2=Conv2D(
                self.enc_conv2_out_ch,
                self.enc_conv2_kernel_shape,
                pad=self.enc_conv2_pad,
                stride=self.enc_conv2_stride,
                act_fn="ReLU",
                **options,
            ),
            Pool2=Pool2D(self.enc_pool2_kernel_shape, stride=self.enc_pool2_stride),
            Flatten3=Flatten(),
            FC4=FullyConnected(self.latent_dim, act_fn="ReLU", **options),
            FC5=FullyConnected(2 * self.T, **options),
        )

    def _make_decoder(self, n_features: int) -> None:
        options: dict[str, Any] = {"init": self.init, "optimizer": self._optimizer}
        self.decoder["FC1"] = FullyConnected(self.latent_dim, act_fn="ReLU", **options)
        self.decoder["FC2"] = FullyConnected(n_features, act_fn="Sigmoid", **options)

    def _prepare(self, parameters: dict[str, Any]) -> None:
        self._decoder_of(parameters)

    def _decoder_of(self, parameters: dict[str, Any]) -> None:
        values = parameters.get("decoder", {}).get("FC2", {}).get("W")
        if values is not None and not self.decoder:
            self._make_decoder(values.shape[1])

    def set_params(self, summary_dict: dict[str, Any]) -> BernoulliVAE:
        """As `Model.set_params`; the decoder is made if there is none yet."""
        self._decoder_of(summary_dict.get("parameters", {}).get("components", {}))
        return super().set_params(summary_dict)

    def _kept(self) -> dict[str, Any]:
        return {"n_features": self.decoder["FC2"].n_out if self.decoder else None}

    def _restore(self, kept: dict[str, Any]) -> None:
        if kept["n_features"] is not None:
            self._make_decoder(kept["n_features"])

    # ------------------------------------------------------------------------ forward, backward

    def encode(self, X: Array, retain_derived: bool = False) -> tuple[Array, Array]:
        """Return mean and log variance of the code of images: (n_ex, T) each."""
        X = self._checked(X, 4, "(n_ex, rows, cols, channels)")
        both = chain_forward(self.encoder, X, retain_derived)
        xp = xp_of(both)
        return xp.ascontiguousarray(both[:, : self.T]), xp.ascontiguousarray(both[:, self.T :])

    def decode(self, Z: Array, retain_derived: bool = False) -> Array:
        """Return the pixel probabilities of codes Z (n_ex, T).

        Raises
        ------
        NotInitializedError
            Before the first forward pass.
        """
        if not self.decoder:
            raise NotInitializedError("BernoulliVAE: no image was seen; call forward or fit first")
        return chain_forward(self.decoder, Z, retain_derived)

    def forward(self, X_train: Array, retain_derived: bool = True) -> Array:
        """Encode images, draw a code, decode it.

        Parameters
        ----------
        X_train : (n_ex, rows, cols, channels), floating, in [0, 1]
        retain_derived : bool
            Keep what `backward` needs.

        Returns
        -------
        X_recon : (n_ex, rows * cols * channels)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        if retain_derived and any(layer._retained for layer in self._layers()):
            self._drop_retained()  # backward looks at one forward pass, the last
        mean, log_var = self.encode(X_train, retain_derived)
        xp = xp_of(mean)
        noise = random.default_generator().normal(mean.shape, dtype=mean.dtype, xp=xp)
        if not self.decoder:
            self._make_decoder(math.prod(X_train.shape[1:]))
        self._dv = {"noise": noise, "t_mean": mean, "t_log_var": log_var}
        return self.decode(mean + noise * xp.exp(0.5 * log_var), retain_derived)

    def backward(self, X_train: Array, X_recon: Array) -> None:
        """Accumulate the gradients of the loss of the last `forward` pass.

        With dz from the decoder: dmean = dz + dKL/dmean, and, since z = mean + noise *
        exp(log_var / 2), dlog_var = dz * noise * exp(log_var / 2) / 2 + dKL/dlog_var.

        Raises
        ------
        NotInitializedError
            Before a forward pass.
        ShapeError, DTypeError, BackendError
        """
        if not self._dv:
            raise NotInitializedError("BernoulliVAE: backward needs a forward pass first")
        noise, mean, log_var = (self._dv[k] for k in ("noise", "t_mean", "t_log_var"))
        xp = xp_of(mean)
        targets = X_train.reshape(X_train.shape[0], -1)
        dY, dLogVar, dMean = self.loss.grad(targets, X_recon, mean, log_var)
        dZ = chain_backward(self.decoder, dY)
        dMean = dMean + dZ
        dLogVar = dLogVar + dZ * noise * (0.5 * xp.exp(0.5 * log_var))
        chain_backward(self.encoder, xp.concatenate([dMean, dLogVar], axis=1), input_grad=False)

    def evaluate(self, X: Array, batchsize: int = 256) -> float:
        """Return the mean loss (the negative bound, one code drawn per image) without learning."""
        total = 0.0
        for i in range(0, X.shape[0], batchsize):
            batch = X[i : i + batchsize]
            total += float(self._loss_of(batch, self.forward(batch, False))) * batch.shape[0]
        return total / max(X.shape[0], 1)

    def _loss_of(self, X: Array, X_recon: Array) -> Array:
        targets = X.reshape(X.shape[0], -1)
        return self.loss(targets, X_recon, self._dv["t_mean"], self._dv["t_log_var"])

    # ----------------------------------------------------------------------------------- learning

    def update(self, cur_loss: float | None = None) -> None:
        """Let each layer's optimizer take a step, and flush."""
        for layer in self._layers():
            layer.update(cur_loss)
        self.flush_gradients()

    def flush_gradients(self) -> None:
        """Set all gradients to zero and forget the forward pass."""
        for layer in self._layers():
            layer.flush_gradients()
        self._dv = {}

    def _drop_retained(self) -> None:
        for layer in self._layers():
            layer._drop_retained()

    def fit(
        self,
        X_train: Array,
        n_epochs: int = 20,
        batchsize: int = 128,
        verbose: bool = True,
        callbacks: Callback | Iterable[Callback] = (),
    ) -> list[float]:
        """Train on images.

        Parameters
        ----------
        X_train : (n_ex, rows, cols, channels), floating, in [0, 1]
        n_epochs, batchsize : int >= 1
            The examples are shuffled in each epoch (`gpulayers.random.seed`).
        verbose : bool
            Print a line after each epoch, below a bar on a terminal or in a notebook.
        callbacks : callable or several
            Called after each epoch with the model and the number of epochs done, for instance to
            save: ``lambda model, epoch: gpulayers.training.save("vae", model)``.

        Returns
        -------
        losses : list of float
            The mean loss in each epoch. (numpy-ml returns None.)

        Raises
        ------
        ParameterError
            If a pixel is outside [0, 1].
        DivergedError
            If the loss of an epoch is not finite.
        ShapeError, DTypeError, BackendError
        """
        X_train = self._checked(X_train, 4, "(n_ex, rows, cols, channels)")
        _spec.integer("BernoulliVAE.fit", "n_epochs", n_epochs, 1)
        low, high = float(X_train.min()), float(X_train.max())
        if not 0.0 <= low <= high <= 1.0:
            raise ParameterError(
                f"BernoulliVAE.fit: pixels must be in [0, 1], got {low:g}..{high:g}"
            )
        callbacks = called("BernoulliVAE.fit", callbacks)
        losses: list[float] = []
        steps = -(-X_train.shape[0] // _spec.integer("BernoulliVAE.fit", "batchsize", batchsize, 1))
        with shown(verbose) as display:
            display.start(n_epochs * steps)
            for epoch in range(1, n_epochs + 1):
                label = f"epoch {epoch}/{n_epochs}"
                losses.append(self._run_epoch(X_train, batchsize, display, label, epoch))
                if not np.isfinite(losses[-1]):
                    raise DivergedError(
                        f"BernoulliVAE.fit: the loss is {losses[-1]} in epoch {epoch}; lower the "
                        "learning rate"
                    )
                display.message(f"{label}  loss {losses[-1]:.4f}")
                for callback in callbacks:
                    callback(self, epoch)
        return losses

    def _run_epoch(
        self, X_train: Array, batchsize: int, display: Display, label: str, epoch: int
    ) -> float:
        """A step on each batch; the mean loss."""
        batches, steps = minibatch(X_train, batchsize)
        total: Any = 0.0
        seen = 0
        for i, index in enumerate(batches, 1):
            batch = X_train[index]
            X_recon = self.forward(batch)
            loss = self._loss_of(batch, X_recon)
            self.backward(batch, X_recon)
            self.update(loss)
            total, seen = total + loss * batch.shape[0], seen + batch.shape[0]
            if display.due():
                figures = f"loss {float(total) / seen:.4f}"
                display.show((epoch - 1) * steps + i, label, figures)
        return float(total) / seen

    def sample(self, n: int) -> Array:
        """Return the pixel probabilities of `n` codes drawn from N(0, 1): (n, n_features).

        Raises
        ------
        NotInitializedError
            Before the first forward pass.
        ShapeError
            If the decoder has no parameters yet.
        ParameterError
            If `n` is no positive integer.
        """
        if not self.decoder:
            raise NotInitializedError("BernoulliVAE: no image was seen; call forward or fit first")
        first = self.decoder["FC1"]
        if first.parameters["W"] is None:
            raise ShapeError("BernoulliVAE: the decoder has no parameters yet")
        n = _spec.integer("BernoulliVAE.sample", "n", n, 1)
        xp = backend.module(first.home)
        code = random.default_generator().normal((n, self.T), dtype=first.dtype, xp=xp)
        return self.decode(code)
