"""What all layers share: checks, retained inputs, gradient accumulation, updates, summaries.

A family file then holds what is particular: how the parameters are drawn (`_init_params`), the
formula (`_forward`) and its gradient (`_backward`), next to each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from gpulayers import backend
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import BackendError, FrozenLayerError, ShapeError
from gpulayers.layers._fitting import Fitting
from gpulayers.layers._state import Retained, Saved, native
from gpulayers.layers._where import say_where
from gpulayers.ops._checks import changeable

Backward = tuple[Array | None, dict[str, Array]]


class LayerBase(Fitting, ABC):
    """Base class of the layers.

    Parameters
    ----------
    optimizer : str, optimizer, dict or None
        What `update` uses. The layer keeps a copy, so one object given to two layers does not mix
        their states (numpy-ml shares it). None is ``SGD(lr=0.01)``.

    Attributes
    ----------
    parameters : dict of str to array
        ``None`` until the first `forward` tells the sizes. Arrays keep their identity: `update`
        changes them in place (numpy-ml replaces them), also one that you have assigned; one that
        cannot be changed so (say a transpose, or write-protected) it replaces by a copy.
    gradients : dict of str to array
        Sums over examples and over backward passes since the last flush; empty before the first
        `forward`. They keep their identity too.
    X : list
        Inputs retained for `backward`, by reference.
    derived_variables : dict of str to list
        Intermediate values of each retained input, for looking at.
    trainable : bool
        Whether the layer learns; see `freeze`.
    is_initialized : bool

    Notes
    -----
    dtype: parameters are created in the default dtype (`gpulayers.set_default_dtype`) on the
    backend of the first input. A floating input or gradient of another dtype is converted to the
    layer's (a copy); a layer without parameters computes in the dtype of its input.
    """

    # ---- what a family file adds

    @abstractmethod
    def _forward(self, X: Array, training: bool) -> tuple[Array, Saved]:
        """Return the output, and what the backward pass needs."""

    @abstractmethod
    def _backward(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """Return the gradient of the input and those of the parameters.

        ``params`` and ``inputs`` say which are wanted; one not wanted may be left out
        (``{}`` and ``None``), so that no time goes into it.
        """

    # ---- forward and backward

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Compute the layer's output.

        Parameters
        ----------
        X : array
            Shape as the class says, floating dtype. It is not changed.
        retain_derived : bool
            Keep what `backward` needs. False is evaluation: nothing is kept, batch normalisation
            uses its running statistics and dropout is the identity.

        Returns
        -------
        Y : array
            The caller's: what is written into it does not reach `backward`.

        Raises
        ------
        ShapeError, DTypeError, BackendError
            If the input does not fit; the message says what was expected.
        MemoryError
            If there is too little of it (CuPy's and NumPy's own, with a note that names the layer).
        """
        if not self.is_initialized:
            with self._first_pass() as is_first:
                if is_first:
                    return self._pass(X, retain_derived)
        return self._pass(X, retain_derived)

    def _pass(self, X: Array, retain_derived: bool) -> Array:
        given = X
        try:
            X = self._check_input(X)
            Y, saved = self._forward(X, training=retain_derived and self.trainable)
        except Exception as error:
            other = say_where(error, f"{self._name}.forward", "an input", given)
            if other is None:
                raise
            raise other from error
        if Y is X:  # nothing was computed, and the result is the caller's
            Y = X.copy()
        if retain_derived:
            self._retain(X, Y, saved)
        return Y

    def backward(
        self, dLdY: Array | list[Array], retain_grads: bool = True, input_grad: bool = True
    ) -> Any:
        """Carry the gradient of the loss back through the layer.

        The retained inputs stay, so a second call adds the same gradients again (as in numpy-ml);
        `update` or `flush_gradients` clears them.

        Parameters
        ----------
        dLdY : array or list of arrays
            Gradient with respect to the output; after several forward passes a list, one each.
        retain_grads : bool
            Whether to add the parameters' gradients to `gradients`.
        input_grad : bool
            False skips the gradient of the input, which a network's first layer does not need;
            the result is then None. (Not in numpy-ml.)

        Returns
        -------
        dLdX : array, or list of arrays after several forward passes

        Raises
        ------
        ShapeError
            If the number of gradients is not that of the retained inputs, or a shape is wrong.
        DTypeError, BackendError

        Notes
        -----
        A frozen layer passes dLdX through and accumulates nothing (numpy-ml raises, so that nothing
        below a frozen layer can be trained).
        """
        return self._run_backward(self._backward_step, dLdY, retain_grads, input_grad)

    def _backward_step(self, dLdY: Array, saved: Saved, params: bool, inputs: bool) -> Backward:
        """`_backward`, for a layer that adds some gradients of parameters to `gradients` itself and
        returns the others."""
        return self._backward(dLdY, saved, params=params, inputs=inputs)

    def _run_backward(
        self, step: Callable[..., Backward], dLdY: Any, retain_grads: bool, input_grad: bool
    ) -> Any:
        params = retain_grads and self.trainable
        self._looked()  # a parameter may have been assigned since the forward pass
        dLdXs: list[Array | None] = []
        for dLdy, retained in zip(self._check_gradients(dLdY), self._retained, strict=True):
            try:
                dLdX, grads = step(dLdy, retained.saved, params=params, inputs=input_grad)
            except MemoryError as error:
                say_where(error, f"{self._name}.backward", "a gradient", dLdy)
                raise
            if params:  # those that the step has not added itself
                self._accumulate(grads)
            if dLdX is dLdy:
                dLdX = dLdy.copy()
            dLdXs.append(dLdX if input_grad else None)
        return dLdXs[0] if len(dLdXs) == 1 else dLdXs

    def _accumulate(self, grads: dict[str, Array]) -> None:
        for name, grad in grads.items():
            total = self.gradients[name]
            total += grad.reshape(total.shape)

    def _retain(self, X: Array, Y: Array, saved: Saved) -> None:
        if self._keeps_input:
            self.X.append(X)
        self._retained.append(Retained(saved, Y.shape, Y.dtype, backend.backend_of(Y)))
        self._show(saved)

    def _show(self, saved: Saved) -> None:
        """Add what one forward pass computed to `derived_variables`."""
        for name, values in self.derived_variables.items():
            values.append(saved[name])

    # ---- learning

    def update(self, cur_loss: float | None = None) -> None:
        """Let the optimizer take one step on the parameters, in place, and flush.

        Parameters
        ----------
        cur_loss : float, optional
            The current loss, for schedulers that look at it.

        Raises
        ------
        FrozenLayerError
            If the layer is frozen.
        """
        if not self.trainable:
            raise FrozenLayerError(f"{self._name}: the layer is frozen; unfreeze() it to update")
        self.optimizer.step()
        for name, grad in self.gradients.items():
            parameter = self.parameters[name] = changeable(self.parameters[name])
            self.optimizer.update_(parameter, grad, name, cur_loss)
        self.flush_gradients()

    def flush_gradients(self) -> None:
        """Set all gradients to zero and forget the retained inputs."""
        self._drop_retained()
        for grad in self.gradients.values():
            grad.fill(0)

    def _drop_retained(self) -> None:
        self.X = []
        self._retained = []
        self.derived_variables.update(self._new_derived())

    def freeze(self) -> None:
        """Stop learning: gradients pass through, `update` raises, statistics stand still."""
        self.trainable = False

    def unfreeze(self) -> None:
        """Learn again."""
        self.trainable = True

    # ---- checks

    def _check_input(self, X: Any) -> Array:
        """Return X checked, in the layer's dtype, C-contiguous; create parameters at the first."""
        home = self._check_array("the input", X)
        if self._ndim is not None and X.ndim != self._ndim:
            raise ShapeError(f"{self._name}: expected an input {self._axes}, got shape {X.shape}")
        if self._size is not None:
            attribute, axis = self._size
            known, size = getattr(self, attribute), X.shape[axis]
            if size == 0 or (known is not None and size != known):
                raise ShapeError(
                    f"{self._name}: expected an input {self._axes} with "
                    f"{attribute} {'>= 1' if known is None else f'= {known}'}, got shape {X.shape}"
                )
        dtype = self._settle(home)
        if not self.is_initialized:
            self._first_home = home
            if self._size is not None:
                setattr(self, self._size[0], X.shape[self._size[1]])
            self._init_params()
            self._seen = None
            dtype = self._settle(home)
        return self._converted(X, dtype)

    def _ready(self, X: Any) -> Array:
        """`_check_input`, for what is no forward pass and yet may come first."""
        if not self.is_initialized:
            with self._first_pass() as is_first:
                if is_first:
                    return self._check_input(X)
        return self._check_input(X)

    def _check_gradients(self, dLdY: Any) -> list[Array]:
        """Return the gradients as a list that fits the retained inputs."""
        grads = list(dLdY) if is_sequence(dLdY) else [dLdY]
        count = len(self._retained)
        if count == 0:
            raise ShapeError(
                f"{self._name}: no input is retained; call forward(X) with retain_derived=True "
                "before backward"
            )
        if len(grads) != count:
            raise ShapeError(
                f"{self._name}: {count} input(s) are retained, so backward needs "
                f"{'one gradient' if count == 1 else f'a list of {count} gradients'}, "
                f"got {len(grads)}; flush_gradients() forgets inputs that were not meant"
            )
        pairs = zip(grads, self._retained, strict=True)
        return [self._check_gradient(g, retained) for g, retained in pairs]

    def _check_gradient(self, grad: Any, retained: Retained) -> Array:
        home = self._check_array("the gradient", grad)
        if home != retained.home:
            raise BackendError(
                f"{self._name}: the gradient is a {home} array, the output a {retained.home} one"
            )
        if grad.shape != retained.out_shape:
            raise ShapeError(
                f"{self._name}: the gradient must have the output's shape {retained.out_shape}, "
                f"got {grad.shape}"
            )
        return self._converted(grad, retained.out_dtype)

    @staticmethod
    def _converted(array: Array, dtype: Any) -> Array:
        """`array` in `dtype` (None: its own, in the machine's byte order) and C-contiguous; itself
        if it is that already."""
        if dtype is None:
            dtype = native(array.dtype)
        if array.dtype != dtype:
            array = array.astype(dtype)
        return array if array.flags.c_contiguous else backend.xp_of(array).ascontiguousarray(array)
