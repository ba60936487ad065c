"""`vigc train`: training in stages, such as LLaVA's, on the same trainer as the loop.

    OUT/train.json                        the resolved config and the digest of the model it starts from; written first
    OUT/checkpoints/1-align/              a stage's checkpoint, a Hugging Face folder with a record of its job and digest
    OUT/checkpoints/1-align.steps/        step checkpoints of the running stage
    OUT/summary.json                      results of the stages so far

To resume, run the same command again: finished stages are verified by their digest and kept, and an interrupted stage continues from
its step checkpoint.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actors.engines.weights import digest_of, read_checkpoint
from actors.images import CaptionSource, ConversationSource, LabelledSource
from actors.trainer import TrainerRank
from actors.training.checkpoint import finished_result
from actors.training.job import TrainerError, TrainingJob, TrainingResult
from cluster.resources.connect import connected
from cluster.resources.placement import reserve
from cluster.resources.plan import plan_ranks
from cluster.training.group import Bounds, RankOptions, TrainerGroup
from loop.config.run_config import validated
from loop.config.sets import image_paths
from loop.config.train_config import TrainConfig, TrainStage, differences
from loop.errors import UserError, WriteError, printable
from loop.interruption import interruptible
from loop.models.checks import check_model
from loop.models.files import downloaded
from loop.monitors.mirror.training import SUMMARY, TRAINING
from loop.monitors.mirroring import check_monitors, monitored_training
from loop.monitors.progress import RunProgress
from loop.run.skipped import findings_of, unreadable_images
from loop.setup.assembly import build_labelled, derived_seed
from loop.setup.nodes import check_nodes
from loop.setup.planning import available_nodes
from loop.store.commits import Finding
from loop.store.documents import seal, unseal
from loop.store.files import locked
from loop.store.storage.local import LocalStorage
from policies.records import TrainingSample


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its samples drawn."""

    number: int
    """From 1."""
    config: TrainStage
    source: LabelledSource
    samples: list[TrainingSample]

    @property
    def folder(self) -> str:
        """Relative to OUT."""
        return f"checkpoints/{self.number}-{self.config.name}"

    def job(self, out: Path, base: Path, seed: int) -> TrainingJob:
        """The training job of this stage, starting from the checkpoint in `base`."""
        training = self.config.training
        return TrainingJob(
            base, out / self.folder, self.samples, derived_seed(seed, self.number, "train"), training.hyperparameters(len(self.samples)),
            out / f"{self.folder}.steps", training.checkpoint_steps,
        )  # fmt: skip


def check(config: TrainConfig, *, ask_cluster: bool = True) -> list[PlannedStage]:
    """Check everything about a config that can be checked before a rank starts.

    Args:
        config: of the training.
        ask_cluster: whether a cluster that it names is asked for its nodes.

    Returns:
        the stages with their samples drawn.

    Raises:
        UserError: the config cannot work; a one-line message.
    """
    check_monitors(config)
    cluster = config.cluster
    if ask_cluster or cluster.address is None:
        plan_ranks(available_nodes(cluster).nodes, cluster.trainer_ranks, cluster.cpus_per_actor, use_gpus=cluster.use_gpus)
    stages: list[PlannedStage] = []
    for number, stage in enumerate(config.stages, 1):
        source = build_labelled(stage.data)
        stages.append(PlannedStage(number, stage, source, _samples(source, stage, derived_seed(config.seed, number, "data"))))
    trainings = [stage.training.hyperparameters(num_samples=1) for stage in config.stages]
    check_model(config.model_path, None, {f"stages.{number}.training": hyper for number, hyper in enumerate(trainings)})
    return stages


