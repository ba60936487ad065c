"""HallusionBench: the three accuracies by hand, unclear answers, verdicts of a judge, the files of the release."""

from __future__ import annotations

from typing import Any

import pytest

from policies.benchmarks import BENCHMARKS, Document
from tests.policies.benchmarks.make import document, faults, score


def question(category: str, figure: int, number: int, gt: str, visual: str = "1") -> dict[str, Any]:
    name = "illusion" if category == "VD" else "chart"
    file = {"filename": f"./hallusion_bench/{category}/{name}/0_{figure}.png"} if visual != "0" else {"filename": None}
    return {
        "category": category, "subcategory": name, "visual_input": visual, "set_id": "0", "figure_id": str(figure),
        "question_id": str(number), "question": "Is it?", "gt_answer": gt, "gt_answer_details": "It is.", **file,
    }  # fmt: skip


RECORDS = [
    question("VD", 0, 0, "1"), question("VD", 0, 1, "0"), question("VD", 1, 0, "0"), question("VD", 1, 1, "1"),
    question("VS", 0, 0, "1", "0"), question("VS", 1, 0, "1", "1"), question("VS", 2, 0, "0", "2"),
]  # fmt: skip
IDS = [
    "VD_illusion_0_0_0", "VD_illusion_0_0_1", "VD_illusion_0_1_0", "VD_illusion_0_1_1",
    "VS_chart_0_0_0", "VS_chart_0_1_0", "VS_chart_0_2_0",
]  # fmt: skip
FILE = document(RECORDS)


def said(*answers: Any) -> Document:
    return document(dict(zip(IDS, answers, strict=True)))


def test_questions_pairs_and_figures_are_counted_as_by_hand() -> None:
    """Wrong: VD figure 1, question 0. Unclear without a figure counts as right, unclear about a figure as wrong."""
    found = score("hallusion-bench", [FILE], said("Yes", "No.", "Yes", "yes", "I cannot tell.", "It is hard to say.", "No"))
    assert found["aAcc"] == pytest.approx(500 / 7)
    assert found["qAcc"] == pytest.approx(100 / 3)  # VD question 1
    assert found["fAcc"] == 50  # VD figure 0 and VS figure 2; VS figure 0 is none
    assert (found["easy"], found["hard"]) == (100, pytest.approx(100 / 3))
    assert found["num_unclear"] == 2
    assert found["by_category"]["VD"] == {"aAcc": 75, "qAcc": 50, "fAcc": 50, "easy": 100, "hard": 50}
    assert found["by_category"]["VS"]["fAcc"] == 50
    assert found["by_subcategory"] == {"illusion": found["by_category"]["VD"], "chart": found["by_category"]["VS"]}


def test_a_verdict_is_taken_in_place_of_the_reading() -> None:
    own = [{**record, "model_prediction": "Yes", "gpt4v_output_gpt_check": "1"} for record in RECORDS]
    own[4]["gpt4v_output_gpt_check"] = "2"
    own[6]["gpt4v_output_gpt_check"] = 0
    for published in (False, True):
        found = score("hallusion-bench", [FILE], document(own), published=published)
        assert (found["aAcc"], found["qAcc"], found["fAcc"]) == pytest.approx((600 / 7, 200 / 3, 75))
    unjudged = [{**record, "model_prediction": "Yes"} for record in RECORDS]
    assert score("hallusion-bench", [FILE], document(unjudged))["aAcc"] == pytest.approx(400 / 7)
    benchmark = BENCHMARKS.build("hallusion-bench", {"published": True})
    with pytest.raises(ValueError, match=r"no gpt4v_output_gpt_check for 7 of 7 answers.*leave out --published"):
        benchmark.read_predictions(document(unjudged), benchmark.read([FILE]))


def test_an_empty_answer_is_wrong_and_not_unclear() -> None:
    found = score("hallusion-bench", [FILE], said("Yes", "No", "No", "Yes", "", "Yes", "No"))
    assert (found["by_category"]["VS"]["easy"], found["num_unclear"]) == (0, 0)
    found = score("hallusion-bench", [FILE], document({IDS[0]: "yes"}), allow_missing=True)
    assert (found["num_missing"], found["aAcc"]) == (6, pytest.approx(100 / 7))


def test_figures_are_named_as_in_the_release_and_some_questions_have_none() -> None:
    benchmark = BENCHMARKS.build("hallusion-bench")
    questions = benchmark.read([FILE])
    assert [one.question_id for one in questions] == IDS
    assert [one.image for one in questions[3:6]] == ["VD/illusion/0_1.png", "", "VS/chart/0_1.png"]
    assert benchmark.prompt(questions[0]) == "Is it? Please answer yes or no."


def test_files_that_do_not_fit_are_refused() -> None:
    good = document({})
    assert "gt_answer is '3'; expected 0 (no) or 1 (yes)" in faults("hallusion-bench", [document([question("VD", 0, 0, "3")])], good)[0]
    assert "category is 'VX'" in faults("hallusion-bench", [document([{**RECORDS[0], "category": "VX"}])], good)[0]
    assert "question_id is empty" in faults("hallusion-bench", [document([{**RECORDS[0], "question_id": ""}, *RECORDS[1:]])], good)[0]
    assert "appears twice" in faults("hallusion-bench", [document(RECORDS[:1] * 2)], good)[0]
    verdict = document([{**RECORDS[0], "model_prediction": "Yes", "gpt4v_output_gpt_check": "yes"}])
    assert "expected 0 (incorrect), 1 (correct) or 2 (unclear)" in faults("hallusion-bench", [FILE], verdict, allow_missing=True)[0]
    assert "expected a text" in faults("hallusion-bench", [FILE], document({IDS[0]: 1}), allow_missing=True)[0]
