"""The PTX that NVRTC makes of the kernels, inline PTX and all, interpreted and compared with loops
in float64: of each family something, of the tensor cores every way that factors lie. With
``GPULAYERS_TEST_CASES=all`` every case of every kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.kernels import (
    cases_activation,
    cases_batchnorm,
    cases_conv,
    cases_conv_few,
    cases_conv_step,
    cases_dropout,
    cases_flat,
    cases_gemm,
    cases_im2col,
    cases_norm,
    cases_pool,
    cases_random,
    cases_sequence,
    cases_softmax,
)
from tests.kernels.arrays import Launcher
from tests.kernels.cases import CASES, case_name
from tests.kernels.launchers import PtxLauncher
from tests.support import sample

Case = Callable[[Launcher], None]
_case: Any = functools.partial
USUAL = {"dtype": "float32", "index": "int32"}
HALF = {"dtype": "float16", "index": "int64"}
#: two groups of blocks, the second of one example; the third block of a group has one unit
GROUPS = {"which": 2, "size": (2, 3, 9), "block": 64, "groups": (4, 2, 8)}

CHOSEN: list[Case] = [
    # products by tensor cores: fragments by ldmatrix, by its transposes, and by words
    _case(cases_gemm.product, size=(9, 8, 104), name="gemm_nn_tensor", dtype="float16", apart=8),
    _case(cases_gemm.dense_backward, size=(40, 12, 36), name="dense_backward_tensor", parts=2),
    # convolutions by them; the winners of pooling come by copies of 4 bytes
    _case(cases_conv.forward, g=cases_conv.RUNS_POOLED, name="conv2d_forward_tensor", pooled=True),
    _case(
        cases_conv_step.backward,
        g=cases_conv_step.RUNS,
        name="conv2d_backward_tensor",
        pooled=True,
    ),
    # compiled for a geometry of few taps: both ways by bits
    _case(
        cases_conv.forward,
        g=cases_conv_few.GEOMETRIES["dilated"],
        name="conv2d_forward_tensor",
        special=True,
    ),
    _case(
        cases_conv_step.backward,
        g=cases_conv_few.GEOMETRIES["padding beyond the kernel"],
        name="conv2d_backward_tensor",
        special=True,
    ),
    # products by warpgroups: each way that factors lie, and winners
    *(
        _case(cases_gemm.product, size=size, name=name, layout=name[5:7], dtype=dtype)
        for size, name, dtype in (
            ((9, 72, 264), "gemm_nn_warpgroup", "float16"),
            ((12, 72, 200), "gemm_nt_warpgroup_large", "bfloat16"),
            ((264, 136, 136), "gemm_tn_warpgroup_large", "float16"),
        )
    ),
    _case(
        cases_conv_step.backward,
        g=cases_conv_step.MANY,
        name="conv2d_backward_warpgroup",
        dtype="bfloat16",
        pooled=True,
    ),
    # blocks that wait for one another
    _case(cases_sequence.forward, kind="rnn", dtype="bfloat16", by="_tensor", **GROUPS),
    _case(cases_sequence.backward, kind="lstm", by="_tensor", **GROUPS),
    # recurrent weights as fragments in registers
    *(
        _case(f, kind=kind, which=which, size=(2, 3, 17), dtype=dtype, index=index)
        for f, kind, which, dtype, index in (
            (cases_sequence.forward, "lstm", cases_sequence.TWO, "float16", "int32"),
            (cases_sequence.backward, "gru", cases_sequence.EIGHT, "bfloat16", "int64"),
        )
    ),
    # the other families
    _case(cases_gemm.product, size=(66, 5, 19), extras=True),
    _case(cases_conv.weight_grad, g=cases_conv.SKEW, index="int64", parts=2),
    _case(cases_im2col.im2col, g=cases_im2col.WIDE_ROWS, vector=True, **HALF),
    _case(cases_im2col.gather, g=cases_im2col.WIDE_ROWS, vector=True, **USUAL),
    _case(cases_im2col.scatter, g=cases_im2col.SKEW, **USUAL),
    _case(cases_pool.max_forward, g=cases_pool.OVERLAP, kind="nan", **HALF),
    _case(cases_pool.max_backward, g=cases_pool.OVERLAP, **USUAL),
    _case(cases_activation.forward, name="gelu_tanh", **USUAL),
    _case(cases_activation.forward, name="gelu_erf", dtype="float64", index="int64"),
    _case(cases_softmax.loss, rows=3, classes=300, long=True, **USUAL),
    _case(cases_softmax.backward, rows=9, classes=13, long=False, **HALF),
    _case(cases_batchnorm.moments, rows=45, channels=5, width=8, span=20, **USUAL),
    _case(cases_norm.forward, shape=cases_norm.IMAGES, relu=True, **USUAL),
    _case(cases_flat.update, rule="adam", treated=True, **HALF),
    _case(cases_random.words, n=7, counter=2**64 - 2, index="int32"),
    _case(cases_dropout.dropped, n=19, offset=2, masked=True, dtype="bfloat16", index="int64"),
]
if sample.ALL:
    CHOSEN += [case for cases in CASES.values() for case in cases]


#: of sm_80 bfloat16 is converted by shifts, of the others by instructions of their own
ARCHITECTURES = ("compute_90", "compute_80", "compute_120")


@pytest.fixture(scope="module", params=ARCHITECTURES if sample.ALL else ARCHITECTURES[:1])
def launcher(compiler: None, request: pytest.FixtureRequest) -> PtxLauncher:
    return PtxLauncher(cases=CHOSEN, architecture=request.param)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{k}-{case_name(c)}") for k, c in enumerate(CHOSEN)]
)
def test_as_ptx(case: Case, launcher: PtxLauncher) -> None:
    before = launcher.steps
    case(launcher)
    assert launcher.steps > before
