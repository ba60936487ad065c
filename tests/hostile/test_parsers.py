"""Everything that reads what a model, a file or another process has written: a value or a named error, soon."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from loop.errors import DamagedFileError, LoopError, UserError
from loop.monitors.tracking import Mirror
from loop.monitors.tracking_process import BackgroundMirror
from loop.sources.llava_json import LlavaJsonData
from loop.sources.shapes.claims import claims_of
from loop.sources.shapes.questions import is_correct, truth
from loop.sources.shapes.scene import COLORS, POSITIONS, SHAPES, image_id, scene_of
from loop.store.documents import CheckpointReceipt, PartReceipt, seal, unseal
from loop.store.run_store import Store
from loop.store.selected import records_of
from loop.store.verifying import verify
from policies.correction.methods import Candidate, Draft, Grounded, SentenceBySentence, Step, next_sentence
from policies.correction.premises import MAX_PREMISES, named_objects, premise_questions
from policies.correction.sentences import first_sentence_end, split_sentences
from policies.generation.instructions import parse_vig, vig_target
from policies.generation.knowledge import FirstWords, ShortAnswer, count_first_words, questions_of, ranked, vic_prompt
from policies.metrics import exact_match, normalise
from policies.records import Record, RecordSchemaError, TrainingSample, from_table, to_table
from tests.hostile.fuzz import fuzzed, json_values, texts
from tests.loop.store.make_run import RUN, commit_of, records
from tests.paths import ROOT

MAX_SECONDS = 5.0
PIECES = (
    "Question:", "Answer:", "Question: ", " Answer: ", "question:", "Question :", "\n", " ", ".", "!", "?", "…", "...", "。", "\"", "”",
    ")", "Mr.",
    "e.g.", "U.S.", "No.", "1.", "J.", "etc.", "St.", "the ", "The ", "Is ", "red ", "ring", "\0", "\u202e", "\u2028", "</s>",
    "<image>", "{phrase}",
    "Short answer:", "So yes.", "So no.", "There is ", "There are ", "no ", "٣ ", "²", "12345", "at the ", *COLORS, *SHAPES, *POSITIONS,
)  # fmt: skip
model_texts = st.lists(st.sampled_from(PIECES) | texts, max_size=12).map("".join)
"""What a model may write: pieces of the forms that are looked for, in any order."""


# ---- what models write


@fuzzed(text=model_texts)
def test_a_vig_output_is_a_pair_or_nothing(text: str) -> None:
    pair = parse_vig(text)
    if pair is not None:
        assert text.count("Question:") == text.count("Answer:") == 1
        for part in (pair.question, pair.answer):
            assert part == " ".join(part.split())
            assert "Question:" not in part
            assert "Answer:" not in part
        assert parse_vig(vig_target(pair.question, pair.answer)) == pair


@fuzzed(text=model_texts, cut=st.integers(0, 200))
def test_sentences_hold_every_word_and_a_prefix_decides_for_good(text: str, cut: int) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) and sentence for sentence in sentences)
    prefix = text[:cut]
    end = first_sentence_end(prefix, final=False)
    if end is not None:
        assert 0 < end <= len(prefix)
        assert split_sentences(text)[:1] == [" ".join(prefix[:end].split())]


@fuzzed(written=st.lists(st.tuples(model_texts, st.booleans()), max_size=12), one=st.booleans())
def test_a_correction_ends_whatever_is_written(written: list[tuple[str, bool]], one: bool) -> None:
    policy, draft = SentenceBySentence(one_sentence_per_pass=one), Draft("What is it?")
    for text, ended in written:
        before = draft
        draft = policy.accept(draft, text, ended)
        assert draft.sentences[: len(before.sentences)] == before.sentences
        assert len(draft.sentences) <= policy.max_passes
        assert draft.done or len(draft.sentences) > len(before.sentences)


@fuzzed(written=st.lists(st.lists(st.tuples(model_texts, st.floats(-9, 0), st.floats(-9, 9)), max_size=4), max_size=12))
def test_a_grounded_correction_ends_whatever_is_written(written: list[list[tuple[str, float, float]]]) -> None:
    policy, draft = Grounded(), Draft("What is it?")
    for offers in written:
        steps = [(next_sentence(text, ended=False), logprob, gain) for text, logprob, gain in offers]
        candidates = [Candidate(step, logprob, gain) for step, logprob, gain in steps if isinstance(step, Step)]
        draft = policy.accept(draft, policy.best(draft, candidates))
        assert len(draft.written) <= policy.max_passes


@fuzzed(question=model_texts)
def test_the_premises_of_any_question_are_few_and_can_be_asked_about(question: str) -> None:
    phrases = named_objects(question)
    assert len(phrases) <= MAX_PREMISES
    for phrase in phrases:
        assert all(phrase in asked or phrase[:-1] in asked for asked in premise_questions(phrase, ["Is there {a phrase}?", "{phrases}"]))


@fuzzed(answers=st.lists(st.tuples(model_texts, st.floats(-1e4, 0)), max_size=6), prompt=model_texts)
def test_short_answers_are_ranked_and_first_words_counted(answers: list[tuple[str, float]], prompt: str) -> None:
    kept = ranked(ShortAnswer(text, logprob) for text, logprob in answers)
    assert len({normalise(one.text) for one in kept}) == len(kept)
    assert all(0 <= one.weight <= 100 for one in kept)
    asked = questions_of([TrainingSample("a", ((prompt, text),), question_type="okvqa") for text, _ in answers])
    assert len(asked) == len(answers)
    assert prompt in vic_prompt("okvqa", prompt)
    try:
        words = count_first_words(asked)
    except ValueError:
        return
    assert isinstance(words, FirstWords)
    assert words.draw(np.random.default_rng(0)).strip()


@fuzzed(index=st.integers(0, 50), question=model_texts, answer=model_texts)
def test_the_claims_of_any_answer_can_be_counted(index: int, question: str, answer: str) -> None:
    identifier = image_id(3, index, 0.2)
    scene = scene_of(identifier)
    claims = claims_of(scene, question, answer)
    assert 0 <= claims.num_contradicted <= claims.num_statements
    assert 0 <= claims.num_objects_not_there <= claims.num_objects
    assert claims.num_statements + claims.num_unreadable == len(split_sentences(answer))
    assert truth(scene, question) is not None
    assert is_correct(scene, question, answer) in (True, False)
    assert exact_match(answer, answer)


@pytest.mark.parametrize("piece", ["a. ", "the ", ". ", "?", "Question:", "Answer: ", "Mr. ", "\n", "。", "the red ring ", '"', "(", "٣ "])
def test_a_text_of_the_greatest_length_is_read_in_bounded_time(piece: str) -> None:
    text = piece * (32_768 // len(piece))
    started = time.process_time()
    parse_vig(text)
    split_sentences(text)
    named_objects(text)
    normalise(text)
    claims_of(scene_of(image_id(3, 1, 0.2)), text, text)
    SentenceBySentence().accept(Draft(text), text, False)
    assert time.process_time() - started < MAX_SECONDS


# ---- tables


@fuzzed(data=st.data())
def test_a_table_of_another_form_is_no_records(data: st.DataObject) -> None:
    table = to_table([Record("r1-s0-0", 1, 0, "a", "conversation", "Ask.", 3)] * 2)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, table.num_columns - 1))
        kind = data.draw(st.sampled_from(("drop", "nulls", "type", "name", "add", "metadata", "version", "order")))
        if kind == "drop" and table.num_columns > 1:
            table = table.remove_column(index)
        elif kind in ("nulls", "type"):
            field = table.schema.field(index)
            wanted = (
                field.type if kind == "nulls" else data.draw(st.sampled_from((pa.int64(), pa.binary(), pa.list_(pa.int8()), pa.null())))
            )
            table = table.set_column(index, pa.field(field.name, wanted), pa.nulls(2, wanted))
        elif kind == "name":
            names = [data.draw(texts) if place == index else name for place, name in enumerate(table.schema.names)]
            table = table.rename_columns(names)
        elif kind == "add":
            table = table.append_column(data.draw(texts), pa.nulls(2))
        elif kind == "order":
            table = table.select(list(reversed(range(table.num_columns))))
        else:
            value = data.draw(st.sampled_from((b"", b"1", b"99", b"\xff", b"2 ", b"nan")))
            table = table.replace_schema_metadata(None if kind == "metadata" else {b"vigc_record_schema": value})
    try:
        found = from_table(table)
    except RecordSchemaError:
        return
    assert from_table(to_table(found)) == found


# ---- documents


@fuzzed(
    data=st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from((b"[" * 100_000, b'{"content":' * 50_000))
)
def test_bytes_that_are_no_sealed_document_are_damaged(data: bytes) -> None:
    with pytest.raises(DamagedFileError):
        unseal("x", data)


@fuzzed(content=st.dictionaries(texts, json_values, max_size=4), place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_sealed_document_is_itself_or_damaged(content: dict[str, Any], place: int, bit: int) -> None:
    data = bytearray(seal(content))
    spelled = json.dumps(content, sort_keys=True)
    assert json.dumps(unseal("x", bytes(data)), sort_keys=True) == spelled
    data[place % len(data)] ^= 1 << bit
    try:
        assert json.dumps(unseal("x", bytes(data)), sort_keys=True) == spelled
    except DamagedFileError as error:
        assert error.path == "x"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one committed round."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with Store.create(folder, RUN).locked() as store:
        part = store.write_part(0, "records-00000", records())
        store.commit(commit_of(store, 0, [part.entry]))
    return folder


DOCUMENTS = ("run.json", "lock.json", "rounds/0000/commit.json", "rounds/0000/parts/records-00000.json")
PATHS = st.sampled_from(
    ("", ".", "..", "/etc/passwd", "../x", "a\0b", "x" * 5000, "rounds", "rounds/0000/parts/records-00000.parquet", "\udcff", "~")
)


@fuzzed(name=st.sampled_from(DOCUMENTS), data=st.data())
def test_a_document_of_a_run_that_was_changed_and_sealed_again_is_read_or_refused(finished: Path, name: str, data: st.DataObject) -> None:
    path = finished / name
    before = path.read_bytes()
    content = json.loads(before)["content"]
    for _ in range(data.draw(st.integers(1, 3))):
        target: Any = content
        if (
            isinstance(content.get("files"), list)
            and content["files"]
            and isinstance(content["files"][0], dict)
            and data.draw(st.booleans())
        ):
            target = content["files"][0]
        key = data.draw(st.sampled_from(sorted(target)) | texts)
        target[key] = data.draw(json_values | PATHS | st.sampled_from((-1, 1 << 70, 0.5, [], {}, None)))
    path.write_bytes(seal(content))
    try:
        for read in (
            lambda: Store.open(finished).read_run(),
            lambda: Store.open(finished).commits(),
            lambda: [list(records_of(Store.open(finished), commit)) for commit in Store.open(finished).commits()],
            lambda: verify(Store.open(finished)),
            lambda: Store.open(finished).finished_part(0, "records-00000"),
        ):
            try:
                read()
            except LoopError as error:
                assert str(error).strip()
    finally:
        path.write_bytes(before)
    assert verify(Store.open(finished)).ok


@fuzzed(
    name=st.sampled_from((*DOCUMENTS, "rounds/0000/parts/records-00000.parquet")),
    places=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=3),
)
def test_flipped_bits_in_a_run_are_found(finished: Path, name: str, places: list[int]) -> None:
    path = finished / name
    before = path.read_bytes()
    changed = bytearray(before)
    for place in places:
        changed[place % len(changed)] ^= 1 << (place % 8)
    path.write_bytes(changed)
    try:
        for commit in Store.open(finished).commits():
            list(records_of(Store.open(finished), commit))
    except LoopError as error:
        assert str(error).strip()
    finally:
        path.write_bytes(before)


@fuzzed(value=json_values | st.dictionaries(st.sampled_from(("path", "files", "num_bytes", "sha256", "num_rows", "extra")), json_values))
def test_a_receipt_of_any_content_is_refused(value: Any) -> None:
    for model in (PartReceipt, CheckpointReceipt):
        try:
            model.model_validate(value)
        except ValueError:
            continue


CONVERSATIONS = st.lists(
    st.dictionaries(
        st.sampled_from(("id", "image", "type", "conversations", "extra")),
        json_values | texts | st.just("a.png")
        | st.lists(st.fixed_dictionaries({"from": st.sampled_from(("human", "gpt")), "value": model_texts}), max_size=4),
        max_size=5,
    ) | json_values,
    max_size=4,
)  # fmt: skip


@fuzzed(entries=CONVERSATIONS | json_values)
def test_labelled_data_are_read_or_refused(tmp_path: Path, entries: Any) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(json.dumps(entries))
    try:
        data = LlavaJsonData(tmp_path / "data.json", tmp_path)
    except UserError as error:
        assert "data.json" in str(error)
        return
    assert len(data.training_samples(4, 0)) == 4
    assert data.questions(2, 0)


# ---- the process that mirrors


LINES = (
    b"", b"{}", b"null", b"[]", b"5", b'"x"', b"{", b"\0", b"[" * 100_000, b'{"commits": 5}', b'{"commits": [{"round": "x"}]}',
    b'{"commits": [], "folders": {}, "close": "WHAT"}',
)  # fmt: skip


def test_the_mirroring_process_answers_every_line_with_a_failure_and_ends_with_its_input(tmp_path: Path) -> None:
    mirror = Mirror(f"sqlite:///{tmp_path}/mlflow.db", "x", "run", "run-1", {})
    child = subprocess.Popen(
        [sys.executable, "-m", "loop.monitors.tracking_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(asdict(mirror)).encode() + b"\n")
    for line in LINES:
        child.stdin.write(line + b"\n")
        child.stdin.flush()
        assert set(json.loads(child.stdout.readline())) == {"failed"}
    child.stdin.close()
    assert child.wait(30) == 0
    assert child.stdout.read() == b""


REPLIES = (
    "nonsense",
    "5",
    "null",
    '["failed"]',
    '{"samples_of": 99}',
    '{"samples_of": []}',
    '{"failed": 5}',
    "[" * 100_000,
    "\\xff\\xfe",
    "",
)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda text: ascii(text)[:20])
def test_the_loop_goes_on_whatever_the_mirroring_process_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str, finished: Path
) -> None:
    (tmp_path / "reply").write_bytes(reply.encode().replace(b"\\xff\\xfe", b"\xff\xfe"))
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\nread start\nwhile read line; do cat {tmp_path}/reply; echo; done\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))
    commits = Store.open(finished).commits()
    background = BackgroundMirror(Mirror("sqlite://", "x", "run", "run-1", {}), lambda _: ([], []), lambda _: tmp_path, tmp_path / "log")
    background.log_commits(commits)
    assert background.finish("FINISHED", timeout_s=20.0) is False
    assert not background._thread.is_alive()
