"""A chain of layers, used like one layer (`forward`, `backward`, `update`, `freeze`, ...).

Parameters and gradients are flat dictionaries whose names say where an array belongs: ``"0.W"`` is
the weight of the first layer, ``"3.body.0.W"`` that of the first layer inside a residual block.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.errors import GPULayersError, ParameterError
from gpulayers.layers import Embedding
from gpulayers.models._watch import first_layer
from gpulayers.models.composite import Composite
from gpulayers.models.pixels import Pixels
from gpulayers.ops.workspace import Workspace

if TYPE_CHECKING:
    from gpulayers.models.plan import CompiledNetwork
    from gpulayers.models.summary import Summary

__all__ = ["Sequential"]


class Sequential(Composite):
    """A chain of layers: the output of each is the input of the next.

    Parameters
    ----------
    layers : iterable of layers
        Also `Residual` and `Sequential` objects.
    optimizer : str or optimizer, optional
        Copied into every layer; if None each layer keeps the one it was made with.
    name : str
        Used in error messages and reports.

    Attributes
    ----------
    layers : list of layers
        One may be put in the place of another, ``net.layers[-1] = FullyConnected(3)``; a plan that
        `compile` made before has to be made again.
    pixels : Pixels
        What is done to uint8 inputs: divided by 255, unless a `Trainer` set the data's mean and
        standard deviation. Kept in checkpoints; floating inputs are taken as they are: right are
        those on the scale of the training, such as ``pixels(bytes, network.dtype)``.

    Raises
    ------
    ParameterError
        If there is no layer, one object stands in the chain twice, or something is no layer.
    """

    def __init__(
        self, layers: Iterable[Any], optimizer: Any = None, name: str = "Sequential"
    ) -> None:
        if not isinstance(layers, Iterable) or callable(getattr(layers, "forward", None)):
            raise ParameterError(
                f"{name}: expected a list of layers, {name}([...]), got {layers!r}"
            )
        layers = list(layers)
        if not layers:
            raise ParameterError(f"{name}: expected at least one layer, got none")
        for i, layer in enumerate(layers):
            if isinstance(layer, type) or not callable(getattr(layer, "forward", None)):
                raise ParameterError(
                    f"{name}: entry {i} is {layer!r}, expected a layer (an object with forward "
                    "and backward)"
                )
        if len({id(layer) for layer in layers}) != len(layers):
            raise ParameterError(
                f"{name}: one layer object stands in the chain twice; make a second layer"
            )
        super().__init__(name)
        self.layers = layers
        self.pixels = Pixels()
        self._workspace = Workspace()  # results on the CPU live in memory that is used again
        if optimizer is not None:
            self.set_optimizer(optimizer)

    @property
    def components(self) -> dict[str, Any]:
        """The layers by their places, ``"0"``, ``"1"``, ..."""
        return {str(i): layer for i, layer in enumerate(self.layers)}

    # ------------------------------------------------------------------------ forward, backward

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Return the last layer's output.

        Parameters
        ----------
        X : array
            What the first layer takes; uint8 goes through `pixels` first, but for ids.
        retain_derived : bool
            Keep what `backward` needs. False means evaluation: BatchNorm uses its running
            statistics, Dropout does nothing.

        Raises
        ------
        GPULayersError
            The failing layer's own error, with the layer's place in the network. The layers before
            it then retain nothing of this input, unless they retain others, too.
        """
        if getattr(X, "dtype", None) == np.uint8:
            X = self._of_bytes(X)
        i = 0
        if retain_derived:
            self._workspace.next_round()
        try:
            with self._workspace:
                for i, layer in enumerate(self.layers):  # noqa: B007 - i is read in `except`
                    X = layer.forward(X, retain_derived)
        except BaseException as error:  # Ctrl-C leaves a step half done, too
            if retain_derived and i and self._passes() == 1:
                self._drop_retained()
            if isinstance(error, GPULayersError):
                raise type(error)(f"{self.layer_name(i)}: {error}") from error
            raise
        return X

    def _of_bytes(self, X: Array) -> Array:
        """Bytes as the first layer takes them: they are pixels, but for an embedding."""
        return X if isinstance(first_layer(self), Embedding) else self.pixels(X, self.dtype)

    def _passes(self) -> int:
        """How many inputs the first layer retains."""
        first = next(layer for _, layer in self.walk())
        return len(getattr(getattr(first, "_base_layer", first), "_retained", ()))

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Return the gradient of the loss with respect to the input; accumulate those of the
        parameters on the way (chain rule, from the last layer to the first).

        Parameters
        ----------
        dLdY : array like the output of `forward`, or a list after several forwards
        retain_grads : bool
            If False the parameters' gradients are not touched.
        input_grad : bool
            If False, the first layer may skip its input gradient, and None is returned. Training
            does so: nobody wants the gradient of the images.

        Raises
        ------
        GPULayersError
            The failing layer's own error, with the layer's place in the network.
        """
        i = len(self.layers)
        try:
            with self._workspace:
                for i in range(len(self.layers) - 1, 0, -1):
                    dLdY = self.layers[i].backward(dLdY, retain_grads)
                i, first = 0, self.layers[0]
                if input_grad:
                    return first.backward(dLdY, retain_grads)
                if _can_skip_input_grad(first):
                    first.backward(dLdY, retain_grads, input_grad=False)
                else:
                    first.backward(dLdY, retain_grads)
        except GPULayersError as error:
            raise type(error)(f"{self.layer_name(i)}: {error}") from error
        return None

    def update(self, cur_loss: float | None = None) -> None:
        """Update the parameters of every layer that is not frozen, and flush all gradients."""
        with self._workspace:
            super().update(cur_loss)

    def compile(
        self,
        batch_shape: tuple[int, ...],
        loss: Any = "cross_entropy",
        optimizer: Any = None,
        precision: str | None = None,
        deterministic: bool = True,
        engine: str = "auto",
    ) -> CompiledNetwork:
        """Prepare training on batches of one shape: the same steps, planned to take less time.

            plan = network.compile(batch_shape=(64, 28, 28, 1))
            loss = plan.step(X, labels)

        Parameters
        ----------
        batch_shape : (n_ex, ...)
            Of the largest batch, n_ex included.
        loss : "cross_entropy", "squared_error" or object
            An object has ``forward(labels, outputs)`` and ``backward()``, or is a `SquaredError`,
            whose targets have the outputs' shape. A GPU's step is captured for these two,
            cross-entropy also with smoothing, class weights and ignored labels.
        optimizer : str or optimizer, optional
            Copied into every layer; None keeps the layers' own.
        precision : "fp32", "tf32", "fp64", "fp16" or "bf16", optional
            Of the parameters. Those of a network that was never updated are converted to
            it, others must have it already; None takes them as they are, and
            multiplies float32 on a GPU as `use_precision` says where `compile` is called. "tf32":
            float32 parameters and sums, but a GPU's tensor cores multiply them, which keep 10 bits
            of the factors' mantissas (an error of about 3e-4 of a product; see
            `gpulayers.cuda.precision`).
        deterministic : bool
            Keep to kernels whose results have the same bits in every run. All that a step takes at
            present are such; False would let ``GPULAYERS_TUNE=1`` choose among others as well.
        engine : "auto" or "mega"
            "mega", for tiny networks on a GPU: one kernel that does any number of steps.

        Returns
        -------
        CompiledNetwork

        Raises
        ------
        ParameterError, DTypeError
            If an argument is none of those, the engine does not have one of the layers, or the
            precision is "tf32" on the CPU.
        BackendError
            If the engine needs a GPU, or more memory than this one's blocks have, or the precision
            is "tf32" and the GPU older than compute capability 8.0, or another CUDA device than the
            parameters' is the current one.
        ShapeError
            If the layers do not take such a batch.
        """
        from gpulayers.models.engines import plan_class

        kind = plan_class(self, engine)
        if optimizer is not None:
            self.set_optimizer(optimizer)
        plan = kind(self, loss, batch_shape, precision)
        plan.deterministic = deterministic
        return plan

    # ------------------------------------------------------------------------------- prediction

    @property
    def dtype(self) -> np.dtype:
        """The parameters' dtype; the default dtype before they exist."""
        for _, layer in self.walk():
            for array in layer.parameters.values():
                if array is not None and backend.is_floating(array.dtype):
                    return array.dtype
        return backend.default_dtype()

    @property
    def home(self) -> str | None:
        """Where the parameters live, ``"numpy"`` or ``"cupy"``; None before they exist."""
        for _, layer in self.walk():
            for array in layer.parameters.values():
                if array is not None:
                    return backend.backend_of(array)
        return None

    def predict(self, X: Array, batch_size: int = 256) -> Array:
        """Return the network's output for `X`, computed in batches, in evaluation mode.

        Parameters
        ----------
        X : (n, ...) array
            Moved batch by batch to where the parameters live; the result comes back to where
            `X` lives. Bytes go through `pixels`, floats are taken as they are.
        batch_size : int

        Warns
        -----
        ImageScaleWarning
            If the network was trained on standardised bytes, and floating images are on another
            scale, such as 0 to 1 or 0 to 255.

        Raises
        ------
        ParameterError
            If batch_size is no positive integer.
        GPULayersError
            As `forward`.
        """
        _positive("predict: batch_size", batch_size)
        home, place = backend.home_of(f"{self.name}.predict", "X", X), self.home
        self.pixels.watch(f"{self.name}.predict", X)
        parts: list[Array] = []
        for start in range(0, max(len(X), 1), batch_size):
            part = X[start : start + batch_size]
            if place is not None and place != home:
                part = backend.to_backend(part, place)
            parts.append(backend.to_backend(self.forward(part, retain_derived=False), home))
        return backend.module(home).concatenate(parts) if len(parts) > 1 else parts[0]

    def predict_classes(self, X: Array, batch_size: int = 256) -> Array:
        """Return the index of the largest output for each example of `X`; ties: the first."""
        return self.predict(X, batch_size).argmax(axis=-1)

    # ---------------------------------------------------------------------------------- looking

    def layer_name(self, i: int) -> str:
        """Say which layer `i` is, for messages: ``"lenet, layer 3 (Pool2D)"``."""
        return f"{self.name}, layer {i} ({type(self.layers[i]).__name__})"

    def first_not_finite(self, X: Array) -> str | None:
        """Run `X` forward and name the first layer whose output holds NaN or infinity, or None.

        Inputs that were retained and gradients are gone afterwards, as after `flush_gradients`.
        """
        if getattr(X, "dtype", None) == np.uint8:
            X = self._of_bytes(X)
        try:
            for i, layer in enumerate(self.layers):
                X = layer.forward(X, True)
                if not bool(backend.xp_of(X).isfinite(X).all()):
                    return self.layer_name(i)
        finally:
            self.flush_gradients()
        return None

    @overload
    def summary(self) -> dict[str, Any]: ...

    @overload
    def summary(self, input_shape: tuple[int, ...], batch_size: int = 1) -> Summary: ...

    def summary(self, input_shape: Any = None, batch_size: int = 1) -> Any:
        """Describe the network: for a person with `input_shape`, else for `set_params`.

        Parameters
        ----------
        input_shape : shape of one example, e.g. (28, 28, 1), optional
            Return `summarize`'s table: ``print(network.summary((28, 28, 1)))``.
        batch_size : int
            For the table.

        Returns
        -------
        summary : Summary, or without `input_shape` numpy-ml's dictionary: layer, parameters (the
            live arrays), hyperparameters

        Raises
        ------
        ParameterError, GPULayersError
            As `summarize`.
        """
        if input_shape is None:
            return super().summary()
        from gpulayers.models.summary import summarize

        return summarize(self, input_shape, batch_size)

    def table(self, input_shape: tuple[int, ...], batch_size: int = 1) -> str:
        """Return a table of the layers: output shape, parameters, FLOPs, memory of training.

        Text for `print`; `summarize` and ``summary(input_shape)`` give the same as numbers.

        Parameters
        ----------
        input_shape : shape of one example, e.g. (28, 28, 1)
            Parameters that do not exist yet are created.
        batch_size : int
            Of so many examples.

        Raises
        ------
        ParameterError, GPULayersError
            As `summarize`.
        """
        from gpulayers.models._watch import example
        from gpulayers.models.summary import summarize

        if any(array is None for array in self.parameters.values()):
            self.forward(*example(self, input_shape), retain_derived=False)
        return str(summarize(self, input_shape, batch_size))

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __repr__(self) -> str:
        names = ", ".join(type(layer).__name__ for layer in self.layers)
        return f"{type(self).__name__}([{names}], name={self.name!r})"


_can_skip: dict[type, bool] = {}


def _can_skip_input_grad(layer: object) -> bool:
    """Whether this layer's class can leave out the gradient of its input."""
    kind = type(layer)
    if kind not in _can_skip:
        _can_skip[kind] = "input_grad" in inspect.signature(cast(Any, kind).backward).parameters
    return _can_skip[kind]


def _positive(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ParameterError(f"{what} must be a positive integer, got {value!r}")
