"""benchmarks/models.py: its PyTorch model is ours step by step, its counts count, it runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gpulayers.backend
from gpulayers import random
from gpulayers.models import BernoulliVAE, Word2Vec
from gpulayers.training import load_data

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dtype(request: pytest.FixtureRequest):
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype(request.param)
    yield request.param
    gpulayers.backend.set_default_dtype(before)


@pytest.mark.parametrize(
    "dtype, tolerance", [("float64", 1e-9), ("float32", 2e-4)], indirect=["dtype"]
)
def test_the_vae_follows_pytorch_step_by_step(dtype, tolerance, benchmark, numpy_backend):
    """Same weights, batches, noise and optimizer: the same bound after each of twelve steps, the
    same weights at the end, the same bound on other digits."""
    pytest.importorskip("torch")
    data = load_data("mnist-10k")
    train, test = ((part.images[:96] / 255).astype(dtype) for part in (data.train, data.test))
    random.seed(0)
    vae = BernoulliVAE(
        T=3,
        latent_dim=16,
        enc_conv1_pad=1,
        enc_conv1_out_ch=3,
        enc_conv2_out_ch=4,
        enc_conv1_stride=2,
        enc_pool2_stride=2,
        enc_conv2_kernel_shape=(3, 3),
        optimizer="Adam(lr=0.003)",
    )
    vae.forward(train[:1], retain_derived=False)
    theirs = benchmark.TorchVAE(vae, lr=0.003)
    told, weights = [], []
    for model in (vae, theirs):
        random.seed(1)
        steps = [model.fit(batch, 1, 24)[0] for batch in np.split(train, 4) for _ in range(3)]
        random.seed(2)
        told.append([*steps, model.evaluate(test, 40)])
    assert told[0][-2] < 0.9 * told[0][0], "it learns"
    np.testing.assert_allclose(told[0], told[1], rtol=tolerance)
    weights = [benchmark.learned(vae), {k: a.detach().numpy() for k, a in theirs.p.items()}]
    assert len(weights[0]) == 12 and weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        assert values.dtype == dtype
        np.testing.assert_allclose(
            values, weights[1][name], rtol=0, atol=30 * tolerance * np.abs(values).max(),
            err_msg=name,
        )  # fmt: skip


def test_whole_epochs_follow_pytorch(benchmark, numpy_backend):
    """With shuffled batches, of which the last is short: the script draws them alike."""
    pytest.importorskip("torch")
    digits = (load_data("mnist-10k").train.images[:70] / 255).astype(np.float32)
    random.seed(0)
    vae = BernoulliVAE(T=2, latent_dim=8, enc_conv1_out_ch=2, enc_conv2_out_ch=2,
                       optimizer="Adam(lr=0.001)")  # fmt: skip
    vae.forward(digits[:1], retain_derived=False)
    theirs = benchmark.TorchVAE(vae, lr=0.001)
    losses = []
    for model in (vae, theirs):
        random.seed(1)
        losses.append(model.fit(digits, 2, 32))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_coverage_counts_modes_and_good_points(benchmark):
    """Against points whose places are known."""
    centres, std = benchmark.centres(), benchmark.STD
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), benchmark.RADIUS)
    real = benchmark.coverage(benchmark.mixture(20_000, 0))
    assert real["modes found"] == real["modes held"] == 8
    # three deviations hold 1 - exp(-9 / 2) of a normal distribution in the plane
    assert real["good points"] == pytest.approx(1 - np.exp(-4.5), abs=0.003)
    one = np.repeat(centres[:1], 100, axis=0)
    assert benchmark.coverage(one)["modes found"] == 1
    two = np.concatenate([np.repeat(one, 5, axis=0), centres[4:5] + np.array([0, 2.9 * std])])
    told = benchmark.coverage(two)
    assert told["modes found"] == 2 and told["modes held"] == 1 and told["good points"] == 1
    told = benchmark.coverage(two + np.array([0, 0.2 * std]))
    assert told["modes found"] == 1 and told["points by mode"] == [500, 0, 0, 0, 0, 0, 0, 0]


def test_neighbours_are_of_a_words_own_kind(benchmark, tmp_path, numpy_backend):
    path = tmp_path / "corpus.txt"
    path.write_text(benchmark.corpus(1500, 0))
    random.seed(0)
    model = Word2Vec(
        context_len=3, embedding_dim=16, num_negative_samples=16, optimizer="Adam(lr=0.01)"
    )
    model.prepare(path)
    before, chance = benchmark.kinship(model)
    assert chance == pytest.approx(0.085, abs=0.01) and abs(before - chance) < 0.05
    model.fit(path, n_epochs=12, batchsize=64, verbose=False)
    share, _ = benchmark.kinship(model)
    assert share > 0.8, share
    assert {word for word, _ in model.nearest("cat", 3)} <= set(benchmark.KINDS["animal"].split())


def test_the_script_runs_and_keeps_what_it_did_not_measure(benchmark, tmp_path, capsys):
    out = tmp_path / "new" / "models.json"
    small = ["--data", "mnist-10k", "--images", "40", "--epochs", "1", "--steps", "4",
             "--sentences", "300", "--w2v-epochs", "1", "--out", str(out)]  # fmt: skip
    plot = ["--plot", str(tmp_path / "ring.png")]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        plot = []
    assert benchmark.main(["--parts", "wgan,w2v", *small, *plot]) == 0
    text = capsys.readouterr().out
    assert "own kind among the 5 nearest" in text and f"written to {out}" in text
    first = json.loads(out.read_text())
    assert set(first) == {"wgan", "w2v"} and len(first["w2v"]["nearest"]["cat"]) == 5
    assert sum(first["wgan"]["real points"]["points by mode"]) > 2400
    assert not plot or (tmp_path / "ring.png").read_bytes().startswith(b"\x89PNG")
    assert benchmark.main(["--parts", "vae", *small]) == 0
    second = json.loads(out.read_text())
    assert {key: second[key] for key in first} == first
    assert -700 < second["vae"]["gpulayers"]["test bound"] < -100
    with pytest.raises(SystemExit):
        benchmark.main(["--parts", "gan"])
    assert "unknown part 'gan'; known are vae, wgan, w2v" in capsys.readouterr().err
    missing = ["--data-dir", str(tmp_path / "nowhere"), "--data", "mnist"]
    assert benchmark.main(["--parts", "vae", *small, *missing]) == 1
    assert "nowhere" in capsys.readouterr().err
