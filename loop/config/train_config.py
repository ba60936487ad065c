"""The config of `vigc train`: a model, the stages it is trained in, and where the ranks run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from loop.config.engine_config import RayConfig
from loop.config.run_config import model_path, read_document, validated
from loop.config.sections import Section
from loop.config.sets import LabelledSet
from loop.config.tracking_config import MonitorNames, TrainingTracking
from loop.config.training_config import TrainingConfig, check_ranks
from loop.errors import UserError

Form = Literal["conversations", "captions", "bare_captions", "vigc"]


class TrainCluster(RayConfig):
    """Where the trainer's ranks run; the keys are those of a run's `cluster`."""

    trainer_ranks: int = Field(1, ge=1, description="DeepSpeed ranks")
    cpus_per_actor: int = Field(1, ge=1, description="CPUs of a rank")
    use_gpus: bool = Field(False, description="one GPU for each rank")
    start_timeout_s: float = Field(180, gt=0, description="time limit for starting Ray, and for starting the ranks")
    max_restarts: int = Field(3, ge=0, description="times that lost ranks are replaced in a stage before the training ends")


class TrainStage(Section):
    """One training, from the checkpoint of the stage before."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60, description="name of the stage and of its checkpoint's folder")
    data: LabelledSet = Field(description="where the samples come from")
    form: Form = Field(
        "conversations",
        description="what a sample is: conversations (whole ones), captions (an instruction and a caption), bare_captions (the image, then "
        "its caption), or vigc (VIG and VIC pairs)",
    )
    num_samples: int | None = Field(None, ge=1, description="samples drawn; null takes each once (of shapes and drawings: one per image)")
    training: TrainingConfig = Field(description="how it is trained: the section `training` of a run")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> TrainStage:
        if self.form == "vigc" and self.num_samples is None:
            raise ValueError("form vigc draws any number of samples; set num_samples")
        if self.training.dpo is not None:
            raise ValueError("objective dpo learns from what correction changes in a round of `vigc run`; set objective sft")
        return self


class TrainConfig(Section):
    """A model and its stages, in order."""

    name: str = Field("train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="name of the training and its folder")
    seed: int = Field(17, ge=0, description="every stage's seeds derive from it")
    model: str = Field(
        "embedded", description="`embedded`, `embedded-drawings`, a folder, or a Hugging Face id of an image-text-to-text model"
    )
    stages: tuple[TrainStage, ...] = Field(min_length=1, description="trained one after the other")
    cluster: TrainCluster = Field(default_factory=lambda: TrainCluster.model_validate({}), description="where the ranks run")
    monitors: MonitorNames = Field(
        ("mlflow",), description="who follows the training: mlflow, jsonl, tensorboard, wandb, or a class of your own as module:Name"
    )
    tracking: TrainingTracking = Field(
        default_factory=lambda: TrainingTracking.model_validate({}), description="the monitor mlflow, a mirror of the training in MLflow"
    )

    @model_validator(mode="after")
    def _stages_have_names_of_their_own(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several stages are called {twice}; give each a unique name")
        return self

    @model_validator(mode="after")
    def _ranks_can_train(self) -> TrainConfig:
        for number, stage in enumerate(self.stages):
            check_ranks(stage.training, self.cluster.trainer_ranks, use_gpus=self.cluster.use_gpus, where=f"stages.{number}.training")
        threads = {stage.training.num_threads for stage in self.stages}
        if len(threads) > 1:
            raise ValueError(f"all stages share the ranks, but num_threads is {sorted(threads)}; give all stages the same")
        return self

    @property
    def model_path(self) -> str:
        """Folder or Hugging Face id of the model."""
        return model_path(self.model)


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The config of a training in a YAML file with dotted overrides applied.

    Raises:
        UserError: the file cannot be read, or is the config of a run, or a key or value does not fit; one line per finding.
    """
    document = read_document(path, overrides)
    if "stages" not in document and ("image_sets" in document or "seed_data" in document):
        raise UserError(f"{path} is the config of a run; start it with `vigc run {path}` (a training has `stages`)")
    return validated(TrainConfig, document)


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Dotted keys in which two plain documents differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = dict.fromkeys([*first, *second])
        return [found for key in keys for found in differences(first.get(key), second.get(key), f"{place}{key}.")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [
            found
            for index, (one, other) in enumerate(zip(first, second, strict=True))
            for found in differences(one, other, f"{place}{index}.")
        ]
    return [] if first == second else [place.removesuffix(".")]
