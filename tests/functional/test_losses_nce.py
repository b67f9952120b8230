"""NCELoss and its sampler: loops, central differences, PyTorch, learning, what numpy-ml loses."""

import math

import numpy as np
import pytest

import gpulayers.backend
from gpulayers import random
from gpulayers.errors import (
    BackendError,
    DTypeError,
    FrozenLayerError,
    NotInitializedError,
    ParameterError,
    ShapeError,
)
from gpulayers.losses import DiscreteSampler, NCELoss
from tests.functional.test_losses import slope

PROBS = np.array([0.3, 0.05, 0.25, 0.1, 0.2, 0.1])


@pytest.fixture
def float64():
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype("float64")
    yield
    gpulayers.backend.set_default_dtype(before)


def make(**options):
    random.seed(3)
    return NCELoss(6, DiscreteSampler(PROBS), 4, **options)


def example(n=3, contexts=2, n_in=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, contexts, n_in)), rng.integers(0, 6, n)


def gold(X, target, noise, W, b, subtract=True):
    """Loss, probabilities and gradients, one number at a time."""
    total, y_pred = 0.0, np.zeros(X.shape[:2])
    dX, dW, db = np.zeros_like(X), np.zeros_like(W), np.zeros_like(b)
    for i in range(X.shape[0]):
        for c in range(X.shape[1]):
            for k, label in [(target[i], 1), *((k, 0) for k in noise)]:
                s = sum(X[i, c, d] * W[k, d] for d in range(X.shape[2])) + b[0, k]
                s -= math.log(PROBS[k]) if subtract else 0.0
                p = 1 / (1 + math.exp(-s))
                total -= math.log(p) if label else math.log(1 - p)
                if label:
                    y_pred[i, c] = p
                for d in range(X.shape[2]):
                    dX[i, c, d] += (p - label) * W[k, d]
                    dW[k, d] += (p - label) * X[i, c, d]
                db[0, k] += p - label
    return total, y_pred, dX, dW, db


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    "target, noise",
    [
        pytest.param([0, 1, 0], [2, 3, 4, 5], id="no hit"),
        pytest.param([0, 1, 0], [1, 0, 4, 4], id="hits and repeats"),
        pytest.param([2], [2, 2, 2, 2], id="only hits"),
    ],
)
def test_target_among_the_negatives_counts_as_both(target, noise, subtract, float64, backend):
    """numpy-ml deletes the target's part of dW and db if the target was drawn (D37): off by .2."""
    X, _ = example(len(target))
    target, noise = np.array(target), np.array(noise)
    objective = make(subtract_log_label_prob=subtract)
    x, t, k = (backend.asarray(a) for a in (X, target, noise))
    loss, y_pred = objective(x, t, k)
    W, b = (backend.asnumpy(objective.parameters[n]).copy() for n in ("W", "b"))
    dX = objective.grad(update_params=False)
    want = gold(X, target, noise, W, b, subtract)
    got = [loss, y_pred, dX, objective.gradients["W"], objective.gradients["b"]]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(backend.asnumpy(ours), theirs, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(backend.asnumpy(x), X)


def test_gradients_are_those_of_the_loss(float64, backend):
    X, target = example()
    noise = backend.asarray(np.array([target[0], 3, 3, 5]))
    t = backend.asarray(target)
    objective = make()

    def value():
        return float(objective(backend.asarray(X), t, noise, retain_derived=False)[0])

    value()
    objective.parameters["b"] += 0.3
    objective(backend.asarray(X), t, noise)
    dX = objective.grad(update_params=False)

    def at_input(x):
        return float(objective(backend.asarray(x), t, noise, retain_derived=False)[0])

    np.testing.assert_allclose(backend.asnumpy(dX), slope(at_input, X), rtol=1e-6, atol=1e-8)
    for name, array in objective.parameters.items():
        start = backend.asnumpy(array).copy()

        def at_parameter(p, array=array):
            array[...] = backend.asarray(p)
            return value()

        want = slope(at_parameter, start)
        array[...] = backend.asarray(start)
        ours = backend.asnumpy(objective.gradients[name])
        np.testing.assert_allclose(ours, want, rtol=1e-6, atol=1e-8)


def test_against_torch(float64, numpy_backend):
    torch = pytest.importorskip("torch")
    X, target = example(5, 1, 4, seed=4)
    noise = np.array([0, 1, 2, 2])
    objective = make()
    loss, _ = objective(X, target, noise)
    W = torch.tensor(objective.parameters["W"], requires_grad=True)
    x = torch.tensor(X, requires_grad=True)
    logs = torch.log(torch.tensor(PROBS))
    scores = x @ W.T - logs
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    positive = scores[torch.arange(5), :, torch.tensor(target)]
    negative = scores[:, :, torch.tensor(noise)]
    theirs = bce(positive, torch.ones_like(positive), reduction="sum")
    theirs = theirs + bce(negative, torch.zeros_like(negative), reduction="sum")
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-12)
    np.testing.assert_allclose(objective.grad(update_params=False), x.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(objective.gradients["W"], W.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_several_losses_before_one_grad(float64, backend):
    objective, single = make(), make()
    noise = backend.asarray(np.array([1, 2, 3, 4]))
    total = 0.0
    for seed in (0, 1):
        X, target = (backend.asarray(a) for a in example(seed=seed))
        objective(X, target, noise)
        single(X, target, noise, retain_derived=False)
        single.parameters["W"][...] = objective.parameters["W"]
        single(X, target, noise)
        single.grad(update_params=False)
        total = total + backend.asnumpy(single.gradients["W"]).copy()
        single.flush_gradients()
    dX = objective.grad(update_params=False)
    assert isinstance(dX, list) and len(dX) == 2
    np.testing.assert_allclose(backend.asnumpy(objective.gradients["W"]), total, rtol=1e-12)


def test_learning_lowers_the_loss_and_keeps_arrays(backend):
    X, target = example(8, 1)
    x, t = backend.asarray(X.astype(np.float32)), backend.asarray(target)
    objective = make(optimizer="SGD(lr=0.1)")
    noise = backend.asarray(np.array([0, 1, 2, 3]))
    losses = []
    for _ in range(30):
        losses.append(float(objective(x, t, noise)[0]))
        W = objective.parameters["W"]
        assert objective.grad().dtype == np.float32
        assert objective.parameters["W"] is W and not objective.X
        assert not backend.asnumpy(objective.gradients["W"]).any()
    assert losses[-1] < 0.6 * losses[0]


def test_fixed_negatives_never_wait_for_the_device(backend):
    X, target = example()
    x, t = backend.asarray(X.astype(np.float32)), backend.asarray(target)
    noise = backend.asarray(np.array([0, 1, 2, 3]))
    objective = make()
    objective(x, t, noise, retain_derived=False)
    with backend.forbid("sync", "h2d", "d2h"):
        objective(x, t, noise)
        objective.grad()


def test_huge_scores_stay_finite(float64, backend):
    X = backend.asarray(np.full((1, 1, 3), 1e4))
    objective = make()
    loss, y_pred = objective(X, backend.asarray(np.array([0])), backend.asarray(np.arange(4)))
    assert math.isfinite(float(loss)) and np.isfinite(backend.asnumpy(y_pred)).all()
    assert np.isfinite(backend.asnumpy(objective.grad())).all()


def test_frozen_is_evaluation(float64, backend):
    X, target = example()
    x, t = backend.asarray(X), backend.asarray(target)
    objective = make()
    objective(x, t, retain_derived=False)
    objective.freeze()
    loss, y_pred = objective(x, t)
    probabilities = backend.asnumpy(y_pred)
    assert float(loss) == pytest.approx(-np.log(probabilities).sum())
    with pytest.raises(FrozenLayerError, match="frozen"):
        objective.grad()
    with pytest.raises(AssertionError, match="frozen"):  # numpy-ml's type
        objective.update()
    objective.unfreeze()
    objective.flush_gradients()
    objective(x, t)
    assert len(objective.derived_variables["noise_samples"]) == 1
    noise, p_target, p_noise = objective.derived_variables["noise_samples"][0]
    assert noise.shape == (4,) and p_target.shape == (1, 3) and p_noise.shape == (4,)


def test_summary_goes_on_exactly(backend):
    X, target = example()
    x, t = backend.asarray(X.astype(np.float32)), backend.asarray(target)
    noise = backend.asarray(np.array([0, 1, 2, 3]))
    objective = make(optimizer="Adam(lr=0.1)")
    objective(x, t, noise)
    objective.grad()
    twin = NCELoss(6, DiscreteSampler(PROBS), 4).set_params(objective.summary())
    assert twin.parameters["W"] is not objective.parameters["W"]
    for one in (objective, twin):
        one(x, t, noise)
        one.grad()
    assert float(objective(x, t, noise)[0]) == float(twin(x, t, noise)[0])
    with pytest.raises(ShapeError, match=r"W must be \(6, n_in\)"):
        twin.set_params({"parameters": {"W": np.ones((5, 3)), "b": np.ones((1, 5))}})
    with pytest.raises(ShapeError, match=r"b must be \(1, 6\)"):
        twin.set_params({"parameters": {"W": np.ones((6, 3)), "b": np.ones(6)}})


def test_optimizers_are_not_shared():
    from gpulayers.optimizers import SGD

    shared = SGD(momentum=0.9)
    assert make(optimizer=shared).optimizer is not shared
    assert make().hyperparameters["id"] == "NCELoss" and "n_classes=6" in str(make())


def test_moving(emulated):
    X, target = example()
    objective = make()
    objective(X.astype(np.float32), target)
    objective.grad()
    x, t = emulated.asarray(X.astype(np.float32)), emulated.asarray(target)
    with pytest.raises(BackendError, match=r"the parameters are numpy arrays"):
        objective(x, t)
    objective.to("cupy")
    objective(x, t)
    assert isinstance(objective.grad(), emulated.xp.ndarray)


def test_bad_calls(backend):
    X, target = (backend.asarray(a) for a in example())
    objective = make()
    with pytest.raises(NotInitializedError, match="needs a loss"):
        objective.grad()
    with pytest.raises(ShapeError, match=r"X must be \(n_ex, n_c, n_in\), got \(2, 3\)"):
        objective(X[0], target)
    with pytest.raises(DTypeError, match=r"NCELoss: target: expected a numpy .* got list"):
        objective(X, [1, 2, 3])
    with pytest.raises(DTypeError, match="X must be a floating array"):
        objective(X.astype(np.int64), target)
    with pytest.raises(ShapeError, match=r"target must be \(3,\)"):
        objective(X, target[:1])
    with pytest.raises(DTypeError, match="target must be integers"):
        objective(X, target.astype(np.float32))
    with pytest.raises(ShapeError, match=r"neg_samples must be \(4,\)"):
        objective(X, target, target)
    with pytest.raises(ParameterError, match=r"neg_samples must be in 0..5, got 0..6"):
        objective(X, target, np.array([0, 1, 2, 6]))
    if backend.name == "numpy":
        with pytest.raises(ParameterError, match=r"target must be in 0..5"):
            objective(X, target + 6)
    else:
        assert math.isnan(float(objective(X, target + 6, np.arange(4))[0]))
    with pytest.raises(ShapeError, match=r"X must be \(n_ex, n_c, 3\)"):
        objective(backend.asarray(np.ones((3, 1, 2))), target)


def test_bad_arguments():
    sampler = DiscreteSampler(PROBS)
    with pytest.raises(ParameterError, match=r"callable with probs of shape \(5,\)"):
        NCELoss(5, sampler, 2)
    with pytest.raises(ParameterError, match="callable with probs"):
        NCELoss(5, lambda n: n, 2)
    with pytest.raises(ParameterError, match="num_negative_samples must be an integer >= 0"):
        NCELoss(6, sampler, -1)
    with pytest.raises(ParameterError, match="each class needs a positive probability"):
        NCELoss(2, DiscreteSampler([1.0, 0.0]), 2)
    assert NCELoss(2, DiscreteSampler([1.0, 0.0]), 2, subtract_log_label_prob=False).n_classes == 2


# ------------------------------------------------------------------------------------ the sampler


def test_sampler_draws_with_the_given_probabilities():
    random.seed(0)
    drawn = DiscreteSampler([3, 0, 1])(40_000)
    counts = np.bincount(drawn, minlength=3) / 40_000
    assert drawn.dtype == np.int64 and counts[1] == 0
    assert counts[0] == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 40_000))
    random.seed(0)
    np.testing.assert_array_equal(DiscreteSampler([3, 0, 1])(40_000), drawn)
    log = DiscreteSampler(np.log([3.0, 2.0, 1.0]) - 800, log=True)
    np.testing.assert_allclose(log.probs, [3 / 6, 2 / 6, 1 / 6])


