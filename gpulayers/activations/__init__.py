"""Activation functions and their first two derivatives, on NumPy or CuPy arrays.

Each stands as ``fn``, ``grad`` and ``grad2`` of the pre-activation, next to each other. Results are
new arrays on the input's library and of its dtype. Nothing overflows on the way to a finite result,
so no warnings. float16 and bfloat16 are computed in float32 and rounded once.

At a kink (a point without a derivative) ``grad`` is the slope named in the class's docstring. NaN
gives NaN in ``fn``; in the derivatives too, except where they are constants picked by comparing
(ReLU, LeakyReLU, HardSigmoid, Affine).
"""

from gpulayers.activations._base import ActivationBase
from gpulayers.activations.bounded import HardSigmoid, Sigmoid, Tanh
from gpulayers.activations.gelu import GELU
from gpulayers.activations.rectifiers import ELU, SELU, LeakyReLU, ReLU, SoftPlus
from gpulayers.activations.straight import Affine, Exponential, Identity

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "ActivationBase",
    "Affine",
    "Exponential",
    "HardSigmoid",
    "Identity",
    "LeakyReLU",
    "ReLU",
    "Sigmoid",
    "SoftPlus",
    "Tanh",
]
