"""The element-wise part of a recurrent step, forward and back through time.

The matrix products are the layers': the input's share is one product for all time steps, the
recurrent share one product a step. What is left of a step is one kernel on a GPU.

Sources: Elman, "Finding structure in time" (1990); Werbos, "Backpropagation through time" (1990);
Hochreiter & Schmidhuber, "Long short-term memory" (1997); Gers, Schmidhuber & Cummins, "Learning to
forget" (2000); Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014).
"""

from __future__ import annotations

from gpulayers.backend import Array
from gpulayers.errors import ShapeError
from gpulayers.ops import _checks as check
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._protocol import Activation


def _check_written(op: str, **arrays: Array | None) -> None:
    """Raise ShapeError unless every array that the operation writes into is C-contiguous."""
    for name, array in arrays.items():
        if array is not None and not array.flags.c_contiguous:
            raise ShapeError(f"{op}: {name} must be C-contiguous, it is changed in place")


def _check_shapes(op: str, shape: tuple[int, int], arrays: dict[str, Array | None]) -> None:
    for name, array in arrays.items():
        if array is not None:
            check.shape(op, name, array, shape)


def rnn_step_forward(
    projected: Array,
    recurrent: Array,
    ba: Array,
    bx: Array,
    act: Activation,
    A: Array | None = None,
) -> tuple[Array, Array]:
    """Z_t = A_{t-1} Waa + ba + X_t Wax + bx and A_t = act(Z_t).

    Parameters
    ----------
    projected : (n, n_out), floating
        X_t Wax, usually a slice of the projection of all time steps.
    recurrent : (n, n_out)
        A_{t-1} Waa.
    ba, bx : arrays of n_out elements
    A : (n, n_out), C-contiguous, optional
        Where A_t goes; a new array without.

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
    if A is not None:
        check.shape(name, "A", A, projected.shape)
        _check_written(name, A=A)
    projected, recurrent, ba, bx, A = check.same_float(
        name, projected=projected, recurrent=recurrent, ba=ba, bx=bx, A=A
    )
    return kernels_for(projected).rnn_step_forward(projected, recurrent, ba, bx, act, A)


def rnn_step_backward(
    dA: Array,
    accumulator: Array | None,
    Z: Array,
    act: Activation,
    dZ: Array | None = None,
) -> Array:
    """dZ_t = (dA_t + accumulator) * act'(Z_t).

    Parameters
    ----------
    dA : (n, n_out), floating
        Gradient that reaches A_t from outside.
    accumulator : (n, n_out) or None
        dZ_{t+1} Waa^T, the gradient that comes back from the next step; None at the last.
    Z : (n, n_out)
    dZ : (n, n_out), C-contiguous, optional
        Where the result goes; a new array without.

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
    if dZ is not None:
        check.shape(name, "dZ", dZ, Z.shape)
        _check_written(name, dZ=dZ)
    dA, accumulator, Z, dZ = check.same_float(name, dA=dA, accumulator=accumulator, Z=Z, dZ=dZ)
    return kernels_for(dA).rnn_step_backward(dA, accumulator, Z, act, dZ)


# ------------------------------------------------------------------------ long short-term memory


def lstm_step_forward(
    gates: Array,
    recurrent: Array,
    bias: Array,
    C_prev: Array,
    act: Activation,
    gate: Activation,
    C: Array,
    A: Array,
) -> Array | None:
    """One step of a long short-term memory, without peepholes.

    Z = [Z_f, Z_u, Z_c, Z_o] = X_t W_x + A_{t-1} W_a + b
    G_f, G_u, G_o = gate(Z_f), gate(Z_u), gate(Z_o);  C~ = act(Z_c)
    C_t = G_f * C_{t-1} + G_u * C~;  A_t = G_o * act(C_t)

    Parameters
    ----------
    gates : (n, 4 * n_out), floating, C-contiguous, changed in place
        X_t W_x on entry; [G_f, G_u, C~, G_o] on return.
    recurrent : (n, 4 * n_out)
        A_{t-1} W_a.
    bias : array of 4 * n_out elements
    C_prev : (n, n_out)
    act, gate : activations
    C, A : (n, n_out), C-contiguous, written
        C_t and A_t.

    Returns
    -------
    Z : (n, 4 * n_out), or None where `lstm_step_backward` needs the gates alone (Tanh and Sigmoid,
        whose slopes follow from their values)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "lstm_step_forward"
    check.rank(name, "C_prev", C_prev, 2, "(n, n_out)")
    n, n_out = C_prev.shape
    _check_shapes(name, (n, 4 * n_out), {"gates": gates, "recurrent": recurrent})
    _check_shapes(name, (n, n_out), {"C": C, "A": A})
    check.array(name, "bias", bias)
    bias = bias.reshape(-1)
    check.shape(name, "bias", bias, (4 * n_out,))
    _check_written(name, gates=gates, C=C, A=A)
    gates, recurrent, bias, C_prev, C, A = check.same_float(
        name, gates=gates, recurrent=recurrent, bias=bias, C_prev=C_prev, C=C, A=A
    )
    return kernels_for(gates).lstm_step_forward(gates, recurrent, bias, C_prev, act, gate, C, A)


def lstm_step_backward(
    dA: Array,
    dA_next: Array,
    dC_next: Array,
    Z: Array | None,
    gates: Array,
    C_prev: Array,
    C: Array,
    act: Activation,
    gate: Activation,
    dZ: Array,
) -> Array:
    """The gradients of Z_t and C_{t-1}, from those that reach A_t and C_t.

    dA_t = dA + dA_next;  dC_t = dC_next + dA_t * G_o * act'(C_t)
    dZ_f = dC_t * C_{t-1} * gate'(Z_f);  dZ_u = dC_t * C~ * gate'(Z_u)
    dZ_c = dC_t * G_u * act'(Z_c);  dZ_o = dA_t * act(C_t) * gate'(Z_o)
    dC_{t-1} = dC_t * G_f

    Parameters
    ----------
    dA : (n, n_out), floating
        Gradient that reaches A_t from outside.
    dA_next, dC_next : (n, n_out)
        What comes back from step t+1; zeros at the last.
    Z, gates : as `lstm_step_forward` returned and left them
    C_prev, C : (n, n_out)
    act, gate : activations
    dZ : (n, 4 * n_out), C-contiguous, written
        [dZ_f, dZ_u, dZ_c, dZ_o]

    Returns
    -------
    dC_prev : (n, n_out)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "lstm_step_backward"
    check.rank(name, "C", C, 2, "(n, n_out)")
    n, n_out = C.shape
    states = {"dA": dA, "dA_next": dA_next, "dC_next": dC_next, "C_prev": C_prev}
    _check_shapes(name, (n, n_out), states)
    _check_shapes(name, (n, 4 * n_out), {"Z": Z, "gates": gates, "dZ": dZ})
    _check_written(name, dZ=dZ)
    dA, dA_next, dC_next, C_prev, Z, gates, C, dZ = check.same_float(
        name, **states, Z=Z, gates=gates, C=C, dZ=dZ
    )
    return kernels_for(dA).lstm_step_backward(
        dA, dA_next, dC_next, Z, gates, C_prev, C, act, gate, dZ
    )


