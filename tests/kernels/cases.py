"""Every case of every source: `CASES[file]` is a list of callables that take a launcher.

A case builds its arrays, launches kernels through ``launcher.launch(...)`` and raises if a result
is wrong. They are small, since the mutants of a source run all of its cases.
"""

from __future__ import annotations

from collections.abc import Callable

from gpulayers.cuda import table
from tests.kernels import (
    cases_activation,
    cases_batchnorm,
    cases_conv,
    cases_conv_few,
    cases_conv_step,
    cases_dropout,
    cases_embedding,
    cases_example_conv,
    cases_feed,
    cases_flat,
    cases_gate,
    cases_gemm,
    cases_im2col,
    cases_judge,
    cases_loss_step,
    cases_norm,
    cases_pool,
    cases_random,
    cases_recurrent,
    cases_sequence,
    cases_sequence_plan,
    cases_softmax,
    cases_squared_error,
    cases_standardize,
    cases_update,
)
from tests.kernels.arrays import Launcher
from tests.support import sample

CASES: dict[str, list[Callable[[Launcher], None]]] = {
    "im2col.cu": cases_im2col.CASES,
    "pool.cu": cases_pool.CASES,
    "activation.cu": cases_activation.CASES,
    "gemm.cu": cases_gemm.CASES,
    "conv.cu": [*cases_conv.CASES, *cases_conv_few.CASES["conv.cu"]],
    "conv_step.cu": [*cases_conv_step.CASES, *cases_conv_few.CASES["conv_step.cu"]],
    "softmax.cu": [
        *cases_softmax.CASES,
        *cases_loss_step.CASES,
        *cases_squared_error.CASES,
    ],
    "standardize.cu": cases_standardize.CASES,
    "batchnorm.cu": cases_batchnorm.CASES,
    "dropout.cu": cases_dropout.CASES,
    "gate.cu": cases_gate.CASES,
    "example_conv.cu": cases_example_conv.CASES,
    "norm.cu": cases_norm.CASES,
    "embedding.cu": cases_embedding.CASES,
    "flat.cu": cases_flat.CASES,
    "judge.cu": cases_judge.CASES,
    "feed.cu": cases_feed.CASES,
    "update.cu": cases_update.CASES,
    "recurrent.cu": cases_recurrent.CASES,
    **cases_sequence.CASES,
    "sequence_plan.cu": cases_sequence_plan.CASES,
    "random.cu": cases_random.CASES,
}


def _met(case: Callable[[Launcher], None]) -> bool:
    fixed = getattr(case, "keywords", {})
    spec = table.KERNELS.get(fixed.get("name", ""))
    return spec is None or sample.met(spec, fixed.get("dtype", "float32"))


CASES = {file: [case for case in cases if _met(case)] for file, cases in CASES.items()}


def case_name(case: Callable[[Launcher], None]) -> str:
    """A short name: the function and its fixed arguments."""
    function = getattr(case, "func", case)
    name = getattr(function, "__name__", None) or case_name(function)
    numbers = [str(v) for v in getattr(case, "keywords", {}).values() if not hasattr(v, "shape")]
    shapes = [
        "x".join(map(str, (*v.shape, *v.kernel)))
        for v in getattr(case, "keywords", {}).values()
        if hasattr(v, "shape")
    ]
    return "-".join([name, *shapes, *numbers]).replace(" ", "_")
