"""The config of a run: one YAML file plus dotted overrides, every key checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from loop.config.cleaning_config import DecontaminationConfig, DeduplicationConfig
from loop.config.engine_config import ClusterConfig, EngineConfig, TransformersEngineConfig
from loop.config.generation_config import GenerationConfig
from loop.config.overrides import apply_override
from loop.config.sections import Policy, PolicySpec, Section, listed
from loop.config.sets import MAX_IMAGES, ImageSet, LabelledSet, WorldSet
from loop.config.suggestions import meant_key, spelled
from loop.config.tracking_config import MAX_LABEL_CHARACTERS, Label, MonitorNames, TrackingConfig, check_distinct
from loop.config.training_config import TrainingConfig, check_ranks
from loop.config.yaml_input import MAX_BYTES, read_yaml
from loop.credentials import keys_with_credentials
from loop.errors import UserError, one_line
from policies.scoring.answer_metrics import AUTO, YES_NO
from policies.texts import decoded_text

EMBEDDED_MODEL = Path(__file__).parents[1] / "models" / "seed" / "checkpoint"
"""The seed model of the world `shapes`, shipped with the project; `model: embedded` in a config."""
EMBEDDED_MODELS = {"embedded": EMBEDDED_MODEL, "embedded-drawings": EMBEDDED_MODEL.with_name("drawings_checkpoint")}
"""The shipped seed models, by their names in a config."""

_MAX_VLLM_TEMPERATURE = 2.0

_MAX_VLLM_RANK = 512
"""Of adapters; as `actors.engines.vllm.options.ADAPTER_RANKS`, which costs an import of torch."""

_COLOCATED_GPU_SHARE = 0.5
"""Largest share of a GPU's memory for an engine that is colocated with a trainer rank and does not sleep while it trains."""


_MAX_QUESTIONS = 1_000_000
_HOLDS_CREDENTIALS = (
    "holds credentials, which the run folder would keep; set them in the environment, such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY for s3://"
)
_Config = TypeVar("_Config", bound=Section)


class SeedData(Section):
    """The labelled data that every training set replays."""

    data: LabelledSet = Field(description="where the samples come from")
    num_samples: int = Field(8000, ge=1, le=MAX_IMAGES, description="samples drawn from it, VIG and VIC mixed")


class HeldOutSet(Section):
    """Questions with right answers that are never trained on."""

    data: LabelledSet = Field(description="where the questions come from")
    num_questions: int = Field(200, ge=1, le=_MAX_QUESTIONS, description="questions drawn from it")
    metric: PolicySpec = Field(
        default_factory=lambda: Policy(policy=AUTO), description="how answers are scored; auto chooses by the data, a dry run shows what"
    )

    @model_validator(mode="after")
    def _auto_has_no_options(self) -> HeldOutSet:
        if self.metric.policy == AUTO and self.metric.options:
            raise ValueError(f"metric auto takes no options, but was given {', '.join(self.metric.options)}; name the metric they are for")
        return self


class AcceptanceSet(HeldOutSet):
    """Held-out questions that the acceptance policy decides on."""

    seed_domain: bool = Field(False, description="its questions resemble the seed data; policy evidence guards it against forgetting")
    yes_no: bool = Field(
        False, description="score answers as yes or no only, as POPE does; policy evidence guards against yes where no is right"
    )

    @model_validator(mode="after")
    def _yes_no_can_be_read(self) -> AcceptanceSet:
        if self.yes_no and self.metric.policy not in (AUTO, YES_NO):
            raise ValueError(f"yes_no true scores answers by the metric yes_no, but metric is {self.metric.policy}; drop one of the two")
        if self.yes_no and isinstance(self.data, WorldSet):
            raise ValueError(
                f"yes_no true is for data whose answers begin with yes or no; {self.data.kind} has whole sentences and knows the truth"
            )
        return self


class RetentionConfig(Section):
    keep_last: int | None = Field(
        3, ge=1, description="latest rounds whose checkpoints are kept, besides the seed model's and the champion's; null keeps all"
    )
    keep_every: int | None = Field(None, ge=1, description="keep the checkpoint of every round divisible by this number too; null: none")

    @model_validator(mode="after")
    def _something_goes(self) -> RetentionConfig:
        if self.keep_last is None and self.keep_every is not None:
            raise ValueError(f"keep_every {self.keep_every} has no effect because keep_last null keeps all; drop one of the two")
        return self


def _policy(name: str, description: str) -> Any:
    return Field(default_factory=lambda: Policy(policy=name), description=description)


def _defaults(section: type[Section], description: str) -> Any:
    return Field(default_factory=section, description=description)


