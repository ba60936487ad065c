"""The config section `decontamination`: what is kept out of training because a model is tested on it."""

from __future__ import annotations

from pydantic import Field

from loop.config.sections import Section


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
