"""How a record came about, as a tree of steps: the spans of its trace in MLflow.

record            the picture, the question, the answer and the verdict
  generate        VIG: the instruction, and what the model wrote
  correct         VIC: a step for each pass over the answer and each look at the image
    premises      the objects that the question names, each asked about
    sentence 1    a corrected sentence with its log-probability and what the image adds
    blank image   the answer again, without the picture
    view 1        the answer on another view of the image
    describe      the model's own description of the image
  filter: NAME    kept, or rejected with a reason
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loop.gallery.samples import Sample, shown
from policies.filtering.attribution import Judge, rejected_by
from policies.records import Record


@dataclass(frozen=True, slots=True)
class Step:
    """A span of a trace. Inputs, outputs and attributes are JSON values."""

    name: str
    kind: str
    """MLflow's type of span."""
    inputs: Any = None
    outputs: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Step] = ()

    def walk(self) -> Iterator[tuple[Step | None, Step]]:
        """Every step with the one that it is part of, this one first."""
        yield None, self
        for step in self.steps:
            for parent, inner in step.walk():
                yield parent or self, inner


def record_steps(sample: Sample, chain: Sequence[Judge]) -> Step:
    """The steps of a record; `chain` are the filters of its round."""
    record = sample.record
    corrected = [_correct(sample)] if record.question else []
    return Step(
        "record", "CHAIN", question_message(sample), _answer(record), _identity(record),
        [_generate(record), *corrected, *_filters(record, chain)],
    )  # fmt: skip


def question_message(sample: Sample) -> dict[str, Any]:
    """The picture and the question as a chat message, which MLflow shows as such."""
    record = sample.record
    text = shown(record.question) or "(no question)"
    if sample.picture.uri:
        content = [{"type": "image_url", "image_url": {"url": sample.picture.uri}}, {"type": "text", "text": text}]
    else:
        content = [{"type": "text", "text": f"{text}\n\n(no picture: {sample.picture.problem})"}]
    return {"messages": [{"role": "user", "content": content}]}


def _answer(record: Record) -> dict[str, Any]:
    return _says(shown(record.answer or record.original_answer) or "(no answer)")


def _says(text: str) -> dict[str, Any]:
    """A chat message of the model."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def _identity(record: Record) -> dict[str, Any]:
    values = {
        "record_id": record.record_id, "image_id": record.image_id, "question_type": record.question_type, "accepted": record.accepted,
        "reasons": list(record.reasons), "reason_detail": record.reason_detail, "trained_on": record.trained_on, "score": record.score,
    }  # fmt: skip
    return _known(values)


def _generate(record: Record) -> Step:
    measured = {
        "logprob": record.generated_logprob, "num_tokens": record.generated_num_tokens, "weights": record.generator_weight_version,
        "seed": record.seed,
    }  # fmt: skip
    written = {"question": shown(record.question), "answer": shown(record.original_answer), "text": shown(record.generated_text)}
    return Step("generate", "LLM", {"instruction": shown(record.instruction)}, _known(written), _known(measured))


def _correct(sample: Sample) -> Step:
    record = sample.record
    measured = {
        "logprob": record.answer_logprob, "num_tokens": record.answer_num_tokens, "weights": record.corrector_weight_version,
        "num_dropped_sentences": record.num_dropped_sentences, "num_changed_words": sample.num_changed_words,
        "agreement": record.agreement,
    }  # fmt: skip
    outputs: dict[str, Any] = {"answer": shown(record.answer)}
    if record.short_answers:
        outputs["short_answers"] = dict(zip(record.short_answers, record.short_answer_weights, strict=False))
    inputs = {"question": shown(record.question), "answer": shown(record.original_answer)}
    return Step("correct", "CHAIN", inputs, outputs, _known(measured), list(_passes(sample)))


def _passes(sample: Sample) -> Iterator[Step]:
    """The passes over the answer, and the looks at the image."""
    record = sample.record
    question = {"question": shown(record.question)}
    if record.premise_answers or record.refuted_premises is not None:
        found = {"replies": list(record.premise_answers), "refuted": list(record.refuted_premises or ())}
        yield Step("premises", "LLM", question, found)
    for number, sentence in enumerate(sample.sentences, start=1):
        measured = {"logprob": sentence.logprob, "probability": sentence.probability, "gain_nats_per_token": sentence.gain}
        yield Step(f"sentence {number}", "LLM", question, {"sentence": sentence.text}, _known(measured))
    if record.blank_logprob is not None:
        yield Step("blank image", "LLM", {"answer": shown(record.answer)}, {"logprob": record.blank_logprob})
    for number, answer in enumerate(record.view_answers, start=1):
        yield Step(f"view {number}", "LLM", question, {"answer": shown(answer)})
    if record.view_description:
        yield Step("describe", "LLM", None, {"description": shown(record.view_description)})
    if sample.earlier is not None:
        earlier = {"answer": shown(sample.earlier.answer)}
        yield Step("previous champion", "LLM", question, earlier, {"weights": sample.earlier.weight_version})


def _filters(record: Record, chain: Sequence[Judge]) -> Iterator[Step]:
    """The filters that saw the record."""
    if record.accepted:
        yield from (Step(f"filter: {judge.name}", "GUARDRAIL", None, {"verdict": "kept"}) for judge in chain)
        return
    reason = next(iter(record.reasons), "")
    place = rejected_by(reason, chain)
    yield from (Step(f"filter: {judge.name}", "GUARDRAIL", None, {"verdict": "kept"}) for judge in chain[: max(0, place)])
    name = f"filter: {chain[place].name}" if place >= 0 else "set aside"
    rejected = {"verdict": "rejected", "reasons": list(record.reasons), "detail": record.reason_detail}
    yield Step(name, "GUARDRAIL", None, _known(rejected))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is neither unknown nor empty."""
    return {name: value for name, value in values.items() if value is not None and value not in ("", [])}
