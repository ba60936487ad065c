"""Generator, corrector, filter and evaluator: on a scripted engine for what they decide, on the real one for what they promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from actors.correction.corrector import Corrector
from actors.engines import EngineSpec
from actors.engines.base import Engine, FinishReason, Request, Sampling, WeightUpdate
from actors.engines.errors import EngineError
from actors.engines.transformers import TransformersEngine
from actors.engines.weights import digest_of, manifest_of, read_checkpoint
from actors.evaluator import Evaluator
from actors.filter import filter_shard
from actors.generator import Generator, GeneratorOptions
from actors.images import BadImageError, Oracle, opened
from actors.shards import Shard, ShardImages
from actors.worker import EngineWorker
from loop.setup.assembly import derived_seed
from loop.sources.folder import ImageFolder
from loop.sources.shapes.questions import description
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from loop.store.run_store import RunInfo, Store
from policies.correction.methods import NoCorrection, SentenceBySentence
from policies.decontamination.fingerprints import Fingerprints, fingerprint
from policies.decontamination.held_out import HeldOutImage, HeldOutImages
from policies.filtering.chain import FilterChain
from policies.filtering.filters import Length, Parsable
from policies.filtering.near_duplicates import TextSimilarity
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, QuestionType
from policies.records import DUPLICATE_KEYS, HeldOutQuestion, Reason, Record, from_table, to_table
from policies.scoring.answer_metrics import Exact, Judge, Likelihood, YesNo
from policies.training.selection import score_of
from tests.actors.engines.biased_model import save_biased
from tests.actors.pipeline.scripted_engine import Reply, ScriptedEngine, image_id_of

SOURCE = ShapesImages(seed=5, min_shift=0.0, max_shift=0.2, num_images=3)
IDS = SOURCE.image_ids()
PLAIN = SentenceBySentence(num_views=0, describe=False, measure_blank=False)


@dataclass(frozen=True)
class SomeBad:
    """A source some of whose images cannot be read. Counts how often each was tried."""

    bad: frozenset[str]
    opened: list[str] = field(default_factory=list)

    def image_ids(self) -> list[str]:
        return list(IDS)

    def open(self, image_id: str) -> Image.Image:
        self.opened.append(image_id)
        if image_id in self.bad:
            raise BadImageError(f"{image_id} is corrupt")
        return render(scene_of(image_id))


def tasks(image_ids: Sequence[str] = IDS, types: Sequence[QuestionType] = tuple(QuestionType)) -> tuple[GenerationTask, ...]:
    return tuple(GenerationTask(image_id, one, CANONICAL_INSTRUCTIONS[one]) for image_id in image_ids for one in types)


def shard_of(source: Any = SOURCE, image_ids: Sequence[str] = IDS, types: Sequence[QuestionType] = tuple(QuestionType)) -> Shard:
    return Shard(2, 7, derived_seed(17, 2, "shard", 7), tasks(image_ids, types), source)


def generated(engine: Engine, shard: Shard) -> list[Record]:
    return Generator(engine, GeneratorOptions(temperature=0.7, top_p=0.9, max_new_tokens=33), ShardImages(shard.source)).generate(shard)


def corrected(engine: Engine, shard: Shard, policy: Any, records: list[Record] | None = None) -> list[Record]:
    given = generated(engine, shard) if records is None else records
    return Corrector(engine, policy, ShardImages(shard.source)).correct(shard, given)


def writes(vig: Reply, vic: Reply = "The ring is red.") -> Callable[[Request], Reply]:
    """One reply to instructions, one to questions, nothing more once that has been said."""

    def reply(request: Request) -> Reply:
        if request.prompt in CANONICAL_INSTRUCTIONS.values():
            return vig
        return "" if request.answer_prefix else vic

    return reply


GOOD = "Question: What color is the ring? Answer: The ring is pink."


# ---- generator


def test_one_record_per_task_says_where_it_came_from() -> None:
    engine = ScriptedEngine(lambda request: GOOD)
    shard = shard_of()
    records = generated(engine, shard)
    assert [record.record_id for record in records] == [f"r2-s00007-{index:04d}" for index in range(9)]
    assert [(one.image_id, one.question_type, one.instruction) for one in records] == [
        (task.image_id, task.question_type, task.instruction) for task in shard.tasks
    ]
    for record in records:
        assert (record.round, record.shard, record.seed) == (2, 7, shard.seed)
        assert (record.question, record.original_answer, record.generated_text) == ("What color is the ring?", "The ring is pink.", GOOD)
        assert (record.generated_logprob, record.generated_num_tokens) == (pytest.approx(-1.2), 12)
        assert (record.generator_weight_version, record.corrector_weight_version, record.answer) == ("v1", "", "")


def test_vig_samples_as_the_options_say_from_the_shards_seed() -> None:
    engine = ScriptedEngine(lambda request: GOOD)
    shard = shard_of()
    generated(engine, shard)
    assert {sampling for _, sampling in engine.asked} == {Sampling(33, 0.7, 0.9, seed=shard.seed)}
    assert [request.prompt for request, _ in engine.asked] == [task.instruction for task in shard.tasks]


@pytest.mark.parametrize(
    "text",
    ["", "The image shows a ring.", "Question: What is it?", "Answer: A ring.", f"{GOOD} {GOOD}", "Answer: A ring. Question: What is it?"],
)
def test_what_holds_no_question_and_answer_is_kept_unparsed_and_rejected(text: str) -> None:
    records = corrected(ScriptedEngine(writes(text)), shard_of(), PLAIN)
    assert {(record.generated_text, record.question, record.original_answer, record.answer) for record in records} == {(text, "", "", "")}
    judged = FilterChain([Parsable(), Length()]).apply(records).records
    assert {record.reasons for record in judged} == {(Reason.UNPARSABLE,)}


def test_an_unreadable_image_is_set_aside_and_the_shard_goes_on() -> None:
    source = SomeBad(frozenset({IDS[1]}))
    engine = ScriptedEngine(writes(GOOD))
    records = corrected(engine, shard_of(source), SentenceBySentence(num_views=1))
    for record in records:
        if record.image_id == IDS[1]:
            assert record.reasons == (Reason.UNREADABLE_IMAGE,)
            assert (record.question, record.answer, record.view_answers, record.generated_logprob) == ("", "", (), None)
        else:
            assert record.reasons == ()
            assert (record.answer, len(record.view_answers)) == ("The ring is red.", 1)
    assert not any(image_id_of(request) == IDS[1] for request, _ in engine.asked)
    judged = FilterChain([Parsable()]).apply(records)
    assert [record.accepted for record in judged.records] == [record.image_id != IDS[1] for record in records]
    assert judged.counts[0].seen == 6  # what was set aside is not counted as seen by any filter


def test_a_shard_of_unreadable_images_alone_is_still_a_shard() -> None:
    shard = shard_of(SomeBad(frozenset(IDS)))
    records = corrected(ScriptedEngine(writes(GOOD)), shard, SentenceBySentence())
    assert len(records) == 9
    assert {record.reasons for record in records} == {(Reason.UNREADABLE_IMAGE,)}
    assert from_table(to_table(records)) == records


def test_a_tested_image_is_set_aside_before_the_model_sees_it(asking: Path) -> None:
    shown = fingerprint(SOURCE.open(IDS[1]))
    held_out = HeldOutImages((HeldOutImage("held_out.test", "a.png", "/x/a.png", frozenset()),), Fingerprints.of([shown]))
    view = GeneratorOptions(max_new_tokens=8, view="loop.sources.shapes.views:flat_background")
    worker = EngineWorker(EngineSpec("transformers", str(asking)), view, NoCorrection(), held_out)
    worker.start()
    worker.swap(update_of(asking, "r1"))
    records = from_table(worker.write_records(shard_of())[1])
    assert {record.image_id: record.reasons for record in records} == {IDS[0]: (), IDS[1]: (Reason.HELD_OUT_IMAGE,), IDS[2]: ()}
    assert {record.reason_detail for record in records} == {"", f"{IDS[1]}: the same picture as a.png of held_out.test"}
    assert all((record.generated_logprob is None) == (record.image_id == IDS[1]) for record in records)
    assert len(worker.evaluate(SOURCE, SOURCE.questions(3, 0), 4, Exact())) == 3, "a test is about its images"


def test_an_image_is_read_once_for_all_tasks_and_stages_and_a_bad_one_too() -> None:
    source = SomeBad(frozenset({IDS[0]}))
    shard, engine = shard_of(source), ScriptedEngine(writes(GOOD))
    images = ShardImages(source)
    records = Generator(engine, GeneratorOptions(), images).generate(shard)
    Corrector(engine, SentenceBySentence(), images).correct(shard, records)
    assert sorted(source.opened) == sorted(IDS)


def test_corrupt_and_oversized_photos_are_set_aside(tmp_path: Path) -> None:
    render(scene_of(IDS[0])).save(tmp_path / "good.png")
    (tmp_path / "corrupt.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "not.jpg").write_text("<html>")
    Image.new("1", (8000, 8000)).save(tmp_path / "bomb.png")  # 64 million pixels in a few kilobytes
    source = ImageFolder(tmp_path)
    shard = shard_of(source, source.image_ids(), [QuestionType.DETAIL])
    records = corrected(ScriptedEngine(writes(GOOD)), shard, SentenceBySentence())
    assert {record.image_id: record.reasons for record in records} == {
        "bomb.png": (Reason.UNREADABLE_IMAGE,),
        "corrupt.png": (Reason.UNREADABLE_IMAGE,),
        "good.png": (),
        "not.jpg": (Reason.UNREADABLE_IMAGE,),
    }


# ---- corrector


def test_the_corrected_answer_carries_its_sentences_scores_and_weight_version() -> None:
    shard = shard_of(image_ids=IDS[:1], types=[QuestionType.CONVERSATION])
    records = generated(ScriptedEngine(writes(GOOD)), shard)
    engine = ScriptedEngine(writes(GOOD, "The ring is red. So yes."), weight_version="v2")
    (record,) = corrected(engine, shard, PLAIN, records)
    assert (record.original_answer, record.answer) == ("The ring is pink.", "The ring is red. So yes.")
    assert record.sentences == ("The ring is red.", "So yes.")
    assert record.answer_logprob == pytest.approx(-0.7)
    assert sum(record.sentence_logprobs) == pytest.approx(-0.7)
    assert record.answer_num_tokens == 7
    assert (record.generator_weight_version, record.corrector_weight_version) == ("v1", "v2")
    ((request, sampling),) = engine.asked
    assert (request.prompt, request.answer_prefix, image_id_of(request)) == ("What color is the ring?", "", IDS[0])
    assert (sampling.temperature, sampling.max_new_tokens, sampling.stop) == (0.0, 64, ())


def test_an_empty_answer_is_empty_and_rejected_as_such() -> None:
    records = corrected(ScriptedEngine(writes(GOOD, "")), shard_of(), SentenceBySentence())
    assert {(record.answer, record.sentences, record.sentence_logprobs) for record in records} == {("", (), ())}
    judged = FilterChain([Parsable(), Length()]).apply(records).records
    assert {record.reasons for record in judged} == {(Reason.EMPTY,)}


def test_a_sentence_that_the_budget_cut_off_is_asked_for_again() -> None:
    def reply(request: Request) -> Reply:
        if request.prompt in CANONICAL_INSTRUCTIONS.values():
            return GOOD
        return "So yes." if request.answer_prefix == "The ring is red." else ("The ring is red. So", FinishReason.LENGTH)

    engine = ScriptedEngine(reply)
    (record,) = corrected(engine, shard_of(image_ids=IDS[:1], types=[QuestionType.COMPLEX]), PLAIN)
    assert record.sentences == ("The ring is red.", "So yes.")
    assert [request.answer_prefix for request, _ in engine.asked[1:]] == ["", "The ring is red."]
    assert record.answer_num_tokens == 6 + 3


def test_only_open_answers_are_asked_for_further_sentences() -> None:
    answers = {"A?": ["One. "], "B?": ["One. ", "Two. ", "Three. "], "C?": [""]}

    def reply(request: Request) -> Reply:
        said = len(request.answer_prefix.split())
        rest = answers[request.prompt][said:]
        return (rest[0], FinishReason.STOP) if rest else ("", FinishReason.STOP)

    engine = ScriptedEngine(reply)
    shard = shard_of(image_ids=IDS, types=[QuestionType.COMPLEX])
    records = [
        replace(record, question=question) for record, question in zip(generated(ScriptedEngine(writes(GOOD)), shard), answers, strict=True)
    ]
    engine.features_depend_on_text = True  # as a Q-Former does
    done = corrected(engine, shard, PLAIN, records)
    assert [record.sentences for record in done] == [("One.",), ("One.", "Two.", "Three."), ()]
    assert [len(record.sentence_logprobs) for record in done] == [1, 3, 0]
    assert [request.prompt for request, _ in engine.asked] == ["A?", "B?", "C?", "A?", "B?", "B?", "B?"]
    assert {sampling.stop for _, sampling in engine.asked} == {PLAIN.__class__(one_sentence_per_pass=True).stop()}


def test_records_without_a_question_or_with_a_reason_pass_through_unasked() -> None:
    shard = shard_of(image_ids=IDS[:1])
    records = generated(ScriptedEngine(writes(GOOD)), shard)
    given = [replace(records[0], question=""), records[1].rejected(Reason.USER_POLICY), records[2]]
    engine = ScriptedEngine(writes(GOOD))
    done = corrected(engine, shard, SentenceBySentence(num_views=1), given)
    assert done[:2] == given[:2]
    assert done[2].answer == "The ring is red."
    silent = ScriptedEngine(writes(GOOD))
    assert corrected(silent, shard, SentenceBySentence(), given[:2]) == given[:2]
    assert silent.asked == silent.scored == []


def test_every_view_is_another_look_and_is_counted() -> None:
    engine = ScriptedEngine(writes(GOOD))
    policy = SentenceBySentence(num_views=3, view_noise=0.1, view_shift=0.0, describe=False, measure_blank=False)
    shard = shard_of(image_ids=IDS[:2], types=[QuestionType.DETAIL])
    records = corrected(engine, shard, policy)
    assert [record.view_answers for record in records] == [("The ring is red.",) * 3] * 2
    assert [record.agreement for record in records] == [1.0, 1.0]
    views = [request for request, _ in engine.asked if request.image_key == ""]
    assert len(views) == 6
    assert len({opened(request.image).tobytes() for request in views}) == 6
    for index, image_id in enumerate(IDS[:2]):
        clean = np.asarray(render(scene_of(image_id)), dtype=float)
        noise = np.asarray(opened(views[index].image), dtype=float) - clean
        assert 8 < noise.std() < 30  # 0.1 of 255, less what was clipped


def test_the_pooled_answer_is_the_one_of_most_views_with_its_scores_and_agreement() -> None:
    replies = iter(["It is blue, I say.", "It is green.", "it is green"])

    def reply(request: Request) -> Reply:
        return next(replies) if request.image_key == "" else writes(GOOD)(request)

    engine = ScriptedEngine(reply)
    policy = SentenceBySentence(num_views=3, view_temperature=0.5, pool_views=True, describe=False, measure_blank=False)
    (record,) = corrected(engine, shard_of(image_ids=IDS[:1], types=[QuestionType.DETAIL]), policy)
    assert (record.answer, record.sentences) == ("It is green.", ("It is green.",))
    assert record.view_answers == ("The ring is red.", "It is blue, I say.", "it is green")
    assert record.agreement == pytest.approx(1 / 3)
    assert (record.answer_logprob, record.answer_num_tokens) == (pytest.approx(-0.4), 4)
    sampled = [sampling for request, sampling in engine.asked if request.image_key == ""]
    assert {sampling.temperature for sampling in sampled} == {0.5}
    assert len({sampling.seed for sampling in sampled}) == 3


def test_a_tie_of_pooled_answers_is_decided_for_the_image_itself() -> None:
    replies = iter(["It is green.", "It is blue."])
    engine = ScriptedEngine(lambda request: next(replies) if request.image_key == "" else writes(GOOD)(request))
    policy = SentenceBySentence(num_views=2, pool_views=True, describe=False, measure_blank=False)
    (record,) = corrected(engine, shard_of(image_ids=IDS[:1], types=[QuestionType.DETAIL]), policy)
    assert (record.answer, record.agreement) == ("The ring is red.", 0.0)


def test_the_transforms_of_a_view_come_after_its_noise_and_are_the_same_when_made_again() -> None:
    pytest.importorskip("torchvision", reason="transforms need torchvision: make install")
    seen = []
    for transforms in ([], [{"RandomHorizontalFlip": {"p": 1.0}}], [{"RandomHorizontalFlip": {"p": 1.0}}]):
        engine = ScriptedEngine(writes(GOOD))
        policy = SentenceBySentence(num_views=1, view_transforms=transforms, describe=False, measure_blank=False)
        corrected(engine, shard_of(image_ids=IDS[:1], types=[QuestionType.DETAIL]), policy)
        seen.append(next(np.asarray(opened(request.image)) for request, _ in engine.asked if request.image_key == ""))
    assert (seen[1] == seen[0][:, ::-1]).all()
    assert (seen[1] == seen[2]).all()


def test_a_description_is_asked_for_once_per_image() -> None:
    engine = ScriptedEngine(lambda request: GOOD if request.prompt in CANONICAL_INSTRUCTIONS.values() else f"About {image_id_of(request)}.")
    policy = SentenceBySentence(num_views=0, describe_prompt="Say what you see.", measure_blank=False)
    records = corrected(engine, shard_of(), policy)
    assert [record.view_description for record in records] == [f"About {record.image_id}." for record in records]
    assert [image_id_of(request) for request, _ in engine.asked if request.prompt == "Say what you see."] == IDS


def test_the_answer_is_scored_on_a_blank_image() -> None:
    engine = ScriptedEngine(writes(GOOD))
    records = corrected(engine, shard_of(), SentenceBySentence(num_views=0, describe=False))
    assert [record.blank_logprob for record in records] == [-6.0] * 9
    assert {(request.prompt, text, blank) for request, text, blank in engine.scored} == {
        ("What color is the ring?", "The ring is red.", True)
    }


def test_without_correction_the_own_answer_stands_with_its_confidence() -> None:
    engine = ScriptedEngine(writes(GOOD))
    shard = shard_of()
    records = generated(engine, shard)
    asked = len(engine.asked)
    for before, after in zip(records, corrected(engine, shard, NoCorrection(), records), strict=True):
        assert (after.answer, after.sentences) == (before.original_answer, ("The ring is pink.",))
        assert (after.answer_logprob, after.answer_num_tokens) == (before.generated_logprob, before.generated_num_tokens)
        assert after.corrector_weight_version == "v1"
    assert len(engine.asked) == asked
    assert engine.scored == []


# ---- filter


@dataclass(frozen=True)
class SeesNoTruth:
    """A filter policy that fails where it is shown what is right."""

    name: str = "sees_no_truth"

    def judge(self, records: Sequence[Record]) -> list[Reason | None]:
        assert all(record.answer_correct is None and record.original_correct is None for record in records)
        return [Reason.USER_POLICY if record.question_type == QuestionType.DETAIL else None for record in records]


def table_of(shard: Shard, policy: Any = PLAIN) -> pa.Table:
    def reply(request: Request) -> Reply:
        if request.prompt in CANONICAL_INSTRUCTIONS.values():
            return "Question: Describe the image in detail. Answer: There is nothing."
        return "" if request.answer_prefix else description(scene_of(image_id_of(request)))

    return to_table(corrected(ScriptedEngine(reply), shard, policy))


SECONDS = {"generate": 1.0, "correct": 2.0}


def test_the_filter_writes_its_part_and_tells_the_driver_the_counts(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", RunInfo(run_id="run-1", config={}))
    shard = shard_of()
    with store.locked() as locked:
        chain, similarity = FilterChain([Parsable(), SeesNoTruth()]), TextSimilarity()
        done = filter_shard(chain, score_of, similarity, locked.write_part, shard, SECONDS, table_of(shard))
        receipt = locked.finished_part(2, "records-00007")
        assert receipt is not None
        records = from_table(locked.read_part(receipt))
        keys = locked.read_record_columns(receipt, (DUPLICATE_KEYS,))[DUPLICATE_KEYS]
    assert (done.part, done.num_records, done.num_accepted) == (receipt, 9, 6)
    assert receipt.extra["filters"] == [["parsable", 9, 9], ["sees_no_truth", 9, 6]]
    assert receipt.extra["seconds"] == SECONDS
    assert [record.reasons for record in records] == [(), (Reason.USER_POLICY,), ()] * 3
    assert keys.is_null().to_pylist() == [False, True, False] * 3


def test_what_is_right_is_noted_after_the_verdict_and_for_rejected_records_too() -> None:
    written: list[pa.Table] = []
    shard = shard_of()
    filter_shard(FilterChain([SeesNoTruth()]), score_of, None, lambda *part: written.append(part[2]), shard, SECONDS, table_of(shard))
    records = from_table(written[0])
    assert {(record.accepted, record.answer_correct, record.original_correct) for record in records} == {
        (True, True, False),
        (False, True, False),
    }


def test_a_source_that_knows_no_truth_leaves_it_open() -> None:
    written: list[pa.Table] = []
    shard = shard_of(SomeBad(frozenset()))
    assert not isinstance(shard.source, Oracle)
    filter_shard(FilterChain([]), score_of, None, lambda *part: written.append(part[2]), shard, SECONDS, table_of(shard))
    assert {(record.accepted, record.answer_correct, record.original_correct) for record in from_table(written[0])} == {(True, None, None)}


def test_records_without_a_question_are_not_audited() -> None:
    written: list[pa.Table] = []
    shard = shard_of()
    nothing = to_table(corrected(ScriptedEngine(writes("gibberish")), shard, PLAIN))
    done = filter_shard(FilterChain([Parsable()]), score_of, None, lambda *part: written.append(part[2]), shard, SECONDS, nothing)
    assert done.num_accepted == 0
    assert {record.answer_correct for record in from_table(written[0])} == {None}


def test_filtering_a_shard_again_writes_the_same() -> None:
    written: list[tuple[Any, ...]] = []
    shard = shard_of()
    chain, records = FilterChain([Parsable(), SeesNoTruth()]), table_of(shard)
    for _ in range(2):
        filter_shard(chain, score_of, None, lambda *part: written.append(part), shard, SECONDS, records)
    assert written[0] == written[1]


# ---- evaluator


def test_held_out_questions_are_answered_greedily_and_compared() -> None:
    questions = [HeldOutQuestion(f"q{index}", IDS[index % 3], f"Which {index}?", "The ring is red.") for index in range(6)]
    engine = ScriptedEngine(lambda request: "The  ring is\nred." if request.prompt < "Which 3?" else "The ring is red")
    source = SomeBad(frozenset())
    predictions = Evaluator(engine).evaluate(source, questions, max_new_tokens=21)
    assert [one.question_id for one in predictions] == [f"q{index}" for index in range(6)]
    assert [one.correct for one in predictions] == [True, True, True, False, False, False]
    assert {(one.weight_version, one.num_tokens) for one in predictions} == {("v1", 5)}
    assert {sampling for _, sampling in engine.asked} == {Sampling(21)}
    assert sorted(source.opened) == sorted(IDS)


def test_the_metric_of_a_set_asks_in_its_words_and_reads_its_answers() -> None:
    said = {"Is 0?": "Yes.", "Is 1?": "yes, a cat", "Is 2?": "No, there is not.", "Is 3?": "Hm."}
    questions = [HeldOutQuestion(question, IDS[0], question, "Yes") for question in said]
    engine = ScriptedEngine(lambda request: said[request.prompt.partition("\n")[0]])
    predictions = Evaluator(engine).evaluate(SomeBad(frozenset()), questions, 8, YesNo(instruction="Yes or no?"))
    assert [one.score for one in predictions] == [1.0, 1.0, 0.0, 0.0]
    assert {request.prompt.partition("\n")[2] for request, _ in engine.asked} == {"Yes or no?"}


def test_likelihood_is_of_the_reference_and_the_answer_is_kept_beside_it() -> None:
    questions = [HeldOutQuestion(f"q{index}", IDS[0], "What?", "A red ring " * index + "stands.") for index in range(3)]
    engine = ScriptedEngine(lambda request: "A cat.")
    predictions = Evaluator(engine).evaluate(SomeBad(frozenset()), questions, 8, Likelihood())
    assert [(one.answer, one.score) for one in predictions] == [("A cat.", pytest.approx(math.exp(-1.5)))] * 3
    assert [(text, blank) for _, text, blank in engine.scored] == [(question.answer, False) for question in questions]


def test_what_a_judge_is_to_score_has_no_score_yet() -> None:
    metric = Judge(endpoint="http://127.0.0.1:1/v1", model="m")
    (one,) = Evaluator(ScriptedEngine(lambda request: "A cat.")).evaluate(
        SomeBad(frozenset()), [HeldOutQuestion("q", IDS[0], "What?", "A dog.")], 8, metric
    )
    assert (one.answer, one.score, one.correct) == ("A cat.", None, False)


def test_a_held_out_image_must_be_readable() -> None:
    questions = [HeldOutQuestion("q", IDS[0], "Which?", "This one.")]
    with pytest.raises(BadImageError, match="is corrupt"):
        Evaluator(ScriptedEngine(lambda request: "")).evaluate(SomeBad(frozenset(IDS)), questions, 8)


# ---- on the real engine

CHAIN = (":", "▁There", "▁is", "▁a", "▁red", "▁ring", ".", "▁So", "▁yes", "?", "</s>")
"""Whatever it is asked, the model says: There is a red ring. So yes?"""


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_biased(tmp_path_factory.mktemp("reciting"), dict.fromkeys(CHAIN[1:], 0.0), CHAIN)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes questions and answers out of a few words."""
    words = ("▁Question", ":", "▁What", "▁is", "▁red", "?", "▁Answer", "▁There", "▁ring", ".", "</s>")
    return save_biased(tmp_path_factory.mktemp("asking"), dict.fromkeys(words, 0.0))


