"""Modules: summaries, copies, errors."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import numpy as np
import pytest

from gpulayers import modules
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from tests.conftest import Backend
from tests.layers.harness import snapshot
from tests.modules import cases as table
from tests.modules.cases import CASES, Case, backward, forward, gold_of, named, on, with_cases
from tests.modules.test_modules import assert_grads, assert_lists_close, step
from tests.support.compare import assert_same_bits

# -------------------------------------------------------------------------------------- state


def trained(case: Case, backend: Backend) -> Any:
    module = case.fresh(backend, optimizer="Adam(lr=0.05)")
    for seed in (1, 11):
        step(case, module, backend, seed=seed)
        module.update()
    return module


@with_cases
def test_a_new_module_takes_a_summary_and_goes_on(case: Case, backend: Backend) -> None:
    module = trained(case, backend)
    summary = copy.deepcopy(module.summary())
    assert summary.keys() == {"layer", "parameters", "hyperparameters"}
    assert summary["layer"] == summary["hyperparameters"]["layer"] == case.module
    assert summary["parameters"]["components"].keys() == set(module.component_ids)
    keys = copy.deepcopy(module.hyperparameters).keys()
    other = case.make().set_params(summary)
    assert summary["hyperparameters"].keys() == keys
    assert other.hyperparameters.keys() == keys
    for name, value in module.hyperparameters.items():
        if name not in ("optimizer", "components"):
            assert other.hyperparameters[name] == value
    for seed in (21, 31):  # the optimizer's state is there, too
        results = [step(case, one, backend, seed=seed) for one in (module, other)]
        for a, b in zip(*[Ys + dXs for Ys, dXs in results], strict=True):
            assert_same_bits(a, b)
        module.update()
        other.update()
    for name, array in named(module, "parameters").items():
        assert_same_bits(named(other, "parameters")[name], array)


OTHERS = {
    "SkipConnectionIdentityModule": lambda: modules.SkipConnectionIdentityModule(9, 1, 1),
    "SkipConnectionConvModule": lambda: modules.SkipConnectionConvModule(9, 9, 1, 1, 1),
    "WavenetResidualModule": lambda: modules.WavenetResidualModule(9, 9, 9, 9),
    "MultiHeadedAttentionModule": lambda: modules.MultiHeadedAttentionModule(9),
    "BidirectionalLSTM": lambda: modules.BidirectionalLSTM(9, "Sigmoid", "Tanh", "sum"),
}


@with_cases
def test_settings_come_from_the_summary(case: Case, numpy_backend: Backend) -> None:
    """A module built with other settings becomes the one described."""
    module = trained(case, numpy_backend)
    other = OTHERS[case.module]().set_params(copy.deepcopy(module.summary()))
    assert repr(other) == repr(module)
    for a, b in zip(forward(other, case.inputs()), forward(module, case.inputs()), strict=True):
        assert_same_bits(a, b)


@with_cases
def test_a_used_module_takes_a_summary_in_place(case: Case, backend: Backend) -> None:
    module, other = trained(case, backend), case.fresh(backend)
    arrays = named(other, "parameters")
    other.set_params(module.summary())
    for name, array in named(module, "parameters").items():
        assert named(other, "parameters")[name] is arrays[name]
        assert_same_bits(arrays[name], array)
        assert arrays[name] is not array


@with_cases
def test_parameters_alone(case: Case, numpy_backend: Backend) -> None:
    module = trained(case, numpy_backend)
    new = case.make().set_params({"parameters": copy.deepcopy(module.parameters)})
    for a, b in zip(forward(new, case.inputs()), forward(module, case.inputs()), strict=True):
        assert_same_bits(a, b)


@with_cases
def test_bad_summaries_change_nothing(case: Case, numpy_backend: Backend) -> None:
    module = case.fresh(numpy_backend)
    before = snapshot(named(module, "parameters"))
    parts = copy.deepcopy(module.parameters["components"])
    last = [name for name, arrays in parts.items() if arrays][-1]
    for arrays in parts.values():
        for array in arrays.values():
            array += 1
    wrong = next(iter(parts[last]))
    parts[last][wrong] = np.ones((3, 3, 3, 3, 3))
    for summary, error, message in [
        ({"layer": "Other"}, ParameterError, "got the summary of a 'Other'"),
        ({"hyperparameters": {"inti": 3}}, ParameterError, "unknown entry 'inti'.*mean 'init'"),
        ({"parameters": {"components": {"conv9": {}}}}, ParameterError, "no component 'conv9'"),
        ({"parameters": {"components": parts}}, ShapeError, f"{last}: .*'{wrong}' must have shape"),
        ({"hyperparameters": {"init": "glorot"}}, ParameterError, "unknown mode 'glorot'"),
    ]:
        with pytest.raises(error, match=rf"{case.module}.*{message}"):
            module.set_params(summary)
    for name, array in named(module, "parameters").items():
        assert_same_bits(array, before[name])
    assert_lists_close(step(case, module, numpy_backend)[1], gold_of(case).dXs)


@with_cases
def test_deep_copies_are_independent(case: Case, numpy_backend: Backend) -> None:
    module = trained(case, numpy_backend)
    twin = copy.deepcopy(module)
    before = snapshot(named(twin, "parameters"))
    step(case, module, numpy_backend)
    module.update()
    for name, array in before.items():
        assert_same_bits(named(twin, "parameters")[name], array)


# -------------------------------------------------------------------------------------- errors


@with_cases
def test_bad_inputs_leave_nothing_behind(case: Case, emulated: Backend) -> None:
    module, good = case.fresh(emulated), on(emulated, case.inputs())
    forward(module, good)  # waits for its backward
    for k, X in enumerate(good):
        for bad, error in [
            (X[..., None], ShapeError),
            (X[..., :0], ShapeError),
            (X.astype("int32"), DTypeError),
            (np.ones(X.shape), BackendError),
            (3.0, DTypeError),
        ]:
            with pytest.raises(error, match=case.module):
                forward(module, [*good[:k], bad, *good[k + 1 :]])
    dYs = on(emulated, table.known_gradients(gold_of(case).Ys))
    for bad, error in [
        (dYs[0][..., None], ShapeError),
        (dYs[0].swapaxes(0, -1)[:-1], ShapeError),
        (dYs[0].astype("int32"), DTypeError),
        (table.known_gradients(gold_of(case).Ys)[0], BackendError),
        (3.0, DTypeError),
    ]:
        with pytest.raises(error, match=case.module):
            backward(module, [bad, *dYs[1:]])
        with pytest.raises(error, match=case.module):
            backward(module, [*dYs[:-1], bad])
    module.flush_gradients()  # a refused second gradient may have come after a good first one
    _, dXs = step(case, module, emulated)
    assert_lists_close(dXs, gold_of(case).dXs)
    assert_grads(module, gold_of(case).grads)


@with_cases
def test_a_refused_input_does_not_disturb_the_one_that_waits(
    case: Case, numpy_backend: Backend
) -> None:
    module, good = case.fresh(numpy_backend), case.inputs()
    Ys = forward(module, good)
    for k, X in enumerate(good):
        with pytest.raises(ShapeError):
            forward(module, [*good[:k], X[..., None], *good[k + 1 :]])
    assert len(module.X) == 1
    assert_lists_close(backward(module, table.known_gradients(Ys)), gold_of(case).dXs)
    assert_grads(module, gold_of(case).grads)


BAD_ARGUMENTS: list[tuple[str, Any, str]] = [
    ("identity", lambda: modules.SkipConnectionIdentityModule(0, 3, 3), "out_ch must be"),
    ("identity", lambda: modules.SkipConnectionIdentityModule(2, 0, 3), "kernel must be"),
    ("identity", lambda: modules.SkipConnectionIdentityModule(2, 3, 3, stride2=0), "stride must"),
    ("identity", lambda: modules.SkipConnectionIdentityModule(2, 3, 3, act_fn="rellu"), "rellu"),
    ("identity", lambda: modules.SkipConnectionIdentityModule(2, 3, 3, momentum=2), "momentum"),
    ("conv", lambda: modules.SkipConnectionConvModule(2, 2, 3, 3, 1, pad1=-1), "pad must be"),
    ("conv", lambda: modules.SkipConnectionConvModule(2, 2, 3, 3, 1, optimizer="adamm"), "adamm"),
    ("wavenet", lambda: modules.WavenetResidualModule(2, 2, -1, 2), "dilation must be"),
    ("wavenet", lambda: modules.WavenetResidualModule(2, 2, 1, 0), "kernel(_width)? must be"),
    ("wavenet", lambda: modules.WavenetResidualModule(2, 0, 1, 2), "out_ch must be"),
    ("attention", lambda: modules.MultiHeadedAttentionModule(0), "n_heads must be"),
    ("attention", lambda: modules.MultiHeadedAttentionModule(2, 1.0), "dropout_p must be"),
    ("bidirectional", lambda: modules.BidirectionalLSTM(0), "n_out must be"),
    (
        "bidirectional",
        lambda: modules.BidirectionalLSTM(2, merge_mode="mulitply"),
        "merge_mode must be one of .*mean 'multiply'",
    ),
    ("bidirectional", lambda: modules.BidirectionalLSTM(2, init="glorot"), "unknown mode"),
]


@pytest.mark.parametrize("kind, make, message", BAD_ARGUMENTS)
def test_bad_arguments(kind: str, make: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize("case", CASES[:1] + CASES[5:6] + CASES[-1:], ids=lambda case: case.id)
def test_in_a_network(case: Case, numpy_backend: Backend) -> None:
    """A network trains a module like a layer, and names its parameters."""
    from gpulayers.layers import Flatten, FullyConnected
    from gpulayers.models import Sequential

    if case.module == "WavenetResidualModule":
        pytest.skip("two outputs")
    net = Sequential([case.make(), Flatten(), FullyConnected(1)], optimizer="Adam(lr=0.01)")
    X = case.inputs("float32")[0].astype("float32")
    losses = []
    for _ in range(20):
        Y = net.forward(X)
        losses.append(float(np.sum((Y - 1) ** 2)))
        net.backward(Y - 1, input_grad=False)
        net.update()
    assert losses[-1] < 0.5 * losses[0]
    names = {f"0.{name}" for name in named(net[0], "parameters")}
    assert names | {"2.W", "2.b"} == net.parameters.keys()
    total = sum(g.size for g in net.gradients.values())
    assert net.parameter_count == total
    assert f"{total:,}" in net.table(X.shape[1:])


def test_the_test_sees_a_wrong_gradient() -> None:
    """The test's own test: a module without the way around fails against the gold."""
    case = CASES[0]
    module = case.fresh(Backend("numpy", np, "auto"))
    module._plus = lambda a, b: b  # type: ignore[attr-defined]
    _, dXs = step(case, module, Backend("numpy", np, "auto"))
    with pytest.raises(AssertionError):
        assert_lists_close(dXs, gold_of(case).dXs)


