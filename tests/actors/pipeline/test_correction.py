"""Correction beyond VIGC's: grounding, premises, short answers and bad input, on the shipped model and on scripted replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from actors.correction.corrector import Corrector
from actors.engines.base import Engine, FinishReason, Request, Sampling, Score
from actors.engines.transformers import TransformersEngine
from actors.generator import Generator, GeneratorOptions
from actors.shards import Shard, ShardImages
from loop.config.run_config import EMBEDDED_MODEL
from loop.sources.shapes.questions import Premise, ask, truth
from loop.sources.shapes.scene import scene_of
from loop.sources.shapes.source import ShapesImages
from policies.correction.methods import CorrectionPolicy, Grounded, NoCorrection, SentenceBySentence
from policies.filtering.chain import FilterChain
from policies.filtering.filters import FILTER_POLICIES
from policies.generation.instructions import CANONICAL_INSTRUCTIONS, GenerationTask, KnowledgeType, QuestionType, plan_tasks
from policies.generation.knowledge import FirstWords
from policies.records import Reason, Record, from_table, to_table
from tests.actors.pipeline.scripted_engine import Reply, ScriptedEngine
from tests.policies.make import make_record

SOURCE = ShapesImages(seed=31, min_shift=0.0, max_shift=0.15, num_images=40)
IDS = SOURCE.image_ids()
ALONE = {"num_views": 0, "describe": False, "measure_blank": False}
FIND = ("Find: {phrase}, {phrase}, {phrase}, {phrase}, {phrase}, {phrase}.",)
"""What the embedded model was drilled on (`loop.sources.shapes.drills`): each phrase with what it finds, `none`, or how many."""


@pytest.fixture(scope="module")
def embedded() -> TransformersEngine:
    return TransformersEngine(EMBEDDED_MODEL)


def record_of(question: str, image_id: str = IDS[0], **changes: object) -> Record:
    unanswered = {"answer": "", "sentences": (), "sentence_gains": (), "refuted_premises": None, "view_answers": (), "agreement": None}
    return make_record(image_id=image_id, question=question, **{**unanswered, **changes})


def shard_of(tasks: Sequence[GenerationTask] = ()) -> Shard:
    return Shard(1, 0, 5, tuple(tasks), SOURCE)


def corrected(engine: Engine, policy: CorrectionPolicy, records: Sequence[Record]) -> list[Record]:
    return Corrector(engine, policy, ShardImages(SOURCE)).correct(shard_of(), list(records))


def asked_about(num: int, question_type: str, *, false_premise: bool = False) -> list[Record]:
    """Questions of the world about its first images."""
    rng = np.random.default_rng(3)
    return [record_of(ask(scene_of(one), question_type, rng, false_premise=false_premise), one) for one in IDS[:num]]


# ---- grounded


def test_grounded_answers_carry_their_gains_and_are_the_same_when_made_again(embedded: TransformersEngine) -> None:
    policy = Grounded(num_candidates=3, num_views=1, min_view_logprob=-100.0, describe=False, measure_blank=False)
    given = asked_about(12, "detail")
    records = corrected(embedded, policy, given)
    assert corrected(embedded, policy, given) == records
    assert from_table(to_table(records)) == records
    for record in records:
        assert record.sentences
        assert record.answer == " ".join(record.sentences)
        assert len(record.sentences) == len(record.sentence_gains) == len(record.sentence_logprobs)
        assert record.answer_logprob == pytest.approx(sum(record.sentence_logprobs))
        assert record.mean_logprob is not None
        assert record.mean_logprob <= 0
        assert record.agreement in (0.0, 1.0)
    gains = [gain for record in records for gain in record.sentence_gains]
    assert sum(gains) / len(gains) > 0.3  # what it says of the image, it does not say of a blank one
    right = [record.answer == truth(scene_of(record.image_id), record.question).answer for record in records]
    assert sum(right) >= 6


def test_one_candidate_is_the_plain_answer_a_sentence_at_a_time(embedded: TransformersEngine) -> None:
    given = asked_about(10, "complex")
    plain = corrected(embedded, SentenceBySentence(one_sentence_per_pass=True, **ALONE), given)
    single = corrected(embedded, Grounded(num_candidates=1, min_gain=-100.0, num_looks=0, **ALONE), given)
    assert [record.sentences for record in single] == [record.sentences for record in plain]
    for one, other in zip(single, plain, strict=True):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=0.1)


def test_a_sentence_is_scored_without_the_end_that_the_model_did_not_write(embedded: TransformersEngine) -> None:
    """The sum over the sentences, the last one with its end, is the score of the whole answer."""
    (record,) = corrected(embedded, Grounded(num_candidates=1, min_gain=-100.0, num_looks=0, **ALONE), asked_about(1, "complex"))
    image = SOURCE.open(record.image_id)
    (whole,) = embedded.score([Request(image, record.question)], [record.answer])
    assert len(record.sentences) > 1
    assert record.answer_logprob == pytest.approx(whole.logprob, abs=1e-3)
    assert record.answer_num_tokens == whole.num_tokens


def test_what_nothing_grounds_is_dropped_and_counted(embedded: TransformersEngine) -> None:
    given = asked_about(4, "detail")
    records = corrected(embedded, Grounded(num_candidates=2, min_gain=50.0, max_passes=3, **ALONE), given)
    assert [(record.answer, record.sentence_gains) for record in records] == [("", ())] * 4
    assert all(1 <= record.num_dropped_sentences <= 3 for record in records)
    judged = FilterChain([FILTER_POLICIES.build("length")]).apply(records).records
    assert {record.reasons for record in judged} == {(Reason.EMPTY,)}


class Preferring(ScriptedEngine):
    """Scores what holds a favourite word higher on the image than on a blank one."""

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        scores = super().score(requests, continuations, blank_image=blank_image)
        return [
            replace(score, logprob=-0.1 if "red" in text and not blank_image else score.logprob)
            for score, text in zip(scores, continuations, strict=True)
        ]


def test_all_candidates_of_all_open_rows_are_asked_for_and_scored_at_once() -> None:
    turns = iter(["It is blue. ", "Is it? ", "It is red. ", "It is blue. ", "It is red. ", "It is red. ", "", "", "", "", "", ""])
    engine = Preferring(lambda request: next(turns))
    policy = Grounded(num_candidates=3, **ALONE)
    records = corrected(engine, policy, [record_of("A?"), record_of("B?", IDS[1])])
    assert [record.sentences for record in records] == [("It is red.",), ("It is red.",)]
    assert Counter(request.prompt for request, _ in engine.asked) == {"A?": 6, "B?": 6}
    assert Counter(sampling.temperature for _, sampling in engine.asked) == {0.0: 4, 1.0: 8}
    assert {request.answer_prefix for request, _ in engine.asked} == {"", "It is red."}
    assert Counter(blank for _, text, blank in engine.scored if text) == {
        False: 8,
        True: 4,
    }  # distinct ones only, the best on two more views


# ---- premises


def test_most_false_premises_are_refuted_and_few_true_ones(embedded: TransformersEngine) -> None:
    policy = SentenceBySentence(check_premises=True, premise_questions=FIND, **ALONE)
    refuted = {}
    for false_premise in (True, False):
        given = [*asked_about(40, "conversation", false_premise=false_premise), *asked_about(40, "complex", false_premise=false_premise)]
        wanted = Premise.FALSE if false_premise else Premise.TRUE
        given = [one for one in given if truth(scene_of(one.image_id), one.question).premise is wanted and "the " in one.question]
        records = corrected(embedded, policy, given)
        refuted[false_premise] = sum(bool(record.refuted_premises) for record in records) / len(records)
        for record in records:
            assert (record.answer == "") is bool(record.refuted_premises)
            assert len(record.premise_answers) <= 2
    assert refuted[True] > 0.7
    assert refuted[False] < 0.1


def in_the_dark(request: Request) -> Reply:
    if request.prompt.startswith(("Is there", "How many")):
        return "No." if "green" in request.prompt else "Yes, 1."
    return "So it is."


def test_a_refuted_premise_is_not_answered_and_is_counted_as_its_own_stage() -> None:
    engine = ScriptedEngine(in_the_dark)
    questions = ["Where is the green ring?", "Where is the red ring?", "How large is the green ring?", "How many rings are there?"]
    records = corrected(engine, SentenceBySentence(check_premises=True), [record_of(question) for question in questions])
    assert [record.refuted_premises for record in records] == [("green ring",), (), ("green ring",), ()]
    assert [record.answer for record in records] == ["", "So it is.", "", "Yes, 1."]
    assert records[0].premise_answers == ("Is there a green ring? No.", "How many green rings are there? No.")
    assert records[3].premise_answers == ()
    prompts = Counter(request.prompt for request, _ in engine.asked)
    assert prompts["Is there a green ring?"] == 1  # named twice about one image
    assert prompts["Where is the green ring?"] == 0
    result = FilterChain([FILTER_POLICIES.build("premise"), FILTER_POLICIES.build("length", {"min_question_words": 1})]).apply(records)
    assert [record.reasons for record in result.records] == [(Reason.FALSE_PREMISE,), (), (Reason.FALSE_PREMISE,), ()]
    assert result.counts == [("premise", 4, 2), ("length", 2, 2)]


def test_unchecked_premises_are_unknown_and_none_can_check_too() -> None:
    (record,) = corrected(ScriptedEngine(in_the_dark), SentenceBySentence(), [record_of("Where is the green ring?")])
    assert (record.refuted_premises, record.premise_answers) == (None, ())
    (record,) = corrected(ScriptedEngine(in_the_dark), NoCorrection(check_premises=True), [record_of("Where is the green ring?")])
    assert record.refuted_premises == ("green ring",)


# ---- knowledge questions


def test_a_knowledge_question_begins_with_its_drawn_word_and_is_answered_shortly() -> None:
    def reply(request: Request) -> Reply:
        if request.prompt == CANONICAL_INSTRUCTIONS[KnowledgeType.OKVQA]:
            return "sport is it? Answer: tennis"
        return next(answers)

    answers = iter(["Tennis", "golf", "tennis.", "", "golf"])
    words = FirstWords((("Which", 1),))
    tasks = plan_tasks(IDS[:1], {KnowledgeType.OKVQA: 1.0}, 1, 0, first_word=words.draw)
    engine = ScriptedEngine(reply)
    images = ShardImages(SOURCE)
    records = Generator(engine, GeneratorOptions(), images).generate(shard_of(tasks))
    assert [(one.question, one.original_answer) for one in records] == [("Which sport is it?", "tennis")]
    assert records[0].generated_text == "Question: Which sport is it? Answer: tennis"
    assert engine.asked[0][0].answer_prefix == "Question: Which"
    (record,) = Corrector(engine, SentenceBySentence(**ALONE), images).correct(shard_of(), records)
    assert {request.prompt for request, _ in engine.asked[1:6]} == {"Question: Which sport is it? Short answer:"}
    assert [sampling.temperature for _, sampling in engine.asked[1:6]] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert set(record.short_answers) == {"Tennis", "golf"}
    assert record.answer == record.short_answers[0]
    assert record.short_answer_weights == pytest.approx((74.08, 74.08), abs=0.01)  # exp(-0.1 a token) cubed


def test_the_embedded_model_is_taken_through_knowledge_questions_among_others(embedded: TransformersEngine) -> None:
    mix = {KnowledgeType.AOKVQA: 1.0, QuestionType.CONVERSATION: 1.0}
    tasks = plan_tasks(IDS[:6], mix, 2, 0, first_word=FirstWords((("What", 3), ("How", 1))).draw)
    images = ShardImages(SOURCE)
    records = Generator(embedded, GeneratorOptions(), images).generate(shard_of(tasks))
    begun = [record for record in records if record.question_type == KnowledgeType.AOKVQA]
    assert {record.generated_text.split()[1] for record in begun} <= {"What", "How"}
    for policy in (SentenceBySentence(num_views=0), Grounded(num_candidates=2, num_views=0, num_looks=0)):
        done = Corrector(embedded, policy, images).correct(shard_of(tasks), records)
        assert [record.record_id for record in done] == [record.record_id for record in records]
        assert from_table(to_table(done)) == done
        for record in done:
            is_short = record.question_type == KnowledgeType.AOKVQA and bool(record.question)
            assert bool(record.short_answers) is is_short
            assert list(record.short_answer_weights) == sorted(record.short_answer_weights, reverse=True)
            assert all(0 < weight <= 100 for weight in record.short_answer_weights)


# ---- bad input

POLICIES = [SentenceBySentence(), SentenceBySentence(one_sentence_per_pass=True), Grounded(num_candidates=2, num_looks=0)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_question_of_two_thousand_words_is_rejected_unasked(policy: CorrectionPolicy) -> None:
    engine = ScriptedEngine(lambda request: "So.")
    (record,) = corrected(engine, policy, [record_of("the ring " * 1_000)])
    assert record.reasons == (Reason.TOO_LONG,)
    assert engine.asked == engine.scored == []
    (allowed,) = corrected(engine, replace(policy, max_question_words=2_000), [record_of("the ring " * 1_000)])
    assert (allowed.reasons, allowed.answer) == ((), "So.")


@pytest.mark.parametrize("policy", POLICIES)
def test_text_of_other_scripts_and_nothing_at_all_get_through_the_real_engine(
    embedded: TransformersEngine, policy: CorrectionPolicy
) -> None:
    questions = ["红色的圆在哪里？", "أين الدائرة الحمراء؟", "?", "🙂", "\u200b"]  # noqa: RUF001
    records = corrected(embedded, replace(policy, check_premises=True), [record_of(question) for question in questions])
    assert [record.question for record in records] == questions
    assert from_table(to_table(records)) == records


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reply", ["", " ", "\n\n"])
def test_an_empty_answer_is_empty(policy: CorrectionPolicy, reply: str) -> None:
    (record,) = corrected(ScriptedEngine(lambda request: reply), policy, [record_of("Why is it so?")])
    assert (record.answer, record.sentences, record.num_dropped_sentences) == ("", (), 0)


@pytest.mark.parametrize(("finish", "answer"), [(FinishReason.STOP, "red ring red ring"), (FinishReason.LENGTH, "")])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_without_a_sentence_end_stands_when_the_model_ended(policy: CorrectionPolicy, finish: FinishReason, answer: str) -> None:
    engine = ScriptedEngine(lambda request: ("red ring red ring", finish))
    (record,) = corrected(engine, policy, [record_of("Why is it so?")])
    assert record.answer == answer


def looping(cycle: int, *, at_once: bool) -> Callable[[Request], Reply]:
    """Says the same sentences for ever, one a pass or until the token budget ends."""

    def reply(request: Request) -> Reply:
        said = request.answer_prefix.count(".")
        following = [f"Number {(said + ahead) % cycle}." for ahead in range(30 if at_once else 1)]
        return " ".join([*following, ""]), FinishReason.LENGTH if at_once else FinishReason.STOP

    return reply


@pytest.mark.parametrize("cycle", [1, 2, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_that_repeats_itself_for_ever_ends_at_its_first_repetition(policy: CorrectionPolicy, cycle: int) -> None:
    engine = ScriptedEngine(looping(cycle, at_once=not policy_stops(policy)))
    patient = (
        replace(policy, max_passes=1_000, min_gain=-100.0, num_looks=0) if isinstance(policy, Grounded) else replace(policy, **PATIENT)
    )
    (record,) = corrected(engine, replace(patient, **ALONE), [record_of("Why is it so?")])
    assert record.sentences == tuple(f"Number {number}." for number in range(cycle))
    assert len(engine.asked) <= (cycle + 1) * 2


PATIENT = {"max_passes": 1_000}


def policy_stops(policy: CorrectionPolicy) -> bool:
    return isinstance(policy, Grounded | SentenceBySentence) and bool(policy.stop())


def test_an_answer_that_never_ends_is_bounded_by_its_passes() -> None:
    numbers = iter(range(10_000))
    engine = ScriptedEngine(lambda request: f"Number {next(numbers)}. ")
    (record,) = corrected(
        engine, Grounded(num_candidates=2, max_passes=5, min_gain=-100.0, num_looks=0, **ALONE), [record_of("Why is it so?")]
    )
    assert len(record.sentences) == 5
    assert len(engine.asked) == 10
    assert {sampling.max_new_tokens for _, sampling in engine.asked} == {Sampling().max_new_tokens}
