"""The cases on PyTorch, the peer and the referee."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from _cpu.cases import LR, MOMENTUM, STEPS_CHECKED, Arrays, Case, data
from _cpu.nets import Conv, Dense, Dropout, Flatten, Layer, Norm, Pool, walk
from _cpu.subject import Subject, UnsupportedError


def make(case: Case, variant: str = "") -> Subject:
    """Return the case on PyTorch: as a default user has it, or in `case.other`'s way.

    Raises
    ------
    UnsupportedError
        If `variant` is "other" and there is no other way.
    """
    if variant == "other" and case.other is None:
        raise UnsupportedError(f"{case.name} has one way in PyTorch")
    other, d = variant == "other", data(case)
    if case.is_step:
        return _step(case, d, other)
    if case.kind == "update":
        return _update(case, d, other)
    if case.kind == "recurrent":
        return _recurrent(case, d)
    return _operation(case, d, other)


def _image(array: np.ndarray, channels_last: bool) -> torch.Tensor:
    moved = torch.from_numpy(array).permute(0, 3, 1, 2)
    return moved.contiguous(memory_format=_format(channels_last)).clone()


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Our layout of an image or a kernel; anything else as it is."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _operation(case: Case, d: Arrays, other: bool) -> Subject:
    """y = f(x, weights), then the gradients by `autograd.grad`: nothing is accumulated."""
    s, kind = case.size, case.kind
    x = _image(d["X"], other) if case.is_image else torch.from_numpy(d["X"])
    x.requires_grad_(not s.get("first"))
    names: list[str] = []
    if kind == "conv":
        w = torch.from_numpy(d["W"]).permute(3, 2, 0, 1).contiguous(memory_format=_format(other))
        weights, names = [w, torch.from_numpy(d["b"])], ["dW", "db"]
        stride, pad, spacing = s.get("s", 1), s.get("p", 0), s.get("d", 1)
        f = lambda: functional.conv2d(x, *weights, stride, pad, spacing)  # noqa: E731
    elif kind == "dense":
        weights, names = [torch.from_numpy(d["W"].T.copy()), torch.from_numpy(d["b"])], ["dW", "db"]
        f = lambda: functional.linear(x, *weights)  # noqa: E731
    elif kind in ("batchnorm", "layernorm"):
        weights = [torch.from_numpy(d["scaler"]), torch.from_numpy(d["intercept"])]
        names, size = ["dscaler", "dintercept"], d["X"].shape[-1:]
        mean, var = torch.zeros(size), torch.ones(size)
        if kind == "batchnorm":
            f = lambda: functional.batch_norm(x, mean, var, *weights, training=True)  # noqa: E731
        else:
            f = lambda: functional.layer_norm(x, size, *weights)  # noqa: E731
    else:
        weights = []
        labels = torch.from_numpy(d["labels"]) if "labels" in d else None
        pool = functional.max_pool2d if s.get("mode") == "max" else functional.avg_pool2d
        f = {
            "pool": lambda: pool(x, s["k"], s["s"]),
            "relu": lambda: functional.relu(x),
            "cross_entropy": lambda: functional.cross_entropy(x, labels),
        }[kind]
    for weight in weights:
        weight.requires_grad_()
    wanted = [*([x] if x.requires_grad else []), *weights]
    dy = None
    if "dY" in d:
        dy = _image(d["dY"], other) if case.is_image else torch.from_numpy(d["dY"])

    def run() -> tuple[Any, Any]:
        y = f()
        return y, torch.autograd.grad(y, wanted, dy)

    def result() -> Arrays:
        y, gradients = run()
        found = {"loss" if dy is None else "Y": _numpy(y)}
        for name, g in zip([*(["dX"] if x.requires_grad else []), *names], gradients, strict=True):
            if name == "dW":
                found[name] = (g.permute(2, 3, 1, 0) if g.ndim == 4 else g.T).numpy()
            else:
                found[name] = _numpy(g)
        return found

    return Subject(run, result)


def _update(case: Case, d: Arrays, fused: bool) -> Subject:
    param = torch.from_numpy(d["param"].copy()).requires_grad_()
    param.grad = torch.from_numpy(d["grad"])
    if case.size["rule"] == "Adam":
        rule: Any = torch.optim.Adam([param], lr=1e-3, eps=1e-7, fused=fused or None)
    else:
        rule = torch.optim.SGD([param], lr=LR, momentum=MOMENTUM, fused=fused or None)

    def result() -> Arrays:
        for _ in range(STEPS_CHECKED):
            rule.step()
        return {"change": param.detach().numpy() - d["param"]}

    return Subject(rule.step, result)


def _recurrent(case: Case, d: Arrays) -> Subject:
    """PyTorch's own order of axes, (steps, n, features), and of the gates."""
    s, h = case.size, case.size["h"]
    order = {"RNN": (0,), "LSTM": (1, 0, 2, 3), "GRU": (1, 0, 2)}[s["cell"]]  # of our gates
    letters = {"LSTM": "fuco", "GRU": "zrn"}.get(s["cell"])
    columns = np.concatenate([np.arange(k * h, (k + 1) * h) for k in order])
    module = getattr(torch.nn, s["cell"])(s["i"], h)
    with torch.no_grad():
        for ours, name in (("Wx", "weight_ih_l0"), ("Wh", "weight_hh_l0"), ("b", "bias_ih_l0")):
            getattr(module, name).copy_(torch.from_numpy(d[ours][..., columns].T.copy()))
        module.bias_hh_l0.zero_()
    x = torch.from_numpy(d["X"].transpose(2, 0, 1).copy()).requires_grad_()
    dy = torch.from_numpy(d["dY"].transpose(2, 0, 1).copy())
    wanted = [x, *module.parameters()]

    def run() -> tuple[Any, Any]:
        y, _ = module(x)
        return y, torch.autograd.grad(y, wanted, dy)

    def result() -> Arrays:
        y, (dx, dwx, dwh, dbi, dbh) = run()
        found = {"Y": _numpy(y).transpose(1, 2, 0), "dX": _numpy(dx).transpose(1, 2, 0)}
        if letters is None:
            return found | {
                **{"dWax": dwx.T.numpy(), "dWaa": dwh.T.numpy()},
                **{"dbx": dbi.numpy()[:, None], "dba": dbh.numpy()[:, None]},
            }
        for place, k in enumerate(order):
            part = slice(place * h, (place + 1) * h)
            found[f"dW{letters[k]}"] = torch.cat([dwh[part], dwx[part]], dim=1).T.numpy()
            found[f"db{letters[k]}"] = dbi[part].numpy()[None]
        if s["cell"] == "GRU":
            found["dba"] = dbh[2 * h :].numpy()[None]
        return found

    return Subject(run, result)


