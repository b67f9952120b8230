"""Half-precision parameters: float32 master weights and state in the optimizer's cache."""

import numpy as np
import pytest

from gpulayers import optimizers
from gpulayers.backend import default_dtype, set_default_dtype
from gpulayers.errors import ParameterError
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.optimizers import SGD, Adam
from gpulayers.training import load, save
from tests.functional.test_optimizers import draw, gold_steps, make, rule, run

ml_dtypes = pytest.importorskip("ml_dtypes")
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def master_of(optimizer, backend, name="W"):
    return backend.asnumpy(optimizer.cache[name]["master"])


def drawn(backend, dtype, steps=40):
    """A parameter and gradients in a half type, and the same numbers in float64."""
    param, grads = draw(steps=steps)
    param, grads = param.astype(dtype), [np.asarray(g, dtype) for g in grads]
    exact = param.astype(np.float64), [g.astype(np.float64) for g in grads]
    return backend.asarray(param), [backend.asarray(g) for g in grads], exact


@half
@rule
@pytest.mark.parametrize("clip", [None, 0.5])
def test_rules_on_masters_against_float64(name, dtype, clip, backend):
    param, grads, exact = drawn(backend, dtype)
    optimizer = make(name, clip_norm=clip)
    with backend.forbid("sync", "h2d", "d2h"):
        run(optimizer, param, grads)
    master = master_of(optimizer, backend)
    assert master.dtype == np.float32 and param.dtype == dtype
    gold = gold_steps(name, *exact, clip=clip)
    np.testing.assert_allclose(master, gold, rtol=5e-5, atol=5e-5)
    np.testing.assert_array_equal(backend.asnumpy(param), master.astype(dtype))
    kept = optimizer.cache["W"]
    for key, state in kept.items():
        assert key == "t" or state.dtype == np.float32, key


@half
def test_tiny_steps_add_up(dtype, numpy_backend):
    """10,000 steps, each a 500th of float16's spacing at 1 and less of bfloat16's."""
    param, grad = np.ones(3, dtype), np.ones(3, dtype)
    optimizer = SGD(lr=2e-6)
    run(optimizer, param, [grad] * 10_000)
    np.testing.assert_allclose(param.astype(float), 0.98, atol=float(ml_dtypes.finfo(dtype).eps))
    np.testing.assert_allclose(optimizer.cache["W"]["master"], 0.98, atol=5e-4)


@half
@rule
def test_changed_parameters_are_taken_over_where_they_changed(name, dtype, backend):
    param, grads, _ = drawn(backend, dtype, 4)
    optimizer = make(name, lr=1e-4, **({"momentum": 0.0} if name == "SGD" else {}))
    run(optimizer, param, grads[:3])
    before = master_of(optimizer, backend)
    param[0] = param[0] * 0 + 7.0
    zero = backend.asarray(np.zeros(param.shape, dtype))
    optimizer.set_params({"lr": 0.0})
    with backend.forbid("sync", "h2d", "d2h"):
        optimizer.update_(param, zero, "W")
    after = master_of(optimizer, backend)
    assert (after[0] == 7.0).all()
    np.testing.assert_array_equal(after[1:], before[1:])
    assert (before[1:] != before[1:].astype(dtype)).any()  # bits that the parameter has not


@rule
def test_half_state_of_before_and_the_way_to_float32(name, backend):
    """A state without masters goes on; in a float32 parameter the entry is numpy-ml's again."""
    param, grads, _ = drawn(backend, HALVES[0], 2)
    first = make(name)
    run(first, param, grads[:1])
    entry = first.cache["W"]
    state = {k: v for k, v in entry.items() if k != "master"}
    old = {k: v if k == "t" else v.astype(np.float16) for k, v in state.items()}
    second = make(name).set_params(cache_dict={"W": old.get("state", old)})
    second.update_(param, grads[1], "W")
    assert second.cache["W"]["master"].dtype == np.float32

    third = make(name)
    third.load_state_dict(first.state_dict())
    assert third.cache["W"]["master"] is not entry["master"]
    wide = param.astype(np.float32)
    third.update_planned(None, wide, grads[1].astype(np.float32), "W", None)
    kept = third.cache["W"]
    assert list(kept) == ["t", "mean", "var"] if name.startswith("Adam") else kept.shape == (3, 5)
    with pytest.raises(ParameterError, match="the state of 'W' does not fit"):
        make(name).set_params(cache_dict={"W": {**entry, "master": 1.0}})


