"""Engine "mega": what it refuses, and a `Trainer` that trains by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import set_default_dtype
from gpulayers.errors import BackendError, ParameterError, ShapeError
from gpulayers.layers import (
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    LayerNorm2D,
    Pool2D,
)
from gpulayers.models import Activation, Sequential
from gpulayers.models.resident import Resident
from gpulayers.training import Trainer
from gpulayers.training.data import Dataset, Split
from tests.conftest import Backend, switched_to
from tests.models.test_mega import CLASSES, SGD, SHAPE, Run, checked, dense
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated
__all__ = ["checked"]  # the fixture that runs kernels under the checker


@pytest.mark.parametrize(
    ("layers", "optimizer", "message"),
    [
        (
            [Conv2D(2, (3, 3), act_fn="ReLU"), BatchNorm2D(), Flatten()],
            SGD,
            r"layer 1 \(BatchNorm2D\).*without an activation",
        ),
        ([BatchNorm2D(), Flatten()], SGD, r"layer 0 \(BatchNorm2D\).*does not follow"),
        ([Conv2D(2, (3, 3)), Flatten(), BatchNorm1D()], SGD, "another layer between"),
        ([Conv2D(2, (3, 3)), Dropout(0.1), BatchNorm2D(), Flatten()], SGD, "another layer between"),
        ([Conv2D(2, (3, 3)), Pool2D(2, 2), BatchNorm2D(), Flatten()], SGD, "follows a pooling"),
        ([Conv2D(2, (3, 3)), Dropout(0.1), Pool2D(2, 2), Flatten()], SGD, "not follow a conv"),
        ([Conv2D(2, (3, 3)), LayerNorm2D(), Flatten()], SGD, "LayerNorm2D is not among Conv2D"),
        ([Dropout(0.5), Flatten(), Dropout(0.5)], SGD, r"layer 2 \(Dropout\): it follows another"),
        ([Conv2D(2, (3, 3), act_fn="ELU"), Flatten()], SGD, "its activation ELU"),
        ([Conv2D(2, (3, 3)), Pool2D((3, 3), stride=2), Flatten()], SGD, "not side by side"),
        ([Conv2D(2, (3, 3)), Pool2D((5, 5), stride=5), Flatten()], SGD, "25 pixels"),
        ([Pool2D((2, 2), stride=2), Flatten()], SGD, "does not follow a convolution"),
        ([Conv2D(2, (3, 3)), Pool2D(2, 2, mode="average"), Flatten()], SGD, "'average'"),
        ([Activation("ReLU"), Flatten()], SGD, "without an activation"),
        ([Flatten()], "SGD(lr=0.1, nesterov=True, momentum=0.9)", r"layer 1 \(FullyConnected\)"),
        ([Flatten()], "SGD(lr=0.1, clip_norm=1.0)", "without extras"),
    ],
)
def test_refused(emulated: Backend, layers: list[Any], optimizer: str, message: str) -> None:
    network = Sequential([*layers, FullyConnected(CLASSES)], optimizer)
    with pytest.raises(ParameterError, match=message):
        network.compile((4, *SHAPE), engine="mega")


def test_refused_for_other_reasons(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulayers.cuda.precision import use_precision

    with pytest.raises(ParameterError, match="FullyConnected layer at the end"):
        Sequential([Flatten()], SGD).compile((4, 3), engine="mega")
    two = Sequential([FullyConnected(4, optimizer=SGD), FullyConnected(3, optimizer="Adam")])
    with pytest.raises(ParameterError, match=r"layer 1 \(FullyConnected\).*another one"):
        two.compile((4, 3), engine="mega")
    set_default_dtype("float64")
    try:
        with pytest.raises(ParameterError, match="computes in float32, asked for was float64"):
            Sequential([FullyConnected(3)]).compile((4, 3), engine="mega")
    finally:
        set_default_dtype("float32")
    wide = Sequential([FullyConnected(3)])
    with pytest.raises(ParameterError, match="computes in float32, asked for was fp16"):
        wide.compile((4, 3), engine="mega", precision="fp16")
    assert wide.dtype == "float32", "it is converted by a plan that is made, no other"
    with use_precision("tf32"), pytest.raises(ParameterError, match="asked for was tf32"):
        wide.compile((4, 3), engine="mega")
    with pytest.raises(ParameterError, match=r"unknown engine 'maga'.*mega"):
        two.compile((4, 3), engine="maga")
    with switched_to("numpy"), pytest.raises(BackendError, match="needs a GPU"):
        Sequential([FullyConnected(2)]).compile((4, 3), engine="mega")
    run = Run(emulated, dense)
    with pytest.raises(ShapeError, match="at most 5 examples"):
        run.plan.run(Resident(run.X, run.labels), 1, 6)
    device = fake_cupy.cupy.cuda.Device()
    monkeypatch.setitem(device.attributes, "MaxSharedMemoryPerBlockOptin", 4000)
    with pytest.raises(BackendError, match=r"bytes of shared memory.* this GPU has 4000"):
        run.network.compile((4, *SHAPE), engine="mega")


def trainer(compile: Any, **more: Any) -> Trainer:
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (11, *SHAPE), np.uint8), rng.integers(0, CLASSES, 11)
    split = Split(images, labels)
    data = Dataset("noise", split, split, ("a", "b", "c"))
    network = Sequential(dense(), SGD)
    arguments: dict[str, Any] = {"batch_size": 3, "epochs": 2, "seed": 1, "progress": False}
    return Trainer(network, data, compile=compile, **({"device": "gpu"} | arguments | more))


def test_a_trainer_trains_by_it(emulated: Backend) -> None:
    """The same figures as layer by layer on the host; the first step of all is the layers'."""
    with switched_to("numpy"):
        plain = trainer(False, device="cpu").fit()
    with fake_cupy.count() as events:
        fast = trainer("mega", log_every=2).fit()
    assert events["kernel:train_steps"] == 2 + 2
    for ours, theirs in zip(fast, plain, strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss"):
            assert getattr(ours, key) == pytest.approx(getattr(theirs, key), rel=1e-4), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": "mage"}, "compile must be.*'mage'.*mega"),
        ({"compile": "mega", "accumulate": 2}, "steps that are not changed"),
        ({"compile": "mega", "transform": "flip"}, "untransformed"),
        ({"compile": "mega", "schedule": "KingScheduler"}, "do not depend on the loss"),
    ],
)
def test_a_trainer_says_what_is_in_the_way(
    emulated: Backend, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        trainer(**arguments).fit()


def test_a_trainer_on_the_cpu_refuses_it_at_once(emulated: Backend) -> None:
    """Not in its second step, which a run of one step never comes to."""
    with pytest.raises(BackendError, match=r'Trainer: compile="mega" needs a GPU, .* on numpy'):
        trainer("mega", device="cpu", batch_size=11, epochs=1)
