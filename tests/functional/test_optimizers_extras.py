"""Nesterov momentum, weight decay, clipping by value and by the norm of all gradients."""

import math

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.errors import BackendError, DTypeError, ParameterError
from gpulayers.initializers import OptimizerInitializer
from gpulayers.optimizers import SGD, AdaGrad, Adam, AdamW, RMSProp, clip_global_norm, clip_value
from tests.functional.test_optimizers import draw, run

ALL = (SGD, AdaGrad, RMSProp, Adam, AdamW)


def torch_run(make, param, grads):
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(param.copy(), requires_grad=True)
    optimizer = make(torch.optim, [theirs])
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        optimizer.step()
    return theirs.detach().numpy()


CASES = {
    "nesterov": (
        SGD(lr=0.1, momentum=0.9, nesterov=True),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "SGD": (
        SGD(lr=0.1, momentum=0.9, weight_decay=0.2),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
    ),
    "AdaGrad": (
        AdaGrad(lr=0.1, weight_decay=0.2),
        lambda o, p: o.Adagrad(p, lr=0.1, eps=1e-7, weight_decay=0.2),
    ),
    "RMSProp": (
        RMSProp(lr=0.1, decay=0.8, weight_decay=0.2),
        lambda o, p: o.RMSprop(p, lr=0.1, alpha=0.8, eps=1e-7, weight_decay=0.2),
    ),
    "Adam": (
        Adam(lr=0.1, weight_decay=0.2),
        lambda o, p: o.Adam(p, lr=0.1, eps=1e-7, weight_decay=0.2),
    ),
    "AdamW": (
        AdamW(lr=0.1, weight_decay=0.2),
        lambda o, p: o.AdamW(p, lr=0.1, eps=1e-7, weight_decay=0.2),
    ),
}


@pytest.mark.parametrize("optimizer, make", CASES.values(), ids=CASES)
def test_against_torch(optimizer, make, backend):
    param, grads = draw(steps=8)
    want = torch_run(make, param, grads)
    array = backend.asarray(param.copy())
    ours = [backend.asarray(g.copy()) for g in grads]
    run(optimizer.copy(), array, ours)
    np.testing.assert_allclose(backend.asnumpy(array), want, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(backend.asnumpy(ours[-1]), grads[-1])


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_and_shape_stay(shape, dtype, backend):
    for optimizer, _ in CASES.values():
        param = backend.asarray(np.ones(shape, dtype))
        one = optimizer.copy()
        one.set_params({"clip_value": 0.5})
        grads = [backend.asarray(np.ones(shape, dtype))] * 2
        with backend.forbid("sync", "h2d", "d2h"):
            run(one, param, grads)
        assert param.dtype == np.dtype(dtype) and param.shape == shape
        assert (backend.asnumpy(param) < 1).all()


def test_weight_decay_comes_after_clipping(backend):
    param = backend.asarray(np.array([2.0, 2.0]))
    optimizer = SGD(lr=1.0, clip_value=3.0, clip_norm=1.0, weight_decay=0.5)
    optimizer.update_(param, backend.asarray(np.array([4.0, -30.0])), "W")
    root = math.sqrt(0.5)  # [3, -3] has the norm 3 sqrt 2
    np.testing.assert_allclose(backend.asnumpy(param), [2 - root - 1, 2 + root - 1])


@pytest.mark.parametrize("cls", ALL)
def test_extras_are_told_only_when_set(cls):
    """Without them a description is numpy-ml's, which does not know them."""
    plain = cls(lr=0.5)
    assert "clip_value" not in str(plain) and "nesterov" not in plain.hyperparameters
    assert ("weight_decay" in str(plain)) == (cls is AdamW)
    extras = {"clip_value": 2.0, "weight_decay": 0.25}
    options = {**extras, "momentum": 0.5, "nesterov": True} if cls is SGD else extras
    optimizer = cls(lr=0.5, **options)
    for form in (str(optimizer), {"hyperparameters": optimizer.hyperparameters}):
        again = OptimizerInitializer(form)()
        assert type(again) is cls and again.hyperparameters == optimizer.hyperparameters
        assert {key: getattr(again, key) for key in options} == options
    with pytest.raises(ParameterError, match="clip_value must be in"):
        cls(clip_value=0)
    with pytest.raises(ParameterError, match="weight_decay must be in"):
        cls(weight_decay=-1)


@pytest.mark.parametrize("cls", ALL)
def test_checkpoint_without_extras_switches_them_off(cls):
    optimizer = cls(clip_value=2.0)
    optimizer.load_state_dict(cls().state_dict())
    assert optimizer.clip_value is None
    optimizer.load_state_dict(cls(clip_value=3.0, weight_decay=0.5).state_dict())
    assert (optimizer.clip_value, optimizer.weight_decay) == (3.0, 0.5)


def test_nesterov_needs_a_momentum():
    with pytest.raises(ParameterError, match="nesterov=True needs a momentum > 0"):
        SGD(nesterov=True)
    optimizer = SGD(momentum=0.9, nesterov=True)
    with pytest.raises(ParameterError, match="nesterov=True needs a momentum > 0"):
        optimizer.set_params({"lr": 0.5, "momentum": 0.0})
    assert (optimizer.lr, optimizer.momentum, optimizer.lr_scheduler(1)) == (0.01, 0.9, 0.01)
    with pytest.raises(ParameterError, match="unknown argument 'nesterov'"):
        Adam(nesterov=True)


# ------------------------------------------------------------------------------ all gradients


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_global_norm(dtype, limit, backend):
    rng = np.random.default_rng(0)
    given = [rng.normal(size=s).astype(dtype) for s in ((3, 2), (4,), (0, 2), ())]
    norm = math.sqrt(sum(float(g) ** 2 for a in given for g in np.ravel(a)))
    grads = [backend.asarray(g.copy()) for g in given]
    same = list(grads)
    with backend.forbid("sync", "h2d", "d2h"):
        told = clip_global_norm(iter(grads), limit)
    assert told.shape == () and told.dtype == (np.float64 if dtype == "float64" else np.float32)
    close = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-13}[dtype]
    assert float(told) == pytest.approx(norm, rel=close)
    factor = min(1.0, limit / norm)
    for grad, old, one in zip(grads, given, same, strict=True):
        assert grad is one and grad.dtype == np.dtype(dtype)
        want = factor * old.astype(float)
        np.testing.assert_allclose(backend.asnumpy(grad), want, rtol=close, atol=close)


def test_global_norm_against_torch(numpy_backend):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    given = [rng.normal(size=s) * 10 for s in ((3, 2), (4,))]
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in given]
    for tensor, grad in zip(tensors, given, strict=True):
        tensor.grad = torch.tensor(grad)
    norm = torch.nn.utils.clip_grad_norm_(tensors, 2.0)
    assert float(clip_global_norm(given, 2.0)) == pytest.approx(norm.item(), rel=1e-12)
    for grad, tensor in zip(given, tensors, strict=True):  # torch adds 1e-6 to the norm
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-6)


