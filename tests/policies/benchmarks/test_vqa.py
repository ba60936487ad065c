"""Soft accuracy, its normalisation and the two forms of its data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.answers.normalise import normalise_answer, normalise_answer_m4c
from policies.benchmarks import BENCHMARKS, Document
from policies.benchmarks.vqa import soft_accuracy, soft_label_score, vqa_accuracy
from tests.policies.benchmarks.make import document, faults, lines, score

answers = st.lists(st.sampled_from(("red", "blue", "two", "2", "a dog", "dog", "Dog.")), min_size=1, max_size=10)


def annotations(*given: list[str], **fields: Any) -> Document:
    questions = [{"question_id": i, "image_id": 7, "answers": [{"answer": a} for a in of], **fields} for i, of in enumerate(given)]
    return document({"annotations": questions})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"), ("two", "2"), ("none", "0"), ("dont", "don't"), ("couldnt've", "couldn't've"), ("let's", "let's"),
        ("red/blue", "red blue"), ("red / blue", "red blue"), ("1,000 - 2", "1000 2"), ("3.5", "3.5"), ("a", ""), ("\twas\nit ", "was it"),
        ("somebody'd", "somebodyd"), ("twas", "'twas"), ("ows'at", "ows'at"),
    ],
)  # fmt: skip
def test_answers_are_normalised(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_m4c_splits_the_genitive_off_and_joins_at_commas() -> None:
    assert normalise_answer_m4c("The dog's red,white?") == "dog 's redwhite"


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_annotator_is_compared_with_the_other_nine(matches: int, expected: float) -> None:
    assert soft_accuracy("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(expected)


@given(prediction=st.sampled_from(("red", "2", "dog", "green")), given=answers)
def test_soft_accuracy_is_the_mean_over_annotators(prediction: str, given: list[str]) -> None:
    means = [min(1, (given[:i] + given[i + 1 :]).count(prediction) / 3) for i in range(len(given))]
    assert soft_accuracy(prediction, given) == pytest.approx(sum(means) / len(means))


@given(prediction=st.text(max_size=20), given=answers, published=st.booleans())
def test_accuracy_is_a_share_and_does_not_depend_on_the_annotators_order(prediction: str, given: list[str], published: bool) -> None:
    one = vqa_accuracy(prediction, given, published)
    assert 0 <= one <= 1
    assert vqa_accuracy(prediction, given[::-1], published) == one


def test_the_public_code_leaves_number_words_and_equal_answers_as_they_are() -> None:
    assert (vqa_accuracy("two", ["two"] * 10), vqa_accuracy("two", ["two"] * 10, published=True)) == (1.0, 0.0)
    assert vqa_accuracy("no way", ["no-way"] * 9 + ["yes"], published=True) == 1.0


def test_a_soft_label_is_looked_up_as_it_stands_and_then_normalised() -> None:
    labels = {"high end": 0.667, "High-End": 1.0, "low": 0.333}
    assert soft_label_score("high end", labels) == 0.667
    assert soft_label_score("the high end.", labels) == 1.0
    assert soft_label_score("the high end.", labels, published=True) == 0.0
    assert soft_label_score("middle", labels) == 0.0


@pytest.mark.parametrize(("prediction", "answer"), [
    ("Yes, there is a dog.", "yes"), ("\u6ca1\u6709\u3002", "no"), ("Answer: red", "red"), ("The answer is **red**.", "red"),
    ("It is red because of the light.", "red"), ("Red. The car is blue.", "red"), ("<think>Blue?</think>\nred", "red"),
    ("\uff32\uff45\uff44\uff01", "red"), ("There are 3", "3"),
    (r"It is \boxed{3}.", "3"), ("\u7b54\u6848\u662f\u7ea2\u8272", "\u7ea2\u8272"),
])  # fmt: skip
def test_an_answer_is_read_as_a_person_would(prediction: str, answer: str) -> None:
    assert vqa_accuracy(prediction, [answer] * 10) == 1
    assert soft_label_score(prediction, {answer: 1.0}) == 1
    assert vqa_accuracy(prediction, [answer] * 10, published=True) == soft_label_score(prediction, {answer: 1.0}, published=True) == 0


@pytest.mark.parametrize("prediction", ["I don't know", "<think>yes", "<think>yes</think>", "", "maybe", "yes or no"])
def test_what_is_no_answer_scores_nothing(prediction: str) -> None:
    assert vqa_accuracy(prediction, ["no"] * 10) == vqa_accuracy(prediction, ["yes"] * 9 + [""]) == 0


def test_answers_that_never_came_are_counted() -> None:
    data = annotations(["red"] * 10, ["red"] * 10, ["red"] * 10)
    found = score("vqa", [data], document({"0": "<think>red", "1": "", "2": "red"}))
    assert (found["accuracy"], found["num_unparsable"]) == (pytest.approx(100 / 3), 2)


def test_annotations_are_scored_by_answer_type() -> None:
    data = document({
        "annotations": [
            {"question_id": 1, "answer_type": "number", "answers": [{"answer": "two"}] * 10},
            {"question_id": 2, "answer_type": "other", "answers": [{"answer": "dog"}] * 2 + [{"answer": "cat"}] * 8},
        ]
    })  # fmt: skip
    found = score("vqa", [data], lines({"question_id": 1, "answer": "2"}, {"question_id": 2, "answer": "A dog"}))
    assert found["accuracy"] == pytest.approx(80)
    assert found["by_category"] == pytest.approx({"number": 100, "other": 60})
    assert found["num_questions"] == 2


def test_predictions_may_be_one_object_or_a_list() -> None:
    data = annotations(["red"] * 10, ["blue"] * 10)
    for predictions in (
        document({"0": "red", "1": "red"}),
        document([{"question_id": "0", "answer": "red"}, {"question_id": 1, "answer": "x"}]),
    ):
        assert score("okvqa", [data], predictions)["accuracy"] == 50


def test_a_plain_list_of_questions_and_answers_will_do() -> None:
    data = document([{"question_id": 1, "question": "?", "answers": ["red"] * 10}, {"question_id": 2, "answers": ["blue"] * 10}])
    assert score("vqa", [data], document({"1": "Red", "2": "red"}))["accuracy"] == 50


def test_texts_come_from_the_questions_file() -> None:
    from policies.benchmarks import BENCHMARKS

    vqa = BENCHMARKS.build("vqa")
    questions = document({"questions": [{"question_id": 0, "question": "What colour?"}]}, "questions.json")
    (question,) = vqa.read([questions, annotations(["red"] * 10)])
    assert vqa.prompt(question) == "What colour?\nAnswer the question using a single word or phrase."
    assert question.answers == ("red",) * 10
    assert "no text for 1 annotated questions, such as 1" in faults("vqa", [questions, annotations(["red"], ["red"])], document({}))[0]
    assert faults("vqa", [questions], document({}))[0].endswith("no answers; give the annotations file too")


def test_faults_of_annotations_are_named() -> None:
    broken = document(
        {"annotations": [{"question_id": 1, "answers": [{"answer": 5}]}, {"question_id": True}, {"question_id": 3, "answers": []}]}
    )
    found = faults("vqa", [broken], document({}))
    assert found[0].startswith("data.json, annotations 0: answers is [{'answer': 5}]; expected a list of texts, or of objects with answer")
    assert found[1].startswith("data.json, annotations 1: question_id is True (true or false); expected a text or a whole number")
    assert found[2].startswith("data.json, annotations 1: no field 'answers'")
    assert found[3].startswith("data.json, annotations 2: answers is []")
    assert faults("vqa", [document({"x": 1})], document({})) == [
        "data.json holds neither annotations, questions nor a list with soft labels"
    ]
    assert (
        "label is {'a': 2} (an object); expected scores"
        in faults("okvqa", [document([{"question_id": 1, "sent": "?", "label": {"a": 2}}])], document({}))[0]
    )


# ---- TextVQA and VizWiz


def textvqa(*answers: list[str]) -> Document:
    rows = [{"question_id": i, "image_id": "0054c91397f2fe05", "question": "What?", "answers": of} for i, of in enumerate(answers)]
    return document({"dataset_type": "val", "data": rows}, "TextVQA_0.5.1_val.json")


def test_textvqa_normalises_both_sides_as_m4c_does() -> None:
    """By hand: of ten answers three are the predicted one: 3 x min(1, 2/3) + 7 x 1, by ten. M4C removes question marks and commas."""
    data = textvqa(["Dog's, food?"] * 3 + ["cat"] * 7, ["two"] * 10)
    for published in (False, True):
        found = score("textvqa", [data], document({"0": "dog 's food", "1": "2"}), published=published)
        assert found["accuracy"] == pytest.approx(100 * (0.9 + 1) / 2)


def test_textvqa_reads_an_answer_in_a_sentence_unless_published() -> None:
    predictions = document({"0": "The answer is: exit"})
    assert score("textvqa", [textvqa(["Exit"] * 10)], predictions)["accuracy"] == 100
    assert score("textvqa", [textvqa(["Exit"] * 10)], predictions, published=True)["accuracy"] == 0


def vizwiz(**changes: Any) -> Document:
    answers = [{"answer": text, "answer_confidence": "yes"} for text in ["coke"] * 2 + ["unanswerable"] * 8]
    row = {"image": "VizWiz_val_00000001.jpg", "question": "What is it?", "answers": answers, "answer_type": "other", "answerable": 1}
    return document([{**row, **changes}], "val.json")


def test_vizwiz_questions_are_called_by_their_images() -> None:
    for predictions in (document({"VizWiz_val_00000001.jpg": "coke"}), lines({"image": "VizWiz_val_00000001.jpg", "answer": "Coke."})):
        found = score("vizwiz", [vizwiz()], predictions)
        assert found["accuracy"] == pytest.approx(60)  # 2 x 1/3 + 8 x 2/3, by ten
        assert list(found["by_category"]) == ["other"]
    benchmark = BENCHMARKS.build("vizwiz")
    [question] = benchmark.read([vizwiz()])
    assert (question.image, question.question_id) == ("VizWiz_val_00000001.jpg",) * 2
    assert "respond with 'Unanswerable'" in benchmark.prompt(question)


def test_vizwiz_s_public_code_leaves_human_answers_as_they_are() -> None:
    data = vizwiz(answers=[{"answer": "7-Up"}] * 5 + [{"answer": "7 up"}] * 5)
    predictions = document({"VizWiz_val_00000001.jpg": "7-Up"})
    assert [score("vizwiz", [data], predictions, published=way)["accuracy"] for way in (False, True)] == [100, 100]
    raw = vizwiz(answers=[{"answer": "7-Up"}] * 10)
    assert [score("vizwiz", [raw], predictions, published=way)["accuracy"] for way in (False, True)] == [100, 0]


def test_files_of_textvqa_and_vizwiz_that_do_not_fit_are_refused() -> None:
    good = document({"0": "red"})
    assert faults("textvqa", [document([])], good) == ["data.json: data is None; expected a list of objects"]
    assert "answers is []; expected a list of texts" in faults("textvqa", [textvqa([])], good)[0]
    assert "no field 'answers'" in faults("vizwiz", [document([{"image": "a.jpg", "question": "?"}])], good)[0]
    assert "answers is [{'answer_confidence': 'no'}]" in faults("vizwiz", [vizwiz(answers=[{"answer_confidence": "no"}])], good)[0]
    assert "appears twice" in faults("vizwiz", [document([{"image": "a", "question": "?", "answers": ["x"]}] * 2)], good)[0]
