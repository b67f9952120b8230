"""The launch table agrees with the sources, and every kernel has cases."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda import table
from gpulayers.cuda.compile import load_source
from gpulayers.errors import BackendError
from tests.kernels.cases import CASES
from tests.kernels.launchers import EmulatedLauncher
from tests.support import sample


def sources() -> dict[str, str]:
    folder = resources.files("gpulayers.cuda")
    return {f.name: f.read_text() for f in folder.iterdir() if f.name.endswith(".cu")}


def bare(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def test_every_source_is_in_the_table_and_has_cases() -> None:
    assert set(sources()) == set(table.FILES) == set(CASES)


def test_every_kernel_of_a_source_is_in_the_table() -> None:
    for file, text in sources().items():
        defined = set(re.findall(r"__global__ void (?:__launch_bounds__\(\w+\)\s+)?(\w+)\(", text))
        listed = {s.template.split("<")[0] for s in table.KERNELS.values() if s.file == file}
        assert defined == listed, file


class Recorder(EmulatedLauncher):
    """Notes which instances the cases ask for."""

    def __init__(self) -> None:
        super().__init__(whole_files=True)
        self.launched: set[tuple[str, str, str]] = set()

    def launch(self, name: str, dtype: str, index: str, *rest: Any, **options: Any) -> None:
        self.launched.add((name, dtype, index))
        super().launch(name, dtype, index, *rest, **options)


@pytest.mark.emulated
def test_every_kernel_runs_in_some_case_with_every_dtype_and_index() -> None:
    recorder = Recorder()
    for cases in CASES.values():
        for case in cases:
            case(recorder)
    for spec in table.KERNELS.values():
        run = {(d, i) for n, d, i in recorder.launched if n == spec.name}
        assert {d for d, _ in run} == sample.dtypes_met(spec), spec.name
        dtype = spec.dtypes[0]
        indexed = spec.expression(dtype, "int32") != spec.expression(dtype, "int64")
        if run and indexed:
            assert {i for _, i in run} == set(table.INDEX_TYPES), spec.name


def test_barriers_and_atomics_are_as_the_table_says() -> None:
    for file in sources():
        specs, text = [s for s in table.KERNELS.values() if s.file == file], load_source(file)
        assert any(s.barriers for s in specs) == ("__syncthreads" in bare(text)), file
        counting = any(s.atomics or s.counts or s.cooperative for s in specs)
        assert counting == ("atomic" in bare(text)), file


def test_activation_numbers_follow_the_header() -> None:
    header = (resources.files("gpulayers.cuda") / "activation_functions.cuh").read_text()
    match = re.search(r"enum Activation \{(.*?)\}", header, re.S)
    assert match is not None
    names = re.findall(r"\w+", match[1])
    assert tuple(name.lower() for name in names) == table.ACTIVATIONS


def test_window_parameters_match_the_header() -> None:
    header = (resources.files("gpulayers.cuda") / "window.cuh").read_text()
    macro = header[header.index("#define WINDOW_PARAMETERS") :].split("\n\n")[0]
    names = re.findall(r"\b(\w+)(?:,|$)", macro.replace("\\\n", " "))
    assert tuple(names[-len(table.WINDOW_NAMES) :]) == table.WINDOW_NAMES


@pytest.mark.parametrize("file", table.FILES)
def test_sources_are_self_contained_and_light(file: str) -> None:
    text = bare(load_source(file))
    assert '#include "' not in text
    assert set(re.findall(r"#include <([^>]+)>", text)) == {"cuda_fp16.h", "cuda_bf16.h"}
    for heavy in ("cooperative_groups", "cub", "std::", "INFINITY", "NAN"):
        assert heavy not in text, heavy


def test_line_numbers_survive_the_inlining() -> None:
    """Numbering the lines from the last #line gives the line of the file itself."""
    for file, text in sources().items():
        number, current, seen = 0, file, {}
        for line in load_source(file).splitlines():
            number += 1
            if match := re.match(r'#line (\d+) "(.*)"', line):
                number, current = int(match[1]) - 1, match[2]
            elif current == file:
                seen[number] = line
        for k, line in enumerate(text.splitlines(), 1):
            if not line.startswith('#include "'):
                assert seen[k] == line, (file, k)


# --------------------------------------------------------------------------------------- arguments


def test_numbers_are_packed_as_the_parameters_want() -> None:
    spec = table.KERNELS["sgd_update"]
    a = np.zeros(1)
    packed = spec.pack("float32", "int64", (a, a, a, 5, 0.1, 0.9))
    assert [type(p) for p in packed[3:]] == [np.int64, np.float32, np.float32]
    packed = spec.pack("float64", "int32", (a, a, a, 5, 0.1, 0.9))
    assert [type(p) for p in packed[3:]] == [np.int32, np.float64, np.float64]
    packed = spec.pack("bfloat16", "int32", (a, a, a, 5, 0.1, 0.9))
    assert [type(p) for p in packed[4:]] == [np.float32, np.float32]


def test_a_number_that_does_not_fit_is_refused() -> None:
    a = np.zeros(1)
    pack = table.KERNELS["sgd_update"].pack
    with pytest.raises(BackendError, match=r"sgd_update: bad argument 3, 2147483648: .* \(1,\)"):
        pack("float32", "int32", (a, a, a, 2**31, 0.1, 0.9))
    beyond = table.INT32_LIMIT + 1  # fits, but a thread of the last block would count past 32 bits
    with pytest.raises(BackendError, match=f"bad argument 3, {beyond}: more than"):
        pack("float32", "int32", (a, a, a, beyond, 0.1, 0.9))
    assert pack("float32", "int64", (a, a, a, beyond, 0.1, 0.9))[3] == beyond
    with pytest.raises(BackendError, match=r"softmax_forward: bad argument 3, .*more than"):
        table.KERNELS["softmax_forward"].pack("float32", "int64", (a, a, 1, beyond))
    with pytest.raises(BackendError, match="kernel sgd_update: expected 6 arguments, got 2"):
        table.KERNELS["sgd_update"].pack("float32", "int32", (a, a))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(BackendError, match="kernel im2col: no instance for int32"):
        table.KERNELS["im2col"].expression("int32", "int32")


def test_index_type_follows_the_largest_array() -> None:
    assert table.index_for(10, table.INT32_LIMIT) == "int32"
    assert table.index_for(10, table.INT32_LIMIT + 1) == "int64"
    # the threads of the last block that have nothing to do must still be counted in 32 bits
    block = max(spec.block for spec in table.KERNELS.values())
    assert -(-table.INT32_LIMIT // block) * block < 2**31


def test_names_are_instantiated_for_what_is_asked() -> None:
    vector = table.KERNELS["im2col_vector"]
    assert vector.expression("float32", "int32") == "im2col<float, int, 4>"
    assert vector.expression("float16", "int64") == "im2col<__half, long long, 8>"
    assert table.KERNELS["sgd_update"].instances[0] == "sgd_update<float, float, int>"
    assert len(table.KERNELS["sgd_update"].instances) == 8


def test_the_table_needs_no_cupy() -> None:
    code = (
        "import sys; sys.modules['cupy'] = None\n"
        "from gpulayers.cuda import table, compile\n"
        "assert all(compile.load_source(f) for f in table.FILES)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
