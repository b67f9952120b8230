"""What `Sequential.compile` says of arguments that are none."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers._dtypes import float_dtype
from gpulayers._types import is_sequence
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError, suggest
from gpulayers.layers._group import LayerGroup
from gpulayers.losses import SoftmaxCrossEntropy, SquaredError
from gpulayers.models.composite import Composite
from gpulayers.models.network import Sequential
from gpulayers.models.plan_loss import SquaredErrorOfOutputs
from gpulayers.ops._checks import changeable

__all__ = [
    "Makeup",
    "check_device",
    "checked_loss",
    "checked_shape",
    "converted",
    "device_of",
]

_PRECISIONS = {
    "fp32": "float32",
    "tf32": "float32",
    "fp64": "float64",
    "fp16": "float16",
    "bf16": "bfloat16",
}
_LOSSES = {"cross_entropy": SoftmaxCrossEntropy, "squared_error": SquaredErrorOfOutputs}


def converted(network: Any, precision: str | None) -> bool:
    """Whether the network's parameters, not of that precision, are now; their values rounded."""
    if precision is None:
        return False
    if precision not in _PRECISIONS:
        raise ParameterError(
            f"{network.name}.compile: unknown precision {precision!r}, expected one of "
            f"{', '.join(_PRECISIONS)}{suggest(str(precision), _PRECISIONS)}"
        )
    wanted, now = _PRECISIONS[precision], network.dtype.name
    if now == wanted:
        return False
    layers = [layer for _, layer in network.walk()]
    if network._passes() or any(getattr(layer.optimizer, "cache", None) for layer in layers):
        raise DTypeError(
            f"{network.name}.compile: precision {precision!r} needs parameters of {wanted}, these "
            f"are {now}; they are converted before the first update only, with no input retained "
            "(what an optimizer remembers has their dtype): compile first, or call "
            "gpulayers.set_default_dtype(...) before the first forward pass"
        )
    dtype = float_dtype(wanted, f"{network.name}.compile: precision")
    for layer in layers:
        for key, array in layer.parameters.items():
            if array is not None and backend.is_floating(array.dtype):
                layer.parameters[key] = array.astype(dtype)
    return True


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    values = tuple(shape) if is_sequence(shape) else ()
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in values)
    if len(values) < 2 or not whole or min(values) < 1:
        raise ParameterError(
            f"{name}.compile: batch_shape must be (n_ex, ...), positive integers, got {shape!r}"
        )
    return tuple(int(n) for n in values)


def checked_loss(name: str, loss: Any) -> Any:
    if isinstance(loss, str):
        if loss not in _LOSSES:
            raise ParameterError(
                f"{name}.compile: unknown loss {loss!r}, expected one of {', '.join(_LOSSES)} or "
                f"a loss object{suggest(loss, _LOSSES)}"
            )
        return _LOSSES[loss]()
    if loss is SquaredError or isinstance(loss, SquaredError):
        return SquaredErrorOfOutputs()
    for method in ("forward", "backward"):
        if not callable(getattr(loss, method, None)):
            raise ParameterError(
                f"{name}.compile: the loss needs the methods forward(labels, outputs) and "
                f"backward(), got {loss!r}"
            )
    return loss


def device_of(network: Any) -> int | None:
    """The CUDA device of a network's parameters, the current one before there are any; None on the
    CPU."""
    if (network.home or backend.current_backend()) != "cupy":
        return None
    for _, layer in network.walk():
        for array in layer.parameters.values():
            if array is not None:
                return array.device.id
    return backend.module("cupy").cuda.Device().id


def check_device(name: str, device: int | None, *arrays: Array) -> None:
    """Raise a BackendError unless a plan's device is the current one, and that of the arrays."""
    if device is None:
        return
    current = backend.module("cupy").cuda.Device().id
    if current != device:
        raise BackendError(
            f"{name}: its parameters are on CUDA device {device}, the current device is {current}; "
            f"compile and train within `with cupy.cuda.Device({device}):`"
        )
    for array in arrays:
        if array.device.id != device:
            raise BackendError(
                f"{name}: the plan was made on CUDA device {device}, its data is on device "
                f"{array.device.id}"
            )


def check_targets(
    name: str, device: int | None, targets: Any, X: Array, shape: tuple[int, ...]
) -> None:
    """See to it that a batch's targets are of the outputs' shape, and where the batch is.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        If they are not.
    """
    home, place = backend.home_of(name, "the targets", targets), backend.backend_of(X)
    if home != place:
        raise BackendError(f"{name}: the batch is a {place} array, the targets are a {home} array")
    check_device(name, device, targets)
    if targets.dtype.kind == "c":
        raise DTypeError(f"{name}: targets must be numbers of one part, got {targets.dtype}")
    if targets.shape != shape:
        raise ShapeError(
            f"{name}: SquaredError expects targets of shape {shape}, got {targets.shape}"
        )


