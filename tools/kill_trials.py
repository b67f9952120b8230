"""Kill training runs at random moments, let them go on, and compare the ends, bit for bit.

    python tools/kill_trials.py [--trials 50] [--seed 0] [--kills 1] [--json]

One run of `gpulayers train` on the digits inside the package is left alone. Then each trial starts
the same run, kills its process with SIGKILL at a moment drawn uniformly from the whole run's time
(start-up and the writing of the results included), goes on with ``--resume``, and compares the last
checkpoint and the results with those of the run that was left alone: parameters, optimizers, random
numbers, callbacks, every loss. With ``--kills 2`` the resumed process is killed too, and so on.

The exit code is 0 if all ends are equal, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers.errors import CheckpointError
from gpulayers.training import read_safetensors
from gpulayers.training.keeper import MODEL_FILE, checkpoint_path

ROOT = Path(__file__).parents[1]
# Small, and with everything that has a state: moments, schedule, random variations, an average
RUN = [
    *("--model", "mlp", "--epochs", "3", "--batch-size", "400", "--seed", "7", "--device", "cpu"),
    *("--augment", "crop(2), flip", "--ema", "0.99", "--checkpoint-seconds", "0.05", "--quiet"),
]
# `gpulayers` itself, but without the picture of the curves, which takes longer than the training
COMMAND = (
    "import sys; sys.modules['matplotlib'] = None; from gpulayers.cli import main; sys.exit(main())"
)
TIMES = ("seconds", "examples_per_second", "train_seconds")  # differ from run to run


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A process of the command, with the package beside this file and one thread."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GPULAYERS_")},
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "GPULAYERS_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(arguments: list[str]) -> None:
    """Run the command to its end; raise with what it said if that is no good one."""
    kill_after(arguments, None)


def kill_after(arguments: list[str], delay: float | None) -> bool:
    """Start the command and kill it after `delay` seconds; False if it ended before."""
    process = start(arguments)
    try:
        _, text = process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    # killed behind its last file, a run has nothing left to do
    if process.returncode and b"is complete" not in text:
        raise RuntimeError(f"exit code {process.returncode} of {arguments}:\n{text.decode()}")
    return False


def where(folder: Path) -> str:
    """How far a killed run had come, by what lies in its folder."""
    try:
        _, metadata = read_safetensors(checkpoint_path(folder))
    except CheckpointError:
        return "before the first checkpoint"
    trainer = json.loads(metadata["gpulayers"])["trainer"]
    if trainer["epoch"] >= trainer["epochs"]:
        return "after the last epoch"
    return "inside an epoch" if trainer["step"] else "at an epoch's end or the beginning"


def end_of(folder: Path) -> tuple[dict[str, np.ndarray], Any, Any]:
    """Arrays, description and results of a finished run, without times and folders."""
    arrays, metadata = read_safetensors(folder / MODEL_FILE)
    results = json.loads((folder / "results.json").read_text())
    kept = {key: results[key] for key in ("test", "history", "test_loss", "best_epoch")}
    return arrays, _timeless(json.loads(metadata["gpulayers"])), _timeless(kept)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def differences(folder: Path, expected: tuple[dict[str, np.ndarray], Any, Any]) -> list[str]:
    """What differs in the end of a run; nothing if it is the expected one, bit for bit."""
    arrays, description, results = end_of(folder)
    found = [] if arrays.keys() == expected[0].keys() else ["the names of the arrays"]
    for name in arrays.keys() & expected[0].keys():
        ours, theirs = arrays[name], expected[0][name]
        if (ours.dtype, ours.shape, ours.tobytes()) != (
            theirs.dtype,
            theirs.shape,
            theirs.tobytes(),
        ):
            found.append(name)
    if description != expected[1]:
        found.append("the description in the checkpoint")
    if results != expected[2]:
        found.append("the results")
    return found


def trial(folder: Path, moments: list[float]) -> tuple[list[str], int]:
    """Run into `folder`, killed after each of these times; where, and how often it began anew."""
    places, anew = [], 0
    arguments = [*RUN, "--out", str(folder)]
    for moment in moments:
        if not kill_after(arguments, moment):  # it was faster than the run that was timed
            return places, anew
        places.append(where(folder))
        if places[-1] == "before the first checkpoint":
            anew += 1
        else:
            arguments = ["--resume", str(folder), "--quiet"]
    finish(arguments)
    return places, anew


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument("--kills", type=int, default=1, metavar="N", help="in each trial")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args()
    draw, lost, anew = random.Random(options.seed), 0, 0
    places: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        finish([*RUN, "--out", f"{scratch}/whole"])
        whole = time.perf_counter() - begin
        expected = end_of(Path(scratch) / "whole")
        for i in range(1, options.trials + 1):
            reached: list[str] = []
            while not reached:  # the machine may be faster by now
                moments = [draw.uniform(0.0, whole) for _ in range(options.kills)]
                folder = Path(tempfile.mkdtemp(dir=scratch))
                reached, again = trial(folder, moments)
                whole *= 1.0 if reached else 0.9
            places.update(reached)
            anew += again
            found = differences(folder, expected)
            lost += bool(found)
            said = f"differs in {', '.join(found)}" if found else "equal"
            at = ", ".join(f"{moment:.2f} s" for moment in moments)
            print(f"trial {i}: killed after {at} ({'; '.join(reached)}): {said}", file=sys.stderr)
            shutil.rmtree(folder)
    summary = {
        "trials": options.trials,
        "equal": options.trials - lost,
        "lost": lost,
        "started anew": anew,
        "seconds of the run": round(whole, 2),
        "killed": dict(places),
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print(
            f"{options.trials} trials, {summary['equal']} ends equal bit for bit, {lost} lost; "
            f"killed: {', '.join(f'{n} {place}' for place, n in places.most_common())}"
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
