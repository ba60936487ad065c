"""A run of two rounds that no model wrote: records about images of the embedded world, of every verdict, with what a run measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.config.run_config import RunConfig, parse_config
from loop.sources.shapes.source import ShapesImages
from loop.store.commits import Decision, FileEntry, FilterCount, RoundCommit, RoundState
from loop.store.run_store import RunInfo, Store
from loop.store.selected import SELECTED, accepted_columns, index_of
from policies.records import Prediction, Reason, Record, to_table
from policies.scoring.predictions import to_table as predictions_table
from tests.loop.run.small_run import CONFIG

NUM_RECORDS = 60
NUM_QUESTIONS = 40
PAYLOAD = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"></script>"
    "<a href=\"javascript:document.title = 'owned'\">click</a> {{ 7 * 7 }} \" onfocus=\"document.title = 'owned'\" ' &lt;b&gt;"
)
"""What a hostile model might write."""


def config_of(**changes: Any) -> RunConfig:
    """The config of the small run with changes."""
    return parse_config({**CONFIG, **changes})


def records(round: int, num: int = NUM_RECORDS, seed: int = 101) -> list[Record]:
    """Records about images of the small run. Every third is rejected, every fourth corrected; the confidence rises with the index."""
    source = ShapesImages(seed, 0.1, 0.3, 40)
    return [_record(round, index, one.image_id, one.question, one.answer) for index, one in enumerate(source.questions(num, round))]


def _record(round: int, index: int, image_id: str, question: str, answer: str) -> Record:
    is_changed, is_rejected = index % 4 == 1, index % 3 == 2
    before = answer.replace("a ", "a shiny ", 1) if index % 8 == 1 else f"Perhaps {answer.partition(' ')[2]}"
    record = Record(
        f"r{round}-s00000-{index:04d}", round, 0, image_id, ("conversation", "detail", "complex")[index % 3], "Ask.", 3,
        generated_text=question, question=question, original_answer=before if is_changed else answer, answer=answer,
        sentences=(answer, "It is there."), sentence_logprobs=(-0.1, -1.5), sentence_gains=(0.5, -0.1), answer_logprob=index * 0.01 - 1.0,
        answer_num_tokens=2, view_answers=(answer, before), agreement=0.5, generator_weight_version="g" * 16,
        corrector_weight_version="c" * 16, accepted=True, original_correct=not is_changed, answer_correct=True,
    )  # fmt: skip
    return record.rejected(Reason.LOW_CONFIDENCE if index % 2 else Reason.ANSWERS_DISAGREE) if is_rejected else record


def unusual_records(round: int) -> list[Record]:
    """A payload in every text, no image, no question, and one image that does not exist."""
    plain = records(round, 1)[0]
    hostile = replace(
        plain, record_id=f"r{round}-s00001-0000", question=PAYLOAD, original_answer="fine", answer=PAYLOAD, sentences=(PAYLOAD, PAYLOAD),
        question_type="con'\"><b>", view_answers=(PAYLOAD,), view_description=PAYLOAD, reason_detail=PAYLOAD, instruction=PAYLOAD,
        image_id=PAYLOAD, accepted=False, reasons=(Reason.FALSE_PREMISE,),
    )  # fmt: skip
    unparsable = replace(
        plain, record_id=f"r{round}-s00001-0001", image_id="", generated_text="???", question="", original_answer="", answer="",
        sentences=(), sentence_logprobs=(), sentence_gains=(), answer_logprob=None, answer_num_tokens=0, accepted=False,
        reasons=(Reason.UNPARSABLE,),
    )  # fmt: skip
    return [hostile, unparsable]


def write_run(folder: Path, config: RunConfig, shards: Sequence[Sequence[Record]] | None = None) -> Store:
    """A baseline and two rounds in `folder`; round 1 has `shards`, by default `records` and `unusual_records`. Round 2 was rejected."""
    with Store.create(folder, RunInfo(run_id="made", config=config.model_dump(mode="json"))).locked() as store:
        store.commit(commit_of(store, 0, [_predictions(store, 0, 20)], metrics={"accuracy/near": 0.5}))
        write_round(store, 1, shards or [records(1), unusual_records(1)], RoundState.ACCEPTED, 30)
        write_round(store, 2, [records(2)], RoundState.REJECTED, 25)
    return store


def write_round(store: Store, round: int, shards: Sequence[Sequence[Record]], state: RoundState, num_right: int = 30) -> None:
    """Commit a round of these records, all accepted ones trained on."""
    parts = [store.write_part(round, f"records-{number:05d}", to_table(shard)) for number, shard in enumerate(shards)]
    parts.append(store.write_part(round, SELECTED, index_of(accepted_columns(store, parts, ()))))
    given = [record for shard in shards for record in shard]
    num_accepted = sum(record.accepted for record in given)
    reasons = [reason for record in given for reason in record.reasons]
    was_accepted = state is RoundState.ACCEPTED
    champion = num_right / NUM_QUESTIONS
    store.commit(
        commit_of(
            store, round, [*(part.entry for part in parts), _predictions(store, round, num_right)], state=state,
            champion=f"{round if was_accepted else round - 1}" * 16,
            counts={
                "generated": len(given), "accepted": num_accepted, "trained_on": num_accepted,
                **{f"rejected_{reason}": reasons.count(reason) for reason in reasons},
            },
            filters=[FilterCount(filter="parsable", seen=len(given), kept=len(given) - 1),
                     FilterCount(filter="package.module:Own", seen=len(given) - 1, kept=num_accepted)],
            metrics={
                "accuracy/near": champion if was_accepted else 0.75, "candidate_accuracy/near": champion, "correct_before": 0.6,
                "correct_after": 0.7, "correct_kept": 0.8,
            },
            decision=Decision(
                accepted=was_accepted, reason="better on dev" if was_accepted else "no better on dev",
                numbers={"num_questions": 40, "num_won": 10, "num_lost": 4, "hallucinated": 0.1, "hallucinated_champion": 0.2},
            ),
        )
    )  # fmt: skip


def _predictions(store: Store, round: int, num_right: int) -> FileEntry:
    given = [Prediction(f"q{index}", "yes", float(index < num_right), "w", 1) for index in range(NUM_QUESTIONS)]
    return store.write_part(round, "predictions", predictions_table({"held_out/near": given}, {"held_out/near": "exact"})).entry


def commit_of(store: Store, round: int, files: Sequence[FileEntry], **changes: Any) -> RoundCommit:
    """A commit record, by default the baseline's."""
    values: dict[str, Any] = {
        "run_id": "made", "round": round, "state": RoundState.BASELINE, "epoch": store.epoch, "started_at": 1.0, "committed_at": 2.0,
        "champion": "0" * 16, "champion_path": "checkpoints/base", "files": list(files),
    }  # fmt: skip
    return RoundCommit(**{**values, **changes})
