from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from policies.generation.instructions import vig_target
from policies.records import TrainingSample
from policies.registry import UnknownPolicyError
from policies.training.mixing import MIXING_POLICIES
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


def test_types_are_drawn_by_the_square_root_of_their_size() -> None:
    sizes = {"conversation": 900, "complex": 400, "detail": 100}
    seed_samples = [TrainingSample(f"{kind}-{i}", (("q", "a"),), question_type=kind) for kind, size in sizes.items() for i in range(size)]
    records = [replace(OLD[0], record_id=f"{kind}-{i}", question_type=kind) for kind, size in sizes.items() for i in range(size)]
    samples = MIXING_POLICIES.build("replay", {"balance": "sqrt", "vig_share": 0.5}).mix(seed_samples, [records], 240, seed=1)
    for is_seed in (True, False):  # roots 30, 20 and 10: shares 1/2, 1/3 and 1/6
        drawn = Counter(sample.question_type for sample in samples if (sample.origin == "seed") is is_seed)
        assert drawn == {"conversation": 60, "complex": 40, "detail": 20}
    vig = [sample for sample in samples if sample.turns[0][0] == OLD[0].instruction]
    assert len(vig) == 60
    assert {sample.question_type for sample in vig} == set(sizes)
    assert len({sample.image_id for sample in samples if sample.origin == "seed"}) == 120


def test_balance_fills_the_set_whatever_the_sizes() -> None:
    policy = MIXING_POLICIES.build("replay", {"balance": "sqrt", "seed_share": 1.0})
    for sizes in ((1, 1, 1), (5, 2), (7, 3, 2)):
        types = [str(kind) for kind, size in enumerate(sizes) for _ in range(size)]
        seed_samples = [TrainingSample(f"image-{index}", (("q", "a"),), question_type=kind) for index, kind in enumerate(types)]
        for num in (0, 1, 10, 31):
            drawn = Counter(sample.question_type for sample in policy.mix(seed_samples, [], num, seed=1))
            exact = [num * size**0.5 / sum(other**0.5 for other in sizes) for size in sizes]
            assert sum(drawn.values()) == num
            assert all(abs(drawn[str(kind)] - share) < 1 for kind, share in enumerate(exact))


@pytest.mark.parametrize(
    "options",
    [
        {"seed_share": 1.2},
        {"vig_share": -0.1},
        {"newest_share": 2},
        {"newest_share": 0.5, "accumulate": False},
        {"balance": "cube"},
    ],
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(UnknownPolicyError):
        MIXING_POLICIES.build("replay", options)


def test_a_knowledge_question_is_asked_briefly_and_answered_by_weight() -> None:
    record = replace(make_record(0), question_type="okvqa", question="What drink is it?", answer="tea")
    record = replace(record, short_answers=("tea", "soup"), short_answer_weights=(60.0, 20.0))
    samples = MIXING_POLICIES.build("replay", {"seed_share": 0.0, "vig_share": 0.0}).mix([], [[record]], 400, 0)
    assert {sample.turns[0][0] for sample in samples} == {"Question: What drink is it? Short answer:"}
    answers = Counter(sample.turns[0][1] for sample in samples)
    assert set(answers) == {"tea", "soup"}
    assert 260 < answers["tea"] < 340
