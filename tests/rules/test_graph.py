"""A planned step on the GPU is one CUDA graph of few launches and few bytes.

Bytes: of the arrays that kernels get, each counted once a launch; what a kernel reads twice for
want of cache is not seen. The least: every stored activation (after its pooling) written once and
read by the next layer and by the backward pass, gradients of activations written and read, a byte
for each pooled pixel's winner, parameters read twice and updated with one state.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import backend as library
from gpulayers import models, random
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Sequential
from gpulayers.models.resident import Resident
from tests.conftest import Backend
from tests.rules.step import BUDGET
from tests.support import fake_cupy

SGD = "SGD(lr=0.1, momentum=0.9)"
MOST = 1.3  # times the least bytes
#: on tensor cores, where gradients before a pooling are laid out: bytes in place of instructions;
#: in half types parts of gradients are float32 nevertheless
MOST_ON_CORES = {"tf32": 1.4, "bf16": 1.45}


def vgg() -> Sequential:
    def conv(filters: int) -> Conv2D:
        return Conv2D(filters, (3, 3), pad=1, act_fn="ReLU")

    def pool() -> Pool2D:
        return Pool2D((2, 2), stride=2)

    layers = [conv(32), conv(32), pool(), conv(64), conv(64), pool(), Flatten()]
    dense = [FullyConnected(512, act_fn="ReLU"), FullyConnected(10)]
    return Sequential([*layers, *dense], optimizer=SGD)


_LENET = [(14 * 14 * 6, True), (5 * 5 * 16, True), (120, False), (84, False), (10, False)]
_VGG = [
    *((32 * 32 * 32, False), (16 * 16 * 32, True), (16 * 16 * 64, False)),
    *((8 * 8 * 64, True), (512, False), (10, False)),
]
#: network, input, numbers of each stored activation of an example, whether it was pooled
NETWORKS: dict[str, tuple[Any, tuple[int, ...], list[tuple[int, bool]]]] = {
    **{
        f"lenet b{n}": (lambda: models.lenet(optimizer=SGD), (n, 28, 28, 1), _LENET)
        for n in (64, 128, 1024)
    },
    **{f"vgg b{n}": (vgg, (n, 32, 32, 3), _VGG) for n in (128, 512)},
}


def least_bytes(name: str, parameters: int, item: int = 4) -> int:
    """`item`: bytes of an activation; of a half type the update has float32 copies of the
    parameters and their gradients."""
    _, shape, activations = NETWORKS[name]
    n = shape[0]
    total = 2 * item * int(np.prod(shape))  # forward, and again for the first weight's gradient
    for numbers, pooled in activations:
        total += n * numbers * (5 * item + 2 * pooled)
    total -= 3 * item * n * activations[-1][0]  # logits are read once, where the loss is
    return total + parameters * (2 * item + 4 * 4 + (item if item < 4 else 0))


@pytest.fixture
def first_blocks_only(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches are counted, not computed: that would take minutes; and no kernel is compiled for
    its shape, but those that there are for shapes alone (`specialised`)."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)
    fake_cupy.state.launch_options = {"only_blocks": 1}
    yield
    fake_cupy.state.launch_options = {}


@pytest.fixture
def specialised(first_blocks_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", True)


#: networks with normalisation, of the zoo: their launches are those of the budget, no fewer
NORMED: dict[str, Any] = {
    "resnet9 b16": lambda: models.resnet9(optimizer=SGD),
    "vgg-small b16": lambda: models.vgg_small(optimizer=SGD),
}


def planned(name: str, backend: Backend, precision: str | None = None) -> tuple[Any, Any, Any]:
    shape = NETWORKS[name][1] if name in NETWORKS else (16, 32, 32, 3)
    network = NETWORKS[name][0]() if name in NETWORKS else NORMED[name]()
    X = backend.asarray(np.zeros(shape, np.float32))
    labels = backend.asarray(np.zeros(shape[0], np.int64))
    plan = network.compile(shape, precision=precision)
    plan.step(X, labels)  # compiles the kernels
    return plan, X, labels


@pytest.mark.parametrize("name", NETWORKS)
def test_launches_and_bytes(
    name: str, emulated: Backend, first_blocks_only: None, request: pytest.FixtureRequest
) -> None:
    if name.startswith("lenet"):
        request.getfixturevalue("specialised")
    plan, X, labels = planned(name, emulated)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    nodes = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    budget = BUDGET["graph"][name]
    assert {"nodes": nodes, "kernel_bytes": captured["kernel_bytes"]} == budget
    parameters = sum(p.size for p in plan.network.parameters.values())
    assert captured["kernel_bytes"] <= MOST * least_bytes(name, parameters)
    assert nodes <= (16 if name.startswith("lenet") else 20)
    (program,) = plan._programs.values()
    graph = program.graphs[True]
    assert graph._recording.launches == nodes, "nothing but our own kernels is in the graph"


@pytest.mark.parametrize("name", NORMED)
def test_launches_with_normalisation(name: str, emulated: Backend, first_blocks_only: None) -> None:
    """A launch each way for a convolution, and for the normalisation behind it with its ReLU,
    pooling and sum. The first makes the sums of the second; but for the normalisation whose output
    goes to a dense layer or to another pooling."""
    plan, X, labels = planned(name, emulated)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    kernels = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    nodes = plan._last.graphs[True]._recording.launches
    found = {"nodes": nodes, "kernels": kernels, "kernel_bytes": captured["kernel_bytes"]}
    assert found == BUDGET["graph"][name]
    layers = 8 if "resnet9" in name else 6
    for kernel in ("norm_forward", "norm_input_grad"):
        assert captured[f"kernel:{kernel}<float, float, int>"] == layers
    for kernel, launches in (("conv2d_moments", layers), ("conv2d_backward", layers)):
        assert launches == sum(n for event, n in captured.items() if f":{kernel}<" in event)
    assert captured["kernel:norm_gradient_sums<float, float, int>"] == 1
    assert "column_moments" not in str(captured)


def test_launches_in_half_precision(emulated: Backend, specialised: None) -> None:
    """As in float32, and two that look at the gradients."""
    before = library.default_dtype()
    library.set_default_dtype("float16")
    try:
        plan, X, labels = planned("lenet b64", emulated)
    finally:
        library.set_default_dtype(before)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    kernels = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    nodes = plan._last.graphs[True]._recording.launches
    assert {"nodes": nodes, "kernels": kernels} == BUDGET["graph"]["lenet b64 fp16"]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_launches_on_tensor_cores(
    precision: str, emulated: Backend, first_blocks_only: None
) -> None:
    """Three more than in float32: channels of zeros for the image, and the gradients before two
    poolings laid out."""
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    plan, X, labels = planned("vgg b128", emulated, precision)
    with fake_cupy.count() as captured:
        plan.step(X, labels)
    nodes = sum(n for event, n in captured.items() if event.startswith("kernel:"))
    budget = BUDGET["graph"][f"vgg b128 {precision}"]
    assert {"nodes": nodes, "kernel_bytes": captured["kernel_bytes"]} == budget
    assert nodes == BUDGET["graph"]["vgg b128"]["nodes"] + 3 <= 20
    parameters = sum(p.size for p in plan.network.parameters.values())
    least = least_bytes("vgg b128", parameters, plan.network.dtype.itemsize)
    assert captured["kernel_bytes"] <= MOST_ON_CORES[precision] * least


def test_a_step_is_a_graph_and_the_batch_that_it_takes(
    emulated: Backend, first_blocks_only: None
) -> None:
    plan, X, labels = planned("lenet b64", emulated)
    plan.step(X, labels)
    with (
        fake_cupy.count() as events,
        fake_cupy.forbid("sync", "h2d", "d2h", "iterate"),
    ):
        plan.step(X, labels)
    assert events["graph_launch"] == 1
    assert events["launch"] == 3, "images and labels to their places, the loss out of its own"
    assert events["alloc_bytes"] == 4, "the loss"


def test_gathering_the_batch_is_one_launch_more(emulated: Backend, first_blocks_only: None) -> None:
    plan, _, _ = planned("lenet b64", emulated)
    images = np.zeros((128, 28, 28, 1), np.uint8)
    resident = Resident(images, np.zeros(128, np.int64))
    plan.run(resident, 2)
    program = plan._program((64, 28, 28, 1), resident)
    launches = program.graphs[True]._recording.launches
    assert launches == BUDGET["graph"]["lenet b64"]["nodes"] + 1 <= 16


def test_memory_does_not_grow(emulated: Backend, first_blocks_only: None) -> None:
    plan, X, labels = planned("lenet b64", emulated)
    plan.step(X, labels)
    gc.collect()
    pool = fake_cupy.cupy.get_default_memory_pool()
    used = []
    for _ in range(3):
        plan.step(X, labels)
        used.append(pool.used_bytes())
    assert used[0] == used[1] == used[2]


def test_the_arena_is_smaller_than_what_is_asked_for(
    emulated: Backend, first_blocks_only: None
) -> None:
    """What a capture lets go of is used again within it, and nearly all of it by the next one."""
    random.seed(0)
    plan, X, labels = planned("vgg b128", emulated)
    with fake_cupy.count() as events:
        plan.step(X, labels)
    first = plan.arena_bytes
    assert first < events["alloc_bytes"]
    for _ in range(2):
        plan.gradients(X, labels)
    assert len(plan._last.graphs) == 2
    assert plan.arena_bytes <= first + plan.outputs.nbytes + 512
