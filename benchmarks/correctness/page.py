"""The page: tables, and what they mean."""

from __future__ import annotations

import importlib
import os
import platform

import numpy as np

import gpulayers
from benchmarks.correctness import functions, layers
from benchmarks.correctness.layers import Subject
from benchmarks.correctness.measure import STEP, Row, cpu_engines
from tests.conftest import FLAVOUR_VARIABLE
from tests.support.cuda_on_cpu.toolchain import unavailable_reason

FAMILIES = ("layers", "modules", "wrappers", "losses", "activations")
NO_GRADIENT = {"DiscreteSampler": "draws noise for NCELoss"}

REFEREE = {  # what of PyTorch a class is compared with; "formula": autograd of the formula
    "Add": "formula",
    "BatchNorm1D": "batch_norm",
    "BatchNorm2D": "batch_norm",
    "BidirectionalLSTM": "nn.LSTM",
    "Conv1D": "conv1d",
    "Conv2D": "conv2d",
    "CrossEntropy": "cross_entropy",
    "Deconv2D": "conv_transpose2d",
    "DotProductAttention": "scaled_dot_product_attention",
    "Dropout": "formula, same mask",
    "Embedding": "embedding, embedding_bag",
    "Flatten": "reshape",
    "FullyConnected": "formula",
    "GRU": "nn.GRU",
    "GRUCell": "nn.GRU",
    "GlobalAvgPool2D": "adaptive_avg_pool2d",
    "GroupNorm": "group_norm",
    "LSTM": "nn.LSTM",
    "LSTMCell": "nn.LSTM",
    "LayerNorm1D": "layer_norm",
    "LayerNorm2D": "layer_norm",
    "MultiHeadedAttentionModule": "nn.MultiheadAttention",
    "Multiply": "formula",
    "NCELoss": "binary_cross_entropy_with_logits",
    "Pool2D": "max_pool2d, avg_pool2d",
    "RBM": "formula of the free energy",
    "RNN": "nn.RNN",
    "RNNCell": "nn.RNN",
    "SkipConnectionConvModule": "conv2d, batch_norm",
    "SkipConnectionIdentityModule": "conv2d, batch_norm",
    "Softmax": "softmax",
    "SoftmaxCrossEntropy": "cross_entropy",
    "SparseEvolution": "formula",
    "SquaredError": "mse_loss",
    "Upsample2D": "interpolate",
    "VAELoss": "binary_cross_entropy, kl_divergence",
    "WGAN_GPLoss": "formula",
    "WavenetResidualModule": "conv1d",
    "ZeroPad2D": "pad",
    # activations
    "Affine": "formula",
    "ELU": "elu",
    "Exponential": "exp",
    "GELU": "gelu",
    "HardSigmoid": "formula",
    "Identity": "formula",
    "LeakyReLU": "leaky_relu",
    "ReLU": "relu",
    "SELU": "selu",
    "Sigmoid": "sigmoid",
    "SoftPlus": "softplus",
    "Tanh": "tanh",
}


def all_subjects() -> list[Subject]:
    """Every case of every class."""
    return [*layers.subjects(), *functions.subjects()]


def public_names() -> dict[str, set[str]]:
    """The public classes of each family, abstract bases left out."""
    found = {}
    for family in FAMILIES:
        module = importlib.import_module(f"gpulayers.{family}")
        classes = {n: getattr(module, n) for n in module.__all__}
        found[family] = {
            n for n, c in classes.items() if isinstance(c, type) and not n.endswith("Base")
        }
    return found


