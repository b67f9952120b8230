"""The stages of a network that trains within one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gpulayers.ops.window import Window

__all__ = ["Conv", "Dense", "Norm", "Stage"]


@dataclass(frozen=True)
class Conv:
    """A convolution with bias and activation, and max pooling of windows side by side behind it.

    Attributes
    ----------
    rows, cols, channels : int
        Of its input.
    filters : int
    window : Window
    pool : (rows, cols) of the pooling's windows, or None
    activation : str
        Of `mega_constants.ACTIVATIONS`.
    drop : float
        The p of a dropout in front of it; 0: there is none.
    frozen : bool
        Its parameters stay as they are.
    """

    rows: int
    cols: int
    channels: int
    filters: int
    window: Window
    pool: tuple[int, int] | None
    activation: str
    drop: float = 0.0
    frozen: bool = False

    @property
    def inputs(self) -> int:
        return self.rows * self.cols * self.channels

    @property
    def convolved(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        return self.window.output_size(self.rows, self.cols)

    @property
    def out(self) -> tuple[int, int]:
        rows, cols = self.convolved
        return (rows, cols) if self.pool is None else (rows // self.pool[0], cols // self.pool[1])

    @property
    def outputs(self) -> int:
        return self.out[0] * self.out[1] * self.filters

    @property
    def weights(self) -> int:
        return self.window.taps * self.channels * self.filters


@dataclass(frozen=True)
class Dense:
    """A dense layer with bias and activation, as `Conv`."""

    inputs: int
    outputs: int
    activation: str
    drop: float = 0.0
    frozen: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Norm:
    """Batch normalisation of the convolution or dense layer before it, with what `Conv` may have
    behind it; behind a dense layer there is one pixel. If it is frozen, by the running statistics.
    """

    rows: int
    cols: int
    filters: int
    epsilon: float
    momentum: float
    pool: tuple[int, int] | None = None
    activation: str = "identity"
    frozen: bool = False
    drop: ClassVar[float] = 0.0

    @property
    def inputs(self) -> int:
        return self.rows * self.cols * self.filters

    @property
    def out(self) -> tuple[int, int]:
        down, across = self.pool or (1, 1)
        return self.rows // down, self.cols // across

    @property
    def outputs(self) -> int:
        return self.out[0] * self.out[1] * self.filters

    @property
    def weights(self) -> int:
        return self.filters


Stage = Conv | Dense | Norm
