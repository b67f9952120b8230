"""Dot-product attention, one number at a time."""

from __future__ import annotations

import math

import numpy as np

from tests.support.naive import softmax


def attention(Q, K, V, factors=None, scale: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(output, weights); `factors` (..., n_q, n_k) is what dropout multiplies the weights by."""
    lead, (n_q, d_k), (n_k, d_v) = Q.shape[:-2], Q.shape[-2:], V.shape[-2:]
    Y, P = np.zeros((*lead, n_q, d_v)), np.zeros((*lead, n_q, n_k))
    root = math.sqrt(d_k) if scale else 1.0
    for m in np.ndindex(*lead):
        for i in range(n_q):
            scores = [math.fsum(Q[m][i, k] * K[m][j, k] for k in range(d_k)) for j in range(n_k)]
            P[m][i] = softmax.softmax([[s / root for s in scores]])[0]
            for c in range(d_v):
                for j in range(n_k):
                    f = 1.0 if factors is None else float(factors[m][i, j])
                    Y[m][i, c] += P[m][i, j] * f * V[m][j, c]
    return Y, P


def attention_grads(Q, K, V, dY, factors=None, scale: bool = True) -> list[np.ndarray]:
    """Gradients of Q, K and V."""
    _, P = attention(Q, K, V, factors, scale)
    dQ, dK, dV = np.zeros(Q.shape), np.zeros(K.shape), np.zeros(V.shape)
    lead, (n_q, d_k), (n_k, d_v) = Q.shape[:-2], Q.shape[-2:], V.shape[-2:]
    root = math.sqrt(d_k) if scale else 1.0
    for m in np.ndindex(*lead):
        for i in range(n_q):
            dP = np.zeros((1, n_k))
            for j in range(n_k):
                f = 1.0 if factors is None else float(factors[m][i, j])
                for c in range(d_v):
                    dV[m][j, c] += P[m][i, j] * f * dY[m][i, c]
                    dP[0, j] += dY[m][i, c] * V[m][j, c] * f
            dS = softmax.softmax_grad(dP, P[m][i][None])[0]
            for j in range(n_k):
                for k in range(d_k):
                    dQ[m][i, k] += dS[j] * K[m][j, k] / root
                    dK[m][j, k] += dS[j] * Q[m][i, k] / root
    return [dQ, dK, dV]
