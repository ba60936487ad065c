from __future__ import annotations

from collections import Counter

import pytest

from policies.instructions import vig_target
from policies.mixing import MIXING_POLICIES
from policies.records import TrainingSample
from policies.registry import UnknownPolicyError
from tests.policies.make import make_record

SEED = [TrainingSample(f"seed-{index}", (("q", "a"),)) for index in range(30)]
OLD = [make_record(index, trained_on=True) for index in range(40)]
NEW = [make_record(100 + index, trained_on=True) for index in range(10)]


def origins(samples: list[TrainingSample]) -> Counter[str]:
    ids_new = {record.record_id for record in NEW}
    return Counter("seed" if s.origin == "seed" else "new" if s.origin in ids_new else "old" for s in samples)


def test_shares_are_exact() -> None:
    samples = MIXING_POLICIES.build("replay", {"newest_share": 0.5}).mix(SEED, [OLD, NEW], 200, seed=1)
    assert origins(samples) == {"seed": 100, "old": 50, "new": 50}
    generated = [sample for sample in samples if sample.origin != "seed"]
    assert sum(sample.turns[0][0] == OLD[0].instruction for sample in generated) == 30


def test_samples_have_the_form_of_vig_and_vic() -> None:
    record = OLD[0]
    (vig,) = MIXING_POLICIES.build("replay", {"seed_share": 0, "vig_share": 1}).mix([], [[record]], 1, seed=1)
    (vic,) = MIXING_POLICIES.build("replay", {"seed_share": 0, "vig_share": 0}).mix([], [[record]], 1, seed=1)
    target = vig_target(record.question, record.answer)
    assert vig == TrainingSample(record.image_id, ((record.instruction, target),), record.record_id, "conversation")
    assert vic == TrainingSample(record.image_id, ((record.question, record.answer),), record.record_id, "conversation")


def test_nothing_comes_twice_before_all_has_come_once() -> None:
    samples = MIXING_POLICIES.build("replay").mix(SEED, [OLD, NEW], 140, seed=1)
    seeds = Counter(sample.image_id for sample in samples if sample.origin == "seed")
    generated = Counter(sample.origin for sample in samples if sample.origin != "seed")
    assert set(seeds.values()) == {2, 3}
    assert len(seeds) == 30
    assert set(generated.values()) == {1, 2}
    assert len(generated) == 50


def test_rounds_count_by_their_size_unless_told_otherwise() -> None:
    assert origins(MIXING_POLICIES.build("replay").mix(SEED, [OLD, NEW], 100, seed=1)) == {"seed": 50, "old": 40, "new": 10}
    only_new = MIXING_POLICIES.build("replay", {"accumulate": False}).mix(SEED, [OLD, NEW], 100, seed=1)
    assert origins(only_new) == {"seed": 50, "new": 50}


def test_an_empty_newest_round_leaves_its_share_to_the_older() -> None:
    assert origins(MIXING_POLICIES.build("replay", {"newest_share": 0.5}).mix(SEED, [OLD, []], 100, seed=1)) == {"seed": 50, "old": 50}


@pytest.mark.parametrize("generated", [[], [[]]])
def test_without_generated_data_all_is_seed_data(generated: list) -> None:
    assert origins(MIXING_POLICIES.build("replay").mix(SEED, generated, 40, seed=1)) == {"seed": 40}


def test_the_same_seed_gives_the_same_set() -> None:
    policy = MIXING_POLICIES.build("replay")
    assert policy.mix(SEED, [OLD, NEW], 64, seed=1) == policy.mix(SEED, [OLD, NEW], 64, seed=1)
    assert policy.mix(SEED, [OLD, NEW], 64, seed=1) != policy.mix(SEED, [OLD, NEW], 64, seed=2)


def test_wanted_seed_data_must_be_there() -> None:
    with pytest.raises(ValueError, match="seed_share 0"):
        MIXING_POLICIES.build("replay").mix([], [OLD], 10, seed=1)


@pytest.mark.parametrize(
    "options", [{"seed_share": 1.2}, {"vig_share": -0.1}, {"newest_share": 2}, {"newest_share": 0.5, "accumulate": False}]
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(UnknownPolicyError):
        MIXING_POLICIES.build("replay", options)