# --------------------------------------------------------------------------- gated recurrent unit


def gru_step_forward(
    gates: Array,
    recurrent: Array,
    bias: Array,
    A_prev: Array,
    act: Activation,
    gate: Activation,
    M: Array,
    A: Array,
) -> Array | None:
    """One step of a gated recurrent unit; the reset gate acts on the recurrent product.

    G_z = gate(X_t W_xz + A_{t-1} W_az + b_z);  G_r = gate(X_t W_xr + A_{t-1} W_ar + b_r)
    M = A_{t-1} W_an + b_a;  N = act(X_t W_xn + b_n + G_r * M)
    A_t = (1 - G_z) * N + G_z * A_{t-1}

    Parameters
    ----------
    gates : (n, 3 * n_out), floating, C-contiguous, changed in place
        X_t [W_xn, W_xz, W_xr] on entry; [N, G_z, G_r] on return.
    recurrent : (n, 3 * n_out)
        A_{t-1} [W_az, W_ar, W_an].
    bias : array of 4 * n_out elements
        [b_n, b_z, b_r, b_a]
    A_prev : (n, n_out)
    act, gate : activations
    M, A : (n, n_out), C-contiguous, written

    Returns
    -------
    Z : (n, 3 * n_out), what `act` and `gate` were applied to, or None where `gru_step_backward`
        needs the gates alone (Tanh and Sigmoid)

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "gru_step_forward"
    check.rank(name, "A_prev", A_prev, 2, "(n, n_out)")
    n, n_out = A_prev.shape
    _check_shapes(name, (n, 3 * n_out), {"gates": gates, "recurrent": recurrent})
    _check_shapes(name, (n, n_out), {"M": M, "A": A})
    check.array(name, "bias", bias)
    bias = bias.reshape(-1)
    check.shape(name, "bias", bias, (4 * n_out,))
    _check_written(name, gates=gates, M=M, A=A)
    gates, recurrent, bias, A_prev, M, A = check.same_float(
        name, gates=gates, recurrent=recurrent, bias=bias, A_prev=A_prev, M=M, A=A
    )
    return kernels_for(gates).gru_step_forward(gates, recurrent, bias, A_prev, act, gate, M, A)


def gru_step_backward(
    dA: Array,
    dA_next: Array,
    Z: Array | None,
    gates: Array,
    M: Array,
    A_prev: Array,
    act: Activation,
    gate: Activation,
    dZ: Array,
) -> Array:
    """The gradients of all products of a step, and what reaches A_{t-1} directly.

    dA_t = dA + dA_next
    dZ_n = dA_t * (1 - G_z) * act'(Z_n);  dZ_z = dA_t * (A_{t-1} - N) * gate'(Z_z)
    dM = dZ_n * G_r;  dZ_r = dZ_n * M * gate'(Z_r)

    Parameters
    ----------
    dA, dA_next : (n, n_out), floating
        What reaches A_t from outside, and from step t+1 (zeros at the last).
    Z, gates, M : as `gru_step_forward` returned and left them
    A_prev : (n, n_out)
    act, gate : activations
    dZ : (n, 4 * n_out), C-contiguous, written
        [dZ_n, dZ_z, dZ_r, dM]: the first three for the input's product, the last three for the
        recurrent one.

    Returns
    -------
    dA_prev : (n, n_out)
        dA_t * G_z, without what comes through the recurrent product.

    Raises
    ------
    ShapeError, DTypeError, BackendError
    """
    name = "gru_step_backward"
    check.rank(name, "A_prev", A_prev, 2, "(n, n_out)")
    n, n_out = A_prev.shape
    _check_shapes(name, (n, n_out), {"dA": dA, "dA_next": dA_next, "M": M})
    _check_shapes(name, (n, 3 * n_out), {"Z": Z, "gates": gates})
    check.shape(name, "dZ", dZ, (n, 4 * n_out))
    _check_written(name, dZ=dZ)
    dA, dA_next, Z, gates, M, A_prev, dZ = check.same_float(
        name, dA=dA, dA_next=dA_next, Z=Z, gates=gates, M=M, A_prev=A_prev, dZ=dZ
    )
    return kernels_for(dA).gru_step_backward(dA, dA_next, Z, gates, M, A_prev, act, gate, dZ)
