"""The house of a run: everything that lives as long as the driver does, behind the few questions a round asks of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from actors.engines import EngineSpec
from actors.engines.base import Probe, WeightUpdate
from actors.engines.weights import digest_of, read_checkpoint, weight_version
from actors.filter import FilterWorker
from actors.images import ImageSource
from actors.trainer import Bounds, RankOptions, TrainerGroup
from actors.training.job import TrainingJob, TrainingResult
from cluster.fleet.fleet import Fleet
from cluster.fleet.pool import Pool
from cluster.fleet.weights import prepare
from cluster.resources.connect import connected
from cluster.resources.placement import Placement, reserve
from cluster.resources.plan import ResourceRequest, plan_resources
from loop.config.run_config import RunConfig
from loop.credentials import masked
from loop.errors import DamagedFileError, UserError
from loop.models.checks import downloaded, model_files
from loop.models.serving import engine_fleet, probe_of
from loop.monitors.progress import RunProgress, Stage, loss_remark
from loop.run.stages.evaluation import sets_of, stored_predictions
from loop.setup.assembly import HeldOut, Policies, build_held_out, build_images, build_labelled, build_policies, derived_seed
from loop.sources.images.routed import RoutedSource, routed
from loop.store.commits import FileEntry, Finding, RoundCommit, RoundState, champion_commit
from loop.store.run_store import Store
from loop.store.storage import LocalStorage
from policies.records import Record, TrainingSample
from policies.scoring.predictions import Predictions

_SEED_SET = "seed"
_SHUTDOWN_S = 30.0


@dataclass(frozen=True)
class Model:
    """A checkpoint of the run."""

    version: str
    path: str
    """Relative to the run folder."""
    digest: str
    files: tuple[FileEntry, ...]


@dataclass
class House:
    """What a round works with. Built by `open_house`."""

    config: RunConfig
    policies: Policies
    store: Store
    run_id: str
    fleet: Fleet
    trainer: TrainerGroup
    progress: RunProgress
    filters: Pool
    sender_options: dict[str, Any]
    """Ray options of the actor that sends weights, where the transport has one."""
    held_out: list[HeldOut]
    acceptance: list[HeldOut]
    commits: list[RoundCommit] = field(default_factory=list)
    """Committed rounds so far; the driver appends."""
    findings: Sequence[Finding] = ()
    """What was found in the config before the run began."""
    _models: dict[str, Model] = field(default_factory=dict)

    # ---- models

    def adopt_base_model(self) -> Model:
        """Copy the seed model into the run: a run folder is complete in itself."""
        name = "round-0000"
        receipt = self.store.finished_checkpoint(name)
        if receipt is None:
            folder = self.store.checkpoint_dir(name)
            for path in model_files(downloaded(self.config.model_path)):
                shutil.copyfile(path, folder / path.name)
            receipt = self.store.publish_checkpoint(folder, name)
        digest = digest_of(read_checkpoint(self.store.local_checkpoint(receipt.path)))
        return Model(weight_version(0, digest), receipt.path, digest, tuple(receipt.files))

    def base(self) -> Model:
        """The seed model of the run."""
        return self._model(self.commits[0])

    def champion(self) -> Model:
        """The newest accepted model."""
        return self._model(self._champion_commit())

    def control(self, name: str) -> Model:
        """Where the line of a control stands: the control of the round that made the champion; the seed model before there is one."""
        commit = self._champion_commit()
        if commit.state is RoundState.BASELINE:
            return self.base()
        digest = self.store.read_json_part(self._file(commit, f"training-control-{name}.data.json"))["digest"]
        return self._committed(commit, weight_version(commit.round, digest), f"checkpoints/round-{commit.round:04d}-control-{name}")

    def start_fleet(self, model: Model) -> None:
        """Construct the engines; they serve only after their first completed swap. Then the filters and the trainer's ranks import while
        the engines work."""
        with self.progress.stage("start engines", total=self.config.cluster.num_engines, unit="engines") as stage:
            self.fleet.start(self._update(model, first=True), stage.advance)
        self.filters.launch()
        self.trainer.launch()

    def serve(self, model: Model) -> None:
        """Make `model` what pinned runs come from: returns once one engine serves it; the others come over while the runs go on. Engines
        that sleep wake for it.

        Starts the fleet if need be, does nothing where the model is served already.
        """
        if not self.fleet.weight_version:
            self.start_fleet(model)
            return
        if self.fleet.weight_version != model.version:
            self.fleet.roll(self._update(model))
        self.fleet.settle(num_engines=1)

    def rest(self) -> None:
        """Have the engines, where there are any yet, give back their memory; `serve` wakes them."""
        if self.fleet.weight_version:
            self.fleet.sleep()

    # ---- data

    def image_set(self, index: int) -> ImageSource:
        """The unlabelled images of round `index`."""
        return self._images.sources[f"set{self._stage(index)}"]

    def routed_id(self, record: Record) -> str:
        """The id of a record's image among all images of the run."""
        return self._routing(record)

    def selected_records(self, commit: RoundCommit) -> list[Record]:
        """What a committed round was trained on."""
        return self.store.read_records(self._file(commit, "selected.parquet"))

    def champion_predictions(self) -> Predictions:
        """The champion's answers to the held-out questions, from the round that made it."""
        return self._predictions(self._champion_commit())

    def seed_predictions(self) -> Predictions:
        """The seed model's answers to the held-out questions."""
        return self._predictions(self.commits[0])

    # ---- training

    def train(self, job: TrainingJob, stage: Stage) -> TrainingResult:
        """Run a job on the trainer's ranks, showing its steps."""
        training, cluster = self.config.training, self.config.cluster
        bounds = Bounds(
            training.timeout_s, start_timeout_s=cluster.start_timeout_s, stall_timeout_s=training.stall_timeout_s,
            max_restarts=cluster.max_restarts,
        )  # fmt: skip
        result = self.trainer.train(job, self._images, bounds, lambda progress: stage.reach(progress.step, loss_remark(progress.loss)))
        if result.num_steps_kept:
            self.progress.note(f"training went on after step {result.num_steps_kept}")
        return result

    # ---- inside

    @cached_property
    def _routing(self) -> Callable[[Record], str]:
        return routing(self.config)

    def _stage(self, index: int) -> int:
        return self.policies.schedule.stage(index, len(self.config.image_sets))

    @cached_property
    def _images(self) -> RoutedSource:
        return run_images(self.config)

    @cached_property
    def seed_samples(self) -> list[TrainingSample]:
        """The labelled samples that training replays."""
        source = build_labelled(self.config.seed_data.data)
        samples = source.training_samples(self.config.seed_data.num_samples, derived_seed(self.config.seed, 0, "seed data"))
        return [TrainingSample(routed(_SEED_SET, sample.image_id), sample.turns, sample.origin, sample.question_type) for sample in samples]

    def _update(self, model: Model, *, first: bool = False) -> WeightUpdate:
        checkpoint = self.store.local_checkpoint(model.path)
        update = prepare(checkpoint, model.version, self.config.transport, self.sender_options)
        probed = self.config.engine.probed
        return replace(update, probe=self._probe(checkpoint)) if probed == "always" or (first and probed == "first") else update

    def _probe(self, checkpoint: Path) -> Probe:
        """What the checkpoint's weights say, found out in a process of its own."""
        return probe_of(checkpoint, self.config.engine, self.config.cluster.start_timeout_s)

    def _champion_commit(self) -> RoundCommit:
        return champion_commit(self.commits)

    def _model(self, commit: RoundCommit) -> Model:
        """The champion that a round made."""
        return self._committed(commit, commit.champion, commit.champion_path)

    def _committed(self, commit: RoundCommit, version: str, path: str) -> Model:
        """A committed model, its weights read once: `driver.drive` has held its files against the record, or this process wrote them."""
        if path not in self._models:
            files = tuple(file for file in commit.files if file.path.startswith(f"{path}/"))
            digest = digest_of(read_checkpoint(self.store.local_checkpoint(path)))
            if version != weight_version(commit.round, digest):
                raise DamagedFileError(path, f"weights {version}", weight_version(commit.round, digest), "restore it")
            self._models[path] = Model(version, path, digest, files)
        return self._models[path]

    def _predictions(self, commit: RoundCommit) -> Predictions:
        file = self._file(commit, "predictions.parquet")
        return stored_predictions(file.path, self.store.read_part(file), sets_of(self))

    def _file(self, commit: RoundCommit, name: str) -> FileEntry:
        return next(file for file in commit.files if file.path.endswith(f"/{name}"))


