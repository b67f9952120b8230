"""Every kernel instance compiles for every architecture, inside its budget, to clean PTX."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source
from gpulayers.cuda.table_tiles import TILES
from tests.support import nvrtc, sample

pytestmark = pytest.mark.static

Matrix = dict[nvrtc.Job, nvrtc.Compiled]


@pytest.fixture(scope="module")
def budget() -> dict[str, Any]:
    return json.loads(nvrtc.BUDGET_FILE.read_text())


def results(compiled: Matrix, spec: table.KernelSpec) -> list[tuple[str, nvrtc.Resources]]:
    """(what and where, figures) of all instances of a kernel."""
    found = [
        (f"{name} on {job.architecture}", result.kernels[name])
        for job, result in compiled.items()
        if job.file == spec.file and not result.log
        for name in spec.instances
        if name in result.kernels
    ]
    assert found or not sample.dtypes_compiled(spec), f"no instance of {spec.name} was compiled"
    return found


@pytest.mark.parametrize("job", nvrtc.tested(), ids=lambda job: f"{job.file}-{job.architecture}")
def test_compiles(compiled: Matrix, job: nvrtc.Job) -> None:
    result = compiled[job]
    assert not result.log, result.log
    assert set(result.kernels) == set(job.instances)


def test_within_budget(compiled: Matrix, budget: dict[str, Any]) -> None:
    names = [name for spec in table.KERNELS.values() for name in spec.instances]
    beyond = nvrtc.over_budget(compiled, budget, names)
    versions = f"budget of NVRTC {budget['nvrtc']}, this is {nvrtc.nvrtc_version()}"
    note = f"({versions}; to accept: python -m tests.support.nvrtc --write-budget)"
    assert not beyond, "\n".join([*beyond, note])


def test_budget_lists_exactly_the_kernels(budget: dict[str, Any]) -> None:
    instances = {name for file in table.FILES for name in table.instances(file)}
    assert set(budget["kernels"]) == instances
    for spec in table.KERNELS.values():
        able = {a for a in nvrtc.ARCHITECTURES if sample.is_for(spec, a)}
        for name in spec.instances:
            assert set(budget["kernels"][name]["registers"]) == able, name


def test_no_double_arithmetic_in_float_kernels(compiled: Matrix) -> None:
    doubles = [
        f"{where}: {found.double_instructions}"
        for spec in table.KERNELS.values()
        for where, found in results(compiled, spec)
        if found.double_instructions and "double" not in where
    ]
    assert not doubles, "\n".join(doubles)


def test_no_local_memory(compiled: Matrix) -> None:
    local = [
        where
        for spec in table.KERNELS.values()
        for where, found in results(compiled, spec)
        if found.local_accesses
    ]
    assert not local, "\n".join(local)


def test_barriers_and_atomics_as_declared(compiled: Matrix) -> None:
    wrong = []
    for spec in table.KERNELS.values():
        counting = spec.atomics or spec.counts or spec.cooperative
        for where, found in results(compiled, spec):
            if (found.barriers > 0) != spec.barriers or (found.atomics > 0) != counting:
                wrong.append(f"{where}: {found.barriers} barriers, {found.atomics} atomics")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "spec",
    [s for s in table.KERNELS.values() if sample.dtypes_compiled(s) and s.runs],
    ids=lambda s: s.name,
)
def test_large_tiles_take_runs_and_tensor_cores(compiled: Matrix, spec: table.KernelSpec) -> None:
    """A warp works out 16 x 8 numbers of a tile by one instruction, 16 words of terms, a stage, by
    two; a warpgroup 64 rows of all columns, 32 words by four. Each stage but one (but two of
    those) is asked for before, one in the loop."""
    (tile,) = (t for t in TILES.values() if re.search(rf", {t.name}[,>]", spec.template))
    stages = tile.stages - bool(tile.only)
    each = [-(-lines * tile.row // 16 // spec.block) for lines in (tile.rows, tile.cols)]
    copies = stages * sum(each)
    products = 2 * tile.rows * tile.cols // (16 * 8) // (spec.block // 32) if tile.tensor else 0
    by_groups = tile.rows // 64 // (spec.block // 128) * 4 if tile.only else 0
    if spec.name.startswith(("dense_backward", "conv2d_backward")):
        products, by_groups, copies = 2 * products, 2 * by_groups, 2 * copies
    for where, found in results(compiled, spec):
        assert found.tensor_products == (0 if tile.only else products), where
        assert found.group_products == by_groups, where
        assert found.wide_copies == copies, where
        if not tile.tensor:
            assert found.wide_loads >= (tile.rows + tile.cols) // 64, where


@pytest.mark.parametrize(
    "spec",
    [s for s in table.KERNELS.values() if s.cooperative or "_sequence_" in s.name],
    ids=lambda s: s.name,
)
def test_which_sequences_multiply_by_tensor_cores(compiled: Matrix, spec: table.KernelSpec) -> None:
    for where, found in results(compiled, spec):
        assert (found.tensor_products > 0) == spec.name.endswith("_tensor"), where


@pytest.mark.parametrize("file", table.FILES)
def test_light_headers_only(file: str) -> None:
    """CCCL and cooperative groups cost seconds of compile time at first use."""
    headers = re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", load_source(file), re.MULTILINE)
    assert set(headers) <= {"cuda_fp16.h", "cuda_bf16.h"}
    assert not re.search(r"\b(cuda::|cub::|std::|cooperative_groups)", load_source(file))


#: LeNet's and a small VGG's convolutions: the kernel of each; geometry, filters, pooled
LENET = (14, 14, 6, 10, 10, 5, 5, 1, 1, 0, 0, 1, 1)
FIRST, LAST = (
    (32, 32, 3, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1),
    (16, 16, 64, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1),
)
SPECIAL = [
    ("conv2d_forward<float, float, Narrow>", (28, 28, 1, 28, 28, 5, 5, 1, 1, 2, 2, 1, 1), 6, True),
    ("conv2d_backward<float, float, Narrow>", LENET, 16, True),
    ("conv2d_forward<float, float, Wide>", FIRST, 32, False),
    ("conv2d_forward<float, float, Tall>", LAST, 64, False),
    ("conv2d_moments<float, float, Wide>", FIRST, 32, False),
    ("conv2d_forward<float, float, Tensor>", LAST, 64, True),
    ("conv2d_backward<float, float, Tensor>", LAST, 64, True),
    ("conv2d_backward<float, float, Tensor>", LAST, 64, False),
    ("conv2d_forward<float, float, TensorTall>", (*FIRST[:2], 4, *FIRST[3:]), 32, False),
    ("conv2d_forward<float, float, TensorTall>", (*FIRST[:2], 32, *FIRST[3:]), 32, True),
    ("conv2d_backward<float, float, TensorTall>", (*FIRST[:2], 32, *FIRST[3:]), 32, False),
]


@pytest.mark.parametrize(("name", "numbers", "filters", "pooled"), SPECIAL)
def test_compiled_for_a_shape(
    compiler: None, name: str, numbers: tuple[int, ...], filters: int, pooled: bool
) -> None:
    """No spills; at least one block of 256 threads fits, by tensor cores two but of the largest
    tile. Images of three channels have a fourth one of zeros."""
    names = [*table.WINDOW_NAMES, "filters", "pooled", "depth"]
    depth = 3 if numbers[2] == 4 else numbers[2]
    values = zip(names, (*numbers, filters, int(pooled), depth), strict=True)
    constants = ",".join(f"{parameter}={value}" for parameter, value in values)
    options = (*table.options("float32"), f"-DSPECIALISE={constants}")
    file = "conv.cu" if "forward" in name else "conv_step.cu"
    compiled = nvrtc.compile_source(load_source(file), [name], "sm_90", options, file)
    assert not compiled.log, compiled.log
    found = compiled.kernels[name]
    assert found.spill_bytes == found.stack_bytes == found.local_accesses == 0
    assert found.registers <= (128 if "Tensor" in name else 184)
