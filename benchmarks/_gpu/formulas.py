"""The array formulas in float64 that the kernels are held against, held against PyTorch's in
float64: both on the CPU, on the same few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from _gpu.kernels import ADAM, SCALE, WINDOW, Case, cases, numbers_on
from gpulayers.ops.reference import Reference

__all__ = ["items"]

_IMAGES = 2
_MOST = 1e-11  # relative difference of two in float64
#: those that PyTorch has no counterpart of
_OWN = ("philox_words",)


def items() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each formula, and what compares it."""
    for case in cases(np, _IMAGES, "fp32"):
        what = case.name.removesuffix(" fp32")
        if what not in _OWN:
            yield f"{what}, formula against PyTorch", lambda c=case: compare(c)


def compare(case: Case) -> dict[str, Any]:
    """Return how far the two are apart, relative to the largest number.

    Raises
    ------
    ArithmeticError
        If that is more than rounding.
    """
    given = case.make(Reference(), numbers_on(np, "fp32", wide=True))
    name = case.name.removesuffix(" fp32")
    wanted = _by_torch(name, *given.inputs)  # the inputs of some are changed in place
    found = given.run()
    found = found if isinstance(found, tuple) else (found,)
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        b = b.numpy()
        if a.shape != b.shape:
            raise ArithmeticError(f"{name}: shape {a.shape}, PyTorch's is {b.shape}")
        off = np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30)
        worst = max(worst, float(off)) if np.isfinite(off) else np.inf
    if worst > _MOST:
        raise ArithmeticError(f"{name}: the formula is off by {worst:.1e} from PyTorch's")
    return {"apart": worst}


def _by_torch(name: str, *inputs: Any) -> tuple[torch.Tensor, ...]:
    if name.startswith("product"):
        a, b = (
            torch.from_numpy(x).T if turned == "t" else torch.from_numpy(x)
            for x, turned in zip(inputs, name[-2:], strict=True)
        )
        return (a @ b,)
    if name.startswith("lstm"):
        return _lstm("backward" in name, *inputs)
    first, *rest = (torch.from_numpy(np.array(x)) for x in inputs)
    return _FORMULAS[name](first, *rest)


def _first(x: torch.Tensor) -> torch.Tensor:
    """Channels first."""
    return x.permute(0, 3, 1, 2)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def _im2col(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n, channels = len(x), x.shape[3]
    columns = functional.unfold(_first(x), WINDOW.kernel, padding=1).reshape(n, channels, 9, -1)
    return (columns.permute(0, 3, 2, 1).reshape(-1, 9 * channels),)


def _col2im(columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pixels, channels = len(columns) // _IMAGES, columns.shape[1] // 9
    size = round(pixels**0.5)
    columns = columns.reshape(_IMAGES, pixels, 9, channels).permute(0, 3, 2, 1)
    columns = columns.reshape(_IMAGES, 9 * channels, pixels)
    return (_last(functional.fold(columns, (size, size), WINDOW.kernel, padding=1)),)


def _max_pool(x: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y, where = functional.max_pool2d(_first(x), 2, return_indices=True)
    row, col = where // x.shape[2], where % x.shape[2]
    return _last(y), _last(row % 2 * 2 + col % 2)


def _max_pool_back(
    x: torch.Tensor, dy: torch.Tensor, argmax: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    size = dy.shape[1:3]
    at = argmax.long()
    row = 2 * torch.arange(size[0])[:, None, None] + at // 2
    col = 2 * torch.arange(size[1])[None, :, None] + at % 2
    where = _first(row * x.shape[2] + col)
    return (_last(functional.max_unpool2d(_first(dy), where, 2)),)


def _back(run: Callable[..., torch.Tensor], dy: torch.Tensor, *inputs: torch.Tensor) -> Any:
    """The gradients of all inputs."""
    inputs = tuple(x.requires_grad_() for x in inputs)
    return torch.autograd.grad(run(*inputs), inputs, dy)


def _avg_pool_back(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return _back(lambda x: _last(functional.avg_pool2d(_first(x), 2)), dy, x)


def _conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    return _last(functional.conv2d(_first(x), w.permute(3, 2, 0, 1), b, padding=1))


def _cross_entropy_back(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Ours is given the numbers as if they were probabilities."""
    return (SCALE * (logits - functional.one_hot(labels, logits.shape[1])),)


def _adam(
    param: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    rate, *decays, epsilon, step = ADAM
    rule = torch.optim.Adam([param], lr=rate, betas=tuple(decays), eps=epsilon)
    param.requires_grad_().grad = grad
    rule.state[param] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": mean,
        "exp_avg_sq": var,
    }
    rule.step()
    return param.detach(), mean, var


def _lstm(back: bool, x: Any, weights: Any, dy: Any = None) -> tuple[torch.Tensor, ...]:
    """PyTorch's gates come in the order i, f, g, o; ours f, i, g, o."""
    states = weights.recurrent.shape[0]
    turn = [1, 0, 2, 3]

    def theirs(w: Any) -> torch.Tensor:
        w = torch.from_numpy(np.array(w)).reshape(-1, 4, states)[:, turn]
        return w.reshape(-1, 4 * states).T.contiguous()

    def ours(w: torch.Tensor) -> torch.Tensor:
        return w.T.reshape(-1, 4, states)[:, turn].reshape(-1, 4 * states)

    layer = torch.nn.LSTM(x.shape[2], states, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(theirs(weights.recurrent))
        layer.weight_ih_l0.copy_(theirs(weights.input))
        layer.bias_ih_l0.copy_(theirs(weights.biases[0]).reshape(-1))
        layer.bias_hh_l0.zero_()
    X = torch.from_numpy(np.array(x)).requires_grad_()
    if back:
        wanted = X, layer.weight_hh_l0, layer.weight_ih_l0
        dX, recurrent, inputs = torch.autograd.grad(layer(X)[0], wanted, torch.from_numpy(dy))
        return dX, ours(recurrent), ours(inputs)
    found, last = [], None
    with torch.no_grad():
        for at in X:  # one step at a time: the cells' states of all of them are wanted
            _, last = layer(at[None], last)
            found.append(last)
    zeros = torch.zeros_like(found[0][0])
    return tuple(torch.cat([zeros, *(pair[k] for pair in found)]) for k in (0, 1))


_FORMULAS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "im2col": _im2col,
    "col2im": _col2im,
    "col2im scatter": _col2im,
    "max_pool2d_forward": _max_pool,
    "max_pool2d_backward": _max_pool_back,
    "avg_pool2d_forward": lambda x, _: (_last(functional.avg_pool2d(_first(x), 2)),),
    "avg_pool2d_backward": _avg_pool_back,
    "bias_activation": lambda x, b: (functional.relu(x + b),),
    "activation_backward": lambda dy, x: _back(functional.relu, dy, x),
    "bias_grad": lambda x: (x.reshape(-1, x.shape[3]).sum(0),),
    "softmax_cross_entropy_forward": lambda logits, labels: (
        functional.cross_entropy(logits, labels, reduction="none"),
        functional.softmax(logits, 1),
    ),
    "softmax_cross_entropy_backward": _cross_entropy_back,
    "adam_update": _adam,
    "conv2d_forward": lambda x, w, b: (_conv(x, w, b),),
    "conv2d_input_grad": lambda x, w, dz: _back(lambda x: _conv(x, w), dz, x),
    "conv2d_weight_grad": lambda x, w, dz: _back(lambda w: _conv(x, w), dz, w),
}