@contextmanager
def open_house(
    config: RunConfig, store: Store, commits: list[RoundCommit], progress: RunProgress, findings: Sequence[Finding] = ()
) -> Iterator[House]:
    """Join or start Ray, reserve what the plan needs, spawn the actors; all of it ends with the block. `commits` are the run's so far."""
    policies = build_policies(config)
    cluster = config.cluster
    with ExitStack() as stack:
        with progress.stage("connect to Ray"):
            info = stack.enter_context(
                connected(
                    cluster.address,
                    num_cpus=cluster.num_cpus,
                    temp_dir=None,
                    timeout_s=cluster.start_timeout_s,
                    dashboard=cluster.dashboard,
                    owner=masked(store.uri),
                )
            )
            check_reach(store, info.num_nodes)
            plan = plan_resources(info.cpus, info.gpus, resource_request(config))
            placement = stack.enter_context(reserve(plan, cluster.start_timeout_s))
        trainer = _trainer(config, placement)
        stack.callback(trainer.shutdown)
        filters = _filters(config, policies, store, placement)
        stack.callback(filters.shutdown, _SHUTDOWN_S)
        model = store.local_checkpoint(commits[0].champion_path) if commits else downloaded(config.model_path)
        fleet = _fleet(config, policies, placement, model)
        stack.callback(fleet.shutdown, _SHUTDOWN_S)
        yield House(
            config, policies, store, store.read_run().run_id, fleet, trainer, progress, filters,
            placement.sender_options(),
            build_held_out(config.held_out, config.seed), build_held_out(config.acceptance_sets, config.seed), commits, findings,
        )  # fmt: skip


