"""What follows from what was measured: each number, what it is held against, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from _gpu import record
from _gpu.tables import OURS, table
from _gpu.ways import GROUPS

__all__ = ["Decision", "decisions", "printed"]

#: bf16 operations a second of a large product by the fastest library, on an H200
_LIBRARY = 790.0
#: what counts as a difference between two kernels
_WORTH = 1.05
_MOVING = ("pool2d", "im2col", "activation", "bias_grad", "softmax", "adam", "philox")


class Decision(NamedTuple):
    """A number, the bound at which the answer changes, and the answer."""

    what: str
    measured: str
    bound: str
    therefore: str


def _value(values: dict[str, Any], part: str, item: str, key: str) -> float | None:
    found = values.get(part, {}).get(item, {}).get("measured", {})
    return found.get(key) if isinstance(found, dict) else None


def _rule(
    what: str, part: str, item: str, key: str, bound: float, below: str, above: str, unit: str
) -> Callable[[dict[str, Any]], Iterator[Decision]]:
    """`below` the bound or at it, `above` it."""

    def decide(values: dict[str, Any]) -> Iterator[Decision]:
        found = _value(values, part, item, key)
        if found is not None:
            therefore = below if found <= bound else above
            yield Decision(what, f"{found:.3g} {unit}", f"{bound:.3g}", therefore)

    return decide


def _libraries(values: dict[str, Any]) -> Iterator[Decision]:
    """Whether the libraries earn their size on disk."""
    for form in ("nn", "nt", "tn"):
        for precision in ("tf32", "bf16", "fp16"):
            item = f"product 2048 {form} {precision}"
            own, theirs = (_value(values, "kernels", item, key) for key in ("ms", "cublaslt ms"))
            if own and isinstance(theirs, float):
                earns = own > 1.2 * theirs
                yield Decision(
                    f"{item}, ours over cuBLASLt's time",
                    f"{own / theirs:.2f}",
                    "1.2",
                    "cuBLASLt for large dense layers" if earns else "our own kernel",
                )


def _scatter(values: dict[str, Any]) -> Iterator[Decision]:
    gather, scatter = (
        _value(values, "kernels", f"{name} fp32", "ms") for name in ("col2im", "col2im scatter")
    )
    if gather and scatter:
        therefore = "keep col2im's gather" if gather <= scatter else "let tune try the scatter"
        told = f"{1e3 * gather:.0f} us, {1e3 * scatter:.0f} us"
        yield Decision("col2im by gather, by atomics", told, "the faster one", therefore)


def _pipeline(values: dict[str, Any]) -> Iterator[Decision]:
    """What holds the products back: the instruction, or what feeds it."""
    for precision in ("tf32", "bf16", "fp16"):
        product = _value(values, "micro", f"product 4096, {precision}", "TFLOP/s")
        most = _value(values, "micro", f"tensor cores, {precision}", "TFLOP/s")
        if product and most:
            fed = product >= 0.7 * most
            yield Decision(
                f"product of the instruction's speed, {precision}",
                f"{100 * product / most:.0f} %",
                "70 %",
                "another instruction (wgmma)" if fed else "the pipeline first: stages, tiles",
            )


def _ways(values: dict[str, Any]) -> Iterator[Decision]:
    """Where the rule is not the fastest."""
    slower = []
    ways = values.get("ways", {})
    for name, entry in ways.items():
        found = entry.get("measured", {})
        times = found.get("us", {}) if isinstance(found, dict) else {}
        own, best = (times.get(found.get(which)) for which in ("rule", "best"))
        if isinstance(own, float) and isinstance(best, float) and own > _WORTH * best:
            slower.append(f"{name} {own / best:.2f} x ({found['best']})")
    if ways:
        yield Decision(
            "rule against the fastest candidate",
            "; ".join(slower) or "none slower",
            f"{_WORTH:g} x",
            "ship the measured choices for this GPU" if slower else "the rule stays",
        )


def _warpgroups(values: dict[str, Any]) -> Iterator[Decision]:
    """Whether products by warpgroups (sm_90a) are faster than those by warps."""
    ratios = []
    for name, entry in values.get("ways", {}).items():
        found = entry.get("measured", {})
        if not name.endswith(GROUPS) or "us" not in found:
            continue
        times = {w: t for w, t in found["us"].items() if isinstance(t, float)}
        by_groups = [t for way, t in times.items() if "warpgroup" in way]
        others = [t for way, t in times.items() if "warpgroup" not in way]
        if by_groups and others:
            ratio = min(others) / min(by_groups)
            ratios.append((ratio, f"{name.removesuffix(GROUPS)} {ratio:.2f} x"))
    if ratios:
        earns = max(ratio for ratio, _ in ratios) > _WORTH
        yield Decision(
            "products by warps over those by warpgroups",
            "; ".join(text for _, text in ratios),
            f"{_WORTH:g} x",
            "try warpgroups by default, by rule where they win" if earns else "leave them out",
        )


def _wrong(values: dict[str, Any]) -> Iterator[Decision]:
    """What failed; not what the end of the time cut off, or a library that is not there."""
    for part in ("micro", "kernels", "ways"):
        for name, entry in values.get(part, {}).items():
            found = entry.get("measured", {})
            if not isinstance(found, dict):
                continue
            if isinstance(found.get("error"), str):
                yield Decision(name, found["error"][:60], "none", "mend this before all else")
            for key, value in found.items():
                if isinstance(value, str) and value.startswith("ArithmeticError"):
                    yield Decision(
                        f"{name}, {key}", value[:60], "none", "mend this before all else"
                    )
    for name, entry in values.get("steps", {}).items():
        for way in (*OURS, "referee"):
            value = entry.get(way)
            if isinstance(value, dict) and "error" in value:
                what = f"{name}, {way}"
                yield Decision(what, value["error"][:60], "none", "mend this before all else")


def _slow_copies(values: dict[str, Any]) -> Iterator[Decision]:
    """What moves bytes, and is far from a copy's speed."""
    for name, entry in values.get("kernels", {}).items():
        share = _value({"kernels": {name: entry}}, "kernels", name, "share of copy")
        if share is not None and share < 0.6 and any(word in name for word in _MOVING):
            yield Decision(f"{name}, of a copy's speed", f"{100 * share:.0f} %", "60 %", "speed up")


