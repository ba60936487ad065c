"""Training: each model of a round is trained from a start checkpoint on a training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from actors.training.checkpoint import RESULT_FILE
from actors.training.job import Hyperparameters, TrainingJob
from loop.run.contents import Run
from loop.run.models import Model, Models
from loop.run.skipped import findings_of
from loop.run.workers import Workers
from loop.setup.assembly import derived_seed
from loop.store.commits import Finding, RoundState
from loop.store.run_store import PartReceipt
from policies.errors import running
from policies.records import Record, TrainingSample

_MAX_COPIES = 20
"""Mean copies of a generated record in a training set above which a finding is reported: LLaVA and VIGC train for 1 to 12 epochs."""

Change = Callable[[Iterable[Record]], list[Record]]


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
    samples: Callable[[], list[TrainingSample]], suffix: str = "",
) -> Trained:  # fmt: skip
    """Train a model from `start` on `samples`.

    The checkpoint is named `round-INDEX` and the part `training`, each followed by `suffix`. All trainings of a round share steps,
    schedule, augmentation and seed.
    """
    name, part_name = f"round-{index:04d}{suffix}", f"training{suffix}"
    part = run.store.finished_part(index, part_name)
    checkpoint = run.store.finished_checkpoint(name)
    if part is None or checkpoint is None:
        config = run.config.training
        folder = run.store.checkpoint_dir(name)
        drawn = samples()
        job = TrainingJob(
            run.store.local_checkpoint(start.path), folder, drawn, derived_seed(run.config.seed, index, "train"),
            hyper, run.store.steps_folder(name), config.checkpoint_steps,
        )  # fmt: skip
        with run.progress.stage(f"train{suffix.replace('-', ' ')}", total=hyper.num_steps, unit="steps") as stage:
            result = workers.train(job, stage)
        (folder / RESULT_FILE).unlink()  # it contains times, which committed files must not
        checkpoint = run.store.publish_checkpoint(folder, name)
        measured = {
            "train_loss": result.mean_loss,
            "train_final_loss": result.final_loss,
            "train_target_tokens": float(result.num_target_tokens),
        }
        document = {
            "digest": result.digest,
            "metrics": measured,
            "losses": list(result.losses),
            **({"held_out_losses": list(result.held_out_losses), "best_step": result.best_step} if result.held_out_losses else {}),
            "findings": [
                finding.model_dump() for finding in (*findings_of(result, len(drawn)), *repeated_records(drawn, run.seed_samples))
            ],
        }
        part = run.store.write_json_part(index, part_name, document)
    run.store.drop_steps(name)
    document = run.store.read_json_part(part)
    model = models.add(index, document["digest"], checkpoint.path, checkpoint.files)
    findings = [Finding.model_validate(finding) for finding in document.get("findings", [])]
    return Trained(model, document["metrics"], findings, part)


def repeated_records(samples: Sequence[TrainingSample], seed_samples: Iterable[TrainingSample]) -> list[Finding]:
    """A finding if few generated records are repeated so often that a model may memorize them."""
    labelled = {sample.origin for sample in seed_samples}
    copies = Counter(sample.origin for sample in samples if sample.origin not in labelled)
    if not copies or copies.total() <= _MAX_COPIES * len(copies):
        return []
    message = (
        f"{len(copies)} generated record(s) make {copies.total()} of {len(samples)} training samples, {copies.total() / len(copies):.0f} "
        "copies each, and may be learned by heart: take more images, loosen the filters, lower training.num_steps, or raise the seed share"
    )
    return [Finding(kind="repeated_records", count=len(copies), message=message, example=copies.most_common(1)[0][0])]


def hyperparameters(run: Run, selected: list[Record]) -> Hyperparameters:
    """Hyperparameters of all trainings of a round; an epoch covers the seed data and every generated record that may be drawn."""
    num_earlier = sum(commit.counts["trained_on"] for commit in run.commits if commit.state is RoundState.ACCEPTED)
    return run.config.training.hyperparameters(len(run.seed_samples) + num_earlier + len(selected))


def training_set(run: Run, index: int, selected: list[Record], num_samples: int, change: Change = list) -> list[TrainingSample]:
    """Seed data and generated data, mixed by the mixing policy, without data of rejected rounds. Image ids are prefixed with their set.

    `change` is applied to the generated records of each round; controls use it.
    """
    history = [run.selected_records(commit) for commit in run.commits if commit.state is RoundState.ACCEPTED]
    generated = [[replace(record, image_id=run.routed_id(record)) for record in change(records)] for records in [*history, selected]]
    return mixed(run, index, generated, num_samples)


def mixed(run: Run, index: int, generated: list[list[Record]], num_samples: int) -> list[TrainingSample]:
    """Samples drawn by the mixing policy from seed data and `generated` records."""
    policy, seed_samples = run.policies.mixing, run.seed_samples
    with running(f"mixing policy {type(policy).__name__!r}"):
        return policy.mix(seed_samples, generated, num_samples, derived_seed(run.config.seed, index, "mix"))
