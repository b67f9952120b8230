"""Faults planted in the kernels are seen in their PTX. `emulated`: whether the emulator sees them
too (tests.support.cuda_on_cpu); with ``GPULAYERS_TEST_CASES=all`` that is tried. The others run by
default: nothing else sees them without a device."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest

from gpulayers.cuda.compile import load_source
from tests.kernels import cases_conv_step, cases_gemm, cases_sequence
from tests.kernels.launchers import EmulatedLauncher, PtxLauncher
from tests.kernels.test_ptx import GROUPS, Case
from tests.support import nvrtc, sample
from tests.support.cuda_on_cpu import CompileError, KernelError
from tests.support.ptx import PtxError

_case: Any = functools.partial
HALF = _case(cases_gemm.product, size=(9, 8, 104), name="gemm_nn_tensor", dtype="float16")
TF32 = _case(cases_gemm.product, size=(5, 12, 68), name="gemm_nt_tensor", layout="nt", extras=True)
POOLED = _case(
    cases_conv_step.backward,
    g=cases_conv_step.RUNS,
    name="conv2d_backward_tensor",
    dtype="bfloat16",
    pooled=True,
)
GROUPS_OF_WARPS = _case(
    cases_gemm.product, size=(9, 72, 584), name="gemm_nn_warpgroup", dtype="float16"
)
STATES = _case(cases_sequence.forward, kind="rnn", dtype="bfloat16", by="_tensor", **GROUPS)


class Fault(NamedTuple):
    """`kind` of error, "" where only the results are wrong."""

    file: str
    case: Case
    old: str
    new: str
    kind: str = ""
    emulated: bool = True


SUMS = '"{0}f"(d0), "{0}f"(d1), "{0}f"(d2), "{0}f"(d3)'
FAULTS = {
    # of the asm statements themselves
    "sums that only come out": Fault(
        "gemm.cu", HALF, SUMS.format("+"), SUMS.format("="), emulated=False
    ),
    "two words of a change places": Fault("gemm.cu", HALF, "{%4,%5,%6,%7}", "{%4,%6,%5,%7}"),
    "the words of b change places": Fault("gemm.cu", HALF, "{%8,%9}", "{%9,%8}"),
    "the other half type": Fault("gemm.cu", HALF, ".f32.f16.f16.f32", ".f32.bf16.bf16.f32"),
    "no transposes": Fault("gemm.cu", HALF, "x4.trans.shared", "x4.shared"),
    "zeros for what is there": Fault("gemm.cu", TF32, "there ? 16 : 0", "there ? 0 : 16"),
    "no number of bytes": Fault("gemm.cu", TF32, "[%0], [%1], 16, %2;", "[%0], [%1], 16;"),
    "a copy of too many bytes": Fault(
        "conv_step.cu", POOLED, '"n"(BYTES)', '"n"(16)', "misaligned-access"
    ),
    "generic addresses for shared ones": Fault(
        "gemm.cu",
        TF32,
        "__cvta_generic_to_shared(place)",
        "reinterpret_cast<unsigned long long>(place)",
        "out-of-bounds",
    ),
    "half of an address": Fault(
        "gemm.cu",
        TF32,
        '"l"(from), "r"(there ? 16',
        '"l"(0xffffffff & reinterpret_cast<unsigned long long>(from)), "r"(there ? 16',
        "out-of-bounds",
    ),
    # of products by warpgroups
    "no word to them that something is written": Fault(
        "gemm.cu", GROUPS_OF_WARPS, "show_to_products();\n", "\n", "hidden-from-products"
    ),
    "no fence before them": Fault(
        "gemm.cu", GROUPS_OF_WARPS, "begin_products();\n", "\n", "no-product-fence"
    ),
    "another swizzle": Fault(
        "gemm.cu", GROUPS_OF_WARPS, "swizzled << 62", "swizzled << 63", "product-descriptor"
    ),
    "runs at places of their own": Fault(
        "gemm.cu", GROUPS_OF_WARPS, "(run % 8 ^ row % 8)", "(run % 8)"
    ),
    "the first 8 terms twice": Fault(
        "gemm.cu", GROUPS_OF_WARPS, "GROUP_PATTERN, GROUP_BYTES);", "0, GROUP_BYTES);"
    ),
    "a stage that is still multiplied asked for": Fault(
        "gemm.cu",
        GROUPS_OF_WARPS,
        "wait_for_products<1>();",
        "wait_for_products<3>();",
        "product-source-changed",
    ),
    # of what is around them
    "states by the read-only path": Fault(
        "sequence_rnn.cu", STATES, "__ldcg(", "__ldg(", "read-only-path", emulated=False
    ),
    "numbers as they are": Fault(
        "gemm.cu", TF32, "to_tf32(fragment.word[h][i])", "fragment.word[h][i]"
    ),
    "one stage too many on its way": Fault(
        "gemm.cu", TF32, "groups<STAGES - 2>", "groups<STAGES - 1>", "copy-under-way"
    ),
    "groups that do not end": Fault(
        "gemm.cu", TF32, '"cp.async.commit_group;"', '""', "copy-under-way"
    ),
    "no barrier for a stage": Fault(
        "gemm.cu", TF32, "        __syncthreads();\n    };", "    };", "race-in-block"
    ),
    "fours at any address": Fault(
        "gemm.cu",
        _case(cases_gemm.product, size=(6, 8, 4), askew=True),
        "lies_at<sizeof(T) * OWN>(target.values)",
        "true",
        "misaligned-access",
    ),
}
CHOSEN = [name for name, fault in FAULTS.items() if sample.ALL or not fault.emulated]


@pytest.fixture(scope="module")
def ptx() -> None:
    reason = nvrtc.unavailable_reason()
    if reason:
        pytest.skip(reason)


def sources(fault: Fault) -> dict[str, str]:
    code = load_source(fault.file)
    assert fault.old in code
    return {fault.file: code.replace(fault.old, fault.new)}


@pytest.mark.parametrize("name", CHOSEN)
def test_seen_in_the_ptx(ptx: None, name: str) -> None:
    fault = FAULTS[name]
    with pytest.raises((PtxError, AssertionError)) as caught:
        fault.case(PtxLauncher(sources(fault)))
    assert getattr(caught.value, "kind", "") == fault.kind


if sample.ALL:

    @pytest.mark.emulated
    @pytest.mark.parametrize("name", FAULTS)
    def test_seen_on_the_cpu(name: str) -> None:
        fault = FAULTS[name]
        launcher = EmulatedLauncher(sources(fault))
        if not fault.emulated:
            fault.case(launcher)
            return
        with pytest.raises((KernelError, CompileError, AssertionError)):
            fault.case(launcher)
