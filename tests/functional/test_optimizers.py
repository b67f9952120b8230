"""Optimizers: rules against loops and PyTorch, clipping, state, parameters, checkpoints."""

import math

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.errors import DTypeError, ParameterError, ShapeError
from gpulayers.optimizers import SGD, Adam
from gpulayers.schedulers import ConstantScheduler

RULES = ("SGD", "AdaGrad", "RMSProp", "Adam", "AdamW")
rule = pytest.mark.parametrize("name", RULES)


def make(name, **options):
    defaults = {"SGD": {"lr": 0.1, "momentum": 0.9}, "RMSProp": {"lr": 0.1, "decay": 0.8}}
    return getattr(optimizers, name)(**{**defaults.get(name, {"lr": 0.1}), **options})


def gold_steps(name, param, grads, *, lr=0.1, clip=None, eps=1e-7):
    """The rule in float64, one number at a time; returns the parameter after the last gradient."""
    shape, values = param.shape, [float(v) for v in param.ravel()]
    first, second = [0.0] * len(values), [0.0] * len(values)
    for t, grad in enumerate(grads, 1):
        flat = [float(g) for g in grad.ravel()]
        norm = math.sqrt(sum(g * g for g in flat))
        if clip is not None and norm > clip:
            flat = [g * clip / norm for g in flat]
        for i, g in enumerate(flat):
            if name == "SGD":
                first[i] = 0.9 * first[i] + lr * g
                values[i] -= first[i]
            elif name == "AdaGrad":
                first[i] += g * g
                values[i] -= lr * g / (math.sqrt(first[i]) + eps)
            elif name == "RMSProp":
                first[i] = 0.8 * first[i] + 0.2 * g * g
                values[i] -= lr * g / (math.sqrt(first[i]) + eps)
            else:
                values[i] *= 1 - 0.01 * lr * (name == "AdamW")
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                m_hat, v_hat = first[i] / (1 - 0.9**t), second[i] / (1 - 0.999**t)
                values[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)
    return np.array(values).reshape(shape)


def draw(shape=(3, 5), steps=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    scales = rng.choice([1e-3, 1.0, 30.0], size=(steps, *shape))
    grads = rng.normal(size=(steps, *shape)) * scales
    return np.asarray(rng.normal(size=shape), dtype), [np.asarray(g, dtype) for g in grads]


def run(optimizer, param, grads, name="W"):
    for grad in grads:
        optimizer.step()
        optimizer.update_(param, grad, name)
    return param


def test_every_public_optimizer_has_a_case():
    functions = {"clip_global_norm", "clip_value"}
    assert {*RULES, "OptimizerBase"} == set(optimizers.__all__) - functions


# -------------------------------------------------------------------------------------------- rules


@rule
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize(
    "dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5), ("float16", 2e-2)]
)
@pytest.mark.parametrize("shape", [(3, 5), (), (1,), (2, 1, 3, 2)])
def test_rule_against_loops(name, clip, dtype, tolerance, shape, backend):
    param, grads = draw(shape, dtype=dtype)
    eps = 1e-3 if dtype == "float16" else 1e-7  # 1e-7 vanishes in float16
    options = {} if name == "SGD" else {"eps": eps}
    optimizer = make(name, clip_norm=clip, **options)
    array = backend.asarray(param.copy())
    run(optimizer, array, [backend.asarray(g) for g in grads])
    gold = gold_steps(name, param, grads, clip=clip, eps=eps)
    assert array.dtype == np.dtype(dtype)
    if dtype == "float16" and name.startswith("Adam"):
        # 0.001 g^2 of a small gradient is subnormal in float16: only the size is comparable
        tolerance = 0.3
    got = backend.asnumpy(array).astype(np.float64)
    np.testing.assert_allclose(got, gold, rtol=tolerance, atol=tolerance)


@rule
def test_rule_against_torch(name, numpy_backend):
    torch = pytest.importorskip("torch")
    param, grads = draw(steps=8)
    theirs = torch.tensor(param.copy(), requires_grad=True)
    other = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "AdaGrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-7),
        "RMSProp": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.8, eps=1e-7),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-7),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-7, weight_decay=0.01),
    }[name]([theirs])
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        other.step()
    run(make(name), param, grads)
    np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_learning_rate_is_inside_the_velocity(backend):
    optimizer = SGD(lr_scheduler="exponential(initial_lr=1.0, stage_length=1, decay=0.5)")
    optimizer.set_params({"momentum": 0.5})
    param = backend.asarray(np.zeros(1))
    one = backend.asarray(np.ones(1))
    seen = []
    for _ in range(3):
        optimizer.step()
        optimizer.update_(param, one, "W")
        seen.append(float(backend.asnumpy(param)[0]))
    # v1 = 0.5, v2 = 0.25 + 0.25, v3 = 0.25 + 0.125
    assert seen == [-0.5, -1.0, -1.375]


