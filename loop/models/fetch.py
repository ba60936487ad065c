"""`vigc fetch`: a published model as a run needs it, in a folder: every weight in the dtype that is served, and a chat template.

What is published is often in another dtype (LLaVA-1.5 in float16), under names that later classes have changed, or without a template
(InstructBLIP). transformers reads all of it, and what it writes is what its classes, and vLLM's, find again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from loop.config.engine_config import TransformersEngineConfig
from loop.errors import UserError, one_line
from loop.models.checks import check_model, downloaded


def fetch(model: str, out: Path, dtype: str, chat_template: Path | None = None) -> int:
    """Write a model into `out`, which appears when it is whole and a run would take it. The weights are in main memory meanwhile.

    Args:
        model: folder or Hugging Face id of an image-text-to-text model with safetensors; an id is downloaded.
        out: folder to make.
        dtype: `float32` or `bfloat16`.
        chat_template: a Jinja file, for a model that has none or another one than it is to have.

    Returns:
        number of its parameters.

    Raises:
        UserError: `out` exists, or the model or the template cannot be read or used.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it first")
    template = _read(chat_template) if chat_template is not None else None
    engine = TransformersEngineConfig.model_validate({"dtype": dtype})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        whole = Path(scratch) / "model"
        num_parameters = _convert(model, whole, engine.dtype, template)
        check_model(str(whole), engine)
        shutil.move(whole, out)
    return num_parameters


def _convert(model: str, folder: Path, dtype: str, template: str | None) -> int:
    import torch
    from transformers import AutoModelForImageTextToText

    from actors.processors import load_processor

    try:
        source = downloaded(model)
        processor = load_processor(source)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # what the libraries raise on a model of a stranger's, or on a network, is no closed set
        raise UserError(f"model {model!r} cannot be fetched: {one_line(error)}; give a Hugging Face id or a folder") from error
    if template is not None:
        processor.chat_template = template
    if not processor.chat_template:
        raise UserError(f"model {model!r} has no chat template; give one with --chat-template, such as loop/recipes/instructblip.jinja")
    loaded.save_pretrained(folder)
    processor.save_pretrained(folder)
    return loaded.num_parameters()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the chat template {path}: {one_line(error)}") from error
