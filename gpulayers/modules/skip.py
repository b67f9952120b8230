"""Residual blocks: two convolutions, and a way around them.

Source: He et al., "Deep residual learning for image recognition" (2016), section 3.2.
"""

from __future__ import annotations

from typing import Any

from gpulayers._padding import calc_pad_dims_2D
from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import Add, BatchNorm2D, Conv2D
from gpulayers.layers import _arguments as check
from gpulayers.modules.base import ModuleBase


class _Skip(ModuleBase):
    """The main path, conv1 - batchnorm1 - conv2 - batchnorm2, and the sum."""

    conv1: Conv2D
    batchnorm1: BatchNorm2D
    conv2: Conv2D
    batchnorm2: BatchNorm2D
    add3: Add

    @property
    def in_ch(self) -> int | None:
        return self.conv1.in_ch

    def _main_path(self, X: Array, retain: bool) -> tuple[Array, dict[str, Any]]:
        conv1_out = self.conv1.forward(X, retain)
        batchnorm1_out = self.batchnorm1.forward(conv1_out, retain)
        conv2_out = self.conv2.forward(batchnorm1_out, retain)
        batchnorm2_out = self.batchnorm2.forward(conv2_out, retain)
        return batchnorm2_out, {
            "conv1_out": conv1_out,
            "batchnorm1_out": batchnorm1_out,
            "conv2_out": conv2_out,
            "batchnorm2_out": batchnorm2_out,
        }

    def _main_path_backward(self, dLdBn2: Any, retain_grads: bool, input_grad: bool) -> Any:
        dLdConv2 = self.batchnorm2.backward(dLdBn2, retain_grads)
        dLdBn1 = self.conv2.backward(dLdConv2, retain_grads)
        dLdConv1 = self.batchnorm1.backward(dLdBn1, retain_grads)
        self._dv.update(dLdBn2=dLdBn2, dLdConv2=dLdConv2, dLdBn1=dLdBn1, dLdConv1=dLdConv1)
        return self.conv1.backward(dLdConv1, retain_grads, input_grad)

    def _sum_backward(self, dLdY: Any, retain_grads: bool) -> tuple[Any, Any]:
        """The gradients of the two summands, skip and main."""
        grads = self._several(self.add3.backward(dLdY, retain_grads))
        return self._as_given([g[0] for g in grads]), self._as_given([g[1] for g in grads])

    def _plus(self, a: Any, b: Any) -> Any:
        pairs = zip(self._several(a), self._several(b), strict=True)
        return self._as_given([x + y for x, y in pairs])