def module_of(layer: Layer, before: tuple[int, ...]) -> list[torch.nn.Module]:
    """Return a layer in PyTorch."""
    nn = torch.nn
    relu: list[torch.nn.Module] = [nn.ReLU()] if getattr(layer, "relu", False) else []
    if isinstance(layer, Conv):
        return [nn.Conv2d(before[-1], layer.out, layer.k, padding=layer.pad), *relu]
    if isinstance(layer, Dense):
        return [nn.Linear(before[-1], layer.out), *relu]
    if isinstance(layer, Norm):
        return [nn.BatchNorm2d(before[-1]), nn.ReLU()]
    if isinstance(layer, Dropout):
        return [nn.Dropout(0.5)]
    return [nn.MaxPool2d(2)] if isinstance(layer, Pool) else [nn.Flatten()]


def _step(case: Case, d: Arrays, channels_last: bool) -> Subject:
    start = [v for k, v in d.items() if k[0] == "p"]
    flat = next((before for layer, before, _ in walk(case.net) if isinstance(layer, Flatten)), None)

    def turned(array: np.ndarray, back: bool, i: int) -> np.ndarray:
        """Weights from our layout into PyTorch's, or back; `i` their place in the list."""
        after_flatten = case.net.is_image and i == first_dense
        if array.ndim == 4:
            return array.transpose(2, 3, 1, 0) if back else array.transpose(3, 2, 0, 1)
        if array.ndim == 2 and after_flatten and flat is not None:
            rows, cols, ch = flat
            if back:
                return (
                    array.reshape(-1, ch, rows, cols).transpose(2, 3, 1, 0).reshape(array.T.shape)
                )
            return array.reshape(rows, cols, ch, -1).transpose(3, 2, 0, 1).reshape(array.T.shape)
        return array.T if array.ndim == 2 else array

    first_dense = next(i for i, p in enumerate(start) if p.ndim == 2)

    def ready(dropout: float) -> tuple[torch.nn.Module, Any]:
        parts = [m for layer, before, _ in walk(case.net) for m in module_of(layer, before)]
        model = torch.nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, torch.nn.Dropout):
                part.p = dropout
        with torch.no_grad():
            for i, (p, value) in enumerate(zip(model.parameters(), start, strict=True)):
                p.copy_(torch.from_numpy(turned(value, False, i).copy()))
        model = model.to(memory_format=_format(channels_last))
        x, labels = _image(d["X"], channels_last), torch.from_numpy(d["labels"])
        rule = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

        def run() -> float:
            rule.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(x), labels)
            loss.backward()
            rule.step()
            return loss.item()

        return model, run

    def result() -> Arrays:
        model, run = ready(0.0)
        found: Arrays = {"loss": np.array([run() for _ in range(STEPS_CHECKED)])}
        for i, (p, q) in enumerate(zip(model.parameters(), start, strict=True)):
            found[f"change {i}"] = turned(p.detach().numpy(), True, i) - q
        return found

    return Subject(ready(0.5)[1], result)
