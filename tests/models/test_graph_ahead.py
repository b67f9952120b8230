"""The kernels of a step are compiled side by side before it is launched; nothing else happens."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import BackendError
from gpulayers.layers import BatchNorm2D, Conv2D, Dropout, Flatten, FullyConnected
from gpulayers.models import Activation
from tests.conftest import Backend
from tests.models.graph_run import BATCH, CLASSES, SGD, Run, pair, same

pytestmark = pytest.mark.emulated


def layers() -> list[Any]:
    return [
        *(Conv2D(3, (3, 3), pad=1), BatchNorm2D(), Activation("ReLU"), Flatten()),
        *(FullyConnected(7, act_fn="ReLU"), Dropout(0.3), FullyConnected(CLASSES)),
    ]


@pytest.fixture
def compiling(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is compiled ahead, and what one after the other, of nothing that is there before."""
    module = importlib.import_module("gpulayers.cuda.compile")
    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.conv"), "SPECIALISED", False)
    monkeypatch.setattr(module, "_kernels", {})
    noted = SimpleNamespace(module=module, ahead=[], later=[], there=set[str](), fails=False)

    def compile_all(jobs: Any, _: Any) -> list[str]:
        noted.ahead.append([job.expression for job in jobs])
        return ["no answer"] * len(jobs)

    class Store:
        def find(self, job: Any) -> Any:
            return job.expression if job.expression in noted.there else None

    inner = module._compiled

    def compiled(job: Any, *arguments: Any) -> Any:
        noted.later.append(job.expression)
        return inner(job, *arguments)

    monkeypatch.setattr(module, "compile_all", compile_all)
    monkeypatch.setattr(module, "Store", Store)
    monkeypatch.setattr(module, "_loaded", lambda *_: None)
    monkeypatch.setattr(module, "_compiled", compiled)
    monkeypatch.setattr(module, "processors", lambda: 4)
    return noted


def test_all_that_a_step_launches(emulated: Backend, compiling: SimpleNamespace) -> None:
    planned = Run(emulated, layers, SGD).compile()
    compiling.module._kernels.clear()
    compiling.later.clear()
    planned.step()
    (ahead,) = compiling.ahead
    assert len(set(ahead)) == len(ahead) >= 8
    assert set(compiling.later) == set(ahead)
    planned.step()
    assert len(compiling.ahead) == 1
    planned.step(2)
    assert not {name for names in compiling.ahead[1:] for name in names} & set(ahead)


def test_the_steps_are_those_of_the_layers(emulated: Backend, compiling: SimpleNamespace) -> None:
    """The pass before leaves no trace: no running mean, no random numbers, no update."""
    plain, planned = pair(emulated, layers)
    random.seed(1)
    got = [planned.step(n) for n in (BATCH, BATCH, 2, BATCH)]
    random.seed(1)
    np.testing.assert_allclose(got, [plain.step(n) for n in (BATCH, BATCH, 2, BATCH)], rtol=2e-5)
    same(planned, plain)
    assert compiling.ahead


@pytest.mark.parametrize("why", ["on disk", "one processor", "tuning"])
def test_where_there_is_nothing_to_gain(
    emulated: Backend, compiling: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    planned = Run(emulated, layers, SGD).compile()
    compiling.module._kernels.clear()
    if why == "on disk":  # all but one
        planned.step()
        compiling.there.update(compiling.ahead.pop()[1:])
        compiling.module._kernels.clear()
        planned.plan._programs.clear()
    elif why == "one processor":
        monkeypatch.setattr(compiling.module, "processors", lambda: 1)
    else:
        tune = importlib.import_module("gpulayers.cuda.tune")
        monkeypatch.setattr(tune, "enabled", lambda: True)
        monkeypatch.setattr(tune, "_capturing", lambda: True)
    planned.step()
    assert compiling.ahead == []


@pytest.mark.parametrize("error", [BackendError("refused"), MemoryError("no more")])
def test_what_fails_ahead_does_not_count(
    emulated: Backend,
    compiling: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    plain, planned = pair(emulated, layers)
    capture = importlib.import_module("gpulayers.cuda.graph").Recorder.capture

    def once(*_: Any) -> Any:
        monkeypatch.setattr(
            importlib.import_module("gpulayers.cuda.graph").Recorder, "capture", capture
        )
        raise error

    monkeypatch.setattr(importlib.import_module("gpulayers.cuda.graph").Recorder, "capture", once)
    random.seed(1)
    got = [planned.step() for _ in range(3)]
    random.seed(1)
    np.testing.assert_allclose(got, [plain.step() for _ in range(3)], rtol=2e-5)
    assert compiling.ahead == []


def test_launches_are_only_gathered_in_their_own_thread(
    emulated: Backend, compiling: SimpleNamespace
) -> None:
    import threading

    x = emulated.asarray(np.ones((4, 5), np.float32))
    layer, found = FullyConnected(3), list[Any]()
    layer.forward(x, False)
    with compiling.module.gathered() as launches:
        thread = threading.Thread(target=lambda: found.append(layer.forward(x, False)))
        thread.start()
        thread.join()
        assert launches == []
        layer.forward(x, False)
        assert [name for name, *_ in launches]
    np.testing.assert_array_equal(emulated.asnumpy(found[0]), emulated.asnumpy(layer.forward(x)))
