"""Errors of gradients: against central differences, PyTorch, and on the CuPy stand-in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.correctness.layers import Run, Subject
from gpulayers.ops import compiled, use_engine
from tests.conftest import Backend, switched_to
from tests.layers.harness import values
from tests.support.compare import host

STEP = float(np.finfo(np.float64).eps ** (1 / 3))
FLOOR = 1e-3

Arrays = dict[str, np.ndarray]


def largest(array: np.ndarray) -> float:
    """The largest absolute value; 0 of an empty array."""
    return float(np.abs(array).max(initial=0.0))


def relative_error(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """max |a - b| / max(max |a|, max |b|, FLOOR * scale), `scale` being the largest number of all
    arrays of the same kind; NaN where one is NaN."""
    if a.shape != b.shape:
        raise ValueError(f"arrays of shapes {a.shape} and {b.shape} cannot agree")
    if not a.size:
        return 0.0
    difference = largest(a - b)
    bottom = max(largest(a), largest(b), FLOOR * scale)
    return difference / bottom if difference else 0.0


def errors(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """The relative error of each array."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"got {sorted(ours)}, expected {sorted(theirs)}")
    scale = max((largest(a) for a in theirs.values()), default=0.0)
    return {name: relative_error(ours[name], theirs[name], scale) for name in ours}


def given_gradients(outputs: list[Any], backend: Backend) -> list[Any]:
    """Of each output: normal numbers; of a loss: one."""
    made = []
    for k, Y in enumerate(outputs):
        dtype = Y.dtype.name
        numbers = values(Y.shape, 20 + k, dtype) if Y.ndim else np.ones(())
        made.append(backend.asarray(numbers, dtype))
    return made


def evaluate(run: Run, backend: Backend) -> tuple[Arrays, Arrays]:
    """Outputs and gradients, on the host."""
    outputs = run.outputs()
    found = {f"output {k + 1}": host(Y).copy() for k, Y in enumerate(outputs)}
    gradients = run.gradients(given_gradients(outputs, backend))
    return found, {name: host(g).copy() for name, g in gradients.items()}


def numeric_gradients(run: Run, backend: Backend) -> Arrays:
    """Central differences of sum_k (outputs[k] * dYs[k]) for every number of every place.

    The outputs are subtracted before the sum: rounding is then that of the outputs that change.
    """
    dYs = [host(d) for d in given_gradients(run.outputs(), backend)]
    found = {}
    for name, place in run.places.items():
        slopes = np.zeros(place.shape)
        for index in np.ndindex(place.shape):
            kept = place[index]
            sides = []
            for sign in (1.0, -1.0):
                place[index] = kept + sign * STEP
                sides.append([host(Y).copy() for Y in run.outputs()])
            place[index] = kept
            pairs = zip(*sides, dYs, strict=True)
            slopes[index] = sum(float(((up - down) * d).sum()) for up, down, d in pairs)
        found[name] = slopes / (2 * STEP)
    return found


def torch_results(subject: Subject, run: Run) -> tuple[Arrays, Arrays]:
    """Outputs and gradients by PyTorch in float64."""
    import torch

    assert subject.torch is not None
    tensors = {
        name: torch.tensor(host(place), requires_grad=True) for name, place in run.places.items()
    }
    outputs = subject.torch(tensors)
    with switched_to("numpy") as backend:
        dYs = [
            torch.tensor(np.asarray(d))
            for d in given_gradients([Y.detach().numpy() for Y in outputs], backend)
        ]
    linked = [(Y, d) for Y, d in zip(outputs, dYs, strict=True) if Y.requires_grad]
    wanted: Iterable[Any] = [None] * len(tensors)
    if linked:
        wanted = torch.autograd.grad(
            [Y for Y, _ in linked], [*tensors.values()], [d for _, d in linked], allow_unused=True
        )
    gradients = {
        name: np.zeros(tensor.shape) if g is None else g.numpy()
        for (name, tensor), g in zip(tensors.items(), wanted, strict=True)
    }
    return {f"output {k + 1}": Y.detach().numpy() for k, Y in enumerate(outputs)}, gradients


@dataclass
class Worst:
    """The largest error met, and where."""

    error: float = 0.0
    where: str = ""
    cases: int = 0

    def add(self, found: dict[str, float], case: str) -> None:
        """Take one case's errors in; NaN is the largest."""
        self.cases += 1
        for name, error in found.items():
            if not error <= self.error and not np.isnan(self.error):
                self.error, self.where = error, f"{name}, {case}"

    def __str__(self) -> str:
        return "-" if not self.cases else f"{self.error:.0e}" if self.error else "0"


@dataclass
class Row:
    """What is known of one class."""

    family: str
    name: str
    places: list[str] = field(default_factory=list)
    numeric: Worst = field(default_factory=Worst)
    torch: Worst = field(default_factory=Worst)
    stand_in: Worst = field(default_factory=Worst)
    kernels: set[str] = field(default_factory=set)
    gradients: int = 0
    floored: int = 0  # so small that they are measured by the floor
    weakest: float = np.inf  # the smallest error that a planted fault shows


def cpu_engines() -> list[str]:
    """The implementations that compute here on NumPy arrays."""
    return ["reference", "numpy", *([] if compiled.unavailable_reason() else ["compiled"])]


def measure(subject: Subject, row: Row, torch: bool, stand_in: bool) -> None:
    """Add one case to its class's row."""
    case = subject.case
    with switched_to("numpy") as backend:
        with use_engine("reference"):
            run = subject.start(backend, "float64")
            numeric = numeric_gradients(run, backend)
        results = []
        for engine in cpu_engines():
            with use_engine(engine):
                run = subject.start(backend, "float64")
                results.append(evaluate(run, backend))
    worst: dict[str, float] = {}
    for _, gradients in results:
        for name, error in errors(gradients, numeric).items():
            worst[name] = max(error, worst.get(name, 0.0), key=lambda e: (np.isnan(e), e))
    row.numeric.add(worst, case)
    _plant_faults(row, results[0][1], numeric)

    if torch and subject.torch is not None:
        theirs = torch_results(subject, run)
        for ours in results:
            found = [errors(a, b) for a, b in zip(ours, theirs, strict=True)]
            row.torch.add(found[0] | found[1], case)
        row.torch.cases += 1 - len(results)

    if stand_in:
        with switched_to("numpy") as backend, use_engine("numpy"):
            expected = evaluate(subject.start(backend, "float32"), backend)
        with switched_to("emulated") as backend, use_engine("auto"), backend.count() as events:
            there = evaluate(subject.start(backend, "float32"), backend)
        found = [errors(a, b) for a, b in zip(there, expected, strict=True)]
        row.stand_in.add(found[0] | found[1], case)
        names = (event.partition(":")[2] for event in events if event.startswith("kernel:"))
        row.kernels |= {name.partition("<")[0] for name in names}


def _plant_faults(row: Row, gradients: Arrays, numeric: Arrays) -> None:
    """Would the measure see a gradient whose largest entry alone is 0.1 % off?"""
    scale = max(largest(a) for a in numeric.values())
    for name, gradient in gradients.items():
        row.gradients += 1
        row.places += [name] if name not in row.places else []
        if largest(gradient) <= FLOOR * scale:
            row.floored += 1
            continue
        wrong = gradient.copy()
        wrong.flat[np.abs(wrong).argmax()] *= 1.001
        row.weakest = min(row.weakest, relative_error(wrong, numeric[name], scale))
