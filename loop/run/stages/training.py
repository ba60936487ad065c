"""Training: each model of a round is trained from a start checkpoint on a training set, and the mean teacher follows the champion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from actors.engines.adapters.files import ADAPTER_FOLDER
from actors.folders import subfolder
from actors.training.job import Hyperparameters, TrainingJob, TrainingResult
from actors.training.samples import StoredSamples
from loop.run.contents import Run
from loop.run.models import Model, Models
from loop.run.skipped import findings_of
from loop.run.stages.clock import RoundClock
from loop.run.stages.training_set import Generated, generated_so_far, training_pairs, training_set
from loop.run.workers import Workers
from loop.setup.assembly import derived_seed
from loop.store.commits import MEAN_TEACHER, FileEntry, Finding, RoundState, checkpoint_name
from loop.store.run_store import PartReceipt
from loop.store.selected import SelectedRows
from loop.store.training_files import (
    PAIRS,
    drop_steps,
    finish_checkpoint,
    samples_folder,
    shared_pairs,
    shared_samples,
    training_output,
    training_steps,
)


@dataclass(frozen=True)
class Trained:
    """A model that a round has trained, and what its training part says of it."""

    model: Model
    metrics: dict[str, float]
    findings: list[Finding]
    """Samples that were skipped or repeated; empty if an earlier version of this program wrote the part."""
    part: PartReceipt


def train(
    run: Run, models: Models, workers: Workers, index: int, start: Model, hyper: Hyperparameters,
    generated: Callable[[], Sequence[Generated]], suffix: str = "", pairs_of: SelectedRows | None = None,
) -> Trained:  # fmt: skip
    """Train a model from `start` on seed data and `generated` records, which are not read if the training is finished. With the objective
    `dpo` it also learns from the pairs of the records `pairs_of`; a control, which has none, is trained by `sft` alone.

    The checkpoint is named `round-INDEX` and the part `training`, each followed by `suffix`. All trainings of a round share steps,
    schedule, augmentation and seed.
    """
    name, part_name = f"{checkpoint_name(index)}{suffix}", f"training{suffix}"
    part = run.store.finished_part(index, part_name)
    checkpoint = run.store.finished_checkpoint(name)
    if part is None or checkpoint is None:
        config = run.config.training
        output = training_output(run.store, name)
        with samples_folder(run.store, name) as folder:
            drawn = training_set(run, index, generated(), hyper.num_samples, folder)
            pairs, findings = _pairs(run, index, pairs_of, hyper, folder)
            samples = shared_samples(run.store, name, drawn.samples)
        job = TrainingJob(
            run.store.checkpoint(start.path, run.kept_checkpoints), output, samples, derived_seed(run.config.seed, index, "train"),
            hyper, training_steps(run.store, name), config.checkpoint_steps, pairs=() if pairs is None else shared_pairs(samples, pairs),
        )  # fmt: skip
        if run.config.transport == "adapter":
            job = on_base(run, models.base(), job)
        with run.progress.stage(f"train{suffix.replace('-', ' ')}", total=hyper.num_steps, unit="steps") as stage:
            result = workers.train(job, stage)
        checkpoint = finish_checkpoint(run.store, output, name)
        measured = {
            "train_loss": result.mean_loss,
            "train_final_loss": result.final_loss,
            "train_target_tokens": float(result.num_target_tokens),
            **(_pair_metrics(result) if hyper.dpo is not None and pairs_of is not None else {}),
        }
        document = {
            "digest": result.digest,
            "metrics": measured,
            "losses": list(result.losses),
            **({"held_out_losses": list(result.held_out_losses), "best_step": result.best_step} if result.held_out_losses else {}),
            **({"pairs": list(result.pair_points)} if result.pair_points else {}),
            "findings": [finding.model_dump() for finding in (*findings_of(result, len(samples)), *drawn.findings, *findings)],
        }
        part = run.store.write_json_part(index, part_name, document)
    drop_steps(run.store, name)
    document = run.store.read_json_part(part)
    model = models.add(index, document["digest"], checkpoint.path, checkpoint.files)
    findings = [Finding.model_validate(finding) for finding in document.get("findings", [])]
    return Trained(model, document["metrics"], findings, part)


def train_candidate(run: Run, models: Models, workers: Workers, index: int, selected: SelectedRows) -> Trained:
    """The candidate of a round, from the model that the start policy chooses."""
    start = run.policies.start.start(models.base(), models.champion())
    generated = partial(generated_so_far, run, index, selected)
    return train(run, models, workers, index, start, hyperparameters(run, selected), generated, pairs_of=selected)


def next_writer(
    run: Run, models: Models, workers: Workers, index: int, candidate: Model, clock: RoundClock, *, accepted: bool
) -> tuple[Model, list[FileEntry]]:
    """The model that writes the next round, and what round `index` has made of it: the champion, or the mean teacher, which moves towards
    an accepted candidate and is a checkpoint of its own. A finished one is reused."""
    decay = run.config.generation.mean_teacher_decay
    if not accepted:
        return models.writer(index, overlap=0), []
    if decay is None:
        return candidate, []
    name = f"{checkpoint_name(index)}-{MEAN_TEACHER}"
    part, checkpoint = run.store.finished_part(index, MEAN_TEACHER), run.store.finished_checkpoint(name)
    if part is None or checkpoint is None:
        with clock.stage("average"), run.progress.stage("average weights"):
            output = training_output(run.store, name)
            digest = workers.average(models.writer(index, overlap=0), candidate, decay, output)
            checkpoint = finish_checkpoint(run.store, output, name)
            part = run.store.write_json_part(index, MEAN_TEACHER, {"digest": digest, "decay": decay})
    model = models.add(index, run.store.read_json_part(part)["digest"], checkpoint.path, checkpoint.files)
    return model, [*model.files, part.entry]


def _pairs(
    run: Run, index: int, selected: SelectedRows | None, hyper: Hyperparameters, folder: Path
) -> tuple[StoredSamples | None, list[Finding]]:
    """The pairs that a training learns from, in the folder of its samples, and findings about them; a step has as many as DPO asks for."""
    if hyper.dpo is None or selected is None:
        return None, []
    return training_pairs(run, index, selected, hyper.dpo, hyper.num_steps * hyper.dpo.pairs_per_step, folder / PAIRS)


def _pair_metrics(result: TrainingResult) -> dict[str, float]:
    """The number of pairs, and what the model prefers at the first and at the last point of the training."""
    found = {"dpo_pairs": float(result.num_pairs)}
    if result.pair_points:
        for name, (_, loss, accuracy, margin) in (("first_", result.pair_points[0]), ("", result.pair_points[-1])):
            found |= {f"dpo_{name}loss": loss, f"dpo_{name}accuracy": accuracy, f"dpo_{name}margin": margin}
    return found


def on_base(run: Run, base: Model, job: TrainingJob) -> TrainingJob:
    """A job that trains the adapter of its start checkpoint, or a new one, beside the weights of `base`: adapters of later rounds are
    relative to it as well, so that engines keep it."""
    return replace(
        job,
        base_checkpoint=run.store.checkpoint(base.path, run.kept_checkpoints),
        adapter_base=base.digest,
        adapter=subfolder(job.base_checkpoint, ADAPTER_FOLDER),
    )


def hyperparameters(run: Run, selected: SelectedRows) -> Hyperparameters:
    """Hyperparameters of all trainings of a round; an epoch covers the seed data and every generated record that may be drawn."""
    num_earlier = sum(commit.counts["trained_on"] for commit in run.commits if commit.state is RoundState.ACCEPTED)
    return run.config.training.hyperparameters(len(run.seed_samples) + num_earlier + len(selected))
