"""Word2Vec: batches by loops, gradients by differences, neighbours learned, numpy-ml's errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpulayers.backend
from gpulayers import random
from gpulayers.errors import DataError, NotInitializedError, ParameterError
from gpulayers.models import Vocabulary, Word2Vec

KINDS = (
    ("cat dog fox wolf", "hunts growls sleeps runs", "forest den tail"),
    ("bread cheese soup rice", "cooks bakes tastes boils", "kitchen oven spoon"),
    ("ship boat raft canoe", "sails floats drifts sinks", "harbour sea anchor"),
)


@pytest.fixture
def float64():
    before = gpulayers.backend.default_dtype()
    gpulayers.backend.set_default_dtype("float64")
    yield
    gpulayers.backend.set_default_dtype(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sentences of three topics: words of one kind stand among the same neighbours."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(700):
        noun, verb, place = (rng.choice(words.split()) for words in KINDS[rng.integers(3)])
        lines.append(f"The {noun} {verb} near the {place}.")
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def share_of_kin(model: Word2Vec) -> float:
    """How many of the three nearest words of each noun and verb are of its own kind."""
    hits = [
        near in group.split()
        for topic in KINDS
        for group in topic[:2]
        for word in group.split()
        for near, _ in model.nearest(word, 3)
    ]
    return float(np.mean(hits))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="cbow"),
        pytest.param({"num_negative_samples": 0}, id="softmax"),
        pytest.param({"skip_gram": True}, id="skip-gram"),
    ],
)
def test_neighbours_are_learned(options, corpus, numpy_backend, capsys):
    random.seed(0)
    sizes = {"context_len": 2, "embedding_dim": 12, "num_negative_samples": 8}
    model = Word2Vec(**{**sizes, "optimizer": "Adam(lr=0.01)", **options})
    epochs = 8 if "skip_gram" in options else 25
    losses = model.fit(corpus, n_epochs=epochs, batchsize=64)
    assert len(losses) == epochs and losses[-1] < 0.5 * losses[0]
    assert share_of_kin(model) > 0.75
    assert len(capsys.readouterr().out.splitlines()) == epochs
    word, cosine = model.nearest("cat", 1)[0]
    assert word in "dog fox wolf" and 0.5 < cosine <= 1


def test_the_default_optimizer_learns(corpus, numpy_backend):
    """With the sum over the batch and its negatives, SGD(lr=0.1) diverges."""
    random.seed(0)
    model = Word2Vec(context_len=2, embedding_dim=12)
    losses = model.fit(corpus, n_epochs=3, verbose=False)
    assert losses[-1] < losses[0] and np.isfinite(losses).all()


def test_files_are_plain_text(tmp_path):
    """numpy-ml iterates over the characters of a single file name."""
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes("\ufeffThe Cat's bowl, the CAT\u2019S bed; x-ray".encode())
    second.write_text("bed bed caf\xe9", encoding="utf-8")
    vocab = Vocabulary(filter_stopwords=False).fit(str(first))
    assert vocab.words == ["cat's", "the", "bed", "bowl", "x-ray"]
    assert vocab.counts.tolist() == [2, 2, 1, 1, 1]
    vocab = Vocabulary().fit([first, second])
    assert vocab.words == ["bed", "cat's", "bowl", "caf\xe9", "x-ray"]
    assert Vocabulary(min_count=2).fit([first, second]).words == ["bed", "cat's"]
    assert Vocabulary(max_tokens=1).fit([first, second]).words == ["bed"]
    assert vocab.words_to_indices(["bowl", "bed"]) == [2, 0]
    assert vocab.indices_to_words([2, 0]) == ["bowl", "bed"]
    assert vocab.encode(["bed", "unknown", "bowl"]).tolist() == [0, 2]


@pytest.mark.parametrize("skip_gram", [False, True])
@pytest.mark.parametrize("length", [2, 3, 11])
def test_batches_against_loops(skip_gram, length, tmp_path, backend):
    words = [f"w{k}" for k in np.random.default_rng(length).integers(0, 5, length)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words))
    model = Word2Vec(context_len=2, skip_gram=skip_gram, num_negative_samples=2)
    model.prepare(path)
    want = []
    for i, word in enumerate(words):
        around = words[max(0, i - 2) : i] + words[i + 1 : i + 3]
        want += [((word,), other) for other in around] if skip_gram else [(tuple(around), word)]
    got = []
    for X, targets in model.minibatcher(path, batchsize=3):
        assert len(X) == len(targets) <= 3
        for x, target in zip(X, targets, strict=True):
            ids = backend.asnumpy(x).tolist()
            got.append((tuple(model.vocab.indices_to_words(ids)),
                        model.vocab.words[int(target)]))  # fmt: skip
    assert sorted(got) == sorted(want)


@pytest.mark.parametrize("negatives", [0, 3])
def test_gradients_are_those_of_the_loss(negatives, float64, corpus, backend):
    random.seed(0)
    model = Word2Vec(context_len=2, embedding_dim=4, num_negative_samples=negatives)
    model.prepare(corpus)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, (3, 4))
    X, targets = backend.asarray(ids), backend.asarray(ids[:, 0].copy())

    def value(retain: bool = False) -> float:
        random.seed(3)
        return float(model.forward(X, targets, retain)[0])

    value()
    value(retain=True)
    model.backward()
    parts: list[Any] = [*model._layers(), *([model.loss] if negatives else [])]
    for part in parts:
        for name, parameter in part.parameters.items():
            gradient = backend.asnumpy(part.gradients[name])
            start = backend.asnumpy(parameter).copy()
            hit = np.argwhere(gradient)
            assert len(hit)
            for i in map(tuple, hit[:: max(len(hit) // 4, 1)]):
                sides = []
                for h in (1e-6, -1e-6):
                    moved = start.copy()
                    moved[i] += h
                    parameter[...] = backend.asarray(moved)
                    sides.append(value())
                parameter[...] = backend.asarray(start)
                want = (sides[0] - sides[1]) / 2e-6
                assert gradient[i] == pytest.approx(want, rel=1e-6, abs=1e-8), name


def test_probabilities_of_the_full_softmax(float64, corpus, backend):
    model = Word2Vec(context_len=1, embedding_dim=4, num_negative_samples=0)
    model.prepare(corpus)
    X, targets = backend.asarray(np.array([[0, 1]])), backend.asarray(np.array([2]))
    loss, y_pred = model.forward(X, targets)
    assert y_pred.shape == (1, 1)
    assert float(loss) == pytest.approx(-np.log(float(backend.asnumpy(y_pred)[0, 0])))


def test_update_takes_the_mean(corpus, float64, numpy_backend):
    ids = np.array([[0, 1], [2, 3], [4, 5]])
    moved = []
    for copies in (1, 2):
        random.seed(0)
        model = Word2Vec(context_len=1, embedding_dim=4, num_negative_samples=0)
        model.prepare(corpus)
        for _ in range(copies):
            X, targets = np.concatenate([ids] * copies), np.array([6, 7, 8] * copies)
        before = model.embeddings.parameters["W"].copy()
        model.forward(X, targets)
        model.backward()
        model.update()
        moved.append(model.embeddings.parameters["W"] - before)
    assert np.abs(moved[0]).max() > 0
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-12)


def test_fit_on_each_backend(tmp_path, backend):
    path = tmp_path / "text.txt"
    path.write_text("one two three four five six seven two three one")
    told = []
    for _ in range(2):
        random.seed(0)
        model = Word2Vec(context_len=2, embedding_dim=3, num_negative_samples=2)
        told.append(model.fit(str(path), n_epochs=2, batchsize=4, verbose=False))
        assert isinstance(model.get_embedding([0, 1]), backend.xp.ndarray)
        assert model.get_embedding([0, 1]).shape == (2, 3)
    assert told[0] == told[1]


@pytest.mark.parametrize("negatives", [0, 3])
def test_summary_goes_on_exactly(negatives, corpus):
    options = {"context_len": 1, "embedding_dim": 4, "num_negative_samples": negatives}
    model = Word2Vec(**options, optimizer="Adam(lr=0.01)")
    model.fit(corpus, n_epochs=1, verbose=False)
    summary = copy.deepcopy(model.summary())
    twin = Word2Vec(**options, optimizer="Adam(lr=0.01)").set_params(summary)
    told = []
    for one in (model, twin):
        random.seed(4)
        told.append(one.fit(corpus, n_epochs=1, verbose=False))
    assert told[0] == told[1] and twin.nearest("cat") == model.nearest("cat")
    summary["vocabulary"]["words"][0] = "other"
    with pytest.raises(ParameterError, match="of another vocabulary"):
        model.set_params(summary)


def test_moving(corpus, emulated):
    with gpulayers.backend.use_backend("numpy"):
        model = Word2Vec(context_len=1, embedding_dim=4, num_negative_samples=3)
        model.fit(corpus, n_epochs=1, batchsize=512, verbose=False)
    model.to("cupy")
    X, targets = emulated.asarray(np.array([[0], [1]])), emulated.asarray(np.array([1, 2]))
    loss, _ = model.forward(X, targets)
    assert isinstance(loss, emulated.xp.ndarray)
    model.backward()
    model.update(loss)


def test_bad_calls(tmp_path):
    model = Word2Vec()
    with pytest.raises(NotInitializedError, match="call fit first"):
        model.get_embedding([0])
    with pytest.raises(NotInitializedError, match="needs a forward pass"):
        model.backward()
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        model.fit(str(tmp_path / "missing.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text("the of and")
    with pytest.raises(DataError, match="no word is left"):
        model.fit(empty)
    with pytest.raises(ParameterError, match="expected a path or several, got 3"):
        model.fit(3)
    with pytest.raises(ParameterError, match="at least one file"):
        model.fit([])
    single = tmp_path / "single.txt"
    single.write_text("word")
    with pytest.raises(DataError, match="fewer than two words"):
        Word2Vec().fit(single)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 caf\xe9")
    with pytest.raises(DataError, match="cannot read"):
        Word2Vec().fit(latin)
    assert Vocabulary().fit(latin, encoding="latin-1").words == ["caf\xe9"]
    for bad in ({"context_len": 0}, {"embedding_dim": 1.5}, {"num_negative_samples": -1},
                {"min_count": 0}, {"noise_dist_power": -1}, {"optimizer": "Adma"}):  # fmt: skip
        with pytest.raises(ParameterError):
            Word2Vec(**bad)
    vocab = Vocabulary().fit(latin, encoding="latin-1")
    with pytest.raises(ParameterError, match="no word 'cafe' among 1"):
        vocab.words_to_indices(["cafe"])
    with pytest.raises(ParameterError, match=r"ids must be in 0..0, got 3"):
        vocab.indices_to_words([3])


def test_noise_is_drawn_by_damped_counts(corpus):
    model = Word2Vec(noise_dist_power=0.5, filter_stopwords=False).prepare(corpus)
    counts = model.vocab.counts.astype(float)
    assert model.vocab.words[:2] == ["the", "near"] and counts[0] == 1400
    want = [np.sqrt(c) / sum(np.sqrt(k) for k in counts) for c in counts]
    np.testing.assert_allclose(model.loss.noise_sampler.probs, want, rtol=1e-12)
