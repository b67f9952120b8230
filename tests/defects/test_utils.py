"""Sizes and padding for every way of writing a pad; and the import itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from gpulayers import utils
from tests.conftest import Backend
from tests.support.compare import assert_close


@pytest.mark.defect(38)
@pytest.mark.parametrize("pad", ["same", np.int64(1), [1, 1], (np.int64(1),) * 4, 1], ids=repr)
def test_every_pad_has_an_output_size(pad: Any) -> None:
    """numpy-ml raises UnboundLocalError (X_pad) for "same", NumPy integers and lists."""
    assert utils.calc_conv_out_dims((2, 4, 5, 1), (3, 3, 1, 2), 1, pad) == (2, 4, 5, 2)
    assert utils.calc_conv_out_dims((2, 7, 1), (3, 1, 2), 1, "causal") == (2, 7, 2)
    assert utils.calc_conv_out_dims((2, 7, 1), (3, 1, 2), 2, [2, 1]) == (2, 4, 2)


@pytest.mark.defect(38)
def test_padding_takes_integers_and_lists_of_any_kind(backend: Backend) -> None:
    """numpy-ml raises UnboundLocalError, as above; for "same" without a kernel, too."""
    picture, sequence = (backend.asarray(np.ones(s)) for s in ((1, 2, 2, 1), (1, 3, 1)))
    for pad in (np.int64(1), [1, 1], [1, 1, 1, 1]):
        padded, used = utils.pad2D(picture, pad)
        assert used == (1, 1, 1, 1)
        assert_close(padded, np.pad(np.ones((1, 2, 2, 1)), ((0, 0), (1, 1), (1, 1), (0, 0))))
    padded, used = utils.pad1D(sequence, [2, 1])
    assert used == (2, 1)
    assert_close(padded, np.pad(np.ones((1, 3, 1)), ((0, 0), (2, 1), (0, 0))))
    for call in (lambda: utils.pad2D(picture, "same"), lambda: utils.pad1D(sequence, "same")):
        with pytest.raises(ValueError, match="same"):
            call()


@pytest.mark.defect(45)
def test_the_package_imports_on_todays_python() -> None:
    """`import numpy_ml` raises ImportError (Hashable from collections) on Python 3.10 and newer,
    which is all that is supported here."""
    assert sys.version_info >= (3, 10)
    parts = (
        "layers modules wrappers activations losses optimizers schedulers initializers utils models"
    )
    code = f"import gpulayers\nfrom gpulayers import {', '.join(parts.split())}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
