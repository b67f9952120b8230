"""How a network becomes JSON and plain arrays, and the other way round; for checkpoints."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from gpulayers import backend, layers, models, modules
from gpulayers._types import is_dict, is_list, is_sequence
from gpulayers.errors import CheckpointError, GPULayersError, suggest
from gpulayers.initializers import OptimizerInitializer
from gpulayers.losses import NCELoss
from gpulayers.models import Composite, Model, Pixels, Residual, Sequential
from gpulayers.modules import ModuleBase
from gpulayers.training.safetensors import bfloat16
from gpulayers.wrappers import WrapperBase, init_wrappers

__all__ = ["describe", "pack", "rebuild", "unpack"]

_ARRAY, _TUPLE, _FLOAT = "$array", "$tuple", "$float"
_WRAPPED = "$wrapped"  # the class of a layer with wrappers around it
_TOO_WIDE = ("float96", "float128", "complex192", "complex256")  # what they are depends on the CPU


def describe(layer: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    """The JSON description of a layer or group of layers; its arrays go into `arrays`."""
    if isinstance(layer, Composite):
        parts = {
            key: describe(part, arrays, f"{where}.{key}") for key, part in layer.components.items()
        }
        spec: dict[str, Any] = {
            "class": type(layer).__name__,
            "name": layer.name,
            "components": parts,
        }
        if isinstance(layer, Sequential):
            spec["pixels"] = {"mean": layer.pixels.mean, "std": layer.pixels.std}
        return spec
    if isinstance(layer, Model):
        parts = {
            f"{part}.{key}": describe(one, arrays, f"{where}.{part}.{key}")
            for part, chain in layer._chains().items()
            for key, one in chain.items()
        }
        parts.update(
            (key, describe(one, arrays, f"{where}.{key}")) for key, one in layer._more().items()
        )
        arguments = {name: getattr(layer, name) for name in layer._hyper}
        return {
            "class": type(layer).__name__,
            "arguments": pack(arguments, arrays, where),
            "kept": pack(layer._kept(), arrays, f"{where}.kept"),
            "components": parts,
        }
    if isinstance(layer, WrapperBase):
        described = layer.hyperparameters["wrappers"]
        return {
            "class": _WRAPPED,
            "wrappers": described,
            "layer": describe(layer._base_layer, arrays, where),
        }
    if isinstance(layer, ModuleBase):
        parts = zip(layer.component_ids, layer.components, strict=True)
        return {
            "class": type(layer).__name__,
            "arguments": pack(layer.arguments, arrays, where),
            "components": {k: describe(part, arrays, f"{where}.{k}") for k, part in parts},
        }
    # a loss is made anew by its model, from the model's arguments
    hyperparameters: dict[str, Any] = {} if isinstance(layer, NCELoss) else layer.hyperparameters
    hyperparameters.pop("optimizer", None)
    if not hasattr(layer.optimizer, "state_dict"):
        raise CheckpointError(
            f"cannot save {where}: its optimizer {type(layer.optimizer).__name__} has no "
            "state_dict(); the built-in ones have"
        )
    return {
        "class": type(layer).__name__,
        "trainable": layer.trainable,
        "parameters": pack(layer.parameters, arrays, where),
        "hyperparameters": pack(hyperparameters, arrays, where),
        "optimizer": pack(layer.optimizer.state_dict(), arrays, f"{where}.optimizer"),
    }


def pack(value: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """`value` as JSON can hold it; arrays move into `arrays`, named after their place."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return pack(value.item(), arrays, where)
    if is_dict(value):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"cannot save {where}: the key {key!r} is no string")
            if key.startswith("$"):
                raise CheckpointError(f"cannot save {where}: the key {key!r} begins with $")
        return {key: pack(v, arrays, f"{where}.{key}") for key, v in value.items()}
    if is_sequence(value):
        packed = [pack(v, arrays, f"{where}.{i}") for i, v in enumerate(value)]
        return {_TUPLE: packed} if isinstance(value, tuple) else packed
    try:
        array = backend.to_cpu(value)
    except GPULayersError:
        raise CheckpointError(
            f"cannot save {where}: {type(value).__name__} is neither a plain value nor an array"
        ) from None
    if array.dtype.kind not in "biufcV" or array.dtype.names or array.dtype.name in _TOO_WIDE:
        raise CheckpointError(f"cannot save {where}: arrays of dtype {array.dtype} are not kept")
    dtype = array.dtype.name
    if array.dtype.kind == "c":  # pairs of real numbers, as other programs know only some of them
        half = array.dtype.char.replace("F", "f").replace("D", "d")
        array = array.reshape(*array.shape, 1).view(half)
    while where in arrays:  # {"a.b": ...} beside {"a": {"b": ...}}
        where += "'"
    arrays[where] = array
    return {_ARRAY: where, "dtype": dtype}


