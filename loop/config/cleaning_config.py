"""The config sections `decontamination` and `deduplication`: what is kept out of training, and which records repeat others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from loop.config.sections import Section, listed
from policies.filtering.near_duplicates import TextSimilarity

Origin = Literal["round", "earlier_rounds", "seed_data"]


class DecontaminationConfig(Section):
    """Both keys are about files; sets of kind `shapes` draw their images."""

    images: bool = Field(
        True,
        description="set aside unlabelled images that held-out or acceptance sets ask about, before the model sees them; they are "
        "recognised by content, also under another name, at another size or compressed",
    )
    questions: bool = Field(
        True,
        description="leave out of training what asks a tested question about a tested image: samples of the seed data and, if `images` is "
        "false, generated records",
    )


class DeduplicationConfig(Section):
    """Rejects accepted records that repeat others."""

    across: Annotated[tuple[Origin, ...], BeforeValidator(listed)] = Field(
        ("round", "earlier_rounds", "seed_data"),
        description="what accepted records are compared with: one another across all shards of the round, the records that earlier "
        "accepted rounds were trained on, the seed data",
    )
    scope: Literal["image", "all"] = Field(
        "image", description="image compares records about the same image; all compares those about different images, too"
    )
    threshold: float = Field(
        0.9, ge=0.5, le=1, description="Jaccard similarity of the word shingles of question and answer from which two are near duplicates"
    )
    shingle_words: int = Field(3, ge=1, description="words per shingle")

    @field_validator("across")
    @classmethod
    def _names_each_once(cls, across: tuple[Origin, ...]) -> tuple[Origin, ...]:
        if not across:
            raise ValueError("nothing to compare records with; name some of round, earlier_rounds, seed_data, or set deduplication to null")
        if len(set(across)) < len(across):
            raise ValueError(f"{', '.join(across)} are named; name each once")
        return across

    @property
    def similarity(self) -> TextSimilarity:
        return TextSimilarity(self.threshold, self.shingle_words)
