"""What is measured of layers, modules and wrappers: each class, its cases.

Most cases are those of the tests. A subject is used by what all have in common:
arrays that may be changed (`places`), outputs that depend on them, and gradients of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers import layers, random, wrappers
from tests.conftest import Backend
from tests.layers import cases as layer_cases
from tests.layers import embeddings, gold, harness, test_attention
from tests.layers.harness import default_dtype, values
from tests.modules import cases as module_cases

Tensors = dict[str, Any]
DROPPED = 0.4  # by the wrapper Dropout


@dataclass
class Run:
    """One subject on one backend, in one dtype.

    Attributes
    ----------
    places : the arrays with a gradient, by name; to be changed in place
    outputs : the forward pass, the same every time for the same arrays
    gradients : of sum_k (outputs[k] * dYs[k]), by name; called right after `outputs`
    """

    places: dict[str, Any]
    outputs: Callable[[], list[Any]]
    gradients: Callable[[list[Any]], dict[str, Any]]


@dataclass
class Subject:
    """One class with settings and sizes.

    Attributes
    ----------
    family, name, case : where it is, what it is called, which settings
    start : (backend, dtype) -> Run
    torch : the outputs by PyTorch, from tensors named as the places; or None
    """

    family: str
    name: str
    case: str
    start: Callable[[Backend, str], Run]
    torch: Callable[[Tensors], list[Any]] | None = None


# ----------------------------------------------------------------------------------------- layers


def _run(layer: Any, X: Any, wrap: Callable[[Any], Any] = lambda layer: layer) -> Run:
    wrapped = wrap(layer)

    def outputs() -> list[Any]:
        wrapped.flush_gradients()
        Y = harness.forward(wrapped, X)
        return [Y[0] if isinstance(Y, tuple) else Y]

    def gradients(dYs: list[Any]) -> dict[str, Any]:
        return {"X": wrapped.backward(dYs[0]), **layer.gradients}

    return Run({"X": X} | {n: layer.parameters[n] for n in layer.gradients}, outputs, gradients)


def _tensors(known: dict[str, np.ndarray], given: Tensors) -> Tensors:
    """All parameters as tensors: those with a gradient as given, the others as constants."""
    import torch

    return {name: given.get(name, torch.tensor(value)) for name, value in known.items()}


def _layer(case: layer_cases.Case) -> Subject:
    def start(backend: Backend, dtype: str) -> Run:
        return _run(harness.fresh(case, backend, dtype), harness.input_of(case, backend, dtype))

    def by_torch(t: Tensors) -> list[Any]:
        from tests.layers import torch_reference

        assert case.torch is not None
        reference = getattr(torch_reference, case.torch[0])(**case.torch[1])
        return [reference(_tensors(harness.parameters_of(case), t), t["X"])]

    subject = Subject("layers", case.layer, case.id, start, by_torch if case.torch else None)
    if case.layer == "Dropout":
        p = float(case.make().hyperparameters["p"])
        subject.torch = lambda t: [_dropped(t["X"], p)]
    return subject


def _dropped(X: Any, p: float) -> Any:
    """X as dropout leaves it, right after the generator was restarted."""
    import torch

    return X * torch.tensor(gold.kept_by_dropout(p, tuple(X.shape), gold.SEED)) / (1 - p)


def _wrapped(case: layer_cases.Case) -> Subject:
    def start(backend: Backend, dtype: str) -> Run:
        layer, X = harness.fresh(case, backend, dtype), harness.input_of(case, backend, dtype)
        return _run(layer, X, lambda layer: wrappers.Dropout(layer, DROPPED))

    inner = _layer(case).torch
    torch = inner and (lambda t: inner({**t, "X": _dropped(t["X"], DROPPED)}))
    return Subject("wrappers", "Dropout", case.id, start, torch)


def _steps_of_cell(kind: str) -> Subject:
    """Three steps of one sequence; the LSTM's last memory has a gradient, too."""

    def start(backend: Backend, dtype: str) -> Run:
        Xs = [backend.asarray(values((3, 4), k, dtype), dtype) for k in (1, 2, 3)]
        with default_dtype(dtype):
            random.seed(gold.SEED)
            layer: Any = getattr(layers, f"{kind}Cell")(2)
            layer.forward(Xs[0])
        layer.flush_gradients()

        def outputs() -> list[Any]:
            layer.flush_gradients()
            Ys = [layer.forward(X) for X in Xs]
            return [Y[0] for Y in Ys] + [Ys[-1][1]] if kind == "LSTM" else Ys

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            if kind == "LSTM":
                layer.derived_variables["dLdC_accumulator"] = dYs[3]
            dXs = [layer.backward(dY) for dY in reversed(dYs[:3])]
            return dict(zip(("X_3", "X_2", "X_1"), dXs, strict=True)) | layer.gradients

        names = {f"X_{k + 1}": X for k, X in enumerate(Xs)}
        return Run(names | layer.parameters, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        import torch

        from tests.layers import torch_reference

        module, weights = getattr(torch_reference, f"{kind.lower()}_module")(t)
        X = torch.stack([t[f"X_{k}"] for k in (1, 2, 3)])
        A, final = torch.func.functional_call(module, weights, (X,))
        return [*A, *([final[1][0]] if kind == "LSTM" else [])]

    return Subject("layers", f"{kind}Cell", "three steps", start, by_torch)


def _over_time(kind: str) -> Subject:
    """Initial states, sequences of different lengths, a gradient of the final states."""
    states, lengths = ("A", "C") if kind == "LSTM" else ("A",), [4, 1, 3]

    def start(backend: Backend, dtype: str) -> Run:
        X = backend.asarray(values((3, 2, 4), 1, dtype), dtype)
        initial = [backend.asarray(values((3, 5), 4 + k, dtype), dtype) for k in range(len(states))]
        mask = backend.asarray(np.arange(4) < np.array(lengths)[:, None])
        with default_dtype(dtype):
            random.seed(gold.SEED)
            layer = getattr(layers, kind)(5)
            layer.forward(X)

        def outputs() -> list[Any]:
            layer.flush_gradients()
            Y = layer.forward(X, initial_state=initial, mask=mask)
            final = layer.final_state
            return [Y, *(final if isinstance(final, tuple) else (final,))]

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            dX = layer.backward(dYs[0], final_state_grad=dYs[1:])
            derived = layer.derived_variables
            before = {f"{s}_0": derived[f"dLd{s}_accumulator"] for s in states}
            return {"X": dX, **before, **layer.gradients}

        places = dict(zip((f"{s}_0" for s in states), initial, strict=True))
        return Run({"X": X, **places, **layer.parameters}, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        from tests.layers import torch_reference

        module, weights = getattr(torch_reference, f"{kind.lower()}_module")(t)
        X = pack_padded_sequence(t["X"].permute(2, 0, 1), lengths, enforce_sorted=False)
        initial = [t[f"{s}_0"][None] for s in states]
        given = (X, tuple(initial) if kind == "LSTM" else initial[0])
        packed, final = torch.func.functional_call(module, weights, given)
        A, _ = pad_packed_sequence(packed)
        return [A.permute(1, 2, 0), *(s[0] for s in (final if kind == "LSTM" else (final,)))]

    return Subject("layers", kind, "states and mask", start, by_torch)


def _merge(kind: str, act: str, count: int, shape: tuple[int, ...]) -> Subject:
    def start(backend: Backend, dtype: str) -> Run:
        layer: Any = getattr(layers, kind)(act_fn=layer_cases.ACT[act])
        Xs = [backend.asarray(values(shape, k + 1, dtype), dtype) for k in range(count)]

        def outputs() -> list[Any]:
            layer.flush_gradients()
            return [layer.forward(Xs)]

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            return {f"X_{k + 1}": dX for k, dX in enumerate(layer.backward(dYs[0]))}

        return Run({f"X_{k + 1}": X for k, X in enumerate(Xs)}, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        import torch

        from tests.layers.torch_reference import ACTIVATIONS

        stacked = torch.stack(list(t.values()))
        return [ACTIVATIONS[act](stacked.sum(0) if kind == "Add" else stacked.prod(0))]

    return Subject("layers", kind, f"{count} inputs, {act}", start, by_torch)


def _attention(size: str, p: float, scale: bool) -> Subject:
    Xs, _ = test_attention.inputs(test_attention.SIZES[size])

    def start(backend: Backend, dtype: str) -> Run:
        layer = layers.DotProductAttention(scale, p)
        given = [backend.asarray(X.astype(dtype)) for X in Xs]

        def outputs() -> list[Any]:
            layer.flush_gradients()
            random.seed(gold.SEED)
            return [layer.forward(*given)]

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            return dict(zip("QKV", layer.backward(dYs[0]), strict=True))

        return Run(dict(zip("QKV", given, strict=True)), outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        import torch

        factor = None if scale else 1.0
        if not p:
            attend = torch.nn.functional.scaled_dot_product_attention
            return [attend(t["Q"], t["K"], t["V"], scale=factor)]
        scores = t["Q"] @ t["K"].transpose(-1, -2) * (factor or t["Q"].shape[-1] ** -0.5)
        return [_dropped(torch.softmax(scores, -1), p) @ t["V"]]

    case = f"{size}{f', p = {p}' if p else ''}{'' if scale else ', no scale'}"
    return Subject("layers", "DotProductAttention", case, start, by_torch)


def _embedding(pool: str | None, ragged: bool) -> Subject:
    def start(backend: Backend, dtype: str) -> Run:
        with default_dtype(dtype):
            layer = embeddings.embedding(pool).to(backend.library)
        ids = embeddings.RAGGED if ragged else backend.asarray(embeddings.IDS)

        def outputs() -> list[Any]:
            layer.flush_gradients()
            return [layer.forward(ids)]

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            layer.backward(dYs[0])
            return layer.gradients

        return Run(dict(layer.parameters), outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        import torch

        F = torch.nn.functional
        if pool is None:
            return [F.embedding(torch.tensor(embeddings.IDS), t["W"])]
        rows = embeddings.RAGGED if ragged else embeddings.IDS.tolist()
        starts = torch.tensor(np.cumsum([0, *(len(row) for row in rows[:-1])]))
        joined = torch.tensor([i for row in rows for i in row])
        return [F.embedding_bag(joined, t["W"], starts, mode=pool)[:, None]]

    case = f"pool {pool}{', ragged' if ragged else ''}"
    return Subject("layers", "Embedding", case, start, by_torch)


def _rbm(n_ex: int, n_in: int, n_out: int, K: int) -> Subject:
    """CD's gradient is that of the free energies' difference F(v) - F(v'), with the drawn v' fixed:
    F(v) = - v b_in - sum_j log(1 + exp(v W + b_out)_j). The layer gives no output to compare."""
    V = (values((n_ex, n_in), 1) > 0).astype(float)
    drawn: list[np.ndarray] = []  # v', from the last gradients on NumPy in float64

    def energy(xp: Any, p: dict[str, Any], v: Any, softplus: Callable[[Any], Any]) -> Any:
        return -(v @ p["b_in"].reshape(-1)).sum() - softplus(v @ p["W"] + p["b_out"]).sum()

    def start(backend: Backend, dtype: str) -> Run:
        with default_dtype(dtype):
            random.seed(gold.SEED)
            layer = layers.RBM(n_out, K)
            layer.forward(backend.asarray(V, dtype), retain_derived=False)
        for k, array in enumerate(layer.parameters.values()):
            array[...] = backend.asarray(0.5 * values(array.shape, 100 + k), dtype)
        xp = backend.xp
        v = backend.asarray(V, dtype)
        random.seed(gold.SEED)
        layer.forward(v)
        v_drawn = layer._retained[-1].saved["V_prime"].copy()
        layer.backward()
        found = {name: gradient.copy() for name, gradient in layer.gradients.items()}
        drawn[:] = [backend.asnumpy(v_drawn).astype(float)]

        def outputs() -> list[Any]:
            def softplus(z: Any) -> Any:
                return xp.logaddexp(0.0, z)

            p = layer.parameters
            return [xp.asarray(energy(xp, p, v, softplus) - energy(xp, p, v_drawn, softplus))]

        return Run(dict(layer.parameters), outputs, lambda dYs: found)

    def by_torch(t: Tensors) -> list[Any]:
        import torch

        softplus = torch.nn.functional.softplus
        data, model = (energy(torch, t, torch.tensor(v), softplus) for v in (V, drawn[0]))
        return [data - model]

    return Subject("layers", "RBM", f"({n_ex}, {n_in}) to {n_out}, K = {K}", start, by_torch)


def _module(case: module_cases.Case) -> Subject:
    def start(backend: Backend, dtype: str) -> Run:
        module = case.fresh(backend, dtype)
        Xs = module_cases.on(backend, case.inputs(dtype), dtype)
        names = [f"input {k + 1}" for k in range(len(Xs))]

        def outputs() -> list[Any]:
            module.flush_gradients()
            return module_cases.forward(module, Xs)

        def gradients(dYs: list[Any]) -> dict[str, Any]:
            dXs = dict(zip(names, module_cases.backward(module, dYs), strict=True))
            return dXs | module_cases.named(module, "gradients")

        parameters = module_cases.named(module, "parameters")
        learned = {n: parameters[n] for n in module_cases.named(module, "gradients")}
        return Run(dict(zip(names, Xs, strict=True)) | learned, outputs, gradients)

    def by_torch(t: Tensors) -> list[Any]:
        from tests.modules import torch_reference

        assert case.torch is not None
        Xs = [value for name, value in t.items() if name.startswith("input ")]
        reference = getattr(torch_reference, case.torch[0])(**case.torch[1])
        return reference(_tensors(case.parameters(), t), Xs)

    return Subject("modules", case.module, case.id, start, by_torch if case.torch else None)


def subjects() -> list[Subject]:
    """Every layer, module and wrapper that can be trained through."""
    one_of_each = {case.layer: case for case in reversed(layer_cases.CASES)}
    one_of_each.pop("Dropout")  # it draws as the wrapper does
    return [
        *(_layer(case) for case in layer_cases.CASES),
        *(_steps_of_cell(kind) for kind in ("RNN", "LSTM", "GRU")),
        *(_over_time(kind) for kind in ("RNN", "LSTM", "GRU")),
        *(
            _merge(kind, act, count, (3, 2, 4))
            for kind in ("Add", "Multiply")
            for act, count in (("identity", 1), ("tanh", 2), ("selu", 3), ("identity", 5))
        ),
        *(_attention(size, 0.0, True) for size in test_attention.SIZES),
        *(_attention("heads", p, scale) for p, scale in ((0.0, False), (0.4, True))),
        *(_embedding(pool, False) for pool in embeddings.POOLS),
        *(_embedding(pool, True) for pool in ("sum", "mean")),
        _rbm(5, 4, 3, 1),
        _rbm(3, 7, 2, 3),
        *(_module(case) for case in module_cases.CASES),
        *(_wrapped(case) for case in reversed(one_of_each.values())),
    ]
