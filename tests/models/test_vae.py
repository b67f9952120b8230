"""BernoulliVAE: gradients by differences and PyTorch, training on digits, numpy-ml's errors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import gpulayers.backend
from gpulayers import random
from gpulayers.errors import (
    DTypeError,
    FrozenLayerError,
    NotInitializedError,
    ParameterError,
    ShapeError,
)
from gpulayers.models import BernoulliVAE
from gpulayers.training import load_data


@pytest.fixture
def float64():
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype("float64")
    yield
    gpulayers.backend.set_default_dtype(before)


def small(**options: Any) -> BernoulliVAE:
    random.seed(1)
    shapes = {
        "T": 2,
        "latent_dim": 5,
        "enc_conv1_out_ch": 2,
        "enc_conv2_out_ch": 3,
        "enc_conv1_kernel_shape": (2, 2),
        "enc_conv2_kernel_shape": (2, 2),
        "enc_pool1_stride": 1,
    }
    return BernoulliVAE(**{**shapes, **options})


def images(n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, 6, 5, 1))


def loss_of(vae: BernoulliVAE, X: Any, retain: bool = False) -> tuple[float, Any]:
    random.seed(7)  # the same noise each time
    X_recon = vae.forward(X, retain)
    return float(vae._loss_of(X, X_recon)), X_recon


def learned(vae: BernoulliVAE) -> dict[str, tuple[Any, Any]]:
    """Parameter and gradient by name."""
    chains = {"encoder": vae.encoder, "decoder": vae.decoder}
    return {
        f"{part}.{key}.{name}": (layer.parameters[name], layer.gradients[name])
        for part, chain in chains.items()
        for key, layer in chain.items()
        for name in layer.gradients
    }


def test_gradients_are_those_of_the_loss(float64, backend):
    vae, X = small(), backend.asarray(images())
    loss_of(vae, X)  # draws the parameters
    _, X_recon = loss_of(vae, X, retain=True)
    vae.backward(X, X_recon)
    rng = np.random.default_rng(3)
    assert len(learned(vae)) == 12
    for name, (parameter, gradient) in learned(vae).items():
        start = backend.asnumpy(parameter).copy()
        for _ in range(2 if backend.name == "numpy" else 1):
            i = tuple(int(rng.integers(0, s)) for s in start.shape)
            sides = []
            for h in (1e-5, -1e-5):
                moved = start.copy()
                moved[i] += h
                parameter[...] = backend.asarray(moved)
                sides.append(loss_of(vae, X)[0])
            parameter[...] = backend.asarray(start)
            want = (sides[0] - sides[1]) / 2e-5
            assert float(backend.asnumpy(gradient)[i]) == pytest.approx(want, rel=2e-5, abs=1e-7), (
                name
            )


def test_against_torch(float64, numpy_backend):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    vae, X = small(enc_conv1_pad=1), images(4)
    loss, X_recon = loss_of(vae, X, retain=True)
    noise = vae.derived_variables["noise"]
    vae.backward(X, X_recon)
    p = {
        name: torch.tensor(parameter, requires_grad=True)
        for name, (parameter, _) in learned(vae).items()
    }

    def conv(x, key, pad):
        bias = p[f"encoder.{key}.b"].reshape(-1)
        return torch.relu(F.conv2d(x, p[f"encoder.{key}.W"].permute(3, 2, 0, 1), bias, padding=pad))

    def dense(x, key):
        return x @ p[f"{key}.W"] + p[f"{key}.b"]

    x = torch.tensor(X).permute(0, 3, 1, 2)
    h = F.max_pool2d(conv(x, "Conv1", 1), 2, 1)
    h = F.max_pool2d(conv(h, "Conv2", 0), 2, 1).permute(0, 2, 3, 1).reshape(4, -1)
    both = dense(torch.relu(dense(h, "encoder.FC4")), "encoder.FC5")
    mean, log_var = both[:, :2], both[:, 2:]
    # numpy-ml multiplies by exp(log_var): for a variance of 4 a deviation of 4, not 2
    z = mean + torch.tensor(noise) * torch.exp(log_var / 2)
    y = torch.sigmoid(dense(torch.relu(dense(z, "decoder.FC1")), "decoder.FC2"))
    bce = F.binary_cross_entropy(y, torch.tensor(X.reshape(4, -1)), reduction="sum")
    theirs = (bce - 0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()) / 4
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-12)
    for name, (_, gradient) in learned(vae).items():
        np.testing.assert_allclose(gradient, p[name].grad.numpy(), rtol=1e-8, atol=1e-11)


def test_noise_has_the_deviation_of_the_code(float64, backend):
    """numpy-ml draws with exp(log_var), the variance, as deviation."""
    vae, X = small(), backend.asarray(images(400))
    bias = np.zeros((1, 4))
    bias[0, 2:] = np.log(4.0)
    vae.forward(backend.asarray(images(1)), retain_derived=False)
    fc5 = vae.encoder["FC5"]
    fc5.parameters["W"][...] = 0
    fc5.parameters["b"][...] = backend.asarray(bias)
    vae.forward(X)
    code = backend.asnumpy(vae.decoder["FC1"].X[0])
    assert code.std() == pytest.approx(2.0, rel=0.1)


def test_works_before_fit():
    """numpy-ml: hyperparameters and forward before fit raise AttributeError."""
    vae = small()
    assert vae.hyperparameters["T"] == 2 and vae.hyperparameters["layer"] == "BernoulliVAE"
    X = images().astype(np.float32)
    out = vae.forward(X)
    assert out.shape == (3, 30) and out.dtype == np.float32
    assert set(vae.derived_variables) == {"noise", "t_mean", "t_log_var", "components"}
    assert list(vae.encoder) == ["Conv1", "Pool1", "Conv2", "Pool2", "Flatten3", "FC4", "FC5"]
    assert list(vae.decoder) == ["FC1", "FC2"]
    W = vae.parameters["components"]["decoder"]["FC2"]["W"]
    assert W is vae.decoder["FC2"].parameters["W"]
    # a second forward pass replaces the first
    vae.backward(X, vae.forward(X))
    vae.update()
    assert not vae.encoder["Conv1"].X and not vae.derived_variables.keys() - {"components"}


def test_learns_digits(numpy_backend, capsys):
    random.seed(0)
    digits = (load_data("mnist-10k").train.images[:256] / 255).astype(np.float32)
    vae = BernoulliVAE(
        latent_dim=64,
        enc_conv1_out_ch=4,
        enc_conv2_out_ch=8,
        enc_conv1_stride=2,
        enc_pool2_stride=2,
        enc_conv2_kernel_shape=(3, 3),
        optimizer="Adam(lr=0.003)",
    )
    losses = vae.fit(digits, n_epochs=8, batchsize=32)
    assert len(losses) == 8 and losses[-1] < 0.55 * losses[0] and losses[-1] < 230
    assert vae.evaluate(digits) == pytest.approx(losses[-1], rel=0.05)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[-1].startswith("epoch 8/8  loss 2")
    drawn = vae.sample(20)
    assert drawn.shape == (20, 784) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    mean, log_var = vae.encode(digits[:5])
    assert mean.shape == log_var.shape == (5, 5)
    bad = np.random.default_rng(0).uniform(size=(20, 784)).astype(np.float32)
    same = vae.loss(digits[:20].reshape(20, -1), bad, *(np.zeros((20, 5), np.float32),) * 2)
    assert float(same) > 2 * losses[-1]


def test_fit_on_each_backend(backend):
    losses = []
    for _ in range(2):
        vae = small(optimizer="Adam(lr=0.01)")
        X = backend.asarray(images(5).astype(np.float32))
        losses.append(vae.fit(X, n_epochs=2, batchsize=2, verbose=False))
        assert isinstance(vae.decoder["FC2"].parameters["W"], backend.xp.ndarray)
        assert vae.decoder["FC2"].parameters["W"].dtype == np.float32
    assert losses[0] == losses[1] and losses[0][1] != losses[0][0]


def test_schedules_see_the_loss(numpy_backend):
    vae = small(optimizer="SGD(lr=0.01, lr_scheduler=KingScheduler(initial_lr=0.01, patience=3))")
    vae.fit(images(6).astype(np.float32), n_epochs=2, batchsize=2, verbose=False)
    seen = vae.encoder["FC4"].optimizer.lr_scheduler.loss_history
    assert len(seen) >= 3 and np.isfinite(np.array(seen, float)).all()


def test_summary_goes_on_exactly():
    X = images().astype(np.float32)
    vae = small(optimizer="Adam(lr=0.01)")
    vae.fit(X, n_epochs=2, batchsize=2, verbose=False)
    summary = copy.deepcopy(vae.summary())
    twin = small(optimizer="Adam(lr=0.01)").set_params(summary)
    for model in (vae, twin):
        random.seed(5)
        model.fit(X, n_epochs=2, batchsize=2, verbose=False)
    assert loss_of(vae, X)[0] == loss_of(twin, X)[0] != 0
    with pytest.raises(ParameterError, match="got the summary of 'WGAN_GP'"):
        vae.set_params({"layer": "WGAN_GP"})
    with pytest.raises(ParameterError, match="expected the summary of a BernoulliVAE"):
        vae.set_params({})
    with pytest.raises(ParameterError, match=r"no layer encoder\.Conv3 .did you mean"):
        vae.set_params({"parameters": {"components": {"encoder": {"Conv3": {}}}}})


@pytest.mark.parametrize("what", ["parameters", "gradients", "derived_variables"])
def test_what_is_assigned_to_a_dictionary_made_anew_is_refused(what, numpy_backend):
    vae = small()
    vae.forward(images())
    for shown in (getattr(vae, what), getattr(vae, what)["components"]):
        with pytest.raises(ParameterError, match=rf"BernoulliVAE\.{what}: it is put together anew"):
            shown["components"] = {}
    with pytest.raises(ParameterError, match="put together anew"):
        getattr(vae, what)["components"]["encoder"]["FC1"] = {}
    summary = copy.deepcopy(vae.summary())
    summary["parameters"]["components"]["encoder"].popitem()
    vae.set_params(summary)


def test_bad_calls():
    vae, X = small(), images()
    with pytest.raises(NotInitializedError, match="no image was seen"):
        vae.sample(3)
    with pytest.raises(NotInitializedError, match="backward needs a forward pass"):
        vae.backward(X, X)
    with pytest.raises(DTypeError, match=r"must be floating, got uint8; .*X / 255"):
        vae.fit((X * 255).astype(np.uint8))
    with pytest.raises(ShapeError, match=r"expected an input \(n_ex, rows, cols, channels\)"):
        vae.forward(X[0])
    with pytest.raises(ParameterError, match=r"pixels must be in \[0, 1\], got"):
        vae.fit(X * 255)
    with pytest.raises(ParameterError, match="n_epochs must be an integer >= 1"):
        vae.fit(X, n_epochs=0)
    with pytest.raises(ParameterError, match="T must be an integer"):
        BernoulliVAE(T=0)
    with pytest.raises(ParameterError, match="unknown optimizer"):
        BernoulliVAE(optimizer="Adma")
    vae.freeze()
    with pytest.raises(FrozenLayerError):
        vae.update()
    vae.unfreeze()
