"""The config section `generation`: how records are generated (VIG)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from actors.generator import GeneratorOptions
from loop.config.sections import POLICY_NAME, Policy, PolicySpec, Section
from loop.config.sets import TypeName
from policies.generation.instructions import QuestionType

_MOVED_VIEWS = {"flat_background": "loop.sources.shapes.views:flat_background"}
"""Names from earlier versions, which stored configs may still contain."""


def _moved_view(name: Any) -> Any:
    return _MOVED_VIEWS.get(name, name) if isinstance(name, str) else name


class GenerationConfig(Section):
    instructions: PolicySpec = Field(default_factory=lambda: Policy(policy="canonical"), description="instruction policy")
    type_mix: dict[TypeName, float] = Field(
        default_factory=lambda: {QuestionType.CONVERSATION: 0.45, QuestionType.DETAIL: 0.2, QuestionType.COMPLEX: 0.35},
        description="shares of the question types",
    )
    num_per_image: int = Field(2, ge=1, description="records tried per image")
    num_shards: int = Field(64, ge=1, description="least number of shards a round is cut into; the unit of work and of resuming")
    max_records_per_shard: int = Field(500, ge=1, description="larger rounds are cut into more shards, of at most about this many records")
    temperature: float = Field(1.0, ge=0, description="sampling temperature of VIG; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of VIG's sampling")
    max_new_tokens: int = Field(96, ge=1, description="largest number of tokens in a VIG output")
    structured: bool = Field(False, description="force VIG's form `Question: ... Answer: ...` on what is generated (engine vllm)")
    view: Annotated[str, BeforeValidator(_moved_view)] = Field(
        "raw",
        pattern=POLICY_NAME,
        description="what generator and corrector are shown: raw, or a function as module:name; training and evaluation see the raw image",
    )
    mean_teacher_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="a mean teacher writes the records: after each accepted round it keeps this share of its weights and takes the rest "
        "from the champion; null: the champion writes them",
    )

    @property
    def options(self) -> GeneratorOptions:
        return GeneratorOptions(self.temperature, self.top_p, self.max_new_tokens, self.view, self.structured)

    @model_validator(mode="after")
    def _some_type(self) -> GenerationConfig:
        if not self.type_mix or min(self.type_mix.values()) < 0 or sum(self.type_mix.values()) <= 0:
            raise ValueError(f"type_mix {self.type_mix} has no positive share; give at least one type a share above 0")
        return self
