"""`vigc doctor MODEL`: how a model would run on this machine, before any weights are loaded.

Reads the configs, the processor and the headers of the weights, and builds the model without memory for its weights (torch's `meta`
device), all in a process with bounds on its time and memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from actors.processors import end_ids_of, generation_end_ids
from actors.training.job import PARAMETER_GROUPS, Hyperparameters, Lora
from loop.bounded import report_with_limits
from loop.doctor import Finding
from loop.errors import UserError, one_line
from loop.models.checks import (
    CHECK_BYTES,
    TRIED_BYTES,
    VLLM_BYTES,
    check_chat_template,
    check_weights,
    empty_model,
    image_text_config,
    load_checked_processor,
    refuse_own_code,
    try_to_load,
)
from loop.models.files import local_model, model_files

_TIMEOUT_S = 300.0
_TRIED_TIMEOUT_S = 3600.0
_TRAINING_BYTES = 16
"""Per trained parameter: weight and gradient, AdamW's two states, and with bfloat16 a float32 copy, in any precision of the trainer."""
_MOST_NAMED = 3


def examine_model(model: str, *, tried: bool = False) -> list[Finding]:
    """Look at a model as engines and trainers would.

    Args:
        model: folder, or Hugging Face id that is whole in the cache; nothing is downloaded.
        tried: also load large weights on the CPU as an engine does, and compare its results with those of the model's own `generate`;
            small ones (`TRIED_BYTES`) are always compared.

    Returns:
        one finding per point; those that are `required` and not ok keep the model from being used.

    Raises:
        UserError: it is not an image-text-to-text model, or its config or weights cannot be read.
    """
    import transformers.models.auto.modeling_auto  # noqa: F401 (once here, not in the child)

    folder = local_model(model)
    if folder is None:
        raise UserError(
            f"{model} is neither a folder here nor whole in Hugging Face's cache; check the path, or fetch it with `vigc fetch`"
        )
    num_bytes = sum(file.stat().st_size for file in model_files(folder) if file.suffix == ".safetensors")
    refuse_own_code(folder)
    report = report_with_limits(
        f"model {model!r}", partial(_report, model, folder, tried=tried or num_bytes <= TRIED_BYTES),
        _TRIED_TIMEOUT_S if tried else _TIMEOUT_S, CHECK_BYTES + 4 * num_bytes,
    )  # fmt: skip
    findings = [Finding(**one) for one in json.loads(report)]
    return [*findings, *_vllm(findings[0].found.partition(" ")[0])]


def _report(model: str, folder: Path, *, tried: bool) -> str:
    return json.dumps([asdict(finding) for finding in _findings(model, folder, tried=tried)])


def _findings(model: str, folder: Path, *, tried: bool) -> Iterator[Finding]:
    config = image_text_config(str(folder))
    check_weights(folder, config, None)
    examined = _Examined(folder, empty_model(config))
    size = _count(sum(examined.sizes.values()))
    yield Finding("model", True, f"{type(examined.model).__name__} ({config.model_type}), {size} parameters")
    yield from _of_processor(examined)
    yield _groups(examined)
    yield from _weights(examined)
    yield _guard(examined) if tried else _not_tried(model)
    yield _adapters(examined)  # last: it adds them to the model


@dataclass(frozen=True, slots=True)
class _Examined:
    """A model without weights."""

    folder: Path
    model: Any

    @property
    def sizes(self) -> Counter[str]:
        """Number of parameters by group."""
        from actors.training.checkpoint import group_of

        sizes: Counter[str] = Counter()
        for name, parameter in self.model.named_parameters():
            sizes[group_of(name)] += parameter.numel()
        return sizes


# ---- engines


def _of_processor(examined: _Examined) -> Iterator[Finding]:
    try:
        processor = load_checked_processor(str(examined.folder))
    except UserError as error:
        yield Finding("processor", False, "cannot be loaded", str(error))
        return
    yield Finding("processor", True, type(processor).__name__)
    yield _way(examined.model, processor)
    try:
        check_chat_template(str(examined.folder), processor, examined.model.config.model_type)
        yield Finding("chat template", True, "found")
    except UserError as error:
        yield Finding("chat template", False, "none" if not processor.chat_template else "unusable", str(error))
    yield from _tokens(examined, processor)
    yield _augmentation(processor)


def _way(model: Any, processor: Any) -> Finding:
    """How the transformers engine runs it."""
    from actors.engines.errors import UnfitModelError
    from actors.engines.families import QFormer, Whole, family_of, image_token_id

    try:
        image_token_id(model)
        family = family_of(model, processor)
    except UnfitModelError as error:
        return Finding("transformers engine", False, "refused", str(error))
    ways = {
        QFormer: "encodes an image once; its Q-Former looks again for every text",
        Whole: "runs the model whole: it encodes the image again for every prompt",
    }
    return Finding("transformers engine", True, ways.get(type(family), "encodes an image once for all prompts"))


def _tokens(examined: _Examined, processor: Any) -> Iterator[Finding]:
    tokenizer = processor.tokenizer
    ids = end_ids_of(tokenizer, generation_end_ids(examined.folder))
    advice = "set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json"
    yield Finding("end tokens", bool(ids), _spelled(tokenizer, ids) or "none", advice)
    image = getattr(examined.model.config, "image_token_id", None)
    text = "none" if image is None else _spelled(tokenizer, [image])
    yield Finding("image token", image is not None, text, "set image_token_id in config.json")


def _spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(one)} ({one})" for one in ids)


