"""A sample of a round's records as MLflow traces, with pictures, and put up for people to review.

Everything has an id that follows from run, record and name, and MLflow replaces a trace, a span or an assessment of the same id. So writing
a round again after an outage adds nothing, and leaves the labels of people as they are.

A record has no times of its own: spans begin when the round did and last a millisecond each, in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loop.gallery.samples import RoundSamples, Sample
from loop.monitors.mirror.notes import markdown_text
from loop.monitors.mirror.review_queue import LABEL, put_up
from loop.monitors.mirror.steps import Step, record_steps
from loop.store.commits import RoundCommit
from policies.filtering.attribution import judges

if TYPE_CHECKING:
    from mlflow.entities import Feedback, Span, TraceInfo
    from mlflow.tracing.client import TracingClient

RoundTraces = Callable[[RoundCommit], RoundSamples]
"""The records of a round to write as traces."""

RUN_KEY, ROUND_KEY, RECORD_KEY = "vigc.run_id", "vigc.round", "vigc.record_id"
VERDICT_KEY, REASON_KEY = "vigc.verdict", "vigc.reason"
STRATUM_KEY, STRATUM_SIZE_KEY = "vigc.stratum", "vigc.stratum_size"
"""Metadata of a trace. Metadata cannot be changed in MLflow's UI; tags can."""
TRUTH = "truth"
TRACES_TAG = "vigc.traces"
"""Of a child run: how many records it shows as traces, or why none."""
_NS_PER_STEP = 1_000_000
_MAX_PREVIEW_CHARACTERS = 300
_FILTERS = "filters"
_WORLD = "world"


@dataclass(frozen=True, slots=True)
class TraceLog:
    """Where a run's traces go."""

    client: TracingClient
    experiment_id: str
    run_id: str
    """The run's own id."""
    run_name: str

    def write(self, child_id: str, commit: RoundCommit, found: RoundSamples) -> str:
        """Write the records of a round, the run `child_id` in MLflow; returns how many there are, or why there are none.

        Raises what MLflow raises, but not for a server that cannot keep traces.
        """
        if not found.samples:
            return found.problem or "the round has no records"
        made = [self._trace(child_id, commit, sample) for sample in found.samples]
        try:
            self.client.log_spans(self.experiment_id, [span for _, spans in made for span in spans])
        except NotImplementedError as error:
            return f"this MLflow cannot keep traces ({error}); they need a server of 3.4 or later with a database"
        for info, _ in made:
            self.client.start_trace(info)
        to_judge = [info.trace_id for (info, _), sample in zip(made, found.samples, strict=True) if can_be_judged(sample)]
        problem = put_up(self.client, self.experiment_id, f"{self.run_name} ({self.run_id})", to_judge)
        return f"{len(made)} of {found.num_records} records{f'; {problem}' if problem else ''}"

    def _trace(self, child_id: str, commit: RoundCommit, sample: Sample) -> tuple[TraceInfo, list[Span]]:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        record = sample.record
        trace_id = f"tr-{_digest(self.run_id, record.record_id)[:32]}"
        started_ns = round(commit.started_at * 1000) * 1_000_000
        spans = list(_spans(record_steps(sample, judges([one.filter for one in commit.filters])), trace_id, started_ns))
        info = TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(self.experiment_id),
            request_time=started_ns // 1_000_000,
            execution_duration=len(spans),
            state=TraceState.OK,
            request_preview=_preview(record.question or record.generated_text or "(no question)"),
            response_preview=_preview(record.answer or record.original_answer or "(no answer)"),
            client_request_id=f"{self.run_id}/{record.record_id}",
            trace_metadata=self._metadata(child_id, sample),
            tags={"mlflow.traceName": record.record_id, "round": str(commit.round), "verdict": sample.verdict}
            | ({"reason": record.reasons[0]} if record.reasons else {}),
            assessments=list(_assessments(sample, trace_id, round(commit.committed_at * 1000))),
        )
        return info, spans

    def _metadata(self, child_id: str, sample: Sample) -> dict[str, str]:
        record = sample.record
        return {
            "mlflow.sourceRun": child_id, RUN_KEY: self.run_id, ROUND_KEY: str(record.round), RECORD_KEY: record.record_id,
            VERDICT_KEY: sample.verdict, REASON_KEY: next(iter(record.reasons), ""),
            STRATUM_KEY: sample.stratum, STRATUM_SIZE_KEY: str(sample.stratum_size),
        }  # fmt: skip


