"""The update rules: SGD, AdaGrad, RMSProp, Adam as in numpy-ml, and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from gpulayers import _spec
from gpulayers.backend import Array
from gpulayers.errors import ParameterError
from gpulayers.optimizers._rate import Implied
from gpulayers.optimizers.base import BuiltIn, Rules
from gpulayers.schedulers import Check

_not_negative: Check = partial(_spec.real, low=0.0)
_fraction: Check = partial(_spec.real, low=0.0, high=1.0)
_below_one: Check = partial(_spec.real, low=0.0, high=1.0, open_high=True)


def _limit(owner: str, name: str, value: Any) -> Any:
    return None if value is None else _spec.real(owner, name, value, 0.0, open_low=True)


_EXTRAS: Mapping[str, Check] = {"clip_value": _limit, "weight_decay": _not_negative}


class SGD(BuiltIn):
    """Gradient descent with momentum.

    velocity = momentum * velocity + lr * grad;  param -= velocity
    with Nesterov's momentum:                    param -= momentum * velocity + lr * grad

    The learning rate is inside the velocity, as in numpy-ml; PyTorch's is outside, which differs
    while the rate changes. (Polyak, 1964; Sutskever et al., 2013)

    Parameters
    ----------
    lr : float
        Learning rate, >= 0.
    momentum : float
        >= 0.
    clip_norm : float, optional
        A longer gradient is scaled down to this Euclidean norm, each parameter by itself.
    lr_scheduler : None, SchedulerBase, str or dict
        Decides the learning rate. A description that leaves out its own (lr, initial_lr, max_lr)
        gets `lr`, if that is given: ``SGD(lr=0.1, lr_scheduler="cosine")``. Else `lr` is the
        schedule's, and one that is given must be equal; beside a schedule that has none, as
        Noam's, none can be given. (numpy-ml ignores `lr` beside a schedule.)
    clip_value : float, optional
        Gradients are cut to [-clip_value, clip_value], entry by entry, before `clip_norm`.
    weight_decay : float
        >= 0: weight_decay * param is added to the (clipped) gradient.
    nesterov : bool
        Look ahead along the velocity (Nesterov, 1983; Sutskever et al., 2013); needs a momentum.

    (clip_value, weight_decay and nesterov are ours.)

    Raises
    ------
    ParameterError
        If a value is out of range, an argument unknown (numpy-ml ignores those), or `lr` would have
        no effect beside `lr_scheduler`.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "lr": _not_negative,
        "momentum": _not_negative,
        "clip_norm": _limit,
        **_EXTRAS,
        "nesterov": _spec.flag,
    }
    _extras: ClassVar[Mapping[str, Any]] = {**BuiltIn._extras, "nesterov": False}
    momentum: float
    nesterov: bool

    def __init__(
        self,
        lr: float = Implied(0.01),
        momentum: float = 0.0,
        clip_norm: float | None = None,
        lr_scheduler: Any = None,
        clip_value: float | None = None,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(
            lr_scheduler,
            unknown,
            lr=lr,
            momentum=momentum,
            clip_norm=clip_norm,
            clip_value=clip_value,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def _check_together(self) -> None:
        if self.nesterov and not self.momentum:
            raise ParameterError("SGD: nesterov=True needs a momentum > 0")

    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None:
        if not self.nesterov:
            rules.sgd_update(param, grad, entry, lr, self.momentum)
            return
        step = lr * grad
        entry *= self.momentum
        entry += step
        param -= self.momentum * entry + step


class AdaGrad(BuiltIn):
    """Steps shrink with the sum of past squares (Duchi, Hazan & Singer, 2011).

    cache += grad^2;  param -= lr * grad / (sqrt(cache) + eps)

    Parameters
    ----------
    lr, clip_norm, lr_scheduler, clip_value, weight_decay :
        As `SGD`.
    eps : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range or an argument unknown.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "lr": _not_negative,
        "eps": _not_negative,
        "clip_norm": _limit,
        **_EXTRAS,
    }
    eps: float

    def __init__(
        self,
        lr: float = Implied(0.01),
        eps: float = 1e-7,
        clip_norm: float | None = None,
        lr_scheduler: Any = None,
        clip_value: float | None = None,
        weight_decay: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(
            lr_scheduler,
            unknown,
            lr=lr,
            eps=eps,
            clip_norm=clip_norm,
            clip_value=clip_value,
            weight_decay=weight_decay,
        )

    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None:
        rules.adagrad_update(param, grad, entry, lr, self.eps)


class RMSProp(BuiltIn):
    """Steps shrink with a running average of squares (Tieleman & Hinton, 2012).

    cache = decay * cache + (1 - decay) * grad^2;  param -= lr * grad / (sqrt(cache) + eps)

    Parameters
    ----------
    lr, clip_norm, lr_scheduler, clip_value, weight_decay :
        As `SGD`.
    decay : float
        In [0, 1].
    eps : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range or an argument unknown.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "lr": _not_negative,
        "eps": _not_negative,
        "decay": _fraction,
        "clip_norm": _limit,
        **_EXTRAS,
    }
    eps: float
    decay: float

    def __init__(
        self,
        lr: float = Implied(0.001),
        decay: float = 0.9,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        lr_scheduler: Any = None,
        clip_value: float | None = None,
        weight_decay: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(
            lr_scheduler,
            unknown,
            lr=lr,
            decay=decay,
            eps=eps,
            clip_norm=clip_norm,
            clip_value=clip_value,
            weight_decay=weight_decay,
        )

    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None:
        rules.rmsprop_update(param, grad, entry, lr, self.decay, self.eps)


class Adam(BuiltIn):
    """Averages of gradient and square, both corrected for their start at zero.

    mean = decay1 * mean + (1 - decay1) * grad
    var = decay2 * var + (1 - decay2) * grad^2
    param -= lr * mean / (1 - decay1^t) / (sqrt(var / (1 - decay2^t)) + eps)

    (Kingma & Ba, 2015, algorithm 1.) ``cache[name]`` is ``{"t", "mean", "var"}``.

    Parameters
    ----------
    lr, clip_norm, lr_scheduler, clip_value, weight_decay :
        As `SGD`.
    decay1, decay2 : float
        In [0, 1).
    eps : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range or an argument unknown.
    """

    _fields: ClassVar[Mapping[str, Check]] = {
        "lr": _not_negative,
        "decay1": _below_one,
        "decay2": _below_one,
        "eps": _not_negative,
        "clip_norm": _limit,
        **_EXTRAS,
    }
    _state_names = ("mean", "var")
    decay1: float
    decay2: float
    eps: float

    def __init__(
        self,
        lr: float = Implied(0.001),
        decay1: float = 0.9,
        decay2: float = 0.999,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        lr_scheduler: Any = None,
        clip_value: float | None = None,
        weight_decay: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(
            lr_scheduler,
            unknown,
            lr=lr,
            decay1=decay1,
            decay2=decay2,
            eps=eps,
            clip_norm=clip_norm,
            clip_value=clip_value,
            weight_decay=weight_decay,
        )

    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None:
        t = entry["t"] + 1
        mean, var = entry["mean"], entry["var"]
        rules.adam_update(param, grad, mean, var, lr, self.decay1, self.decay2, self.eps, t)
        entry["t"] = t


class AdamW(Adam):
    """Adam whose weight decay stays out of the averages.

    param -= lr * weight_decay * param, then Adam's step with the bare gradient.
    (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.) Ours.

    Parameters
    ----------
    lr, decay1, decay2, eps, clip_norm, lr_scheduler, clip_value :
        As `Adam`.
    weight_decay : float
        >= 0.

    Raises
    ------
    ParameterError
        If a value is out of range or an argument unknown.
    """

    _decoupled = True
    _extras: ClassVar[Mapping[str, Any]] = {"clip_value": None}

    def __init__(
        self,
        lr: float = Implied(0.001),
        decay1: float = 0.9,
        decay2: float = 0.999,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        lr_scheduler: Any = None,
        clip_value: float | None = None,
        weight_decay: float = 0.01,
        **unknown: Any,
    ) -> None:
        super().__init__(
            lr, decay1, decay2, eps, clip_norm, lr_scheduler, clip_value, weight_decay, **unknown
        )

    def _rule(self, rules: Rules, param: Array, grad: Array, entry: Any, lr: float) -> None:
        if self.weight_decay:
            param *= 1.0 - lr * self.weight_decay
        super()._rule(rules, param, grad, entry, lr)
