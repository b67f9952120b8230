"""Time gpulayers on the CPU against PyTorch, and against numpy-ml where it is installed.

    python benchmarks/cpu.py --save        # all, about ten minutes; benchmarks/results/cpu.json
    python benchmarks/cpu.py --cases lenet,conv3x3 --rounds 9
    python benchmarks/cpu.py --short --check benchmarks/results/cpu.json

Every contestant is a process of its own and they take turns. A ratio is of times in the same round,
and its median over the rounds is told; rounds in which other processes used more than 10 % of the
CPU are dropped if enough remain. PyTorch runs twice as itself: how far those differ is the noise.
Results are compared with PyTorch's before they are timed; if one differs, the case is not timed and
the exit code is 1.

gpulayers is called as a user would: layers (`forward`, `backward`, `flush_gradients`), losses,
optimizers (`update_`), networks, and `network.compile` for whole steps ("plan"); the better one
counts, as the better one of PyTorch's layouts does. PyTorch: `autograd.grad`, nothing accumulated;
whole steps with its fused SGD. All float32, the same number of threads; numpy-ml is float64.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _cpu import footprint, machine, report
from _cpu.cases import choose
from _cpu.duel import CheckError, Contestant, ContestantError, Entry, fight

from gpulayers.errors import DataError, GPULayersError, ParameterError

RESULTS = Path(__file__).parent / "results" / "cpu.json"


def contestants(names: list[str], threads: int) -> list[Contestant]:
    """Start the processes; PyTorch comes first, the referee."""
    entries = [
        Entry("torch", "torch"),
        Entry("torch again", "torch"),
        Entry("torch other", "torch", "other"),
        *(Entry(name, "ours", "", name) for name in names),
        *(Entry(f"{name} plan", "ours", "plan", name) for name in names),
        Entry("numpy-ml", "numpy-ml"),
    ]
    started = []
    for entry in entries:
        one = Contestant(entry, threads)
        if one.missing is None:
            started.append(one)
            continue
        one.close()
        if entry.side != "numpy-ml":
            for other in started:
                other.close()
            raise ContestantError(f"{entry.label} cannot run: {one.missing}")
        print(f"numpy-ml is not compared: {one.missing}")
    return started


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once, so that a run broken off leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen cases and return the whole record, written to `args.out` after each."""
    chosen = choose(None if args.cases is None else args.cases.split(","), args.short)
    if importlib.util.find_spec("torch") is None:
        raise ContestantError("the benchmark compares with PyTorch, which is not installed")
    names, default = machine.engines()
    if args.engines:
        names = [name for name in names if name in args.engines.split(",")]
    if not names:
        raise ParameterError("no engine to time; expected some of numpy, compiled (if built)")
    result: dict[str, Any] = {**machine.describe(args.threads), "engine of auto": default}
    print(f"{result['cpu']}, {args.threads} threads, {result['blas']}")
    print(f"engines {', '.join(names)}, auto is {default}")
    running = contestants(names, args.threads)
    try:
        ours = next(one for one in running if one.entry.side == "ours")
        rates = result["rates"] = ours.ask(rates=True)
        print(", ".join(f"{what} {rate:.1f}" for what, rate in rates.items()), flush=True)
        result["cases"] = cases = {}
        with tempfile.TemporaryDirectory() as folder:
            for case in chosen:
                began = time.perf_counter()
                try:
                    bout = fight(case, running, Path(folder), args.rounds, args.slot)
                except CheckError as error:
                    print(f"WRONG: {error}", file=sys.stderr, flush=True)
                    result.setdefault("wrong", []).append(str(error))
                    continue
                cases[case.name] = row = report.record(case, bout, rates)
                result["summary"] = report.summary(cases)
                if args.out:
                    write(args.out, result)
                shown = "  ".join(f"{k} {v:.3f}" for k, v in row["ms"].items())
                ratios = ", ".join(f"{e} {v['ratio']:.2f}" for e, v in row["engines"].items())
                took = time.perf_counter() - began
                print(f"{case.name}: {ratios}   ms: {shown}   [{took:.0f} s]", flush=True)
    finally:
        for one in running:
            one.close()
    if (not args.short and args.cases is None) or args.footprint:
        result["footprint"] = footprint.measure(names, args.threads)
        if args.out:
            write(args.out, result)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the tables, that of the ratios last."""
    print(
        "\nShare of the roofline (copy or GEMM rate measured here; flops of the plain algorithm)\n"
    )
    print(report.roofline_table(result["cases"], result["rates"]))
    if "footprint" in result:
        print(f"\n{report.footprint_table(result['footprint'])}")
    print(f"\n{report.reach_table(result)}")
    busy = [name for name, c in result["cases"].items() if c["quiet rounds"] < c["rounds"]]
    if busy:
        print(
            f"\nOther processes were busy during {len(busy)} of {len(result['cases'])} cases; "
            "their ratios are uncertain, those of the fastest calls less so."
        )
    print("\nPyTorch's best time / ours, median of paired rounds (more than 1: ours is faster)\n")
    print(report.ratio_table(result["cases"]))


def verdict(result: dict[str, Any], path: Path) -> int:
    """Return 1 if a ratio fell to less than half of the record in `path`, else 0."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--check: {path} is no record of this benchmark: {error!r}") from error
    fallen, compared = report.compare(result["cases"], old)
    if not compared:
        raise DataError(f"--check: {path} has no case and engine in common with this run")
    print(f"\n{len(compared)} ratios compared with {path}")
    for line in fallen:
        print(f"fell to less than half: {line}", file=sys.stderr)
    return 1 if fallen else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--cases", help="names, comma-separated (default: all)")
    parser.add_argument("--short", action="store_true", help="a few cases, under 90 seconds")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--rounds", type=int, default=None, help="of each case (7; 3 if --short)")
    parser.add_argument("--slot", type=float, default=0.1, help="seconds of each turn")
    parser.add_argument("--engines", help="numpy, compiled (default: those that run)")
    parser.add_argument("--footprint", action="store_true", help="memory, import, ... too")
    parser.add_argument("--out", type=Path, help="JSON file, written after every case")
    parser.add_argument("--save", action="store_true", help=f"--out {RESULTS.name} in results/")
    parser.add_argument("--check", type=Path, help="record; exit 1 if a ratio fell by half")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.short else 7)
    args.threads = args.threads or footprint.physical_cores()
    if args.save and args.out is None:
        args.out = RESULTS
    if args.rounds < 1 or args.threads < 1 or not 0 < args.slot < 60:
        parser.error("--rounds and --threads must be positive, --slot between 0 and 60")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        result = measure(args)
        if result["cases"]:
            show(result)
        wrong = result.get("wrong", [])
        for line in wrong:
            print(f"not timed, WRONG: {line}", file=sys.stderr)
        return (verdict(result, args.check) if args.check else 0) or int(bool(wrong))
    except GPULayersError as error:
        print(f"benchmarks/cpu.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