class Makeup:
    """What decides how a plan computes: the layers in their order, activations, windows and what
    else tells the sizes of outputs, the sizes of the parameters, and the formula of a
    cross-entropy.

    What the parameters are, how they learn and which are frozen is no part of it: a plan follows
    that, and hyperparameters that leave the sizes alone.
    """

    def __init__(self, network: Any, loss: Any) -> None:
        self._name = network.name
        self._loss = loss if type(loss) is SoftmaxCrossEntropy else None
        self._formula = self._loss_formula()
        groups = list(_groups(network))
        self._chains = [(g, list(g.layers)) for g in groups if isinstance(g, Sequential)]
        others = [g for g in groups if not isinstance(g, Sequential)]
        self._others = [(g, list(g.components.values())) for g in others]
        walked = list(network.walk())
        layers = [layer for _, layer in walked]
        self._activations = [(layer, getattr(layer, "act_fn", None)) for layer in layers]
        sized = [(layer, _sizes(layer)) for layer in _leaves(groups)]
        looks = [(layer, attrgetter(*found), found) for layer, found in sized if found]
        self._sizes = [(layer, look, look(layer), found) for layer, look, found in looks]
        self._parameters: list[list[Any]] = []
        for where, layer in walked:
            for name, array in layer.parameters.items():
                layer.parameters[name] = array = changeable(array)
                self._parameters.append([layer, name, array, where])

    def check(self) -> None:
        """Look whether the network still is what it was. Parameters that somebody has put in the
        place of others are copied, if they do not lie as kernels read them.

        Raises
        ------
        ParameterError
            If it is not.
        ShapeError, DTypeError
            If a parameter has become one of another shape or dtype.
        """
        what = self._changed()
        if what:
            raise ParameterError(
                f"{self._name}: changed since the plan was made: {what}; compile again"
            )
        for known in self._parameters:
            layer, name, array, _ = known
            new = layer.parameters.get(name)
            if new is not array:
                known[2] = layer.parameters[name] = self._adopted(known, new)

    def _adopted(self, known: list[Any], new: Any) -> Array:
        _, name, old, where = known
        what = f"{self._name}: parameter '{where}.{name}': the plan was made for"
        backend.home_of(self._name, f"parameter '{where}.{name}'", new)
        if new.shape != old.shape:
            raise ShapeError(f"{what} shape {old.shape}, got {new.shape}; compile again")
        new = changeable(new)
        if new.dtype != old.dtype:
            raise DTypeError(f"{what} {old.dtype}, got {new.dtype}; compile again")
        return new

    def _loss_formula(self) -> Any:
        loss = self._loss
        if loss is None:
            return None
        weights = None if loss.class_weights is None else tuple(loss.class_weights)
        return loss.reduction, loss.label_smoothing, weights, loss.ignore_index

    def _changed(self) -> str:
        for chain, layers in self._chains:
            if chain.layers != layers:
                return f"the layers of {chain.name}"
        for group, parts in self._others:
            if list(group.components.values()) != parts:
                return f"the parts of {group.name}"
        for layer, act_fn in self._activations:
            if act_fn is not None and layer.act_fn is not act_fn:
                return f"the activation of a {type(layer).__name__}, which was {act_fn}"
        if self._loss_formula() != self._formula:
            return "the loss"
        for layer, look, before, found in self._sizes:
            if look(layer) != before:
                name = next(n for n, value in found.items() if getattr(layer, n) != value)
                return f"the {name} of a {type(layer).__name__}, which was {found[name]}"
        return ""


def _groups(part: Any) -> Iterator[Composite]:
    """The groups of layers in a network, itself included, that a plan takes apart. Modules it does
    not: they run as without a plan."""
    if isinstance(part, Composite):
        yield part
        for inner in part.components.values():
            yield from _groups(inner)


def _leaves(groups: list[Composite]) -> Iterator[Any]:
    """The layers that stand in these groups, out of their wrappers."""
    for group in groups:
        for part in group.components.values():
            if not isinstance(part, LayerGroup):
                yield getattr(part, "_base_layer", part)


# the hyperparameters that tell the size of an output, or the kernel for a window
_SIZING = (
    *("kernel_shape", "kernel_width", "stride", "pad", "dilation", "mode"),
    *("factor", "keep_dim", "return_sequences"),
)


def _sizes(layer: Any) -> dict[str, Any]:
    names = [name for name in _SIZING if name in getattr(layer, "_hyper", ())]
    return {name: getattr(layer, name) for name in names}
