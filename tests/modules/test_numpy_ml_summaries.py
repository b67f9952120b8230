"""Summaries of modules in numpy-ml's form."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpulayers import modules, random
from tests.conftest import Backend
from tests.modules import cases as table
from tests.modules.cases import backward, forward, gold_of, named
from tests.modules.gold import SEED
from tests.modules.known import IDENTITY, case_of
from tests.support.compare import assert_close


def test_a_summary_in_numpy_mls_form(numpy_backend: Backend) -> None:
    """Names, nesting and float64 arrays as numpy-ml writes them; its shared optimizer cache holds
    states of other components under the same names, which do not fit and are left out."""
    known = IDENTITY.parameters()
    parts: dict[str, Any] = {name: {} for name in IDENTITY.make().component_ids}
    for name, array in known.items():
        part, _, key = name.partition(".")
        parts[part][key] = array
    shared = {"W": np.zeros((3, 3, 3, 2)), "b": np.zeros((1, 1, 1, 2))}  # those of conv2
    optimizer = {
        "cache": shared,
        "hyperparameters": {
            "id": "SGD", "lr": 0.01, "momentum": 0.5, "clip_norm": None,
            "lr_scheduler": "ConstantScheduler(lr=0.01)",
        },
    }  # fmt: skip
    conv = {
        "layer": "Conv2D", "pad": "same", "init": "glorot_uniform", "stride": 1, "dilation": 0,
        "kernel_shape": (3, 3), "optimizer": optimizer,
    }  # fmt: skip
    norm = {
        "layer": "BatchNorm2D", "act_fn": None, "epsilon": 1e-5, "momentum": 0.9,
        "optimizer": optimizer,
    }  # fmt: skip
    components = {
        "conv1": conv | {"in_ch": 2, "out_ch": 3, "act_fn": "Tanh"},
        "conv2": conv | {"in_ch": 3, "out_ch": 2, "act_fn": "Affine(slope=1, intercept=0)"},
        "batchnorm1": norm | {"in_ch": 3, "out_ch": 3},
        "batchnorm2": norm | {"in_ch": 2, "out_ch": 2},
        "add3": {"layer": "Sum", "act_fn": "Tanh", "optimizer": optimizer},
    }
    summary = {
        "layer": "SkipConnectionIdentityModule",
        "parameters": {"components": parts},
        "hyperparameters": {
            "layer": "SkipConnectionIdentityModule", "init": "glorot_uniform", "in_ch": 2,
            "out_ch": 3, "epsilon": 1e-5, "stride1": 1, "stride2": 1, "momentum": 0.9,
            "optimizer": optimizer, "act_fn": "Tanh", "kernel_shape1": (3, 3),
            "kernel_shape2": (3, 3), "component_ids": list(parts), "components": components,
        },
    }  # fmt: skip
    module = modules.SkipConnectionIdentityModule(9, 1, 1).set_params(summary)
    gold = gold_of(IDENTITY)
    (Y,) = forward(module, IDENTITY.inputs())
    assert_close(Y, gold.Ys[0], factor=10)
    (dX,) = backward(module, table.known_gradients([Y]))
    assert_close(dX, gold.dXs[0], factor=10)
    assert module.conv1.optimizer.cache == {}
    assert module.conv2.optimizer.cache.keys() == {"W", "b"}
    module.update()
    for name, grad in gold.grads.items():
        assert_close(named(module, "parameters")[name], known[name] - 0.01 * grad, factor=10)


def test_an_lstm_summary_names_cells(numpy_backend: Backend) -> None:
    module = case_of("bidirectional-sum").fresh(numpy_backend)
    described = module.hyperparameters["components"]
    assert {part["layer"] for part in described.values()} == {"LSTMCell"}
    random.seed(SEED)