def question_records(shard: Shard) -> list[Record]:
    return generated(ScriptedEngine(writes(GOOD)), shard)


def test_one_pass_and_a_pass_per_sentence_give_the_same_answer(reciting: Path) -> None:
    engine, shard = TransformersEngine(reciting), shard_of()
    given = question_records(shard)
    whole = corrected(engine, shard, PLAIN, given)
    by_sentence = corrected(engine, shard, replace(PLAIN, one_sentence_per_pass=True), given)
    for record in (*whole, *by_sentence):
        assert record.sentences == ("There is a red ring.", "So yes?")
        assert record.answer == "There is a red ring. So yes?"
        assert len(record.sentence_logprobs) == 2


def test_a_shard_made_twice_gives_identical_records(asking: Path) -> None:
    shard, policy = shard_of(), SentenceBySentence(max_new_tokens=8, num_views=2)
    given = question_records(shard)
    engines = [TransformersEngine(asking, batch_size=4) for _ in range(2)]
    first, second = (to_table(generated(engine, shard)) for engine in engines)
    assert first.equals(second)
    assert len({record.generated_text for record in from_table(first)}) == 9
    first_answers, second_answers = (to_table(corrected(engine, shard, policy, given)) for engine in engines)
    assert first_answers.equals(second_answers)
    assert all(len(record.view_answers) == 2 and record.blank_logprob is not None for record in from_table(first_answers))
    other = Shard(2, 8, shard.seed + 1, shard.tasks, shard.source)
    assert to_table(generated(engines[0], other))["generated_text"] != first["generated_text"]