def test_sampler_at_the_borders():
    class Fixed:
        def uniform(self, shape, dtype, xp):
            return np.array([0.0, np.nextafter(0.75, 0), 0.75, np.nextafter(1.0, 0)])

    drawn = DiscreteSampler([0, 3, 1, 0], generator=Fixed())(4)
    assert drawn.tolist() == [1, 1, 2, 2]


def test_sampler_without_replacement():
    random.seed(1)
    sampler = DiscreteSampler([0.5, 0.3, 0.2, 0.0], with_replacement=False)
    first = np.zeros(4)
    for _ in range(4000):
        drawn = sampler(2)
        assert len(set(drawn)) == 2 and 3 not in drawn
        first[drawn[0]] += 1
    np.testing.assert_allclose(first / 4000, [0.5, 0.3, 0.2, 0.0], atol=0.04)
    with pytest.raises(ParameterError, match="4 samples without replacement"):
        sampler(4)


@pytest.mark.parametrize("bad", [[], [[0.5, 0.5]], [-1, 2], [0, 0], [float("nan")], "ab", None])
def test_sampler_refuses(bad):
    with pytest.raises(ParameterError, match="DiscreteSampler: probs must be"):
        DiscreteSampler(bad)
    with pytest.raises(ParameterError, match="n_samples"):
        DiscreteSampler([1.0])(1.5)


