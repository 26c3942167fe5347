"""Each guard of the protocol is needed: without it, the oracle finds something within a few worlds."""

import pytest

from simulation.mutants import MUTANTS, Mutant
from simulation.oracle import violations
from simulation.world import Laboratory


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


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if not mutant.is_harmless], ids=lambda m: m.name)
def test_a_missing_guard_is_noticed(mutant):
    found = first_violations(mutant)
    assert found, f"{mutant.seeds} worlds without '{mutant.name}', and nothing is wrong"
    assert not [text for text in found if text.startswith("unforeseen error")], found


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.is_harmless], ids=lambda m: m.name)
def test_what_only_saves_work_can_be_missed(mutant):
    assert first_violations(mutant) == []
