"""What recurrent layers show of every step: a list that is cut out of an array when looked at."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator, MutableSequence
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.layers._steps import Steps
from gpulayers.ops import use_engine
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.sequences import DA, N_OUT, N_T, N, X, as_tuple, kinds, make
from tests.support.compare import assert_close, assert_same_bits, host

ARRAY = np.arange(24.0).reshape(4, 3, 2)
INDICES = (0, 3, -1, -4, np.int64(2), True)
SLICES = (slice(None), slice(1, 3), slice(None, None, -2), slice(7, 9))
CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda steps: steps.append("new"),
    lambda steps: steps.insert(1, "new"),
    lambda steps: steps.extend(["new", "newer"]),
    lambda steps: steps.__setitem__(-1, "new"),
    lambda steps: steps.__setitem__(slice(0, 2), ["new"]),
    lambda steps: steps.__delitem__(0),
    lambda steps: steps.__delitem__(slice(1, None)),
    lambda steps: steps.pop(),
    lambda steps: steps.reverse(),
    lambda steps: steps.clear(),
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with harness.default_dtype("float64"):
        yield


class Counted:
    """An array that counts the views cut out of it."""

    def __init__(self) -> None:
        self.cut = 0

    def __len__(self) -> int:
        return len(ARRAY)

    def __getitem__(self, index: int) -> Any:
        self.cut += 1
        return ARRAY[index]


def assert_same_items(got: Any, wanted: Any) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a == b if isinstance(b, str) else np.array_equal(a, b)


def test_only_what_is_looked_at_is_cut() -> None:
    array: Any = Counted()
    steps = Steps(array)
    assert len(steps) == 4 and bool(steps) and array.cut == 0
    assert np.array_equal(steps[-1], ARRAY[3]) and array.cut == 1
    steps.append(None)
    assert array.cut == 5
    assert steps[4] is None and len(steps) == 5 and array.cut == 5


@pytest.mark.parametrize("changed", [False, True])
def test_it_is_read_like_a_list(changed: bool) -> None:
    steps, plain = Steps(ARRAY), list(ARRAY)
    if changed:
        steps.append(ARRAY[0])
        plain.append(ARRAY[0])
    for index in INDICES:
        assert_same_bits(steps[index], plain[index])
    for part in SLICES:
        assert_same_items(steps[part], plain[part])
        assert type(steps[part]) is list
    assert_same_items(list(steps), plain)
    assert_same_items(list(reversed(steps)), plain[::-1])
    assert_same_items(steps.copy(), plain)
    assert_same_items(operator.add(steps, ["x"]), [*plain, "x"])
    assert_same_items(operator.add(["x"], steps), ["x", *plain])
    assert_same_bits(np.stack(steps), np.stack(plain))
    assert_same_bits(np.array(steps), np.array(plain))
    assert repr(steps) == repr(plain)
    for wrong in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError, match="out of range"):
            steps[wrong]
    for nothing in ("A", 1.5, None, (0, 1)):
        with pytest.raises(TypeError):
            steps[nothing]


def test_a_view_is_of_the_array() -> None:
    array = ARRAY.copy()
    Steps(array)[2][...] = 70
    assert (array[2] == 70).all() and (array[1] != 70).all()


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_changed_like_a_list(change: Callable[[Any], Any]) -> None:
    array, plain = ARRAY.copy(), list(ARRAY)
    steps = Steps(array)
    change(steps)
    change(plain)
    assert_same_items(steps, plain)
    assert np.array_equal(array, ARRAY)  # items change places, not numbers


def pickled(steps: Any) -> Any:
    return pickle.loads(pickle.dumps(steps))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies(again: Callable[[Any], Any]) -> None:
    steps = Steps(ARRAY.copy())
    other = again(steps)
    other.append(None)
    assert len(steps) == 4 and len(other) == 5
    assert_same_items(steps, list(ARRAY))
    if again is not copy.copy:
        other[0][...] = 70
        assert_same_items(steps, list(ARRAY))


@kinds
def test_layers_show_their_states_so(kind: Any, backend: Backend) -> None:
    layer = make(kind, backend)
    A = host(layer.forward(backend.asarray(X)))
    shown = layer.derived_variables["A"]
    assert isinstance(shown, MutableSequence) and len(shown) == N_T + 1
    for t in range(N_T):
        assert_same_bits(shown[t + 1], A[:, :, t])
        assert isinstance(shown[t], backend.xp.ndarray)


@kinds
def test_the_cell_goes_on_where_the_layer_ended(kind: Any, backend: Backend) -> None:
    layer, whole = make(kind, backend), make(kind, backend)
    A = host(whole.forward(backend.asarray(X)))
    layer.forward(backend.asarray(X[:, :, :-1].copy()))
    Y = as_tuple(layer.cell.forward(backend.asarray(X[:, :, -1].copy())))[0]
    assert_close(Y, A[:, :, -1])
    shown = layer.derived_variables["A"]
    assert len(shown) == N_T + 1
    assert_same_bits(shown[-1], host(Y))


@kinds
def test_they_move_with_the_layer(kind: Any, backend: Backend) -> None:
    layer = make(kind, backend)
    A = host(layer.forward(backend.asarray(X)))
    layer.to("numpy")
    for name, values in layer.derived_variables.items():
        if name not in ("n_timesteps", "current_step") and values is not None:
            assert all(type(value) is np.ndarray for value in values), name
    assert_same_bits(layer.derived_variables["A"][-1], A[:, :, -1])
    assert layer.derived_variables["A"][0].shape == (N, N_OUT)


def test_an_unseen_layer_shows_nothing() -> None:
    assert layers.GRU(2).derived_variables["A"] == []


@kinds
@pytest.mark.parametrize("engine", ["auto", "numpy", "reference"])
def test_a_pass_ahead_on_the_cpu_goes_back_on_the_gpu(
    kind: Any, engine: str, emulated: Backend
) -> None:
    with use_engine(engine):
        there = make(kind, Backend("numpy", np, engine))
        there.forward(X)
    layer = copy.deepcopy(there)
    dX = there.backward(DA)
    layer.to("cupy")
    assert_close(layer.backward(emulated.asarray(DA)), dX)
    harness.assert_grads(layer, there.gradients)
