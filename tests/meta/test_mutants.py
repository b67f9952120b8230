"""The tests of the kernels, put to the test: small faults in the sources must not pass them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from gpulayers.cuda.compile import load_source
from tests.kernels.cases import CASES
from tests.support import mutants, mutations
from tests.support.mutants import Verdict
from tests.support.mutations import Mutant

pytestmark = pytest.mark.emulated

SAMPLE = 1  # mutants of a file in a normal run ...
EVERY = 1 if os.environ.get("GPULAYERS_TEST_CASES") else 6  # ... of every sixth


def sample(file: str) -> list[Mutant]:
    """Some mutants, evenly spread over the file, none of them equivalent."""
    known = {entry.key for entry in mutants.equivalent_mutants()}
    made = [mutant for mutant in mutations.mutants(file) if mutant.key not in known]
    return list(mutations.spread(made, SAMPLE))


@pytest.mark.parametrize("file", mutations.files()[::EVERY])
def test_a_sample_is_caught(file: str) -> None:
    chosen = sample(file)
    assert len(chosen) == SAMPLE
    alive = [str(mutant) for mutant in chosen if mutants.judge(mutant).outcome != "caught"]
    assert not alive, "\n".join(alive)


def reach(file: str) -> int:
    """How many cases a mutant of the file may have to go through."""
    text = mutations.read(file)
    return sum(len(cases) for unit, cases in CASES.items() if file == unit or text in SOURCES[unit])


SOURCES = {unit: load_source(unit) for unit in CASES}
#: what takes longest comes first: at the end no worker waits for it
LONGEST_FIRST = sorted(mutations.files(), key=reach, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(mutations.PER_FILE))
@pytest.mark.parametrize("file", LONGEST_FIRST)
def test_a_larger_sample_is_caught(file: str, place: int) -> None:
    """Of mutants spread over the file, each with those behind it that no test can notice left out:
    these go through every case, and `python -m tests.support.mutants` judges them."""
    made = mutations.mutants(file)
    known = {entry.key for entry in mutants.equivalent_mutants()}
    start = made.index(mutations.spread(made)[place])
    chosen = next(mutant for mutant in made[start:] + made[:start] if mutant.key not in known)
    (verdict,) = mutants.judge_all([chosen], processes=1)
    assert verdict.outcome == "caught", f"{verdict.outcome} {verdict.detail}: {verdict.mutant}"


# -------------------------------------------------------------------------------------- the engine


def find(file: str, function: str, mutation: str) -> Mutant:
    return next(
        mutant
        for mutant in mutations.mutants(file)
        if mutant.function == function and mutant.mutation == mutation
    )


def test_every_listed_equivalent_exists_and_has_a_reason() -> None:
    made = [mutant for file in mutations.files() for mutant in mutations.mutants(file)]
    assert mutants.stale_entries(made) == []
    for entry in mutants.equivalent_mutants():
        assert len(entry.reason.split()) >= 5, entry
    keys = Counter(entry.key for entry in mutants.equivalent_mutants())
    assert not [key for key, number in keys.items() if number > 1]


def test_every_function_is_mutated() -> None:
    for file in mutations.files():
        text = mutations.read(file)
        bodies = [name for name, _, _ in mutations.function_bodies(text)]  # overloads count each
        assert bodies, file
        on_a_line = len(re.findall(r"__device__[^\n;{]*\{[^\n]*\}", text))  # with its body
        on_a_line += len(re.findall(r"__device__[^;{]*;", text))  # or without one
        heads = text.count("__global__") + text.count("__device__") - on_a_line
        assert heads == len(bodies), file
        mutated = {mutant.function for mutant in mutations.mutants(file)}
        # A body of one call, or of a declaration, has nothing to change.
        unchanged = {"thread_number", "not_a_number", "share_of_block", "bits_of", "four_lines"}
        unchanged |= {"product_then_sum", "column_of", "fused_value", "stage_value", "slope_at"}
        unchanged |= {"factor_in_shared_memory", "both_halves", "follow"}
        unchanged |= {"as_factor", "apart_of", "room_in", "noting", "is_ones"}
        unchanged |= {"has_winners", "winners_of", "term_of", "pipeline_memory"}
        unchanged |= {"is_noted", "begin_notes", "go_on_noting"}
        unchanged |= {"kept_line", "kept_term"}  # as they are, where a factor has none of its own
        unchanged |= {"show_to_products", "begin_products", "close_products", "wait_for_products"}
        assert set(bodies) - mutated <= unchanged, file


def test_every_barrier_and_atomic_has_a_mutant() -> None:
    for file in mutations.files():
        code = "\n".join(line.split("//")[0] for line in mutations.read(file).split("\n"))
        made = Counter(
            (mutant.mutation, mutant.line_number) for mutant in mutations.mutants(file)
        ).keys()
        kinds = Counter(mutation for mutation, _ in made)
        assert kinds["drop barrier"] == code.count("__syncthreads();"), file
        assert kinds["no atomic"] == code.count("atomicAdd("), file


@pytest.mark.parametrize(
    ("line", "mutation", "becomes"),
    [
        ("if (a < b && c)", "< to <=", "if (a <= b && c)"),
        ("if (a < b && c)", "&& to ||", "if (a < b || c)"),
        ("if (a < b && c)", "always", "if (true)"),
        ("if ((a + 1) * f(b[2]) >= n) return;", "drop test", ";"),
        ("if ((a + 1) * f(b[2]) >= n) return;", ">= to >", "if ((a + 1) * f(b[2]) > n) return;"),
        ("if ((a + 1) * f(b[2]) >= n) return;", "constant", "if ((a + 2) * f(b[2]) >= n) return;"),
        ("if ((a + 1) * f(b[2]) >= n) return;", "constant", "if ((a + 1) * f(b[3]) >= n) return;"),
        ("atomicAdd(&x[i], f(a, b));", "no atomic", "*(&x[i]) += f(a, b);"),
        ("__syncthreads();", "drop barrier", ";"),
        ("    sum += x * y;", "drop statement", ";"),
        ("    sum += x * y;", "+= to -=", "    sum -= x * y;"),
        ("k = 0xffffffffu;", "constant", "k = 0xfffffff0u;"),
        ("k = 0.5 * x;", "constant", "k = 0.75 * x;"),
        ("k = exp(-x) - f(2, -y);", "drop unary -", "k = exp(x) - f(2, -y);"),
        ("    Acc part[4];", "smaller array", "    Acc part[3];"),
        (
            "    __shared__ Acc part[BLOCK / 32];",
            "smaller array",
            "    __shared__ Acc part[BLOCK / 33];",
        ),
        ("m = minus_infinity<Acc>();", "start at 0", "m = static_cast<Acc>(0);"),
    ],
)
def test_changes(line: str, mutation: str, becomes: str) -> None:
    assert (mutation, becomes) in list(mutations._changes(line))


@pytest.mark.parametrize(
    "line", ["Place<Index> p;", "const T* x = f<4>(y);", "x->y();", "static_cast<Acc>(x)"]
)
def test_what_is_left_alone(line: str) -> None:
    assert list(mutations._changes(line)) == []


def test_mutants_change_their_line_only() -> None:
    for mutant in mutations.mutants("im2col.cu"):
        old, new = mutations.read("im2col.cu").split("\n"), mutant.source().split("\n")
        assert len(old) == len(new)
        changed = [
            number
            for number, pair in enumerate(zip(old, new, strict=True), 1)
            if len(set(pair)) == 2
        ]
        assert changed == [mutant.line_number], mutant
        for text in mutants.sources_with(mutant).values():
            assert mutant.becomes in text


def test_a_header_is_changed_in_every_source_that_holds_it() -> None:
    units = mutants.sources_with(find("activation_functions.cuh", "logistic", "drop unary -"))
    sequences = {f"sequence_{kind}.cu" for kind in ("rnn", "lstm", "gru")}
    others = {"activation.cu", "gate.cu", "recurrent.cu", "example_conv.cu", "norm.cu"}
    products = {"gemm.cu", "conv.cu", "conv_step.cu", "sequence_plan.cu"}
    assert set(units) == others | sequences | products


def test_the_checker_and_the_values_both_catch() -> None:
    checked = mutants.judge(find("rows.cuh", "reduce_row", "drop barrier"))
    assert checked.outcome == "caught"
    assert "race-in-block" in checked.detail
    valued = mutants.judge(find("update.cu", "sgd_update", "- to +"))
    assert (valued.outcome, valued.detail) == ("caught", "values")


def harmless() -> Mutant:
    """A change without effect: the sum of two products the other way round."""
    mutant = find("update.cu", "sgd_update", ">= to >")
    assert mutant.line == "if (number >= total) return;"
    return dataclasses.replace(
        mutant, mutation="turned round", becomes="if (total <= number) return;"
    )


def listing(path: Path, mutant: Mutant) -> Path:
    names = [field.name for field in dataclasses.fields(mutants.Equivalent)]
    values = {**dataclasses.asdict(mutant), "reason": "the same comparison, turned round"}
    path.write_text(
        "\n".join(["[[mutant]]", *(f'{name} = """{values[name]}"""' for name in names)])
    )
    return path


def test_a_harmless_change_is_alive_unless_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert mutants.judge(harmless(), thorough=False).outcome == "alive"
    (verdict,) = mutants.judge_all([harmless()], processes=1)
    assert verdict.outcome == "alive"
    path = listing(tmp_path / "listed.toml", harmless())
    monkeypatch.setattr(mutants, "EQUIVALENT_FILE", path)
    (verdict,) = mutants.judge_all([harmless()], processes=1)
    assert verdict.outcome == "equivalent"
    assert mutants.count([verdict]) == (
        "1 mutants: 0 caught (0 by the checker, 0 by values), "
        "1 equivalent, 0 alive, 0 do not compile"
    )


def test_stale_entries_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = listing(tmp_path / "listed.toml", harmless())
    monkeypatch.setattr(mutants, "EQUIVALENT_FILE", path)
    (gone,) = mutants.stale_entries(mutations.mutants("update.cu"))
    assert gone.startswith("no such mutant any more: update.cu")
    caught = Verdict(harmless(), "caught", "values")
    (wrong,) = mutants.stale_entries([harmless()], [caught])
    assert wrong.startswith("caught, so not equivalent")
    assert mutants.stale_entries([harmless()], [Verdict(harmless(), "equivalent")]) == []
    assert mutants.stale_entries([], file="pool.cu") == []


def test_an_endless_loop_is_caught() -> None:
    mutant = find("pool.cu", "avg_pool2d_forward", "< to <=")
    assert mutant.line == "for (int i = 0; i < kernel_rows; ++i) {"
    endless = dataclasses.replace(mutant, becomes="for (int i = 0; i < kernel_rows;) {")
    verdict = mutants.judge(endless)
    assert verdict.outcome == "caught"
    assert "timeout" in verdict.detail