@pytest.mark.parametrize("dtype, close", [("float16", 2e-2), ("float32", 1e-5)])
def test_dtype_stays(dtype, close, backend):
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype(dtype)
    try:
        objective = make()
        X, target = example()
        noise = np.array([target[0], 3, 3, 5])
        x, t = backend.asarray(X), backend.asarray(target.astype(np.int32))
        loss, y_pred = objective(x, t, backend.asarray(noise))
        W, b = (backend.asnumpy(objective.parameters[n]).astype(float) for n in ("W", "b"))
        dX = objective.grad(update_params=False)
    finally:
        gpulayers.backend.set_default_dtype(before)
    assert loss.dtype == np.float32 and y_pred.dtype == dX.dtype == np.dtype(dtype)
    want = gold(X.astype(dtype).astype(float), target, noise, W, b)
    got = [loss, y_pred, dX, objective.gradients["W"], objective.gradients["b"]]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(backend.asnumpy(ours), theirs, rtol=close, atol=close)


def test_without_negatives(float64, backend):
    """The targets alone: their logistic losses."""
    objective = NCELoss(6, DiscreteSampler(PROBS), 0, subtract_log_label_prob=False)
    X, target = np.random.default_rng(0).standard_normal((3, 1, 4)), np.array([1, 5, 1])
    loss, _ = objective.loss(backend.asarray(X), backend.asarray(target))
    W, b = (backend.asnumpy(objective.parameters[k]).copy() for k in "Wb")
    scores = (X[:, 0] * W[target]).sum(axis=1) + b[0, target]
    assert float(loss) == pytest.approx(np.logaddexp(0, -scores).sum(), rel=1e-9)
    dX = objective.grad(update_params=False)
    slopes = -1 / (1 + np.exp(scores))
    np.testing.assert_allclose(backend.asnumpy(dX)[:, 0], slopes[:, None] * W[target], rtol=1e-9)
    db = np.zeros(6)
    np.add.at(db, target, slopes)
    np.testing.assert_allclose(backend.asnumpy(objective.gradients["b"])[0], db, atol=1e-12)
