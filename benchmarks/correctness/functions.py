"""What is measured of activations and losses: each class, its cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.correctness.layers import Run, Subject, Tensors
from gpulayers import losses, random
from gpulayers.activations import ActivationBase
from gpulayers.initializers import ActivationInitializer
from gpulayers.ops import activation as activation_ops
from gpulayers.ops.softmax import softmax_forward
from tests.conftest import Backend
from tests.functional import test_activations, test_losses_softmax_options
from tests.functional.test_losses_generative import critic_arrays, vae_arrays
from tests.layers.cases import ACT
from tests.layers.harness import default_dtype, values

Arrays = dict[str, Any]


def _torch() -> Any:
    import torch

    return torch


# ------------------------------------------------------------------------------------ activations


def _activation(key: str, order: int) -> Subject:
    """`fn` and its slope as the layers use them (`gpulayers.ops`); `grad` and its own, `grad2`."""
    activation: ActivationBase = ActivationInitializer(ACT[key])()
    z = test_activations.points(test_activations.CASES[key][2])

    def start(backend: Backend, dtype: str) -> Run:
        place = backend.asarray(z, dtype)

        def outputs() -> list[Any]:
            if order == 2:
                return [activation.grad(place)]
            return [activation_ops.bias_activation(place.copy(), None, activation)]

        def gradients(dYs: list[Any]) -> Arrays:
            if order == 2:
                return {"z": activation.grad2(place) * dYs[0]}
            return {"z": activation_ops.activation_backward(dYs[0], place, activation)}

        return Run({"z": place}, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        from tests.layers.torch_reference import ACTIVATIONS

        Y = ACTIVATIONS[key](t["z"])
        if order == 2:
            Y = _torch().autograd.grad(Y.sum(), t["z"], create_graph=True)[0]
        return [Y]

    case = "second derivative" if order == 2 else "derivative"
    if type(activation).__name__ == "GELU":
        case += f", {key}"
    return Subject("activations", type(activation).__name__, case, start, by_torch)


# ----------------------------------------------------------------------------------------- losses


def _loss(
    name: str,
    case: str,
    arrays: dict[str, np.ndarray],
    loss: Callable[[Any, Arrays], Any],
    grad: Callable[[Any, Arrays], Arrays],
    by_torch: Callable[[Tensors], Any],
) -> Subject:
    """`loss` and `grad` get a function that brings constants to the backend, and the places."""

    def start(backend: Backend, dtype: str) -> Run:
        def constant(a: np.ndarray) -> Any:
            return backend.asarray(a, dtype if a.dtype.kind == "f" else None)

        places = {key: backend.asarray(a, dtype) for key, a in arrays.items()}
        return Run(places, lambda: [loss(constant, places)], lambda dYs: grad(constant, places))

    return Subject("losses", name, case, start, lambda t: [by_torch(t)])


def _squared_error(key: str, shape: tuple[int, ...]) -> Subject:
    act: ActivationBase = ActivationInitializer(ACT[key])()
    objective, y = losses.SquaredError(), values(shape, 1)

    def by_torch(t: Tensors) -> Any:
        from tests.layers.torch_reference import ACTIVATIONS

        torch = _torch()
        mse = torch.nn.functional.mse_loss
        return 0.5 * mse(ACTIVATIONS[key](t["z"]), torch.tensor(y), reduction="sum")

    return _loss(
        "SquaredError",
        f"{shape}, {key}",
        {"z": values(shape, 2)},
        lambda on, p: objective.loss(on(y), act.fn(p["z"])),
        lambda on, p: {"z": objective.grad(on(y), act.fn(p["z"]), p["z"], act_fn=act)},
        by_torch,
    )


def _cross_entropy(case: str, y: np.ndarray) -> Subject:
    objective = losses.CrossEntropy()
    return _loss(
        "CrossEntropy",
        case,
        {"z": values(y.shape, 2)},
        lambda on, p: objective.loss(on(y), softmax_forward(p["z"])),
        lambda on, p: {"z": objective.grad(on(y), softmax_forward(p["z"]))},
        lambda t: _torch().nn.functional.cross_entropy(t["z"], _torch().tensor(y), reduction="sum"),
    )


def _softmax_cross_entropy(case: str, options: dict[str, Any], reduction: str) -> Subject:
    logits, labels = test_losses_softmax_options.draw(options)
    objective = losses.SoftmaxCrossEntropy(reduction, **options)

    def by_torch(t: Tensors) -> Any:
        torch = _torch()
        weights = options.get("class_weights")
        return torch.nn.functional.cross_entropy(
            t["logits"],
            torch.tensor(labels),
            weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
            reduction=reduction,
            label_smoothing=options.get("label_smoothing", 0.0),
            ignore_index=options.get("ignore_index", -100),
        )

    return _loss(
        "SoftmaxCrossEntropy",
        f"{case}, {reduction}",
        {"logits": logits},
        lambda on, p: objective.loss(on(labels), p["logits"]),
        lambda on, p: {"logits": objective.grad(on(labels), p["logits"])},
        by_torch,
    )


def _vae(n: int, features: int, latent: int) -> Subject:
    objective = losses.VAELoss()
    y, p, mean, log_var = vae_arrays(n, features, latent)
    names = ("y_pred", "t_mean", "t_log_var")

    def grad(on: Any, places: Arrays) -> Arrays:
        dY, dLogVar, dMean = objective.grad(on(y), *(places[name] for name in names))
        return dict(zip(names, (dY, dMean, dLogVar), strict=True))

    def by_torch(t: Tensors) -> Any:
        torch = _torch()
        normal = torch.distributions.Normal
        code = normal(t["t_mean"], (0.5 * t["t_log_var"]).exp())
        prior = normal(torch.zeros(latent).double(), torch.ones(latent).double())
        bce = torch.nn.functional.binary_cross_entropy
        reconstruction = bce(t["y_pred"], torch.tensor(y), reduction="sum")
        return (reconstruction + torch.distributions.kl_divergence(code, prior).sum()) / n

    return _loss(
        "VAELoss",
        f"{n} of {features}, code of {latent}",
        dict(zip(names, (p, mean, log_var), strict=True)),
        lambda on, places: objective.loss(on(y), *(places[name] for name in names)),
        grad,
        by_torch,
    )


def _wgan(n: int, column: bool, lambda_: float) -> list[Subject]:
    objective = losses.WGAN_GPLoss(lambda_)
    arrays = dict(
        zip(("Y_fake", "Y_real", "gradInterp"), critic_arrays(n, column=column), strict=True)
    )

    def by_torch(t: Tensors) -> Any:
        penalty = ((t["gradInterp"].norm(dim=1) - 1) ** 2).mean()
        return t["Y_fake"].mean() - t["Y_real"].mean() + lambda_ * penalty

    critic = _loss(
        "WGAN_GPLoss",
        f"critic, {n} examples",
        arrays,
        lambda on, p: objective.loss(p["Y_fake"], "C", p["Y_real"], p["gradInterp"]),
        lambda on, p: dict(
            zip(p, objective.grad(p["Y_fake"], "C", p["Y_real"], p["gradInterp"]), strict=True)
        ),
        by_torch,
    )
    generator = _loss(
        "WGAN_GPLoss",
        f"generator, {n} examples",
        {"Y_fake": arrays["Y_fake"]},
        lambda on, p: objective.loss(p["Y_fake"], "G"),
        lambda on, p: {"Y_fake": objective.grad(p["Y_fake"], "G")},
        lambda t: -t["Y_fake"].mean(),
    )
    return [critic, generator]


PROBS = np.array([0.3, 0.05, 0.25, 0.1, 0.2, 0.1])


def _nce(case: str, target: list[int], noise: list[int], contexts: int, subtract: bool) -> Subject:
    """With given negatives; a target may be among them."""
    X = values((len(target), contexts, 3), 1)

    def start(backend: Backend, dtype: str) -> Run:
        x, t, k = (
            backend.asarray(a, d)
            for a, d in ((X, dtype), (np.array(target), None), (np.array(noise), None))
        )
        with default_dtype(dtype):
            random.seed(3)
            sampler = losses.DiscreteSampler(PROBS)
            objective = losses.NCELoss(
                len(PROBS), sampler, len(noise), subtract_log_label_prob=subtract
            )
            objective.loss(x, t, k)
        objective.parameters["b"][...] = backend.asarray(values((1, len(PROBS)), 2), dtype)

        def outputs() -> list[Any]:
            objective.flush_gradients()
            return [objective.loss(x, t, k)[0]]

        def gradients(dYs: list[Any]) -> Arrays:
            return {"X": objective.grad(update_params=False), **objective.gradients}

        return Run({"X": x} | objective.parameters, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        torch = _torch()
        scores = t["X"] @ t["W"].T + t["b"]
        if subtract:
            scores = scores - torch.log(torch.tensor(PROBS))
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        real = scores[torch.arange(len(target)), :, torch.tensor(target)]
        fake = scores[:, :, torch.tensor(noise)]
        return [
            bce(real, torch.ones_like(real), reduction="sum")
            + bce(fake, torch.zeros_like(fake), reduction="sum")
        ]

    return Subject("losses", "NCELoss", case, start, by_torch)


def subjects() -> list[Subject]:
    """Every activation and loss that has a gradient."""
    one_hot = np.eye(3)[[0, 2, 1, 1]]
    options = {"plain": {}, **test_losses_softmax_options.OPTIONS}
    return [
        *(_activation(key, order) for key in ACT for order in (1, 2)),
        _squared_error("tanh", (4, 3)),
        _squared_error("softplus", (2, 3, 4)),
        _squared_error("identity", (5,)),
        _cross_entropy("one hot", one_hot),
        _cross_entropy("smoothed", 0.9 * one_hot + 0.1 / 3),
        _cross_entropy("two classes each", 1 - one_hot),
        *(
            _softmax_cross_entropy(case, given, reduction)
            for case, given in options.items()
            for reduction in ("mean", "sum")
        ),
        _vae(4, 5, 3),
        _vae(1, 7, 1),
        *_wgan(5, False, 10.0),
        *_wgan(3, True, 0.5),
        _nce("no hit", [0, 1, 0], [2, 3, 4, 5], 2, True),
        _nce("hits and repeats", [0, 1, 0], [1, 0, 4, 4], 1, True),
        _nce("without the log", [2, 5], [2, 1, 0, 2], 3, False),
    ]
