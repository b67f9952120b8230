"""The cases on gpulayers, through what a user calls: layers, losses, optimizers, networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from _cpu.cases import LR, MOMENTUM, STEPS_CHECKED, Arrays, Case, data
from _cpu.nets import Conv, Dense, Dropout, Net, Norm, Pool
from _cpu.subject import Subject, UnsupportedError
from gpulayers import layers, losses, models, optimizers
from gpulayers.models import Sequential
from gpulayers.models.blocks import Activation

SGD = f"SGD(lr={LR}, momentum={MOMENTUM})"


def make(case: Case, variant: str = "") -> Subject:
    """Return the case on gpulayers; `variant` "plan" takes `network.compile` for whole steps.

    Raises
    ------
    UnsupportedError
        If the variant does not exist for this case.
    """
    if case.is_step:
        return _step(case, plan=variant == "plan")
    if variant:
        raise UnsupportedError(f"{case.name} has no {variant}")
    d = data(case)
    if case.kind == "update":
        return _update(case, d)
    if case.kind == "cross_entropy":
        return _cross_entropy(d)
    return _layer(case, d)


def _cross_entropy(d: Arrays) -> Subject:
    objective, labels, logits = losses.SoftmaxCrossEntropy(), d["labels"], d["X"]

    def run() -> tuple[Any, Any]:
        return objective.forward(labels, logits), objective.backward()

    def result() -> Arrays:
        loss, gradient = run()
        return {"loss": np.asarray(loss), "dX": gradient}

    return Subject(run, result)


def _update(case: Case, d: Arrays) -> Subject:
    rule = optimizers.Adam() if case.size["rule"] == "Adam" else optimizers.SGD(LR, MOMENTUM)
    param, grad = d["param"], d["grad"]
    start = param.copy()

    def run() -> None:
        rule.step()
        rule.update_(param, grad, "W")

    def result() -> Arrays:
        for _ in range(STEPS_CHECKED):
            run()
        return {"change": param - start}

    return Subject(run, result)


def build_layer(case: Case, package: Any, bare: Callable[[str], Any]) -> Any:
    """Return the case's layer from a package with numpy-ml's classes."""
    s = case.size
    if case.kind == "conv":
        return package.Conv2D(
            s["o"], (s["k"], s["k"]), s.get("p", 0), s.get("s", 1), s.get("d", 1) - 1
        )
    if case.kind == "pool":
        return package.Pool2D((s["k"], s["k"]), s["s"], mode=s["mode"])
    if case.kind == "dense":
        return package.FullyConnected(s["o"])
    if case.kind == "recurrent":
        return getattr(package, s["cell"])(s["h"])
    if case.kind == "relu":
        return bare("ReLU")
    return package.BatchNorm2D() if case.kind == "batchnorm" else package.LayerNorm1D()


def recurrent_weights(case: Case, d: Arrays) -> Arrays:
    """Return the recurrent weights by their names in gpulayers (and numpy-ml)."""
    Wx, Wh, b, h = d["Wx"], d["Wh"], d["b"], case.size["h"]
    if case.size["cell"] == "RNN":
        return {"Wax": Wx, "Waa": Wh, "bx": b[:, None], "ba": np.zeros_like(b)[:, None]}
    W = np.concatenate([Wh, Wx])
    weights = {}
    for k, g in enumerate("fuco" if case.size["cell"] == "LSTM" else "zrn"):
        weights[f"W{g}"] = W[:, k * h : (k + 1) * h]
        weights[f"b{g}"] = b[None, k * h : (k + 1) * h]
    if case.size["cell"] == "GRU":
        weights["ba"] = np.zeros_like(weights["bn"])
    return weights


def _layer(case: Case, d: Arrays) -> Subject:
    layer = build_layer(case, layers, Activation)
    X, dY, first = d["X"], d["dY"], bool(case.size.get("first"))
    weights = recurrent_weights(case, d) if case.kind == "recurrent" else d
    layer.forward(X, retain_derived=False)  # creates the parameters
    for name, array in layer.parameters.items():
        if name in weights:
            array[...] = weights[name].reshape(array.shape)
    if case.kind == "batchnorm":
        layer.reset_running_stats()

    def run() -> None:
        layer.forward(X)
        layer.backward(dY, input_grad=not first)
        layer.flush_gradients()

    def result() -> Arrays:
        Y = layer.forward(X)
        dX = layer.backward(dY, input_grad=not first)
        gradients = {f"d{k}": v.copy() for k, v in layer.gradients.items()}
        layer.flush_gradients()
        return {"Y": Y, **({} if first else {"dX": dX}), **gradients}

    return Subject(run, result)


def build_net(net: Net, name: str, dropout: float) -> Sequential:
    """Return the network: gpulayers' own of that name, where there is one."""
    zoo = {"lenet": models.lenet, "mlp": models.mlp, "vgg": models.vgg_small}
    if name in zoo:
        made = zoo[name](optimizer=SGD)
        for layer in made.layers:
            if isinstance(layer, layers.Dropout):
                layer.p = dropout
        return made
    chain: list[Any] = []
    for layer in net.layers:
        if isinstance(layer, Conv):
            act = "ReLU" if layer.relu else None
            chain.append(layers.Conv2D(layer.out, layer.k, pad=layer.pad, act_fn=act))
        elif isinstance(layer, Dense):
            chain.append(layers.FullyConnected(layer.out, act_fn="ReLU" if layer.relu else None))
        elif isinstance(layer, Norm):
            chain += [layers.BatchNorm2D(), Activation("ReLU")]
        elif isinstance(layer, Pool):
            chain.append(layers.Pool2D(2, stride=2))
        elif isinstance(layer, Dropout):
            chain.append(layers.Dropout(dropout))
        else:
            chain.append(layers.Flatten())
    return Sequential(chain, SGD, name)


