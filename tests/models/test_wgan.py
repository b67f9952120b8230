"""WGAN_GP: gradients of critic and generator, modes of a mixture, a generator that learns."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import gpulayers.backend
from gpulayers import random
from gpulayers.errors import DivergedError, NotInitializedError, ParameterError, ShapeError
from gpulayers.models import WGAN_GP


@pytest.fixture
def float64():
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype("float64")
    yield
    gpulayers.backend.set_default_dtype(before)


def data(n: int = 4, width: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, width))


def made(backend: Any, **options: Any) -> tuple[WGAN_GP, Any]:
    random.seed(2)
    X = backend.asarray(data())
    gan = WGAN_GP(**{"g_hidden": 6, "debug": True, **options})
    gan.forward(X, "G", retain_derived=False)
    gan.forward(X, "C", retain_derived=False)
    for layer in gan._layers():  # biases of zero would hide faults
        b = np.random.default_rng(1).normal(size=layer.parameters["b"].shape) * 0.3
        layer.parameters["b"][...] = backend.asarray(b)
    return gan, X


def differences(gan: WGAN_GP, chain: Any, backend: Any, value: Any) -> None:
    """Compare the gradients of a chain with differences of `value()`, at a few entries each."""
    gradients = {
        (key, name): backend.asnumpy(layer.gradients[name]).copy()
        for key, layer in chain.items()
        for name in ("W", "b")
    }
    rng = np.random.default_rng(4)
    assert any(gradient.any() for gradient in gradients.values())
    for (key, name), gradient in gradients.items():
        parameter = chain[key].parameters[name]
        start = backend.asnumpy(parameter).copy()
        for _ in range(3 if backend.name == "numpy" else 1):
            i = tuple(int(rng.integers(0, s)) for s in start.shape)
            sides = []
            for h in (1e-6, -1e-6):
                moved = start.copy()
                moved[i] += h
                parameter[...] = backend.asarray(moved)
                sides.append(value())
            parameter[...] = backend.asarray(start)
            want = (sides[0] - sides[1]) / 2e-6
            assert gradient[i] == pytest.approx(want, rel=1e-5, abs=1e-7), (key, name)


def test_critic_gradient_is_that_of_the_loss(float64, backend):
    """With the penalty, whose gradient needs the double backward."""
    gan, X = made(backend)

    def value() -> float:
        random.seed(9)
        return float(gan.update_critic(X))

    value()
    differences(gan, gan.critic, backend, value)


def test_generator_gradient_passes_through_the_critic(float64, backend):
    """numpy-ml gives the generator the loss's gradient as if it came from its own output."""
    gan, X = made(backend)

    def value() -> float:
        random.seed(9)
        return float(gan.update_generator(X.shape))

    value()
    for layer in gan.critic.values():
        assert not backend.asnumpy(layer.gradients["W"]).any() and not layer.X
    differences(gan, gan.generator, backend, value)


def test_critic_against_torch(float64, numpy_backend):
    torch = pytest.importorskip("torch")
    gan, X = made(numpy_backend)
    loss = gan.update_critic(X)
    dv = gan.derived_variables
    p = {
        (key, name): torch.tensor(layer.parameters[name], requires_grad=True)
        for key, layer in gan.critic.items()
        for name in ("W", "b")
    }

    def critic(x):
        for key in ("FC1", "FC2", "FC3"):
            x = torch.relu(x @ p[key, "W"] + p[key, "b"])
        return x @ p["FC4", "W"] + p["FC4", "b"]

    interp = torch.tensor(dv["X_interp"], requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(interp).sum(), interp, create_graph=True)
    np.testing.assert_allclose(dv["gradInterp"], gradient.detach().numpy(), rtol=1e-11)
    theirs = (
        critic(torch.tensor(dv["X_fake"])).mean()
        - critic(torch.tensor(X)).mean()
        + 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
    )
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-12)
    for (key, name), tensor in p.items():
        want = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(
            gan.critic[key].gradients[name], want, rtol=1e-9, atol=1e-11, err_msg=f"{key} {name}"
        )


def test_generator_moves_and_leaves_the_critic(backend):
    """In numpy-ml it moves by 0 in five steps, the critic by 0.12."""
    gan, X = made(backend, debug=False)

    def snapshot(chain: Any) -> list[np.ndarray]:
        return [backend.asnumpy(layer.parameters["W"]).copy() for layer in chain.values()]

    critic, generator = snapshot(gan.critic), snapshot(gan.generator)
    gan.update_generator(X.shape)
    assert all(map(np.array_equal, critic, snapshot(gan.critic)))
    moved = [np.abs(a - b).max() for a, b in zip(generator, snapshot(gan.generator), strict=True)]
    assert min(moved) > 0
    generator = snapshot(gan.generator)
    gan.update_critic(X)
    assert all(map(np.array_equal, generator, snapshot(gan.generator)))
    assert not any(map(np.array_equal, critic, snapshot(gan.critic)))


