"""Every metric equals its public code on real data, to 1e-9; where the default differs, it differs in what is known to be wrong there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.score import DATA, Check, checks, make_chair, make_vqa
from loop.scoring.score import score_files

real_data = pytest.mark.skipif(not (DATA / "expected").is_dir(), reason="needs ../shared/data, which is not here")

DIFFERENT_BY_DEFAULT = {
    "VQA soft accuracy", "POPE, reading yes and no", "ScienceQA, reading a letter", "LLaVA-Bench, reading scores",
    "LLaVA-Bench, texts of review_alpaca-13b_vicuna-13b", "LLaVA-Bench, texts of review_bard_vicuna-13b",
    "LLaVA-Bench, texts of review_gpt35_vicuna-13b", "LLaVA-Bench, texts of review_llama-13b_vicuna-13b",
    "CHAIR chair_i of 12 sets", "CHAIR chair_s of 12 sets", "CHAIR chair_i, 218 captions", "CHAIR chair_s, 218 captions",
}  # fmt: skip
OWN_WORDS = "our own words"


@pytest.fixture(scope="module")
def found() -> list[Check]:
    return checks(DATA)


@real_data
def test_published_metrics_equal_the_public_code(found: list[Check]) -> None:
    assert len(found) == 27
    assert [check for check in found if check.num_equal != check.num_values and OWN_WORDS not in check.metric] == []


@real_data
def test_defaults_differ_only_where_the_public_code_is_wrong(found: list[Check]) -> None:
    different = {check.metric for check in found if check.num_default != check.num_values and OWN_WORDS not in check.metric}
    assert different == DIFFERENT_BY_DEFAULT


@real_data
def test_every_caption_s_objects_equal_the_public_code_s() -> None:
    import json

    from policies.benchmarks import Question
    from policies.benchmarks.captions.chair import Chair
    from policies.benchmarks.documents import parse_document

    chair = Chair(published=True, synonyms=(DATA / "chair" / "synonyms.txt").read_text())
    images: dict[str, Question] = {
        question.question_id: question
        for question in chair.read([parse_document("g.jsonl", (DATA / "chair" / "ground_truth.jsonl").read_bytes())])
    }
    expected = json.loads((DATA / "expected" / "chair.json").read_bytes())["expected"]
    captions = [json.loads(line) for line in (DATA / "chair" / "model_captions.jsonl").read_text().splitlines()]
    for name, of in expected.items():
        given = [one for one in captions if one["set"] == name]
        for one, wanted in zip(given, of["captions"], strict=True):
            objects = chair.objects(images[str(one["image_id"])])
            scored = chair.caption(one["caption"], objects)
            assert sorted(objects) == sorted(wanted["ground_truth_objects"])
            assert [category for _, category in scored.mentions] == wanted["generated_objects"]
            assert [list(mention) for mention in scored.hallucinated] == wanted["hallucinated"]


def test_generated_data_are_scored_from_files(tmp_path: Path) -> None:
    data, predictions = make_vqa(tmp_path, 200)
    assert 0 < score_files("vqa", [data], predictions)["accuracy"] < 100
    data, predictions = make_chair(tmp_path, 20)
    assert 0 < score_files("chair", [data], predictions)["chair_i"] < 100