@rule
def test_call_returns_a_new_array_and_leaves_its_inputs(name, backend):
    param, grads = draw()
    optimizer, twin = make(name), make(name)
    array, grad = backend.asarray(param.copy()), backend.asarray(grads[0].copy())
    updated = optimizer(array, grad, "W", 0.5)
    assert updated is not array and isinstance(updated, backend.xp.ndarray)
    np.testing.assert_array_equal(backend.asnumpy(array), param)
    np.testing.assert_array_equal(backend.asnumpy(grad), grads[0])
    twin.update_(array, grad, "W")
    np.testing.assert_array_equal(backend.asnumpy(updated), backend.asnumpy(array))
    assert not np.array_equal(backend.asnumpy(updated), param)


@rule
@pytest.mark.parametrize("clip", [None, 0.5])
def test_update_keeps_identity_and_never_waits(name, clip, backend):
    param, grads = draw(dtype=np.float32)
    optimizer = make(name, clip_norm=clip)
    array, grad = backend.asarray(param), backend.asarray(grads[0])
    optimizer.update_(array, grad, "W")

    def state():
        entry = optimizer.cache["W"]
        return [entry[k] for k in ("mean", "var")] if name.startswith("Adam") else [entry]

    before, pointer = state(), array
    with backend.forbid("sync", "h2d", "d2h"):
        optimizer.update_(array, grad, "W")
    assert pointer is array
    assert all(a is b for a, b in zip(before, state(), strict=True))
    for entry in state():
        assert isinstance(entry, backend.xp.ndarray)
        assert entry.dtype == array.dtype and entry.shape == array.shape
    np.testing.assert_array_equal(backend.asnumpy(grad), grads[0])


def test_fused_update_is_one_launch(emulated):
    param, grads = draw(dtype=np.float32)
    array, grad = emulated.asarray(param), emulated.asarray(grads[0])
    for name in RULES:
        optimizer = make(name)
        optimizer.update_(array, grad, "W")
        with emulated.count() as events:
            optimizer.update_(array, grad, "W")
        # AdamW's decay of the parameter is a launch of its own
        assert events["launch"] == 1 + (name == "AdamW"), (name, events)


@rule
def test_hostile_layouts(name, backend):
    param, grads = draw((4, 6), steps=1)
    gold = gold_steps(name, param, grads)
    wide = np.zeros((4, 13))
    wide[:, 1::2] = grads[0]
    for grad in (np.asfortranarray(grads[0]), wide[:, 1::2], grads[0].astype(np.float32)):
        for layout in (param, np.asfortranarray(param)):
            got = make(name)(backend.asarray(layout), backend.asarray(grad), "W")
            assert got.dtype == np.float64
            tolerance = 1e-12 if grad.dtype == np.float64 else 1e-5
            np.testing.assert_allclose(backend.asnumpy(got), gold, rtol=tolerance, atol=tolerance)
    with pytest.raises(ShapeError, match=f"{name}: 'W' must be C-contiguous, it is changed"):
        array = backend.asarray(np.asfortranarray(param))
        make(name).update_(array, backend.asarray(grads[0]), "W")


