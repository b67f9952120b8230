"""What ships: the built wheel, installed in a clean environment, away from the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

TRAIN = """
import pathlib, sys
import gpulayers
from gpulayers import models, random
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.training import load_data

assert "site-packages" in gpulayers.__file__, gpulayers.__file__
assert "cupy" not in sys.modules
data = load_data("mnist-10k")
random.seed(0)
net = models.lenet(optimizer="Adam(lr=0.003)")
loss = SoftmaxCrossEntropy()
X = data.train.images[:320].astype("float32") / 255 - 0.13
y = data.train.labels[:320]
values = []
for step in range(10):
    batch = slice(32 * step, 32 * step + 32)
    values.append(float(loss.forward(y[batch], net.forward(X[batch]))))
    net.backward(loss.backward())
    net.update()
print(*values)
assert values[-1] < values[0] - 0.3, values
"""


def run(*command: object, cwd: Path, **variables: str) -> str:
    env = {**os.environ, **variables}
    for name in ("GPULAYERS_BUILD_KERNELS", "GPULAYERS_ENGINE"):
        if name not in variables:
            env.pop(name, None)
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(out: Path, **variables: str) -> Path:
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        out,
        ROOT,
        cwd=out,
        **variables,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lib = ROOT / "gpulayers/ops/compiled/lib"
    before = {file.name: file.read_bytes() for file in lib.glob("*")}
    built = build(tmp_path_factory.mktemp("dist"), CC="/nowhere/cc")
    after = {file.name: file.read_bytes() for file in lib.glob("*")}
    assert after == before, "making a wheel must leave the tree as it is"
    return built


def test_wheel_holds_every_kernel_source_and_the_bundled_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "gpulayers", cwd=ROOT).split()
    assert any(name.endswith(".cu") for name in tracked)
    assert not set(tracked) - names
    assert "gpulayers/py.typed" in names
    assert not any(name.startswith(("tests/", "backend.py")) for name in names)


def installed(wheel: Path, folder: Path) -> Path:
    """The Python of a fresh environment with this wheel and what it needs, nothing else."""
    env = folder / "env"
    run(sys.executable, "-m", "venv", "--without-pip", env, cwd=folder)
    python = env / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", wheel, cwd=folder)
    listed = run(*pip, "list", "--format=freeze", cwd=folder)
    names = {line.split("==")[0].lower() for line in listed.split()}
    assert names == {"gpulayers", "numpy", "threadpoolctl"}, names
    return python


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("cc"), reason="no C compiler")
def test_wheel_with_compiled_kernels_trains_ten_steps(wheel: Path, tmp_path: Path) -> None:
    assert "py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert wheel.stat().st_size < 5e6
    python = installed(wheel, tmp_path)
    run(python, "-c", TRAIN, cwd=tmp_path, GPULAYERS_ENGINE="compiled")
    info = run(python, "-m", "gpulayers", "info", cwd=tmp_path)
    assert "backend:    numpy" in info and "c kernels:  in use, built for" in info


def test_wheel_built_without_a_compiler_trains_ten_steps(
    wheel_without_compiler: Path, tmp_path: Path
) -> None:
    assert wheel_without_compiler.name.endswith("-py3-none-any.whl")
    python = installed(wheel_without_compiler, tmp_path)
    run(python, "-c", TRAIN, cwd=tmp_path)
    info = run(python, "-m", "gpulayers", "info", cwd=tmp_path)
    assert "c kernels:  not used: the C compiler '/nowhere/cc' could not be run" in info
    code = "import numpy; from gpulayers.ops import use_engine; use_engine('compiled')"
    refused = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "BackendError: use_engine: the compiled kernels are not available" in refused.stderr


def test_a_failure_to_build_is_an_error_on_request(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="could not be run"):
        build(tmp_path, CC="/nowhere/cc", GPULAYERS_BUILD_KERNELS="1")
