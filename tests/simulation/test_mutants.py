"""Each guard of the protocol is needed: without it, the oracle finds something within a few worlds."""

from typing import Any

import pytest

from simulation.mutants import MUTANTS, Mutant
from simulation.oracle import violations
from simulation.world import Laboratory

# Mutants that fail in their first world or soon after, within a second of processor time. The others are for the long
# run.
_QUICK = {
    "Kinesis refusals ignored",
    "aggregation without count",
    "begun again twice",
    "cancelled after its end",
    "chunks without token",
    "closed before published",
    "counted after its end",
    "end of a planned job",
    "failures of any generation",
    "failures stay",
    "no sweeper",
    "plain counters",
    "plan of an ended job",
    "random feature keys",
    "region begun again twice",
    "regions noted after the end",
    "skipped tiles processed",
    "slot beyond the most",
    "slot of another deleted",
    "slot taken whoever has it",
    "terminal write without fence",
}


def params(*, is_harmless: bool) -> list[Any]:
    """Return the harmful or the harmless mutants, as parameters of a test."""
    return [
        pytest.param(mutant, id=mutant.name, marks=() if mutant.name in _QUICK else pytest.mark.long)
        for mutant in MUTANTS
        if mutant.is_harmless == is_harmless
    ]


def first_violations(mutant: Mutant) -> list[str]:
    """Return what is wrong in the first world that goes wrong without the guard, and does not with it.

    A mutant that replaces nothing is one of its world's settings.
    """
    with Laboratory() as laboratory:
        for seed in mutant.worlds:
            with mutant.applied():
                found = violations(laboratory.run(seed, mutant.faults))
            if found and not (mutant.replacements() and violations(laboratory.run(seed, mutant.faults))):
                return found
    return []


@pytest.mark.parametrize("mutant", params(is_harmless=False))
def test_mutant_is_detected(mutant):
    found = first_violations(mutant)
    assert found, f"{mutant.seeds} worlds without '{mutant.name}', and nothing is wrong"
    assert not [text for text in found if text.startswith("unforeseen error")], found


@pytest.mark.parametrize("mutant", params(is_harmless=True))
def test_mutant_that_only_costs_work_is_not_detected(mutant):
    assert first_violations(mutant) == []


def test_quick_mutants_exist():
    assert {mutant.name for mutant in MUTANTS} >= _QUICK
