"""Initial weights."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.initializers import WeightInitializer


@pytest.mark.defect(41)
def test_truncated_normal_weights_can_be_drawn() -> None:
    """numpy-ml raises TypeError (multiple values for argument 'mean')."""
    W = WeightInitializer("ReLU", mode="trunc_normal")((200, 300))
    assert W.shape == (200, 300)
    assert np.abs(W).max() <= 2 and np.abs(W).max() > 1.95
    assert abs(W.mean()) < 0.02
    assert abs(W.std() - 0.8796) < 0.01  # of a standard normal cut off at 2


@pytest.mark.defect(41)
@pytest.mark.parametrize("alpha, numpy_ml", [(1.0, 1.732051), (0.3, 1.445683)])
def test_the_gain_of_leaky_relu(alpha: float, numpy_ml: float) -> None:
    """numpy-ml's gain is sqrt(2 / 1 + alpha^2), the numbers above."""
    make = WeightInitializer(f"Leaky ReLU(alpha={alpha})", mode="glorot_uniform")
    gain = np.abs(make((300, 200))).max() / np.sqrt(6 / 500)
    right = np.sqrt(2 / (1 + alpha**2))
    assert 0.999 * right < gain <= right < 0.99 * numpy_ml