def test_global_norm_of_extremes(backend):
    for size in (1e-30, 1e30):
        grads = [backend.asarray(np.full(2, size, np.float32)) for _ in range(2)]
        told = float(clip_global_norm(grads, 1.0))
        assert told == pytest.approx(2 * size)
        if size > 1:
            np.testing.assert_allclose(backend.asnumpy(grads[0]), 0.5)
        else:
            np.testing.assert_array_equal(backend.asnumpy(grads[0]), np.float32(size))
    for limit in (1e-30, 1.0, 1e30, 1e300):  # a limit that clips nothing only measures
        grads = [backend.asarray(np.full(2, 0.5, np.float32)) for _ in range(2)]
        assert float(clip_global_norm(grads, limit)) == pytest.approx(1.0)
        want = 0.5 * min(1.0, limit)
        np.testing.assert_allclose(backend.asnumpy(grads[0]), want, rtol=1e-6)
    zero = [backend.asarray(np.zeros(3))]
    assert float(clip_global_norm(zero, 1.0)) == 0.0
    assert not backend.asnumpy(zero[0]).any()


def test_clip_value(backend):
    grads = [backend.asarray(np.array([-3.0, 0.5, np.nan, 3.0], d)) for d in ("float16", "float64")]
    clip_value(grads, 1.0)
    for grad in grads:
        np.testing.assert_array_equal(backend.asnumpy(grad), [-1.0, 0.5, np.nan, 1.0])
    clip_value(grads, 1e300)  # beyond float16


def test_bad_calls(backend):
    one = backend.asarray(np.ones(2))
    with pytest.raises(ParameterError, match="at least one gradient"):
        clip_global_norm([], 1.0)
    for bad in (0, -1, math.nan, "1"):
        with pytest.raises(ParameterError, match="max_norm must be"):
            clip_global_norm([one], bad)
        with pytest.raises(ParameterError, match="limit must be"):
            clip_value([one], bad)
    for clip in (clip_global_norm, clip_value):
        with pytest.raises(DTypeError, match="gradients must be floating arrays, got int64"):
            clip([one, one.astype(np.int64)], 1.0)
        with pytest.raises(DTypeError, match=rf"{clip.__name__}: a gradient: expected .* got list"):
            clip([one, [1.0]], 1.0)
    if backend.name != "numpy":
        with pytest.raises(BackendError):
            clip_global_norm([one, np.ones(2)], 1.0)
    assert optimizers.clip_value is clip_value


def test_a_layer_learns_with_clipped_gradients(backend):
    from gpulayers.layers import FullyConnected

    layer = FullyConnected(2, optimizer="AdamW(lr=0.1, weight_decay=0.1, clip_value=5)")
    X = backend.asarray(np.ones((3, 4), np.float32))
    layer.backward(layer.forward(X))
    clip_global_norm(layer.gradients.values(), 1e-3)
    total = sum(float((backend.asnumpy(g) ** 2).sum()) for g in layer.gradients.values())
    assert math.sqrt(total) == pytest.approx(1e-3, rel=1e-5)
    layer.update()


def test_a_global_norm_of_half_precision_keeps_its_digits():
    """The factor, here 5e-9, is no float16."""
    grad = np.full(1000, 6e4, np.float16)
    assert float(clip_global_norm([grad], 0.01)) == pytest.approx(6e4 * math.sqrt(1000), rel=1e-3)
    np.testing.assert_allclose(grad.astype("f8"), 0.01 / math.sqrt(1000), rtol=1e-3)
    grad = np.full(1000, 6e4, np.float16)
    clip_global_norm([grad], 0.2)
    assert np.linalg.norm(grad.astype("f8")) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("rule", ALL)
def test_both_clips_of_a_parameter_without_axes(rule):
    optimizer = rule(lr=0.1, clip_value=0.5, clip_norm=0.25)
    param, twin = np.array(1.0), np.array([1.0])
    for one in (param, twin):
        optimizer.update_(one, np.full_like(one, 2.0), f"W{one.ndim}")
    assert param == twin[0] != 1.0
