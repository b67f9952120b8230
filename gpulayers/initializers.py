"""From strings, dicts and names to activations, schedulers, optimizers and first weights.

Weights are drawn on the host in float64 from `gpulayers.random`'s default generator, then rounded
and moved: the same seed gives the same weights on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers import activations as act
from gpulayers._dtypes import float_dtype
from gpulayers.backend import Array
from gpulayers.errors import ParameterError, ShapeError, suggest
from gpulayers.optimizers import SGD, AdaGrad, Adam, AdamW, OptimizerBase, RMSProp
from gpulayers.optimizers._rate import agree, recorded
from gpulayers.schedulers import SchedulerBase, make_scheduler

__all__ = [
    "ActivationInitializer",
    "OptimizerInitializer",
    "SchedulerInitializer",
    "WeightInitializer",
    "calc_fan",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "truncated_normal",
]

_ACTIVATIONS: dict[str, Callable[..., act.ActivationBase]] = {
    _spec.fold(cls.__name__): cls
    for cls in (
        act.Identity,
        act.Affine,
        act.Sigmoid,
        act.HardSigmoid,
        act.Tanh,
        act.ReLU,
        act.LeakyReLU,
        act.ELU,
        act.SELU,
        act.GELU,
        act.SoftPlus,
        act.Exponential,
    )
}
_OPTIMIZERS: dict[str, Callable[..., OptimizerBase]] = {
    _spec.fold(cls.__name__): cls for cls in (SGD, AdaGrad, RMSProp, Adam, AdamW)
}


class ActivationInitializer:
    """``ActivationInitializer(param)()`` is the activation that `param` describes.

    Parameters
    ----------
    param : None, ActivationBase or str
        None gives Identity, an object itself. A string is a name with the class's arguments, such
        as "relu", "Leaky ReLU(alpha=0.3)", "LeakyReLU(0.3)" or "Affine(slope=2, intercept=1)":
        case and spaces in the name do not matter, and ``str(activation)`` is always read back
        (numpy-ml's fails on its own ELU, GELU and Hard Sigmoid).

    Raises
    ------
    ParameterError
        On the call, for an unknown name, arguments that do not fit, or another type.
    """

    def __init__(self, param: act.ActivationBase | str | None = None) -> None:
        self.param = param

    def __call__(self) -> act.ActivationBase:
        """Return the activation."""
        if self.param is None:
            return act.Identity()
        if isinstance(self.param, act.ActivationBase):
            return self.param
        if isinstance(self.param, str):
            return _spec.build(self.param, _ACTIVATIONS, "ActivationInitializer", "activation")
        raise ParameterError(
            "ActivationInitializer: expected None, an activation object or a string such as "
            f"'relu', got {self.param!r}"
        )


class SchedulerInitializer:
    """``SchedulerInitializer(param, lr)()`` is the learning-rate schedule that `param` describes.

    Parameters
    ----------
    param : None, SchedulerBase, str or dict
        None gives ``ConstantScheduler(lr)``, an object itself. A string is a name, with or without
        "Scheduler", and arguments: "noam", "ExponentialScheduler(initial_lr=0.5, decay=0.9)". A
        dict is ``{"hyperparameters": {"id": name, ...}}``. Every argument counts (numpy-ml loses
        most of them).
    lr : float, optional
        Used if `param` is None, or a string or dict that leaves out its own (lr, initial_lr,
        max_lr).

    Raises
    ------
    ParameterError
        On the call, if both are None, the name is unknown, or arguments do not fit.
    """

    def __init__(
        self, param: SchedulerBase | str | Mapping[str, Any] | None = None, lr: float | None = None
    ) -> None:
        self.param = param
        self.lr = lr

    def __call__(self) -> SchedulerBase:
        """Return the schedule."""
        return make_scheduler(self.param, self.lr)


class OptimizerInitializer:
    """``OptimizerInitializer(param)()`` is the optimizer that `param` describes.

    Parameters
    ----------
    param : None, OptimizerBase, str or dict
        None gives ``SGD()``, an object itself (layers copy it). A string is a name and arguments,
        such as "adam", "SGD(lr=0.1, momentum=0.9)" or
        "Adam(lr_scheduler=NoamScheduler(model_dim=64))"; ``str(optimizer)`` is always read back. A
        dict is ``{"hyperparameters": {"id": name, ...}, "cache": {...}}`` as a layer's
        hyperparameters hold it; the cache is copied. Where the dict has all hyperparameters, as
        written by an optimizer, its schedule counts, and lr is that one's. (numpy-ml loses
        decay1, decay2, clip_norm, lr_scheduler and the cache.)

    Raises
    ------
    ParameterError
        On the call, for an unknown name, arguments that do not fit, or another type.
    """

    def __init__(self, param: OptimizerBase | str | Mapping[str, Any] | None = None) -> None:
        self.param = param

    def __call__(self) -> OptimizerBase:
        """Return the optimizer."""
        owner = "OptimizerInitializer"
        if self.param is None:
            return SGD()
        if isinstance(self.param, OptimizerBase):
            return self.param
        if isinstance(self.param, (str, Mapping)):
            cls, values = _spec.described(self.param, _OPTIMIZERS, owner, "optimizer")
            made: Any = cls(**recorded(cls, values))
            if isinstance(self.param, Mapping):
                return made.set_params(cache_dict=self.param.get("cache"))
            if made.lr != values.get("lr", made.lr):  # all arguments, written by hand
                agree(cls.__name__, values["lr"], made.lr_scheduler)
            return made
        raise ParameterError(
            f"{owner}: expected None, an optimizer object, a string such as 'Adam(lr=0.001)' or a "
            f"dict with hyperparameters, got {self.param!r}"
        )


# ------------------------------------------------------------------------------------ first weights


def calc_fan(weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out): inputs that an output sums, outputs that an input feeds.

    Parameters
    ----------
    weight_shape : tuple of int
        (n_in, n_out), (width, in_ch, out_ch) or (rows, cols, in_ch, out_ch).

    Raises
    ------
    ShapeError
        For another number of axes, or a size that is no integer >= 0.
    """
    return _fans("calc_fan", weight_shape)


