"""Cases of modules by their names."""

from __future__ import annotations

from tests.modules.cases import CASES, Case


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.id == name)


IDENTITY, CONV = case_of("identity-plain"), case_of("conv-all-pads")
WAVENET, ATTENTION = case_of("wavenet-plain"), case_of("attention-sequences")
