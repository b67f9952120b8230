"""PyTorch's weights, in and out, as plain arrays under the names of a ``state_dict``.

    load_torch_state(network, model.state_dict(), input_shape=(28, 28, 1))

    state = torch_state(network, like=model.state_dict(), input_shape=(28, 28, 1))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

PyTorch itself is not needed: any mapping of names to arrays will do, a safetensors file's too.

Layers are matched in order: the first of ours that has parameters with the first module in the
mapping that has some, and so on; each pair must be of one kind and fit in shape. How each kind
keeps its numbers in either library stands in `_torch_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.errors import (
    DTypeError,
    InterchangeError,
    NotInitializedError,
    ParameterError,
    suggest,
)
from gpulayers.interchange._torch_flatten import feature_orders
from gpulayers.interchange._torch_layers import FORMS, Arrays, Form
from gpulayers.layers._group import LayerGroup
from gpulayers.models._watch import bare

__all__ = ["load_torch_state", "torch_state"]

_LEVEL = re.compile(r"_l(\d+)(?=$|_reverse$)")


def load_torch_state(
    network: Any,
    state: Mapping[str, Any],
    input_shape: Sequence[int] | None = None,
    order: Sequence[str] | None = None,
) -> None:
    """Take over the weights of a PyTorch model of the same architecture.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
        Its parameters are replaced in place, on their backend and in their dtype; those that do
        not exist yet are created.
    state : mapping of str to array
        E.g. ``model.state_dict()``: CPU tensors, NumPy arrays, anything NumPy can read.
    input_shape : shape of one example, e.g. (28, 28, 1)
        Needed if the network has a `Flatten`: PyTorch's runs through (channels, rows, cols), ours
        through (rows, cols, channels), so the rows of the dense layer after it change places.
    order : sequence of str, optional
        Our layers' names (``"0"``, ``"3.body.0"``, as in `parameters`) in the order in which the
        mapping has its modules; None is our own order.

    Raises
    ------
    InterchangeError
        If numbers of layers differ, a pair is of different kinds, or an array does not fit; the
        message names both sides. Nothing is changed then.
    ParameterError
        If `order` is no order of the layers, or `input_shape` is needed and missing.

    Notes
    -----
    A missing bias (``bias=False``) becomes zeros; LSTM and GRU add PyTorch's two biases up, where
    they only ever occur as a sum. Recurrent modules of several levels (``num_layers``) are as many
    layers here. Running variances are PyTorch's own, unbiased; from then on ours.
    """
    modules = _modules(state)
    units = _matched(network, list(modules), order)
    features = feature_orders(network, input_shape)
    loaded: list[tuple[Any, Arrays]] = []
    for (name, layer), (prefix, entries) in zip(units, modules.items(), strict=True):
        form = FORMS[type(bare(layer))]
        with _between(name, layer, prefix):
            arrays = {key: _on_host(key, value) for key, value in entries.items()}
            ours = form.take(form.checked(arrays))
            if name in features:
                ours = _rows(ours, form, features[name])
            _check_shapes(layer, ours)
        loaded.append((layer, ours))
    for layer, ours in loaded:
        _assign(layer, ours)


def torch_state(
    network: Any,
    like: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    order: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return the parameters in PyTorch's layout, under the names of a ``state_dict``.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
    like : mapping of str to array, optional
        The ``state_dict()`` to fill: names, and which biases there are, are taken from it. None
        names each entry after our layer, ``"0.weight"``, which is right for a PyTorch model with
        the same numbering.
    input_shape, order
        As `load_torch_state`.

    Returns
    -------
    state : dict of str to NumPy array
        Copies, in the parameters' dtype.

    Raises
    ------
    InterchangeError, ParameterError
        As `load_torch_state`; InterchangeError also if an entry has no place in `like` and is not
        what its absence means: zero for a bias, one for a scale.
    NotInitializedError
        If a layer has seen no input yet.
    """
    modules = None if like is None else _modules(like)
    units = _matched(network, None if modules is None else list(modules), order)
    features = feature_orders(network, input_shape)
    prefixes = [f"{name}." if name else "" for name, _ in units] if modules is None else modules
    state: dict[str, np.ndarray] = {}
    for (name, layer), prefix in zip(units, prefixes, strict=True):
        form = FORMS[type(bare(layer))]
        with _between(name, layer, prefix):
            ours = {key: _value(layer, key, array) for key, array in _parameters(layer).items()}
            if name in features:
                ours = _rows(ours, form, np.argsort(features[name]))
            arrays = form.give(ours)
            if modules is not None:
                arrays = _fitted(arrays, form, modules[prefix])
        stem, _, level = prefix.partition("#")
        for key, array in arrays.items():
            full = stem + (_LEVEL.sub(f"_l{level}", key) if level else key)
            state[full] = np.array(array, order="C")
    return state


# --------------------------------------------------------------------------------- PyTorch's side


