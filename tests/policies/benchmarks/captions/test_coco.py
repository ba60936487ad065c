"""COCO's caption metrics: words as the public tokenizer splits them, BLEU, ROUGE-L and CIDEr-D, and the benchmark `captions`.

Values called public are of pycocoevalcap 1.2 (PTBTokenizer 3.4.1 in Java 17, then `Bleu(4)`, `Rouge()` and `Cider()`), computed once on
the captions that stand here or in ../shared/data.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.benchmarks.captions.overlap import bleu, cider_d, longest_common, rouge_l
from policies.benchmarks.captions.tokens import tokenize
from tests.paths import DATA
from tests.policies.benchmarks.make import document, faults, lines, score

REFERENCES = {
    "1": ["A man rides a brown horse on the beach.", "A person riding a horse near the ocean."],
    "2": ["Two dogs don't share a red ball.", "Dogs are playing with a ball (red)."],
    "3": ["A plate of food with broccoli and rice.", "Broccoli and rice on a white plate.", "A white plate topped with food."],
}
CAPTIONS = {
    "1": "A man riding a horse on the beach.",
    "2": "Two dogs are playing with a ball; they don't share.",
    "3": "A plate with a fork.",
}
MEASURES = ("cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l")
NO_SCORE = {"cider_d": 0, "bleu_1": 0, "bleu_2": 0, "bleu_3": 0, "bleu_4": 0, "rouge_l": 0}


def scored(references: dict[str, list[str]], captions: dict[str, str], **options: Any) -> dict[str, Any]:
    data = lines(*({"image_id": one, "captions": of} for one, of in references.items()), name="references.jsonl")
    return score("captions", [data], document(captions), **options)


def measures(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in MEASURES}


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a horse; it's the dog's!", "a man riding a horse it 's the dog 's"),
        ("They don't, can't and cannot wanna-be. I'm gonna", "they do n't ca n't and can not wanna-be i 'm gon na"),
        ('The "red" \'ball\' isn\u2019t black-and-white/blue...', "the red ball is n't black-and-white/blue"),
        ("a (very) old [sign] -- it reads: 5:30 p.m. -", "a -lrb- very -rrb- old -lsb- sign -rsb- it reads 5:30 p.m."),
        ("Mr. Smith at St. Mark's Ave. in the U.S.", "mr. smith at st. mark 's ave. in the u.s."),
        ("the player A. The miss. Miss. Bean vs. vitamin C", "the player a the miss miss. bean vs. vitamin c"),
        ("3,500.25 cups, 1/2 of $5.00 and 50% #1 5.5ft 10-foot", "3,500.25 cups 1/2 of $ 5.00 and 50 % # 1 5.5 ft 10-foot"),
        ("rock 'n' roll of the '90s, O'Brien, five o'clock, y'all", "rock 'n' roll of the '90s o'brien five o'clock y' all"),
        ("AT&T and black & white", "at&t and black & white"),
        ("**Bold** text w/ a dog w/o an emoji \U0001f600 :) here", "** bold ** text w / a dog w/o an emoji :-rrb- here"),
        ("a t-shirt , a dog .Two cats.Three end.", "a t-shirt a dog two cats.three end"),
        ("caf\u00e9 na\u00efve \u2013 \u65e5\u672c\u8a9e \u2026", "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e"),
        ("\n  ", ""),
    ],
)  # fmt: skip
def test_captions_are_split_as_the_public_tokenizer_splits_them(caption: str, words: str) -> None:
    """The words are the output of the Java program, without the public list of punctuation."""
    assert " ".join(tokenize(caption)) == words


@given(st.text(max_size=80))
def test_words_are_in_lower_case_and_hold_no_space(caption: str) -> None:
    words = tokenize(caption)
    assert all(word == word.lower() and word.split() == [word] for word in words)


def test_values_of_the_public_code() -> None:
    public = {
        "cider_d": 269.4509450994309, "bleu_1": 87.49999999635418, "bleu_2": 79.05694150068017, "bleu_3": 65.24779401633087,
        "bleu_4": 52.16948599968435, "rouge_l": 65.41869172062357,
    }  # fmt: skip
    found = scored(REFERENCES, CAPTIONS)
    assert measures(found) == pytest.approx(public, abs=1e-9)
    assert (found["num_captions"], found["num_unparsable"]) == (3, 0)
    assert measures(scored(REFERENCES, CAPTIONS, published=True)) == measures(found)


def test_bleu_by_hand() -> None:
    """Papineni et al., example 2: "the" counts as often as the reference has it most. Then the penalty on short captions."""
    the, cat = ["the"] * 7, [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    assert bleu([the], [cat])[0] == pytest.approx(2 / 7)
    assert bleu([["the", "cat"]], [cat])[:2] == pytest.approx([math.exp(1 - 6 / 2)] * 2)
    # Two images: 3 of 4 words and 1 of 2 pairs of words, of 4 and 4 words in the closest references.
    assert bleu([["a", "b"], ["a", "c"]], [[["a", "b"], ["a"] * 9], [["c", "d"]]])[:2] == pytest.approx([3 / 4, math.sqrt(3 / 8)])


def test_rouge_l_by_hand() -> None:
    """Lin 2004, section 3: the longest common subsequence of "police kill the gunman" and "police killed the gunman" has three words."""
    police = ["police", "killed", "the", "gunman"]
    assert rouge_l(["police", "kill", "the", "gunman"], [police]) == pytest.approx(3 / 4)
    assert longest_common(["the", "gunman", "kill", "police"], police) == 2
    precision, recall = 2 / 3, 2 / 2  # each from the reference that gives the most
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(["a", "b", "c"], [["a", "b"], ["x", "c"]]) == pytest.approx(expected)
    assert rouge_l([], [police]) == 0


def test_cider_d_by_hand() -> None:
    """Two images, one word each: the words are in one image of two, so all weights are equal, and only orders 1 (cosine 1) counts."""
    assert cider_d([["dog"], ["cat"]], [[["dog"]], [["bird"]]]) == pytest.approx([10 / 4, 0])
    # Four equal words: orders 1 to 4 all agree. A word repeated beyond the reference is clipped, and two bigrams more are penalised.
    same = ["a", "dog", "runs", "fast"]
    assert cider_d([same, ["cat"]], [[same], [["bird"]]])[0] == pytest.approx(10)
    [twice, _] = cider_d([["dog", "dog", "dog"], ["cat"]], [[["dog"]], [["bird"]]])
    assert twice == pytest.approx(10 / 4 * (1 / 3) * math.exp(-(2**2) / (2 * 6**2)))
    assert cider_d([["a"]], [[["a"]]]) == [0]  # one image: every word is in all of them


def test_a_caption_that_is_a_reference_scores_full_marks() -> None:
    found = scored(REFERENCES, {one: of[0] for one, of in REFERENCES.items()})
    assert [found[f"bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx([100] * 4)
    assert found["rouge_l"] == pytest.approx(100)
    assert measures(scored(REFERENCES, {one: of[0].upper() for one, of in REFERENCES.items()})) == measures(found)


@given(st.permutations(sorted(REFERENCES)))
def test_the_order_of_images_and_references_does_not_matter(order: list[str]) -> None:
    turned = scored({one: REFERENCES[one][::-1] for one in order}, {one: CAPTIONS[one] for one in order[::-1]})
    assert measures(turned) == pytest.approx(measures(scored(REFERENCES, CAPTIONS)))


def test_captions_without_words_score_nothing() -> None:
    none = scored(REFERENCES, dict.fromkeys(CAPTIONS, "<think>A dog"))
    assert measures(none) == pytest.approx(NO_SCORE, abs=1e-6)
    assert none["num_unparsable"] == 3
    behind = {one: f"<think>A cat?</think>{caption}" for one, caption in CAPTIONS.items()}
    assert measures(scored(REFERENCES, behind)) == measures(scored(REFERENCES, CAPTIONS))
    assert scored(REFERENCES, behind, published=True)["bleu_4"] < scored(REFERENCES, CAPTIONS)["bleu_4"]


def test_an_image_without_a_prediction_counts_as_a_caption_without_words() -> None:
    two = {one: CAPTIONS[one] for one in ("1", "2")}
    missing = scored(REFERENCES, two, allow_missing=True)
    assert measures(missing) == measures(scored(REFERENCES, {**two, "3": ""}))
    assert (missing["num_missing"], missing["num_unparsable"], missing["num_captions"]) == (1, 0, 3)


def coco_file() -> dict[str, Any]:
    images = [{"id": int(one), "file_name": f"{one}.jpg"} for one in REFERENCES]
    return {"images": images, "annotations": [{"image_id": int(one), "caption": text} for one, of in REFERENCES.items() for text in of]}


def test_coco_s_own_files_are_read() -> None:
    results = document([{"image_id": int(one), "caption": text} for one, text in CAPTIONS.items()], "results.json")
    assert score("captions", [document(coco_file())], results) == scored(REFERENCES, CAPTIONS)


def test_files_that_do_not_fit_are_refused() -> None:
    data, good = document(coco_file()), document(CAPTIONS)
    instances = document({"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}, "instances.json")
    assert faults("captions", [instances], good) == [
        "instances.json holds COCO's instances; give the captions file (captions_val2014.json)"
    ]
    assert "no field 'caption' among" in faults("captions", [document({"images": [], "annotations": [{"image_id": 1}]})], good)[0]
    empty = lines({"image_id": 1, "captions": []}, name="references.jsonl")
    assert faults("captions", [empty], good) == ["references.jsonl, line 1: captions is empty; expected one or more reference captions"]
    twice = document([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}])
    assert "image_id 1 appears twice" in faults("captions", [data], twice)[0]
    assert "no prediction for 2 of 3 questions" in faults("captions", [data], document({"1": "a"}))[0]
    assert "is not in the data" in faults("captions", [data], document({**CAPTIONS, "9": "a"}))[0]


@pytest.mark.skipif(not (DATA / "expected").is_dir(), reason="needs ../shared/data, which is not here")
def test_real_captions_score_as_by_the_public_code() -> None:
    """COCO's first caption of each of 70 images against the others, and 65 captions of the challenge's example file."""
    coco: dict[str, list[str]] = {}
    for one in json.loads((DATA / "coco" / "captions.json").read_bytes())["annotations"]:
        coco.setdefault(str(one["image_id"]), []).append(one["caption"])
    found = scored({one: of[1:] for one, of in coco.items()}, {one: of[0] for one, of in coco.items()})
    assert measures(found) == pytest.approx({
        "cider_d": 118.36834954136468, "bleu_1": 70.09102730810132, "bleu_2": 51.1579200057198, "bleu_3": 36.198728915439105,
        "bleu_4": 24.995193124641133, "rouge_l": 52.932859321162915,
    }, abs=1e-9)  # fmt: skip
    records = [json.loads(line) for line in (DATA / "chair" / "model_captions.jsonl").read_text().splitlines()]
    said = {str(one["image_id"]): one["caption"] for one in records if one["set"] == "coco-caption/fakecap2014"}
    truth = map(json.loads, (DATA / "chair" / "ground_truth.jsonl").read_text().splitlines())
    references = {str(one["image_id"]): one["captions"] for one in truth if str(one["image_id"]) in said}
    assert measures(scored(references, said)) == pytest.approx({
        "cider_d": 58.77953025477212, "bleu_1": 55.55833022710877, "bleu_2": 38.35051743490159, "bleu_3": 25.119828910068453,
        "bleu_4": 15.634279372488063, "rouge_l": 38.4751576939766,
    }, abs=1e-9)  # fmt: skip
