"""A simple recurrent network over a sequence, and backpropagation through time.

    Z_t = A_{t-1} Waa + ba + X_t Wax + bx,   A_t = act(Z_t),   A_0 = 0

X is (n, n_in, n_t), A is (n, n_out, n_t); Wax (n_in, n_out), Waa (n_out, n_out).
"""

from __future__ import annotations

import numpy as np

from tests.support.naive.activation import ACTIVATIONS


def step(projected, recurrent, ba, bx, act: str):
    """(Z, A) of one step, given both products (n, n_out)."""
    Z, A = np.zeros(np.shape(projected)), np.zeros(np.shape(projected))
    for m, o in np.ndindex(Z.shape):
        Z[m, o] = float(projected[m, o]) + float(recurrent[m, o]) + float(ba[o]) + float(bx[o])
        A[m, o] = ACTIVATIONS[act][0](Z[m, o])
    return Z, A


def step_grad(dA, accumulator, Z, act: str) -> np.ndarray:
    dZ = np.zeros(np.shape(Z))
    for index in np.ndindex(dZ.shape):
        total = float(dA[index]) + (0.0 if accumulator is None else float(accumulator[index]))
        dZ[index] = total * ACTIVATIONS[act][1](float(Z[index]))
    return dZ


def rnn(X, Wax, Waa, ba, bx, act: str):
    """(A, Z), both (n, n_out, n_t)."""
    X = np.asarray(X, np.float64)
    n, n_in, n_t = X.shape
    n_out = np.shape(Waa)[0]
    A, Z = np.zeros((n, n_out, n_t)), np.zeros((n, n_out, n_t))
    for t in range(n_t):
        for m in range(n):
            for o in range(n_out):
                total = float(ba[o]) + float(bx[o])
                for k in range(n_in):
                    total += X[m, k, t] * float(Wax[k, o])
                if t > 0:
                    for h in range(n_out):
                        total += A[m, h, t - 1] * float(Waa[h, o])
                Z[m, o, t] = total
                A[m, o, t] = ACTIVATIONS[act][0](total)
    return A, Z


def rnn_grads(X, Wax, Waa, ba, bx, act: str, dA):
    """(dX, dWax, dWaa, dba, dbx)."""
    X, dA = np.asarray(X, np.float64), np.asarray(dA, np.float64)
    A, Z = rnn(X, Wax, Waa, ba, bx, act)
    n, n_in, n_t = X.shape
    n_out = A.shape[1]
    dX, dWax, dWaa = np.zeros(X.shape), np.zeros((n_in, n_out)), np.zeros((n_out, n_out))
    dba, dbx = np.zeros(n_out), np.zeros(n_out)
    from_next = np.zeros((n, n_out))
    for t in reversed(range(n_t)):
        to_previous = np.zeros((n, n_out))
        for m in range(n):
            for o in range(n_out):
                dz = (dA[m, o, t] + from_next[m, o]) * ACTIVATIONS[act][1](Z[m, o, t])
                dba[o] += dz
                dbx[o] += dz
                for k in range(n_in):
                    dX[m, k, t] += dz * float(Wax[k, o])
                    dWax[k, o] += dz * X[m, k, t]
                if t > 0:
                    for h in range(n_out):
                        to_previous[m, h] += dz * float(Waa[h, o])
                        dWaa[h, o] += dz * A[m, h, t - 1]
        from_next = to_previous
    return dX, dWax, dWaa, dba, dbx
