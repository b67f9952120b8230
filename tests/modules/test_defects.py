"""Defects D14..D19 of numpy-ml's modules, and what else is particular to one of them.

The numbers are those of docs/porting_from_numpy_ml.md.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gpulayers import modules
from gpulayers.errors import ShapeError
from gpulayers.wrappers import Dropout
from tests.conftest import Backend
from tests.layers.harness import default_dtype, snapshot, values
from tests.modules import cases as table
from tests.modules.cases import Case, backward, forward, gold_of, named, on, with_cases
from tests.modules.gold import dropout_factors
from tests.modules.known import ATTENTION, CONV, IDENTITY, WAVENET, case_of
from tests.support.compare import assert_close, assert_same_bits, host
from tests.support.naive import attention as naive


@with_cases
def test_any_number_of_training_steps(case: Case, backend: Backend) -> None:
    """D14: after update() numpy-ml has None for the components' derived_variables, and the second
    forward raises ('NoneType' has no attribute 'append', a TypeError for BidirectionalLSTM)."""
    module = case.fresh(backend, optimizer="SGD(lr=0.05)")
    params = case.parameters()
    for seed in (1, 11, 21):
        Xs = case.inputs(seed=seed)
        Ys = forward(module, on(backend, Xs))
        dYs = table.known_gradients(Ys)
        dXs = backward(module, on(backend, dYs))
        gold = case.gold(params, Xs, dYs)
        for a, b in zip([*Ys, *dXs], [*gold.Ys, *gold.dXs], strict=True):
            assert_close(a, b, factor=100)
        module.update(cur_loss=1.0)
        for name, grad in gold.grads.items():
            params[name] = params[name] - 0.05 * grad
            assert_close(named(module, "parameters")[name], params[name], factor=100)
        assert module.X == []
        assert all(layer.X == [] for layer in module.components)
        assert module.derived_variables.keys() == {"components"}


# ------------------------------------------------------------------------------ skip connections


@pytest.mark.parametrize("pads", [("same", "same"), ((1, 0, 2, 1), (0, 1, 0, 2)), ((1, 2), 1)])
def test_every_documented_padding_works(pads: Any, backend: Backend) -> None:
    """D15: numpy-ml raises ValueError (not enough values to unpack) for 'same' and 4-tuples."""
    with default_dtype("float64"):
        module = modules.SkipConnectionConvModule(2, 3, 3, 3, 3, *pads)
        X = backend.asarray(values((2, 6, 6, 2), 1))
        Y = module.forward(X)
    main = module.derived_variables["batchnorm2_out"]
    assert Y.shape == main.shape == module.derived_variables["batchnorm_skip_out"].shape
    assert module.backward(Y).shape == X.shape


@with_cases
def test_a_module_describes_itself_before_the_first_forward(case: Case) -> None:
    """D15, D19: hyperparameters, parameters and freeze raise AttributeError in numpy-ml."""
    module = case.make()
    assert list(module.parameters["components"]) == list(module.component_ids)
    assert all(a is None for a in named(module, "parameters").values())
    assert module.gradients["components"].keys() == set(module.component_ids)
    hyperparameters = module.hyperparameters
    assert hyperparameters["layer"] == case.module
    assert hyperparameters["component_ids"] == list(module.component_ids)
    module.freeze()
    assert not module.trainable
    module.unfreeze()
    module.flush_gradients()
    assert case.make().set_params(copy.deepcopy(module.summary())).X == []
    assert len(module.components) == len(module.component_ids)


def test_batch_normalisations_get_the_optimizer() -> None:
    """D15: numpy-ml gives the module's optimizer to the convolutions only."""
    for case in (IDENTITY, CONV):
        module = case.make(optimizer="Adam(lr=0.25)")
        for layer in module.components:
            assert layer.hyperparameters["optimizer"]["hyperparameters"]["id"] == "Adam"


def test_set_params_sets_the_activation_and_the_optimizer(numpy_backend: Backend) -> None:
    """D15: in numpy-ml's modules act_fn and optimizer of a summary go into a temporary dict."""
    source = modules.SkipConnectionIdentityModule(2, 3, 3, act_fn="SELU", optimizer="Adam(lr=0.5)")
    other = modules.SkipConnectionIdentityModule(2, 3, 3).set_params(source.summary())
    assert str(other.act_fn) == str(other.conv1.act_fn) == str(other.add3.act_fn) == "SELU"
    assert str(other.conv2.act_fn) == "Identity"
    assert str(other.conv1.optimizer) == str(source.conv1.optimizer)
    assert other.optimizer is not source.optimizer


