"""`vigc fetch`: write a published model to a folder as a run needs it: every weight in the served dtype, and a chat template.

Published models often have another dtype (LLaVA-1.5: float16), parameter names that later classes have changed, or no template
(InstructBLIP). transformers reads all of them, and writes what its own classes and vLLM's can load.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from loop.config.engine_config import TransformersEngineConfig
from loop.errors import UserError, one_line
from loop.models.checks import check_model
from loop.models.files import downloaded
from loop.models.templates import read_template, template_remedy


def fetch(model: str, out: Path, dtype: str, chat_template: str | None = None) -> int:
    """Write a model into `out`, which appears once it is complete and usable for a run. The weights pass through main memory.

    Args:
        model: folder or Hugging Face id of an image-text-to-text model with safetensors; an id is downloaded.
        out: folder to make.
        dtype: `float32` or `bfloat16`.
        chat_template: name of a template in `loop/recipes`, or a Jinja file, for a model without a template or with another one.

    Returns:
        its number of parameters.

    Raises:
        UserError: `out` exists, or the model or the template cannot be read or used.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it first")
    template = read_template(chat_template) if chat_template is not None else None
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
    except Exception as error:  # libraries may raise anything on an untrusted model or a network
        raise UserError(f"model {model!r} cannot be fetched: {one_line(error)}; give a Hugging Face id or a folder") from error
    if template is not None:
        processor.chat_template = template
    if not processor.chat_template:
        raise UserError(f"model {model!r} has no chat template; {template_remedy(model, loaded.config.model_type)}")
    loaded.save_pretrained(folder)
    processor.save_pretrained(folder)
    return loaded.num_parameters()
