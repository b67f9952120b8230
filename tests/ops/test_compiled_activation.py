"""The C activation kernels against the array formulas, on rows that are awkward for vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.ops import activation, use_engine
from gpulayers.threads import use_threads
from tests.ops.test_activation import BUILT_IN
from tests.support.compare import assert_close, assert_same_bits

pytestmark = pytest.mark.compiled
names = pytest.mark.parametrize("name", BUILT_IN)
SHAPES = [(3, 1), (5, 2), (9, 3), (70, 6), (400, 7), (31, 17), (3, 1000), (2, 1030), (1, 4099)]


@names
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bias_meets_its_channel(name: str, dtype: str) -> None:
    act = BUILT_IN[name]()
    for shape in [*SHAPES, (0, 5), (4, 3, 5)]:
        rng = np.random.default_rng(shape[0])
        product, b = rng.normal(size=shape).astype(dtype), rng.normal(size=shape[-1]).astype(dtype)
        dY = rng.normal(size=shape).astype(dtype)
        with use_engine("reference"):
            gold_Z = product.copy()
            gold = activation.bias_activation(gold_Z, b, act)
            gold_dZ = activation.activation_backward(dY, gold_Z, act)
        for threads in (1, 2, 5):
            with use_engine("compiled"), use_threads(threads):
                Z = product.copy()
                Y = activation.bias_activation(Z, b, act)
                dZ = activation.activation_backward(dY, Z, act)
            assert_same_bits(Z, gold_Z)
            assert_close(Y, gold)
            assert_close(dZ, gold_dZ)


@names
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_none(name: str, dtype: str) -> None:
    """NaN, infinities and zeros of both signs: the same as the array formulas say."""
    act = BUILT_IN[name]()
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype)
    Z = np.repeat(special, 7).reshape(7, 7)
    dY = np.tile(special, 7).reshape(7, 7)
    with np.errstate(all="ignore"):
        gold = act.fn(Z)
        gold_dZ = dY * act.grad(Z)
    with use_engine("compiled"):
        Y = activation.bias_activation(Z.copy(), None, act)
        dZ = activation.activation_backward(dY, Z, act)
    np.testing.assert_allclose(Y, gold, rtol=1e-6)
    np.testing.assert_allclose(dZ, gold_dZ, rtol=1e-6)


def test_the_order_of_the_names_is_that_of_the_enumeration_in_c() -> None:
    from gpulayers.ops.compiled import activation as compiled
    from gpulayers.ops.compiled.build import SOURCES

    text = (SOURCES / "activation.c").read_text()
    listed = text.split("enum {")[1].split("}")[0].replace(",", " ").lower().split()
    assert tuple(listed) == compiled._NAMES


def test_many_threads_and_large_arrays_give_the_same_bits() -> None:
    Z = np.random.default_rng(3).normal(size=(700, 333)).astype("float32")
    b = np.random.default_rng(4).normal(size=333).astype("float32")
    act, results = BUILT_IN["gelu_tanh"](), []
    for threads in (1, 2, 3, 5):
        with use_engine("compiled"), use_threads(threads):
            z = Z.copy()
            Y = activation.bias_activation(z, b, act)
            results.append((z, Y, activation.activation_backward(Y, z, act)))
    for other in results[1:]:
        for a, c in zip(results[0], other, strict=True):
            assert_same_bits(c, a)


def test_arrays_of_any_kind(tmp_path) -> None:
    act = BUILT_IN["tanh"]()
    Z = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")
    with use_engine("compiled"):
        dZ = activation.activation_backward(Z, Z, act)
        frozen = Z.copy()
        frozen.flags.writeable = False
        Z.tofile(tmp_path / "z")
        mapped = np.memmap(tmp_path / "z", dtype="float32", mode="r", shape=Z.shape)
        swapped = Z.astype(">f4")
        for same in (frozen, mapped, swapped):
            assert_close(activation.activation_backward(same, same, act), dZ, dtype="float32")
        with pytest.raises(ValueError, match="read-only"):  # Z is changed in place
            activation.bias_activation(frozen, Z[0], act)
        assert_close(activation.bias_activation(swapped, None, act), np.tanh(Z), dtype="float32")