class RunConfig(Section):
    """The complete config of a run."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_LABEL_CHARACTERS, description="name of the run and of its folder"
    )
    seed: int = Field(17, ge=0, description="the run seed; every shard's seed derives from it")
    rounds: int = Field(3, ge=1, description="largest number of rounds")
    model: str = Field(
        "embedded", description="`embedded`, `embedded-drawings`, a folder, or a Hugging Face id of an image-text-to-text model"
    )
    seed_data: SeedData = Field(description="labelled data that training replays")
    image_sets: tuple[ImageSet, ...] = Field(min_length=1, description="unlabelled images; the schedule says which a round draws from")
    held_out: dict[Label, HeldOutSet] = Field(min_length=1, description="sets on which every champion is reported; they decide nothing")
    acceptance_sets: dict[Label, AcceptanceSet] = Field(min_length=1, description="sets that the acceptance policy decides on")
    decontamination: DecontaminationConfig = _defaults(DecontaminationConfig, "what is kept out of training because it is tested on")
    answer_max_new_tokens: int = Field(64, ge=1, description="largest number of tokens in an answer to a held-out question")
    engine: EngineConfig = _defaults(TransformersEngineConfig, "what runs the model: a kind, or a mapping with its settings")
    cluster: ClusterConfig = _defaults(ClusterConfig, "where the actors run")
    generation: GenerationConfig = _defaults(GenerationConfig, "how records are generated (VIG)")
    correction: PolicySpec = _policy("sentence_by_sentence", "how generated questions are answered again (VIC)")
    filters: tuple[PolicySpec, ...] = Field(description="the chain of filters, in order; empty keeps everything that has a question")
    deduplication: DeduplicationConfig | None = _defaults(
        DeduplicationConfig, "which accepted records are rejected because they repeat others; null looks for none"
    )
    selection: PolicySpec = _policy("all", "which accepted records are trained on")
    mixing: PolicySpec = _policy("replay", "how seed data and generated records become a training set")
    schedule: PolicySpec = _policy("in_order", "which image set a round draws from")
    start: PolicySpec = _policy("champion", "which checkpoint a candidate is trained from")
    training: TrainingConfig = _defaults(TrainingConfig, "how a candidate is trained")
    acceptance: PolicySpec = _policy("paired_test", "whether a candidate becomes the champion")
    stop: PolicySpec = _policy("rounds", "when the loop ends")
    overlap: Literal[0, 1] = Field(
        0,
        description="rounds that the engines write ahead: 0 trains and writes in turn; 1 writes the next round with the present champion "
        "while the candidate trains, on devices of its own",
    )
    stale_records: Literal["keep", "correct", "drop"] = Field(
        "keep",
        description="what becomes of records written ahead when the candidate is accepted: keep uses them as they are, correct has the new "
        "champion correct them again, drop sets them aside and has it write new ones",
    )
    on_empty_round: Literal["stop", "reject"] = Field(
        "stop",
        description="what to do when no record of a round was accepted: stop ends the run with the reason, reject commits the round as "
        "rejected, without training, and continues",
    )
    control: Annotated[tuple[Literal["seed_only", "no_correction"], ...], BeforeValidator(listed)] = Field(
        (),
        description="controls trained beside each candidate for comparison, any of seed_only, no_correction; they decide nothing",
    )
    transport: Literal["checkpoint", "object_store", "native", "adapter"] = Field(
        "checkpoint",
        description="how weights travel to the engines; native is vLLM's own transfer: NCCL, CUDA IPC, or gloo on CPUs; adapter sends "
        "only the adapter of training.lora, which engines apply beside the seed model's weights",
    )
    monitors: MonitorNames = Field(
        ("mlflow",), description="who follows the run: mlflow, jsonl, tensorboard, wandb, or a class of your own as module:Name"
    )
    tracking: TrackingConfig = _defaults(TrackingConfig, "the monitor mlflow, a mirror of the run in MLflow")
    retention: RetentionConfig = _defaults(RetentionConfig, "which checkpoints are kept; all other data always is")

    @model_validator(mode="after")
    def _ranks_can_train(self) -> RunConfig:
        check_ranks(self.training, self.cluster.trainer_ranks, use_gpus=self.cluster.use_gpus)
        return self

    @model_validator(mode="after")
    def _what_needs_correction_has_it(self) -> RunConfig:
        if len(set(self.control)) < len(self.control):
            raise ValueError(f"control names {', '.join(self.control)}; name each once")
        if "no_correction" in self.control and self.correction.policy == "none":
            raise ValueError("control no_correction equals the run itself when correction is none; drop one of the two")
        if self.training.dpo is not None and self.correction.policy == "none":
            raise ValueError("training.objective dpo has no pairs when correction is none, which changes no answer; set objective sft")
        return self

    @model_validator(mode="after")
    def _overlap_hides_something(self) -> RunConfig:
        if self.overlap and self.cluster.colocated:
            raise ValueError(
                "overlap 1 has nothing to gain where engines and trainer ranks take turns on the same devices; give them their own with "
                "cluster.colocated false, or set overlap 0"
            )
        if self.stale_records != "keep" and not self.overlap:
            raise ValueError(f"stale_records {self.stale_records} does nothing with overlap 0, which leaves no stale records; drop it")
        if self.stale_records == "correct" and self.correction.policy == "none":
            raise ValueError("stale_records correct changes nothing when correction is none; set stale_records keep or drop")
        return self

    @model_validator(mode="after")
    def _sets_are_told_apart(self) -> RunConfig:
        for kind, names in (("held_out", self.held_out), ("acceptance_sets", self.acceptance_sets)):
            check_distinct(kind, list(names))
        return self

    @model_validator(mode="after")
    def _a_seed_domain_is_guarded(self) -> RunConfig:
        named = [name for name, one in self.acceptance_sets.items() if one.seed_domain]
        if named and self.acceptance.policy in ("always", "paired_test"):
            raise ValueError(
                f"seed_domain of the acceptance set {named[0]} does nothing under the policy {self.acceptance.policy}; "
                "drop it, or set acceptance evidence"
            )
        if self.acceptance.policy == "evidence" and "max_forgetting" in self.acceptance.options and not named:
            raise ValueError("max_forgetting does nothing without an acceptance set of the seed domain; set seed_domain true on one")
        return self

    @model_validator(mode="after")
    def _gpus_are_used_or_not(self) -> RunConfig:
        if self.cluster.use_gpus != (self.engine.device == "cuda"):
            raise ValueError(
                f"engine.device {self.engine.device} does not go with cluster.use_gpus {str(self.cluster.use_gpus).lower()}; "
                "set engine.device cuda with cluster.use_gpus true, or engine.device cpu with cluster.use_gpus false"
            )
        return self

    @model_validator(mode="after")
    def _has_what_the_engine_needs(self) -> RunConfig:
        engine, cluster = self.engine, self.cluster
        if self.generation.structured and engine.kind != "vllm":
            raise ValueError(f"generation.structured needs engine.kind vllm, which can force a form; it is {engine.kind}")
        if isinstance(engine, TransformersEngineConfig):
            return self
        if cluster.sleep_while_training and engine.device == "cpu":
            raise ValueError(
                "cluster.sleep_while_training needs vLLM's sleep mode, which its CPU build lacks; drop it, or set engine.kind transformers"
            )
        if self.generation.temperature > _MAX_VLLM_TEMPERATURE:
            raise ValueError(f"vLLM samples at temperatures up to {_MAX_VLLM_TEMPERATURE:g}; lower generation.temperature")
        if cluster.colocated and cluster.use_gpus and engine.tensor_parallel_size > 1:
            raise ValueError("an engine with engine.tensor_parallel_size above 1 has GPUs of its own; set cluster.colocated false")
        beside = cluster.colocated and cluster.use_gpus and not cluster.sleep_while_training
        if beside and engine.gpu_memory_utilization > _COLOCATED_GPU_SHARE:
            raise ValueError(
                f"engine.gpu_memory_utilization {engine.gpu_memory_utilization} leaves a colocated trainer no room on the GPU; "
                f"set it to at most {_COLOCATED_GPU_SHARE}, or set cluster.sleep_while_training true, or cluster.colocated false"
            )
        num_threads = engine.tensor_parallel_size * engine.num_threads
        if not cluster.use_gpus and num_threads > cluster.cpus_per_actor:
            raise ValueError(
                f"an engine of {engine.tensor_parallel_size} processes with {engine.num_threads} thread(s) needs cluster.cpus_per_actor "
                f"{num_threads}; it is {cluster.cpus_per_actor}"
            )
        return self

    @model_validator(mode="after")
    def _weights_reach_the_engines(self) -> RunConfig:
        trained = {"fp32": "float32", "bf16": "bfloat16"}[self.training.precision]
        if self.engine.dtype != trained:
            raise ValueError(
                f"training.precision {self.training.precision} writes {trained} weights, which an engine with engine.dtype "
                f"{self.engine.dtype} refuses; make the two the same"
            )
        if self.cluster.sleep_while_training and self.transport == "native":
            raise ValueError(
                "transport native keeps a copy of the served weights in the sender, in the memory that cluster.sleep_while_training "
                "frees; set transport checkpoint or object_store"
            )
        return self

    @model_validator(mode="after")
    def _an_adapter_can_travel(self) -> RunConfig:
        lora = self.training.lora
        if self.transport != "adapter":
            return self
        if lora is None:
            raise ValueError("transport adapter sends the adapter of training.lora, which is not set; set it, or set transport checkpoint")
        if self.generation.mean_teacher_decay is not None:
            raise ValueError(
                f"generation.mean_teacher_decay {self.generation.mean_teacher_decay:g} averages whole weights, and transport adapter sends "
                "adapters alone; set transport checkpoint, or drop generation.mean_teacher_decay"
            )
        if self.engine.kind == "vllm" and lora.rank > _MAX_VLLM_RANK:
            raise ValueError(f"vLLM applies adapters up to rank {_MAX_VLLM_RANK}, and training.lora.rank is {lora.rank}; lower it")
        return self

    @property
    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments of the engine."""
        sleeps = self.cluster.sleep_while_training and self.engine.kind == "vllm"  # other engines can sleep without it
        adapters: dict[str, Any] = {}
        if self.transport == "adapter" and self.engine.kind == "vllm" and (lora := self.training.lora) is not None:
            adapters = {"adapter_rank": lora.rank, "adapter_targets": lora.targets}
        return self.engine.options | adapters | ({"sleeps": True} if sleeps else {})

    @property
    def data_sets(self) -> list[Section]:
        """The sets of images and of labelled data."""
        return [*self.image_sets, self.seed_data.data, *(one.data for one in (*self.held_out.values(), *self.acceptance_sets.values()))]

    @property
    def model_path(self) -> str:
        """Folder or Hugging Face id of the seed model."""
        return model_path(self.model)