def can_be_judged(sample: Sample) -> bool:
    """Whether a person can say if the record is right: there are a picture, a question and an answer."""
    return bool(sample.picture.uri and sample.record.question.strip() and (sample.record.answer or sample.record.original_answer).strip())


def _spans(root: Step, trace_id: str, started_ns: int) -> Iterator[Span]:
    from mlflow.entities import Span
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode

    walked = list(root.walk())
    contexts: dict[int, SpanContext] = {}
    for place, (_, step) in enumerate(walked):
        span_id = int(_digest(trace_id, str(place))[:16], 16) or 1
        contexts[id(step)] = SpanContext(int(trace_id.removeprefix("tr-"), 16), span_id, is_remote=False)
    for place, (parent, step) in enumerate(walked):
        num_inside = sum(1 for _ in step.walk())
        yield Span(
            ReadableSpan(
                name=step.name, context=contexts[id(step)], parent=None if parent is None else contexts[id(parent)],
                start_time=started_ns + place * _NS_PER_STEP, end_time=started_ns + (place + num_inside) * _NS_PER_STEP,
                attributes={key: json.dumps(value) for key, value in _attributes(step, trace_id).items()},
                status=Status(StatusCode.OK), resource=Resource.get_empty(),
            )
        )  # fmt: skip


def _attributes(step: Step, trace_id: str) -> dict[str, Any]:
    given = {"mlflow.spanInputs": step.inputs, "mlflow.spanOutputs": step.outputs}
    return {
        "mlflow.traceRequestId": trace_id, "mlflow.spanType": step.kind,
        **{name: value for name, value in given.items() if value is not None}, **step.attributes,
    }  # fmt: skip


def _assessments(sample: Sample, trace_id: str, at_ms: int) -> Iterator[Feedback]:
    """The verdict, confidence, agreement and, where it is known, the truth."""
    from mlflow.entities import AssessmentSource, Feedback

    record = sample.record
    values: list[tuple[str, Any, str, str | None]] = [
        ("verdict", sample.verdict, _FILTERS, ", ".join(record.reasons) + (f": {record.reason_detail}" if record.reason_detail else "")),
        ("confidence", sample.confidence, "corrector", "geometric mean of the probabilities of the answer's tokens"),
        ("agreement", record.agreement, "corrector", "share of the answers on other views that say the same"),
        (TRUTH, truth_of(record.answer_correct), _WORLD, "what the program of the embedded world says of the answer"),
    ]
    for name, value, source, rationale in values:
        if value is not None:
            made = Feedback(
                name=name, value=value, source=AssessmentSource("CODE", source), trace_id=trace_id, rationale=rationale or None,
                create_time_ms=at_ms, last_update_time_ms=at_ms,
            )  # fmt: skip
            made.assessment_id = f"a-{_digest(trace_id, name)[:32]}"
            yield made


def truth_of(is_correct: bool | None) -> str | None:
    """The truth in the words of people's labels."""
    return None if is_correct is None else LABEL.right if is_correct else LABEL.wrong


def _preview(text: str) -> str:
    """The start of a text. The page of a review queue shows it as Markdown, and would load images that a model wrote."""
    return markdown_text(" ".join(text[:_MAX_PREVIEW_CHARACTERS].split()))


def _digest(*parts: Sequence[str] | str) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()
