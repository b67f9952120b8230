"""Optimizer rules, number by number: (new parameter, new state...)."""

from __future__ import annotations

import math

import numpy as np


def _containers(param, count: int) -> list[np.ndarray]:
    return [np.zeros(np.shape(param)) for _ in range(count)]


def sgd(param, grad, velocity, lr: float, momentum: float):
    p, v = _containers(param, 2)
    for i in np.ndindex(p.shape):
        v[i] = momentum * float(velocity[i]) + lr * float(grad[i])
        p[i] = float(param[i]) - v[i]
    return p, v


def adagrad(param, grad, cache, lr: float, eps: float):
    p, c = _containers(param, 2)
    for i in np.ndindex(p.shape):
        c[i] = float(cache[i]) + float(grad[i]) ** 2
        p[i] = float(param[i]) - lr * float(grad[i]) / (math.sqrt(c[i]) + eps)
    return p, c


def rmsprop(param, grad, cache, lr: float, decay: float, eps: float):
    p, c = _containers(param, 2)
    for i in np.ndindex(p.shape):
        c[i] = decay * float(cache[i]) + (1.0 - decay) * float(grad[i]) ** 2
        p[i] = float(param[i]) - lr * float(grad[i]) / (math.sqrt(c[i]) + eps)
    return p, c


def adam(param, grad, mean, var, lr: float, decay1: float, decay2: float, eps: float, t: int):
    p, m, v = _containers(param, 3)
    for i in np.ndindex(p.shape):
        g = float(grad[i])
        m[i] = decay1 * float(mean[i]) + (1.0 - decay1) * g
        v[i] = decay2 * float(var[i]) + (1.0 - decay2) * g * g
        m_hat = m[i] / (1.0 - decay1**t)
        v_hat = v[i] / (1.0 - decay2**t)
        p[i] = float(param[i]) - lr * m_hat / (math.sqrt(v_hat) + eps)
    return p, m, v
