from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from policies.registry import UnknownPolicyError
from policies.training.mixing import MIXING_POLICIES, Form, Mix


def table(num: int, question_type: str = "conversation", num_short_answers: int = 0) -> pa.Table:
    """Rows as mixing sees them."""
    return pa.table({"question_type": [question_type] * num, "num_short_answers": pa.array([num_short_answers] * num, pa.int32())})


SEED, OLD, NEW, NONE = table(30), table(40), table(10), table(0)


def mix(seed_samples: pa.Table, generated: list[pa.Table], num: int, seed: int = 1, **options: Any) -> Mix:
    return MIXING_POLICIES.build("replay", options).mix(seed_samples, generated, num, seed)


def sources(found: Mix) -> Counter[int]:
    return Counter(found.source.tolist())


def test_shares_are_exact() -> None:
    found = mix(SEED, [OLD, NEW], 200, newest_share=0.5)
    assert sources(found) == {0: 100, 1: 50, 2: 50}
    assert Counter(found.form.tolist()) == {Form.SEED: 100, Form.VIG: 30, Form.VIC: 70}
    assert all((form == Form.SEED) == (source == 0) for form, source in zip(found.form, found.source, strict=True))


def test_nothing_comes_twice_before_all_has_come_once() -> None:
    found = mix(SEED, [OLD, NEW], 140)
    seeds = Counter(found.row[found.source == 0].tolist())
    generated = Counter(zip(found.source[found.source > 0].tolist(), found.row[found.source > 0].tolist(), strict=True))
    assert set(seeds.values()) == {2, 3}
    assert len(seeds) == 30
    assert set(generated.values()) == {1, 2}
    assert len(generated) == 50


def test_rounds_count_by_their_size_unless_told_otherwise() -> None:
    assert sources(mix(SEED, [OLD, NEW], 100)) == {0: 50, 1: 40, 2: 10}
    assert sources(mix(SEED, [OLD, NEW], 100, accumulate=False)) == {0: 50, 2: 50}


def test_an_empty_newest_round_leaves_its_share_to_the_older() -> None:
    assert sources(mix(SEED, [OLD, NONE], 100, newest_share=0.5)) == {0: 50, 1: 50}


@pytest.mark.parametrize("generated", [[], [NONE]])
def test_without_generated_data_all_is_seed_data(generated: list[pa.Table]) -> None:
    assert sources(mix(SEED, generated, 40)) == {0: 40}


def test_the_same_seed_gives_the_same_set() -> None:
    first, again, other = (mix(SEED, [OLD, NEW], 64, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.row, again.row)
    assert np.array_equal(first.source, again.source)
    assert not np.array_equal(first.row, other.row)


def test_wanted_seed_data_must_be_there() -> None:
    with pytest.raises(ValueError, match="seed_share 0"):
        mix(NONE, [OLD], 10)


def test_types_are_drawn_by_the_square_root_of_their_size() -> None:
    sizes = {"conversation": 900, "complex": 400, "detail": 100}
    rows = pa.concat_tables([table(size, kind) for kind, size in sizes.items()])
    found = mix(rows, [rows], 240, balance="sqrt", vig_share=0.5)
    types = np.array(rows["question_type"].to_pylist())[found.row]
    for is_seed in (True, False):  # roots 30, 20 and 10: shares 1/2, 1/3 and 1/6
        assert Counter(types[(found.source == 0) == is_seed].tolist()) == {"conversation": 60, "complex": 40, "detail": 20}
    assert (found.form == Form.VIG).sum() == 60
    assert set(types[found.form == Form.VIG].tolist()) == set(sizes)
    assert len(set(found.row[found.source == 0].tolist())) == 120


def test_balance_fills_the_set_whatever_the_sizes() -> None:
    for sizes in ((1, 1, 1), (5, 2), (7, 3, 2)):
        rows = pa.concat_tables([table(size, str(kind)) for kind, size in enumerate(sizes)])
        types = np.array(rows["question_type"].to_pylist())
        for num in (0, 1, 10, 31):
            drawn = Counter(types[mix(rows, [], num, balance="sqrt", seed_share=1.0).row].tolist())
            exact = [num * size**0.5 / sum(other**0.5 for other in sizes) for size in sizes]
            assert sum(drawn.values()) == num
            assert all(abs(drawn[str(kind)] - share) < 1 for kind, share in enumerate(exact))


def test_only_questions_with_short_answers_draw_one_of_them() -> None:
    found = mix(NONE, [table(50), table(50, "okvqa", num_short_answers=2)], 100, seed_share=0.0)
    has_draw = found.draw > 0
    assert np.array_equal(has_draw, (found.source == 2) & (found.form == Form.VIC))
    assert len(set(found.draw[has_draw].tolist())) == has_draw.sum()


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