def test_torch_is_looked_for() -> None:
    assert all(case.torch for case in CASES if case.id != "bidirectional-elu-one-step")
    assert importlib.util.find_spec("tests.modules.torch_reference") is not None


@pytest.mark.parametrize("name", sorted({case.module for case in CASES}))
def test_settings_are_the_components_and_stay(name: str) -> None:
    """What is assigned to the module would not reach the components, so it is refused."""
    module = next(case for case in CASES if case.module == name).make()
    assert type(module)._settings
    for setting in type(module)._settings:
        if setting == "merge_mode":  # the module's own
            continue
        before = getattr(module, setting)
        with pytest.raises(ParameterError, match=rf"^{name}: {setting} is a setting of the comp"):
            setattr(module, setting, before)
        assert getattr(module, setting) is before
    copied = copy.deepcopy(module)
    with pytest.raises(ParameterError, match="cannot be assigned to the module"):
        copied.init = "he_normal"
    copied.set_params(OTHERS[name]().summary())  # other settings, so it is built anew
    with pytest.raises(ParameterError, match="Build another"):
        copied.init = "he_normal"


def test_the_merge_of_a_bidirectional_lstm_may_change() -> None:
    module = modules.BidirectionalLSTM(3)
    X = np.ones((2, 4, 5), np.float32)
    both = module.forward(X, retain_derived=False)
    module.merge_mode = "sum"
    Y = module.forward(X, retain_derived=False)
    np.testing.assert_allclose(Y, both[:, :3] + both[:, 3:], rtol=1e-6)
    with pytest.raises(ParameterError, match="BidirectionalLSTM: merge_mode must be one of"):
        module.merge_mode = "mean"
    assert module.merge_mode == module.hyperparameters["merge_mode"] == "sum"
