"""The commit record of a round. It is written last and makes the round exist."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
MEAN_TEACHER = "mean-teacher"
"""Name of a round's part about its mean teacher, and the end of the name of its checkpoint."""


class RoundState(StrEnum):
    BASELINE = "baseline"  # round 0: the seed model, evaluated
    ACCEPTED = "accepted"  # the candidate became the champion
    REJECTED = "rejected"  # the champion stays


class Document(BaseModel):
    """Base of what a run stores as JSON: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Document):
    """One committed file, by its path relative to the run folder."""

    path: str
    num_bytes: int
    sha256: str


class FilterCount(Document):
    """How many records a filter saw and kept, in the order of the chain."""

    filter: str
    seen: int
    kept: int


class Finding(Document):
    """Something about a round or a config that a person should know and that does not end the run.

    Findings in a commit record are part of the run's digest. They follow from committed data alone, so that a resumed round and an
    undisturbed one have the same.
    """

    kind: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name to count by: MLflow has the counts as `findings/KIND`."""
    count: int = Field(ge=1)
    """How many of what `message` names: samples, records, questions, sets."""
    message: str
    """What was found and what to do about it, in one line."""
    example: str = ""
    """One of what was counted."""

    @property
    def line(self) -> str:
        """The finding as the terminal shows it."""
        example = f"; for example: {self.example}" if self.example else ""
        return f"{self.kind} ({self.count}): {self.message}{example}"


class Decision(Document):
    """The verdict of the acceptance policy, with the numbers behind it."""

    accepted: bool
    reason: str
    numbers: dict[str, float] = Field(default_factory=dict)


def checkpoint_name(round_index: int) -> str:
    """Name of the candidate's checkpoint of a round; names of controls begin with it."""
    return f"round-{round_index:04d}"


def champion_commit(commits: Sequence[RoundCommit]) -> RoundCommit:
    """The round that made the champion."""
    return next(commit for commit in reversed(commits) if commit.state is not RoundState.REJECTED)


def writer_commit(commits: Sequence[RoundCommit], round: int, overlap: int) -> RoundCommit:
    """The round that made the model which writes the records of `round`, its `writer`: that of the champion when the round begins, or with
    `overlap` the one of so many rounds before, which is known while the round before still trains."""
    return champion_commit(commits[: max(1, round - overlap)])


class RoundCommit(Document):
    """Everything a later reader needs to know about a round. `stage_seconds`, `idle`, `started_at` and `committed_at` (seconds since the
    epoch), `epoch` and `incidents` are left out of the run's digest: they differ between two equal runs."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    round: int
    state: RoundState
    epoch: int
    """Fencing epoch of the driver that wrote this record."""
    started_at: float
    committed_at: float
    champion: str
    """Weight version of the champion after this round."""
    champion_path: str
    """Checkpoint folder of that champion, relative to the run folder."""
    mean_teacher: str | None = None
    """Weight version of the mean teacher after this round, which writes records in the champion's place; None if the champion does."""
    mean_teacher_path: str | None = None
    """Checkpoint folder of that mean teacher, relative to the run folder."""
    candidate: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    """`generated`, `accepted`, `trained_on`, `set_aside_images` and `rejected_REASON`; if an older model than the champion has written the
    records, also `stale_kept`, `stale_corrected` or `stale_dropped`. Dropped records are in none of the other counts."""
    filters: list[FilterCount] = Field(default_factory=list)
    metrics: dict[str, float] = Field(default_factory=dict)
    """`correct_before`, `correct_after`, `correct_kept` (shares, where the truth is known), `accuracy/SET` of the champion after
    the round (`likelihood/SET`, `rouge_l/SET`, `judge/SET` or `score/SET` where the metric of the set measures that),
    `candidate_accuracy/SET`, `train_loss`, `distinct_2`, `mean_answer_words` and the like; with the objective `dpo` `dpo_pairs`, and at
    the first and at the last point of the training `dpo_first_accuracy` and `dpo_accuracy` (the share of pairs whose implicit margin is
    above 0), `dpo_first_margin` and `dpo_margin`, `dpo_first_loss` and `dpo_loss`; of controls `control/NAME/...`, see
    `loop.run.stages.controls`."""
    decision: Decision | None = None
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock of `generate_correct_filter`, `deduplicate`, `select`, `train`, `evaluate`, `controls`, `decide`, `average` (of a mean
    teacher), `swap` and the whole `round`. With `overlap`, `write_ahead` is the time that writing the records of the next round took, and
    `overlapped` the part of it in which this round trained as well: it counts in both, so that the stages less `overlapped` make the
    round."""
    idle: dict[str, float] = Field(default_factory=dict)
    """Shares of the round in which `engines` had no task, over all engines, and the ranks of the `trainer` no job; of the driver that
    committed the round. Empty for round 0."""
    files: list[FileEntry] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    incidents: list[Finding] = Field(default_factory=list)
    """What happened to the machines meanwhile, such as a fleet that lost an engine."""

    @property
    def writer(self) -> str:
        """Weight version of the model that writes records after this round: the mean teacher, or else the champion."""
        return self.mean_teacher or self.champion

    @property
    def writer_path(self) -> str:
        """Checkpoint folder of the writer."""
        return self.mean_teacher_path or self.champion_path

    @property
    def reported(self) -> list[Finding]:
        """Findings and incidents."""
        return [*self.findings, *self.incidents]

    def file(self, name: str) -> FileEntry:
        """The committed file of that name, in whichever folder of the round."""
        return next(file for file in self.files if file.path.endswith(f"/{name}"))

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoint folders that the round made, relative to the run folder."""
        parts = [file.path.split("/") for file in self.files if file.path.startswith("checkpoints/")]
        return list(dict.fromkeys("/".join(part[:2]) for part in parts))
