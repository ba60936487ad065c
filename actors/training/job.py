"""Defines training jobs and their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.folders import Folder, RemoteOutput, RemoteSteps
from actors.training.inputs.skips import SkippedSamples
from actors.training.samples import identity_of
from policies.records import TrainingSample
from policies.training.objectives import Dpo

PARAMETER_GROUPS = ("vision_tower", "qformer", "projector", "language_model")
"""Groups that can be frozen or have their own learning rate. `qformer` is the Q-Former with its query tokens, if the model has one.
VIGC trains only `qformer` and `projector`."""

RESULT_FILE = "training_result.json"
"""File in the checkpoint's folder with the result and the fingerprint of its job."""
_WITHOUT_EFFECT = ("max_unreadable_images",)
"""Hyperparameters that decide whether a training goes on, and not what comes of it."""
_ADDED: Mapping[str, Any] = {"packing": False, "early_stop": None, "attention": "auto", "transforms": (), "dpo": None}
"""Hyperparameters that earlier versions lack, with the values that change nothing: jobs with these keep their fingerprint."""


class TrainerError(RuntimeError):
    """Training failed: a rank died, a wait timed out, the loss is not finite, or no sample has a token to learn."""


class RankLostError(TrainerError):
    """A rank died, or the ranks stopped making progress: a fault of the machine, so another attempt may succeed."""


class TrainingCancelledError(TrainerError):
    """The driver ended the training, because something else of the run failed or was interrupted."""


