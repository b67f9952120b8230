"""The tuner on the stand-in: what it measures by a clock of the test, and what plans and later
processes take from it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.backend import available
from gpulayers.cli import main
from gpulayers.errors import ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.models import Sequential
from tests.conftest import Backend
from tests.kernels.conftest import new_process
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated


def numbers(backend: Backend, *shape: int) -> Any:
    return backend.asarray(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))


def multiply(backend: Backend, cuda: SimpleNamespace, rows: int = 40) -> str:
    """Launch a product of 40 x 300 x 9, whose rule is the narrow tile; return the kernel."""
    A, B = numbers(backend, rows, 300), numbers(backend, 300, 9)
    out = cuda.product.gemm(A, B)
    launched = [name for name, _ in fake_cupy.state.launch_log if name.startswith("gemm")]
    wanted = A.get().astype(np.float64) @ B.get()
    np.testing.assert_allclose(out.get(), wanted, rtol=1e-4, atol=1e-5)
    return launched[-1]


WIDE, NARROW = "gemm<float, float, Wide>", "gemm<float, float, Narrow>"


# --------------------------------------------------------------------------------- what is chosen


def test_the_fastest_is_taken_now_and_by_later_processes(
    emulated: Backend, cuda: SimpleNamespace
) -> None:
    assert multiply(emulated, cuda) == NARROW, "by rule"
    cuda.clock = {"gemm": 0.5}
    with cuda.tune.tuning() as run:
        assert multiply(emulated, cuda) == WIDE
    (key, result), *others = run.found
    assert not others
    assert key == cuda.tune.Key("gemm_nn", (40, 9, 300), "float32")
    assert (result.choice.kernel, result.microseconds) == ("gemm", 1e3 * 0.5 / 2)
    assert multiply(emulated, cuda) == WIDE, "afterwards in this process"
    new_process(cuda)
    timed = cuda.timed.total()
    with cuda.tune.tuning() as run:
        assert multiply(emulated, cuda) == WIDE, "from the file"
    assert not run.found
    assert cuda.timed.total() == timed, "nothing is measured twice"


@pytest.mark.parametrize("factor", [0.99, 0.97])
def test_the_rule_stays_unless_another_is_clearly_faster(
    emulated: Backend, cuda: SimpleNamespace, factor: float
) -> None:
    cuda.clock = {"gemm": factor}
    with cuda.tune.tuning():
        assert multiply(emulated, cuda) == (NARROW if factor > 0.98 else WIDE)


def test_a_choice_serves_shapes_nearby(emulated: Backend, cuda: SimpleNamespace) -> None:
    cuda.clock = {"gemm": 0.5}
    with cuda.tune.tuning():
        multiply(emulated, cuda, 40)
    assert multiply(emulated, cuda, 30) == WIDE
    assert multiply(emulated, cuda, 161) == NARROW, "more than four times as many rows"


def test_what_is_slow_is_dropped_early(emulated: Backend, cuda: SimpleNamespace) -> None:
    cuda.clock = {"gemm": 1.31, "gemm_narrow": 1.0, "gemm, 2 parts": 1.29}
    with cuda.tune.tuning() as run:
        multiply(emulated, cuda)
    repeats = cuda.tune_measure.REPEATS
    assert cuda.timed["gemm"] == 2
    assert cuda.timed["gemm, 2 parts"] == cuda.timed["gemm_narrow"] == 2 + repeats
    assert [r.why_not for r in run.found[0][1].rows if r.candidate.label == "gemm"] == [
        "slower by 30 %"
    ]


def test_nothing_is_measured_unasked(emulated: Backend, cuda: SimpleNamespace) -> None:
    multiply(emulated, cuda)
    with cuda.tune.pinned({}, measure=True):
        multiply(emulated, cuda)
    assert not cuda.timed
    assert not cuda.folder.exists()


def test_the_variable(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULAYERS_TUNE", "1")
    with cuda.tune.pinned({}, measure=False):
        multiply(emulated, cuda)
    multiply(emulated, cuda)
    assert not cuda.timed, "outside plans, and where a plan captures, the variable does nothing"
    with cuda.tune.pinned({}, measure=True):
        multiply(emulated, cuda)
    assert cuda.timed
    monkeypatch.setenv("GPULAYERS_TUNE", "yes")
    with pytest.raises(ParameterError, match="GPULAYERS_TUNE=yes: expected 0"):
        cuda.tune.pinned({}, measure=True)


def test_not_in_a_capture(emulated: Backend, cuda: SimpleNamespace) -> None:
    A, B = numbers(emulated, 40, 300), numbers(emulated, 300, 9)
    recorder = importlib.import_module("gpulayers.cuda.graph").Recorder()
    with cuda.tune.tuning() as run:
        recorder.capture("a product", lambda: cuda.product.gemm(A, B))
    assert not run.found


def test_kernels_that_differ_from_run_to_run(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = importlib.import_module("gpulayers.cuda.table").KERNELS
    monkeypatch.setitem(kernels, "gemm", dataclasses.replace(kernels["gemm"], atomics=True))
    cuda.clock = {"gemm": 0.5}
    with cuda.tune.tuning(), cuda.tune.pinned({}, deterministic=True, measure=True):
        assert multiply(emulated, cuda) == NARROW
    with cuda.tune.tuning(), cuda.tune.pinned({}, deterministic=False, measure=True):
        assert multiply(emulated, cuda, 41) == WIDE
    with cuda.tune.pinned({}, deterministic=True):
        assert multiply(emulated, cuda, 41) == NARROW, "though the table has the other"


# ------------------------------------------------------------------------------ kernels from disk


def test_kernels_are_loaded_from_the_machine_code_on_disk(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cuda.tune.tuning():
        multiply(emulated, cuda)
    job = cuda.compile.job_of("gemm_narrow", "float32")
    path = cuda.cubins.Store().find(job).path
    paths: list[str] = []

    class Module(fake_cupy.cupy.RawModule):
        def __init__(self, **given: Any) -> None:
            paths.append(given.get("path", "compiled"))
            super().__init__(**given)

    monkeypatch.setattr(fake_cupy.cupy, "RawModule", Module)
    monkeypatch.setattr(cuda.compile, "_kernels", {})
    multiply(emulated, cuda)
    assert paths == [str(path)]
    # what the driver refuses, though it is what was written, is compiled again
    cuda.cubins.Store().put(job, b"of another driver", "gemm")
    cuda.compile._kernels.clear()
    paths.clear()
    multiply(emulated, cuda)
    assert paths[1:] == ["compiled"]
    assert cuda.cubins.Store().find(job) is None


# ---------------------------------------------------------------------------------------- in plans


def network() -> Sequential:
    random.seed(0)
    layers = [
        Conv2D(3, (3, 3), pad=1, act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Flatten(),
        FullyConnected(4),
    ]
    return Sequential(layers, optimizer="SGD(lr=0.1)")


def test_a_plan_measures_new_shapes_and_keeps_its_choices(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.conv, "SPECIALISED", False)
    X = numbers(emulated, 4, 8, 7, 2)
    labels = emulated.asarray(np.array([0, 1, 2, 3]))
    usual = network()
    losses = [float(usual.compile(X.shape).step(X, labels)) for _ in range(3)]
    monkeypatch.setenv("GPULAYERS_TUNE", "1")
    cuda.clock = {name: 0.5 for name in ("gemm", "conv2d_forward", "conv2d_backward")}
    plan = network().compile(X.shape)
    first = float(plan.step(X, labels))
    timed = cuda.timed.total()
    assert timed
    chosen = {key.op: choice.kernel for key, choice in plan._choices.items()}
    assert chosen == {
        "conv2d_forward": "conv2d_forward",
        "conv2d_backward": "conv2d_backward",
        "gemm_nn": "gemm",
        "dense_backward": "dense_backward",
    }
    # whatever is measured later: this plan goes on with what it has
    cuda.tune.own_table().clear()
    cuda.clock = {}
    assert [first, float(plan.step(X, labels)), float(plan.step(X, labels))] == pytest.approx(
        losses, rel=1e-5
    )
    assert cuda.timed.total() == timed
    assert {key.op: choice.kernel for key, choice in plan._choices.items()} == chosen
    assert not network().compile(X.shape, deterministic=False).deterministic


# -------------------------------------------------------------------------------- the command line


def test_the_command(
    emulated: Backend,
    cuda: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*arguments: Any, **named: Any) -> Sequential:
        return Sequential([Flatten(), FullyConnected(3)], optimizer="SGD(lr=0.1)", name="small")

    monkeypatch.setattr("gpulayers.cli.tune.build", build)
    monkeypatch.setattr("gpulayers.cli.tune.SHAPES", {"lenet": (10, 8, 3)})
    cuda.clock = {"gemm": 0.5}
    assert main(["tune", "--batch-size", "3", "--json"]) == 0
    output = capsys.readouterr()
    assert "lenet, batches of 3: a step" in output.err
    (product,) = json.loads(output.out)["measured"]
    assert product["operation"] == "gemm_nn"
    assert (product["shape"], product["choice"]) == ([3, 3, 240], "gemm")
    assert product["microseconds"] == 250
    kernels = {row["kernel"]: row["microseconds"] for row in product["candidates"]}
    assert (kernels["gemm"], kernels["gemm_narrow"]) == (250, None)
    assert main(["tune", "--batch-size", "3"]) == 0
    assert "nothing to measure" in capsys.readouterr().out
    assert main(["tune", "--batch-size", "4"]) == 0
    assert "gemm_nn 4x3x240" in (text := capsys.readouterr().out)
    assert "gemm, 250.0 us" in text
    assert main(["info"]) == 0
    assert f"2 measured choices for CPU stand-in in {cuda.folder}" in capsys.readouterr().out
    assert main(["tune", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"forgotten": 2}
    assert not list((cuda.folder / "kernels").iterdir())
    assert main(["tune", "--batch-size", "3", "--quiet"]) == 0
    assert capsys.readouterr().out == "1\n"


def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if "cupy" in available():
        pytest.skip("there is a GPU")
    assert main(["tune"]) == 1
    assert "the backend 'cupy' was asked for" in capsys.readouterr().err
