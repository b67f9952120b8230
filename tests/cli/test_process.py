"""The command as a process: entry points, exit codes, logs without a terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gpulayers"]


@pytest.fixture
def environment():
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GPULAYERS_")}
    # one BLAS thread: the sizes here are tiny, and other tests run beside
    return {
        **clean,
        "PYTHONPATH": str(ROOT),
        "GPULAYERS_BACKEND": "numpy",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 256), ("test", 16)):
        labels = np.arange(n) % 2
        images = rng.integers(0, 120, (n, 12, 12, 1)) + 100 * labels[:, None, None, None]
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(tmp_path / "tiny.npz", **arrays)
    return "./tiny.npz"


def call(arguments, environment, tmp_path, **options):
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_a_log_has_one_line_an_epoch_and_no_escape_codes(environment, data, tmp_path):
    done = call(["train", "--data", data, "--model", "mlp", "--epochs", "3"], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(re.findall(r"^epoch \d/3  loss ", done.stdout, re.M)) == 3
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert (tmp_path / "runs" / "mlp-tiny" / "model.safetensors").exists()


def test_exit_codes_without_tracebacks(environment, data, tmp_path):
    (tmp_path / "broken.npz").write_bytes(Path(tmp_path / "tiny.npz").read_bytes()[:-400])
    for arguments, code, words in [
        (["train", "--model", "lennet"], 2, "did you mean 'lenet'"),
        (["train", "--data", "./broken.npz"], 1, "broken.npz"),
    ]:
        done = call(arguments, environment, tmp_path)
        assert done.returncode == code, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr and not done.stdout
    done = call(["train", "--data", "./broken.npz", "--debug"], environment, tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_info_as_a_process(environment, tmp_path):
    done = call(["info"], environment, tmp_path)
    assert done.returncode == 0 and "backend:    numpy" in done.stdout and not done.stderr


MALFORMED = {
    "BACKEND": "cuppy",
    "DTYPE": "float23",
    "ENGINE": "foo",
    "THREADS": "0",
    "INSTRUCTIONS": "avx3",
    "WORKSPACE": "off",
    "TUNE": "yes",
    "WARPGROUPS": "2",
    "DATA": "./nowhere",
    "KERNELS_FOLDER": "./nowhere",
    "TUNE_DIR": "./file",
}


@pytest.mark.parametrize(
    "names",
    [["ENGINE"], ["THREADS"], list(MALFORMED)],
    ids=lambda names: names[0] if len(names) == 1 else "all",
)
def test_info_names_malformed_variables(environment, tmp_path, names):
    """Also all at once: one does not hide another."""
    (tmp_path / "file").touch()
    wrong = {f"GPULAYERS_{name}": MALFORMED[name] for name in names}
    done = call(["info"], {**environment, **wrong}, tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if "tuned choices" not in line]
    for line, name in zip(lines, wrong, strict=True):
        assert line.startswith(f"gpulayers: error: {name}"), done.stderr
    assert "c kernels:  " in done.stdout  # the report is printed all the same
    if "ENGINE" in names:
        assert "c kernels:  not used: the engine is unknown" in done.stdout
    if len(names) > 1:
        document = json.loads(call(["info", "--json"], {**environment, **wrong}, tmp_path).stdout)
        assert len(document["problems"]) == len(names) and document["threads"] is None


def test_info_of_variables_that_are_right(environment, tmp_path):
    right = {"ENGINE": "numpy", "THREADS": "2", "DTYPE": "float64", "TUNE_DIR": "not/yet"}
    right |= {"WORKSPACE": "1", "TUNE": "", "KERNELS_FOLDER": str(tmp_path)}
    more = {f"GPULAYERS_{name}": value for name, value in right.items()}
    done = call(["info"], {**environment, **more}, tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "c kernels:  not used: the engine is numpy" in done.stdout
    assert "threads:    2" in done.stdout and "engine:     numpy" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback(environment, tmp_path):
    pipe = f"{sys.executable} -m gpulayers info | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = call_shell(pipe, environment, tmp_path)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr


def call_shell(line, environment, tmp_path):
    return subprocess.run(
        ["bash", "-c", line],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_saves_says_how_to_resume_and_loses_nothing(environment, data, tmp_path):
    settings = ["--data", data, "--model", "mlp", "--batch-size", "4", "--seed", "5"]
    whole = call(["train", *settings, "--epochs", "6", "--out", "whole"], environment, tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*COMMAND, "train", *settings, "--epochs", "6", "--out", "cut"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("epoch 2/6"):
                break
        time.sleep(0.01)  # somewhere inside an epoch
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        text = process.stderr.read()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert re.search(
        r"stopped in epoch \d+ of 6, \d+ of 64 batches; saved to cut/model\.safetensors", text
    )
    assert "gpulayers train --resume cut" in text
    assert "epoch 12/6" not in rest
    resumed = call(["train", "--resume", "cut", "--json"], environment, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    expected = json.loads((tmp_path / "whole" / "results.json").read_text())
    actual = json.loads(resumed.stdout)
    assert actual["history"]["step_losses"] == expected["history"]["step_losses"]
    assert actual["test"] == expected["test"]


SHOW_THREADS = """
import os, sys
from gpulayers.cli import arguments, threads
parser, _ = arguments.make_parser()
assert "numpy" not in sys.modules, "numpy must not be loaded before the threads are set"
threads.limit_threads(parser.parse_args(sys.argv[1:]))
print(os.environ.get("OPENBLAS_NUM_THREADS"))
"""


def threads_of(arguments, environment, tmp_path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_THREADS, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_small_networks_use_one_blas_thread(environment, data, tmp_path):
    del environment["OPENBLAS_NUM_THREADS"]
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    assert threads_of(["train"], environment, tmp_path) == "1"
    assert threads_of(["train", "--model", "resnet9"], environment, tmp_path) == "None"
    arguments = ["train", "--data", data, "--model", "mlp", "--epochs", "1", "--out", "m"]
    assert call(arguments, environment, tmp_path).returncode == 0
    assert threads_of(["train", "--resume", "m"], environment, tmp_path) == "1"
    assert threads_of(["evaluate", "m/best.safetensors"], environment, tmp_path) == "1"
    assert threads_of(["evaluate", "nowhere"], environment, tmp_path) == "1"
    assert threads_of(["train"], {**environment, "OPENBLAS_NUM_THREADS": "3"}, tmp_path) == "3"
