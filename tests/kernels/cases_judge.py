"""judge.cu: norms of gradients that fill one chunk, several, or hardly one; numbers not finite."""

from __future__ import annotations

import functools

import numpy as np

from tests.kernels.arrays import Launcher, close, poisoned, random, rounded, store

SIZES = (3000, 1, 40)
CHUNKS = ((0, 0, 2048), (0, 2048, 3000), (1, 3000, 3001), (2, 3001, 3041))
DTYPES = (("float32", "int32"), ("float64", "int64"))
SMALLEST, LARGEST = 0.25, 64.0


def _gradients(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts in memory, two of the first gradient's, one of the others'; sections; the values."""
    first, values = rounded(random(2, SIZES[0], seed="first"), dtype)
    others, more = rounded(random(41, seed="others"), dtype)
    sections = [(0, 0, 2, 3000, 3000), (3000, 6000, 1, 0, 3001), (3001, 6001, 1, 0, 3041)]
    work = np.concatenate([first.reshape(-1), others])
    return work, np.array(sections, "i8"), np.concatenate([values.sum(axis=0), more])


def survey(
    launcher: Launcher, scaled: bool, limit: float, longest: float, dtype: str, index: str
) -> None:
    work, sections, values = _gradients(dtype)
    if scaled:
        values = values / 8
    if limit:
        values = np.clip(values, -limit, limit)
    peaks, squares = poisoned(4, dtype), poisoned(4, dtype)
    scale = store(np.array([8.0]), dtype)
    args = (work, sections, np.array(CHUNKS, "i8"), scale, peaks, squares, scaled, limit, longest)
    args = (*args, 100.0)
    launcher.launch("survey_gradients", dtype, index, (4,), args)
    owns = [values[first:last] for _, first, last in CHUNKS]
    want = np.array([max(longest, np.abs(own).max()) for own in owns])
    close(peaks, want, dtype)
    sums = [((own / peak) ** 2).sum() for own, peak in zip(owns, want, strict=True)]
    close(squares, np.array(sums), dtype, 40.0)


def odd(launcher: Launcher, sign: float) -> None:
    """NaN, infinity and what is too large are told of their own chunks, though values are cut."""
    work, sections, _ = _gradients("float32")
    work[[2050, 6000, 6002]] = np.nan, -np.inf, sign * 2e3
    work[[5, 3005]] = sign * 1e3, 0.0  # as large as allowed
    peaks, squares = poisoned(4, "float32"), poisoned(4, "float32")
    args = (work, sections, np.array(CHUNKS, "i8"), work[:0], peaks, squares, False, 0.5, 1.0)
    args = (*args, 1e3)
    launcher.launch("survey_gradients", "float32", "int32", (4,), args)
    np.testing.assert_array_equal(np.isnan(peaks), [False, True, True, True])


def _judge(
    launcher: Launcher,
    peaks: np.ndarray,
    squares: np.ndarray,
    bounds: tuple[int, ...],
    counts: tuple[int, ...],
    now: float,
    scaled: bool,
    dtype: str,
    index: str,
    longest: float = 2.0,
    clips: bool = True,
    judges: bool = True,
) -> dict[str, np.ndarray]:
    found = {
        "factors": poisoned(len(bounds) - 1, dtype),
        "scale": store(np.array([now]), dtype),
        "inverse": poisoned(1, dtype),
        "good": np.full(1, 7, "i4"),
        "counts": np.array(counts, "i4"),
        "step": np.full(1, 9, "i4"),
    }
    args = (peaks, squares, np.array(bounds, "i4"), *found.values(), len(peaks), clips, judges)
    args = (*args, scaled, 3, longest, SMALLEST, LARGEST)
    launcher.launch("judge_gradients", dtype, index, (len(bounds) - 1 if clips else 1,), args)
    return found


def norms(launcher: Launcher, dtype: str, index: str, size: float = 1.0) -> None:
    """A section of more chunks than a block has threads, one that is short, one with NaN; numbers
    whose squares overflow."""
    count = 300
    peaks, p = rounded((2.0 + np.abs(random(count + 3, seed="peak"))) * size, dtype)
    squares, s = rounded(np.abs(random(count + 3, seed="square")), dtype)
    squares[count], s[count], peaks[count], p[count] = 0.25, 0.25, 2.0, 2.0
    peaks[count + 2] = np.nan
    bounds = (0, count, count + 1, count + 3)
    arguments: tuple = (launcher, peaks, squares, bounds, (1, 1, 1), 4.0, True)
    found = _judge(*arguments, dtype, index, judges=False)
    norm = np.sqrt((s[:count] * p[:count] ** 2).sum())
    close(found["factors"][:1], np.array([2.0 / norm]), dtype, 20.0)
    close(found["factors"][1:2], np.array([1.0]), dtype)
    assert np.isnan(found["factors"][2])
    assert found["counts"].tolist() == [1, 1, 1]
    assert found["good"] == 7


#: the scale before, good steps in a row, whether finite: the scale after and the counts
FOLLOWED = (
    ((4.0, 0, True), (4.0, (1, 5, 6))),
    ((4.0, 2, True), (8.0, (0, 5, 6))),
    ((LARGEST, 2, True), (LARGEST, (0, 5, 6))),
    ((4.0, 2, False), (2.0, (0, 6, 6))),
    ((SMALLEST, 2, False), (SMALLEST, (0, 6, 7))),
)


def followed(launcher: Launcher, number: int, dtype: str, index: str, clips: bool = False) -> None:
    (now, good, finite), (after, counts) = FOLLOWED[number]
    peaks = store(np.ones(300), dtype)
    if not finite:
        peaks[290] = np.nan
    scaled = number != 2
    arguments: tuple = (launcher, peaks, peaks, (0, 299, 300), (good, 5, 6), now, scaled)
    found = _judge(*arguments, dtype, index, clips=clips)
    close(found["scale"], np.array([after]), dtype)
    close(found["inverse"], np.array([1 / now if scaled else 1.0]), dtype)
    assert found["counts"].tolist() == list(counts)
    assert found["good"].tolist() == [finite]
    assert found["step"].tolist() == [9 if finite else 8]
    assert clips or (found["factors"] == poisoned(2, dtype)).all()


CASES = [
    *(
        functools.partial(survey, scaled=s, limit=limit, longest=n, dtype=d, index=i)
        for (d, i), s, limit, n in (
            (DTYPES[0], False, 0.0, 0.5),
            (DTYPES[0], True, 0.1, 1e-3),
            (DTYPES[1], False, 0.5, 9.0),
        )
    ),
    *(functools.partial(odd, sign=sign) for sign in (1.0, -1.0)),
    *(functools.partial(norms, dtype=d, index=i) for d, i in DTYPES),
    functools.partial(norms, dtype="float32", index="int32", size=1e30),
    *(functools.partial(followed, number=k, dtype="float32", index="int32") for k in range(5)),
    functools.partial(followed, number=3, dtype="float64", index="int64"),
    functools.partial(followed, number=1, dtype="float32", index="int32", clips=True),
]