def rebuild(spec: dict[str, Any], arrays: dict[str, np.ndarray], custom: dict[str, type]) -> Any:
    """The layer or group of layers that `describe` described."""
    name = spec["class"]
    if name == _WRAPPED:
        return init_wrappers(rebuild(spec["layer"], arrays, custom), spec["wrappers"])
    known = _known()
    kind = custom.get(name) or known.get(name)
    if kind is None:
        raise CheckpointError(
            f"the checkpoint contains a layer {name!r} that gpulayers does not know"
            f"{suggest(name, known)}; if it is your own class, load(path, custom=[{name}])"
        )
    make: Any = kind
    if issubclass(kind, Model):
        return _rebuild_model(make(**unpack(spec["arguments"], arrays)), spec, arrays)
    if issubclass(kind, Composite):
        parts = {k: rebuild(part, arrays, custom) for k, part in spec["components"].items()}
        if not issubclass(kind, Sequential):
            return make(parts["body"], parts.get("shortcut"), name=spec["name"])
        network = make(parts.values(), name=spec["name"])
        network.pixels = Pixels(**spec["pixels"])
        return network
    if issubclass(kind, ModuleBase):
        module = make(**unpack(spec["arguments"], arrays))
        for key, part in zip(module.component_ids, module.components, strict=True):
            described = spec["components"][key]
            _restore(getattr(part, "_base_layer", part), described.get("layer", described), arrays)
        return module
    values = unpack(spec["hyperparameters"], arrays)
    accepted = inspect.signature(make).parameters
    layer = make(**{k: v for k, v in values.items() if k in accepted})
    _restore(layer, spec, arrays)
    return layer


def _rebuild_model(model: Model, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    """Give a fresh ready-made model its layers, and these what `describe` described."""
    model._restore(unpack(spec["kept"], arrays))
    found = {
        f"{part}.{key}": one
        for part, chain in model._chains().items()
        for key, one in chain.items()
    }
    found.update(model._more())
    if found.keys() != spec["components"].keys():
        raise CheckpointError(
            f"the checkpoint's {type(model).__name__} is made of {', '.join(spec['components'])}, "
            f"expected {', '.join(found)}"
        )
    for key, one in found.items():
        described = spec["components"][key]
        if "hyperparameters" not in described or described["class"] != type(one).__name__:
            raise CheckpointError(
                f"the checkpoint's {key} is a {described['class']}, expected {type(one).__name__}"
            )
        _restore(one, described, arrays)
    return model


def _restore(layer: Any, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Give a layer the parameters, settings and optimizer state that `describe` described."""
    values = unpack(spec["hyperparameters"], arrays)
    layer.set_params({"parameters": unpack(spec["parameters"], arrays), "hyperparameters": values})
    state = unpack(spec["optimizer"], arrays)
    optimizer: Any = OptimizerInitializer({"hyperparameters": state["hyperparameters"]})()
    optimizer.load_state_dict(state)
    layer.optimizer = optimizer
    if not spec["trainable"]:
        layer.freeze()


def _known() -> dict[str, type]:
    """The layer classes a checkpoint may name: nothing else is ever constructed from a file."""
    bases = (layers.LayerBase, ModuleBase, Sequential, Residual, Model)
    found: dict[str, type] = {}
    for module in (layers, models, modules):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, bases):
                found[name] = kind
    return found


def unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if is_list(value):
        return [unpack(v, arrays) for v in value]
    if is_dict(value):
        if _ARRAY in value:
            array, dtype = arrays[value[_ARRAY]], value["dtype"]
            if dtype == "bfloat16" and array.dtype == np.uint16:  # in files of version 1
                array = array.view(bfloat16())
            if dtype.startswith("complex") and array.dtype.kind == "f":
                array = array.view(dtype)[..., 0]
            return array
        if _FLOAT in value:
            return float(value[_FLOAT])
        if _TUPLE in value:
            return tuple(unpack(v, arrays) for v in value[_TUPLE])
        return {k: unpack(v, arrays) for k, v in value.items()}
    return value
