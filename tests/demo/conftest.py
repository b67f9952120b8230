"""A network that can read digits, and the page around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpulayers.models import lenet
from gpulayers.ops import use_engine
from gpulayers.training import Dataset, Trainer, load_data

pytest.importorskip("flask")

from gpulayers.demo import Look, Server, make_app
from tests.conftest import switched_to


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("mnist-10k")


@pytest.fixture(scope="session")
def look(digits: Dataset) -> Look:
    with switched_to("numpy"), use_engine("auto"):  # the C kernels, where they are built
        network = lenet(optimizer="Adam(lr=0.003)")
        Trainer(network, digits, epochs=1, seed=0, progress=False).fit()
    return Look(network, digits.classes, "LeNet-5 of the tests")


@pytest.fixture
def server(look: Look, digits: Dataset) -> Iterator[Server]:
    with Server(make_app(look, digits.test)).start() as running:
        yield running
