"""The checker of tests.support.cuda_on_cpu, put to the test: each legal CUDA idiom must pass
silently with the right values, and each broken twin of it must be caught with the right kind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.meta.emulator_idioms import ORDERS, Fault, Idiom
from tests.meta.emulator_idioms_global import GLOBAL_IDIOMS
from tests.meta.emulator_idioms_shared import SHARED_IDIOMS
from tests.support.cuda_on_cpu import HostModule, KernelError

pytestmark = pytest.mark.emulated

IDIOMS = [*SHARED_IDIOMS, *GLOBAL_IDIOMS]
FAULTS = [(idiom, fault) for idiom in IDIOMS for fault in idiom.faults]


def build(idiom: Idiom, code: str) -> Any:
    names = [idiom.kernel] if "<" in idiom.kernel else []
    return HostModule(code, name_expressions=names, name="idiom.cu")[idiom.kernel]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.name)
def test_legal_idiom_is_silent(idiom: Idiom, order: str) -> None:
    kernel = build(idiom, idiom.code)
    for seed in range(3):
        idiom.launch(
            lambda *args, seed=seed, **options: kernel(*args, order=order, seed=seed, **options)
        )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "idiom, fault", FAULTS, ids=[f"{idiom.name}: {fault.name}" for idiom, fault in FAULTS]
)
def test_broken_twin_is_caught(idiom: Idiom, fault: Fault, order: str) -> None:
    assert fault.old in idiom.code, "the fault no longer fits the source"
    kernel = build(idiom, idiom.code.replace(fault.old, fault.new))
    with pytest.raises(KernelError) as caught:
        idiom.launch(lambda *args, **options: kernel(*args, order=order, time_limit=0.3, **options))
    kinds = caught.value.kinds
    assert any(kind.startswith(fault.kind) for kind in kinds), f"{kinds} lacks {fault.kind}"
    sites = {problem.site for problem in caught.value.problems}
    if fault.kind != "timeout":  # which may strike inside an intrinsic
        assert any(site.startswith("idiom.cu:") for site in sites), f"no source line in {sites}"
