"""Long short-term memory and gated recurrent units over a sequence, and back through time.

Weights are lists by gate: W[k] is (n_out + n_in, n_out), its first n_out rows for the state; b[k]
is (n_out,). LSTM gates: f, u, c, o. GRU gates: n, z, r, and the bias of the state's product last.
X is (n, n_in, n_t), A is (n, n_out, n_t).
"""

from __future__ import annotations

import numpy as np

from tests.support.naive.activation import ACTIVATIONS


def _value(name: str, z: float) -> float:
    return ACTIVATIONS[name][0](z)


def _slope(name: str, z: float) -> float:
    return ACTIVATIONS[name][1](z)


def lstm_step(Z, C_prev, act: str, gate: str):
    """(G, C, A) of one example, given pre-activations Z[gate][unit]."""
    G = [[_value(act if k == 2 else gate, z) for z in Z[k]] for k in range(4)]
    f, u, c, o = G
    C = [f[j] * C_prev[j] + u[j] * c[j] for j in range(len(C_prev))]
    return G, C, [o[j] * _value(act, C[j]) for j in range(len(C))]


def lstm_step_grad(dA, dC_next, Z, C_prev, C, act: str, gate: str):
    """(dZ[gate][unit], dC_prev) of one example."""
    (f, u, c, o), _, _ = lstm_step(Z, C_prev, act, gate)
    dZ, dC_prev = [[0.0] * len(C) for _ in range(4)], [0.0] * len(C)
    for j in range(len(C)):
        dC = dC_next[j] + dA[j] * o[j] * _slope(act, C[j])
        dZ[0][j] = dC * C_prev[j] * _slope(gate, Z[0][j])
        dZ[1][j] = dC * c[j] * _slope(gate, Z[1][j])
        dZ[2][j] = dC * u[j] * _slope(act, Z[2][j])
        dZ[3][j] = dA[j] * _value(act, C[j]) * _slope(gate, Z[3][j])
        dC_prev[j] = dC * f[j]
    return dZ, dC_prev


def gru_step(Z, M, A_prev, act: str, gate: str):
    """(G, A) of one example; Z[0] is the candidate's without the state's product M."""
    z = [_value(gate, x) for x in Z[1]]
    r = [_value(gate, x) for x in Z[2]]
    n = [_value(act, Z[0][j] + r[j] * M[j]) for j in range(len(M))]
    return [n, z, r], [(1 - z[j]) * n[j] + z[j] * A_prev[j] for j in range(len(M))]


def gru_step_grad(dA, Z, M, A_prev, act: str, gate: str):
    """(dZ[n, z, r, state's product][unit], dA_prev without the products) of one example."""
    (n, z, r), _ = gru_step(Z, M, A_prev, act, gate)
    dZ, dA_prev = [[0.0] * len(M) for _ in range(4)], [0.0] * len(M)
    for j in range(len(M)):
        dn = dA[j] * (1 - z[j]) * _slope(act, Z[0][j] + r[j] * M[j])
        dZ[0][j] = dn
        dZ[1][j] = dA[j] * (A_prev[j] - n[j]) * _slope(gate, Z[1][j])
        dZ[2][j] = dn * M[j] * _slope(gate, Z[2][j])
        dZ[3][j] = dn * r[j]
        dA_prev[j] = dA[j] * z[j]
    return dZ, dA_prev


def _product(rows, W, first: int, j: int) -> float:
    return sum(float(x) * float(W[first + k, j]) for k, x in enumerate(rows))


def lstm(X, W, b, act: str, gate: str, dA=None):
    """A, or with dA: (A, dX, [dW], [db])."""
    X = np.asarray(X, np.float64)
    n, n_in, n_t = X.shape
    h = W[0].shape[1]
    out = np.zeros((n, h, n_t))
    dX, dW, db = np.zeros(X.shape), [np.zeros(w.shape) for w in W], [np.zeros(h) for _ in b]
    for m in range(n):
        A, C, Zs = [[0.0] * h], [[0.0] * h], []
        for t in range(n_t):
            Z = [
                [
                    _product(A[t], W[k], 0, j) + _product(X[m, :, t], W[k], h, j) + float(b[k][j])
                    for j in range(h)
                ]
                for k in range(4)
            ]
            _, c, a = lstm_step(Z, C[t], act, gate)
            Zs.append(Z)
            C.append(c)
            A.append(a)
            out[m, :, t] = a
        if dA is None:
            continue
        a_next, c_next = [0.0] * h, [0.0] * h
        for t in reversed(range(n_t)):
            total = [float(dA[m, j, t]) + a_next[j] for j in range(h)]
            dZ, c_next = lstm_step_grad(total, c_next, Zs[t], C[t], C[t + 1], act, gate)
            a_next = [0.0] * h
            for k in range(4):
                for j in range(h):
                    db[k][j] += dZ[k][j]
                    for i in range(h):
                        dW[k][i, j] += A[t][i] * dZ[k][j]
                        a_next[i] += dZ[k][j] * float(W[k][i, j])
                    for i in range(n_in):
                        dW[k][h + i, j] += X[m, i, t] * dZ[k][j]
                        dX[m, i, t] += dZ[k][j] * float(W[k][h + i, j])
    return out if dA is None else (out, dX, dW, db)


def gru(X, W, b, act: str, gate: str, dA=None):
    """A, or with dA: (A, dX, [dW], [db])."""
    X = np.asarray(X, np.float64)
    n, n_in, n_t = X.shape
    h = W[0].shape[1]
    out = np.zeros((n, h, n_t))
    dX, dW, db = np.zeros(X.shape), [np.zeros(w.shape) for w in W], [np.zeros(h) for _ in b]
    for m in range(n):
        A, Zs, Ms = [[0.0] * h], [], []
        for t in range(n_t):
            Z = [
                [_product(X[m, :, t], W[k], h, j) + float(b[k][j]) for j in range(h)]
                for k in range(3)
            ]
            for k in (1, 2):
                for j in range(h):
                    Z[k][j] += _product(A[t], W[k], 0, j)
            M = [_product(A[t], W[0], 0, j) + float(b[3][j]) for j in range(h)]
            A.append(gru_step(Z, M, A[t], act, gate)[1])
            Zs.append(Z)
            Ms.append(M)
            out[m, :, t] = A[-1]
        if dA is None:
            continue
        a_next = [0.0] * h
        for t in reversed(range(n_t)):
            total = [float(dA[m, j, t]) + a_next[j] for j in range(h)]
            dZ, a_next = gru_step_grad(total, Zs[t], Ms[t], A[t], act, gate)
            for k in range(3):
                back = dZ[3] if k == 0 else dZ[k]  # what the state's product of this gate gets
                for j in range(h):
                    db[k][j] += dZ[k][j]
                    for i in range(h):
                        dW[k][i, j] += A[t][i] * back[j]
                        a_next[i] += back[j] * float(W[k][i, j])
                    for i in range(n_in):
                        dW[k][h + i, j] += X[m, i, t] * dZ[k][j]
                        dX[m, i, t] += dZ[k][j] * float(W[k][h + i, j])
            for j in range(h):
                db[3][j] += dZ[3][j]
    return out if dA is None else (out, dX, dW, db)