def _fans(name: str, weight_shape: Any) -> tuple[int, int]:
    sizes = _spec.sizes(weight_shape)
    if sizes is None or len(sizes) not in (2, 3, 4):
        raise ShapeError(
            f"{name}: expected (n_in, n_out), (width, in_ch, out_ch) or (rows, cols, in_ch, "
            f"out_ch), integers >= 0, got {weight_shape!r}"
        )
    *kernel, n_in, n_out = sizes
    taps = math.prod(kernel)
    return n_in * taps, n_out * taps


def _kind(name: str, dtype: Any, xp: Any) -> np.dtype:
    """The dtype of new weights; checked, with the library, before anything is drawn."""
    if xp is not None and not hasattr(xp, "ndarray"):
        raise ParameterError(f"{name}: xp must be the module numpy or cupy, got {xp!r}")
    return backend.default_dtype() if dtype is None else float_dtype(dtype, f"{name}: dtype")


def _finish(drawn: np.ndarray, dtype: np.dtype, xp: ModuleType | None) -> Array:
    xp = backend.module(backend.current_backend()) if xp is None else xp
    return xp.asarray(drawn.astype(dtype))


def _uniform(
    name: str, bound: float, shape: tuple[int, ...], dtype: Any, xp: ModuleType | None
) -> Array:
    dtype = _kind(name, dtype, xp)
    u = random.default_generator().uniform(shape, np.float64, np)
    return _finish(bound * (2.0 * u - 1.0), dtype, xp)


def he_uniform(
    weight_shape: tuple[int, ...], dtype: Any = None, xp: ModuleType | None = None
) -> Array:
    """Draw from U(-b, b) with b = sqrt(6 / fan_in) (He et al., 2015).

    Parameters
    ----------
    weight_shape : tuple of int
        See `calc_fan`.
    dtype : dtype, optional
        The default dtype if None.
    xp : module, optional
        numpy or cupy; the current backend if None.

    Raises
    ------
    ShapeError
        As `calc_fan`.
    ParameterError
        If dtype is not floating.
    """
    fan_in, _ = _fans("he_uniform", weight_shape)
    return _uniform("he_uniform", math.sqrt(6.0 / max(fan_in, 1)), weight_shape, dtype, xp)


def he_normal(
    weight_shape: tuple[int, ...], dtype: Any = None, xp: ModuleType | None = None
) -> Array:
    """Draw from N(0, 2 / fan_in) cut at two standard deviations; arguments as `he_uniform`.

    As in numpy-ml the cut lowers the standard deviation by 12 %; no correction is made.
    """
    name = "he_normal"
    fan_in, _ = _fans(name, weight_shape)
    return _truncated(name, 0.0, math.sqrt(2.0 / max(fan_in, 1)), weight_shape, dtype, xp)


def glorot_uniform(
    weight_shape: tuple[int, ...],
    gain: float = 1.0,
    dtype: Any = None,
    xp: ModuleType | None = None,
) -> Array:
    """Draw from U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010).

    Other arguments and errors as `he_uniform`; gain is a finite number >= 0.
    """
    name = "glorot_uniform"
    fans = max(sum(_fans(name, weight_shape)), 1)
    gain = _spec.real(name, "gain", gain, 0.0)
    return _uniform(name, gain * math.sqrt(6.0 / fans), weight_shape, dtype, xp)


def glorot_normal(
    weight_shape: tuple[int, ...],
    gain: float = 1.0,
    dtype: Any = None,
    xp: ModuleType | None = None,
) -> Array:
    """Draw from N(0, gain^2 * 2 / (fan_in + fan_out)) cut at two standard deviations.

    Other arguments and errors as `glorot_uniform`; the cut as in `he_normal`.
    """
    name = "glorot_normal"
    fans = max(sum(_fans(name, weight_shape)), 1)
    gain = _spec.real(name, "gain", gain, 0.0)
    return _truncated(name, 0.0, gain * math.sqrt(2.0 / fans), weight_shape, dtype, xp)


