"""`vigc assemble`: build a MiniGPT-4 from the parts that are published.

MiniGPT-4 (Zhu et al. 2023, arXiv 2304.10592) consists of the vision tower and the Q-Former of BLIP-2, one linear layer, and Vicuna. In
transformers, that is a `Blip2ForConditionalGeneration` whose language model is a Llama. The linear layer is new and has to be trained.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.engine_config import TransformersEngineConfig
from loop.errors import UserError, one_line
from loop.models.checks import check_model, refuse_own_code
from loop.models.files import downloaded, model_files
from loop.models.templates import read_template

_SHARD_BYTES = 2 << 30
_LANGUAGE_MODEL = "language_model."
_PROJECTION = "language_projection."
_RENAMED = {"instructblip": ("qformer.layernorm.", "qformer.embeddings.layernorm.")}
"""Prefix in BLIP-2, and in the model that has another: InstructBLIP's Q-Former embeds its text together with the query tokens."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A checkpoint that parts are taken from."""

    name: str
    """As the user gave it."""
    folder: Path
    config: Any
    tensors: Mapping[str, tuple[Path, tuple[int, ...]]]
    """File and shape of each tensor, by name."""


def assemble(vision: str, language_model: str, out: Path, dtype: str, chat_template: str, seed: int) -> int:
    """Write a MiniGPT-4 into `out`, which appears once it is complete and usable for a run. Weights pass through memory in shards.

    Args:
        vision: folder or Hugging Face id of a BLIP-2 or InstructBLIP, for the vision tower, query tokens and Q-Former. The latter's
            Q-Former no longer reads the text.
        language_model: folder or Hugging Face id of a decoder-only text model.
        out: folder to make.
        dtype: `float32` or `bfloat16`, of all weights.
        chat_template: name of a template in `loop/recipes`, or a Jinja file; it must not write the image, which comes before the text.
        seed: of the linear layer.

    Returns:
        its number of parameters.

    Raises:
        UserError: `out` exists, a part cannot be read, or the parts do not fit.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it first")
    template = read_template(chat_template)
    engine = TransformersEngineConfig.model_validate({"dtype": dtype})
    vision_part, language_part = _vision_part(vision), _language_part(language_model)
    processor = _processor(vision_part, language_part, template)
    model = _empty_model(_config(vision_part, language_part, processor.tokenizer, dtype), dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        whole = Path(scratch) / "model"
        processor.save_pretrained(whole)
        model.config.save_pretrained(whole)
        _generation_config(language_part, processor.tokenizer).save_pretrained(whole)
        num_parameters = _write_weights(whole, model, vision_part, language_part, seed)
        check_model(str(whole), engine)
        shutil.move(whole, out)
    return num_parameters


# ---- parts


def _vision_part(name: str) -> _Part:
    part = _part(name, "--vision")
    if part.config.model_type not in ("blip-2", "instructblip"):
        raise UserError(f"--vision {name} is a {part.config.model_type} model, which has no Q-Former; give a BLIP-2 or an InstructBLIP")
    return part


def _language_part(name: str) -> _Part:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    part = _part(name, "--language-model")
    if part.config.is_encoder_decoder or type(part.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if part.config.is_encoder_decoder else "a"
        raise UserError(f"--language-model {name} is {kind} {part.config.model_type} model; give a decoder-only text model such as Vicuna")
    return part


def _part(name: str, option: str) -> _Part:
    from transformers import AutoConfig

    try:
        folder = downloaded(name)
        model_files(folder)
        refuse_own_code(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # libraries may raise anything on an untrusted model or a network
        raise UserError(f"{option} {name} cannot be read: {one_line(error)}; give a Hugging Face id or a folder") from error
    return _Part(name, folder, config, _tensors_in(folder, option))


def _tensors_in(folder: Path, option: str) -> dict[str, tuple[Path, tuple[int, ...]]]:
    from actors.engines.weights import manifest_of_file, weight_files

    try:
        return {name: (file, spec.shape) for file in weight_files(folder) for name, spec in manifest_of_file(file).items()}
    except ValueError as error:
        raise UserError(
            f"the weights of {option} {folder} cannot be read as safetensors: {one_line(error)}; convert them with save_pretrained"
        ) from error


def _processor(vision_part: _Part, language_part: _Part, template: str) -> Any:
    """BLIP-2's processor, with the image token in the tokenizer."""
    from transformers import AutoTokenizer, Blip2Processor

    from actors.processors import load_image_processor

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(language_part.folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise UserError(
            f"--language-model {language_part.name} has no tokenizer: {one_line(error)}; add the tokenizer's files to its folder"
        ) from error
    try:
        images = load_image_processor(vision_part.folder)
    except Exception as error:  # as above
        raise UserError(f"--vision {vision_part.name} has no image processor: {one_line(error)}; add preprocessor_config.json") from error
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of --language-model {language_part.name} has no end token; set its eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    processor: Any = Blip2Processor(images, tokenizer, num_query_tokens=vision_part.config.num_query_tokens)
    processor.chat_template = template
    return processor


def _config(vision_part: _Part, language_part: _Part, tokenizer: Any, dtype: str) -> Any:
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

    text = deepcopy(language_part.config)
    text.name_or_path = ""
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    text.pad_token_id, text.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    blip2: Any = Blip2Config  # its declared parameters lack those of its base class
    return blip2(
        vision_config=Blip2VisionConfig(**_values(vision_part.config.vision_config)),
        qformer_config=Blip2QFormerConfig(**{**_values(vision_part.config.qformer_config), "use_qformer_text_input": False}),
        text_config=text, num_query_tokens=vision_part.config.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), architectures=["Blip2ForConditionalGeneration"], dtype=dtype,
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip


def _values(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ("model_type", "transformers_version", "architectures")}


def _generation_config(language_part: _Part, tokenizer: Any) -> Any:
    from transformers import GenerationConfig

    from actors.processors import generation_end_ids

    end_ids = generation_end_ids(language_part.folder) or tokenizer.eos_token_id
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end_ids, pad_token_id=tokenizer.pad_token_id)


