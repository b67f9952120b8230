"""The static gate itself: each thing it forbids, planted, must be seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpulayers.cuda import table
from tests.support import nvrtc, sample

pytestmark = [pytest.mark.static, pytest.mark.usefixtures("compiler")]

SOURCE = r"""
template <typename T>
__global__ void kernel(const T* x, T* y, int n)
{
    __shared__ T tile[64];
    const int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    y[t] = tile[63 - t] * T(2);
}
"""
CLEAN = {"stack_bytes": 0, "spill_bytes": 0, "atomics": 0, "local_accesses": 0}


def inspect(code: str, name: str = "kernel<float>", architecture: str = "sm_90") -> Any:
    compiled = nvrtc.compile_source(code, [name], architecture)
    assert not compiled.log, compiled.log
    return compiled.kernels[name]


def test_a_clean_kernel() -> None:
    found = dataclasses.asdict(inspect(SOURCE))
    assert found.items() >= CLEAN.items()
    assert found["barriers"] == 1
    assert found["shared_bytes"] == 64 * 4
    assert found["double_instructions"] == 0
    assert 4 < found["registers"] < 64


def test_double_instance_counts_doubles() -> None:
    found = inspect(SOURCE, "kernel<double>")
    assert found.double_instructions > 0
    assert found.shared_bytes == 64 * 8


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("T(2)", "2.1", "double_instructions"),
        ("T(2)", "T(n / 3.0)", "double_instructions"),
        ("y[t] = tile[63 - t]", "atomicAdd(y, tile[63 - t]); y[t] = x[0]", "atomics"),
        ("y[t] =", "atomicExch((int*)y, 1); y[t] =", "atomics"),
        (
            "y[t] =",
            "T own[32]; for (int i = 0; i < 32; ++i) own[x[i] > 0 ? i : n] = x[i]; y[t] = own[n] *",
            "local_accesses",
        ),
    ],
)
def test_planted_faults_are_seen(old: str, new: str, field: str) -> None:
    assert old in SOURCE
    assert getattr(inspect(SOURCE), field) == 0
    assert getattr(inspect(SOURCE.replace(old, new)), field) > 0


def test_a_second_barrier_is_counted_and_none_is_zero() -> None:
    assert inspect(SOURCE.replace("__syncthreads();", "")).barriers == 0
    twice = SOURCE.replace("y[t] =", "tile[t] = y[t]; if (__syncthreads_or(n)) y[t] =")
    assert inspect(twice).barriers == 2


def test_spills_are_seen() -> None:
    code = r"""
    __global__ void __launch_bounds__(1024, 2) kernel(const double* x, double* y)
    {
        double v[40];
        for (int i = 0; i < 40; ++i) v[i] = x[threadIdx.x + 1024 * i];
        __syncthreads();
        for (int i = 0; i < 40; ++i) y[threadIdx.x + 1024 * i] = v[i] * v[39 - i];
    }
    """
    assert inspect(code, "kernel").spill_bytes > 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("__global__ void kernel(float* x) { x[0] = INFINITY; }", "INFINITY"),
        ("#include <vector>\n__global__ void kernel(float* x) { }", "vector"),
        ("__global__ void kernel(float* x) { undeclared(x); }", r"kernel\.cu\(1\)"),
    ],
)
def test_what_nvrtc_refuses_is_a_failure(code: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        inspect(code, "kernel")


def test_an_unknown_architecture_is_a_failure() -> None:
    assert "gpu-architecture" in nvrtc.compile_source(SOURCE, ["kernel<float>"], "sm_12").log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 33}, "33 registers, budget 32"),
        ({"spill_bytes": 8}, "spills 8"),
        ({"stack_bytes": 16}, "stack 16"),
        ({"shared_bytes": 128}, "128 bytes shared, budget 64"),
        ({"shared_bytes": 32}, "32 bytes shared, budget 64"),
    ],
)
def test_budget_is_enforced(change: dict[str, int], message: str) -> None:
    within = nvrtc.Resources(30, 64, 0, 0, 1, 0, 0, 0)
    job = nvrtc.Job("a.cu", "sm_90")
    budget = nvrtc.make_budget({job: nvrtc.Compiled({"k": within}, "")})
    assert budget["kernels"]["k"] == {"shared_bytes": {"sm_90": 64}, "registers": {"sm_90": 32}}
    assert nvrtc.over_budget({job: nvrtc.Compiled({"k": within}, "")}, budget, ["k"]) == []
    beyond = nvrtc.Compiled({"k": dataclasses.replace(within, **change)}, "")
    (found,) = nvrtc.over_budget({job: beyond}, budget, ["k"])
    assert message in found


def test_each_architecture_has_a_budget_of_its_own() -> None:
    """The tiles of a pipeline of copies, sm_80 and later, lie otherwise than those of sm_75."""
    old, new = nvrtc.Job("a.cu", "sm_75"), nvrtc.Job("a.cu", "sm_90")
    figures = {
        old: nvrtc.Compiled({"k": nvrtc.Resources(30, 64, 0, 0, 1, 0, 0, 0)}, ""),
        new: nvrtc.Compiled({"k": nvrtc.Resources(60, 96, 0, 0, 1, 0, 0, 0)}, ""),
    }
    budget = nvrtc.make_budget(figures)
    assert nvrtc.over_budget(figures, budget, ["k"]) == []
    swapped = {old: figures[new], new: figures[old]}
    found = nvrtc.over_budget(swapped, budget, ["k"])
    assert [line.split(": ")[1] for line in found] == [
        "60 registers, budget 32",
        "96 bytes shared, budget 64",
        "64 bytes shared, budget 96",
    ]


def test_budget_misses() -> None:
    assert nvrtc.over_budget({}, {"kernels": {}}, ["k"]) == ["k is not in the budget"]


def test_write_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import json

    resources = nvrtc.Resources(30, 64, 0, 0, 1, 0, 0, 0)
    job = nvrtc.Job("a.cu", "sm_90")
    results = {job: nvrtc.Compiled({"k<float, int>": resources}, "")}
    monkeypatch.setattr(nvrtc, "compile_all", lambda: results)
    monkeypatch.setattr(sample, "ALL", sample.ALL)  # main sets it
    monkeypatch.setattr(nvrtc, "BUDGET_FILE", tmp_path / "budget.json")
    assert nvrtc.main(["--write-budget"]) == 0
    written = json.loads((tmp_path / "budget.json").read_text())
    assert written["kernels"]["k<float, int>"]["registers"] == {"sm_90": 32}
    results[job] = nvrtc.Compiled({}, "error: no")
    assert nvrtc.main(["--write-budget"]) == 1


def test_processes_compile_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is that of all kernels, also where the tests compile some."""
    job = nvrtc.Job("dropout.cu", "sm_90")
    monkeypatch.setattr(nvrtc, "tested", lambda: [job])
    for every in (False, True):
        monkeypatch.setattr(sample, "ALL", every)
        assert nvrtc.compile_all()[job].kernels.keys() == set(job.instances)
        assert (len(job.instances) == len(table.instances(job.file))) == every


def test_an_empty_log_is_written_to_no_object_of_python() -> None:
    with nvrtc.program(SOURCE, ["kernel<float>"], ["-arch=compute_90"], "kernel.cu") as compiled:
        assert not compiled.log and "kernel" in compiled.ptx()
    assert bytes([32])[0] == 32  # the one object of a byte: not what NVRTC ended its log with