def worker_of(model: Path) -> EngineWorker:
    return EngineWorker(EngineSpec("transformers", str(model)), GeneratorOptions(max_new_tokens=12), SentenceBySentence(max_new_tokens=8))


def update_of(model: Path, version: str) -> WeightUpdate:
    tensors = read_checkpoint(model)
    return WeightUpdate(version, digest_of(tensors), manifest_of(tensors), checkpoint=model)


def test_a_worker_serves_only_after_a_completed_swap(asking: Path) -> None:
    worker = worker_of(asking)
    assert worker.ping() == ""
    with pytest.raises(EngineError, match="has not been started"):
        worker.swap(update_of(asking, "r1"))
    worker.start()
    worker.start()  # safe to call twice
    assert worker.ping() == ""
    with pytest.raises(EngineError, match="has not completed a swap"):
        worker.write_records(shard_of())
    with pytest.raises(EngineError, match="has not completed a swap"):
        worker.evaluate(SOURCE, SOURCE.questions(1, 0), 4, Exact())
    assert worker.swap(update_of(asking, "r1")).version == "r1"
    assert worker.ping() == "r1"


def test_a_worker_takes_a_shard_through_generation_and_correction(reciting: Path, asking: Path) -> None:
    worker, shard = worker_of(asking), shard_of()
    worker.start()
    worker.swap(update_of(asking, "r1"))
    seconds, table = worker.write_records(shard)
    assert set(seconds) == {"generate", "correct"}
    assert worker.write_records(shard)[1].equals(table)
    records = from_table(table)
    assert {record.generator_weight_version for record in records} == {"r1"}
    asked = [record for record in records if record.question]
    assert {record.corrector_weight_version for record in asked} <= {"r1"}
    assert all(len(record.view_answers) == 2 and record.blank_logprob is not None for record in asked)
    worker.swap(update_of(reciting, "r2"))
    assert {one.weight_version for one in worker.evaluate(SOURCE, SOURCE.questions(2, 0), 4, Exact())} == {"r2"}


