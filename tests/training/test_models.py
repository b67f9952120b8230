"""The ready-made networks: their sizes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import ParameterError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import MODELS, build, lenet, mlp, resnet9, vgg_small

SMALL = {
    "lenet": (12, 12, 2),
    "mlp": (3, 5, 2),
    "vgg-small": (8, 8, 3),
    "resnet9": (8, 8, 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_on_images_of_the_smallest_size(name):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (6, *SMALL[name]), dtype=np.uint8)
    labels = np.arange(6) % 3
    small = {"vgg-small": {"width": 4}, "resnet9": {"width": 4}}.get(name, {})
    net = MODELS[name](3, SMALL[name], "Adam(lr=0.01)", **small)
    objective = SoftmaxCrossEntropy()
    losses = []
    for _ in range(30):
        outputs = net.forward(X)
        assert outputs.shape == (6, 3)
        losses.append(float(objective(labels, outputs)))
        net.backward(objective.backward(), input_grad=False)
        net.update()
    assert losses[-1] < 0.7 * losses[0]


def test_lenet_has_the_sizes_of_the_paper():
    net = lenet()
    net.table((28, 28, 1))
    shapes = {k: v.shape for k, v in net.parameters.items() if k.endswith("W")}
    assert shapes == {
        "0.W": (5, 5, 1, 6),
        "2.W": (5, 5, 6, 16),
        "5.W": (400, 120),
        "6.W": (120, 84),
        "7.W": (84, 10),
    }
    assert net.parameter_count == 61_706
    big = lenet(input_shape=(32, 32, 1))  # the paper's own image size: no padding, as there
    big.table((32, 32, 1))
    assert big.parameter_count == 61_706


@pytest.mark.parametrize(
    "make, shape, count",
    [
        (mlp, (28, 28, 1), 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        # weights 9 * in * out and biases, scaler and intercept for each convolution
        (
            vgg_small,
            (32, 32, 3),
            9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
            + 3 * (2 * 32 + 2 * 64 + 2 * 128)
            + (4 * 4 * 128 * 256 + 256)
            + (256 * 10 + 10),
        ),
    ],
)
def test_parameter_counts(make, shape, count):
    net = make(input_shape=shape)
    net.table(shape)
    assert net.parameter_count == count


def test_resnet9_has_two_residual_blocks_and_nine_weighted_layers():
    net = resnet9(width=2)
    net.table((32, 32, 3))
    weights = [k for k in net.parameters if k.endswith(".W")]
    assert len(weights) == 9
    assert sum(".body." in k for k in weights) == 4
    assert net.parameters["12.W"].shape == (3, 3, 8, 16)


def test_odd_image_sizes_work():
    for name in ("vgg-small", "resnet9"):
        net = MODELS[name](4, (13, 11, 1), None, 2)
        assert net.predict(np.zeros((2, 13, 11, 1), np.uint8)).shape == (2, 4)


@pytest.mark.parametrize(
    "name, hint", [("lennet", "lenet"), ("ResNet", "resnet9"), ("vgg", "vgg-small"), ("MPL", "mlp")]
)
def test_an_unknown_name_suggests_the_nearest(name, hint):
    with pytest.raises(ParameterError, match=f"unknown model '{name}'.*did you mean '{hint}'"):
        build(name)


def test_build_takes_names_in_any_case_with_underscores():
    assert build("VGG_small", 5, (8, 8, 1)).name == "vgg-small"


@pytest.mark.parametrize(
    "classes, shape, words",
    [
        (0, (28, 28, 1), "classes"),
        (2.5, (28, 28, 1), "classes"),
        (10, (28, 28), r"\(rows, cols, channels\)"),
        (10, (11, 28, 1), "at least 12 x 12"),
        (10, (28, 28, 0), "positive integers"),
        (10, "28", "positive integers"),
    ],
)
def test_lenet_refuses(classes, shape, words):
    with pytest.raises(ParameterError, match=words):
        lenet(classes, shape)