def run_images(config: RunConfig) -> RoutedSource:
    """All images of a run: the labelled set `seed`, and `set0`, `set1`, ... as the config lists them."""
    unlabelled = {f"set{number}": build_images(spec) for number, spec in enumerate(config.image_sets)}
    return RoutedSource({_SEED_SET: build_labelled(config.seed_data.data), **unlabelled})


def routing(config: RunConfig) -> Callable[[Record], str]:
    """How a record's image is called among all images of its run."""
    schedule = build_policies(config).schedule
    return lambda record: routed(f"set{schedule.stage(record.round, len(config.image_sets))}", record.image_id)


def check_reach(store: Store, num_nodes: int) -> None:
    """Raises `UserError` where a run lies behind a URI and Ray has several nodes: checkpoints of such a run are read and written in
    folders of the driver's machine."""
    if num_nodes > 1 and not isinstance(store.storage, LocalStorage):
        raise UserError(
            f"the run folder {store.uri} is behind a URI, which works on one Ray node, and this cluster has {num_nodes}; "
            "take a folder that all nodes share, or one node"
        )


def resource_request(config: RunConfig) -> ResourceRequest:
    """What a config asks of the cluster."""
    cluster = config.cluster
    return ResourceRequest(
        cluster.num_engines, cluster.num_filters, cluster.trainer_ranks, cluster.cpus_per_actor, cluster.use_gpus, cluster.colocated,
        config.engine.tensor_parallel_size,
    )  # fmt: skip


def _trainer(config: RunConfig, placement: Placement) -> TrainerGroup:
    plan = placement.plan
    options = RankOptions(
        plan.trainer_cpus, plan.trainer_gpus, config.training.num_threads, placement.group,
        [plan.trainer_bundle(rank) for rank in range(plan.trainer_ranks)],
    )  # fmt: skip
    return TrainerGroup(plan.trainer_ranks, options, placement.check)


def _fleet(config: RunConfig, policies: Policies, placement: Placement, model: Path) -> Fleet:
    spec = EngineSpec(config.engine.kind, str(model), config.engine_options)
    return engine_fleet(spec, config.generation.options, policies.correction, config.cluster, placement)


def _filters(config: RunConfig, policies: Policies, store: Store, placement: Placement) -> Pool:
    worker = ray.remote(FilterWorker)

    def spawn(index: int) -> Any:
        return worker.options(**placement.filter_options(index)).remote(policies.filters, store.write_part)

    cluster = config.cluster
    return Pool(
        "filter", spawn, placement.plan.num_filters, max_restarts_per_actor=cluster.max_restarts, call_timeout_s=cluster.task_timeout_s,
        start_timeout_s=cluster.start_timeout_s, check_placement=placement.check,
    )  # fmt: skip
