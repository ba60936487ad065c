"""The config section `decontamination`: what is kept out of training because a model is tested on it."""

from __future__ import annotations

from pydantic import Field

from loop.config.sections import Section


class DecontaminationConfig(Section):
    """Images of kind `shapes` are drawn, and not compared."""

    images: bool = Field(
        True,
        description="generate no record about an image that a held-out or acceptance set asks about, by content: also if it is a copy of "
        "another name, size or compression",
    )
    questions: bool = Field(
        True,
        description="leave out of training what asks a tested question about a tested image: samples of the seed data and, where `images` "
        "is false, generated records",
    )
