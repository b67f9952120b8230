"""The planned step on a GPU computes what the layers compute, whatever comes between."""

from __future__ import annotations

import contextlib
import copy
import importlib
from typing import Any

import numpy as np
import pytest

from gpulayers.errors import BackendError, ShapeError
from gpulayers.layers import (
    Conv2D,
    Flatten,
    FullyConnected,
    GlobalAvgPool2D,
    LayerNorm1D,
    Pool2D,
)
from gpulayers.models import Activation, Residual, graph_nodes, graph_plan
from gpulayers.models.resident import Resident
from gpulayers.ops import use_engine
from gpulayers.training import Trainer
from gpulayers.training.data import Dataset, Split
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SGD, SHAPE, Run, pair, same
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated


@pytest.fixture(autouse=True)
def not_specialised(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compile of a kernel for one shape would take a second here; one test below does it."""
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)


def small() -> list[Any]:
    """Convolution with pooling, that leaves a row out, one without; dense with ReLU and without."""
    return [
        Conv2D(3, (3, 3), pad=1, act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Conv2D(4, (2, 3), act_fn="ReLU"),
        Flatten(),
        FullyConnected(7, act_fn="ReLU"),
        FullyConnected(CLASSES),
    ]


def mixed() -> list[Any]:
    """What has no kernel of its own in the plan stands between what has."""
    return [
        Conv2D(4, (3, 3), pad=1),
        Activation("ReLU"),
        Residual([Conv2D(4, (3, 3), pad=1, act_fn="ReLU"), Conv2D(4, (3, 3), pad=1)]),
        Conv2D(4, (3, 3), stride=2, act_fn="Tanh"),
        Pool2D((2, 2), stride=1),
        GlobalAvgPool2D(),
        LayerNorm1D(),
        FullyConnected(CLASSES),
    ]


@pytest.mark.parametrize("layers", [small, mixed])
@pytest.mark.parametrize("optimizer", [SGD, "AdamW(lr=0.003, weight_decay=0.1)"])
def test_losses_are_those_of_the_layers(emulated: Backend, layers: Any, optimizer: str) -> None:
    plain, planned = pair(emulated, layers, optimizer)
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in (BATCH, BATCH, BATCH, 2, BATCH, 2, 2)]
    want = [plain.step(n) for n in (BATCH, BATCH, BATCH, 2, BATCH, 2, 2)]
    np.testing.assert_allclose(got, want, rtol=2e-5)
    same(planned, plain, 2e-4 if optimizer != SGD else 2e-5)
    assert events["graph_launch"] == 5, "the first batch of each size goes launch by launch"
    assert "captured as one CUDA graph" in planned.plan.describe()


@pytest.mark.parametrize(
    "optimizer",
    [
        "RMSProp(lr=0.003, weight_decay=0.1)",
        "AdaGrad(lr=0.01, clip_norm=0.7, clip_value=0.1)",
        "Adam(lr=0.003)",
        "SGD(lr=0.1, clip_norm=0.5)",
        "SGD(lr=0.1, momentum=0.9, nesterov=True, clip_value=0.05, weight_decay=0.2)",
        "AdamW(lr=0.003, clip_norm=1e-30)",
        "SGD(lr=0.1, clip_norm=1e300, clip_value=1e300)",
    ],
)
def test_other_rules(emulated: Backend, optimizer: str) -> None:
    plain, planned = pair(emulated, small, optimizer)
    with fake_cupy.count() as events:
        got = [planned.step() for _ in range(3)]
    assert got == pytest.approx([plain.step() for _ in range(3)], rel=2e-5)
    same(planned, plain, 2e-4)
    assert events["graph_launch"] == 2
    assert planned.plan._flat.serves, "one launch for all"


def test_one_rule_for_each_layer(emulated: Backend) -> None:
    """Where the rules differ no launch of ours can do it."""
    plain, planned = pair(emulated, small)
    for run in (plain, planned):
        run.network[0].optimizer.set_params({"nesterov": True, "clip_norm": 0.5})
        for _ in range(3):
            run.step()
    same(planned, plain)
    assert not planned.plan._flat.serves


def test_kernels_compiled_for_the_shape(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def layers() -> list[Any]:
        return [Conv2D(17, (3, 3), pad=1, act_fn="ReLU"), *small()[1:2], *small()[3:]]

    plain = Run(emulated, layers, SGD).compile()
    want = [plain.step() for _ in range(3)]
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", True)
    asked: list[str] = []
    compiler = importlib.import_module("gpulayers.cuda.compile")
    get_kernel = compiler.get_kernel

    def noting(name: str, dtype: str, index: str, constants: str) -> Any:
        asked.extend([constants] * name.startswith("conv"))
        return get_kernel(name, dtype, index, constants)

    monkeypatch.setattr(compiler, "get_kernel", noting)
    planned = Run(emulated, layers, SGD).compile()
    assert [planned.step() for _ in range(3)] == want
    same(planned, plain, 0.0)
    assert set(asked) - {""} == {  # "": the first look at the sizes, layer by layer
        "rows=9,cols=8,channels=2,out_rows=9,out_cols=8,kernel_rows=3,kernel_cols=3,stride_rows=1,"
        "stride_cols=1,pad_top=1,pad_left=1,dilation_rows=1,dilation_cols=1,filters=17,pooled=1,"
        "depth=2"
    }


def few_channels() -> list[Any]:
    """Pooled, followed by a ReLU of the next one's input, frozen, without an activation, and at the
    beginning of a residual block, which is not for them."""
    frozen = Conv2D(3, (2, 2), act_fn="ReLU")
    frozen.freeze()
    return [
        *(Conv2D(3, (3, 3), pad=1, act_fn="ReLU"), Pool2D((2, 2), stride=2), frozen),
        *(Conv2D(5, (2, 1), act_fn="ReLU"), Residual([Conv2D(5, (3, 1), pad="same")])),
        *(Conv2D(4, (1, 2)), Flatten(), FullyConnected(CLASSES)),
    ]


def test_small_images_go_by_whole_examples(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", True)
    plain, planned = Run(emulated, few_channels, SGD), Run(emulated, few_channels, SGD).compile()
    with fake_cupy.count() as events:
        got = [planned.step(n) for n in (BATCH, BATCH, 2, BATCH, 2)]
    assert got == pytest.approx([plain.step(n) for n in (BATCH, BATCH, 2, BATCH, 2)], rel=2e-5)
    same(planned, plain)
    launched = {name.partition("<")[0] for name in events if name.startswith("kernel:")}
    assert launched >= {"kernel:example_conv_forward", "kernel:example_conv_backward"}


def test_losses_stay_what_they_were(emulated: Backend) -> None:
    plain, planned = pair(emulated, small)
    losses = [planned.plan.step(planned.X, planned.labels) for _ in range(3)]
    assert [float(loss) for loss in losses] == pytest.approx([plain.step() for _ in range(3)])


def test_schedules_reach_the_graph(emulated: Backend) -> None:
    optimizer = "SGD(lr_scheduler=ExponentialScheduler(initial_lr=0.2, decay=0.3, stage_length=1))"
    plain, planned = pair(emulated, small, optimizer)
    for _ in range(4):
        assert planned.step() == pytest.approx(plain.step(), rel=2e-5)
    same(planned, plain)


def test_halves_of_a_step(emulated: Backend) -> None:
    """As `Trainer` takes them: gradients, a look at them and a change, update."""
    plain, planned = pair(emulated, small, "Adam(lr=0.003)")
    for factor in (1.0, 0.5, 1.0):
        value = float(planned.plan.gradients(planned.X, planned.labels))
        got = planned.plan.gradient_arrays()
        assert planned.plan.gradient_arrays()[0] is not None
        assert value == pytest.approx(
            float(plain.loss.forward(plain.labels, plain.network.forward(plain.X))), rel=2e-5
        )
        plain.network.backward(plain.loss.backward(), input_grad=False)
        for grad, want in zip(got, plain.network.gradients.values(), strict=True):
            np.testing.assert_allclose(grad.get(), want.get(), atol=1e-6, rtol=1e-4)
            grad *= np.float32(factor)
            want *= np.float32(factor)
        plain.network.update()
        planned.plan.update()
        planned.plan.gradients(planned.X, planned.labels)  # counts no step of Adam's
    same(planned, plain, 2e-4)


def test_arrays_put_in_from_outside_are_taken_over(emulated: Backend) -> None:
    plain, planned = pair(emulated, small, "Adam(lr=0.003)")
    for run in (plain, planned):
        for _ in range(3):
            run.step()
        layer = run.network[4]
        layer.parameters["W"] = layer.parameters["W"] * np.float32(0.5)
        entry = layer.optimizer.cache["W"]
        entry["mean"] = entry["mean"] * np.float32(2.0)
        run.step()
    same(planned, plain, 2e-4)
    layer = planned.network[4]
    layer.parameters["W"] = emulated.asarray(np.zeros((2, 2), np.float32))
    with pytest.raises(ShapeError, match=r"'4.W': the plan was made for shape .* compile again"):
        planned.step()


def test_frozen_layers_and_new_hyperparameters(emulated: Backend) -> None:
    plain, planned = pair(emulated, small)
    for run in (plain, planned):
        run.step()
        run.step()
        run.network[0].freeze()
        run.network[4].freeze()
        if run.plan is not None:
            run.step()
        else:  # layers that are frozen must not be asked to update
            run.loss.forward(run.labels, run.network.forward(run.X))
            run.network.backward(run.loss.backward(), input_grad=False)
            run.network.update()
        run.network[0].unfreeze()
        run.network[4].unfreeze()
        for layer in (run.network[i] for i in (0, 2, 4, 5)):
            layer.optimizer.set_params({"momentum": 0.5, "lr": 0.01})
        run.step()
        run.step()
    same(planned, plain)


def test_engines_that_cannot_be_captured(emulated: Backend) -> None:
    plain, planned = pair(emulated, small)
    planned.step()
    planned.step()
    with use_engine("cublas"), fake_cupy.count() as events:
        planned.step()
    assert not events["graph_launch"]
    planned.step()
    for _ in range(4):
        plain.step()
    same(planned, plain)


def test_networks_that_are_not_captured(emulated: Backend) -> None:
    class Own(Flatten):
        def forward(self, X: Any, retain_derived: bool = True) -> Any:
            return super().forward(X, retain_derived)

    def layers() -> list[Any]:
        return [Conv2D(3, (3, 3)), Own(), FullyConnected(CLASSES)]

    plain, planned = pair(emulated, layers)
    with fake_cupy.count() as events:
        got = [planned.step() for _ in range(3)]
    assert got == pytest.approx([plain.step() for _ in range(3)], rel=1e-5)
    assert not events["graph_launch"]
    assert "one by one: Own does not treat each" in planned.plan.describe()


def test_more_than_a_launch_counts(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that a grid does not reach go another way; more numbers than one update takes are
    updated layer by layer."""

    def trained() -> tuple[Run, set[str]]:
        plain, planned = pair(emulated, small)
        with fake_cupy.count() as events:
            for run in (plain, planned):
                for _ in range(3):
                    run.step()
        same(planned, plain)
        return planned, {event for event, n in events.items() if n}

    monkeypatch.setattr(graph_nodes, "REACH", 2)
    planned, events = trained()
    assert "graph_launch" in events
    assert not any("conv2d_backward" in event for event in events)
    monkeypatch.setattr(graph_plan, "INT32_LIMIT", 20)
    planned, events = trained()
    assert "graph_launch" not in events
    assert "one by one: its parameters are" in planned.plan.describe()


def test_while_another_device_is_current(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_cupy.state, "devices", 2)
    plain, planned = pair(emulated, small)
    network, plan, X, labels = planned.network, planned.plan, planned.X, planned.labels
    resident = Resident(X, labels)
    for run in (plain, planned):  # the second one is captured
        run.step()
        run.step()
    with emulated.xp.cuda.Device(1):
        elsewhere = emulated.asarray(np.zeros((BATCH, *SHAPE), "f4"))
        for name, call in (
            ("", lambda: plan.step(X, labels)),
            ("", lambda: plan.gradients(X, labels)),
            ("", plan.update),
            (r"\.run", lambda: plan.run(resident, 1)),
            (r"\.compile", lambda: network.compile((BATCH, *SHAPE))),
            (r"\.compile", lambda: network.compile((BATCH, *SHAPE), engine="mega")),
        ):
            message = f"Sequential{name}: its parameters are on CUDA device 0, the current device"
            with pytest.raises(BackendError, match=rf"^{message} is 1; .*cupy.cuda.Device\(0\)"):
                call()
        with pytest.raises(BackendError, match=r"expected arrays on CUDA device 1, .*on device 0"):
            network.forward(elsewhere)
    with pytest.raises(BackendError, match="made on CUDA device 0, its data is on device 1"):
        plan.step(elsewhere, labels)
    for run in (plain, planned):
        run.step()
    same(planned, plain)
    with emulated.xp.cuda.Device(1):
        there = Run(emulated, small, SGD).compile()
        losses = [there.step() for _ in range(3)]
    assert there.plan.device == 1
    assert losses[0] == pytest.approx(Run(emulated, small, SGD).step())


def test_an_error_while_capturing_leaves_everything_usable(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, planned = pair(emulated, small)
    planned.step()
    before = planned.parameters()
    node = planned.plan._nodes[-1]
    forward = node.forward

    def silent(X: Any) -> Any:
        with contextlib.suppress(RuntimeError):
            emulated.xp.cuda.get_current_stream().synchronize()
        return forward(X)

    # refused by the driver; by itself; refused, which is seen at the end only
    for broken in (lambda X: X.get(), lambda X: 1 / 0, silent):
        monkeypatch.setattr(node, "forward", broken)
        with pytest.raises(BackendError, match=r"batches of 5: the step could not be captured"):
            planned.step()
        assert not fake_cupy.state.stream.is_capturing()
    for name, array in planned.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    planned.network.forward(planned.X)  # the plain path
    planned.network.flush_gradients()
    monkeypatch.setattr(node, "forward", forward)
    for _ in range(2):
        planned.step()
    for _ in range(3):
        plain.step()
    same(planned, plain)


def test_a_batch_that_does_not_fit_changes_nothing(emulated: Backend) -> None:
    _, planned = pair(emulated, small)
    planned.step()
    planned.step()
    before = planned.parameters()
    with pytest.raises(ShapeError, match="the plan was made for batches of shape"):
        planned.plan.step(planned.X[:, 1:], planned.labels)
    with pytest.raises(ShapeError, match="expected labels of shape"):
        planned.plan.step(planned.X, planned.labels[1:])
    with pytest.raises(BackendError, match="the labels are a numpy array"):
        planned.plan.step(planned.X, planned.labels.get())
    for name, array in planned.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_trainer_trains_by_the_graph(emulated: Backend) -> None:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, *SHAPE), np.uint8), rng.integers(0, CLASSES, n))

    data = Dataset("noise", split(4 * BATCH), split(BATCH), ("a", "b", "c"))
    histories = []
    for plan in (True, False):
        run = Run(emulated, small, "Adam(lr=0.003)")
        settings: Any = {"epochs": 2, "progress": False, "clip_global_norm": 1.0}
        trainer = Trainer(run.network, data, BATCH, compile=plan, **settings)
        with fake_cupy.count() as events:
            trainer.fit()
        histories.append(run.parameters())
        assert (events["graph_launch"] > 0) == plan
    for name, array in histories[0].items():
        np.testing.assert_allclose(array, histories[1][name], atol=2e-4, err_msg=name)


def test_a_new_plan_goes_on_with_the_same_bits(emulated: Backend) -> None:
    """What a resumed run does: its first step, before the capture, must equal a replay."""
    ours = Run(emulated, small, SGD).compile()
    for _ in range(3):
        ours.step()
    theirs = Run(emulated, small, SGD)
    theirs.network = copy.deepcopy(ours.network)
    theirs.compile()
    for _ in range(3):
        assert ours.step() == theirs.step()
        found = theirs.parameters()
        for name, array in ours.parameters().items():
            np.testing.assert_array_equal(array, found[name], err_msg=name)