def _engines(values: dict[str, Any]) -> Iterator[Decision]:
    """Which of our ways is the fastest for each step."""
    for item, entry in values.get("steps", {}).items():
        times = {way: entry.get(way, {}).get("median_us") for way in OURS}
        known = {way: time for way, time in times.items() if time is not None}
        if len(known) > 1:
            best = min(known, key=lambda way: known[way])
            told = ", ".join(f"{way} {time:.1f} us" for way, time in known.items())
            yield Decision(item, told, "the fastest", f"Trainer takes {best}")


#: each of their entries stands for itself
_OF_ENTRIES = (_wrong, _libraries, _ways, _warpgroups, _slow_copies)
#: these hold entries against one another, or one against a bound
_OF_RUNS: tuple[Callable[[dict[str, Any]], Iterator[Decision]], ...] = (
    _rule(
        *("a node of a graph", "micro", "graph node, 132 blocks", "us", 1.0),
        "one kernel for a whole step pays for LeNet's size alone",
        "extend the one-kernel step to more layers",
        "us",
    ),
    _rule(
        *("a barrier of all blocks", "micro", "barrier of all blocks", "us", 2.0),
        "keep barriers of the whole grid",
        "one-kernel step and recurrent groups by clusters of 8 blocks",
        "us",
    ),
    _rule(
        *("mma.sync in bf16", "micro", "tensor cores, bf16", "TFLOP/s", 0.55 * _LIBRARY),
        "warpgroups for 64 columns and more",
        "mma.sync suffices for now",
        "TFLOP/s",
    ),
    _rule(
        *("ldmatrix", "micro", "ldmatrix", "bytes a clock", 110.0),
        "64 lines a warp first: fewer reads for a product",
        "reads of shared memory are as fast as they can be",
        "bytes a clock",
    ),
    _pipeline,
    _scatter,
    _engines,
)
_SECTIONS = ("micro", "kernels", "ways", "steps")


def decisions(runs: list[dict[str, Any]]) -> list[Decision]:
    """What follows from the runs of a record, each number from the newest run that has it; nothing
    from what was not measured, and nothing from two numbers of different runs."""
    newest = {section: record.newest(runs, section) for section in _SECTIONS}
    found = [decision for rule in _OF_ENTRIES for decision in rule(newest)]
    for rule in _OF_RUNS:
        seen: set[str] = set()
        for run in reversed(runs):
            fresh = [decision for decision in rule(run) if decision.what not in seen]
            seen |= {decision.what for decision in fresh}
            found += fresh
    return found


def printed(runs: list[dict[str, Any]]) -> str:
    """The decisions as a table."""
    found = decisions(runs)
    if not found:
        return "no decision follows yet"
    return table(["number", "measured", "bound", "therefore"], [list(d) for d in found])
