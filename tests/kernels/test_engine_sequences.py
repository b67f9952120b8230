"""Whole sequences by one kernel each way: against the reference, and when they go step by step."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.cuda.table_group import GROUP_KINDS, Group, Task, group_of
from gpulayers.cuda.table_sequence import KINDS
from gpulayers.errors import BackendError
from gpulayers.ops import sequence, use_engine
from gpulayers.ops.sequence import Weights
from tests.conftest import Backend
from tests.support import fake_cupy
from tests.support.compare import assert_close, assert_same_bits, host

TANH, SIGMOID = activations.Tanh(), activations.Sigmoid()
ACTS: dict[str, tuple[Any, ...]] = {"rnn": (TANH,), "lstm": (TANH, SIGMOID), "gru": (TANH, SIGMOID)}
every_kind = pytest.mark.parametrize("kind", KINDS)
#: bytes that a block may have, by architecture: 7.5, 8.0, 8.6 to 8.9 and 12.0, 9.0 and 10.0
SHARED = (64 << 10, 163 << 10, 99 << 10, 227 << 10)


class Call:
    """Both ways through sequences of shape (n_t, n_ex, n_in), with everything that may be given."""

    def __init__(self, kind: str, size: tuple[int, ...], h: int, dtype: str, **how: Any) -> None:
        self.kind, self.size, self.h, self.dtype, self.how = kind, size, h, dtype, how

    def run(self, put: Any) -> dict[str, Any]:
        rng, (n_t, n, n_in) = np.random.default_rng(0), self.size
        gates, h = KINDS[self.kind].gates, self.h

        def draw(*shape: int, scale: float = 1.0) -> Any:
            return put((rng.standard_normal(shape) * scale).astype(self.dtype))

        biases = {"rnn": (h, h), "lstm": (4 * h,), "gru": (4 * h,)}[self.kind]
        weights = Weights(
            draw(h, gates * h, scale=(h + n_in) ** -0.5),
            draw(n_in, gates * h, scale=(h + n_in) ** -0.5),
            tuple(draw(size) for size in biases),
        )
        states = 2 if self.kind == "lstm" else 1
        X, dA = draw(n_t, n, n_in), draw(n_t, n, h)
        first, last = (tuple(draw(n, h) for _ in range(states)) for _ in range(2))
        mask = rng.random((n_t, n, 1)) < 0.8
        dA = dA * put(mask.astype(self.dtype))
        forward, backward = (
            getattr(sequence, f"{self.kind}_{way}") for way in ("forward", "backward")
        )
        acts = self.how.get("acts", ACTS[self.kind])
        trace = forward(X, first, put(mask), weights, *acts)
        grads = backward(dA, last, trace, weights, *acts, self.how.get("truncate"))
        found = {"dX": grads.X, "dW_a": grads.weights.recurrent, "dW_x": grads.weights.input}
        for name, arrays in (
            *(("state", trace.states), ("first", grads.states), ("db", grads.weights.biases)),
        ):
            found |= {f"{name} {k}": array for k, array in enumerate(arrays)}
        return found

    def check(self, device: Backend, error: float = 0.0) -> dict[str, Any]:
        """Against the reference; `error`: as large as the results may be, in the Frobenius norm,
        where they are not those of the dtype."""
        got = self.run(device.asarray)
        wide = "float32" if self.dtype == "float16" else self.dtype
        with use_engine("reference"):
            want = Call(self.kind, self.size, self.h, wide, **self.how).run(np.asarray)
        for name, array in want.items():
            assert str(got[name].dtype) == self.dtype
            if error:
                assert np.linalg.norm(host(got[name]) - array) < error * np.linalg.norm(array), name
            elif self.dtype == "float16":  # the states are rounded in each step
                np.testing.assert_allclose(host(got[name]), array, rtol=0.1, atol=0.05)
            else:
                assert_close(got[name], array, factor=10)
        return got


def kernels_in(events: Any) -> list[str]:
    return sorted(k.split(":")[1].split(" ")[0] for k in events if "_sequence_" in k)


#: sizes that have weights in registers, for one example or two, and those that have not
SIZES = [
    ((3, 2, 4), 6, "float32", ", 1, "),
    ((2, 131, 3), 5, "float32", ", 2, "),
    ((2, 1, 2), 130, "float32", "float, float>"),
    ((4, 5, 3), 7, "float64", "double, double>"),
    ((3, 3, 3), 5, "float16", "__half, float, InFragments<2>>"),
    ((2, 515, 2), 3, "float16", "__half, float, InFragments<8>>"),
]


@every_kind
@pytest.mark.parametrize(("size", "h", "dtype", "instance"), SIZES, ids=str)
def test_against_the_reference(
    device: Backend, kind: str, size: tuple[int, ...], h: int, dtype: str, instance: str
) -> None:
    with device.count() as events:
        Call(kind, size, h, dtype, truncate=2).check(device)
    if device.observed:
        found = [k for k in events if "_sequence_" in k]
        assert len(found) == 2
        assert all(instance in k for k in found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_without_tensor_cores(
    emulated: Backend, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old device goes as it did, and says so; others by tensor cores up to 128 units."""
    goes = importlib.import_module("gpulayers.cuda.sequence").goes
    half = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)

    def said(h: int) -> str:
        return goes("gru", 7, h, half, ACTS["gru"])

    assert (
        said(1)
        == said(128)
        == ("ahead in one launch, by tensor cores, back in one launch, by tensor cores")
    )
    assert "in one launch, by" not in said(129)
    monkeypatch.setattr(emulated.xp.cuda.Device, "compute_capability", "75")
    assert said(128) == "ahead in one launch, back in one launch"


