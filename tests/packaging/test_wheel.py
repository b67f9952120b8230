"""What ships: the built wheel, installed in a clean environment, away from the source tree."""

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


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_kernel_source_and_the_bundled_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "gpulayers", cwd=ROOT).split()
    assert any(name.endswith(".cu") for name in tracked)
    assert not set(tracked) - names
    assert "gpulayers/py.typed" in names
    assert not any(name.startswith(("tests/", "backend.py")) for name in names)


def test_installed_wheel_trains_ten_steps_with_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    run(sys.executable, "-m", "venv", env, cwd=tmp_path)
    python = env / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    installed = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    names = {line.split("==")[0].lower() for line in installed.split()}
    assert names <= {"gpulayers", "numpy", "pip", "setuptools"}, names
    run(python, "-c", TRAIN, cwd=tmp_path)
    info = run(python, "-m", "gpulayers", "info", cwd=tmp_path)
    assert "backend:    numpy" in info
