"""``gpulayers bench``: how fast this machine trains and predicts, and each layer's share."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import backend, random
from gpulayers.backend import Array
from gpulayers.cli.output import note, print_json, verbose
from gpulayers.cli.results import print_table
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential, build, profile, summarize
from gpulayers.training.settings import device_backend

__all__ = ["run"]

CLASSES = 10
SHAPES = {"lenet": (28, 28, 1), "mlp": (28, 28, 1)}  # MNIST's; the others take CIFAR-10's
OTHER_SHAPE = (32, 32, 3)
WARM_UP = 3  # calls: the first ones create parameters, plans and buffers, and compile kernels


def run(options: Namespace) -> int:
    """Measure and print; return the exit code."""
    former = backend.default_dtype()
    with backend.use_backend(device_backend(options.device or "auto")):
        if options.dtype is not None:
            backend.set_default_dtype(options.dtype)
        try:
            measured = _measure(options)
        finally:
            backend.set_default_dtype(former)
        report = backend.describe()
    verbose(options, report)
    if options.json:
        if options.profile:
            measured["profile"] = measured["profile"].to_dict()
        print_json({**measured, "environment": report.splitlines()})
        return 0
    train, predict = measured["train"], measured["predict"]
    if options.quiet:
        print(f"{train['examples_per_second']:.0f}")
        return 0
    rows = [
        ("training", f"{train['examples_per_second']:,.0f} images/s"),
        ("one step", _times(train)),
        ("prediction", f"{predict['examples_per_second']:,.0f} images/s"),
        ("one batch", _times(predict)),
        ("batch", f"{measured['batch_size']} images"),
        ("computed with", f"{measured['backend']}, {measured['dtype']}"),
    ]
    print_table(f"{measured['model']}, {measured['parameters']:,} parameters", rows)
    if options.profile:
        print(f"\n{measured['profile']}")
    return 0


def _measure(options: Namespace) -> dict[str, Any]:
    shape = SHAPES.get(options.model.lower(), OTHER_SHAPE)
    random.seed(0)
    network = build(options.model, CLASSES, shape, optimizer="Adam(lr=0.001)")
    place = backend.current_backend()
    n = options.batch_size
    values = np.random.default_rng(0)
    images = backend.to_backend(values.integers(0, 256, (n, *shape), np.uint8), place)
    labels = backend.to_backend(values.integers(0, CLASSES, n), place)
    verbose(options, f"{summarize(network, shape, n)}\n")
    note(options, f"{network.name}, batches of {n}: training, {options.seconds:g} s ...")
    step = _training_step(network, images, labels, place)
    train = _timed(step, options.seconds, n, place)
    note(options, f"prediction, {options.seconds:g} s ...")
    predict = _timed(lambda: network.forward(images, False), options.seconds, n, place)
    measured = {
        "model": network.name,
        "parameters": network.parameter_count,
        "batch_size": n,
        "input_shape": list(shape),
        "backend": place,
        "dtype": network.dtype.name,
        "train": train,
        "predict": predict,
    }
    if options.profile:
        repeats = min(max(int(options.seconds / train["seconds"]), 10), 1000)
        note(options, f"layers, {repeats} steps ...")
        measured["profile"] = profile(network, images, labels, repeats)
    return measured


def _training_step(
    network: Sequential, images: Array, labels: Array, place: str
) -> Callable[[], Any]:
    """A whole step: on the CPU by the plan, as `Trainer` makes it, on a GPU layer by layer."""
    if place == "numpy":
        network.forward(images)
        network.flush_gradients()
        plan = network.compile(batch_shape=images.shape)
        return lambda: plan.step(images, labels)
    loss = SoftmaxCrossEntropy()

    def step() -> None:
        loss.forward(labels, network.forward(images))
        network.backward(loss.backward(), input_grad=False)
        network.update()

    return step


def _wait(place: str) -> None:
    """Wait until a GPU has done what it was given."""
    if place == "cupy":
        xp: Any = backend.module(place)
        xp.cuda.get_current_stream().synchronize()


def _timed(call: Callable[[], Any], seconds: float, batch: int, place: str) -> dict[str, float]:
    """Call again and again for about `seconds`; return median and quartiles of a call's time."""
    for _ in range(WARM_UP):
        call()
    _wait(place)
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < WARM_UP:
        begin = time.perf_counter()
        call()
        _wait(place)
        times.append(time.perf_counter() - begin)
    low, median, high = np.percentile(times, (25, 50, 75)).tolist()
    return {
        "seconds": median,
        "quartile_1": low,
        "quartile_3": high,
        "calls": len(times),
        "examples_per_second": batch / median,
    }


def _times(figures: dict[str, float]) -> str:
    """Median and quartiles."""
    median, low, high = (figures[name] * 1e3 for name in ("seconds", "quartile_1", "quartile_3"))
    return f"{median:.2f} ms ({low:.2f} to {high:.2f})"
