"""The activations that the kernels of planned steps take along; needs no CuPy."""

from __future__ import annotations

from typing import Any

from gpulayers.cuda import table

__all__ = ["RELU", "Formula", "constants", "formula_of", "is_told_by_value"]

#: an activation's ``kernel``: its name, alpha and beta
Formula = tuple[str, float, float]
RELU: Formula = ("relu", 0.0, 0.0)

# Those whose slope follows from their value (`slope_at_value`). They rise everywhere, so that the
# largest of some values is that of the largest input; the last ones only if alpha > 0.
_BY_VALUE = ("relu", "sigmoid", "tanh", "exponential", "selu", "softplus")
_BY_VALUE_IF_RISING = ("leaky_relu", "elu")


def formula_of(act: Any) -> Formula | None:
    """The formula of an activation; None for identity, and where kernels have no code for it."""
    formula = getattr(act, "kernel", None)
    known = formula is not None and formula[0] in table.ACTIVATIONS and formula[0] != "identity"
    return formula if known else None


def is_told_by_value(formula: Formula) -> bool:
    """Whether the slope follows from the value, and the values rise with the inputs."""
    name, alpha, _ = formula
    return name in _BY_VALUE or (name in _BY_VALUE_IF_RISING and alpha > 0)


def constants(formula: Formula | None, special: str = "") -> str:
    """Constants for `compile.get_kernel`: those of the shape, `special`, and the activation that
    the kernel takes along."""
    if formula is None or formula[0] == "relu":  # which kernels have as they are
        return special
    name, alpha, beta = formula
    number = table.ACTIVATIONS.index(name)
    return f"{special};FUSED={number};FUSED_ALPHA={alpha!r};FUSED_BETA={beta!r}"