@every_kind
def test_tensor_cores_give_the_same_bits(
    emulated: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each run, and however many examples a block takes."""
    call, found = Call(kind, (3, 9, 2), 19, "float16"), []
    table_sequence = importlib.import_module("gpulayers.cuda.table_sequence")
    for examples, seed in ((512, 0), (512, 1), (8, 0)):
        monkeypatch.setattr(table_sequence, "_PAIRS", examples)
        monkeypatch.setattr(fake_cupy.state, "seed", seed)
        with emulated.count() as events:
            found.append(call.run(emulated.asarray))
        assert sum(f"InFragments<{2 if examples > 8 else 8}>" in k for k in events) == 2
    for name, array in found[0].items():
        assert_same_bits(found[1][name], array)
        assert_same_bits(found[2][name], array)


def with_shared(monkeypatch: pytest.MonkeyPatch, shared: int, multiprocessors: int = 132) -> None:
    attributes = {
        "MaxSharedMemoryPerBlockOptin": shared,
        "MultiProcessorCount": multiprocessors,
    }
    monkeypatch.setattr(fake_cupy.cupy.cuda.Device, "attributes", attributes)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_same_bits_wherever_the_weights_lie(
    emulated: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shared memory, or read anew in each step: the way of other GPUs."""
    call, found = Call(kind, (3, 1, 2), 36, "float64"), []
    for shared in (227 << 10, 24 << 10):
        with_shared(monkeypatch, shared)
        found.append(call.run(emulated.asarray))
    for name, array in found[0].items():
        assert_same_bits(found[1][name], array)


@every_kind
def test_what_goes_step_by_step(
    emulated: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many weights; an activation without a kernel; a trace that went step by step."""
    module = importlib.import_module("gpulayers.cuda.sequence")
    call = Call(kind, (3, 2, 4), 6, "float32")
    monkeypatch.setattr(module, "_MOST_STREAMED", -1)
    with emulated.count() as events:
        call.check(emulated)
    assert not any("_sequence_" in k for k in events)
    monkeypatch.undo()
    with_shared(monkeypatch, 100)  # not even the vectors fit
    with emulated.count() as events:
        call.check(emulated)
    assert not any("_sequence_" in k for k in events)
    monkeypatch.undo()
    if kind != "rnn":
        other = Call(kind, (3, 2, 4), 6, "float32", acts=(SIGMOID, TANH))
        with emulated.count() as events:
            other.check(emulated)
        assert not any("_sequence_" in k for k in events)


@every_kind
def test_a_way_of_every_device(kind: str) -> None:
    """Blocks have room for what they take; more room never means more to read in each step."""
    way_of = pytest.importorskip("gpulayers.cuda.table_sequence").way_of
    for back in (False, True):
        for h in (1, 31, 32, 33, 64, 100, 128, 129, 250, 512):
            for dtype, tensor in (
                ("float32", True),
                ("float64", True),
                ("bfloat16", False),
                ("bfloat16", True),
            ):
                streamed = []
                for shared in sorted(SHARED):
                    way = way_of(kind, back, 200, h, dtype, shared, tensor)
                    if way is None:
                        continue
                    assert way.shared <= shared
                    assert way.threads % 32 == 0
                    assert 32 <= way.threads <= 512
                    held = dtype == "float32" and way.kernel.endswith(("_one", "_two"))
                    assert way.tensor == (dtype == "bfloat16" and tensor and h <= 128)
                    if way.tensor:
                        assert way.threads == -(-h // 16) * 32
                        assert way.blocks == 100
                        assert way.shared < 48 << 10
                        continue
                    assert way.threads == 512 or way.threads >= (2 if held else 4) * h
                    streamed.append(way.streamed)
                assert streamed == sorted(streamed, reverse=True)
    assert way_of(kind, True, 32, 64, "float32", 227 << 10).streamed == 0
    assert way_of("lstm", True, 32, 128, "float32", 227 << 10).streamed == 0
    assert way_of("lstm", True, 32, 128, "float32", 99 << 10).kernel == "lstm_sequence_backward_one"
    assert way_of("lstm", True, 200, 128, "float32", 99 << 10).blocks == 200
    assert way_of("lstm", True, 200, 128, "float32", 227 << 10).blocks == 100
    assert way_of("lstm", False, 32, 128, "float32", 64 << 10).streamed > 0
    assert way_of(kind, False, 128, 64, "float32", 99 << 10).blocks == 128
    assert way_of(kind, False, 129, 64, "float32", 99 << 10).blocks == 65
    assert way_of(kind, back, 512, 64, "float16", 99 << 10, True).blocks == 256
    assert way_of(kind, back, 513, 64, "float16", 99 << 10, True).blocks == 65


# ------------------------------------------------------- weights that many blocks keep together


def in_groups(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    """Let a few blocks share what one would have room for."""
    module = importlib.import_module("gpulayers.cuda.sequence")
    monkeypatch.setattr(module, "_MOST_BESIDE_GROUPS", -1)
    with_shared(monkeypatch, 64 << 10, multiprocessors)


@pytest.mark.parametrize(
    ("kind", "dtype", "precision", "by"),
    [
        ("rnn", "float32", "fp32", "ByLanes"),
        ("lstm", "float32", "fp32", "ByLanes"),
        ("gru", "float32", "fp32", "ByLanes"),
        ("lstm", "float16", "fp32", "ByCores"),
        ("lstm", "float32", "tf32", "ByCores"),
    ],
)
def test_groups_against_the_reference(
    emulated: Backend,
    kind: str,
    dtype: str,
    precision: str,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpulayers.cuda.precision import use_precision

    in_groups(monkeypatch, 5)
    with use_precision(precision), emulated.count() as events:
        call = Call(kind, (3, 11, 4), 10, dtype, truncate=2)
        # factors of 10 bits of mantissa, each rounded by 2^-11 at most
        call.check(emulated, 2**-10 if precision == "tf32" else 0.0)
    found = [k.split(":")[1] for k in events if "_group_" in k or "_sequence_" in k]
    assert sorted(k.split("<")[0] for k in found) == [
        f"{kind}_group_backward",
        f"{kind}_group_forward",
    ]
    assert all(f", {by}>" in k for k in found)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_groups_give_the_same_bits(
    emulated: Backend, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each run; ahead also where more blocks share the work."""
    from gpulayers.cuda.precision import use_precision

    call, found = Call("lstm", (3, 9, 3), 8, "float32"), []
    for multiprocessors, seed in ((2, 0), (2, 1), (5, 0)):
        in_groups(monkeypatch, multiprocessors)
        monkeypatch.setattr(fake_cupy.state, "seed", seed)
        with use_precision(precision):
            found.append(call.run(emulated.asarray))
    for name, array in found[0].items():
        assert_same_bits(found[1][name], array)
    for name in ("state 0", "state 1"):
        assert_same_bits(found[2][name], found[0][name])


def test_which_groups_take_tensor_cores(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half types where there are any; float32 only as TF32, which an old device does not have."""
    from gpulayers.cuda.precision import use_precision

    goes = importlib.import_module("gpulayers.cuda.sequence").goes
    with_shared(monkeypatch, 227 << 10)

    def cores(dtype: str) -> int:
        said = goes("lstm", 32, 512, np.dtype(dtype), ACTS["lstm"])
        assert said.count(" groups of ") == 2, said
        return said.count("blocks, by tensor cores")

    assert (cores("float32"), cores("float16")) == (0, 2)
    with use_precision("tf32"):
        assert cores("float32") == 2
    monkeypatch.setattr(emulated.xp.cuda.Device, "compute_capability", "75")
    assert (cores("float32"), cores("float16")) == (0, 0)
    with use_precision("tf32"), pytest.raises(BackendError, match=r"needs a GPU of .* 8\.0"):
        cores("float32")


def test_no_group_but_one_block(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that cannot hold it in groups goes as it would without them."""
    in_groups(monkeypatch, 0)
    with emulated.count() as events:
        Call("gru", (2, 3, 4), 6, "float32").check(emulated)
    assert len([k for k in events if "gru_sequence_" in k]) == 2


#: multiprocessors and bytes of a block: 8.0, 8.6, 8.9, 9.0, 10.0, 12.0
DEVICES = ((108, 163), (82, 99), (128, 99), (132, 227), (148, 227), (170, 99))


@pytest.mark.parametrize("kind", GROUP_KINDS)
def test_groups_of_every_device(kind: str) -> None:
    """All blocks run at once and have room for what they take; all examples have a place."""
    gates = GROUP_KINDS[kind].gates
    assert gates == KINDS[kind].gates
    for multiprocessors, shared in DEVICES:
        for back in (False, True):
            for batch, h in ((1, 200), (32, 512), (256, 512), (33, 1000)):
                device = shared << 10, multiprocessors
                for dtype, tensor in itertools.product(("float32", "bfloat16"), (False, True)):
                    group = group_of(Task(kind, back, batch, h, dtype, tensor), *device)
                    if h == 1000 and isinstance(group, str):
                        assert "no room for the recurrent weights of 1000 units" in group
                        continue
                    assert isinstance(group, Group), group
                    assert group.tensor == group.kernel.endswith("_tensor") == tensor
                    members = -(-h // group.units)
                    assert group.blocks == group.groups * members <= multiprocessors
                    assert group.rows * (group.groups - 1) < batch <= group.rows * group.groups
                    assert group.shared <= shared << 10
                    assert group.chunk * group.units <= group.threads
                    assert group.chunk % 8 == 0
                    weights = gates * group.units * h * (4 if dtype == "float32" else 2)
                    assert group.shared > weights
    assert group_of(Task("lstm", False, 32, 512, "float32"), 227 << 10, 132)[4:8] == (4, 16, 8, 8)
    assert group_of(Task("lstm", False, 256, 512, "float32"), 227 << 10, 132)[4:7] == (4, 16, 64)
    assert "float64" in group_of(Task("lstm", True, 32, 512, "float64"), 227 << 10, 132)
    assert "leave more than 64 MB" in group_of(
        Task("lstm", True, 2048, 512, "float32"), 227 << 10, 132
    )
    assert "40 multiprocessors" in group_of(Task("lstm", False, 32, 512, "float32"), 64 << 10, 40)