def _modules(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries by the module they belong to, in order: ``{"conv1.": {"weight": ..., ...}}``.

    Higher levels of a recurrent module count as modules of their own, ``"rnn.#1"``.
    """
    modules: dict[str, dict[str, Any]] = {}
    for full, value in state.items():
        stem, dot, key = full.rpartition(".")
        if stem.rpartition(".")[2] == "out_proj" or stem == "out_proj":
            whole = stem.removesuffix("out_proj")
            if f"{whole}in_proj_weight" in state:
                modules.setdefault(whole, {})[f"out_proj.{key}"] = value
                continue
        prefix = stem + dot
        level = _LEVEL.search(key)
        if level is not None and level[1] != "0":
            prefix, key = f"{prefix}#{level[1]}", _LEVEL.sub("_l0", key)
        modules.setdefault(prefix, {})[key] = value
    return modules


def _on_host(key: str, value: Any) -> np.ndarray:
    """An entry as a NumPy array."""
    with suppress(DTypeError):  # no array of ours: a tensor, or a list
        value = backend.to_cpu(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InterchangeError(
            f"{key} is no array that NumPy can read ({error}); for a tensor pass "
            ".detach().cpu(), for bfloat16 .float() too"
        ) from error
    if array.dtype.kind not in "fiu":
        raise InterchangeError(f"{key} must hold numbers, got dtype {array.dtype}")
    return array


def _fitted(arrays: Arrays, form: Form, wanted: dict[str, Any]) -> Arrays:
    """What of `arrays` PyTorch's module has a place for, in its order."""
    form.checked({key: np.empty(0) for key in wanted})
    for key, array in arrays.items():
        neutral = form.optional.get(key)
        if key not in wanted and neutral is not None and (array != neutral).any():
            raise InterchangeError(f"the other side has no {key}, and ours is not {neutral:g}")
    fitted: Arrays = {}
    for key, place in wanted.items():
        if key == "num_batches_tracked":
            fitted[key] = _on_host(key, place)
            continue
        fitted[key] = arrays[key]
        if tuple(place.shape) != arrays[key].shape:
            raise InterchangeError(
                f"{key} is {tuple(place.shape)} there, and would be {arrays[key].shape} from here"
            )
    return fitted


# -------------------------------------------------------------------------------------- our side


def _units(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Layers and modules with parameters, those that are one module in PyTorch as one."""
    if isinstance(part, LayerGroup) and type(part) not in FORMS:
        for key, inner in part._parts().items():
            yield from _units(inner, f"{name}.{key}" if name else key)
    elif isinstance(part, LayerGroup) or part.parameters:
        yield name, part


def _matched(
    network: Any, theirs: list[str] | None, order: Sequence[str] | None
) -> list[tuple[str, Any]]:
    """Our layers in the order of PyTorch's modules, as many of them, of known kinds."""
    units = dict(_units(network))
    for name, layer in units.items():
        if type(bare(layer)) not in FORMS:
            raise InterchangeError(f"{_named(name, layer)} has no counterpart in PyTorch")
    if order is not None:
        for name in order:
            if name not in units:
                raise ParameterError(f"order: no layer {name!r}{suggest(name, units)}")
        if len(order) != len(units) or len(set(order)) != len(units):
            raise ParameterError(
                f"order: expected each of {', '.join(units)} once, got {', '.join(order)}"
            )
        units = {name: units[name] for name in order}
    if theirs is not None and len(theirs) != len(units):
        ours = ", ".join(_named(name, layer) for name, layer in units.items())
        raise InterchangeError(
            f"{len(units)} layers here have parameters ({ours}), {len(theirs)} modules there "
            f"({', '.join(p.rstrip('.') or 'the module itself' for p in theirs)})"
        )
    return list(units.items())


def _named(name: str, layer: Any) -> str:
    kind = type(bare(layer)).__name__
    return f"{name} ({kind})" if name else kind


@contextmanager
def _between(name: str, layer: Any, prefix: str) -> Generator[None, None, None]:
    """Say in errors which layer it was, and which module."""
    try:
        yield
    except InterchangeError as error:
        there = prefix.rstrip(".") or "the module"
        raise InterchangeError(f"{_named(name, layer)} and {there}: {error}") from error


def _parameters(layer: Any) -> dict[str, Any]:
    """Parameters of a layer, or of a module's components as ``"cell_fwd.Wf"``."""
    if not isinstance(layer, LayerGroup):
        return dict(layer.parameters)
    return {f"{key}.{n}": a for key, part in layer.walk() for n, a in part.parameters.items()}


def _value(layer: Any, key: str, array: Any) -> np.ndarray:
    if array is None:
        raise NotInitializedError(
            f"{type(bare(layer)).__name__}: the shape of {key} is known only after the first "
            "forward pass"
        )
    return backend.to_cpu(array)


def _check_shapes(layer: Any, ours: Arrays) -> None:
    for key, current in _parameters(layer).items():
        if current is not None and current.shape != ours[key].shape:
            raise InterchangeError(
                f"{key} is {current.shape} here, and would be {ours[key].shape} from there"
            )


def _assign(layer: Any, ours: Arrays) -> None:
    if not isinstance(layer, LayerGroup):
        layer.set_params({"parameters": ours})
        return
    for key, part in layer.walk():
        mine = {n.partition(".")[2]: a for n, a in ours.items() if n.startswith(f"{key}.")}
        part.set_params({"parameters": mine})


def _rows(ours: Arrays, form: Form, rows: np.ndarray) -> Arrays:
    """`ours` with the features' axis in another order."""
    for key in form.features:
        if len(ours[key]) != len(rows):
            raise InterchangeError(f"{key} has {len(ours[key])} features, expected {len(rows)}")
    return {key: a[rows] if key in form.features else a for key, a in ours.items()}
