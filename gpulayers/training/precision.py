"""Training in half types, the loss in float32 and, for float16, a loss scale; or in TF32.

Master weights, the other half of it, are the optimizers' (see `gpulayers.optimizers`).
(Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import numpy as np

from gpulayers import _spec
from gpulayers.backend import Array
from gpulayers.errors import DivergedError, ParameterError, suggest
from gpulayers.optimizers.base import BuiltIn

__all__ = ["PRECISIONS", "LossScaler", "WideLoss", "chosen", "multiplying"]

PRECISIONS = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class LossScaler:
    """What the gradient that enters the network is multiplied by, so that small gradients do not
    become zero in float16.

    Dynamic, as float16 needs it: a step whose gradients are not all finite is left out and the
    scale halved; it is doubled after 2000 good steps in a row. A captured step does all that on the
    device and is asked when somebody reads the scale; otherwise each step waits for a GPU once,
    which knows whether they are finite. bfloat16 has float32's range and needs no scale: there it
    stays 1 and nothing is read.

    Attributes
    ----------
    precision : "bf16" or "fp16"
    scale : float
        A power of two, 2**15 at first ("fp16").
    skipped_steps : int
        How many steps were left out.
    """

    growth_interval = 2000
    smallest, largest = 2.0**-14, 2.0**24

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.dynamic = precision == "fp16"
        self._scale = 2.0**15 if self.dynamic else 1.0
        self._skipped = 0
        self._good = 0  # steps since the scale was last changed
        self._device: Any = None

    def on_device(self, make: Callable[..., Any]) -> Any:
        """Go on in a `LossScale`, made by `make`, which is asked from now on."""
        self._pull()
        limits = {"smallest": self.smallest, "largest": self.largest}
        interval = self.growth_interval
        self._device = make(self._scale, self._good, self._skipped, interval, **limits)
        return self._device

    @property
    def scale(self) -> float:
        self._pull()
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._pull()
        self._scale = value
        self._push()

    @property
    def skipped_steps(self) -> int:
        self._pull()
        return self._skipped

    def _pull(self) -> None:
        """Learn what the device has decided; waits for it."""
        if self._device is None:
            return
        found = self._device.read()
        self._scale, self._good = found["scale"], found["good"]
        self._skipped = found["skipped"]
        if found["stuck"]:
            self._give_up(self._scale)

    def _push(self) -> None:
        if self._device is not None:
            self._device.write(self._scale, self._good, self._skipped)

    def _give_up(self, scale: float) -> NoReturn:
        raise DivergedError(
            f"the gradients are not finite even with a loss scale of {scale:g}; "
            'try a smaller learning rate, or precision="bf16" or "fp32"'
        )

    def judge(self, gradients: list[Array]) -> float | None:
        """The scale that these gradients have; None if they are not finite and the step is to be
        left out. The scale is that of the next step afterwards.

        Raises
        ------
        DivergedError
            If they are not finite at the smallest scale either.
        """
        if not self.dynamic:
            return self._scale
        self._pull()
        try:
            return self._judged(gradients)
        finally:
            self._push()

    def _judged(self, gradients: list[Array]) -> float | None:
        scale = self._scale
        total: Any = 0.0
        for grad in gradients:  # sums of float16 values stay far within float32
            total = total + grad.sum(dtype=np.float32)
        if math.isfinite(float(total)):
            self._good += 1
            if self._good >= self.growth_interval:
                self._scale, self._good = min(2.0 * scale, self.largest), 0
            return scale
        if scale <= self.smallest:
            self._give_up(scale)
        self._scale, self._good = 0.5 * scale, 0
        self._skipped += 1
        return None

    @contextmanager
    def undone(self, network: Any, scale: float) -> Generator[None]:
        """Within it, the optimizers divide gradients by the scale, in float32 and before anything
        else.

        Raises
        ------
        ParameterError
            For an optimizer of a user's own, which does not know of scales.
        """
        learning = [layer for _, layer in network.walk() if layer.gradients and self.dynamic]
        optimizers = [layer.optimizer for layer in learning]
        for one in optimizers:
            if not isinstance(one, BuiltIn) or type(one).update_ is not BuiltIn.update_:
                raise ParameterError(
                    f"Trainer: precision='fp16' needs an optimizer of gpulayers, which divides by "
                    f"the loss scale; {type(one).__name__} does not"
                )
        try:
            for one in optimizers:
                one.grad_scale = 1.0 / scale
            yield
        finally:
            for one in optimizers:
                one.grad_scale = 1.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        self._pull()
        return {"scale": self._scale, "good": self._good, "skipped": self._skipped}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._scale, self._good = float(state["scale"]), int(state["good"])
        self._skipped = int(state["skipped"])
        self._push()


class WideLoss:
    """A loss computed in float32 from half-precision outputs; its gradient, times the loss scale,
    is rounded to their type last of all.

    Parameters
    ----------
    base : object with ``forward(labels, outputs)`` and ``backward()``
    scaler : LossScaler
    """

    def __init__(self, base: Any, scaler: LossScaler) -> None:
        self.base, self.scaler = base, scaler
        self.reduction = getattr(base, "reduction", "mean")
        self._dtype: Any = None

    def forward(self, labels: Any, outputs: Array) -> Any:
        """Return the loss, unscaled."""
        self._dtype = outputs.dtype
        return self.base.forward(labels, outputs.astype(np.float32))

    def backward(self) -> Array:
        """Return the gradient of the last `forward`'s loss times the scale."""
        return (self.base.backward() * self.scaler.scale).astype(self._dtype)


def chosen(precision: str | None, dtype: Any) -> tuple[Any, LossScaler | None]:
    """The parameters' dtype for a trainer's `precision` and `dtype`, and the scaler of a half type.

    Raises
    ------
    ParameterError
        If the precision is unknown, or the dtype another one.
    """
    if precision is None:
        return dtype, None
    name = PRECISIONS.get(precision)
    if name is None:
        raise ParameterError(
            f"Trainer: unknown precision {precision!r}, expected one of {', '.join(PRECISIONS)}"
            + suggest(str(precision), PRECISIONS)
        )
    given = getattr(dtype, "__name__", None) or str(dtype)
    if dtype is not None and _spec.fold(given) != name:
        raise ParameterError(f"Trainer: precision {precision!r} is {name}, but dtype={given}")
    return name, None if name == "float32" else LossScaler(precision)


def multiplying(precision: str | None, device: str) -> AbstractContextManager[Any]:
    """Within it float32 is multiplied on a GPU as a trainer's `precision` says; as it is around it
    if that says nothing.

    Raises
    ------
    ParameterError
        For "tf32" on a CPU, which has no such products.
    BackendError
        If the GPU has none either.
    """
    if device != "cupy":
        if precision == "tf32":
            raise ParameterError(
                "Trainer: precision 'tf32' is for tensor cores, this trains on the CPU; "
                "leave it out, or choose 'fp32'"
            )
        return nullcontext()
    if precision not in ("fp32", "tf32"):
        return nullcontext()
    from gpulayers.cuda import precision as products  # needs CuPy

    products.check("Trainer", precision)
    return products.use_precision(precision)
