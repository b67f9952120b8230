"""word2vec: vectors for words from the words around them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array, to_cpu, xp_of
from gpulayers.errors import DataError, DivergedError, NotInitializedError, ParameterError
from gpulayers.initializers import OptimizerInitializer, WeightInitializer
from gpulayers.layers import Embedding, FullyConnected
from gpulayers.losses import DiscreteSampler, NCELoss, SoftmaxCrossEntropy
from gpulayers.models._model import Callback, Model, Part, called, shown
from gpulayers.models.contexts import context_batches
from gpulayers.models.vocabulary import Vocabulary, file_list, read_words

__all__ = ["Word2Vec"]


class Word2Vec(Model):
    """Continuous bag of words, or skip-gram, trained by noise-contrastive estimation.

    CBOW predicts a word from the mean of the vectors of the words around it, skip-gram each of
    those from the word. (Mikolov et al., "Efficient estimation of word representations in vector
    space", 2013; Mnih & Kavukcuoglu, "Learning word embeddings efficiently with noise-contrastive
    estimation", 2013.)

    numpy-ml's `fit` takes a single file name for a list of one-letter names, and
    ``num_negative_samples=0`` is documented but missing. Here a name is one file, and 0 is the full
    softmax: slower for each step, no noise.

    Parameters
    ----------
    context_len : int
        Words on each side.
    min_count, max_tokens, filter_stopwords :
        See `Vocabulary`. Words that are not in it are passed over; their neighbours move together.
    skip_gram : bool
    embedding_dim : int
    noise_dist_power : float
        Noise is drawn with probabilities proportional to count ** noise_dist_power.
    init : str
    num_negative_samples : int
        Drawn for each batch.
    optimizer : str, optimizer, dict or None

    Attributes
    ----------
    vocab : Vocabulary
    embeddings : Embedding
        From `fit` on (or `prepare`).
    loss : NCELoss, or SoftmaxCrossEntropy without negatives
    vocab_size : int

    Raises
    ------
    ParameterError
        For an argument of the wrong type or range.

    Notes
    -----
    Losses and gradients are sums over a batch and its negatives, as in numpy-ml; but `update`
    divides the gradients by the number of examples. A batch shares its negatives, so with sums the
    default learning rate diverges.
    """

    _parts = ("embedding", "output")
    _hyper = (
        "context_len",
        "min_count",
        "skip_gram",
        "max_tokens",
        "embedding_dim",
        "filter_stopwords",
        "noise_dist_power",
        "init",
        "num_negative_samples",
        "optimizer",
    )

    def __init__(
        self,
        context_len: int = 5,
        min_count: int | None = None,
        skip_gram: bool = False,
        max_tokens: int | None = None,
        embedding_dim: int = 300,
        filter_stopwords: bool = True,
        noise_dist_power: float = 0.75,
        init: str = "glorot_uniform",
        num_negative_samples: int = 64,
        optimizer: Any = "SGD(lr=0.1)",
    ) -> None:
        name = "Word2Vec"
        self.context_len = _spec.integer(name, "context_len", context_len, 1)
        self.skip_gram = _spec.flag(name, "skip_gram", skip_gram)
        self.embedding_dim = _spec.integer(name, "embedding_dim", embedding_dim, 1)
        self.noise_dist_power = _spec.real(name, "noise_dist_power", noise_dist_power, 0.0)
        self.num_negative_samples = _spec.integer(
            name, "num_negative_samples", num_negative_samples, 0
        )
        WeightInitializer("Identity", mode=init)
        self.init = init
        self.vocab = Vocabulary(min_count, max_tokens, filter_stopwords)
        self.min_count, self.max_tokens = self.vocab.min_count, self.vocab.max_tokens
        self.filter_stopwords = self.vocab.filter_stopwords
        self._optimizer = OptimizerInitializer(optimizer)()
        self.embedding: Part = OrderedDict()
        self.output: Part = OrderedDict()
        self._loss: Any = None
        self._examples = 0  # retained since the last flush

    @property
    def optimizer(self) -> str:
        """What the optimizers of the parts are made from."""
        return str(self._optimizer)

    @property
    def vocab_size(self) -> int:
        """Words in the vocabulary; 0 before `fit`."""
        return len(self.vocab)

    @property
    def embeddings(self) -> Embedding:
        """The layer that holds the vectors.

        Raises
        ------
        NotInitializedError
            Before `fit` or `prepare`.
        """
        if not self.embedding:
            raise NotInitializedError("Word2Vec: call fit first; the words are not known yet")
        return self.embedding["Embedding"]

    @property
    def loss(self) -> Any:
        """The loss, with the output vectors (NCELoss)."""
        return self._loss

    def prepare(self, corpus_fps: Any, encoding: str = "utf-8-sig") -> Word2Vec:
        """Read the vocabulary and make embedding and loss; `fit` does it if it was not done.

        Raises
        ------
        DataError
            If a file cannot be read, or no word is left.
        """
        self.vocab.fit(corpus_fps, encoding)
        self._make_parts()
        return self

    def _make_parts(self) -> None:
        n = self.vocab_size
        options: dict[str, Any] = {"init": self.init, "optimizer": self._optimizer}
        pool = "mean"
        self.embedding = OrderedDict(Embedding=Embedding(self.embedding_dim, n, pool, **options))
        if self.num_negative_samples:
            noise = DiscreteSampler(self.vocab.counts.astype(np.float64) ** self.noise_dist_power)
            self._loss = NCELoss(n, noise, self.num_negative_samples, **options)
        else:
            self.output = OrderedDict(FC=FullyConnected(n, **options))
            self._loss = SoftmaxCrossEntropy("sum")

    def _kept(self) -> dict[str, Any]:
        return {"words": self.vocab.words, "counts": self.vocab.counts}

    def _restore(self, kept: dict[str, Any]) -> None:
        self.vocab._set(kept["words"], kept["counts"])
        if self.vocab_size:
            self._make_parts()

    def _more(self) -> dict[str, Any]:
        learns = self.num_negative_samples and self._loss is not None
        return {"loss": self._loss} if learns else {}

    # ------------------------------------------------------------------------ forward, backward

    def forward(self, X: Any, targets: Array, retain_derived: bool = True) -> tuple[Array, Array]:
        """Return the summed loss of a batch, and the probabilities of the targets.

        Parameters
        ----------
        X : integer array (n_ex, n_words), or a list of n_ex vectors of ids
            The words that predict.
        targets : (n_ex,), integer
            The words to be predicted.
        retain_derived : bool
            Keep what `backward` needs.

        Returns
        -------
        loss : 0-d array
        y_pred : (n_ex, 1)
            NCE: the probability that the target is no noise; softmax: the target's probability.

        Raises
        ------
        ShapeError, DTypeError, BackendError
        NotInitializedError
            Before `fit` or `prepare`.
        """
        vectors = self.embeddings.forward(X, retain_derived)
        if retain_derived:
            self._examples += len(targets)
        if self.num_negative_samples:
            return self._loss(vectors, targets, retain_derived=retain_derived)
        logits = self.output["FC"].forward(vectors[:, 0, :], retain_derived)
        losses = self._loss.forward(targets, logits) if retain_derived else None
        loss = self._loss.loss(targets, logits) if losses is None else losses
        xp = xp_of(logits)
        shifted = logits - logits.max(axis=1, keepdims=True)
        chosen = xp.take_along_axis(shifted, targets[:, None], axis=1)
        return loss, xp.exp(chosen) / xp.exp(shifted).sum(axis=1, keepdims=True)

    def backward(self) -> None:
        """Accumulate the gradients of the last `forward`'s loss in embedding and output vectors.

        Raises
        ------
        NotInitializedError
            Before a forward pass.
        """
        if self._loss is None:
            raise NotInitializedError("Word2Vec: backward needs a forward pass first")
        if self.num_negative_samples:
            dX = self._loss.grad(update_params=False)
        else:
            dX = self.output["FC"].backward(self._loss.backward())[:, None, :]
        self.embeddings.backward(dX)

    def update(self, cur_loss: Any = None) -> None:
        """Let the optimizers take a step along the mean gradient of the examples, and flush."""
        for part in self._learners():
            for grad in part.gradients.values():
                grad /= max(self._examples, 1)
            part.update(cur_loss)
        self._examples = 0

    def flush_gradients(self) -> None:
        """Set all gradients to zero and forget the forward passes."""
        self._examples = 0
        for part in self._learners():
            part.flush_gradients()

    # ------------------------------------------------------------------------------------- corpus

    def minibatcher(
        self, corpus_fps: Any, encoding: str = "utf-8-sig", batchsize: int = 128
    ) -> Iterator[tuple[Any, Array]]:
        """Yield (X, targets) batches of all files, the words of each file in random order.

        X is an id array (n_ex, n_words); a list of id vectors where a file's edges make them
        unequal.

        Raises
        ------
        DataError
            If a file cannot be read, or has fewer than two words.
        """
        xp = backend.module(backend.current_backend())
        for path in file_list(corpus_fps):
            ids = self.vocab.encode(read_words(path, encoding))
            if len(ids) < 2:
                raise DataError(f"Word2Vec: {path!r} has fewer than two words of the vocabulary")
            batches = context_batches(ids, self.context_len, batchsize, self.skip_gram)
            for X, targets in batches:
                words = xp.asarray(X) if isinstance(X, np.ndarray) else [xp.asarray(x) for x in X]
                yield words, xp.asarray(targets)

    # ----------------------------------------------------------------------------------- learning

    def fit(
        self,
        corpus_fps: str | Iterable[str],
        encoding: str = "utf-8-sig",
        n_epochs: int = 20,
        batchsize: int = 128,
        verbose: bool = True,
        callbacks: Callback | Iterable[Callback] = (),
    ) -> list[float]:
        """Learn vectors from text files.

        Parameters
        ----------
        corpus_fps : path, or several
        encoding : str
        n_epochs, batchsize : int >= 1
        verbose : bool
            Print a line after each epoch, below a bar on a terminal or in a notebook.
        callbacks : callable or several
            Called after each epoch with the model and the number of epochs done, for instance to
            save with `gpulayers.training.save`.

        Returns
        -------
        losses : list of float
            The mean loss of an example in each epoch. (numpy-ml returns None.)

        Raises
        ------
        DataError
            If a file cannot be read, or too few words are left.
        DivergedError
            If the loss of an epoch is not finite.
        ParameterError
        """
        for key, value in {"n_epochs": n_epochs, "batchsize": batchsize}.items():
            _spec.integer("Word2Vec.fit", key, value, 1)
        files = file_list(corpus_fps)
        if not self.embedding:
            self.prepare(files, encoding)
        callbacks = called("Word2Vec.fit", callbacks)
        self.flush_gradients()
        losses: list[float] = []
        contexts = 2 * self.context_len if self.skip_gram else 1
        steps = -(-int(self.vocab.counts.sum()) * contexts // batchsize)  # a guess until one is run
        done = 0
        with shown(verbose) as display:
            display.start(n_epochs * steps)
            for epoch in range(1, n_epochs + 1):
                label = f"epoch {epoch}/{n_epochs}"
                total, examples = 0.0, 0
                for X, targets in self.minibatcher(files, encoding, batchsize):
                    loss, _ = self.forward(X, targets)
                    self.backward()
                    self.update(loss)
                    total, examples, done = total + loss, examples + len(targets), done + 1
                    if display.due():
                        display.show(done, label, f"loss {float(total) / examples:.4f}")
                losses.append(float(total) / examples)
                if not np.isfinite(losses[-1]):
                    raise DivergedError(
                        f"Word2Vec.fit: the loss is {losses[-1]} in epoch {epoch}; lower the "
                        "learning rate"
                    )
                display.show(done, label, total=done // epoch * n_epochs)
                display.message(f"{label}  loss {losses[-1]:.4f}")
                for callback in callbacks:
                    callback(self, epoch)
        return losses

    def get_embedding(self, word_ids: Any) -> Array:
        """Return the vectors of word ids, see ``vocab.words_to_indices``: (..., embedding_dim).

        Raises
        ------
        NotInitializedError, ParameterError, DTypeError
        """
        return self.embeddings.lookup(word_ids)

    def nearest(self, word: str, n: int = 5) -> list[tuple[str, float]]:
        """Return the `n` words whose vectors point most nearly the same way, with the cosine.

        Raises
        ------
        ParameterError
            For a word that is not in the vocabulary.
        NotInitializedError
        """
        n = _spec.integer("Word2Vec.nearest", "n", n, 1)
        W = to_cpu(self.embeddings.parameters["W"]).astype(np.float64)
        (i,) = self.vocab.words_to_indices([word])
        length = np.linalg.norm(W, axis=1)
        cosine = (W @ W[i]) / np.maximum(length * length[i], np.finfo(np.float64).tiny)
        order = [int(k) for k in np.argsort(-cosine, kind="stable") if k != i][:n]
        return [(self.vocab.words[k], float(cosine[k])) for k in order]

    # ------------------------------------------------------------------------------------ summary

    def summary(self) -> dict[str, Any]:
        """As `Model.summary`, with the words and their counts, and the loss's parameters."""
        found = super().summary()
        found["vocabulary"] = {"words": self.vocab.words, "counts": self.vocab.counts.tolist()}
        found.update((key, part.summary()) for key, part in self._more().items())
        return found

    def set_params(self, summary_dict: dict[str, Any]) -> Word2Vec:
        """As `Model.set_params`; the vocabulary is taken over too if this model has none."""
        words = summary_dict.get("vocabulary", {})
        if not self.embedding and words.get("words"):
            self.vocab._set(words["words"], words["counts"])
            self._make_parts()
        if words and words["words"] != self.vocab.words:
            raise ParameterError("Word2Vec.set_params: the summary is of another vocabulary")
        super().set_params(summary_dict)
        if "loss" in summary_dict and self.num_negative_samples:
            self._loss.set_params(summary_dict["loss"])
        return self
