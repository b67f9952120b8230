"""Kernels of planned training steps: convolution, batch normalisation and dropout with what
surrounds them."""

from __future__ import annotations

from gpulayers.cuda.spec import ARRAY, INDEX, INT, REAL, WINDOW, WORD, KernelSpec
from gpulayers.cuda.table_tiles import CORES, tiled

_MAP = "{T}, {Acc}, {Index}"
_WIDE = ("float32", "float64")

SPECS = (
    # ---- conv_step.cu
    *tiled(
        *("conv2d_moments", "conv_step.cu", (*(ARRAY,) * 8, *(INT,) * 4, *WINDOW)),
        counts=True,
    ),
    *tiled(
        *("conv2d_backward", "conv_step.cu", (*(ARRAY,) * 16, *(INT,) * 16, *WINDOW)),
        counts=True,
        codes=True,
    ),
    KernelSpec(
        "unpool2d",
        "conv_step.cu",
        "unpool2d<{T}, {Index}, {Vec}>",
        (*(ARRAY,) * 3, INDEX, *(INT,) * 3),
        dtypes=CORES,
    ),
    KernelSpec(
        "pad_channels",
        "conv_step.cu",
        "pad_channels<{T}, {Index}, {Vec}>",
        (*(ARRAY,) * 2, INDEX, *(INT,) * 2),
        dtypes=CORES,
    ),
    # ---- example_conv.cu
    KernelSpec(
        "example_conv_forward",
        "example_conv.cu",
        "example_conv_forward<{T}>",
        (*(ARRAY,) * 5, INT),
        dtypes=CORES,
        barriers=True,
    ),
    KernelSpec(
        "example_conv_backward",
        "example_conv.cu",
        "example_conv_backward<{T}>",
        (*(ARRAY,) * 6, INT, INT),
        dtypes=CORES,
        barriers=True,
    ),
    # ---- norm.cu
    KernelSpec(
        "norm_forward",
        "norm.cu",
        f"norm_forward<{_MAP}>",
        (*(ARRAY,) * 12, *(INDEX,) * 5, *(INT,) * 8, *(REAL,) * 3),
        barriers=True,
    ),
    KernelSpec(
        "norm_gradient_sums",
        "norm.cu",
        f"norm_gradient_sums<{_MAP}>",
        (*(ARRAY,) * 8, *(INDEX,) * 2, *(INT,) * 6),
        barriers=True,
    ),
    KernelSpec(
        "norm_input_grad",
        "norm.cu",
        f"norm_input_grad<{_MAP}>",
        (*(ARRAY,) * 9, *(INDEX,) * 2, *(INT,) * 7, REAL),
        barriers=True,
    ),
    # ---- dropout.cu
    KernelSpec(
        "dropout_forward",
        "dropout.cu",
        f"dropout_forward<{_MAP}>",
        (*(ARRAY,) * 4, INDEX, INDEX, INT, REAL, REAL),
    ),
    KernelSpec(
        "dropout_backward",
        "dropout.cu",
        f"dropout_backward<{_MAP}>",
        (*(ARRAY,) * 4, INDEX, REAL),
    ),
    # ---- gate.cu
    KernelSpec("gate_forward", "gate.cu", f"gate_forward<{_MAP}>", (*(ARRAY,) * 2, INDEX, INT)),
    KernelSpec("gate_backward", "gate.cu", f"gate_backward<{_MAP}>", (*(ARRAY,) * 3, INDEX, INT)),
    # ---- softmax.cu
    KernelSpec(
        "cross_entropy_step",
        "softmax.cu",
        f"cross_entropy_step<{_MAP}>",
        (*(ARRAY,) * 5, INDEX, INT, INT, REAL, REAL),
    ),
    KernelSpec(
        "weighted_cross_entropy_step",
        "softmax.cu",
        f"weighted_cross_entropy_step<{_MAP}>",
        (*(ARRAY,) * 6, INDEX, *(INT,) * 5, WORD, REAL),
    ),
    KernelSpec(
        "squared_error_step",
        "softmax.cu",
        f"squared_error_step<{_MAP}>",
        (*(ARRAY,) * 5, INDEX, INT, INT),
    ),
    # ---- flat.cu, judge.cu: all parameters in one
    KernelSpec(
        "sum_sections",
        "flat.cu",
        "sum_sections<{Acc}>",
        (*(ARRAY,) * 4, *(INT,) * 2),
        dtypes=_WIDE,
    ),
    KernelSpec(
        "flat_update",
        "flat.cu",
        "flat_update<{T}, {Acc}>",
        (*(ARRAY,) * 11, *(INT,) * 4, *(REAL,) * 10),
    ),
    KernelSpec(
        "finish_loss",
        "flat.cu",
        "finish_loss<{Acc}>",
        (*(ARRAY,) * 3, INT, REAL),
        dtypes=_WIDE,
        barriers=True,
    ),
    KernelSpec(
        "survey_gradients",
        "judge.cu",
        "survey_gradients<{Acc}>",
        (*(ARRAY,) * 6, INT, REAL, REAL, REAL),
        dtypes=_WIDE,
        barriers=True,
    ),
    KernelSpec(
        "judge_gradients",
        "judge.cu",
        "judge_gradients<{Acc}>",
        (*(ARRAY,) * 9, *(INT,) * 5, *(REAL,) * 3),
        dtypes=_WIDE,
        barriers=True,
    ),
)
