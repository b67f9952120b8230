"""What the first steps must give: PyTorch in float64, and our layers in float64 NumPy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from _gpu import nets
from _gpu.nets import ROUNDING, STEPS_CHECKED, TOLERANCE, Item

__all__ = ["judge", "measure", "read", "slack", "write"]

Result = tuple[list[float], dict[str, np.ndarray]]

#: times that the referee takes the steps with noise, and how many times as far as that is allowed
SHAKES, _LENIENT = 8, 3.0
#: what no noise excuses
_MOST = 0.5
#: floating-point operations that NumPy is given for a step at most; of a larger one fewer examples
_NUMPY_FLOPS = 5e8
_AGREE = 1e-8


def numpy_steps(item: Item) -> Result:
    """The first steps by our layers' array formulas in float64 NumPy."""
    from _gpu.ours import Ours
    from gpulayers import backend
    from gpulayers.ops import use_engine

    former = backend.default_dtype()
    with backend.use_backend("numpy"), use_engine("reference"):
        try:
            return Ours(Item(item.net, item.batch, "fp64"), "layers").checked()
        finally:
            backend.set_default_dtype(former)


def torch_steps(item: Item, device: str) -> Result:
    """The same by PyTorch in float64."""
    from _gpu.torch_side import Torch

    return Torch(Item(item.net, item.batch, "fp64"), "torch eager", device).checked()


def measure(item: Item, device: str) -> tuple[Result, dict[str, Any]]:
    """Return what the item's first steps give, and how it was found out.

    PyTorch in float64 is the referee for the item's own batch; whether NumPy in float64 agrees with
    it is seen on as many examples as NumPy can be given. Without PyTorch NumPy is the referee.

    Raises
    ------
    ArithmeticError
        If the two do not agree.
    """
    flops, _, _ = nets.work(nets.NETS[item.net], 1)
    few = max(2, min(item.batch, int(_NUMPY_FLOPS / flops)))
    small = Item(item.net, few, item.precision)
    if importlib.util.find_spec("torch") is None:
        return numpy_steps(item), {"referee": "NumPy float64", "examples": item.batch}
    from_numpy = numpy_steps(small)
    start = nets.start(nets.NETS[item.net])
    apart = error(from_numpy, torch_steps(small, device), start)
    if apart > _AGREE:
        raise ArithmeticError(
            f"{item.name}: PyTorch and NumPy in float64 differ by {apart:.1e} for {few} examples"
        )
    facts = {"referee": "PyTorch float64", "NumPy float64 agrees within": apart, "examples": few}
    return torch_steps(item, device), facts


def slack(item: Item, wanted: Result, device: str) -> float:
    """Return how far from `wanted` the steps in float64 come when the inputs are off by a little.

    A maximum over two nearly equal pixels, or a ReLU near zero, goes the other way then, as it does
    when sums are rounded in another order; the next steps go apart from there, and nothing is
    wrong. LeNet's batch of 64 has such a pair: its update is off by 1.5 % in float32.
    """
    flops, _, _ = nets.work(nets.NETS[item.net], item.batch)
    with_torch = importlib.util.find_spec("torch") is not None
    times = SHAKES if with_torch else min(SHAKES, int(10 * _NUMPY_FLOPS / flops))
    begin, worst = nets.start(nets.NETS[item.net]), 0.0
    for seed in range(times):
        with nets.shaken(seed, ROUNDING[item.precision]):
            found = torch_steps(item, device) if with_torch else numpy_steps(item)
        worst = max(worst, error(found, wanted, begin))
    return worst


def error(found: Result, wanted: Result, start: dict[str, np.ndarray]) -> float:
    """The larger of: the losses' largest relative error, and that of the steps' update of all
    weights in the Euclidean norm."""
    losses = np.array(found[0]) - np.array(wanted[0])
    worst = float(np.max(np.abs(losses) / np.abs(wanted[0])))
    off = sum(float(((found[1][k] - wanted[1][k]) ** 2).sum()) for k in wanted[1])
    moved = sum(float(((wanted[1][k] - start[k]) ** 2).sum()) for k in wanted[1])
    result = max(worst, float(np.sqrt(off / moved)))
    return result if np.isfinite(result) else float("inf")


def judge(found: Result, wanted: Result, item: Item, by_noise: float = 0.0) -> float:
    """Return the error of an item's first steps.

    Raises
    ------
    ArithmeticError
        If it is larger than the precision explains, with what noise alone does (`slack`).
    """
    wrong = error(found, wanted, nets.start(nets.NETS[item.net]))
    most = min(TOLERANCE[item.precision] + _LENIENT * by_noise, _MOST)
    if wrong > most:
        raise ArithmeticError(
            f"the first {STEPS_CHECKED} steps are off by {wrong:.1e}, more than {most:.0e} for "
            f"{item.precision}; not timed"
        )
    return wrong


def write(path: Path, result: Result, by_noise: float = 0.0) -> None:
    """Keep a result for other processes."""
    weights = {f"w {k}": v for k, v in result[1].items()}
    np.savez(path, losses=np.array(result[0]), slack=by_noise, **weights)


def read(path: Path) -> tuple[Result, float]:
    """The inverse of `write`."""
    with np.load(path) as file:
        weights = {k[2:]: file[k] for k in file.files if k.startswith("w ")}
        return (file["losses"].tolist(), weights), float(file["slack"])