class RendezvousError(TrainerError):
    """A rank cannot reach the others: the network is at fault, or one of the others has died."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters on matrices of the frozen language model (arXiv 2106.09685), merged into them in the checkpoint.

    The defaults are VIGC's LoRA variant.

    Raises:
        ValueError: a value is out of range, or there are no targets.
    """

    rank: int = 8
    alpha: int = 16
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = 0.1
    """Share of an adapter's inputs that is dropped during training."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an adapter, in every layer of the language model."""

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"lora rank must be at least 1, not {self.rank}; for training without adapters omit lora")
        _require(self.alpha > 0, f"lora alpha must be positive, not {self.alpha}")
        _require(0 <= self.dropout < 1, f"lora dropout must be at least 0 and below 1, not {self.dropout}")
        _require(len(self.targets) > 0, "lora needs at least one target, such as q_proj")


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Ends a training whose held-out loss no longer falls; its result is the checkpoint of the best evaluation.

    Raises:
        ValueError: a value is out of range.
    """

    every: int
    """Steps from one evaluation to the next; the last step is evaluated too."""
    patience: int = 3
    """Evaluations in a row without a lower loss that end the training."""
    num_samples: int = 64
    """Conversations to hold out, with all others about the same images."""

    def __post_init__(self) -> None:
        for name in ("every", "patience", "num_samples"):
            _require(getattr(self, name) >= 1, f"early_stop.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How to train. A step is one optimizer update on one global batch.

    Raises:
        ValueError: a value is out of range, or two values exclude each other.
    """

    batch_size: int
    """Conversations per step over all ranks and micro-batches; a multiple of ranks x `gradient_accumulation`."""
    num_steps: int
    learning_rate: float
    """Peak of the schedule: linear warm-up, then cosine decay to `min_learning_rate_ratio` of it."""
    learning_rate_groups: Mapping[str, float] = field(default_factory=dict)
    """Peaks of single groups of `PARAMETER_GROUPS`."""
    frozen: tuple[str, ...] = ()
    """Groups of `PARAMETER_GROUPS` that are not trained; unchanged bit for bit if the precision is the checkpoint's."""
    lora: Lora | None = None
    """Adapters on the language model, which must then be frozen; they use `learning_rate`."""
    weight_decay: float = 0.01
    """Applied to matrices only, not to norms, biases and other vectors."""
    warmup_share: float = 0.03
    min_learning_rate_ratio: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """State that ZeRO keeps in host memory instead of device memory: the optimizer's (stages 2 and 3), and with it the
    partitioned parameters (stage 3). The optimizer then runs on the CPU."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and recompute the rest: less memory for about a third more time."""
    gradient_accumulation: int = 1
    """Micro-batches per rank and step."""
    pixel_noise: float = 0.0
    """Largest standard deviation of Gaussian pixel noise, drawn per image from 0 to this, where white is 1."""
    brightness: float = 0.0
    """Largest relative change of an image's brightness."""
    color_jitter: float = 0.0
    """Largest relative change of each color channel."""
    transforms: tuple[Mapping[str, Any], ...] = ()
    """Further augmentation, before the noise: transforms of torchvision by name, see `actors.transforms`."""
    max_tokens: int = 512
    """Conversations are truncated to this many tokens, including the image's."""
    max_micro_batch_tokens: int | None = None
    """Maximum tokens per forward pass of a rank, including padding: its share of a step is split into as many passes as needed, each of few
    long or many short conversations, which changes neither loss nor gradients. `None`: `gradient_accumulation` passes."""
    packing: bool = False
    """Pack conversations into rows of up to `max_micro_batch_tokens` without padding, one row per forward pass; none sees another. Loss
    and gradients of the step do not change. The trainer refuses models that do not keep them apart."""
    early_stop: EarlyStop | None = None
    """Evaluate on held-out samples of the job and stop when it no longer helps; the schedule is that of `num_steps`."""
    dpo: Dpo | None = None
    """Learn from the job's pairs, too; a job without pairs trains as if it were `None`."""
    attention: str = "auto"
    """transformers' implementation of attention: `sdpa`, `eager`, `flex_attention`, `flash_attention_2` or `flash_attention_3`; `auto` is
    the model's own choice."""
    max_unreadable_images: float = 1.0
    """Largest share of the samples that may be skipped because their images cannot be read; above it, training ends with an error."""
    length_grouping: bool = True
    """Batch conversations of similar length together; batches are then less random, and padding is rarer."""
    interpolation: float = 1.0
    """Position of the checkpoint between the base weights (0) and the trained ones (1). 0.5 keeps most of what short training
    learns and loses less of the base's abilities (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). Where an adapter is written
    (`TrainingJob.adapter_base`), its matrices are interpolated, as a product between two products has twice their rank."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_steps", "gradient_accumulation", "max_tokens"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm", "pixel_noise", "brightness", "color_jitter"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("warmup_share", "min_learning_rate_ratio", "max_unreadable_images"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be between 0 and 1, not {getattr(self, name)}")
        _require(0 < self.interpolation <= 1, f"interpolation must be above 0 and at most 1, not {self.interpolation}")
        for name, rate in {"learning_rate": self.learning_rate, **self.learning_rate_groups}.items():
            _require(rate > 0, f"the learning rate of {name} must be positive, not {rate}; to freeze a group name it in `frozen`")
        unknown = sorted({*self.frozen, *self.learning_rate_groups} - set(PARAMETER_GROUPS))
        _require(not unknown, f"unknown parameter groups {unknown}; expected some of {PARAMETER_GROUPS}")
        both = sorted(set(self.frozen) & set(self.learning_rate_groups))
        _require(not both, f"{both} are frozen and have a learning rate; give one of the two")
        _require(
            set(self.frozen) != set(PARAMETER_GROUPS) or self.lora is not None,
            "all parameter groups are frozen and lora is not set, so nothing would be trained",
        )
        _require(
            self.lora is None or "language_model" in self.frozen,
            "lora trains adapters in place of the language model: name language_model in `frozen`, or omit lora",
        )
        _require(self.precision in ("fp32", "bf16"), f"precision must be fp32 or bf16, not {self.precision!r}")
        _require(self.zero_stage in (0, 1, 2, 3), f"zero_stage must be 0, 1, 2 or 3, not {self.zero_stage}")
        _require(
            self.precision == "fp32" or self.zero_stage > 0,
            "bf16 needs zero_stage 1, 2 or 3: the float32 master weights live in the ZeRO optimizer",
        )
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas must be at least 0 and below 1, not {self.betas}")
        self._check_offload()
        self._check_micro_batches()

    def _check_offload(self) -> None:
        unknown = sorted(set(self.offload) - {"optimizer", "parameters"})
        _require(not unknown, f"offload names {unknown}; expected some of optimizer, parameters")
        _require(
            not self.offload or self.zero_stage in (2, 3),
            f"offload {list(self.offload)} needs zero_stage 2 or 3, which partition what is moved; zero_stage is {self.zero_stage}",
        )
        _require(
            "parameters" not in self.offload or (self.zero_stage == 3 and "optimizer" in self.offload),
            "offload of parameters needs zero_stage 3, which alone partitions them, and the optimizer's beside it: set zero_stage 3 and "
            "offload [optimizer, parameters]",
        )

    def _check_micro_batches(self) -> None:
        limit = self.max_micro_batch_tokens
        if limit is None:
            _require(not self.packing, "packing fills rows of max_micro_batch_tokens tokens; give that key too, or set packing to false")
            return
        _require(
            limit >= self.max_tokens,
            f"max_micro_batch_tokens {limit} has no room for a conversation of max_tokens {self.max_tokens}; raise it, or lower max_tokens",
        )
        _require(
            self.dpo is None or limit >= 2 * self.max_tokens,
            f"max_micro_batch_tokens {limit} has no room for a pair for dpo, two conversations of max_tokens {self.max_tokens}; raise it",
        )
        _require(
            self.gradient_accumulation == 1,
            f"max_micro_batch_tokens decides how many passes a step takes, and gradient_accumulation {self.gradient_accumulation} would do "
            "nothing; give one of the two",
        )

    @property
    def num_samples(self) -> int:
        """Conversations of all steps together."""
        return self.num_steps * self.batch_size

    def micro_batch_size(self, world_size: int) -> int:
        """Conversations per forward pass of one rank.

        Raises:
            ValueError: the global batch cannot be split evenly.
        """
        parts = world_size * self.gradient_accumulation
        _require(
            self.batch_size % parts == 0,
            f"batch_size {self.batch_size} cannot be split over {world_size} ranks x {self.gradient_accumulation} micro-batches",
        )
        return self.batch_size // parts


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training, from checkpoint to checkpoint."""

    base_checkpoint: Folder
    """Hugging Face folder of an image-text-to-text model with its processor."""
    output: Path | RemoteOutput
    """Folder for the trained checkpoint and the processor; it is created atomically, by rank 0."""
    samples: Sequence[TrainingSample]
    """Reshuffled by `seed` for each pass, and cycled until `num_steps` are done."""
    seed: int
    hyper: Hyperparameters
    steps_folder: Path | RemoteSteps | None = None
    """Folder of the step checkpoints, the same for all ranks; if `None`, an interrupted job starts over."""
    steps_between: int = 0
    """Steps between step checkpoints; 0 writes none."""
    adapter_base: str = ""
    """Digest of `base_checkpoint`. If given, `output` also holds the LoRA adapter alone, relative to that checkpoint."""
    adapter: Folder | None = None
    """The adapter of `base_checkpoint` that training starts from; `None` starts a new one."""
    pairs: Sequence[TrainingSample] = ()
    """For `hyper.dpo`: the conversation with the chosen answer of each pair, then that with the rejected one."""

    def __post_init__(self) -> None:
        _require(not self.adapter_base or self.hyper.lora is not None, "only training with lora writes an adapter; set lora")
        _require(self.adapter is None or bool(self.adapter_base), "an adapter to start from needs the digest of its base, adapter_base")
        _require(len(self.samples) > 0, "a training job needs at least one sample")
        _require(len(self.pairs) % 2 == 0, f"pairs are two conversations each, but there are {len(self.pairs)} conversations")
        _require(not self.pairs or self.hyper.dpo is not None, "pairs are for the hyperparameter dpo, which is not set; set it")
        _require(self.steps_between >= 0, f"steps_between must not be negative, but is {self.steps_between}")
        _require(isinstance(self.output, Path) or self.steps_folder is not None, "an output behind a URI needs a steps_folder")

    @property
    def unfinished(self) -> Path | RemoteSteps:
        """Where best weights are kept until the training is finished: with the step checkpoints, if there are any."""
        if self.steps_folder is not None:
            return self.steps_folder
        assert isinstance(self.output, Path), "others have a steps_folder"
        return self.output.with_name(f"{self.output.name}.best")

    def fingerprint(self) -> str:
        """SHA-256 over everything that determines the result, not `output` and step checkpoints."""
        said = {
            "base_checkpoint": str(self.base_checkpoint),
            "samples": identity_of(self.samples),
            "seed": self.seed,
            "hyper": {name: value for name, value in asdict(self.hyper).items() if not _is_left_out(name, value)},
        }
        if self.adapter_base:
            said |= {"adapter_base": self.adapter_base, "adapter": str(self.adapter)}
        if self.pairs:
            said["pairs"] = identity_of(self.pairs)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TrainedStep:
    """How a step went: its number from 1, when it ended (seconds since the epoch of time), the mean cross-entropy per target token in nats
    (`None` without target tokens), the learning rate, the norm of all gradients before clipping (`None` where DeepSpeed computes none), and
    target tokens of all ranks per second (`None` for the first step of a process)."""

    step: int
    at: float
    loss: float | None
    learning_rate: float
    gradient_norm: float | None
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Report of a finished job. Losses are mean cross-entropies per target token in nats, over the steps that had any."""

    num_steps: int
    final_loss: float
    """Mean over the last window of steps that had target tokens."""
    mean_loss: float
    losses: tuple[tuple[int, float], ...]
    """`(steps done, mean loss since the previous point)`, about 100 points; none for a window without target tokens."""
    num_target_tokens: int
    """Tokens with a loss, over all steps and ranks."""
    num_skipped_samples: int
    """Samples that were skipped because their image or text is bad, each counted once."""
    seconds: float
    digest: str
    """`actors.engines.weights.digest_of` the checkpoint in `output`."""
    resumed_from_step: int = 0
    """Step of the checkpoint that training continued from; 0 if it started anew."""
    num_empty_steps: int = 0
    """Steps without a target token, because all their samples were skipped. They have no loss and change no weight."""
    skipped: tuple[SkippedSamples, ...] = ()
    """`num_skipped_samples` by reason."""
    held_out_losses: tuple[tuple[int, float], ...] = ()
    """`(steps done, mean loss per target token)` on the samples held out for `early_stop`; empty without it."""
    num_pairs: int = 0
    """Pairs that the job learned from."""
    num_skipped_pairs: int = 0
    """Pairs that it did not, because their image or text is bad, or their image is held out for `early_stop`."""
    pair_points: tuple[tuple[int, float, float, float], ...] = ()
    """`(steps done, DPO loss, accuracy, margin)`, means over the pairs since the previous point, as `losses`. The margin is DPO's
    implicit reward of the chosen answer less that of the rejected one; the accuracy is the share of margins above 0."""
    steps: tuple[TrainedStep, ...] = field(default=(), compare=False, repr=False)
    """The latest steps of this process; not stored."""

    @property
    def best_step(self) -> int:
        """Steps before the evaluation whose weights are the checkpoint's; `num_steps` without `early_stop`."""
        return min(self.held_out_losses, key=lambda one: (one[1], one[0]))[0] if self.held_out_losses else self.num_steps


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job."""

    step: int
    num_steps: int
    loss: float | None
    """Mean loss of the last finished window of steps; `None` before the first."""
    num_measured: int = 0
    """Pairs of this rank whose reference has been measured, before the first step."""
    steps: tuple[TrainedStep, ...] = ()
    """The latest, of finished windows."""


def _is_left_out(name: str, value: Any) -> bool:
    """Whether a hyperparameter is no part of a job's fingerprint."""
    return name in _WITHOUT_EFFECT or (name in _ADDED and value == _ADDED[name])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
