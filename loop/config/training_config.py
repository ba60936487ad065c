"""The config section `training`: how a round's candidate is trained, and a stage of `vigc train`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from actors.training.job import EarlyStop, Hyperparameters, Lora
from loop.config.sections import Policy, PolicySpec, Section
from policies.training.objectives import OBJECTIVES, Dpo


class TrainingConfig(Section):
    objective: PolicySpec = Field(
        default_factory=lambda: Policy(policy="sft"),
        description="sft, or dpo: learn the training set, and beside it to prefer corrected answers to the original ones of the round",
    )
    num_steps: int | None = Field(200, ge=1, description="optimizer steps; null where num_epochs is given")
    num_epochs: float | None = Field(
        None, gt=0, description="passes over the data, instead of num_steps; in a run, over seed data and generated records together"
    )
    batch_size: int = Field(64, ge=1, description="samples per step over all ranks")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per step and rank")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    learning_rate_groups: dict[str, float] = Field(
        default_factory=dict, description="other peak rates for some of vision_tower, qformer, projector, language_model"
    )
    frozen: tuple[str, ...] = Field((), description="groups that are not trained: vision_tower, qformer, projector, language_model")
    lora: Lora | None = Field(None, description="adapters on the frozen language model: rank, alpha, dropout, targets")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's decay of the gradient's mean and of its square")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay; none on norms and biases")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    min_learning_rate_ratio: float = Field(0.05, ge=0, le=1, description="final rate of the cosine schedule, as a share of the peak")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="training precision")
    zero_stage: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage")
    offload: tuple[Literal["optimizer", "parameters"], ...] = Field(
        (), description="kept in the host's memory: the optimizer's state (zero_stage 2, 3), and the parameters (zero_stage 3)"
    )
    activation_checkpointing: bool = Field(False, description="compute activations again in the backward pass instead of keeping them")
    length_grouping: bool = Field(True, description="batch conversations of similar length, which need less padding")
    pixel_noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation of noise on training images, where white is 1")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of brightness of training images")
    color_jitter: float = Field(0.0, ge=0, lt=1, description="largest relative change of each color channel's gain")
    transforms: tuple[dict[str, Any], ...] = Field(
        (),
        description="more augmentation of training images: transforms of torchvision.transforms.v2 as {NAME: {ARGUMENT: VALUE}}, in order",
    )
    interpolation: float = Field(1.0, gt=0, le=1, description="the candidate, between the starting weights (0) and the trained ones (1)")
    max_unreadable_images: float = Field(
        0.05, ge=0, le=1, description="share of the samples whose images cannot be read above which the training ends with an error"
    )
    max_tokens: int = Field(512, ge=8, description="longest conversation in tokens, the image's included; longer ones are cut")
    max_micro_batch_tokens: int | None = Field(
        None, ge=8, description="tokens, padding included, of one forward pass of a rank, instead of gradient_accumulation"
    )
    packing: bool = Field(
        False, description="pack conversations into rows of max_micro_batch_tokens without padding, none of which sees another"
    )
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = Field(
        "auto", description="transformers' implementation of attention; auto is the model's own choice"
    )
    early_stop: EarlyStop | None = Field(
        None, description="stop when the loss on num_samples held-out samples, taken every some steps, has not fallen for patience times"
    )
    num_threads: int = Field(1, ge=1, description="torch threads per rank")
    checkpoint_steps: int = Field(50, ge=0, description="steps between step checkpoints; 0 writes none, and a resumed training starts over")
    stall_timeout_s: float = Field(600, gt=0, description="time limit for one step, for loading the model, and for writing it")
    timeout_s: float = Field(3600, gt=0, description="time limit for the training of a round")

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("num_epochs") is not None:
            if value.get("num_steps") is not None:
                raise ValueError(
                    f"num_steps {value['num_steps']} and num_epochs {value['num_epochs']} exclude each other; set one of them to null"
                )
            return {**value, "num_steps": None}
        return value

    @model_validator(mode="after")
    def _trainable(self) -> TrainingConfig:
        if self.num_steps is None and self.num_epochs is None:
            raise ValueError("num_steps and num_epochs are both null; give one of them")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of gradient_accumulation {self.gradient_accumulation}")
        self.hyperparameters(num_samples=1)
        return self

    def steps_for(self, num_samples: int) -> int:
        """Number of steps for this many samples; with `num_epochs` the last batch is filled from the next pass."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.num_epochs is not None, "one of the two is given"
        return max(1, math.ceil(self.num_epochs * num_samples / self.batch_size))

    def hyperparameters(self, num_samples: int) -> Hyperparameters:
        """The trainer's hyperparameters for this many samples; raises `ValueError` if values exclude each other."""
        of_the_driver = {"num_epochs", "num_threads", "checkpoint_steps", "stall_timeout_s", "timeout_s"}
        built = {"num_steps": self.steps_for(num_samples), "lora": self.lora, "early_stop": self.early_stop, "dpo": self.dpo}
        return Hyperparameters(**self.model_dump(exclude={*of_the_driver, *built, "objective"}), **built)

    @property
    def dpo(self) -> Dpo | None:
        """The objective, if it is DPO; raises `ValueError` if it does not exist or refuses its options."""
        objective = OBJECTIVES.build(self.objective.policy, self.objective.options)
        return objective if isinstance(objective, Dpo) else None


def check_ranks(training: TrainingConfig, num_ranks: int, *, use_gpus: bool, where: str = "training") -> None:
    """Check a training against its ranks.

    Raises:
        ValueError: they cannot share its batch, or a key has no effect there.
    """
    micro = training.batch_size // training.gradient_accumulation
    if micro % num_ranks:
        raise ValueError(
            f"{where}.batch_size / gradient_accumulation = {micro} cannot be shared by {num_ranks} trainer ranks; choose a multiple"
        )
    if training.dpo is not None and training.dpo.pairs_per_step % num_ranks:
        raise ValueError(
            f"{where}.objective.dpo.pairs_per_step {training.dpo.pairs_per_step} cannot be shared by {num_ranks} trainer ranks; choose a "
            "multiple"
        )
    if training.offload and not use_gpus:
        raise ValueError(
            f"{where}.offload {list(training.offload)} moves GPU memory to the host, but with cluster.use_gpus false everything is "
            "there already; drop it, or set cluster.use_gpus true"
        )
