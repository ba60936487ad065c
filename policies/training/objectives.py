"""Training objectives: what a candidate is trained to do, and which pairs of answers it learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.checks import check_at_least
from policies.correction.methods import CorrectionPolicy
from policies.registry import Registry


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: the cross-entropy of the answers of the training set."""


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Supervised fine-tuning, and beside it direct preference optimization (DPO; Rafailov et al. 2023, arXiv 2305.18290, equation 7)
    on the pairs of the round: the corrected answer is chosen, VIG's original one rejected. The reference is the checkpoint that training
    starts from. The loss of a step is the mean cross-entropy per token plus `weight` times the mean DPO loss per pair.

    Options:
        beta: how strongly a preference is bound to the reference; DPO's beta.
        weight: of the DPO loss.
        pairs_per_step: pairs of a step over all ranks, beside the batch_size conversations; a multiple of the trainer ranks.
        min_agreement_gain: the least evidence for a pair: the share of the answers on other views of the image that say what the corrected
            answer says, less the share that says what the original one says. None does not compare them.
        min_logprob_gain: nats per token by which the mean log-probability of the corrected answer must exceed that of VIG's output, which
            has the original answer in it. None does not compare them.
    """

    beta: float = 0.1
    weight: float = 1.0
    pairs_per_step: int = 8
    min_agreement_gain: float | None = 0.5
    min_logprob_gain: float | None = None

    def __post_init__(self) -> None:
        for name in ("beta", "weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a number above 0")
        check_at_least("pairs_per_step", self.pairs_per_step, 1)
        if not isinstance(self.pairs_per_step, int):
            raise ValueError(f"pairs_per_step is {self.pairs_per_step}; expected a whole number")
        if self.min_agreement_gain is not None and not -1 <= self.min_agreement_gain <= 1:
            raise ValueError(f"min_agreement_gain is {self.min_agreement_gain}; expected a difference of two shares, from -1 to 1")
        if self.min_logprob_gain is not None and not math.isfinite(self.min_logprob_gain):
            raise ValueError(f"min_logprob_gain is {self.min_logprob_gain}; expected a finite number of nats per token")

    def missing(self, correction: CorrectionPolicy) -> str:
        """What to change in the correction settings so that they make pairs and measure the evidence; empty if nothing."""
        if correction.skip:
            return "a correction other than `none`, which changes no answer"
        if self.min_agreement_gain is not None and not correction.num_views:
            return "correction num_views of 1 or more (or its own min_agreement_gain null)"
        return ""

    @property
    def evidence(self) -> str:
        """The least evidence in a few words."""
        least = {"min_agreement_gain": self.min_agreement_gain, "min_logprob_gain": self.min_logprob_gain}
        return ", ".join(f"{name} {value:g}" for name, value in least.items() if value is not None)


Objective = Sft | Dpo


def _faults(objective: object) -> list[str]:
    return [] if isinstance(objective, Objective) else ["it extends neither Sft nor Dpo of policies.training.objectives"]


OBJECTIVES: Registry[Objective] = Registry("training objective", _faults)
# Not by decorator, which would hide the types by which the trainer distinguishes them.
OBJECTIVES.register("sft")(Sft)
OBJECTIVES.register("dpo")(Dpo)
