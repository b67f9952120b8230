"""What a trainer says when a run stops before its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gpulayers.errors import DivergedError, GPULayersError

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["diverged", "interrupted"]


def interrupted(trainer: Trainer) -> NoReturn:
    """Save after Ctrl-C and raise KeyboardInterrupt with what to do next."""
    where = (
        f"epoch {trainer.epoch + 1} of {trainer.epochs}, {trainer.step} of {trainer.steps} batches"
    )
    if trainer.out is None:
        raise KeyboardInterrupt(
            f"stopped in {where}; fit() goes on. Nothing was saved, there is no out folder."
        )
    path = trainer.save_checkpoint()
    raise KeyboardInterrupt(
        f"stopped in {where}; saved to {path}, from where resume={str(path.parent)!r} goes on"
    )


def diverged(trainer: Trainer, step: int, value: float, X: Any) -> NoReturn:
    """Raise DivergedError for a loss that is not finite: where, and what may help."""
    layer = None
    try:
        with np.errstate(all="ignore"):
            layer = trainer.network.first_not_finite(X)
    except GPULayersError:
        pass  # it only helps to explain
    found = (
        f"the first layer whose output is not finite is {layer}"
        if layer
        else "every layer's output is finite, so the loss itself overflowed"
    )
    half, kept = "", ""
    if trainer.dtype.itemsize < 4:
        half = f" {trainer.dtype.name} parameters lose small gradients: float32 may do."
    if trainer.out is not None and trainer.saved is not None:
        path, epoch, batch = trainer.saved
        kept = f" The last good checkpoint, after epoch {epoch}"
        kept += f" and {batch} batches" if batch else ""
        kept += f", is kept: {path}"
    raise DivergedError(
        f"the loss became {value} in epoch {trainer.epoch + 1}, batch {step + 1} of "
        f"{trainer.steps}: {found}. Try a smaller learning rate (it is "
        f"{trainer.learning_rate:g}), or clip_norm in the optimizer.{half}{kept}"
    )
