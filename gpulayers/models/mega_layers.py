"""Which networks one kernel can train by itself, and what it is told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpulayers.cuda.mega_constants import ACTIVATIONS, DRAWN
from gpulayers.errors import ParameterError
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
)
from gpulayers.layers import _arguments as check
from gpulayers.models.blocks import Activation
from gpulayers.models.graph_node import Place
from gpulayers.models.mega_stages import Conv, Dense, Norm, Stage
from gpulayers.models.network import Sequential
from gpulayers.models.plan_nodes import has_own_methods

__all__ = ["Chain", "chain_of"]

#: the layers that there are
KNOWN = (
    *("Conv2D", "Pool2D", "Flatten", "FullyConnected", "Activation", "Dropout"),
    *("BatchNorm1D", "BatchNorm2D"),
)
# what a thread keeps in registers
_MOST_POOLED, _MOST_COLUMNS = 16, 16


class Chain:
    """The stages of a network, and the layers whose parameters they have.

    Attributes
    ----------
    stages : list of Conv, Dense and Norm
    layers : list of layers
    names : list of str
        Of those layers.
    learned, still : list of (layer, str)
        The parameters that learn, and the others, in the kernel's order.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape: tuple[Any, ...] = shape
        self.stages: list[Stage] = []
        self.layers: list[Any] = []
        self.names: list[str] = []
        self.learned: list[Place] = []
        self.still: list[Place] = []
        self._settings: list[tuple[Any, Any]] = []
        self._drop = 0.0  # in front of the next stage

    def add(self, layer: Any, name: str) -> str | None:
        """Take a layer along, or return why not."""
        known: object = layer
        kind = type(known)
        self._settings.append((layer, _settings(layer)))
        if has_own_methods(layer):
            return "it has a method of its own"
        if kind is Conv2D:
            return self._add_conv(layer, name)
        if kind is FullyConnected:
            return self._add_dense(layer, name)
        if kind is Pool2D:
            return self._add_pool(layer)
        if kind is Activation:
            return self._add_activation(layer)
        if kind is Flatten:
            return self._add_flatten(layer)
        if kind is Dropout:
            return self._add_dropout(layer)
        if kind is BatchNorm1D or kind is BatchNorm2D:
            return self._add_norm(layer, name)
        return f"{kind.__name__} is not among {', '.join(KNOWN)}"

    def _add_conv(self, layer: Any, name: str) -> str | None:
        activation = _activation(layer.act_fn)
        if activation is None:
            return _no_activation(layer.act_fn)
        rows, cols, channels = self.shape
        window = check.window_2d(
            layer.kernel_shape, layer.stride, layer.pad, layer.dilation, (rows, cols), name
        )
        if window.kernel[1] > _MOST_COLUMNS:
            return f"its kernel has {window.kernel[1]} columns, at most {_MOST_COLUMNS} are taken"
        stage = Conv(rows, cols, channels, layer.out_ch, window, None, activation)
        self._put(stage, layer, name)
        self.shape = (*stage.out, stage.filters)
        return None

    def _add_dense(self, layer: Any, name: str) -> str | None:
        activation = _activation(layer.act_fn)
        if activation is None:
            return _no_activation(layer.act_fn)
        self._put(Dense(self.shape[0], layer.n_out, activation), layer, name)
        self.shape = (layer.n_out,)
        return None

    def _put(self, stage: Stage, layer: Any, name: str) -> None:
        if not isinstance(stage, Norm):
            stage = replace(stage, drop=self._drop)
        self._drop = 0.0
        self.stages.append(replace(stage, frozen=not layer.trainable))
        self.layers.append(layer)
        self.names.append(name)
        names = ("scaler", "intercept") if isinstance(stage, Norm) else ("W", "b")
        (self.learned if layer.trainable else self.still).extend((layer, n) for n in names)
        if isinstance(stage, Norm):
            self.still.extend((layer, n) for n in ("running_mean", "running_var"))

    def _add_pool(self, layer: Any) -> str | None:
        before = self.stages[-1] if self.stages else None
        if layer.mode != "max":
            return f"mode {layer.mode!r} instead of 'max'"
        if (
            not isinstance(before, Conv | Norm)
            or len(self.shape) < 3
            or before.pool is not None
            or self._drop
        ):
            return "it does not follow a convolution"
        rows, cols, channels = self.shape
        window = check.window_2d(layer.kernel_shape, layer.stride, layer.pad, 0, (rows, cols), "")
        if window.kernel != window.stride or any(window.pad):
            return "its windows are not side by side without padding"
        if window.taps > _MOST_POOLED:
            return f"its windows have {window.taps} pixels, at most {_MOST_POOLED} are taken"
        self.stages[-1] = replace(before, pool=window.kernel)
        self.shape = (*window.output_size(rows, cols), channels)
        return None

    def _add_norm(self, layer: Any, name: str) -> str | None:
        before = self.stages[-1] if self.stages else None
        if before is None or isinstance(before, Norm) or before.activation != "identity":
            return "it does not follow a convolution or dense layer without an activation"
        if len(self.shape) != (3 if isinstance(before, Conv) else 1) or self._drop:
            return "there is another layer between it and the convolution or dense layer before it"
        if isinstance(before, Conv) and before.pool is not None:
            return "it follows a pooling, not the convolution itself"
        rows, cols = before.out if isinstance(before, Conv) else (1, 1)
        self._put(Norm(rows, cols, self.shape[-1], layer.epsilon, layer.momentum), layer, name)
        return None

    def _add_activation(self, layer: Any) -> str | None:
        activation = _activation(layer.act_fn)
        if activation is None:
            return _no_activation(layer.act_fn)
        if not self.stages or self.stages[-1].activation != "identity" or self._drop:
            return "it does not follow a convolution or dense layer without an activation"
        self.stages[-1] = replace(self.stages[-1], activation=activation)
        return None

    def _add_flatten(self, layer: Any) -> str | None:
        if layer.keep_dim != "first":
            return f"keep_dim={layer.keep_dim!r} instead of 'first'"
        self.shape = (math.prod(self.shape),)
        return None

    def _add_dropout(self, layer: Any) -> str | None:
        if self._drop:
            return "it follows another one"
        self._drop = layer.p if layer.trainable else 0.0  # a frozen one is the identity
        return None

    @property
    def ends(self) -> bool:
        """Whether the last layer is a dense one."""
        return bool(self.stages) and isinstance(self.stages[-1], Dense) and not self._drop

    @property
    def is_stale(self) -> bool:
        """Whether a layer was frozen since, or got another hyperparameter."""
        return any(_settings(layer) != settings for layer, settings in self._settings)

    def masks(self, examples: int) -> int:
        """Blocks of random words that the dropout of so many examples takes."""
        return sum(-(-examples * stage.inputs // DRAWN) for stage in self.stages if stage.drop)


def chain_of(network: Any, shape: tuple[int, ...]) -> Chain:
    """Return the stages of a network for examples of this shape.

    Raises
    ------
    ParameterError
        If one of its layers is not among those that the kernel has; it says which and why.
    """
    chain = Chain(shape)
    for name, layer in _flat(network, network.name):
        reason = chain.add(layer, name)
        if reason is not None:
            raise ParameterError(
                f'{network.name}.compile: engine "mega" cannot have {name}: {reason}'
            )
    if not chain.ends:
        raise ParameterError(
            f'{network.name}.compile: engine "mega" needs a FullyConnected layer at the end'
        )
    if not chain.learned:
        raise ParameterError(
            f'{network.name}.compile: engine "mega" has nothing to train, all layers are frozen'
        )
    return chain


def _flat(network: Any, prefix: str) -> Sequence[tuple[str, Any]]:
    """All layers in a row, with what they are called in messages."""
    found: list[tuple[str, Any]] = []
    for i, layer in enumerate(network.layers):
        name = f"{prefix}, layer {i} ({type(layer).__name__})"
        if type(layer) is Sequential and not has_own_methods(layer):
            found += _flat(layer, name)
        else:
            found.append((name, layer))
    return found


def _settings(layer: Any) -> Any:
    """What the kernel is written for, besides the layer's place."""
    names = ("trainable", "p", "epsilon", "momentum")
    return [getattr(layer, name, None) for name in names]


def _activation(act: Any) -> str | None:
    """Its name, if the kernel has it."""
    kernel = getattr(act, "kernel", None)
    return kernel[0] if kernel is not None and kernel[0] in ACTIVATIONS else None


def _no_activation(act: Any) -> str:
    return f"its activation {act} is not among {', '.join(ACTIVATIONS)}"
