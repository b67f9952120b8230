"""VAELoss and WGAN_GPLoss: loops, central differences, PyTorch, what numpy-ml has wrong."""

import math

import numpy as np
import pytest

from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.losses import VAELoss, WGAN_GPLoss
from tests.functional.test_losses import each_float, is_loss, slope

# ------------------------------------------------------------------------------------- VAE


def vae_arrays(n=4, features=5, latent=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.uniform(size=(n, features))
    p = rng.uniform(0.05, 0.95, size=(n, features))
    return [np.asarray(a, dtype) for a in (y, p, rng.normal(size=(n, latent)),
                                           rng.normal(size=(n, latent)))]  # fmt: skip


def vae_gold(y, p, mean, log_var):
    total = 0.0
    for i in range(len(y)):
        for a, b in zip(y[i], p[i], strict=True):
            total -= float(a) * math.log(b) + (1 - float(a)) * math.log(1 - float(b))
        for m, v in zip(mean[i], log_var[i], strict=True):
            total -= 0.5 * (1 + float(v) - float(m) ** 2 - math.exp(v))
    return total / max(len(y), 1)


@each_float
@pytest.mark.parametrize("n", [0, 1, 4])
def test_vae_loss(dtype, tolerance, n, backend):
    arrays = vae_arrays(n, dtype=dtype)
    ours = [backend.asarray(a) for a in arrays]
    with backend.forbid("sync", "h2d", "d2h"):
        loss = VAELoss.loss(*ours)
        VAELoss.grad(*ours)
    assert is_loss(loss, backend, dtype) == pytest.approx(
        vae_gold(*arrays), rel=10 * tolerance, abs=1e-12
    )
    assert float(VAELoss()(*ours)) == float(loss)
    for before, after in zip(arrays, ours, strict=True):
        np.testing.assert_array_equal(backend.asnumpy(after), before)


def test_vae_gradients_are_those_of_the_loss(backend):
    arrays = vae_arrays()
    got = VAELoss.grad(*[backend.asarray(a) for a in arrays])
    # (dY_pred, dLogVar, dMean), as numpy-ml orders them
    for gradient, i in zip(got, (1, 3, 2), strict=True):

        def f(x, i=i):
            changed = [backend.asarray(a) for a in (*arrays[:i], x, *arrays[i + 1 :])]
            return float(VAELoss.loss(*changed))

        gold = slope(f, arrays[i])
        np.testing.assert_allclose(backend.asnumpy(gradient), gold, rtol=1e-6, atol=1e-8)


def test_vae_against_torch(numpy_backend):
    torch = pytest.importorskip("torch")
    y, *rest = vae_arrays(7, 6, 2, seed=3)
    p, mean, log_var = (torch.tensor(a, requires_grad=True) for a in rest)
    normal = torch.distributions.Normal
    code = normal(mean, (0.5 * log_var).exp())
    divergence = torch.distributions.kl_divergence(
        code, normal(torch.zeros_like(mean), torch.ones_like(mean))
    ).sum()
    bce = torch.nn.functional.binary_cross_entropy(p, torch.tensor(y), reduction="sum")
    theirs = (bce + divergence) / 7
    theirs.backward()
    assert float(VAELoss.loss(y, *rest)) == pytest.approx(theirs.item(), rel=1e-12)
    for ours, tensor in zip(VAELoss.grad(y, *rest), (p, log_var, mean), strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vae_of_certain_predictions_is_finite(dtype, backend):
    y = backend.asarray(np.array([[0, 1, 0, 1]], np.uint8))
    p = backend.asarray(np.array([[0, 1, 1, 0]], dtype))
    code = backend.asarray(np.zeros((1, 2), dtype))
    assert math.isfinite(float(VAELoss.loss(y, p, code, code)))
    if dtype != "float16":  # 1 / eps is beyond float16
        dY, dLogVar, _ = VAELoss.grad(y, p, code, code)
        assert np.isfinite(backend.asnumpy(dY)).all() and dLogVar.dtype == np.dtype(dtype)


def test_vae_bad_calls(backend):
    y, p, mean, log_var = (backend.asarray(a) for a in vae_arrays())
    with pytest.raises(ShapeError, match=r"VAELoss.loss: t_mean and t_log_var must both be"):
        VAELoss.loss(y, p, mean[:2], log_var[:2])
    with pytest.raises(ShapeError, match=r"must both be .n_ex, n_latent. with n_ex = 4"):
        VAELoss.grad(y, p, mean, log_var[:, :1])
    with pytest.raises(ShapeError, match=r"y_pred must have y's shape \(4, 5\)"):
        VAELoss.loss(y, p[:, :2], mean, log_var)
    with pytest.raises(ShapeError, match=r"y_pred must be \(n_ex, n_features\)"):
        VAELoss.loss(y[0], p[0], mean, log_var)
    with pytest.raises(DTypeError, match="t_mean must be a floating array, got int64"):
        VAELoss.loss(y, p, mean.astype(np.int64), log_var)
    with pytest.raises(DTypeError, match=r"VAELoss.loss: t_log_var: expected a numpy .* got list"):
        VAELoss.loss(y, p, mean, [1.0])


# ------------------------------------------------------------------------------------- WGAN-GP


def critic_arrays(n=5, features=4, dtype=np.float64, column=False, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, 1) if column else (n,)
    drawn = [rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(n, features))]
    return [np.asarray(a, dtype) for a in drawn]


def critic_gold(fake, real, gradient, lambda_):
    total = 0.0
    for i in range(len(fake)):
        norm = math.sqrt(sum(float(g) ** 2 for g in gradient[i]))
        total += float(fake[i].item()) - float(real[i].item()) + lambda_ * (norm - 1) ** 2
    return total / len(fake)


@each_float
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("n", [1, 5])
def test_wgan_losses(dtype, tolerance, column, n, backend):
    fake, real, gradient = critic_arrays(n, dtype=dtype, column=column)
    ours = [backend.asarray(a) for a in (fake, real, gradient)]
    objective = WGAN_GPLoss(lambda_=3)
    with backend.forbid("sync", "h2d", "d2h"):
        loss = objective.loss(ours[0], "C", ours[1], ours[2])
        other = objective(ours[0], "G")
        objective.grad(ours[0], "C", ours[1], ours[2])
    gold = critic_gold(fake, real, gradient, 3)
    close = {"rel": 20 * tolerance, "abs": 20 * tolerance}
    assert is_loss(loss, backend, dtype) == pytest.approx(gold, **close)
    assert is_loss(other, backend, dtype) == pytest.approx(-fake.astype(float).mean(), **close)


@pytest.mark.parametrize("column", [False, True])
def test_wgan_gradients_are_those_of_the_loss(column, backend):
    """numpy-ml's dY_fake and dY_real of the critic are -1/n and +1/n: the wrong way round (D36)."""
    arrays = critic_arrays(column=column)
    objective = WGAN_GPLoss()
    fake, real, gradient = (backend.asarray(a) for a in arrays)
    got = objective.grad(fake, "C", real, gradient)
    assert float(backend.asnumpy(got[0]).ravel()[0]) == pytest.approx(1 / 5)
    assert float(backend.asnumpy(got[1]).ravel()[0]) == pytest.approx(-1 / 5)
    for i, ours in enumerate(got):

        def f(x, i=i):
            a = [backend.asarray(v) for v in (*arrays[:i], x, *arrays[i + 1 :])]
            return float(objective.loss(a[0], "C", a[1], a[2]))

        gold = slope(f, arrays[i])
        np.testing.assert_allclose(backend.asnumpy(ours), gold, rtol=1e-6, atol=1e-8)
    gold = slope(lambda x: float(objective.loss(backend.asarray(x), "G")), arrays[0])
    ours = backend.asnumpy(objective.grad(fake, "G"))
    np.testing.assert_allclose(ours, gold, rtol=1e-6, atol=1e-9)
    assert ours.shape == arrays[0].shape


def test_wgan_penalty_against_torch(numpy_backend):
    torch = pytest.importorskip("torch")
    arrays = critic_arrays(6, 3, seed=2)
    fake, real, gradient = (torch.tensor(a, requires_grad=True) for a in arrays)
    theirs = fake.mean() - real.mean() + 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
    theirs.backward()
    objective = WGAN_GPLoss()
    assert float(objective(arrays[0], "C", arrays[1], arrays[2])) == pytest.approx(theirs.item())
    got = objective.grad(arrays[0], "C", arrays[1], arrays[2])
    for ours, tensor in zip(got, (fake, real, gradient), strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_wgan_gradient_at_a_norm_of_zero_is_zero(backend):
    fake, real, gradient = (backend.asarray(a) for a in critic_arrays())
    gradient[1] = 0
    got = backend.asnumpy(WGAN_GPLoss().grad(fake, "C", real, gradient)[2])
    assert (got[1] == 0).all() and np.isfinite(got).all() and got[0].any()


def test_wgan_bad_calls(backend):
    fake, real, gradient = (backend.asarray(a) for a in critic_arrays())
    objective = WGAN_GPLoss()
    for bad in ("c", "critic", None, fake):
        with pytest.raises(ParameterError, match=r"module must be 'C' .critic. or 'G'"):
            objective(fake, bad)
    with pytest.raises(ParameterError, match="the critic's loss needs Y_real"):
        objective(fake, "C", gradInterp=gradient)
    with pytest.raises(ParameterError, match="the critic's loss needs gradInterp"):
        objective.grad(fake, "C", real)
    with pytest.raises(ShapeError, match=r"Y_fake must be \(n_ex,\) or \(n_ex, 1\)"):
        objective(gradient, "G")
    with pytest.raises(ShapeError, match=r"Y_fake must be .* n_ex >= 1, got \(0,\)"):
        objective.grad(fake[:0], "G")
    with pytest.raises(ShapeError, match="gradInterp must be"):
        objective(fake, "C", real, fake)
    with pytest.raises(DTypeError, match="Y_real must be a floating array"):
        objective(fake, "C", real.astype(np.int64), gradient)
    with pytest.raises(DTypeError, match=r"WGAN_GPLoss.loss: gradInterp: expected .* got list"):
        objective(fake, "C", real, [1.0])
    if backend.name != "numpy":
        with pytest.raises(BackendError):
            objective(fake, "C", np.zeros(5), gradient)
    with pytest.raises(ParameterError, match="lambda_ must be in"):
        WGAN_GPLoss(-1)
    assert str(WGAN_GPLoss(5)) == "WGAN_GPLoss(lambda_=5)"