_LEARNED = ("W", "b", "scaler", "intercept")


def learned(net: Sequential) -> list[np.ndarray]:
    """Return the arrays the optimizer changes, in the order of `nets.parameters`."""
    return [
        layer.parameters[name]
        for _, layer in net.walk()
        for name in _LEARNED
        if name in layer.parameters
    ]


def _step(case: Case, plan: bool) -> Subject:
    d = data(case)
    X, labels, start = d["X"], d["labels"], [v for k, v in d.items() if k[0] == "p"]

    def ready(dropout: float) -> tuple[Sequential, Callable[[], float]]:
        net = build_net(case.net, case.size["net"], dropout)
        net.forward(X[:1], retain_derived=False)
        for array, value in zip(learned(net), start, strict=True):
            array[...] = value.reshape(array.shape)
        return net, stepper(net, X, labels, plan)

    def result() -> Arrays:
        net, run = ready(0.0)
        found = [run() for _ in range(STEPS_CHECKED)]
        changes = zip(learned(net), start, strict=True)
        return {
            "loss": np.array(found),
            **{f"change {i}": p - q.reshape(p.shape) for i, (p, q) in enumerate(changes)},
        }

    return Subject(ready(0.5)[1], result)


def stepper(net: Sequential, X: np.ndarray, labels: np.ndarray, plan: bool) -> Callable[[], float]:
    """Return what takes one training step and returns its loss.

    Raises
    ------
    UnsupportedError
        If a plan is asked for and networks cannot be compiled.
    """
    if plan:
        if not hasattr(net, "compile"):
            raise UnsupportedError("networks have no compile")
        planned = net.compile(batch_shape=X.shape, loss="cross_entropy")
        return lambda: float(planned.step(X, labels))
    objective = losses.SoftmaxCrossEntropy()

    def run() -> float:
        loss = objective.forward(labels, net.forward(X))
        net.backward(objective.backward(), input_grad=False)
        net.update()
        return float(loss)

    return run
