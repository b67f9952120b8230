"""From a text to what word2vec learns from: words and the words around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpulayers import random


def context_batches(
    ids: np.ndarray, context_len: int, batchsize: int, skip_gram: bool
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield batches (X, targets) of a text's word ids, in an order from the default generator.

    Skip-gram: X (n_ex, 1) is a word, the target one of those around it, each in its turn.
    CBOW: X holds the words around the target, (n_ex, 2 * context_len), or a list of vectors where
    an edge of the text cuts some off.
    """
    generator, n = random.default_generator(), len(ids)
    offsets = np.array([k for k in range(-context_len, context_len + 1) if k])
    if skip_gram:
        centre = np.repeat(np.arange(n), len(offsets))
        other = centre + np.tile(offsets, n)
        inside = (other >= 0) & (other < n)
        pairs = np.stack([ids[centre[inside]], ids[other[inside]]], axis=1)
        order = generator.permutation(len(pairs))
        for i in range(0, len(pairs), batchsize):
            batch = pairs[order[i : i + batchsize]]
            yield np.ascontiguousarray(batch[:, :1]), np.ascontiguousarray(batch[:, 1])
        return
    order = generator.permutation(n)
    for i in range(0, n, batchsize):
        centre = order[i : i + batchsize]
        places = centre[:, None] + offsets
        inside = (places >= 0) & (places < n)
        if inside.all():
            yield ids[places], ids[centre]
        else:
            rows = zip(places, inside, strict=True)
            yield [ids[row[keep]] for row, keep in rows], ids[centre]
