"""A step's batch from a dataset on the device, and its results to where the host reads them."""

from __future__ import annotations

import math
from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements

__all__ = ["finish_step", "gather"]


def gather(resident: Any, batch: Array, labels: Array) -> None:
    """Fill `batch` (n, ...) and `labels` (n,) int64 with the next n examples of a `Resident`.

    Its bytes are scaled and shifted by its factors, to the bits of `Pixels`. The batch has the
    resident's dtype. Places behind the end of its order give NaN and label -1. `position` is
    left as it is: blocks that read it have no order. `finish_step` advances it.
    """
    images = resident.images
    width = math.prod(images.shape[1:])
    index = table.index_for(batch.size, resident.order.size)
    places = (images, resident.labels, resident.order, resident.position)
    if images.dtype == "uint8":
        args = (
            *(*places, resident.factors, batch, labels),
            *(batch.size, width, images.shape[-1], resident.order.size),
        )
        launch_elements("gather_bytes", batch.dtype, batch.size, args, index)
    else:
        args = (*places, batch, labels, batch.size, width, resident.order.size)
        launch_elements("gather_rows", batch.dtype, batch.size, args, index)


def finish_step(
    resident: Any,
    losses: Array,
    outputs: Array,
    labels: Array,
    loss: Array,
    step: Array,
    scale: float,
) -> None:
    """loss (1,) = scale * the sum of `losses`; loss and hits to the resident's record; `step`, its
    `done` and its `position` are advanced. One launch.

    Parameters
    ----------
    outputs : (n, classes), what is compared with `labels` (n,)
    """
    n, classes = outputs.shape
    args = (
        *(losses, outputs, labels, loss, step, resident.position, resident.done, resident.record),
        *(n, classes, len(resident.record), scale),
    )
    launch("finish_step", outputs.dtype, (1,), args, "int32")