def table(rows: list[Row]) -> str:
    """One line for each class."""
    lines = [
        "| class | cases | gradients of | numeric | where | PyTorch | compared with "
        "| stand-in | own CUDA kernels |",
        "|---|--:|---|--:|---|--:|---|--:|---|",
    ]
    for row in sorted(rows, key=lambda row: row.name.lower()):
        names = ", ".join(row.places)
        if len(row.places) > 11:
            names = f"{row.places[0]} and {len(row.places) - 1} more"
        referee, cases = REFEREE.get(row.name, "formula"), row.numeric.cases
        some = "" if row.torch.cases == cases else f" ({row.torch.cases} of {cases} cases)"
        cells = [
            f"`{row.name}`",
            str(cases),
            names,
            str(row.numeric),
            row.numeric.where,
            str(row.torch),
            f"{referee}{some}" if row.torch.cases else "",
            str(row.stand_in),
            ", ".join(sorted(row.kernels)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _largest(rows: list[Row]) -> str:
    """The largest number of each column, family by family."""
    lines = ["| | classes | cases | numeric | PyTorch | stand-in |", "|---|--:|--:|--:|--:|--:|"]
    for family in FAMILIES:
        mine = [row for row in rows if row.family == family]
        columns = []
        for column in ("numeric", "torch", "stand_in"):
            columns.append(str(max((getattr(r, column) for r in mine), key=lambda w: w.error)))
        cases = sum(row.numeric.cases for row in mine)
        lines.append(f"| {family} | {len(mine)} | {cases} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _versions(torch: bool, stand_in: bool) -> str:
    found = [f"gpulayers {gpulayers.__version__}", f"Python {platform.python_version()}"]
    found.append(f"NumPy {np.__version__}")
    if torch:
        import torch as library

        found.append(f"PyTorch {library.__version__}")
    missing = [] if torch else ["PyTorch was not installed"]
    missing += [] if stand_in else [f"the stand-in could not run: {unavailable_reason()}"]
    return ", ".join(found) + "".join(f"; {reason}" for reason in missing)


TEXT = """# Correctness, class by class

How right is each gradient? This page is written by one command,

```sh
python -m benchmarks.correctness
```

which measures every public layer, module, wrapper, loss and activation, with the cases of the tests
and more: {cases} cases, {gradients} gradients.
Made with {versions}.

{largest}

## What is measured

The error of an array `a` against another, `b`, is

    max |a - b| / max(max |a|, max |b|, 0.001 s)

over all entries, where `s` is the largest entry of all the gradients of the case (of its outputs,
for outputs). The last term is for gradients that are zero or next to it, by which nothing can be
divided; {floored} of the {gradients} gradients are measured by it. Some of them are zero by the
mathematics: the bias before a batch normalisation, the bias of an attention's keys. What is seen
there is rounding over `s / 1000`, and the largest numbers of the modules are of that kind.

- **numeric**: each gradient (of inputs, parameters, initial states) against central differences of
  the forward pass by the array formulas, in float64, for every single entry, with the step
  eps^(1/3) = {step:.1e}. The function is the sum of the outputs times fixed random numbers; a loss
  is its own function. The differences themselves are no better than about 1e-10, so that is what
  a perfect gradient shows. *where* names the array and the case of the largest error. All that
  compute on the CPU are measured, and the worst is shown: {engines}.
- **PyTorch**: outputs and gradients against PyTorch's, in float64. *formula* is PyTorch's autograd
  of the formula, where PyTorch has no such class; random masks are handed over. Where fewer cases
  than all are counted, the others have activations that PyTorch's class does not take.
- **stand-in**: outputs and gradients in float32 on the strict stand-in for CuPy, with the CUDA
  kernels on the CPU under the emulator ({flavour}), against NumPy in float32. The
  kernels of this package that ran are named. All other operations are CuPy's, and the stand-in
  computes those with NumPy: a 0 without a kernel says only that the class runs there.

Would a wrong gradient be seen? Each was measured once more with its largest entry, and that alone,
0.1 % off: the smallest error was then {weakest:.1e} (the {floored} next to zero left out).

Cases with random numbers restart the generator, so that each forward pass draws the same. The
gradients of an `RBM`, contrastive divergence, are those of the difference of the free energies of
the data and of its reconstruction, with the reconstruction held fixed.
`{without}` has no gradient: it {why}.
"""


def page(rows: list[Row], torch: bool, stand_in: bool) -> str:
    """The whole text."""
    flavour = os.environ[FLAVOUR_VARIABLE]
    ((without, why),) = NO_GRADIENT.items()
    text = TEXT.format(
        cases=sum(row.numeric.cases for row in rows),
        gradients=sum(row.gradients for row in rows),
        versions=_versions(torch, stand_in),
        largest=_largest(rows),
        floored=sum(row.floored for row in rows),
        step=STEP,
        engines=", ".join(cpu_engines()),
        flavour="with all its checks" if flavour == "check" else "without its checks",
        weakest=min(row.weakest for row in rows),
        without=without,
        why=why,
    )
    for family in FAMILIES:
        mine = [row for row in rows if row.family == family]
        text += f"\n## {family.capitalize()}\n\n{table(mine)}\n"
    return text
