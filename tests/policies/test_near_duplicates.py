"""The search for near duplicates against a comparison of all pairs, and what it does about templates."""

from __future__ import annotations

import hashlib
import random
from itertools import combinations

import numpy as np
import pytest

from policies.filtering.near_duplicates import MOST_NEIGHBOURS, DuplicateSearch, ShingleSets, TextKeys, TextSimilarity
from policies.filtering.stored_keys import keys_of, with_keys
from policies.records import DUPLICATE_KEYS, Reason, RecordSchemaError, columns_of, from_table, to_table
from tests.policies.make import make_record

WORDS = [f"word{number}" for number in range(300)]
ANYWHERE = 0


def variants(num: int, seed: int = 3) -> list[str]:
    """Texts of 8 to 40 words, most of them changed in up to four words from another one."""
    draw, texts = random.Random(seed), list[str]()
    while len(texts) < num:
        words = texts[draw.randrange(len(texts))].split() if texts and draw.random() < 0.7 else draw.choices(WORDS, k=draw.randint(8, 40))
        for _ in range(draw.choice((0, 1, 1, 2, 4))):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def searched(texts: list[str], threshold: float, num_known: int = 0, *, among_new: bool = True) -> DuplicateSearch:
    similarity = TextSimilarity(threshold)
    keys = TextKeys.of(similarity, [("", text) for text in texts])
    search = DuplicateSearch(keys, np.full(len(texts), ANYWHERE, dtype=np.uint64), num_known, among_new=among_new)
    search.exact()
    search.near(similarity.sets(texts), threshold)
    return search


def jaccard(one: str, other: str) -> float:
    first, second = ({" ".join(text.split()[i : i + 3]) for i in range(len(text.split()) - 2)} for text in (one, other))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 1.0])
def test_no_two_kept_texts_are_similar_and_each_rejected_one_repeats_an_earlier_one(threshold: float) -> None:
    texts = variants(160)
    search = searched(texts, threshold)
    kept = np.flatnonzero(search.is_kept).tolist()
    assert [pair for pair in combinations(kept, 2) if jaccard(texts[pair[0]], texts[pair[1]]) >= threshold] == []
    rejected = np.flatnonzero(~search.is_kept).tolist()
    assert rejected
    for row in rejected:
        assert search.repeats[row] < row
        assert jaccard(texts[search.repeats[row]], texts[row]) >= threshold


def test_similarity_of_sets_is_exact() -> None:
    texts = variants(40)
    pairs = list(combinations(range(len(texts)), 2))
    sets = TextSimilarity().sets(texts)
    for threshold in (0.5, 0.75, 1.0):
        found = sets.are_similar(*np.array(pairs).T, threshold)
        assert found.tolist() == [jaccard(texts[one], texts[other]) >= threshold for one, other in pairs]


def test_known_texts_stay_and_new_ones_are_compared_with_them_alone_where_that_is_wanted() -> None:
    text, changed = " ".join(WORDS[:60]), " ".join([*WORDS[:59], "other"])
    texts = [text, text, "something else entirely, and long enough", text, changed, changed.upper() + "!"]
    assert np.flatnonzero(searched(texts, 0.9, num_known=2).is_kept).tolist() == [0, 1, 2]
    texts = [*texts[:3], "quite new " + changed, "quite new " + changed]
    assert np.flatnonzero(searched(texts, 1.0, num_known=2, among_new=False).is_kept).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(searched(texts, 1.0, num_known=2).is_kept).tolist() == [0, 1, 2, 3]


def test_templates_cost_a_bounded_number_of_comparisons_and_hide_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, template = random.Random(1), WORDS[:60]
    texts = []
    for _ in range(1500):
        words = [*template]
        words[10], words[25], words[40] = draw.choices(WORDS, k=3)
        texts.append(" ".join(words))
    planted = draw.sample(range(1500), 60)
    texts += [texts[one] + " indeed" for one in planted]
    compared, real = list[int](), ShingleSets.are_similar
    monkeypatch.setattr(ShingleSets, "are_similar", lambda self, *args: (compared.append(len(args[0])), real(self, *args))[1])
    search = searched(texts, 0.9)
    assert sum(compared) <= len(texts) * 16 * MOST_NEIGHBOURS < len(texts) ** 2 / 2
    missed = [row for row in range(1500, 1560) if search.is_kept[row]]
    assert len(missed) <= 1
    assert search.num_partly_compared < len(texts) / 10, "few texts share most keys with a template"


def test_texts_that_share_all_keys_with_too_many_are_counted() -> None:
    similarity, num = TextSimilarity(), 3 * MOST_NEIGHBOURS
    texts = [" ".join(random.Random(number).choices(WORDS, k=30)) for number in range(num)]
    keys = TextKeys(np.arange(num, dtype=np.uint64), np.zeros((num, similarity.bands[0]), dtype=np.uint32))
    search = DuplicateSearch(keys, np.zeros(num, dtype=np.uint64))
    assert search.near(similarity.sets(texts), 0.9).tolist() == []
    assert search.num_partly_compared == num


def test_keys_are_the_same_everywhere() -> None:
    """They are stored: another value would hide duplicates of earlier rounds."""
    packed = TextKeys.of(
        TextSimilarity(), [("What is it?", "A red ring beside a small blue star."), ("Où est-il ?", "En haut à gauche.")]
    ).packed
    assert packed.shape == (2, 8 + 4 * 16)
    assert hashlib.sha256(packed.tobytes()).hexdigest() == "5daff476ff3ee5c768a403a65b4193f0df8cd6abc591d65731c0beac4ccd2703"


def test_a_part_has_the_keys_of_accepted_records() -> None:
    records = [make_record(0, accepted=True), make_record(1).rejected(Reason.EMPTY), make_record(2, answer="No.", accepted=True)]
    table = with_keys(to_table(records), records, TextSimilarity())
    assert from_table(table) == records
    assert table[DUPLICATE_KEYS].is_null().to_pylist() == [False, True, False]
    found = keys_of(columns_of(table, (DUPLICATE_KEYS,)).take([0, 2])[DUPLICATE_KEYS])
    wanted = TextKeys.of(TextSimilarity(), [(record.question, record.answer) for record in (records[0], records[2])])
    assert (found.texts == wanted.texts).all()
    assert (found.bands == wanted.bands).all()
    with pytest.raises(RecordSchemaError, match="this version reads schema"):
        columns_of(to_table(records), (DUPLICATE_KEYS,))