def test_records_that_were_filtered_are_corrected_again_as_if_they_had_only_been_generated(reciting: Path) -> None:
    shard, policy = shard_of(SomeBad(frozenset({IDS[1]}))), SentenceBySentence(max_new_tokens=8)
    given = question_records(shard)
    before = corrected(ScriptedEngine(writes(GOOD)), shard, replace(policy, check_premises=True), given)
    judged = FilterChain([Parsable(), Length(max_answer_words=2)]).apply(before).records
    assert {record.reasons for record in judged} == {(Reason.UNREADABLE_IMAGE,), (Reason.TOO_LONG,)}
    worker, engine = worker_of(reciting), TransformersEngine(reciting)
    worker.start()
    worker.swap(update_of(reciting, "r2"))
    engine.swap(update_of(reciting, "r2"))
    seconds, table = worker.correct_records(shard, lambda: to_table(judged))
    assert set(seconds) == {"correct"}
    assert from_table(table) == corrected(engine, shard, policy, given)
    asked = [record for record in from_table(table) if record.question]
    assert {(record.generator_weight_version, record.corrector_weight_version) for record in asked} == {("v1", "r2")}


def test_records_survive_the_way_through_a_table(reciting: Path) -> None:
    shard = shard_of()
    policy = SentenceBySentence(check_premises=True, premise_refutations=("never",))
    records = corrected(TransformersEngine(reciting), shard, policy, question_records(shard))
    assert from_table(to_table(records)) == records
    assert records[0].refuted_premises == ()
    assert [text.startswith("Is there a ring? There is a red ring.") for text in records[0].premise_answers] == [True, False]
    unanswered = [replace(record, refuted_premises=None) for record in records]
    assert from_table(to_table(unanswered)) == unanswered
    assert all(
        getattr(records[0], one.name) is not None
        for one in dataclasses.fields(Record)
        if one.name not in ("score", "original_correct", "answer_correct")
    )
