"""Every module: values, gradients, and the contract that layers keep, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import backend as backends
from gpulayers import modules
from gpulayers.errors import BackendError, FrozenLayerError, ShapeError
from tests.conftest import Backend
from tests.layers.harness import default_dtype, snapshot, values
from tests.modules import cases as table
from tests.modules.cases import CASES, Case, backward, forward, gold_of, named, on, with_cases
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled

NORMALISED = ("SkipConnectionIdentityModule", "SkipConnectionConvModule")
small = [case for case in CASES if sum(np.prod(shape) for shape in case.shapes) <= 48]


def step(case: Case, module: Any, backend: Backend, batch: int | None = None, seed: int = 1) -> Any:
    """One forward and backward pass with known numbers: outputs, gradients of the inputs."""
    Ys = forward(module, on(backend, case.inputs(batch=batch, seed=seed)))
    return Ys, backward(module, on(backend, table.known_gradients(Ys)))


def assert_grads(module: Any, gold: dict, factor: float = 10.0) -> None:
    grads = named(module, "gradients")
    assert grads.keys() == gold.keys()
    for name, expected in gold.items():
        assert_close(grads[name], expected, factor=factor)


def assert_lists_close(actual: list, expected: list, factor: float = 10.0) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, factor=factor)


def test_every_public_module_has_a_case() -> None:
    public = {name for name in modules.__all__ if name != "ModuleBase"}
    assert public == {case.module for case in CASES}
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    assert {case.module for case in small} == public


# ------------------------------------------------------------------------- values and gradients


@with_cases
def test_against_loops(case: Case, backend: Backend) -> None:
    gold = gold_of(case)
    module = case.fresh(backend)
    Ys, dXs = step(case, module, backend)
    assert_lists_close(Ys, gold.Ys)
    assert_lists_close(dXs, gold.dXs)
    assert_grads(module, gold.grads)


@with_cases
def test_against_pytorch(case: Case, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    if case.torch is None:
        pytest.skip("PyTorch has nothing to compare with")
    from tests.modules import torch_reference

    kind, settings = case.torch
    module = case.fresh(backend)
    Ys, dXs = step(case, module, backend)
    grads = named(module, "gradients")
    params = {k: torch.tensor(v) for k, v in case.parameters().items()}
    for name in grads:
        params[name].requires_grad_(True)
    Xs = [torch.tensor(X, requires_grad=True) for X in case.inputs()]
    expected = getattr(torch_reference, kind)(**settings)(params, Xs)
    assert_lists_close(Ys, [Y.detach().numpy() for Y in expected])
    given = [torch.tensor(d) for d in table.known_gradients(Ys)]
    wanted = torch.autograd.grad(expected, [*Xs, *(params[n] for n in grads)], given)
    assert_lists_close(dXs, [w.numpy() for w in wanted[: len(Xs)]], factor=100)
    for name, gold in zip(grads, wanted[len(Xs) :], strict=True):
        assert_close(grads[name], gold.numpy(), factor=100)


class Loss:
    """sum(Y * dY) of one module, as a function of its inputs and parameters."""

    def __init__(self, case: Case, backend: Backend) -> None:
        self.backend, self.module = backend, case.fresh(backend)
        self.Xs = on(backend, case.inputs())
        Ys, dXs = step(case, self.module, backend)
        self.dYs = table.known_gradients(Ys)
        self.places = {f"input {k}": X for k, X in enumerate(self.Xs)}
        grads = named(self.module, "gradients")
        self.places |= {n: named(self.module, "parameters")[n] for n in grads}
        self.grads = {f"input {k}": host(dX).copy() for k, dX in enumerate(dXs)}
        self.grads |= {n: host(g).copy() for n, g in grads.items()}

    def slope(self, name: str, direction: np.ndarray, h: float = 1e-5) -> float:
        place, sides = self.places[name], []
        kept = host(place).copy()
        for sign in (1.0, -1.0):
            place[...] = self.backend.asarray(kept + sign * h * direction)
            Ys = forward(self.module, self.Xs)
            self.module.flush_gradients()
            sides.append(sum(np.sum(host(Y) * d) for Y, d in zip(Ys, self.dYs, strict=True)))
        place[...] = self.backend.asarray(kept)
        return (sides[0] - sides[1]) / (2 * h)


@with_cases
def test_a_random_direction(case: Case, backend: Backend) -> None:
    loss = Loss(case, backend)
    for name, grad in loss.grads.items():
        direction = np.random.default_rng(5).normal(size=grad.shape)
        difference = loss.slope(name, direction)
        assert np.sum(grad * direction) == pytest.approx(difference, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("case", small, ids=lambda case: case.id)
def test_every_single_number(case: Case, numpy_backend: Backend) -> None:
    loss = Loss(case, numpy_backend)
    for name, grad in loss.grads.items():
        for index in np.ndindex(grad.shape):
            direction = np.zeros(grad.shape)
            direction[index] = 1.0
            difference = loss.slope(name, direction)
            assert grad[index] == pytest.approx(difference, rel=1e-6, abs=1e-7), (name, index)


# ----------------------------------------------------------------------------- training, freezing


@with_cases
def test_several_forwards_before_one_backward(case: Case, backend: Backend) -> None:
    module = case.fresh(backend)
    batches = [2, 1, 3]
    golds = [gold_of(case, batch=n) for n in batches]
    columns: list[list] = []
    for n, gold in zip(batches, golds, strict=True):
        Ys = forward(module, on(backend, case.inputs(batch=n)))
        assert_lists_close(Ys, gold.Ys)
        columns.append(on(backend, table.known_gradients(Ys)))
    assert len(module.X) == 3
    dXs = backward(module, [list(column) for column in zip(*columns, strict=True)])
    for k, dX in enumerate(dXs):
        assert isinstance(dX, list)
        # a batch of one pixel has variance 0, and 1 / sqrt(epsilon) magnifies the rounding
        assert_lists_close(dX, [gold.dXs[k] for gold in golds], factor=1e4)
    total = {name: sum(g.grads[name] for g in golds) for name in golds[0].grads}
    assert_grads(module, total, factor=1e4)
    with pytest.raises(ShapeError, match="needs a list of 3 gradients, got 1"):
        backward(module, columns[0])


@with_cases
def test_two_backwards_accumulate(case: Case, backend: Backend) -> None:
    module, gold = case.fresh(backend), gold_of(case)
    Ys, first = step(case, module, backend)
    again = backward(module, on(backend, table.known_gradients(Ys)))
    for a, b in zip(again, first, strict=True):
        assert_same_bits(a, b)
    assert_grads(module, {n: 2 * g for n, g in gold.grads.items()})


@with_cases
def test_flags(case: Case, backend: Backend) -> None:
    module, gold = case.fresh(backend), gold_of(case)
    Ys = forward(module, on(backend, case.inputs()))
    dYs = on(backend, table.known_gradients(Ys))
    assert_lists_close(backward(module, dYs, retain_grads=False), gold.dXs)
    assert not any(host(g).any() for g in named(module, "gradients").values())
    assert backward(module, dYs, input_grad=False) == [None]
    assert_grads(module, gold.grads)


@with_cases
def test_evaluation_keeps_nothing(case: Case, backend: Backend) -> None:
    module = case.fresh(backend)
    Ys = forward(module, on(backend, case.inputs()), retain_derived=False)
    assert module.X == []
    assert all(layer.X == [] for layer in module.components)
    if case.module not in NORMALISED:
        assert_lists_close(Ys, gold_of(case).Ys)
    with pytest.raises(ShapeError, match=rf"{case.module}.* no input is retained"):
        backward(module, on(backend, table.known_gradients(Ys)))


@with_cases
def test_frozen_modules_pass_gradients_and_keep_still(case: Case, backend: Backend) -> None:
    module = case.fresh(backend)
    before = snapshot(named(module, "parameters"))
    module.freeze()
    assert not module.trainable
    assert not any(layer.trainable for layer in module.components)
    Ys, dXs = step(case, module, backend)
    if case.module not in NORMALISED:
        assert_lists_close(Ys, gold_of(case).Ys)
        assert_lists_close(dXs, gold_of(case).dXs)
    assert not any(host(g).any() for g in named(module, "gradients").values())
    with pytest.raises(FrozenLayerError, match=f"{case.module}: the module is frozen; unfreeze"):
        module.update()
    for name, array in named(module, "parameters").items():
        assert_same_bits(array, before[name])
    module.flush_gradients()
    module.unfreeze()
    step(case, module, backend)
    assert_grads(module, gold_of(case).grads)
    module.update()


@with_cases
def test_a_frozen_component_alone_keeps_still(case: Case, numpy_backend: Backend) -> None:
    module = case.fresh(numpy_backend, optimizer="SGD(lr=0.5)")
    name, frozen = next((n, c) for n, c in module.walk() if c.gradients)
    before = named(module, "parameters")
    before = {n: a.copy() for n, a in before.items()}
    frozen.freeze()
    gold = gold_of(case)
    step(case, module, numpy_backend)
    module.update()
    for key, array in named(module, "parameters").items():
        if key.startswith(f"{name}."):
            assert_same_bits(array, before[key])
        elif key in gold.grads:
            assert_close(array, before[key] - 0.5 * gold.grads[key], factor=10)


@with_cases
@pytest.mark.parametrize("spec", ["SGD(lr=0.05, momentum=0.9)", "Adam(lr=0.01)"])
def test_each_component_has_its_own_optimizer_state(
    case: Case, backend: Backend, spec: str
) -> None:
    """D29, D15: numpy-ml's components share one optimizer, whose state is kept by the names W and
    b; the batch normalisations get none of it. Here each step is that of separate optimizers."""
    from gpulayers.initializers import OptimizerInitializer

    shared = OptimizerInitializer(spec)()
    module = case.fresh(backend, optimizer=shared)
    known, alone = case.parameters(), {}
    for seed in (1, 11):
        step(case, module, backend, seed=seed)
        grads = snapshot(named(module, "gradients"))
        module.update()
        for name, grad in grads.items():
            optimizer = alone.setdefault(name, OptimizerInitializer(spec)())
            optimizer.step()
            known[name] = optimizer(known[name], grad, name)
            assert_close(named(module, "parameters")[name], known[name])
    assert shared.cache == {}
    assert shared.cur_step == 0


@with_cases
def test_the_loss_goes_down(case: Case, backend: Backend) -> None:
    module = case.fresh(backend, optimizer="Adam(lr=0.005)")
    Xs, losses = on(backend, case.inputs()), []
    for _ in range(5):
        Ys = forward(module, Xs)
        losses.append(sum(float(np.sum(host(Y) ** 2)) for Y in Ys))
        backward(module, Ys)
        module.update()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------- inputs


@with_cases
def test_inputs_and_gradients_are_left_alone(case: Case, backend: Backend) -> None:
    module = case.fresh(backend)
    Xs = on(backend, case.inputs())
    Ys = forward(module, Xs)
    dYs = on(backend, table.known_gradients(Ys))
    kept = [a.copy() for a in (*Xs, *dYs, *Ys)]
    for dX in backward(module, dYs):
        dX += 1000.0  # what a caller may do with its gradients
    for a, b in zip((*Xs, *dYs, *Ys), kept, strict=True):
        assert_same_bits(a, b)


@with_cases
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(case: Case, backend: Backend, layout: str) -> None:
    results = []
    for change in (lambda a: a, lambda a: scrambled(a, layout)):
        module = case.fresh(backend)
        Ys = forward(module, [change(X) for X in on(backend, case.inputs())])
        dYs = [change(d) for d in on(backend, table.known_gradients(Ys))]
        results.append([*Ys, *backward(module, dYs), *named(module, "gradients").values()])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@with_cases
def test_an_empty_batch(case: Case, backend: Backend) -> None:
    module = case.fresh(backend)
    Ys, dXs = step(case, module, backend, batch=0)
    assert all(len(Y) == 0 for Y in Ys)
    assert [dX.shape for dX in dXs] == [(0, *shape[1:]) for shape in case.shapes]
    assert not any(host(g).any() for g in named(module, "gradients").values())
    module.update()


@with_cases
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_dtype_is_kept(case: Case, backend: Backend, dtype: str) -> None:
    module = case.fresh(backend, dtype, optimizer="Adam")
    Ys = forward(module, on(backend, case.inputs(dtype), dtype))
    dXs = backward(module, table.gradients_like(Ys, backend))
    assert {a.dtype.name for a in (*Ys, *dXs)} == {dtype}
    assert {a.dtype.name for a in named(module, "gradients").values()} == {dtype}
    assert all(isinstance(a, backend.xp.ndarray) for a in (*Ys, *dXs))
    params, Xs = case.parameters(dtype), case.inputs(dtype)
    assert_lists_close(Ys, case.gold(params, Xs, None).Ys, factor=10)
    module.update()
    assert {a.dtype.name for a in named(module, "parameters").values()} == {dtype}


@with_cases
def test_another_dtype_becomes_the_modules(case: Case, backend: Backend) -> None:
    module = case.fresh(backend, "float32")
    Ys = forward(module, on(backend, case.inputs("float32"), "float64"))
    dYs = [backend.asarray(values(Y.shape, 20), "float64") for Y in Ys]
    dXs = backward(module, dYs)
    assert {a.dtype.name for a in (*Ys, *dXs)} == {"float32"}


@with_cases
def test_a_step_neither_waits_nor_copies(case: Case, emulated: Backend) -> None:
    module = case.fresh(emulated, "float32", optimizer="Adam")
    Xs = on(emulated, case.inputs("float32"), "float32")
    dYs = table.gradients_like(forward(module, Xs), emulated)
    module.flush_gradients()
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        forward(module, Xs)
        backward(module, dYs)
        module.update()


@with_cases
def test_moving_between_forward_and_backward(case: Case, emulated: Backend) -> None:
    module = case.fresh(emulated)
    Ys = forward(module, on(emulated, case.inputs()))
    assert module.to("numpy") is module
    dXs = backward(module, table.known_gradients(Ys))
    assert {type(dX) for dX in dXs} == {np.ndarray}
    assert_lists_close(dXs, gold_of(case).dXs)
    assert_grads(module, gold_of(case).grads)
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        module.to("cuda")


@with_cases
def test_the_output_lives_where_the_inputs_do(case: Case, emulated: Backend) -> None:
    with backends.use_backend("cupy"), default_dtype("float64"):
        Ys = forward(case.make(), case.inputs())
    assert {type(Y) for Y in Ys} == {np.ndarray}
