"""The table itself: nothing public is left out."""

from __future__ import annotations

import importlib.util

import pytest

from gpulayers import activations, layers
from tests.layers.cases import ACT, CASES

# Layers that take something else than one floating array have test files of their own.
ELSEWHERE = {
    "Add": "test_merge",
    "DotProductAttention": "test_attention",
    "Embedding": "test_embedding",
    "Multiply": "test_merge",
    "RBM": "test_rbm",
}


def test_every_public_layer_has_a_case() -> None:
    public = {name for name in layers.__all__ if name != "LayerBase"}
    assert public - {case.layer for case in CASES} - set(ELSEWHERE) == set()


@pytest.mark.parametrize("layer", ELSEWHERE)
def test_the_others_have_a_test_file(layer: str) -> None:
    spec = importlib.util.find_spec(f"tests.layers.{ELSEWHERE[layer]}")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        assert f"layers.{layer}" in file.read()


def test_every_layer_class_of_the_package_is_public() -> None:
    found, todo = set(), [layers.LayerBase]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("gpulayers.layers") and "_" not in (
                cls.__name__[0],
                cls.__module__.rpartition(".")[2][0],
            ):
                found.add(cls.__name__)
    assert found <= set(layers.__all__)


def test_every_activation_is_used() -> None:
    used = set()
    for case in CASES:
        act = case.make().act_fn
        used |= {type(act).__name__} if act is not None else set()
    public = {name for name in activations.__all__ if name != "ActivationBase"}
    assert public - used == set()
    assert len(ACT) == len(public) + 1  # GELU twice


def test_ids_are_unique() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)


def test_only_dropout_is_not_compared_with_pytorch() -> None:
    without = {case.layer for case in CASES} - {case.layer for case in CASES if case.torch}
    assert without == {"Dropout"}  # its random numbers are our own


def test_small_cases_exist_for_every_layer() -> None:
    assert {case.layer for case in CASES if case.small} == {case.layer for case in CASES}
