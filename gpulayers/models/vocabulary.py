"""From text files to integer ids of words."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gpulayers import _spec
from gpulayers.errors import DataError, NotInitializedError, ParameterError, suggest

__all__ = ["STOPWORDS", "Vocabulary", "words_of"]

_FUNCTION_WORDS = """
    a about after all also am an and any are as at be because been before being but by can
    could did do does doing down each few for from further had has have having he her here
    hers him his how i if in into is it its itself just me more most my no nor not now of off
    on once only or other our out over own same she should so some such than that the their
    them then there these they this those through to too under until up very was we were what
    when where which while who whom why will with would you your
"""
STOPWORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words, which tell little about their neighbours."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: letters and digits, with ' and - inside."""
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


def read_words(path: str | os.PathLike[str], encoding: str) -> list[str]:
    """Return the words of a text file.

    Raises
    ------
    DataError
        If the file cannot be read as text.
    """
    try:
        return words_of(Path(path).read_text(encoding=encoding))
    except (OSError, UnicodeError, LookupError) as error:
        raise DataError(f"Vocabulary: cannot read {os.fspath(path)!r}: {error}") from None


def file_list(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """One path, or several, as a list."""
    if isinstance(paths, (str, os.PathLike)):
        return [os.fspath(paths)]
    if not isinstance(paths, Iterable):
        raise ParameterError(f"Vocabulary: expected a path or several, got {paths!r}")
    files = [os.fspath(path) for path in paths]
    if not files:
        raise ParameterError("Vocabulary: expected at least one file, got none")
    return files


class Vocabulary:
    """The words of a corpus, most frequent first; a word's id is its place.

    Parameters
    ----------
    min_count : int, optional
        Words that are rarer are left out.
    max_tokens : int, optional
        Only so many words, the most frequent ones; equally frequent ones in alphabetical order.
    filter_stopwords : bool
        Leave `STOPWORDS` out.

    Attributes
    ----------
    words : list of str
    counts : numpy array (n_words,), int64

    Raises
    ------
    ParameterError
        If an argument is out of range.
    """

    def __init__(
        self,
        min_count: int | None = None,
        max_tokens: int | None = None,
        filter_stopwords: bool = True,
    ) -> None:
        name = "Vocabulary"
        self.min_count = (
            None if min_count is None else _spec.integer(name, "min_count", min_count, 1)
        )
        self.max_tokens = (
            None if max_tokens is None else _spec.integer(name, "max_tokens", max_tokens, 1)
        )
        self.filter_stopwords = _spec.flag(name, "filter_stopwords", filter_stopwords)
        self._set([], [])

    def _set(self, words: Sequence[str], counts: Sequence[int]) -> None:
        self.words = list(words)
        self.counts = np.array(counts, np.int64)
        self._ids = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def fit(self, corpus_fps: str | Iterable[str], encoding: str = "utf-8-sig") -> Vocabulary:
        """Count the words of text files.

        Parameters
        ----------
        corpus_fps : path, or several
        encoding : str

        Raises
        ------
        DataError
            If a file cannot be read, or no word is left.
        """
        counted: Counter[str] = Counter()
        for path in file_list(corpus_fps):
            counted.update(read_words(path, encoding))
        kept = [
            (word, count)
            for word, count in counted.items()
            if count >= (self.min_count or 1) and not (self.filter_stopwords and word in STOPWORDS)
        ]
        kept.sort(key=lambda item: (-item[1], item[0]))
        kept = kept[: self.max_tokens]
        if not kept:
            raise DataError("Vocabulary: no word is left; are the files empty or min_count high?")
        self._set(*zip(*kept, strict=True))
        return self

    def encode(self, words: Iterable[str]) -> np.ndarray:
        """Return the ids of the words that are known, in order: int64; others are left out."""
        ids = self._ids
        return np.array([ids[word] for word in words if word in ids], np.int64)

    def words_to_indices(self, words: Iterable[str]) -> list[int]:
        """Return the words' ids.

        Raises
        ------
        ParameterError
            For a word that is not in the vocabulary.
        NotInitializedError
            Before `fit`.
        """
        if not self.words:
            raise NotInitializedError("Vocabulary: call fit first")
        ids: list[int] = []
        for word in words:
            if word not in self._ids:
                raise ParameterError(
                    f"Vocabulary: no word {word!r} among {len(self)}" + suggest(word, self.words)
                )
            ids.append(self._ids[word])
        return ids

    def indices_to_words(self, ids: Iterable[int]) -> list[str]:
        """Return the words of ids.

        Raises
        ------
        ParameterError
            For an id out of range.
        """
        told = [_spec.integer("Vocabulary", "an id", i, 0) for i in ids]
        for i in told:
            if i >= len(self):
                raise ParameterError(f"Vocabulary: ids must be in 0..{len(self) - 1}, got {i}")
        return [self.words[i] for i in told]