@pytest.mark.parametrize("optimizer", ["Adam(lr=0.01)", "SGD(lr=0.1, momentum=0.9)"])
def test_plan_layers_and_checkpoints_carry_masters(optimizer, tmp_path, numpy_backend):
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(8, 4, 4, 1)), rng.integers(0, 3, 8)
    former = default_dtype()
    set_default_dtype("float16")
    try:
        net = Sequential([Flatten(), FullyConnected(3)], optimizer)
        plan, X = net.compile(batch_shape=X.shape), X.astype(np.float16)
        for _ in range(3):
            plan.step(X, labels)
        save(tmp_path / "net.safetensors", net)
        again = load(tmp_path / "net.safetensors")
        copied = FullyConnected(3).set_params(net[1].summary())
        for other in (again[1], copied):
            ours, theirs = net[1].optimizer.cache["W"], other.optimizer.cache["W"]
            assert list(ours) == list(theirs) and theirs["master"].dtype == np.float32
            np.testing.assert_array_equal(ours["master"], theirs["master"])
        second = again.compile(batch_shape=X.shape)
        for one in (plan, second):
            one.step(X, labels)
        for name, value in net.parameters.items():
            np.testing.assert_array_equal(value, again.parameters[name])
    finally:
        set_default_dtype(former)
    assert not np.array_equal(net[1].optimizer.cache["W"]["master"], net[1].parameters["W"])


@pytest.mark.parametrize("optimizer", ["Adam(lr=0.01)", "SGD(lr=0.1, momentum=0.9)"])
def test_a_captured_plan_takes_the_state_of_a_half_run(optimizer, emulated):
    """In float32 the plan goes on as the layers do, and the masters are gone."""
    rng = np.random.default_rng(0)
    X = emulated.asarray(rng.normal(size=(4, 3, 3, 1)).astype(np.float32))
    labels = emulated.asarray(rng.integers(0, 3, 4))
    nets = [Sequential([Flatten(), FullyConnected(3)], optimizer) for _ in range(2)]
    for net in nets:
        net.forward(X, False)
        half_run = net[1].optimizer.copy()
        for name, value in net[1].parameters.items():
            value[...] = 0.25
            one = value.astype(np.float16)
            half_run.update_(one, one, name)
        net[1].optimizer.load_state_dict(half_run.state_dict())
    plan = nets[0].compile(batch_shape=X.shape)
    objective = SoftmaxCrossEntropy()
    for _ in range(3):
        plan.step(X, labels)
        objective.forward(labels, nets[1].forward(X))
        nets[1].backward(objective.backward())
        nets[1].update()
    for name, value in nets[0][1].parameters.items():
        other = emulated.asnumpy(nets[1][1].parameters[name])
        np.testing.assert_allclose(emulated.asnumpy(value), other, rtol=1e-5, atol=1e-6)
        ours, theirs = (net[1].optimizer.cache[name] for net in nets)
        if optimizer.startswith("Adam"):
            assert set(ours) == set(theirs) == {"t", "mean", "var"} and ours["t"] == theirs["t"]
        else:
            assert ours.shape == theirs.shape == value.shape


def test_wide_parameters_have_none(numpy_backend):
    for dtype in (np.float32, np.float64):
        adam, sgd = Adam(), SGD()
        for one in (adam, sgd):
            one.update_(np.ones(2, dtype), np.ones(2, dtype), "W")
        assert list(adam.cache["W"]) == ["t", "mean", "var"] and sgd.cache["W"].dtype == dtype
    assert optimizers.base.BuiltIn.grad_scale == 1.0