def truncated_normal(
    mean: float,
    std: float,
    out_shape: tuple[int, ...],
    dtype: Any = None,
    xp: ModuleType | None = None,
) -> Array:
    """Draw from a normal distribution; what lies beyond two standard deviations is drawn again.

    Parameters
    ----------
    mean, std : float
        Finite; std >= 0.
    out_shape : tuple of int
        Of any number of axes.
    dtype, xp :
        As `he_uniform`.

    Raises
    ------
    ParameterError
    """
    return _truncated("truncated_normal", mean, std, out_shape, dtype, xp)


def _truncated(
    name: str, mean: float, std: float, out_shape: Any, dtype: Any, xp: ModuleType | None
) -> Array:
    mean, std = _spec.real(name, "mean", mean), _spec.real(name, "std", std, 0.0)
    dtype = _kind(name, dtype, xp)
    sizes = _spec.sizes((out_shape,) if isinstance(_spec.plain(out_shape), int) else out_shape)
    if sizes is None:
        raise ParameterError(f"{name}: out_shape must be integers >= 0, got {out_shape!r}")
    generator = random.default_generator()
    drawn = generator.normal(sizes, 0.0, 1.0, np.float64, np)
    flat = drawn.reshape(-1)
    beyond = np.flatnonzero(np.abs(flat) > 2.0)
    while beyond.size:
        flat[beyond] = generator.normal((beyond.size,), 0.0, 1.0, np.float64, np)
        beyond = beyond[np.abs(flat[beyond]) > 2.0]
    return _finish(mean + std * drawn, dtype, xp)


class WeightInitializer:
    """``WeightInitializer(act_fn_str, mode)(shape)`` draws first weights.

    Parameters
    ----------
    act_fn_str : str or ActivationBase
        The layer's activation, which sets the gain of the Glorot modes: 5/3 for tanh, sqrt(2) for
        ReLU, sqrt(2 / (1 + alpha^2)) for leaky ReLU (numpy-ml: sqrt(2 + alpha^2)), 1 for any other,
        also one that is not known here. (He et al., 2015; PyTorch's ``calculate_gain``)
    mode : str
        "he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "std_normal" (N(0, 1)) or
        "trunc_normal" (N(0, 1) cut at +-2).

    Raises
    ------
    ParameterError
        If the mode is unknown, or the activation neither a string nor an object.
    """

    MODES = (
        "he_normal",
        "he_uniform",
        "glorot_normal",
        "glorot_uniform",
        "std_normal",
        "trunc_normal",
    )

    def __init__(self, act_fn_str: str | act.ActivationBase, mode: str = "glorot_uniform") -> None:
        if mode not in self.MODES:
            raise ParameterError(
                f"WeightInitializer: unknown mode {mode!r}, expected one of "
                f"{', '.join(self.MODES)}" + suggest(str(mode), self.MODES)
            )
        if not isinstance(act_fn_str, (str, act.ActivationBase)):
            raise ParameterError(
                "WeightInitializer: act_fn_str must be an activation or its name, such as 'relu', "
                f"got {act_fn_str!r}"
            )
        self.act_fn_str = str(act_fn_str)
        self.mode = mode
        self.gain = _gain(act_fn_str)

    def __call__(
        self, weight_shape: tuple[int, ...], dtype: Any = None, xp: ModuleType | None = None
    ) -> Array:
        """Return new weights of `weight_shape`; arguments and errors as `he_uniform`."""
        match self.mode:
            case "he_normal":
                return he_normal(weight_shape, dtype, xp)
            case "he_uniform":
                return he_uniform(weight_shape, dtype, xp)
            case "glorot_normal":
                return glorot_normal(weight_shape, self.gain, dtype, xp)
            case "glorot_uniform":
                return glorot_uniform(weight_shape, self.gain, dtype, xp)
            case "std_normal":
                kind = _kind("WeightInitializer", dtype, xp)
                drawn = random.default_generator().normal(weight_shape, 0.0, 1.0, np.float64, np)
                return _finish(drawn, kind, xp)
            case _:
                return truncated_normal(0.0, 1.0, weight_shape, dtype, xp)


def _gain(activation: str | act.ActivationBase) -> float:
    if isinstance(activation, str):
        try:
            activation = ActivationInitializer(activation)()
        except ParameterError:  # a class of the user's own, known by its name alone
            return 1.0
    if isinstance(activation, act.LeakyReLU):
        return math.sqrt(2.0 / (1.0 + activation.alpha**2))
    if isinstance(activation, act.ReLU):
        return math.sqrt(2.0)
    return 5.0 / 3.0 if isinstance(activation, act.Tanh) else 1.0
