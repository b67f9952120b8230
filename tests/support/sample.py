"""Which kernels of the large tiles the tests compile, unless ``GPULAYERS_TEST_CASES=all``.

The kernels of gemm.cu, conv.cu and conv_step.cu are the same code for every tile and dtype of
large.cuh, those whose blocks run together for every dtype, and a second each to compile: by default
each kernel, each tile and each dtype is met once or twice; of conv_step.cu, whose parts are met in
others, two tiles.
The other kernels all run. NVRTC compiles each kernel in float32 and in one of its other dtypes,
another one for the next kernel; of the large tiles of gemm.cu, a third of NVRTC's time, it leaves
out two.
"""

from __future__ import annotations

import os

from gpulayers.cuda import table

ALL = bool(os.environ.get("GPULAYERS_TEST_CASES"))
_SAMPLED = {
    ("gemm_tall", "float32"),
    ("gemm_large", "float32"),
    ("gemm_nn_tensor", "float16"),
    ("gemm_nt_tensor", "float32"),
    ("gemm_tn_tensor_large", "float32"),
    ("gemm_nn_tensor_tall", "bfloat16"),
    ("dense_backward_tensor", "bfloat16"),
    ("conv2d_forward_tensor", "float32"),
    ("conv2d_input_grad_tensor", "bfloat16"),
    ("conv2d_weight_grad_tensor", "float32"),
    ("conv2d_weight_grad_tensor_tall", "float16"),
    ("rnn_group_forward", "float32"),
    ("rnn_group_backward", "float16"),
    ("lstm_group_forward", "float32"),
    ("lstm_group_backward", "float32"),
    ("gru_group_forward", "bfloat16"),
    ("gru_group_backward", "float32"),
    ("rnn_group_forward_tensor", "float16"),
    ("rnn_group_forward_tensor", "float32"),
    ("rnn_group_backward_tensor", "bfloat16"),
    ("lstm_group_forward_tensor", "float32"),
    ("lstm_group_backward_tensor", "float32"),
    ("gru_group_forward_tensor", "bfloat16"),
    ("gru_group_backward_tensor", "float32"),
    ("sequence_weight_grad_tensor", "float32"),
    ("conv2d_moments", "float32"),
    ("conv2d_moments_tensor", "float16"),
    ("conv2d_backward", "float32"),
    ("conv2d_backward_tensor", "bfloat16"),
    ("conv2d_backward_tensor_tall", "float32"),
    ("pad_channels", "float32"),
    ("pad_channels", "float16"),
    ("pad_channels", "bfloat16"),
    ("unpool2d", "float32"),
    ("unpool2d", "float16"),
    ("unpool2d", "bfloat16"),
    ("gemm_nn_warpgroup", "float16"),
    ("gemm_nt_warpgroup_large", "bfloat16"),
    ("gemm_tn_warpgroup", "bfloat16"),
    ("gemm_nn_warpgroup_large", "float16"),
    ("conv2d_forward_warpgroup", "bfloat16"),
    ("conv2d_weight_grad_warpgroup_large", "float16"),
    ("conv2d_backward_warpgroup", "float16"),
}
#: of those, what runs on the CPU and is not compiled by NVRTC: one code with gemm_tall, gemm_tensor
_ONLY_RUN = {("gemm_large", "float32"), ("gemm_tensor_large", "float32")}


def met(spec: table.KernelSpec, dtype: str) -> bool:
    """Whether the tests meet a kernel's instances of a dtype."""
    few = spec.runs or spec.cooperative or spec.file == "conv_step.cu"
    return ALL or not few or (spec.name, dtype) in _SAMPLED


def dtypes_met(spec: table.KernelSpec) -> set[str]:
    """The dtypes in which the tests meet a kernel."""
    return {dtype for dtype in spec.dtypes if met(spec, dtype)}


def instances(
    file: str, architecture: str | None = None, large: bool | None = None
) -> tuple[str, ...]:
    """The name expressions of a source that the tests meet, for an architecture or all; of the
    large tiles, of the others, or of both (None)."""
    return tuple(
        dict.fromkeys(
            spec.expression(dtype, index)
            for spec in table.KERNELS.values()
            if spec.file == file and is_for(spec, architecture) and large in (None, spec.runs)
            for dtype in spec.dtypes
            if met(spec, dtype)
            for index in table.INDEX_TYPES
        )
    )


def is_for(spec: table.KernelSpec, architecture: str | None) -> bool:
    """Whether a kernel is compiled for an architecture, ``"sm_90"``; those that run on a single one
    are for that one's own, ``"sm_90a"``. None: for any."""
    if architecture is None:
        return True
    number = int(architecture.removeprefix("sm_").removesuffix("a"))
    return architecture.endswith("a") == bool(spec.only) and spec.runs_on(number)


def compiled(file: str, architecture: str) -> tuple[str, ...]:
    """Of those, the ones that NVRTC compiles for the tests: unless all are asked for, a kernel's
    dtypes with 32-bit and 64-bit indices in turn."""
    if ALL:
        return instances(file, architecture)
    indices = tuple(table.INDEX_TYPES)
    return tuple(
        dict.fromkeys(
            spec.expression(dtype, indices[(place + k) % len(indices)])
            for place, spec in enumerate(table.KERNELS.values())
            if spec.file == file and is_for(spec, architecture)
            for k, dtype in enumerate(dtypes_compiled(spec))
        )
    )


def dtypes_compiled(spec: table.KernelSpec) -> list[str]:
    """The dtypes in which NVRTC compiles a kernel for the tests."""
    found = [dtype for dtype in spec.dtypes if met(spec, dtype)]
    if ALL:
        return found
    found = [dtype for dtype in found if (spec.name, dtype) not in _ONLY_RUN]
    others = [dtype for dtype in found if dtype != "float32"]
    place = list(table.KERNELS).index(spec.name)
    chosen = others[place % len(others)] if others else None
    return [dtype for dtype in found if dtype in ("float32", chosen)]
