"""Every kernel of this folder: its source file, block, parameters and template instances.

Read by the launchers, by the compile cache and by the tests; needs neither CuPy nor a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpulayers.cuda.spec import (
    ARRAY,
    C_TYPES,
    INDEX,
    INDEX_TYPES,
    INT,
    INT32_LIMIT,
    ITEM_SIZE,
    REAL,
    VECTOR_BYTES,
    WINDOW,
    WINDOW_NAMES,
    WORD,
    KernelSpec,
)
from gpulayers.cuda.table_feed import SPECS as _FEED
from gpulayers.cuda.table_group import SPECS as _GROUP
from gpulayers.cuda.table_plan import SPECS as _PLAN
from gpulayers.cuda.table_sequence import SPECS as _SEQUENCE
from gpulayers.cuda.table_tiles import BATCHES_WITHOUT, FORMS, tiled

__all__ = [
    "ACTIVATIONS",
    "ARRAY",
    "C_TYPES",
    "DEFINES",
    "FILES",
    "INDEX",
    "INDEX_TYPES",
    "INT",
    "INT32_LIMIT",
    "ITEM_SIZE",
    "KERNELS",
    "REAL",
    "VECTOR_BYTES",
    "WINDOW",
    "WINDOW_NAMES",
    "WORD",
    "KernelSpec",
    "index_for",
    "instances",
    "options",
]

#: defines that a source needs for a dtype (the half headers cost compile time, so only on demand)
DEFINES = {"float16": ("-DGPULAYERS_FLOAT16",), "bfloat16": ("-DGPULAYERS_BFLOAT16",)}

#: numbers of the activations in activation_functions.cuh
ACTIVATIONS = (
    "identity",
    "sigmoid",
    "relu",
    "leaky_relu",
    "gelu_tanh",
    "gelu_erf",
    "tanh",
    "affine",
    "elu",
    "exponential",
    "selu",
    "hard_sigmoid",
    "softplus",
)


_MAP = "{T}, {Acc}, {Index}"
_A2, _A3 = (ARRAY,) * 2, (ARRAY,) * 3
_ACT = (INT, REAL, REAL)

_SPECS = (
    # ---- im2col.cu; the _vector forms move 16 bytes a thread (channels a multiple of that)
    KernelSpec("im2col", "im2col.cu", "im2col<{T}, {Index}, 1>", (*_A2, INDEX, *WINDOW)),
    KernelSpec("im2col_vector", "im2col.cu", "im2col<{T}, {Index}, {Vec}>", (*_A2, INDEX, *WINDOW)),
    KernelSpec("col2im_gather", "im2col.cu", f"col2im_gather<{_MAP}, 1>", (*_A2, INDEX, *WINDOW)),
    KernelSpec(
        "col2im_gather_vector",
        "im2col.cu",
        f"col2im_gather<{_MAP}, {{Vec}}>",
        (*_A2, INDEX, *WINDOW),
    ),
    KernelSpec(
        "col2im_scatter",
        "im2col.cu",
        f"col2im_scatter<{_MAP}>",
        (*_A2, INDEX, *WINDOW),
        atomics=True,
    ),
    # ---- pool.cu
    KernelSpec(
        "max_pool2d_forward", "pool.cu", f"max_pool2d_forward<{_MAP}>", (*_A3, INDEX, *WINDOW)
    ),
    KernelSpec(
        "max_pool2d_backward", "pool.cu", f"max_pool2d_backward<{_MAP}>", (*_A3, INDEX, *WINDOW)
    ),
    KernelSpec(
        "avg_pool2d_forward", "pool.cu", f"avg_pool2d_forward<{_MAP}>", (*_A2, INDEX, *WINDOW)
    ),
    KernelSpec(
        "avg_pool2d_backward", "pool.cu", f"avg_pool2d_backward<{_MAP}>", (*_A2, INDEX, *WINDOW)
    ),
    # ---- activation.cu
    KernelSpec("bias_add", "activation.cu", f"bias_add<{_MAP}>", (*_A2, INDEX, INT)),
    KernelSpec("bias_relu", "activation.cu", f"bias_relu<{_MAP}>", (*_A2, INDEX, INT)),
    KernelSpec(
        "bias_activation", "activation.cu", f"bias_activation<{_MAP}>", (*_A3, INDEX, INT, *_ACT)
    ),
    KernelSpec(
        "activation_forward", "activation.cu", f"activation_forward<{_MAP}>", (*_A2, INDEX, *_ACT)
    ),
    KernelSpec(
        "activation_backward", "activation.cu", f"activation_backward<{_MAP}>", (*_A3, INDEX, *_ACT)
    ),
    KernelSpec(
        "activation_backward_by_value",
        "activation.cu",
        f"activation_backward_by_value<{_MAP}>",
        (*_A3, INDEX, *_ACT),
    ),
    # the bias gradient: partial sums in Acc, then their sums; or in one pass
    KernelSpec(
        "column_sums",
        "activation.cu",
        "column_sums<{T}, {T}, {Acc}, {Index}>",
        (*_A2, INDEX, INT, INT),
        barriers=True,
    ),
    KernelSpec(
        "column_sums_partial",
        "activation.cu",
        "column_sums<{T}, {Acc}, {Acc}, {Index}>",
        (*_A2, INDEX, INT, INT),
        barriers=True,
    ),
    KernelSpec(
        "column_sums_final",
        "activation.cu",
        "column_sums<{Acc}, {T}, {Acc}, {Index}>",
        (*_A2, INDEX, INT, INT),
        barriers=True,
    ),
    # ---- gemm.cu
    *tiled("gemm", "gemm.cu", (*(ARRAY,) * 6, *(INT,) * 12), forms=FORMS),
    *tiled("batched_gemm", "gemm.cu", (*_A3, *(INT,) * 5), without=BATCHES_WITHOUT, forms=FORMS),
    *tiled("dense_backward", "gemm.cu", (*(ARRAY,) * 5, *(INT,) * 7), without=("_narrow",)),
    KernelSpec("sum_parts", "gemm.cu", f"sum_parts<{_MAP}>", (*(ARRAY,) * 4, INDEX, *(INT,) * 5)),
    # ---- conv.cu
    *(
        spec
        for name, arrays, numbers in (
            ("conv2d_forward", 5, 6),
            ("conv2d_input_grad", 3, 2),
            ("conv2d_weight_grad", 4, 4),
        )
        for spec in tiled(name, "conv.cu", (*(ARRAY,) * arrays, *(INT,) * numbers, *WINDOW))
    ),
    # ---- softmax.cu; the _long forms give a row to a whole block instead of a warp
    *(
        KernelSpec(
            name + suffix,
            "softmax.cu",
            f"{name}<{_MAP}, {lanes}>",
            (*(ARRAY,) * arrays, INDEX, INT),
            barriers=lanes > 32,
        )
        for suffix, lanes in (("", 32), ("_long", 256))
        for name, arrays in (
            ("softmax_forward", 2),
            ("softmax_backward", 3),
            ("softmax_cross_entropy_forward", 4),
        )
    ),
    KernelSpec(
        "softmax_cross_entropy_backward",
        "softmax.cu",
        f"softmax_cross_entropy_backward<{_MAP}>",
        (*_A3, INDEX, INT, REAL),
    ),
    KernelSpec(
        "softmax_cross_entropy_both",
        "softmax.cu",
        f"softmax_cross_entropy_both<{_MAP}, 32>",
        (*(ARRAY,) * 4, INDEX, INT, REAL),
    ),
    # ---- standardize.cu; as softmax.cu
    *(
        KernelSpec(
            name + suffix,
            "standardize.cu",
            f"{name}<{_MAP}, {lanes}>",
            parameters,
            barriers=lanes > 32,
        )
        for suffix, lanes in (("", 32), ("_long", 256))
        for name, parameters in (
            ("standardize_forward", (*(ARRAY,) * 6, INDEX, *(INT,) * 3, REAL, INT)),
            ("standardize_backward", (*(ARRAY,) * 5, INDEX, *(INT,) * 4)),
        )
    ),
    # ---- batchnorm.cu
    KernelSpec(
        "column_moments",
        "batchnorm.cu",
        f"column_moments<{_MAP}>",
        (*_A3, INDEX, INT, INT, INDEX),
        barriers=True,
    ),
    KernelSpec(
        "batchnorm_statistics",
        "batchnorm.cu",
        f"batchnorm_statistics<{_MAP}>",
        (*(ARRAY,) * 8, INDEX, INDEX, INT, REAL),
        barriers=True,
    ),
    KernelSpec(
        "batchnorm_forward",
        "batchnorm.cu",
        f"batchnorm_forward<{_MAP}>",
        (*(ARRAY,) * 7, INDEX, INT),
    ),
    KernelSpec(
        "gradient_sums",
        "batchnorm.cu",
        f"gradient_sums<{_MAP}>",
        (*_A3, INDEX, INT, INT, INDEX),
        barriers=True,
    ),
    KernelSpec(
        "batchnorm_backward",
        "batchnorm.cu",
        f"batchnorm_backward<{_MAP}>",
        (*(ARRAY,) * 6, INDEX, INT, REAL),
    ),
    # ---- embedding.cu
    KernelSpec(
        "embedding_forward",
        "embedding.cu",
        f"embedding_forward<{_MAP}>",
        (*_A3, INDEX, INT, INDEX),
    ),
    KernelSpec(
        "embedding_backward",
        "embedding.cu",
        f"embedding_backward<{_MAP}>",
        (*_A3, INT, INT, INDEX),
    ),
    # ---- update.cu
    KernelSpec("sgd_update", "update.cu", f"sgd_update<{_MAP}>", (*_A3, INDEX, *(REAL,) * 2)),
    KernelSpec(
        "adagrad_update", "update.cu", f"adagrad_update<{_MAP}>", (*_A3, INDEX, *(REAL,) * 2)
    ),
    KernelSpec(
        "rmsprop_update", "update.cu", f"rmsprop_update<{_MAP}>", (*_A3, INDEX, *(REAL,) * 4)
    ),
    KernelSpec(
        "adam_update",
        "update.cu",
        f"adam_update<{_MAP}>",
        (*(ARRAY,) * 4, INDEX, *(REAL,) * 7),
    ),
    # ---- recurrent.cu
    KernelSpec(
        "rnn_step_forward",
        "recurrent.cu",
        f"rnn_step_forward<{_MAP}>",
        (*(ARRAY,) * 6, INDEX, INT, *_ACT),
    ),
    KernelSpec(
        "rnn_step_backward",
        "recurrent.cu",
        f"rnn_step_backward<{_MAP}>",
        (*(ARRAY,) * 4, INDEX, *_ACT),
    ),
    *(
        KernelSpec(name, "recurrent.cu", f"{name}<{_MAP}>", (*(ARRAY,) * arrays, INDEX, INT))
        for name, arrays in (
            ("lstm_step_forward", 6),
            ("lstm_step_backward", 8),
            ("gru_step_forward", 6),
            ("gru_step_backward", 7),
        )
    ),
    # ---- random.cu: no storage type (float64 is a placeholder)
    KernelSpec(
        "philox_words",
        "random.cu",
        "philox_words<{Index}>",
        (ARRAY, INDEX, *(WORD,) * 4),
        dtypes=("float64",),
    ),
    *_FEED,
    *_PLAN,
    *_SEQUENCE,
    *_GROUP,
)

#: name -> KernelSpec
KERNELS = {spec.name: spec for spec in _SPECS}
#: the source files, in order
FILES = tuple(dict.fromkeys(spec.file for spec in _SPECS))


def index_for(*sizes: int) -> str:
    """Return the index type that reaches every element of arrays of these sizes."""
    return "int32" if max(sizes) <= INT32_LIMIT else "int64"


def instances(file: str, dtypes: Sequence[str] = tuple(C_TYPES)) -> tuple[str, ...]:
    """Return the name expressions of all kernels of `file` for these dtypes, without repeats."""
    return tuple(
        dict.fromkeys(
            spec.expression(dtype, index)
            for spec in _SPECS
            if spec.file == file
            for dtype in spec.dtypes
            if dtype in dtypes
            for index in INDEX_TYPES
        )
    )


def options(*dtypes: str) -> tuple[str, ...]:
    """Return the compiler options for instances of these dtypes."""
    return ("-std=c++17", *(define for d in dtypes for define in DEFINES.get(d, ())))