def model_path(model: str) -> str:
    """Folder (absolute: actors may have another working folder) or Hugging Face id of the model that a config names."""
    if model in EMBEDDED_MODELS:
        return str(EMBEDDED_MODELS[model])
    folder = os.path.expanduser(model)
    return str(Path(folder).absolute()) if os.path.isdir(folder) else model


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run in a YAML file with dotted overrides such as `training.num_steps=50` applied.

    Raises:
        UserError: the file cannot be read, or a key or value does not fit; one line per finding.
    """
    document = read_document(path, overrides)
    if "stages" in document and "image_sets" not in document:
        raise UserError(f"{path} is a config of training in stages; start it with `vigc train {path}`")
    return parse_config(document)


def read_document(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file with dotted overrides applied; its keys are not checked. Raises `UserError`."""
    if path.is_dir():
        raise UserError(f"cannot read the config {path}: it is a folder; give a YAML file, such as loop/recipes/shapes.yaml")
    try:
        with path.open("rb") as file:
            document = read_yaml(decoded_text(file.read(MAX_BYTES + 1)))
    except (OSError, ValueError) as error:
        reason = f"{error.strerror}; check the path" if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"cannot read the config {path}: {reason}") from error
    if not isinstance(document, dict):
        raise UserError(f"the config {path} is not a mapping; expected keys such as those in loop/recipes/shapes.yaml")
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if given.setdefault(key, value) != value:
            raise UserError(f"override {key} is given twice, as {given[key][:80]!r} and {value[:80]!r}; keep one of them")
        apply_override(document, override)
    if places := list(keys_with_credentials(document)):
        raise UserError("\n".join(f"{place}: {_HOLDS_CREDENTIALS}" for place in places))
    return document