def _vllm(architecture: str) -> list[Finding]:
    """Whether vLLM has a model class, and the transports that work with it."""
    known, transports = vllm_architectures(), "checkpoint, object_store; adapter with training.lora"
    if known is None:
        found, advice = "not installed", "make install-vllm on a CPU, pip install -e .[gpu] beside a GPU"
    else:
        found, advice = f"does not have {architecture}", "set engine.kind to transformers"
    if known is None or architecture not in known:
        return [Finding("vLLM", False, found, advice, required=False), Finding("transports", True, transports)]
    return [Finding("vLLM", True, f"has {architecture}"), Finding("transports", True, f"{transports}; native with engine.kind vllm")]


@cache
def vllm_architectures() -> frozenset[str] | None:
    """Names of the model classes that the installed vLLM has; `None` if it is not installed. vLLM is imported in a process of its own,
    because its import changes settings of torch and logging.

    Raises:
        UserError: vLLM cannot be imported.
    """
    if find_spec("vllm") is None:
        return None
    return frozenset(json.loads(report_with_limits("vLLM", _architectures, _TIMEOUT_S, CHECK_BYTES + VLLM_BYTES)))


def _architectures() -> str:
    from actors.engines.vllm.registry import architectures

    try:
        return json.dumps(sorted(architectures()))
    except Exception as error:  # the import of a library may raise anything
        raise UserError(f"vLLM cannot be imported: {one_line(error)}; install it again, or uninstall it") from error


def _guard(examined: _Examined) -> Finding:
    dtypes = _dtypes(examined.folder)
    try:
        try_to_load(str(examined.folder), dtypes[0])
    except UserError as error:
        return Finding("own generate", False, "the engine refuses the model", str(error))
    return Finding("own generate", True, "the transformers engine computes the same")


def _not_tried(model: str) -> Finding:
    return Finding("own generate", False, "not compared", f"compare on the CPU: vigc doctor {model} --try", required=False)


# ---- training


def _groups(examined: _Examined) -> Finding:
    """The groups of `training.frozen` with their sizes, compared with the modules that transformers calls encoder and decoder."""
    sizes = examined.sizes
    found = ", ".join(f"{group} {_count(sizes[group])}" for group in PARAMETER_GROUPS if sizes[group])
    absent = [group for group in ("vision_tower", "projector", "language_model") if not sizes[group]]
    wrong = [*(f"no parameters of {group}" for group in absent), *_misfiled(examined.model)]
    advice = f"{'; '.join(wrong[:_MOST_NAMED])}: training.frozen would not mean what it says; train all groups"
    return Finding("parameter groups", not wrong, found, advice)


def _misfiled(model: Any) -> Iterator[str]:
    """Parameters whose name puts them into another group than the module that holds them."""
    from actors.training.checkpoint import group_of

    parts = {"vision_tower": model.get_encoder(modality="image"), "language_model": model.get_decoder()}
    homes = {
        id(parameter): home for home, part in parts.items() if part not in (model, model.base_model) for parameter in part.parameters()
    }
    for name, parameter in model.named_parameters():
        home, group = homes.get(id(parameter)), group_of(name)
        if home is not None and group != home and not (home == "vision_tower" and group == "projector"):
            yield f"{name} is counted as {group}"


def _adapters(examined: _Examined) -> Finding:
    """Whether LoRA's default targets exist; adds the adapters to the model."""
    from actors.training.adapters import add_adapters, is_adapter

    try:
        add_adapters(examined.model, Lora())
    except ValueError as error:
        return Finding("LoRA", False, "the default targets do not fit", f"set training.lora.targets: {error}", required=False)
    size = sum(parameter.numel() for name, parameter in examined.model.named_parameters() if is_adapter(name))
    return Finding("LoRA", True, f"{', '.join(Lora().targets)}: {_count(size)} parameters of rank {Lora().rank}")


def _augmentation(processor: Any) -> Finding:
    from actors.engines.prompting import patches
    from actors.training.pixels import Augmentation

    hyper = Hyperparameters(batch_size=1, num_steps=1, learning_rate=1.0, brightness=0.1)
    pixels = processor.image_processor([patches(np.random.default_rng(0), (160, 80))], return_tensors="pt")["pixel_values"]
    try:
        Augmentation(hyper, processor.image_processor, 0).apply(pixels, 0, 0)
    except ValueError as error:
        return Finding("augmentation", False, f"pixels {list(pixels.shape)}", str(error), required=False)
    return Finding("augmentation", True, f"pixels {list(pixels.shape)}")


def _weights(examined: _Examined) -> Iterator[Finding]:
    """Dtype and size of the weights, and what serving and training take, without caches and activations."""
    from actors.engines.weights import weight_files

    sizes, files, dtypes = examined.sizes, weight_files(examined.folder), _dtypes(examined.folder)
    num_bytes, total = sum(file.stat().st_size for file in files), sum(sizes.values())
    advice = "`vigc fetch` writes a copy in one dtype that engines serve, float32 or bfloat16"
    served = len(dtypes) == 1 and dtypes[0] in ("float32", "bfloat16")
    yield Finding("weights", served, f"{', '.join(dtypes)}, {_size(num_bytes)} in {len(files)} file(s)", advice)
    few = sizes["projector"]
    training = f"{_size(_TRAINING_BYTES * total)} to train all, {_size(_TRAINING_BYTES * few + 2 * (total - few))} the projector in bf16"
    yield Finding("memory", True, f"{_size(num_bytes)} to serve, {training}; besides caches and activations")


def _dtypes(folder: Path) -> list[str]:
    """The floating-point dtypes of the weights."""
    from actors.engines.weights import manifest_of_checkpoint

    return sorted({spec.dtype for spec in manifest_of_checkpoint(folder).values() if "float" in spec.dtype})


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / 2**20:.3g} MiB"


def _count(number: int) -> str:
    """A number of parameters in thousands, millions or billions."""
    unit, mark = next((unit, mark) for unit, mark in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= unit or unit == 1e3)
    return f"{number / unit:.3g}{mark}"
