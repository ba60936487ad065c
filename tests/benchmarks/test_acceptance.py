"""Simulated loops: models differ as much as asked for, and a loop's outcome counts what it says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.acceptance import ACCURACY, RELATED, simulate


@pytest.mark.parametrize("related", RELATED)
@pytest.mark.parametrize("discordance", [0.1, 0.2])
def test_candidates_differ_from_the_champion_and_are_better_as_asked(related: str, discordance: float) -> None:
    models = RELATED[related](discordance, (40, 5000), np.random.default_rng(1))
    champions = models.first()
    assert champions.mean() == pytest.approx(ACCURACY, abs=0.01)
    equal = models.next(champions, np.full(40, ACCURACY), np.zeros(40))
    assert (equal != champions).mean() == pytest.approx(discordance, abs=0.01)
    assert equal.mean() == pytest.approx(ACCURACY, abs=0.01)
    better = models.next(champions, np.full(40, ACCURACY), np.full(40, 0.05))
    assert better.mean() == pytest.approx(ACCURACY + 0.05, abs=0.01)


def test_a_large_gain_is_taken_and_equal_candidates_are_not() -> None:
    gained = simulate("evidence", "5 points", "inherited", 0.1, 15, 2, 1000, seed=1)
    assert gained.first_offer is not None
    assert gained.first_offer >= 0.9
    assert gained.by_the_end == 1.0
    equal = simulate("evidence", "equal", "inherited", 0.1, 15, 2, 1000, seed=1)
    assert (equal.first_offer, equal.by_the_end) == (None, None)
    assert equal.any_false <= 0.2
    assert simulate("evidence", "equal", "inherited", 0.1, 15, 2, 1000, seed=1) == equal
