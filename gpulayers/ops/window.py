"""The sliding window of a convolution or pooling: integers only, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpulayers import _spec
from gpulayers._types import is_sequence
from gpulayers.errors import ParameterError, ShapeError


def _pair(value: Any, what: str, name: str, minimum: int) -> tuple[int, int]:
    """An int for both axes, or (rows, cols)."""
    if is_sequence(value):
        if len(value) != 2:
            raise ParameterError(f"{name}: {what} must be an int or (rows, cols), got {value!r}")
        rows, cols = value
        return (
            _spec.integer(name, what, rows, minimum),
            _spec.integer(name, what, cols, minimum),
        )
    number = _spec.integer(name, what, value, minimum)
    return number, number


def _same_pad(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding that keeps the size, whatever the stride; the odd one goes to the end."""
    total = stride * (size - 1) + kernel - size
    return total // 2, total - total // 2


@dataclass(frozen=True)
class Window:
    """Kernel, stride, padding and dilation of a sliding window over (rows, cols).

    Attributes
    ----------
    kernel : (fr, fc)
        Taps along rows and columns.
    stride : (sr, sc)
    pad : (top, bottom, left, right)
    dilation : (dr, dc)
        Spacing between taps, 1 = dense, as in PyTorch. (numpy-ml's argument ``dilation`` counts the
        zeros inserted between taps, one less.)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    # ------------------------------------------------------------------------------- construction

    @staticmethod
    def make(
        kernel: Any,
        stride: Any = 1,
        pad: Any = 0,
        dilation: Any = 0,
        in_size: tuple[int, int] | None = None,
        name: str = "Window",
    ) -> Window:
        """Build a window from the arguments a layer takes, numpy-ml's conventions.

        Parameters
        ----------
        kernel : int or (fr, fc)
        stride : int or (sr, sc), >= 1
        pad : int, (rows, cols), (top, bottom, left, right) or ``"same"``
            ``"same"`` gives an output of the input's size *for any stride* (numpy-ml's meaning; in
            TensorFlow it is ceil(size / stride)); the odd pixel goes to the bottom and right.
        dilation : int or (dr, dc), >= 0
            Zeros inserted between the taps (numpy-ml's meaning).
        in_size : (rows, cols), optional
            Needed for ``"same"``; given, the window is also checked to fit.
        name : str
            The layer's name for error messages.

        Raises
        ------
        ParameterError
            For an argument of the wrong type or range.
        ShapeError
            If the kernel does not fit into the padded input.
        """
        fr, fc = _pair(kernel, "kernel", name, 1)
        sr, sc = _pair(stride, "stride", name, 1)
        dr, dc = (d + 1 for d in _pair(dilation, "dilation", name, 0))
        if isinstance(pad, str):
            if pad != "same":
                raise ParameterError(
                    f"{name}: pad must be an int, a tuple of 2 or 4 ints or 'same', got {pad!r}"
                )
            if in_size is None:
                raise ParameterError(f"{name}: pad='same' needs the input size")
            top, bottom = _same_pad(in_size[0], (fr - 1) * dr + 1, sr)
            left, right = _same_pad(in_size[1], (fc - 1) * dc + 1, sc)
        elif is_sequence(pad) and len(pad) == 4:
            top, bottom, left, right = (_spec.integer(name, "pad", p, 0) for p in pad)
        elif is_sequence(pad) and len(pad) != 2:
            raise ParameterError(
                f"{name}: pad must be an int, a tuple of 2 or 4 ints or 'same', got {pad!r}"
            )
        else:
            rows, cols = _pair(pad, "pad", name, 0)
            top, bottom, left, right = rows, rows, cols, cols
        window = Window((fr, fc), (sr, sc), (top, bottom, left, right), (dr, dc))
        if in_size is not None:
            window.output_size(*in_size, name=name)
        return window

    @staticmethod
    def make_1d(
        kernel_width: Any,
        stride: Any = 1,
        pad: Any = 0,
        dilation: Any = 0,
        length: int | None = None,
        name: str = "Window",
    ) -> Window:
        """Build the window of a 1-D operation, seen as images of one row.

        As `make`, with one number each; pad is an int, (left, right), ``"same"`` or ``"causal"``
        (all padding on the left, so that no output sees a later input).
        """
        fw = _spec.integer(name, "kernel_width", kernel_width, 1)
        step = _spec.integer(name, "stride", stride, 1)
        spacing = _spec.integer(name, "dilation", dilation, 0) + 1
        if isinstance(pad, str):
            if pad not in ("same", "causal"):
                raise ParameterError(
                    f"{name}: pad must be an int, (left, right), 'same' or 'causal', got {pad!r}"
                )
            if length is None:
                raise ParameterError(f"{name}: pad={pad!r} needs the input length")
            left, right = _same_pad(length, (fw - 1) * spacing + 1, step)
            if pad == "causal":
                left, right = left + right, 0
        else:
            left, right = _pair(pad, "pad", name, 0)
        window = Window((1, fw), (1, step), (0, 0, left, right), (1, spacing))
        if length is not None:
            window.output_size(1, length, name=name)
        return window

    # ----------------------------------------------------------------------------------- geometry

    @property
    def taps(self) -> int:
        """Positions inside the window: fr * fc."""
        return self.kernel[0] * self.kernel[1]

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns from the first tap to the last: (f - 1) * dilation + 1."""
        return (
            (self.kernel[0] - 1) * self.dilation[0] + 1,
            (self.kernel[1] - 1) * self.dilation[1] + 1,
        )

    @property
    def is_pointwise(self) -> bool:
        """Whether each output sees just its own input pixel (1x1, stride 1, no padding)."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.pad)

    def output_size(self, rows: int, cols: int, name: str = "Window") -> tuple[int, int]:
        """Return (out_rows, out_cols) = floor((size + padding - span) / stride) + 1.

        Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016),
        relationship 15.

        Raises
        ------
        ShapeError
            If the kernel does not fit into the padded input.
        """
        top, bottom, left, right = self.pad
        (span_r, span_c), (sr, sc) = self.span, self.stride
        padded = rows + top + bottom, cols + left + right
        if span_r > padded[0] or span_c > padded[1]:
            raise ShapeError(
                f"{name}: the kernel spans {span_r} x {span_c} pixels, but the padded input has "
                f"only {padded[0]} x {padded[1]} (input {rows} x {cols}, pad {self.pad})"
            )
        return (padded[0] - span_r) // sr + 1, (padded[1] - span_c) // sc + 1

    def padded_size(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the size of the input with its padding."""
        return rows + self.pad[0] + self.pad[1], cols + self.pad[2] + self.pad[3]

    def blind_outputs(self, rows: int, cols: int) -> bool:
        """Whether some output position sees padding only (a maximum there would be of nothing)."""
        return any(
            not any(0 <= o * s - p + k * d < size for k in range(f))
            for size, out, s, p, d, f in zip(
                (rows, cols),
                self.output_size(rows, cols),
                self.stride,
                (self.pad[0], self.pad[2]),
                self.dilation,
                self.kernel,
                strict=True,
            )
            for o in range(out)
        )
