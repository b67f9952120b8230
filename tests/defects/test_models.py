"""The three models."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gpulayers import random
from gpulayers.models import WGAN_GP, BernoulliVAE, Word2Vec
from tests.conftest import Backend
from tests.layers.harness import values
from tests.support.compare import assert_close, host


def weights(chain: dict) -> list[np.ndarray]:
    return [host(layer.parameters["W"]).copy() for layer in chain.values()]


@pytest.mark.defect(42)
def test_the_generator_moves(backend: Backend) -> None:
    """numpy-ml's generator moves by 0 in five steps of `fit`, its critic by 0.14: the inputs are
    flushed before the backward pass."""
    gan = WGAN_GP(g_hidden=8, optimizer="RMSProp(lr=0.01)")
    X = backend.asarray(values((64, 2), 1))
    options = {"lambda_": 10, "batchsize": 16, "c_updates_per_epoch": 1, "verbose": False}
    gan.fit(X, n_steps=1, **options)
    before = weights(gan.generator), weights(gan.critic)
    gan.fit(X, n_steps=5, **options)
    for old, chain in zip(before, (gan.generator, gan.critic), strict=True):
        moved = [np.abs(a - b).max() for a, b in zip(old, weights(chain), strict=True)]
        assert min(moved) > 1e-3


@pytest.mark.defect(42)
def test_the_generator_learns_through_the_critic(backend: Backend) -> None:
    """numpy-ml hands the generator the gradient at the critic's output (-1 / n for each number it
    made) as if it were that at its own output."""
    gan = WGAN_GP(g_hidden=8, optimizer="SGD(lr=0.05)")
    X = backend.asarray(values((64, 2), 1))
    gan.fit(X, lambda_=10, n_steps=1, batchsize=16, c_updates_per_epoch=1, verbose=False)
    critic = weights(gan.critic)
    losses = []
    for _ in range(6):  # the same noise each time
        random.seed(5)
        losses.append(float(gan.update_generator((64, 2))))
    assert all(a > b for a, b in itertools.pairwise(losses))
    assert all(map(np.array_equal, critic, weights(gan.critic)))


def small_vae() -> BernoulliVAE:
    return BernoulliVAE(
        T=1, latent_dim=4, enc_conv1_out_ch=2, enc_conv2_out_ch=2,
        enc_conv1_kernel_shape=(2, 2), enc_conv2_kernel_shape=(2, 2), enc_pool1_stride=1,
    )  # fmt: skip


@pytest.mark.defect(43)
def test_codes_are_drawn_with_the_standard_deviation(backend: Backend) -> None:
    """numpy-ml multiplies the noise by the variance: a deviation of 4 (3.99 measured) for a
    variance of 4."""
    vae = small_vae()
    X = backend.asarray(np.abs(np.sin(values((300, 6, 5, 1), 1))))
    vae.forward(X, retain_derived=False)
    last = vae.encoder["FC5"]
    last.parameters["W"][...] = 0
    last.parameters["b"][...] = backend.asarray([[0.5, np.log(4.0)]], float)
    vae.forward(X)
    codes = host(vae.decoder["FC1"].X[0])
    noise = host(vae.derived_variables["noise"])
    assert_close(vae.decoder["FC1"].X[0], 0.5 + 2.0 * noise)
    assert 1.6 < codes.std() < 2.4 < 3.99


@pytest.mark.defect(43)
def test_a_vae_works_and_describes_itself_before_fit(backend: Backend) -> None:
    """numpy-ml raises AttributeError: 'enc_conv1_in_ch' for hyperparameters, 'N' for forward."""
    vae = small_vae()
    assert vae.hyperparameters["latent_dim"] == 4
    Y = vae.forward(backend.asarray(np.full((2, 6, 5, 1), 0.5)))
    assert Y.shape == (2, 30)
    assert host(Y).min() > 0 and host(Y).max() < 1


TEXT = "The cat sat on the mat. The dog sat on the log. " * 20


@pytest.mark.defect(44)
def test_one_file_name_is_one_file(tmp_path: Path, numpy_backend: Backend) -> None:
    """numpy-ml takes the name's characters for file names: IsADirectoryError: '/'."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    told = []
    for corpus in (str(path), [str(path)]):
        random.seed(1)
        model = Word2Vec(
            context_len=2, embedding_dim=4, filter_stopwords=False, num_negative_samples=2
        )
        told.append(model.fit(corpus, n_epochs=2, verbose=False))
        assert sorted(model.vocab.words) == ["cat", "dog", "log", "mat", "on", "sat", "the"]
    assert told[0] == told[1]


@pytest.mark.defect(44)
def test_no_negative_samples_is_the_full_softmax(tmp_path: Path, backend: Backend) -> None:
    """numpy-ml's documentation says so too, but its loss is then that of the target alone,
    -log sigmoid(score): no other word competes with it, nor learns."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    model = Word2Vec(context_len=2, embedding_dim=4, filter_stopwords=False, num_negative_samples=0)
    model.prepare(path)
    ids = np.array([[1, 2, 3, 4], [0, 2, 4, 6]])
    targets = np.array([5, 1])
    loss = float(model.forward(backend.asarray(ids), backend.asarray(targets))[0])
    E = host(model.embeddings.parameters["W"])
    head = model.output["FC"]
    W, b = (host(head.parameters[k]) for k in "Wb")
    scores = E[ids].mean(axis=1) @ W + b
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = -np.log(probabilities[[0, 1], targets])
    wrong = np.log1p(np.exp(-scores[[0, 1], targets]))
    assert loss == pytest.approx(right.sum())
    assert abs(right.sum() - wrong.sum()) > 0.1
    model.backward()
    assert (np.abs(host(head.gradients["b"])) > 1e-6).all()  # every word, not the targets alone