def _empty_model(config: Any, dtype: str) -> Any:
    import torch
    from transformers import Blip2ForConditionalGeneration

    try:
        with torch.device("meta"):
            return Blip2ForConditionalGeneration(config).to(getattr(torch, dtype))
    except Exception as error:  # libraries may raise anything on an untrusted config
        raise UserError(f"no BLIP-2 can be built of these parts: {one_line(error)}; give other parts") from error


# ---- weights


def _write_weights(folder: Path, model: Any, vision_part: _Part, language_part: _Part, seed: int) -> int:
    """Write the weights, one file after the other; returns the number of parameters."""
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    from actors.engines.transformers import served_tensors

    wanted = served_tensors(model)
    new = _projection(wanted, seed)
    origins = {name: _origin(name, tensor, vision_part, language_part) for name, tensor in wanted.items() if name not in new}
    shards = split_state_dict_into_shards_factory(
        wanted, get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(), filename_pattern="model{suffix}.safetensors",
        max_shard_size=_SHARD_BYTES,
    )  # fmt: skip
    for file, names in shards.filename_to_tensors.items():
        tensors = {name: new[name] if name in new else _read(*origins[name], wanted[name]) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return sum(tensor.numel() for tensor in wanted.values())


def _projection(wanted: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The linear layer, as torch initializes one."""
    import torch

    weight = wanted[f"{_PROJECTION}weight"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    return {f"{_PROJECTION}{name}": tensor.detach().to(weight.dtype) for name, tensor in layer.named_parameters()}


def _origin(name: str, tensor: Any, vision_part: _Part, language_part: _Part) -> tuple[Path, str]:
    """The file with a tensor of the assembled model, and the tensor's name there.

    Raises:
        UserError: the part lacks it, or has it in another shape.
    """
    part, theirs = (language_part, name.removeprefix(_LANGUAGE_MODEL)) if name.startswith(_LANGUAGE_MODEL) else (vision_part, name)
    ours, other = _RENAMED.get(part.config.model_type, ("", ""))
    if ours and theirs.startswith(ours):
        theirs = other + theirs.removeprefix(ours)
    file, shape = part.tensors.get(theirs, (None, ()))
    expected = tuple(tensor.shape)
    if part is language_part and shape and shape[0] == language_part.config.vocab_size:
        expected = (shape[0], *expected[1:])  # rows for new tokens are added
    if file is None or shape != expected:
        found = f"has it as {list(shape)}" if file is not None else "lacks it"
        raise UserError(f"{part.name} {found}: {theirs} {list(expected)}; write the model with `vigc fetch` or save_pretrained first")
    return file, theirs


def _read(file: Path, name: str, wanted: Any) -> Any:
    """A tensor in the dtype of the assembled model; rows for new tokens are the mean of the others."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor = opened.get_tensor(name)
    if num_new := wanted.shape[0] - tensor.shape[0]:
        mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
        tensor = torch.cat([tensor, mean.expand(num_new, -1)])
    return tensor.to(wanted.dtype).contiguous()
