"""A round with nothing to train on: it ends the run or is committed as rejected, depending on `on_empty_round`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from loop.errors import EmptyRoundError
from loop.run.contents import Run
from loop.run.models import Model
from loop.run.stages.clock import RoundClock
from loop.run.stages.evaluation import champion_predictions, mean_scores
from loop.run.stages.records import counts_of, filter_counts
from loop.run.stages.writing import RoundRecords
from loop.run.workers import Busy, Workers
from loop.store.commits import Decision, Finding, RoundCommit, RoundState
from loop.store.run_store import PartReceipt
from policies.counts import RecordCounts, rejections
from policies.records import Reason

_MAX_REASONS = 3
_REPEATS = (
    "the model repeats itself or its training data: take other images, raise generation.temperature, or compare with less "
    "(deduplication.across)"
)
_ADVICE = {
    Reason.UNPARSABLE: "the model does not write `Question: ... Answer: ...`: train it on that form first (`vigc train` with form vigc), "
    "or force the form (generation.structured true on engine vllm)",
    Reason.UNREADABLE_IMAGE: "the images cannot be read: look at them, and at the path of the image set",
    Reason.EXACT_DUPLICATE: _REPEATS,
    Reason.NEAR_DUPLICATE: _REPEATS,
    Reason.HELD_OUT_IMAGE: "the images are those of held-out or acceptance sets: take other images, or test on other ones",
    Reason.HELD_OUT_QUESTION: "the questions are those of held-out or acceptance sets: take other images, or test on other ones",
    Reason.FALSE_PREMISE: "the model refutes what its own questions take for granted: look at correction.premise_questions",
}


def commit_empty_round(
    run: Run,
    champion: Model,
    index: int,
    clock: RoundClock,
    records: RecordCounts,
    parts: Sequence[PartReceipt],
    written: RoundRecords,
    workers: Workers,
    busy_before: Busy,
) -> RoundCommit:
    """Reject a round whose part `selected`, the last of `parts`, is empty. Nothing is trained and the champion stays. `written` are its
    records, and `busy_before` says how busy the workers had been when it began.

    Raises:
        EmptyRoundError: `on_empty_round` is `stop`.
    """
    counts = counts_of(records, 0)
    reason = why_empty(counts)
    if run.config.on_empty_round == "stop":
        raise EmptyRoundError(index, reason, advice(counts), run.store.uri)
    clock.seconds["round"] = time.time() - clock.started_at
    commit = RoundCommit(
        run_id=run.run_id, round=index, state=RoundState.REJECTED, epoch=run.store.epoch, started_at=clock.started_at,
        committed_at=time.time(), champion=champion.version, champion_path=champion.path, mean_teacher=run.commits[-1].mean_teacher,
        mean_teacher_path=run.commits[-1].mean_teacher_path, counts={**counts, **written.stale},
        filters=filter_counts(parts[:-1]),
        metrics={**records.correctness, **mean_scores("", run.sets, champion_predictions(run))},
        decision=Decision(accepted=False, reason=f"no candidate was trained: {reason}"),
        stage_seconds=clock.seconds, idle=workers.idle_since(busy_before, clock.seconds["round"]),
        files=[part.entry for part in (*parts, *written.set_aside)],
        findings=[Finding(kind="empty_round", count=max(1, records.generated), message=f"{reason}; {advice(counts)}")],
        incidents=workers.take_incidents(),
    )  # fmt: skip
    run.store.commit(commit)
    return commit


def why_empty(counts: Mapping[str, int]) -> str:
    """Why a round has nothing to train on, with the main reasons for rejection."""
    if counts["accepted"]:
        return f"the selection took none of {counts['accepted']} accepted records"
    shown = ", ".join(f"{name} {count}" for name, count in _main_reasons(counts))
    return f"none of {counts['generated']} records was accepted" + (f" ({shown})" if shown else "")


def advice(counts: Mapping[str, int]) -> str:
    """What to do about it, based on the most frequent reason for rejection."""
    if counts["accepted"]:
        return "look at the options of the selection policy"
    reasons = _main_reasons(counts)
    loosen = "look at the records, and loosen the filter that rejects most of them"
    return _ADVICE.get(Reason(reasons[0][0]), loosen) if reasons and reasons[0][0] in set(Reason) else loosen


def _main_reasons(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [*rejections(counts).items()][:_MAX_REASONS]