@rule
@pytest.mark.parametrize("seen", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_refused_update_changes_nothing(name, seen, dtype, backend):
    """Neither the parameter nor the state, also where the state is there already."""
    optimizer = make(name)
    param, (grad,) = draw((4, 6), steps=1, dtype=dtype)
    grad = backend.asarray(grad)
    if seen:
        optimizer.update_(backend.asarray(param.copy()), grad, "W")
    state = optimizer.state_dict()["cache"]
    turned = backend.asarray(np.asfortranarray(param))
    calls = [(turned, grad, ShapeError, "'W' must be C-contiguous")]
    if backend.library == "numpy":  # CuPy has no read-only arrays
        fixed = param.copy()
        fixed.flags.writeable = False
        calls.append((fixed, grad, ParameterError, "'W' is read-only"))
    calls.append((None, grad, DTypeError, "param: expected"))
    calls.append((backend.asarray(param), [1.0], DTypeError, "param_grad: expected"))
    for array, its_grad, error, message in calls:
        with pytest.raises(error, match=f"{name}: {message}"):
            optimizer.update_(array, its_grad, "W")
        if array is not None:
            np.testing.assert_array_equal(backend.asnumpy(array), param)
    assert str(optimizer.state_dict()["cache"]) == str(state)


@rule
@pytest.mark.parametrize("clip", [None, 1.0])
def test_empty_parameter(name, clip, backend):
    empty = backend.asarray(np.zeros((0, 3), np.float32))
    assert make(name, clip_norm=clip)(empty, empty, "W").shape == (0, 3)


# ----------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e30, 1e200])
def test_clipped_norm(dtype, size, backend):
    if size > float(np.finfo(dtype).max) / 10:
        pytest.skip("not representable")
    grad = (np.random.default_rng(0).normal(size=(6, 7)) * size).astype(dtype)
    step = SGD(lr=1.0, clip_norm=2.0)(
        backend.asarray(np.zeros((6, 7), dtype)), backend.asarray(grad), "W"
    )
    step = -backend.asnumpy(step).astype(np.float64)
    wide = grad.astype(np.float64)
    norm = np.abs(wide).max() * np.sqrt(((wide / np.abs(wide).max()) ** 2).sum())
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    if norm <= 2.0:
        np.testing.assert_array_equal(step, wide)
    else:
        np.testing.assert_allclose(step, wide * (2.0 / norm), rtol=tolerance)


def test_clip_is_for_each_parameter_by_itself(backend):
    optimizer = SGD(lr=1.0, clip_norm=1.0)
    for name, length in (("W", 3.0), ("b", 0.5)):
        grad = backend.asarray(np.array([0.0, length]))
        step = optimizer(backend.asarray(np.zeros(2)), grad, name)
        assert backend.asnumpy(step).tolist() == [0.0, -min(length, 1.0)]


def test_zero_gradient_and_a_huge_limit(backend):
    zero = backend.asarray(np.zeros(3, np.float32))
    for limit in (1.0, 1e300):
        assert backend.asnumpy(SGD(lr=1.0, clip_norm=limit)(zero, zero, "W")).tolist() == [0, 0, 0]
    one = backend.asarray(np.ones(3, np.float32))
    assert backend.asnumpy(SGD(lr=1.0, clip_norm=1e300)(zero, one, "W")).tolist() == [-1] * 3


# --------------------------------------------------------------------------------- steps, schedules


def test_schedule_sees_step_and_loss():
    seen = []

    class Spy(ConstantScheduler):
        def learning_rate(self, step=None, cur_loss=None):
            seen.append((step, cur_loss))
            return 0.5

    optimizer = SGD(lr_scheduler=Spy())
    one = np.ones(2)
    for loss in (3.0, 2.0):
        optimizer.step()
        assert optimizer(one, one, "W", loss).tolist() == [0.5, 0.5]
        optimizer.update_(one.copy(), one, "b", cur_loss=loss)
    optimizer.reset_step()
    optimizer(one, one, "W")
    assert seen == [(1, 3.0), (1, 3.0), (2, 2.0), (2, 2.0), (0, None)]


def test_noam_at_step_zero_does_nothing_yet():
    optimizer = Adam(lr_scheduler="noam")
    assert optimizer(np.ones(2), np.ones(2), "W").tolist() == [1.0, 1.0]
