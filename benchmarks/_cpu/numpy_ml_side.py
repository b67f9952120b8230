"""The cases on numpy-ml, where it is installed: float64, as it is."""

from __future__ import annotations

import collections
import collections.abc
import warnings
from typing import Any

import numpy as np

from _cpu.cases import LR, MOMENTUM, STEPS_CHECKED, Arrays, Case, data
from _cpu.nets import Conv, Dense, Flatten
from _cpu.ours import build_layer
from _cpu.subject import Subject, UnsupportedError

# numpy-ml still looks for the abstract classes where Python had them before 3.10
collections.Hashable = collections.abc.Hashable  # type: ignore[attr-defined]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from numpy_ml.neural_nets import layers, losses, optimizers


def make(case: Case, variant: str = "") -> Subject:
    """Return the case on numpy-ml.

    Raises
    ------
    UnsupportedError
        If the case does not include it: it would take minutes, or has no counterpart there.
    """
    if not case.peer:
        raise UnsupportedError(f"{case.name} leaves numpy-ml out")
    d = {k: v.astype(float) if v.dtype.kind == "f" else v for k, v in data(case).items()}
    if case.is_step:
        return _step(case, d)
    return _layer(case, d)


def _assign(layer: Any, weights: Arrays) -> None:
    for name, array in layer.parameters.items():
        if name in weights:
            layer.parameters[name] = weights[name].reshape(array.shape).copy()


def _layer(case: Case, d: Arrays) -> Subject:
    layer = build_layer(case, layers, lambda name: None)
    layer.forward(d["X"][:1], retain_derived=False)
    _assign(layer, d)

    def result() -> Arrays:
        Y, dX = layer.forward(d["X"]), layer.backward(d["dY"])
        found = {"Y": Y, "dX": dX, **{f"d{k}": v for k, v in layer.gradients.items()}}
        layer.flush_gradients()
        return found

    return Subject(result, result)


def _step(case: Case, d: Arrays) -> Subject:
    start = [v for k, v in d.items() if k[0] == "p"]
    X, labels = d["X"], d["labels"]
    onehot = np.eye(case.net.classes)[labels]

    def build() -> list[Any]:
        rule = lambda: optimizers.SGD(lr=LR, momentum=MOMENTUM)  # noqa: E731
        chain: list[Any] = []
        for layer in case.net.layers:
            if isinstance(layer, Conv):
                act = "ReLU" if layer.relu else None
                made = layers.Conv2D(
                    layer.out, (layer.k, layer.k), layer.pad, act_fn=act, optimizer=rule()
                )
            elif isinstance(layer, Dense):
                act = "ReLU" if layer.relu else None
                made = layers.FullyConnected(layer.out, act_fn=act, optimizer=rule())
            else:
                flat = isinstance(layer, Flatten)
                made = layers.Flatten() if flat else layers.Pool2D((2, 2), stride=2)
            chain.append(made)
        # its Softmax is part of its cross-entropy's gradient, so it has no backward pass here
        y, softmax, values = X[:1], layers.Softmax(), iter(start)
        for made in chain:
            y = made.forward(y, retain_derived=False)
            if "W" in getattr(made, "parameters", {}):
                _assign(made, {"W": next(values), "b": next(values)})
        return [*chain, softmax]

    def stepper(chain: list[Any]) -> Any:
        def run() -> float:
            Y = X
            for layer in chain:
                Y = layer.forward(Y)
            loss = losses.CrossEntropy.loss(onehot, Y) / len(X)
            chain[-1].flush_gradients()
            gradient = losses.CrossEntropy.grad(onehot, Y) / len(X)
            for layer in reversed(chain[:-1]):
                gradient = layer.backward(gradient)
            for layer in chain[:-1]:
                if layer.gradients:
                    layer.update()
                else:
                    layer.flush_gradients()
            return float(loss)

        return run

    def result() -> Arrays:
        chain = build()
        run = stepper(chain)
        found: Arrays = {"loss": np.array([run() for _ in range(STEPS_CHECKED)])}
        ends = [c.parameters[k] for c in chain if "W" in c.parameters for k in ("W", "b")]
        for i, (p, q) in enumerate(zip(ends, start, strict=True)):
            found[f"change {i}"] = p.reshape(q.shape) - q
        return found

    return Subject(stepper(build()), result)
