"""Which kernels of the large tiles the tests compile, unless ``GPULAYERS_TEST_CASES=all``.

The kernels of gemm.cu, conv.cu and conv_step.cu are the same code for every tile and dtype of
large.cuh, those whose blocks run together for every dtype, and a second each to compile: by default
each kernel, each tile and each dtype is met once or twice; of conv_step.cu, whose parts are met in
others, two tiles.
The other kernels all run; half of their instances are compiled by NVRTC too.
"""

from __future__ import annotations

import os

from gpulayers.cuda import table

ALL = bool(os.environ.get("GPULAYERS_TEST_CASES"))
_SAMPLED = {
    ("gemm_tall", "float32"),
    ("gemm_large", "float32"),
    ("gemm_tensor", "float16"),
    ("gemm_tensor_large", "float32"),
    ("dense_backward_tensor", "bfloat16"),
    ("conv2d_forward_tensor", "float32"),
    ("conv2d_input_grad_tensor", "bfloat16"),
    ("conv2d_weight_grad_tensor", "float32"),
    ("rnn_group_forward", "float32"),
    ("rnn_group_backward", "float16"),
    ("lstm_group_forward", "float32"),
    ("lstm_group_backward", "float32"),
    ("gru_group_forward", "bfloat16"),
    ("gru_group_backward", "float32"),
    ("rnn_group_forward_tensor", "float16"),
    ("rnn_group_backward_tensor", "bfloat16"),
    ("lstm_group_forward_tensor", "float32"),
    ("lstm_group_backward_tensor", "float32"),
    ("gru_group_forward_tensor", "bfloat16"),
    ("gru_group_backward_tensor", "float32"),
    ("conv2d_moments", "float32"),
    ("conv2d_moments_tensor", "float16"),
    ("conv2d_backward", "float32"),
    ("conv2d_backward_tensor", "bfloat16"),
}


def met(spec: table.KernelSpec, dtype: str) -> bool:
    """Whether the tests meet a kernel's instances of a dtype."""
    few = spec.runs or spec.cooperative or spec.file == "conv_step.cu"
    return ALL or not few or (spec.name, dtype) in _SAMPLED


def dtypes_met(spec: table.KernelSpec) -> set[str]:
    """The dtypes in which the tests meet a kernel."""
    return {dtype for dtype in spec.dtypes if met(spec, dtype)}


def instances(file: str, capability: int = 10**6, large: bool | None = None) -> tuple[str, ...]:
    """The name expressions of a source that the tests meet, on a device of this compute
    capability; of the large tiles, of the others, or of both (None)."""
    return tuple(
        dict.fromkeys(
            spec.expression(dtype, index)
            for spec in table.KERNELS.values()
            if spec.file == file and spec.oldest <= capability and large in (None, spec.runs)
            for dtype in spec.dtypes
            if met(spec, dtype)
            for index in table.INDEX_TYPES
        )
    )


def compiled(file: str, capability: int) -> tuple[str, ...]:
    """Of those, the ones that NVRTC compiles for the tests: unless all are asked for, a kernel's
    dtypes with 32-bit and 64-bit indices in turn."""
    if ALL:
        return instances(file, capability)
    indices = tuple(table.INDEX_TYPES)
    return tuple(
        dict.fromkeys(
            spec.expression(dtype, indices[k % len(indices)])
            for spec in table.KERNELS.values()
            if spec.file == file and spec.oldest <= capability
            for k, dtype in enumerate(d for d in spec.dtypes if met(spec, d))
        )
    )