class SkipConnectionIdentityModule(_Skip):
    """Y = act(X + main(X)): a residual block of the input's shape.

        main(X) = batchnorm2(conv2(batchnorm1(act(conv1(X)))))

    Parameters
    ----------
    out_ch : int
        Channels after conv1; conv2 goes back to those of the input.
    kernel_shape1, kernel_shape2 : (fr, fc), or one int for both
    stride1, stride2 : int
        With numpy-ml's ``"same"`` padding, that keeps the size for any stride.
    act_fn : str, activation or None
    epsilon, momentum : float
        Of the batch normalisations.
    optimizer : str, optimizer, dict or None
        Copied into every component (numpy-ml leaves the batch normalisations out).
    init : str

    Attributes
    ----------
    component_ids : conv1, batchnorm1, conv2, batchnorm2, add3
    derived_variables : the components'; conv1_out, batchnorm1_out, conv2_out, batchnorm2_out of the
        last forward pass; of the last backward pass the gradients at the components' outputs,
        dLdConv1, dLdBn1, dLdConv2, dLdBn2, and that of the input, dLdAdd3_X

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input and output (n_ex, rows, cols, in_ch), floating. Before the first input conv2 shows
    `out_ch` as its own number of output channels, which then becomes in_ch.
    """

    component_ids = ("conv1", "batchnorm1", "conv2", "batchnorm2", "add3")
    _settings = (
        *("out_ch", "kernel_shape1", "kernel_shape2", "stride1", "stride2", "act_fn"),
        *("epsilon", "momentum", "init"),
    )
    _hyper = (
        *("init", "in_ch", "out_ch", "epsilon", "stride1", "stride2", "momentum", "act_fn"),
        *("kernel_shape1", "kernel_shape2"),
    )

    def __init__(
        self,
        out_ch: int,
        kernel_shape1: Any,
        kernel_shape2: Any,
        stride1: int = 1,
        stride2: int = 1,
        act_fn: Any = None,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        optimizer: Any = None,
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        self.out_ch, self.init = out_ch, init
        self.stride1, self.stride2 = stride1, stride2
        self.epsilon, self.momentum = epsilon, momentum
        self.act_fn = ActivationInitializer(act_fn)()
        same: dict[str, Any] = {"pad": "same", "init": init, "optimizer": optimizer}
        with self._named():
            self.conv1 = Conv2D(out_ch, kernel_shape1, stride=stride1, act_fn=self.act_fn, **same)
            self.batchnorm1 = BatchNorm2D(momentum, epsilon, optimizer)
            self.conv2 = Conv2D(out_ch, kernel_shape2, stride=stride2, **same)
            self.batchnorm2 = BatchNorm2D(momentum, epsilon, optimizer)
            self.add3 = Add(self.act_fn, optimizer)
        self.kernel_shape1, self.kernel_shape2 = self.conv1.kernel_shape, self.conv2.kernel_shape

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Compute act(X + main(X)).

        Parameters
        ----------
        X : (n_ex, rows, cols, in_ch), floating
            It is not changed.
        retain_derived : bool
            As in `LayerBase.forward`.

        Returns
        -------
        Y : (n_ex, rows, cols, in_ch)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """

        def forward() -> tuple[Array, dict[str, Any]]:
            if not self.conv2.is_initialized and getattr(X, "ndim", 0) == 4:
                self.conv2.out_ch = X.shape[3]
            main, kept = self._main_path(X, retain_derived)
            return self.add3.forward([X.astype(main.dtype, copy=False), main], retain_derived), kept

        return self._run(forward, X, retain_derived)

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Back through the sum: one gradient goes straight to X, one through main; they add up.

        Parameters
        ----------
        dLdY, retain_grads, input_grad
            As in `LayerBase.backward`.

        Returns
        -------
        dLdX : array, or list of arrays after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        with self._named():
            direct, dLdBn2 = self._sum_backward(dLdY, retain_grads)
            through = self._main_path_backward(dLdBn2, retain_grads, input_grad)
        if not input_grad:
            return None
        dLdX = self._plus(direct, through)
        self._dv["dLdAdd3_X"] = dLdX
        return dLdX


class SkipConnectionConvModule(_Skip):
    """Y = act(side(X) + main(X)): a residual block that changes size or channels.

        main(X) = batchnorm2(conv2(batchnorm1(act(conv1(X)))))
        side(X) = batchnorm_skip(conv_skip(X))

    Parameters
    ----------
    out_ch1, out_ch2 : int
        Channels after conv1, and after conv2 and conv_skip.
    kernel_shape1, kernel_shape2, kernel_shape_skip : (fr, fc), or one int for both
    pad1, pad2 : int, (rows, cols), (top, bottom, left, right) or ``"same"``
        (numpy-ml fails for the last two.)
    stride1, stride2, stride_skip : int
    act_fn : str, activation or None
    epsilon, momentum : float
    optimizer : str, optimizer, dict or None
        Copied into every component.
    init : str

    Attributes
    ----------
    component_ids : add3, conv1, conv2, conv_skip, batchnorm1, batchnorm2, batchnorm_skip
    pad_skip : (top, bottom, left, right) or None
        The padding with which conv_skip gives main's size, from the last input.
    derived_variables : as `SkipConnectionIdentityModule`; and conv_skip_out, batchnorm_skip_out,
        dLdBnSkip, dLdConvSkip

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Input (n_ex, rows, cols, in_ch), output (n_ex, out_rows, out_cols, out_ch2). Where no padding
    brings the two sides to one size, `forward` raises ShapeError.
    """

    component_ids = (
        *("add3", "conv1", "conv2", "conv_skip", "batchnorm1", "batchnorm2", "batchnorm_skip"),
    )
    _settings = (
        *("out_ch1", "out_ch2", "kernel_shape1", "kernel_shape2", "kernel_shape_skip"),
        *("pad1", "pad2", "stride1", "stride2", "act_fn", "epsilon", "momentum", "stride_skip"),
        "init",
    )
    _hyper = (
        *("init", "in_ch", "out_ch1", "out_ch2", "epsilon", "stride1", "stride2", "momentum"),
        *("act_fn", "pad1", "pad2", "pad_skip", "stride_skip"),
        *("kernel_shape1", "kernel_shape2", "kernel_shape_skip"),
    )

    def __init__(
        self,
        out_ch1: int,
        out_ch2: int,
        kernel_shape1: Any,
        kernel_shape2: Any,
        kernel_shape_skip: Any,
        pad1: Any = 0,
        pad2: Any = 0,
        stride1: int = 1,
        stride2: int = 1,
        act_fn: Any = None,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        stride_skip: int = 1,
        optimizer: Any = None,
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        self.out_ch1, self.out_ch2, self.init = out_ch1, out_ch2, init
        self.epsilon, self.momentum = epsilon, momentum
        self.stride1, self.stride2, self.stride_skip = stride1, stride2, stride_skip
        self.act_fn = ActivationInitializer(act_fn)()
        drawn: dict[str, Any] = {"init": init, "optimizer": optimizer}
        with self._named():
            self.conv1 = Conv2D(out_ch1, kernel_shape1, pad1, stride1, 0, self.act_fn, **drawn)
            self.conv2 = Conv2D(out_ch2, kernel_shape2, pad2, stride2, **drawn)
            self.conv_skip = Conv2D(out_ch2, kernel_shape_skip, 0, stride_skip, **drawn)
            self.batchnorm1 = BatchNorm2D(momentum, epsilon, optimizer)
            self.batchnorm2 = BatchNorm2D(momentum, epsilon, optimizer)
            self.batchnorm_skip = BatchNorm2D(momentum, epsilon, optimizer)
            self.add3 = Add(self.act_fn, optimizer)
        self.pad1, self.pad2 = self.conv1.pad, self.conv2.pad
        self.kernel_shape1, self.kernel_shape2 = self.conv1.kernel_shape, self.conv2.kernel_shape
        self.kernel_shape_skip = self.conv_skip.kernel_shape

    @property
    def pad_skip(self) -> Any:
        return self.conv_skip.pad if self.conv_skip.is_initialized else None

    def _pad_for(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """The padding of conv_skip, for an input shape."""
        size = shape[1], shape[2]
        for conv in (self.conv1, self.conv2):
            window = check.window_2d(
                conv.kernel_shape, conv.stride, conv.pad, conv.dilation, size, "Conv2D"
            )
            size = window.output_size(*size)
        try:
            return calc_pad_dims_2D(shape, size, self.kernel_shape_skip, self.conv_skip.stride)
        except ShapeError as error:
            raise ShapeError(f"conv_skip cannot give the size of conv2, {size}: {error}") from None

    def forward(self, X: Array, retain_derived: bool = True) -> Array:
        """Compute act(side(X) + main(X)).

        Parameters
        ----------
        X : (n_ex, rows, cols, in_ch), floating
            It is not changed.
        retain_derived : bool
            As in `LayerBase.forward`.

        Returns
        -------
        Y : (n_ex, out_rows, out_cols, out_ch2)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """

        def forward() -> tuple[Array, dict[str, Any]]:
            if getattr(X, "ndim", 0) == 4:  # conv1 refuses anything else
                self.conv_skip.pad = self._pad_for(X.shape)
            main, kept = self._main_path(X, retain_derived)
            kept["conv_skip_out"] = self.conv_skip.forward(X, retain_derived)
            side = self.batchnorm_skip.forward(kept["conv_skip_out"], retain_derived)
            kept["batchnorm_skip_out"] = side
            return self.add3.forward([side, main], retain_derived), kept

        return self._run(forward, X, retain_derived)

    def backward(self, dLdY: Any, retain_grads: bool = True, input_grad: bool = True) -> Any:
        """Back through the sum: one gradient goes through side, one through main; they add up.

        Parameters
        ----------
        dLdY, retain_grads, input_grad
            As in `LayerBase.backward`.

        Returns
        -------
        dLdX : array, or list of arrays after several forward passes

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        with self._named():
            dLdBnSkip, dLdBn2 = self._sum_backward(dLdY, retain_grads)
            dLdConvSkip = self.batchnorm_skip.backward(dLdBnSkip, retain_grads)
            side = self.conv_skip.backward(dLdConvSkip, retain_grads, input_grad)
            main = self._main_path_backward(dLdBn2, retain_grads, input_grad)
        self._dv.update(dLdBnSkip=dLdBnSkip, dLdConvSkip=dLdConvSkip)
        if not input_grad:
            return None
        dLdX = self._plus(side, main)
        self._dv["dLdAdd3_X"] = dLdX
        return dLdX