def test_sides_that_are_too_large_are_refused(numpy_backend: Backend) -> None:
    module = modules.SkipConnectionConvModule(2, 2, 5, 5, 1)
    with pytest.raises(
        ShapeError, match=r"Conv.*: conv_skip cannot give the size of conv2, \(1, 1"
    ):
        module.forward(np.ones((1, 9, 9, 1)))
    assert module.pad_skip is None
    assert all(a is None for a in named(module, "parameters").values())


def test_another_image_size(backend: Backend) -> None:
    """The padding of the skip connection is that of each input (numpy-ml keeps the first's)."""
    with default_dtype("float64"):
        module = modules.SkipConnectionConvModule(
            2, 2, 3, 3, 3, pad1=1, pad2=1, stride1=2, stride_skip=2
        )
    pads = {}
    for size in (8, 9, 12):
        X = backend.asarray(values((2, size, size, 1), 1))
        Y = module.forward(X)
        pads[size] = module.pad_skip
        assert Y.shape[1:3] == (-(-size // 2),) * 2
        assert module.backward(Y).shape == X.shape
        module.flush_gradients()
    assert pads == {8: (0, 1, 0, 1), 9: (1, 1, 1, 1), 12: (0, 1, 0, 1)}


def test_names_of_derived_variables(backend: Backend) -> None:
    """Gradients at the components' outputs, as numpy-ml names them."""
    skip = {"conv1_out", "conv2_out", "batchnorm1_out", "batchnorm2_out"}
    skip |= {"dLdAdd3_X", "dLdBn2", "dLdBn1", "dLdConv2", "dLdConv1", "components"}
    conv = skip | {"conv_skip_out", "batchnorm_skip_out", "dLdBnSkip", "dLdConvSkip"}
    wavenet = {"conv_1x1_out", "conv_dilation_out", "multiply_gate_out", "tanh_out", "sigm_out"}
    wavenet |= {"dLdTanh", "dLdSigmoid", "dLdConv_1x1", "dLdMultiply", "dLdConv_dilation"}
    heads = {"Q_proj", "K_proj", "V_proj", "dQ_proj", "dK_proj", "dV_proj", "attention_out"}
    heads |= {"attention_weights", "components"}
    for case, names in [
        (IDENTITY, skip),
        (CONV, conv),
        (WAVENET, wavenet | {"components"}),
        (ATTENTION, heads),
    ]:
        module = case.fresh(backend)
        Ys = forward(module, on(backend, case.inputs()))
        dXs = backward(module, on(backend, table.known_gradients(Ys)))
        derived = module.derived_variables
        assert derived.keys() == names
        assert module._dv.keys() == names - {"components"}
        if "dLdConv2" in names:
            assert derived["dLdConv2"].shape == derived["conv2_out"].shape
            assert_same_bits(derived["dLdAdd3_X"], dXs[0])
            db = host(derived["dLdConv2"]).sum(axis=(0, 1, 2))
            assert_close(named(module, "gradients")["conv2.b"].reshape(-1), db)
        if "dLdConv_dilation" in names:
            db = host(derived["dLdConv_dilation"]).sum(axis=(0, 1))
            assert_close(named(module, "gradients")["conv_dilation.b"].reshape(-1), db)
        if "Q_proj" in names:
            assert derived["Q_proj"].shape == derived["dQ_proj"].shape == (2, 3, 3, 2)
            assert derived["V_proj"].shape == derived["dV_proj"].shape == (2, 3, 4, 2)
            assert derived["attention_out"].shape == (2, 3, 6)
            assert [w.shape for w in derived["attention_weights"]] == [(2, 3, 3, 4)]


# ---------------------------------------------------------------------------------------- WaveNet


def test_the_first_block_needs_no_skip_input(backend: Backend) -> None:
    """D16: forward(X) with X_skip=None raises AttributeError in numpy-ml."""
    module, twin = WAVENET.fresh(backend), WAVENET.fresh(backend)
    X = backend.asarray(WAVENET.inputs()[0])
    Ys = module.forward(X)
    expected = twin.forward(X, X * 0)
    dYs = on(backend, table.known_gradients(Ys))
    assert module.X_main[0] is X
    assert module.X_skip == [None]
    for a, b in zip(Ys, expected, strict=True):
        assert_same_bits(a, b)
    for a, b in zip(module.backward(*dYs), twin.backward(*dYs), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_kernel_width_is_obeyed(width: int, numpy_backend: Backend) -> None:
    """D16: numpy-ml always takes a kernel of width 2."""
    module = modules.WavenetResidualModule(2, 3, 1, width)
    module.forward(np.ones((1, 6, 2)))
    assert module.conv_dilation.parameters["W"].shape == (width, 2, 3)
    X = np.zeros((1, 20, 2))
    module.flush_gradients()
    before = module.forward(X, retain_derived=False)[0]
    X[0, 0] = 1.0
    changed = np.any(module.forward(X, retain_derived=False)[0] != before, axis=(0, 2))
    assert np.flatnonzero(changed).max() == 2 * (width - 1)


def test_the_last_block_has_no_main_gradient(backend: Backend) -> None:
    module, twin = WAVENET.fresh(backend), WAVENET.fresh(backend)
    Ys = forward(module, on(backend, WAVENET.inputs()))
    forward(twin, on(backend, WAVENET.inputs()))
    dY = backend.asarray(values(Ys[1].shape, 20))
    for a, b in zip(module.backward(dY), twin.backward(dY, dY * 0), strict=True):
        assert_same_bits(a, b)
    for name, grad in named(twin, "gradients").items():
        assert_same_bits(named(module, "gradients")[name], grad)


def test_no_output_sees_the_future(numpy_backend: Backend) -> None:
    module = WAVENET.fresh(numpy_backend)
    X, S = WAVENET.inputs()
    before = module.forward(X, S, retain_derived=False)
    X[:, 3:] += 1.0
    for a, b in zip(module.forward(X, S, retain_derived=False), before, strict=True):
        assert_same_bits(a[:, :3], b[:, :3])


# -------------------------------------------------------------------------------------- attention


def test_sequences_are_attended_to(backend: Backend) -> None:
    """D18: numpy-ml raises ValueError for (n_ex, T, d); with its (n_ex, d) all attention weights
    are 1, and queries and keys never have a gradient."""
    module = ATTENTION.fresh(backend)
    Ys = forward(module, on(backend, ATTENTION.inputs()))
    dQ, dK, _ = backward(module, on(backend, table.known_gradients(Ys)))
    weights = host(module.derived_variables["attention_weights"][0])
    assert weights.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)
    assert weights.max() < 0.99
    assert np.abs(host(dQ)).max() > 1e-3
    assert np.abs(host(dK)).max() > 1e-3


def test_numpy_mls_two_axes_are_sequences_of_one(backend: Backend) -> None:
    case = case_of("attention-numpy-ml-form")
    module = case.fresh(backend)
    Y = module.forward(*on(backend, case.inputs()))
    assert Y.shape == (3, 1, 8)
    dXs = module.backward(Y)
    assert [dX.shape for dX in dXs] == [(3, 8)] * 3
    assert_same_bits(module.derived_variables["attention_weights"][0], np.ones((3, 4, 1, 1)))
    assert not host(dXs[0]).any()


def test_the_projections_learn_and_freeze(backend: Backend) -> None:
    """D19: numpy-ml's update() raises AttributeError ('trainable'); its components are only the
    attention, so that projections are neither updated nor frozen."""
    module = ATTENTION.fresh(backend, optimizer="SGD(lr=0.1)")
    assert module.components[0] is module.attention
    assert module.components[1:] == [module.projections[name] for name in "QKVO"]
    assert all(isinstance(layer, Dropout) for layer in module.components[1:])
    before = snapshot(named(module, "parameters"))
    Ys = forward(module, on(backend, ATTENTION.inputs()))
    backward(module, on(backend, table.known_gradients(Ys)))
    module.update()
    for name, array in named(module, "parameters").items():
        # a bias of the keys adds the same to all scores of a query: its gradient is zero
        assert np.allclose(host(array), before[name]) == (name == "K.b"), name
    module.freeze()
    assert not any(layer.trainable for layer in module.projections.values())


def test_dropout_acts_on_weights_and_projections(backend: Backend) -> None:
    """p is that of every component; the gold multiplies by the generator's masks."""
    p = 0.3
    module = ATTENTION.make(dropout_p=p)
    with default_dtype("float64"):
        module.forward(*on(backend, ATTENTION.inputs()), retain_derived=False)
    known = ATTENTION.parameters()
    for name, array in named(module, "parameters").items():
        array[...] = backend.asarray(known[name])
    Xs = ATTENTION.inputs()
    shapes = [X.reshape(-1, 6).shape for X in Xs] + [(6, 3, 4), (6, 6)]
    f = dropout_factors(p, shapes)

    heads = []
    for name, X, factor in zip("QKV", Xs, f, strict=False):
        rows = (X.reshape(-1, 6) * factor) @ known[f"{name}.W"] + known[f"{name}.b"]
        heads.append(rows.reshape(*X.shape[:2], 3, 2).transpose(0, 2, 1, 3))
    out, _ = naive.attention(*heads, f[3].reshape(2, 3, 3, 4))
    joined = out.transpose(0, 2, 1, 3).reshape(-1, 6)
    gold = ((joined * f[4]) @ known["O.W"] + known["O.b"]).reshape(2, 3, 6)
    (Y,) = forward(module, on(backend, Xs))
    assert_close(Y, gold, factor=10)

    dY = values(Y.shape, 20)
    dXs = backward(module, [backend.asarray(dY)])
    for k, dX in enumerate(dXs):
        direction = np.random.default_rng(k).normal(size=dX.shape)
        sides = []
        for h in (1e-5, -1e-5):
            moved = [X + h * direction if j == k else X for j, X in enumerate(Xs)]
            sides.append(np.sum(host(forward(module, on(backend, moved))[0]) * dY))
        difference = (sides[0] - sides[1]) / 2e-5
        assert np.sum(host(dX) * direction) == pytest.approx(difference, rel=1e-6)
    module.flush_gradients()
    assert_close(
        forward(module, on(backend, Xs), retain_derived=False)[0], gold_of(ATTENTION).Ys[0]
    )


def test_a_dimension_the_heads_do_not_divide(numpy_backend: Backend) -> None:
    module = modules.MultiHeadedAttentionModule(4)
    with pytest.raises(ShapeError, match="must be a multiple of n_heads = 4, got 6"):
        module.forward(*[np.ones((2, 3, 6))] * 3)
    module.forward(*[np.ones((2, 3, 8))] * 3)
    assert (module.kqv_dim, module.latent_dim) == (8, 2)
    for shapes in [
        ((2, 3, 8), (2, 4, 8), (2, 5, 8)),
        ((2, 3, 8), (1, 4, 8), (1, 4, 8)),
        ((2, 3, 4), (2, 4, 4), (2, 4, 4)),
        ((2, 8), (2, 1, 8), (2, 1, 8)),
        ((2, 3, 8), (2, 0, 8), (2, 0, 8)),
    ]:
        with pytest.raises(ShapeError, match=r"expected Q \(n_ex, T_q, 8\)"):
            module.forward(*(np.ones(shape) for shape in shapes))


# ------------------------------------------------------------------------------ both directions


def test_multiply_goes_backward(backend: Backend) -> None:
    """D17: a misspelt merge mode makes numpy-ml's backward raise UnboundLocalError."""
    case = case_of("bidirectional-multiply")
    module, gold = case.fresh(backend), gold_of(case)
    Ys = forward(module, on(backend, case.inputs()))
    (dX,) = backward(module, on(backend, table.known_gradients(Ys)))
    assert_close(dX, gold.dXs[0])


def test_the_second_direction_comes_from_the_end(numpy_backend: Backend) -> None:
    case = case_of("bidirectional-concat")
    module, X = case.fresh(numpy_backend), case.inputs()[0]
    before = module.forward(X, retain_derived=False)
    X[:, :, 2] += 1.0
    changed = np.any(module.forward(X, retain_derived=False) != before, axis=0)
    assert changed[:2].any(axis=0).tolist() == [False, False, True, True]
    assert changed[2:].any(axis=0).tolist() == [True, True, True, False]