def train(config: TrainConfig, out: Path, console: Console) -> dict[str, Any]:
    """Train the unfinished stages into `out`, then write and return the summary.

    Raises:
        UserError: the config cannot work, or `out` holds other files or a damaged stage.
        TrainerError: a training failed; the same call continues it.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call continues it.
    """
    _refuse_foreign(out)
    stages = check(config)
    storage = LocalStorage(out.absolute())
    for finding in look_at_images(config, stages):
        console.print(escape(printable(finding.line)), highlight=False, soft_wrap=True)
    with interruptible(str(out), f"continue it with `vigc train --resume {out}`"), locked(storage), ExitStack() as stack:
        model = downloaded(config.model_path)
        digest, run_id = _begin(storage, config, model)
        storage.remove_leftovers()
        monitors = stack.enter_context(monitored_training(config, run_id, storage.root))
        progress = stack.enter_context(RunProgress(console, monitors=monitors))
        ranks = stack.enter_context(_Ranks(config, storage))
        base, results, summary = model, [], {}
        for stage in stages:
            job = stage.job(storage.root, base, config.seed)
            result = _kept(job, progress)
            if result is None:
                progress.round(stage.number, len(stages), f"stage {stage.number}/{len(stages)} {stage.config.name}")
                result = ranks.train(job, stage, progress)
            shutil.rmtree(storage.root / f"{stage.folder}.steps", ignore_errors=True)
            for finding in findings_of(result, len(stage.samples), with_place=True):
                progress.note(f"stage {stage.config.name}: {finding.line}")
            results.append((stage, result))
            summary = _summary(config, digest, results)
            _write(storage, SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
            base = storage.root / stage.folder
    return summary


def look_at_images(config: TrainConfig, stages: Sequence[PlannedStage]) -> list[Finding]:
    """Open some images of each stage before training starts; returns findings about those that cannot be read."""
    found = [unreadable_images(stage.source, stage.samples) for stage in stages]
    return [finding for finding in found if finding is not None]


def stored_config(out: Path) -> TrainConfig:
    """The config of the training in `out`.

    Raises:
        UserError: `out` holds no training.
        DamagedFileError: the config was altered.
    """
    path = out / TRAINING
    if not path.is_file():
        if (out / "run.json").is_file():
            raise UserError(f"{out} holds a run, not a training; resume it with `vigc resume {out}`")
        raise UserError(f"{out} holds no training (no {TRAINING}); start one with `vigc train CONFIG --out {out}` or check the path")
    return validated(TrainConfig, unseal(str(path), path.read_bytes())["config"])


def print_summary(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print one line per stage."""
    table = Table("stage", "samples", "passed\nover", "steps", "loss", "target\ntokens", "seconds", "digest", box=None, pad_edge=False)
    for stage in summary["stages"]:
        losses = f"{stage['losses'][0][1]:.3f} -> {stage['final_loss']:.3f}"
        cells = (
            stage["num_samples"],
            stage["num_skipped_samples"],
            stage["num_steps"],
            losses,
            stage["num_target_tokens"],
            f"{stage['seconds']:.0f}",
            stage["digest"][:12],
        )
        table.add_row(stage["name"], *map(str, cells))
    console.print(table)
    console.print(f"the trained model: {out / summary['stages'][-1]['checkpoint']}", highlight=False, soft_wrap=True)


# ---- internals


def _samples(source: LabelledSource, stage: TrainStage, seed: int) -> list[TrainingSample]:
    if stage.form == "vigc":
        assert stage.num_samples is not None, "the config was validated"
        return source.training_samples(stage.num_samples, seed)
    if stage.form == "conversations":
        if not isinstance(source, ConversationSource):
            raise UserError(f"stage {stage.name}: data of kind {stage.data.kind} have no conversations; use form vigc")
        return source.conversations(stage.num_samples, seed)
    if not isinstance(source, CaptionSource):
        raise UserError(f"stage {stage.name}: data of kind {stage.data.kind} have no captions; use form conversations or vigc")
    samples = source.captions(stage.num_samples, seed)
    if stage.form == "captions":
        return samples
    return [replace(sample, turns=tuple(("", answer) for _, answer in sample.turns)) for sample in samples]


def _refuse_foreign(out: Path) -> None:
    others = sorted({path.name for path in out.iterdir()} - {"lock"}) if out.is_dir() else [out.name] * out.exists()
    if others and TRAINING not in others:
        raise UserError(f"{out} {'holds' if out.is_dir() else 'is'} {others[0]!r}, not a training; choose another folder with --out")


def _begin(storage: LocalStorage, config: TrainConfig, model: Path) -> tuple[str, str]:
    """Record config and start model in a new folder, or verify that they match; returns the digest of the start model, and the id of the
    training."""
    digest = digest_of(read_checkpoint(model))
    wanted = {"config": config.model_dump(mode="json"), "model_digest": digest}
    if storage.size(TRAINING) is None:
        run_id = f"{config.name}-{uuid.uuid4().hex[:12]}"
        _write(storage, TRAINING, seal({**wanted, "run_id": run_id}))
        return digest, run_id
    found = unseal(f"{storage.uri}/{TRAINING}", storage.read(TRAINING))
    stored = validated(TrainConfig, found["config"]).model_dump(mode="json")  # keys that an earlier version lacks have their defaults
    if places := differences(stored, wanted["config"]):
        raise UserError(
            f"{storage.uri} holds a training with another {', '.join(places)}; give the same config, or choose another folder with --out"
        )
    if found["model_digest"] != digest:
        raise UserError(
            f"model {config.model!r} has changed since the training in {storage.uri} was started; restore it, or choose another --out"
        )
    return digest, found.get("run_id", f"{config.name}-{digest[:12]}")  # earlier versions wrote none


def _write(storage: LocalStorage, name: str, data: bytes) -> None:
    try:
        storage.write(name, data)
    except WriteError as error:
        raise TrainerError(
            f"cannot write {error.path}: {error.reason}; free space, then run `vigc train --resume {storage.uri}`"
        ) from error


def _kept(job: TrainingJob, progress: RunProgress) -> TrainingResult | None:
    """The result of a finished stage, with its weights verified; None if it is not finished."""
    try:
        result = finished_result(job)
    except ValueError as error:
        raise UserError(str(error)) from error
    if result is not None:
        progress.note(f"stage {job.output.name} is finished and verified, digest {result.digest[:12]}")
    return result


class _Ranks:
    """The trainer's ranks. They start with the first stage that needs them and end with the block."""

    def __init__(self, config: TrainConfig, storage: LocalStorage) -> None:
        self._config = config
        self._storage = storage
        self._stack = ExitStack()
        self._group: TrainerGroup | None = None

    def __enter__(self) -> _Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def train(self, job: TrainingJob, stage: PlannedStage, progress: RunProgress) -> TrainingResult:
        self._group = self._group or self._started()
        training, cluster = stage.config.training, self._config.cluster
        bounds = Bounds(training.timeout_s, cluster.start_timeout_s, training.stall_timeout_s, cluster.max_restarts)
        with progress.stage("train", total=job.hyper.num_steps) as shown:
            result = self._group.train(job, stage.source, bounds, lambda now: progress.trained(shown, now))
        if result.resumed_from_step:
            progress.note(f"training resumed after step {result.resumed_from_step}")
        return result

    def _started(self) -> TrainerGroup:
        cluster = self._config.cluster
        info = self._stack.enter_context(
            connected(cluster.address, num_cpus=cluster.num_cpus, temp_dir=None, timeout_s=cluster.start_timeout_s, owner=self._storage.uri)
        )
        paths = [str(downloaded(self._config.model_path)), *image_paths(stage.data for stage in self._config.stages)]
        check_nodes(paths, self._storage, info.num_nodes, cluster.start_timeout_s)
        plan = plan_ranks(info.nodes, cluster.trainer_ranks, cluster.cpus_per_actor, use_gpus=cluster.use_gpus)
        placement = self._stack.enter_context(reserve(plan, cluster.start_timeout_s, is_alone=info.is_local))
        options = RankOptions(plan.trainer_cpus, plan.trainer_gpus, self._config.stages[0].training.num_threads, placement)
        group = TrainerGroup(TrainerRank, plan.trainer_ranks, options)
        self._stack.callback(group.shutdown)
        return group


def _summary(config: TrainConfig, digest: str, results: list[tuple[PlannedStage, TrainingResult]]) -> dict[str, Any]:
    stages = [
        {
            "name": stage.config.name,
            "checkpoint": stage.folder,
            "form": stage.config.form,
            "num_samples": len(stage.samples),
            **asdict(result),
        }
        for stage, result in results
    ]
    return {
        "name": config.name, "model": config.model, "model_digest": digest, "finished": len(results) == len(config.stages),
        "digest": results[-1][1].digest, "stages": stages,
    }  # fmt: skip
