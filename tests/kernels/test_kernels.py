"""Each kernel, unchanged, run on the CPU under the checker (bounds, races, barriers, uninitialised
reads, integer overflow) and compared with loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels import arrays
from tests.kernels.arrays import Launcher
from tests.kernels.cases import CASES, case_name
from tests.kernels.launchers import DeviceLauncher, EmulatedLauncher

ALL = [
    pytest.param(case, id=f"{file.removesuffix('.cu')}-{case_name(case)}")
    for file, cases in CASES.items()
    for case in cases
]


@pytest.fixture(scope="module")
def emulator() -> EmulatedLauncher:
    return EmulatedLauncher(whole_files=True)


@pytest.mark.emulated
@pytest.mark.parametrize("case", ALL)
def test_on_the_cpu(case: Callable[[Launcher], None], emulator: EmulatedLauncher) -> None:
    case(emulator)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ALL)
def test_on_a_gpu(case: Callable[[Launcher], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from gpulayers.cuda.precision import capability

    monkeypatch.setitem(arrays.ties, "to even", capability() >= 90)
    case(DeviceLauncher())
