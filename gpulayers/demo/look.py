"""What the page shows of a network: its prediction, feature maps and input gradient."""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.demo.drawing import SIDE, centred
from gpulayers.errors import DataError, ParameterError
from gpulayers.models import Sequential
from gpulayers.ops.softmax import softmax_forward

__all__ = ["Look"]

MAPS = 32  # of one layer that are shown at most
UNITS = 256
_SAME = ("Flatten", "Dropout")  # layers whose output shows nothing new in evaluation


class Look:
    """A network that takes digits, opened up.

    Parameters
    ----------
    network : Sequential
        Takes (n, 28, 28, 1) and gives logits (n, classes).
    classes : names of the classes
    title : str
        What is said about the network.

    Raises
    ------
    DataError
        If the network does not take images of 28 x 28 pixels, or gives no logits.
    """

    def __init__(self, network: Sequential, classes: tuple[str, ...] = (), title: str = "") -> None:
        self.network, self.title = network, title or network.name
        self._lock = threading.Lock()  # forward and backward share what the layers retain
        network.freeze()  # evaluation, but with what a backward pass needs
        blank = np.zeros((1, SIDE, SIDE, 1), np.uint8)
        try:
            outputs = network.predict(blank)
        except ValueError as error:
            raise DataError(
                f"the demo draws digits, so the network must take images (28, 28, 1): {error}"
            ) from error
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise DataError(
                f"the demo needs a network that gives logits (n, classes), got {outputs.shape}"
            )
        count = outputs.shape[1]
        if len(classes) not in (0, count):
            raise DataError(
                f"the network tells {count} classes apart, but has {len(classes)} names"
            )
        self.classes = tuple(classes) or tuple(str(i) for i in range(count))

    def describe(self) -> dict[str, Any]:
        """What does not change while one draws."""
        return {
            "title": self.title,
            "classes": list(self.classes),
            "parameters": self.network.parameter_count,
            "layers": len(self.network.layers),
        }

    def at(self, drawing: np.ndarray, explain: int | None = None) -> dict[str, Any]:
        """Everything that is shown for a drawing.

        Parameters
        ----------
        drawing : (rows, cols) uint8
            As `drawing.centred` takes it.
        explain : int, optional
            Class whose score the gradient is of; None is the predicted one.

        Returns
        -------
        dict
            ``input`` (28, 28), ``probabilities``, ``predicted``, ``explained``, ``layers`` (kind,
            detail, shape, ``maps`` (count, rows, cols) with pixels 0..255 between the layer's least
            and largest value) and ``gradient``: d score / d pixel, scaled so that the largest is
            127, as signed bytes plus 128. Arrays are base64. Source of the gradient as a picture:
            Simonyan et al., "Deep inside convolutional networks" (2014), section 3.

        Raises
        ------
        ParameterError
            If there is no class `explain`.
        ShapeError, DTypeError
            As `centred`.
        """
        if explain is not None and not 0 <= explain < len(self.classes):
            raise ParameterError(f"explain must be 0..{len(self.classes) - 1}, got {explain}")
        image = centred(drawing)
        blank = not image.any()
        begin = time.perf_counter()
        with self._lock:
            outputs, gradient, logits, chosen = self._run(image, explain)
        spent = time.perf_counter() - begin
        probabilities = softmax_forward(logits.astype(np.float64)[None])[0]
        layers = [
            {**self._layer_name(i), "shape": list(Y.shape), **_picture(Y)} for i, Y in outputs
        ]
        return {
            "blank": blank,
            "input": _encode(image),
            "probabilities": [float(p) for p in probabilities],
            "predicted": int(probabilities.argmax()),
            "explained": chosen,
            "layers": layers,
            "gradient": _encode(_signed(gradient)),
            "steepest": float(np.abs(gradient).max()),
            "milliseconds": 1e3 * spent,
        }

    def _run(
        self, image: np.ndarray, explain: int | None
    ) -> tuple[list[tuple[int, np.ndarray]], np.ndarray, np.ndarray, int]:
        """Forward through every layer and back: outputs, input gradient, logits, class."""
        network = self.network
        place = network.home or "numpy"
        X: Array = network.pixels(backend.to_backend(image[None, :, :, None], place), network.dtype)
        outputs: list[tuple[int, np.ndarray]] = []
        for i, layer in enumerate(network.layers):
            X = layer.forward(X, True)
            if type(layer).__name__ not in _SAME:
                outputs.append((i, backend.to_cpu(X)[0].astype(np.float32)))
        logits = backend.to_cpu(X)[0].astype(np.float32)
        chosen = int(logits.argmax()) if explain is None else explain
        dY: Any = backend.module(place).zeros_like(X)
        dY[0, chosen] = 1
        for layer in reversed(network.layers):
            dY = layer.backward(dY, False)
        network.flush_gradients()
        gradient = backend.to_cpu(dY)[0, :, :, 0].astype(np.float64)
        return outputs, gradient, logits, chosen

    def _layer_name(self, i: int) -> dict[str, str]:
        """The layer's class, and what is worth knowing of it."""
        layer = self.network.layers[i]
        known: dict[str, Any] = layer.hyperparameters if hasattr(layer, "hyperparameters") else {}
        details: list[str] = []
        if isinstance(known.get("kernel_shape"), tuple):
            details.append("{} x {}".format(*known["kernel_shape"]))
        if known.get("act_fn") is not None and str(known["act_fn"]) != "Identity":
            details.append(str(known["act_fn"]))
        return {"kind": type(layer).__name__, "detail": ", ".join(details)}


def _picture(Y: np.ndarray) -> dict[str, Any]:
    """A layer's output (rows, cols, channels) or (units,) as maps of gray levels."""
    values = Y.transpose(2, 0, 1)[:MAPS] if Y.ndim == 3 else Y.reshape(1, 1, -1)[..., :UNITS]
    low, high = float(values.min()), float(values.max())
    span = high - low
    levels = (values - low) * (255.0 / span) if span > 0 else np.zeros_like(values)
    return {"size": list(values.shape), "maps": _encode(levels.astype(np.uint8))}


def _signed(values: np.ndarray) -> np.ndarray:
    """Values as bytes: 128 is zero, 1 and 255 the largest magnitude."""
    largest = np.abs(values).max()
    scaled = values * (127.0 / largest) if largest > 0 else values
    return (np.rint(scaled) + 128).astype(np.uint8)


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
