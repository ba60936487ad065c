"""Predictions that are not what they must be are refused, each fault with its place; nothing is scored as zero without a word."""

from __future__ import annotations

from typing import Any

import pytest

from policies.benchmarks import BenchmarkDataError, parse_document
from policies.benchmarks.documents import MAX_FINDINGS
from tests.policies.benchmarks.make import document, faults, lines, score

DATA = lines(*({"question_id": i, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"} for i in (1, 2, 3)), name="pope.jsonl")


def answered(**answers: Any) -> list[dict[str, Any]]:
    return [{"question_id": int(key[1:]), "answer": value} for key, value in answers.items()]


def test_good_predictions_are_scored() -> None:
    assert score("pope", [DATA], lines(*answered(q1="yes", q2="yes", q3="no")))["accuracy"] == pytest.approx(200 / 3)


def test_unknown_questions_are_named() -> None:
    found = faults("pope", [DATA], lines(*answered(q1="yes", q2="yes", q3="no", q9="no")))
    assert found == ["predictions.jsonl, line 4: question_id '9' is not in the data; is this its file?"]


def test_missing_questions_are_named_or_counted_as_wrong() -> None:
    (found,) = faults("pope", [DATA], lines(*answered(q2="yes")))
    assert found == (
        "predictions.jsonl has no prediction for 2 of 3 questions (1, 3); predict them, or count them as wrong with --allow-missing"
    )
    scored = score("pope", [DATA], lines(*answered(q2="yes")), allow_missing=True)
    assert (scored["accuracy"], scored["recall"], scored["num_missing"], scored["num_unparsable"]) == (100 / 3, 100 / 3, 2, 0)


def test_no_known_question_at_all_is_a_fault_even_where_some_may_be_missing() -> None:
    assert "holds no prediction for any question of the data" in faults("pope", [DATA], document({}), allow_missing=True)[0]


def test_duplicates_are_named_with_their_first_place() -> None:
    found = faults("pope", [DATA], lines(*answered(q1="yes", q2="yes", q3="no"), {"question_id": "2", "answer": "no"}))
    assert found == ["predictions.jsonl, line 4: question_id 2 appears twice, first at line 2; expected it once"]
    with pytest.raises(BenchmarkDataError, match="the key '1' appears twice in one object"):
        parse_document("p.json", b'{"1": "yes", "1": "no"}')


def test_other_field_names_are_named() -> None:
    found = faults("pope", [DATA], lines({"question_id": 1, "text": "yes"}, {"id": 2, "answer": "no"}, *answered(q3="no")))
    assert found[0] == "predictions.jsonl, line 1: no field 'answer' among ['question_id', 'text']; expected question_id and answer"
    assert found[1] == "predictions.jsonl, line 2: no field 'question_id' among ['answer', 'id']; expected question_id and answer"


@pytest.mark.parametrize(
    ("answer", "kind"), [(5, "a number"), (None, "null"), (["yes"], "a list"), (True, "true or false"), ({}, "an object")]
)
def test_answers_that_are_no_text_are_named(answer: object, kind: str) -> None:
    found = faults("pope", [DATA], document({"1": "yes", "2": answer, "3": "no"}, "p.json"))
    assert found == [f"p.json, question_id 2: the answer is {answer!r} ({kind}); expected a text"]


def test_an_answer_that_a_table_lacks_is_one_that_cannot_be_read() -> None:
    found = score("pope", [DATA], parse_document("p.json", b'{"1": NaN, "2": "nan", "3": ""}'))
    assert (found["accuracy"], found["num_unparsable"]) == (0, 3)


@pytest.mark.parametrize("one", [5, "yes", None, [1]])
def test_records_that_are_no_object_are_named(one: object) -> None:
    found = faults("pope", [DATA], lines(*answered(q1="yes", q2="no", q3="no"), one))
    assert found == [f"predictions.jsonl, line 4: {one!r}; expected an object with question_id and answer"]


def test_broken_lines_are_named() -> None:
    with pytest.raises(BenchmarkDataError) as error:
        parse_document("p.jsonl", b'{"question_id": 1, "answer": "yes"}\n\n{"question_id": 2,\nnull\n')
    assert error.value.findings == ["p.jsonl, line 3: not JSON (Expecting property name enclosed in double quotes): '{\"question_id\": 2,'"]


def test_json_lines_are_known_without_their_ending_and_broken_json_by_its_line() -> None:
    assert parse_document("p.json", b'{"a": 1}\n{"a": 2}').entries == (("line 1", {"a": 1}), ("line 2", {"a": 2}))
    with pytest.raises(BenchmarkDataError, match=r"p\.json, line 2: not JSON \(Expecting value at column 5\)"):
        parse_document("p.json", b'{"a": 1,\n"b":}')
    with pytest.raises(BenchmarkDataError, match=r"p\.json is not valid UTF-8 text: invalid start byte at byte 2"):
        parse_document("p.json", b'{"\xff": 1}')


def test_an_error_names_findings_up_to_a_bound_and_counts_the_rest() -> None:
    shown = str(BenchmarkDataError([f"fault {index}" for index in range(MAX_FINDINGS + 7)])).split("\n")
    assert len(shown) == MAX_FINDINGS + 1
    assert shown[-1] == "and 7 more like these"


def test_one_prediction_may_stand_alone_in_a_json_file() -> None:
    data = lines({"question_id": 1, "text": "?", "label": "no"}, name="pope.jsonl")
    assert score("pope", [data], document({"question_id": 1, "answer": "no"}))["accuracy"] == 100
