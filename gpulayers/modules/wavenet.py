"""The residual block of WaveNet."""

from __future__ import annotations

from typing import Any

from gpulayers.activations import Sigmoid, Tanh
from gpulayers.backend import Array, is_floating, xp_of
from gpulayers.errors import ShapeError
from gpulayers.layers import Add, Conv1D, Multiply
from gpulayers.modules.base import ModuleBase
from gpulayers.ops import activation

_TANH: Any = Tanh()
_SIGMOID: Any = Sigmoid()


class WavenetResidualModule(ModuleBase):
    """A dilated causal convolution, gated; added to the input, and to what is skipped ahead.

        Z = conv_dilation(X_main)             G = tanh(Z) * sigmoid(Z)
        Y_skip = X_skip + conv_1x1(G)         Y_main = X_main + conv_1x1(G)

    Parameters
    ----------
    ch_residual : int
        Channels of the inputs and outputs.
    ch_dilation : int
        Channels of the dilated convolution.
    dilation : int
        Zeros between its taps, numpy-ml's meaning: one less than PyTorch's.
    kernel_width : int
        Its taps (numpy-ml always takes 2).
    optimizer : str, optimizer, dict or None
        Copied into every component.
    init : str

    Attributes
    ----------
    component_ids : conv_1x1, add_skip, add_residual, conv_dilation, multiply_gate
    X_main, X_skip : lists of the retained inputs
    derived_variables : the components'; conv_dilation_out, tanh_out, sigm_out, multiply_gate_out,
        conv_1x1_out of the last forward pass; of the last backward pass the gradients at these
        outputs, dLdConv_dilation, dLdTanh, dLdSigmoid, dLdMultiply, dLdConv_1x1

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Inputs and outputs (n_ex, length, ch_residual), floating. As in numpy-ml one convolution feeds
    both the filter and the gate; the paper has one for each.
    Source: van den Oord et al., "WaveNet: a generative model for raw audio" (2016), sections 2.3
    and 2.4.
    """

    component_ids = ("conv_1x1", "add_skip", "add_residual", "conv_dilation", "multiply_gate")
    _hyper = ("init", "dilation", "ch_residual", "ch_dilation", "kernel_width")
    _settings = ("ch_residual", "ch_dilation", "dilation", "kernel_width", "init")

    def __init__(
        self,
        ch_residual: int,
        ch_dilation: int,
        dilation: int,
        kernel_width: int,
        optimizer: Any = None,
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        self.ch_residual, self.ch_dilation = ch_residual, ch_dilation
        self.dilation, self.kernel_width, self.init = dilation, kernel_width, init
        drawn: dict[str, Any] = {"init": init, "optimizer": optimizer}
        with self._named():
            self.conv_dilation = Conv1D(ch_dilation, kernel_width, "causal", 1, dilation, **drawn)
            self.conv_1x1 = Conv1D(ch_residual, 1, **drawn)
            self.multiply_gate = Multiply(optimizer=optimizer)
            self.add_skip = Add(optimizer=optimizer)
            self.add_residual = Add(optimizer=optimizer)

    @property
    def X_main(self) -> list[Array]:
        return [main for main, _ in self.X]

    @property
    def X_skip(self) -> list[Array | None]:
        return [skip for _, skip in self.X]

    def forward(
        self, X_main: Array, X_skip: Array | None = None, retain_derived: bool = True
    ) -> tuple[Array, Array]:
        """Compute the outputs for the next block and for the end of the network.

        Parameters
        ----------
        X_main : (n_ex, length, ch_residual), floating
        X_skip : (n_ex, length, ch_residual), floating, or None
            None in the first block: zeros (where numpy-ml raises AttributeError).
        retain_derived : bool
            As in `LayerBase.forward`.

        Returns
        -------
        Y_main, Y_skip : (n_ex, length, ch_residual)

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """

        def forward() -> tuple[tuple[Array, Array], dict[str, Any]]:
            xp_of(X_main)
            if X_main.shape[-1:] != (self.ch_residual,):
                raise ShapeError(
                    f"expected X_main (n_ex, length, {self.ch_residual}), got {X_main.shape}"
                )
            Z = self.conv_dilation.forward(X_main, retain_derived)
            tanh_out = activation.bias_activation(Z, None, _TANH)
            sigm_out = activation.bias_activation(Z, None, _SIGMOID)
            gate_out = self.multiply_gate.forward([tanh_out, sigm_out], retain_derived)
            out = self.conv_1x1.forward(gate_out, retain_derived)
            main = X_main.astype(out.dtype, copy=False)
            if X_skip is None:
                skip = xp_of(out).zeros_like(out)
            else:
                xp_of(X_skip)
                floating = is_floating(X_skip.dtype)  # add_skip refuses anything else
                skip = X_skip.astype(out.dtype, copy=False) if floating else X_skip
            Y_skip = self.add_skip.forward([skip, out], retain_derived)
            Y_main = self.add_residual.forward([main, out], retain_derived)
            return (Y_main, Y_skip), {
                "conv_dilation_out": Z,
                "tanh_out": tanh_out,
                "sigm_out": sigm_out,
                "multiply_gate_out": gate_out,
                "conv_1x1_out": out,
            }

        return self._run(forward, (X_main, X_skip), retain_derived)

    def backward(
        self,
        dY_skip: Any,
        dY_main: Any = None,
        retain_grads: bool = True,
        input_grad: bool = True,
    ) -> Any:
        """Carry the gradients of both outputs back.

        Parameters
        ----------
        dY_skip : array or list of arrays
            Gradient of Y_skip; after several forward passes a list, one each.
        dY_main : array or list of arrays, or None
            Gradient of Y_main. None for the last block, whose Y_main is not used.
        retain_grads, input_grad : bool
            As in `LayerBase.backward`.

        Returns
        -------
        dX_main, dX_skip : arrays, or lists of arrays after several forward passes
            dX_skip too where X_skip was None: the gradient at those zeros.

        Raises
        ------
        ShapeError, DTypeError, BackendError
        """
        act_back = activation.activation_backward
        with self._named():
            skip = self._several(self.add_skip.backward(dY_skip))
            dX_skip, dOut = [g[0] for g in skip], [g[1] for g in skip]
            dX_main: list[Array] = []
            if dY_main is not None:
                main = self._several(self.add_residual.backward(dY_main))
                dX_main = [g[0] for g in main]
                dOut = [a + b[1] for a, b in zip(dOut, main, strict=True)]
            dGate = self._several(self.conv_1x1.backward(dOut, retain_grads))
            products = self._several(self.multiply_gate.backward(dGate))
            dZ = [
                act_back(dTanh, kept["conv_dilation_out"], _TANH)
                + act_back(dSigm, kept["conv_dilation_out"], _SIGMOID)
                for (dTanh, dSigm), kept in zip(products, self._kept, strict=True)
            ]
            through = self.conv_dilation.backward(dZ, retain_grads, input_grad)
        self._dv.update(
            dLdTanh=self._as_given([g[0] for g in products]),
            dLdSigmoid=self._as_given([g[1] for g in products]),
            dLdConv_1x1=self._as_given(dOut),
            dLdMultiply=self._as_given(dGate),
            dLdConv_dilation=self._as_given(dZ),
        )
        if not input_grad:
            return None
        through = self._several(through)
        if dX_main:
            through = [a + b for a, b in zip(through, dX_main, strict=True)]
        return self._as_given(through), self._as_given(dX_skip)
