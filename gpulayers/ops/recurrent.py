"""The element-wise part of a recurrent step, forward and back through time.

Source: Elman, "Finding structure in time" (1990); Werbos, "Backpropagation through time" (1990).
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import Activation, kernels_for


def rnn_step_forward(
    projected: Array, recurrent: Array, ba: Array, bx: Array, act: Activation
) -> tuple[Array, Array]:
    """Z_t = A_{t-1} Waa + ba + X_t Wax + bx and A_t = act(Z_t).

    Parameters
    ----------
    projected : (n, n_out), floating
        X_t Wax, usually a slice of the projection of all time steps.
    recurrent : (n, n_out)
        A_{t-1} Waa.
    ba, bx : arrays of n_out elements

    Returns
    -------
    Z, A : (n, n_out)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "rnn_step_forward"
    check.rank(name, "projected", projected, 2, "(n, n_out)")
    check.shape(name, "recurrent", recurrent, projected.shape)
    check.array(name, "ba", ba)
    check.array(name, "bx", bx)
    ba, bx = ba.reshape(-1), bx.reshape(-1)
    check.shape(name, "ba", ba, projected.shape[1:])
    check.shape(name, "bx", bx, projected.shape[1:])
    projected, recurrent, ba, bx = check.same_float(
        name, projected=projected, recurrent=recurrent, ba=ba, bx=bx
    )
    return kernels_for(projected).rnn_step_forward(projected, recurrent, ba, bx, act)


def rnn_step_backward(dA: Array, accumulator: Array | None, Z: Array, act: Activation) -> Array:
    """dZ_t = (dA_t + accumulator) * act'(Z_t).

    Parameters
    ----------
    dA : (n, n_out), floating
        Gradient that reaches A_t from outside.
    accumulator : (n, n_out) or None
        dZ_{t+1} Waa^T, the gradient that comes back from the next step; None at the last.
    Z : (n, n_out)

    Returns
    -------
    dZ : (n, n_out)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "rnn_step_backward"
    check.rank(name, "Z", Z, 2, "(n, n_out)")
    check.shape(name, "dA", dA, Z.shape)
    if accumulator is not None:
        check.shape(name, "accumulator", accumulator, Z.shape)
    dA, accumulator, Z = check.same_float(name, dA=dA, accumulator=accumulator, Z=Z)
    return kernels_for(dA).rnn_step_backward(dA, accumulator, Z, act)