def test_finds_all_modes_of_a_mixture(numpy_backend, capsys):
    """Four normal distributions on a ring. A generated point is good within three standard
    deviations of the nearest one (Srivastava et al., "VEEGAN", 2017); each must hold 5 %."""
    rng, std = np.random.default_rng(0), 0.05
    angles = np.arange(4) * np.pi / 2
    centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = centres[rng.integers(0, 4, 4000)] + std * rng.normal(size=(4000, 2))
    points = points.astype(np.float32)
    random.seed(0)
    gan = WGAN_GP(g_hidden=48, optimizer="Adam(lr=0.003, decay1=0.5, decay2=0.9)")
    options = {"lambda_": 0.1, "batchsize": 64, "c_updates_per_epoch": 3}
    losses = gan.fit(points, n_steps=240, **options)
    assert len(losses) == 240 and gan.loss.lambda_ == 0.1
    assert len(capsys.readouterr().out.splitlines()) == 10
    for layer in gan._layers():
        layer.optimizer.set_params({"lr": 0.0003})
    gan.fit(points, n_steps=60, verbose=False, **options)
    drawn = gan.sample(2500)
    distance = np.linalg.norm(drawn[:, None] - centres, axis=2)
    good = distance.min(axis=1) < 3 * std
    shares = np.bincount(distance.argmin(axis=1)[good], minlength=4) / 2500
    assert good.mean() > 0.45 and shares.min() > 0.05, (good.mean(), shares)


def test_fit_on_each_backend(backend):
    losses = []
    for _ in range(2):
        gan, X = made(backend, debug=False)
        losses.append(gan.fit(X, n_steps=2, batchsize=3, c_updates_per_epoch=2, verbose=False))
    assert losses[0] == losses[1]
    assert isinstance(gan.sample(2), backend.xp.ndarray) and gan.sample(2).dtype == np.float32


def test_divergence_ends_the_fit_soon(numpy_backend):
    random.seed(0)
    steps: list[int] = []
    gan = WGAN_GP(g_hidden=16, optimizer="SGD(lr=1e30)")
    with (
        np.errstate(all="ignore"),
        pytest.raises(DivergedError, match=r"losses of critic and generator are .* in step 2;"),
    ):
        gan.fit(
            data().astype(np.float32),
            n_steps=25,
            batchsize=3,
            verbose=False,
            callbacks=lambda model, step: steps.append(step),
        )
    assert steps == [1]


def test_debug_keeps_the_values(backend):
    gan, X = made(backend)
    before = backend.asnumpy(gan.critic["FC1"].parameters["W"]).copy()
    gan.update_critic(X)
    gan.update_generator(X.shape)
    np.testing.assert_array_equal(backend.asnumpy(gan.critic["FC1"].parameters["W"]), before)
    dv = gan.derived_variables
    assert {"noise", "alpha", "X_fake", "X_real", "X_interp", "Y_fake", "Y_real", "Y_interp",
            "dY_real", "dC_Y_fake", "gradInterp", "dGrad_interp", "C_loss", "G_loss", "dG_Y_fake",
            "G_fwd_X_fake", "C_fwd_Y_real", "C_fwd_Y_fake", "C_fwd_Y_interp",
            "C_dY_interp_wrt", "components"} == set(dv)  # fmt: skip
    alpha, real, fake, between, noise = (
        backend.asnumpy(dv[k]) for k in ("alpha", "X_real", "X_fake", "X_interp", "noise")
    )
    assert alpha.shape == (4, 1) and 0 <= alpha.min() < alpha.max() < 1
    np.testing.assert_allclose(between, alpha * real + (1 - alpha) * fake, rtol=1e-6, atol=1e-6)
    generated = gan.forward(backend.asarray(noise), "G", retain_derived=False)[0]
    np.testing.assert_allclose(backend.asnumpy(generated), fake, rtol=1e-5, atol=1e-6)
    for name in ("G_fwd_X_fake", "C_fwd_Y_real", "C_dY_interp_wrt"):
        assert set(dv[name]) == {"FC0", "FC1", "FC2", "FC3", "FC4"}
    assert list(gan.generator) == list(gan.critic) == ["FC1", "FC2", "FC3", "FC4"]


def test_summary_goes_on_exactly():
    X = data(8).astype(np.float32)
    options = {"n_steps": 2, "batchsize": 4, "verbose": False}
    gan = WGAN_GP(g_hidden=6, optimizer="Adam")
    gan.fit(X, **options)
    summary = copy.deepcopy(gan.summary())
    twin = WGAN_GP(g_hidden=6, optimizer="Adam").set_params(summary)
    told = []
    for model in (gan, twin):
        random.seed(5)
        told.append(model.fit(X, **options))
    assert told[0] == told[1]
    with pytest.raises(NotInitializedError, match="call forward first"):
        WGAN_GP().set_params({"parameters": {"components": {"critic": {"FC1": {"W": None}}}}})


def test_bad_calls():
    gan, X = WGAN_GP(g_hidden=4), data()
    with pytest.raises(NotInitializedError, match="no example was seen"):
        gan.sample(2)
    with pytest.raises(NotInitializedError, match="no example was seen"):
        gan.update_generator((2, 3))
    with pytest.raises(ParameterError, match="module must be 'G'"):
        gan.forward(X, "D")
    gan.forward(X, "C", retain_derived=False)
    with pytest.raises(ShapeError, match=r"expected \(n_ex, 3\), got \(4, 2\)"):
        gan.forward(X[:, :2], "C")
    with pytest.raises(ShapeError, match=r"expected an input \(n_ex, n_features\)"):
        gan.fit(X[0])
    for bad in ({"n_steps": 0}, {"batchsize": 1.5}, {"c_updates_per_epoch": 0}):
        with pytest.raises(ParameterError, match=f"fit: {next(iter(bad))} must be an integer >= 1"):
            gan.fit(X, **bad)
    with pytest.raises(ParameterError, match="lambda_ must be in"):
        gan.fit(X, lambda_=-1)