def parse_config(document: dict[str, Any]) -> RunConfig:
    """The config in a mapping; raises `UserError` with one line per finding."""
    return validated(RunConfig, document)


def stored_config(document: dict[str, Any]) -> RunConfig:
    """The config that a run was started with. What it lacks keeps its earlier meaning: metrics word by word, no search for duplicates, no
    decontamination."""
    document.setdefault("deduplication", None)
    document.setdefault("decontamination", {"images": False, "questions": False})
    for section in ("held_out", "acceptance_sets"):
        for one in document.get(section, {}).values():
            one.setdefault("metric", YES_NO if one.get("yes_no") else "exact")
    return parse_config(document)


def validated(model: type[_Config], document: dict[str, Any]) -> _Config:
    """A mapping as a config of that kind; raises `UserError` with one line per finding."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        items = error.errors()
        places = [item["loc"] for item in items]
        # A bad entry is also missing from its list, which pydantic then reports as too short.
        real = [item for item in items if item["type"] != "too_short" or not any(_is_inside(place, item["loc"]) for place in places)]
        raise UserError("\n".join(_finding(model, item) for item in real)) from error


def _is_inside(place: tuple[str | int, ...], other: tuple[str | int, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _finding(model: type[Section], item: Any) -> str:
    where = ".".join(spelled(model, item["loc"])) or "config"
    if item["type"] == "extra_forbidden":
        meant = meant_key(model, item["loc"])
        return f"{where}: unknown key; {f'did you mean {meant}?' if meant else 'remove it or correct its spelling'}"
    given = "" if item["type"] == "missing" or isinstance(item["input"], Section | dict) else f" (given: {str(item['input'])[:80]!r})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{given}"
