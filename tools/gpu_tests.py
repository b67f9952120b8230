"""Run the GPU tests on a machine that one has for minutes, and tell what fails and why.

    python tools/gpu_tests.py --out results --budget 560
    python tools/gpu_tests.py tests/kernels tests/gpu

The tests go in three stages: the kernels one by one, then operations and plans, then the layers;
paths take their place. Several processes share a stage (pytest-xdist), and with it the compiling of
some 1,400 kernels. A kernel that loses the device, or hangs, costs its own test: the process ends,
and another goes on with the next test (tests/support/lost_device.py). Such tests are run once more
at the end, alone and with each launch waited for, which names the kernel.

In the folder `--out` (default: the variable OUT, else the current one), `gpu-tests.jsonl` has a
line of each test as soon as it has run, `gpu-tests.json` the sums and the failures, by message.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    ("kernels", ["tests/kernels", "tests/gpu"]),
    ("operations", ["tests/ops", "tests/models", "tests/random", "tests/training"]),
    ("layers", ["tests"]),
)
MOST_PROCESSES = 12
#: processes of a stage that may be lost
MOST_LOST = 24
#: lost tests that are run again, and seconds for each
AGAIN, AGAIN_SECONDS = 6, 60.0
MOST_SHOWN = 30  # messages that are printed; the file has all
_LEAST = 20.0  # seconds that a stage must have


def command(paths: list[str], results: Path, processes: int) -> list[str]:
    """What runs the GPU tests of `paths`."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--require-gpu", "--no-header"]
    words += ["-p", "no:cacheprovider", "-p", "tests.support.lost_device", "--tb=short", "-rN"]
    # other versions than those of the CI: what they deprecate, or do not have, stops nothing
    words += ["--continue-on-collection-errors"]
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        words += ["-W", f"default::{kind}"]
    if processes > 1:
        words += ["-n", str(processes), f"--max-worker-restart={MOST_LOST}"]
    return [*words, "--results", str(results), *paths]


def run(words: list[str], seconds: float, **environment: str) -> int | None:
    """Its exit code; None if its time was up."""
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        return process.wait(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def read(results: Path) -> list[dict[str, Any]]:
    """The lines so far."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in results.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # cut off
                lines.append(json.loads(line))
    return lines


def _reason(message: str) -> str:
    """What a traceback says first of what went wrong, with the numbers left out."""
    first = message.partition("\n")[0]
    if first.startswith("worker "):
        return "its process has ended"
    lines = [line for line in message.splitlines() if line.startswith("E ")]
    if lines and not first.startswith("the CUDA device"):
        first = " ".join(line.removeprefix("E ").strip() for line in lines[:2])
    return re.sub(r"\d[\d.e+-]*", "#", first)[:160]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Tests by outcome, failures by message, and those that lost the device or their process."""
    counts = Counter(line["outcome"] for line in lines)
    failed: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line["outcome"] == "failed":
            failed[_reason(line.get("message", ""))].append(line["test"])
    lost = [line["test"] for line in lines if line.get("lost") or line["when"] == "???"]
    return {
        "counts": dict(counts),
        "failed": dict(sorted(failed.items(), key=lambda item: -len(item[1]))),
        "lost": list(dict.fromkeys(lost)),
    }


def show(found: dict[str, Any]) -> None:
    reasons = list(found["failed"].items())
    for reason, tests in reasons[:MOST_SHOWN]:
        print(f"{len(tests):5d}  {reason}\n       {tests[0]}")
    if reasons[MOST_SHOWN:]:
        print(f"       and {len(reasons) - MOST_SHOWN} other messages")
    print(", ".join(f"{n} {what}" for what, n in found["counts"].items()) or "no test has run")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Run the GPU tests, each kernel's fault by itself.")
    p.add_argument("paths", nargs="*", help="instead of the three stages")
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "."))
    p.add_argument("--budget", type=float, default=560.0, help="seconds for all of it")
    p.add_argument("-n", "--processes", type=int, default=0, help="default: one a processor, 12")
    return p


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    end = time.monotonic() + args.budget
    args.out.mkdir(parents=True, exist_ok=True)
    results, sums = args.out.resolve() / "gpu-tests.jsonl", args.out / "gpu-tests.json"
    results.unlink(missing_ok=True)
    processes = args.processes or min(os.cpu_count() or 1, MOST_PROCESSES)
    if importlib.util.find_spec("xdist") is None:
        processes = 1
    stages = [("tests", args.paths)] if args.paths else STAGES
    ends: dict[str, Any] = {}
    for number, (name, paths) in enumerate(stages):
        left = end - time.monotonic()
        if left < _LEAST:
            ends[name] = "left out for want of time"
            continue
        before = [f"--ignore={path}" for _, earlier in stages[:number] for path in earlier]
        begin = time.monotonic()
        code = run(command([*paths, *before], results, processes), left)
        took = time.monotonic() - begin
        ends[name] = {"exit code": "time was up" if code is None else code, "seconds": round(took)}
        print(f"{name}: {ends[name]}", flush=True)
        sums.write_text(json.dumps({"stages": ends, **summary(read(results))}, indent=1) + "\n")
    found = summary(read(results))
    for test in found["lost"][:AGAIN]:
        left = end - time.monotonic()
        if left > _LEAST:
            print(f"--- once more, each launch waited for: {test}", flush=True)
            again = command([test], args.out.resolve() / "gpu-tests-again.jsonl", 1)
            run(again, min(left, AGAIN_SECONDS), CUDA_LAUNCH_BLOCKING="1")
    show(found)
    whole = all(isinstance(e, dict) and e["exit code"] in (0, 5) for e in ends.values())
    return 0 if whole and not found["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
