"""Time training steps on one GPU against PyTorch and JAX, and what they are made of.

    python benchmarks/gpu.py --parts micro,kernels,ways --out results
    python benchmarks/gpu.py --parts lenet,vgg --budget 540 --out results
    python benchmarks/gpu.py --parts resnet9,rnn,lstm,wavenet,startup --out results

Parts: micro, kernels, ways, lenet, vgg, resnet9, rnn, lstm, wavenet, startup. ``--out`` is a folder
(default: the variable OUT, else ``benchmarks/results``); ``gpu-<device>.json`` there is written
after every item. Every process that is started ends with the budget (``--budget`` seconds from the
start of the command); what comes last is left out and said.

The file holds runs: what each found, with its date, commit, digest of the sources, device, driver,
versions, settings and clock rates. A command that is given again goes on where the last one ended:
it leaves out what a run of the same sources, device, driver, versions and settings has measured,
and takes what failed last (``--anew``: it measures everything). ``--former`` names the file to go
on from where the one in ``--out`` is not there. No ratio is of two times from different runs: what
the missing ways are held against is timed again.

What follows from the numbers is printed as a table of decisions, each with its bound. The parts
micro, kernels and ways go on in another process with the next item where one loses the device or
hangs. Each kernel must agree with the array formulas in float64 on the device, its results in
memory that was full of NaN; the formulas must agree with PyTorch in float64 on the CPU.

Each way of taking a step has a process of its own. Its first three steps must give the losses and
weights that PyTorch gives in float64, and our layers in float64 NumPy, before it is timed: wall
clock over 200 steps (fewer if they take long) between two waits for the device, after 20 steps of
warm-up; the median of seven, the least and the most. Inputs are random numbers on the device, eight
batches in turn. The fastest settings on both sides: channels_last, cudnn.benchmark, fused
optimizers, TF32 where the item says so on both sides or on none; CUDA graphs by hand,
reduce-overhead, max-autotune; a jitted step and a scan. Our ways as graphs, PyTorch's eager step
and its graph and JAX's jitted step are made and timed twice: their difference is the noise. The
losses of 200 steps are held against PyTorch's.

Without a GPU nothing is measured, and the floors are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from _gpu import child, clock, floors, machine, record, startup
from _gpu.nets import PARTS, Item
from _gpu.run import Run

SCRIPT = Path(__file__).resolve()
ALL_PARTS = (*child.DEVICE_PARTS, *PARTS, "startup")
_END = 8.0  # seconds for the last process to be ended, and for the tables


def chosen(args: argparse.Namespace) -> list[Item]:
    """The steps of the parts that are asked for."""
    items = [item for part in args.parts for item in PARTS.get(part, ())]
    if args.batches:
        items = [item for item in items if item.batch in args.batches]
    if args.precisions:
        names = dict.fromkeys((i.net, i.batch) for i in items)
        items = [Item(net, n, p) for net, n in names for p in args.precisions]
    return items


def _words(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {word!r}, expected some of {', '.join(known)}"
                )
        return words

    return parse


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Time training steps on one GPU against its peers.")
    default = "micro,kernels,lenet"
    p.add_argument("--parts", type=_words(ALL_PARTS), default=default, help=f"default: {default}")
    p.add_argument("--out", type=Path, default=None, help="folder of the JSON file")
    p.add_argument("--budget", type=float, default=530.0, help="seconds for all of it")
    p.add_argument("--batches", type=lambda t: [int(n) for n in t.split(",")], default=[])
    p.add_argument("--precisions", type=_words(tuple(floors.RATES)), default=[])
    p.add_argument("--sides", type=_words(("ours", "torch", "jax")), default="ours,torch,jax")
    p.add_argument("--batch", type=int, default=512, help="images, of the part kernels")
    p.add_argument("--steps", type=int, default=clock.STEPS)
    p.add_argument("--warm-up", type=int, default=clock.WARM_UP)
    p.add_argument("--repeats", type=int, default=clock.REPEATS)
    p.add_argument("--anew", action="store_true", help="what former runs measured, too")
    p.add_argument("--former", type=Path, help="file of former runs, if not in --out")
    p.add_argument("--mnist", type=Path, help="folder of MNIST's files, of the part startup")
    p.add_argument("--child", help=argparse.SUPPRESS)
    return p


def gpu_error() -> str | None:
    """Why no GPU can be used, or None."""
    from gpulayers import backend
    from gpulayers.errors import BackendError

    try:
        backend.use_backend("cupy")
    except BackendError as error:
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.child:
        child.work(json.loads(args.child))
        return 0
    budget = clock.Budget(args.budget - _END)
    try:
        startup.find_mnist(args.mnist, SCRIPT.parent.parent)
    except FileNotFoundError as error:
        parser().error(f"argument --mnist: {error}")
    missing = gpu_error()
    if missing is not None:
        print(floors.printed(chosen(args) or [i for part in PARTS.values() for i in part]))
        print(f"no GPU: nothing was measured ({missing.splitlines()[0]})")
        return 0
    facts = {**machine.facts(), "settings": settings(args)}
    name = re.sub(r"[^A-Za-z0-9]+", "-", facts["device"].get("name", "unknown")).strip("-").lower()
    folder = args.out or Path(os.environ.get("OUT") or SCRIPT.parent / "results")
    kept = record.Record(folder / f"gpu-{name}.json", args.former)
    kept.begin(facts)
    run = Run(args, SCRIPT, kept, "cuda", budget)
    run.clock("start")
    for part in child.DEVICE_PARTS:
        if part in args.parts:
            run.device_part(part)
    run.steps(chosen(args))
    if "startup" in args.parts:
        run.startup()
    run.show()
    print(f"written to {kept.path}")
    return 0


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What figures depend on besides: runs of other settings are told apart."""
    clocks = {name: getattr(args, name) for name in ("batch", "warm_up", "steps", "repeats")}
    return {**clocks, "environment": machine.variables()}


if __name__ == "__main__":
    sys.exit(main())
