"""Check the seed model of a run, which is untrusted, before an actor starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from actors.process.skipped_imports import skip_sklearn
from actors.processors import load_processor
from actors.training.job import Hyperparameters
from loop.bounded import LimitedCheck, run_with_limits
from loop.config.engine_config import TransformersEngineConfig, VllmEngineConfig
from loop.config.run_config import EMBEDDED_MODELS
from loop.doctor import seed_command, torchvision_remedy
from loop.errors import UserError, one_line
from loop.models.files import model_files
from loop.models.templates import template_remedy

_CHECK_TIMEOUT_S = 120.0
CHECK_BYTES = 4 << 30
"""Memory in which configs, a processor and headers are read."""

TRIED_BYTES = 256 << 20
"""Weights up to this size are loaded for a test before an actor starts, which takes a second; larger ones are tested by the engine as
it loads them."""
_PROCESSOR_PACKAGES = ("torchvision", "num2words", "sentencepiece", "tiktoken", "mistral_common")
"""Packages that some processors need. Only the first two are part of `make install`."""
VLLM_BYTES = 16 << 30
"""Further address space for vLLM's libraries."""
_DEEPEST_CONFIG = 20
_CONFIG_FILES = "*config.json"
_FLOATS = ("float64", "float32", "float16", "bfloat16")

_Engine = TransformersEngineConfig | VllmEngineConfig


def check_model(path: str, engine: _Engine | None, trainings: Mapping[str, Hyperparameters] | None = None) -> str:
    """Check a model and wait for the result; for arguments, result and errors see `model_check`."""
    _import_models()  # once here, not in every child
    with model_check(path, engine, trainings) as report:
        return report()


@contextmanager
def model_check(path: str, engine: _Engine | None, trainings: Mapping[str, Hyperparameters] | None = None) -> Iterator[Callable[[], str]]:
    """Check, while this process does something else, that `path` is an image-text-to-text model with a processor and weights that the
    engine can serve (`None`: that the trainer can start from, in any dtype), that it needs no code of its own, and that it can be trained
    as configured.

    Reads configs, processor and the headers of the weights, and for small models of the transformers engine the weights as well, in a
    forked process with bounds on its time and memory, which imports what it needs. A hub id is only checked when the result is asked for.

    Args:
        path: folder or hub id.
        engine: the engine that serves the model.
        trainings: what is to be trained, by the config key.

    Yields:
        a function that waits for the result and raises `UserError` if it is not such a model or cannot be read: what is slow about the
        way in which the engine runs it, in one line; empty if nothing.

    Raises:
        UserError: its files cannot be used.
    """
    folder = Path(path)
    if folder.is_absolute() and not os.path.isdir(folder):
        advice = f"make it with `{seed_command(folder)}`" if folder in EMBEDDED_MODELS.values() else "check the path"
        raise UserError(f"model folder {path} does not exist; {advice}")
    trainings = trainings or {}
    if not os.path.isdir(folder):
        yield partial(_check, path, engine, trainings)
        return
    files = model_files(folder)
    refuse_own_code(folder)
    num_bytes = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")  # mapped into memory, not read
    tried = num_bytes <= TRIED_BYTES and engine is not None and engine.kind == "transformers"
    max_bytes = CHECK_BYTES + num_bytes + (VLLM_BYTES if engine is not None and engine.kind == "vllm" else 0)
    check = partial(_check, path, engine, trainings, tried=tried)
    with LimitedCheck(f"model {path!r}", check, _CHECK_TIMEOUT_S, max_bytes, _import_models) as running:
        yield running.report


def _import_models() -> None:
    skip_sklearn()
    import transformers.models.auto.modeling_auto  # noqa: F401


def check_trained_in_adapter(path: str, frozen: Sequence[str]) -> None:
    """Check that an adapter can hold all that is trained of the model in folder `path`: the groups of its parameters are `frozen`.

    Raises:
        UserError: another group is trained, and engines that receive only adapters would not get it.
    """
    from actors.engines.weights import manifest_of_checkpoint
    from actors.training.checkpoint import group_of

    present = {group_of(name) for name in manifest_of_checkpoint(Path(path))} if os.path.isdir(path) else set()
    if trained := sorted(present - set(frozen)):
        raise UserError(
            f"transport adapter leaves out the trained weights of {', '.join(trained)}; name them in training.frozen, or set transport "
            "checkpoint"
        )


def check_text_model(path: str) -> None:
    """Check that `path` is a text model with a chat template and weights as safetensors, and that it needs no code of its own.

    Within the same bounds as `check_model`.

    Raises:
        UserError: it is not such a model, or it cannot be read.
    """
    _import_models()  # once here, not in every child
    folder = Path(path)
    if not os.path.isdir(folder):
        if folder.is_absolute() or path.startswith("."):
            raise UserError(f"model folder {path} does not exist; check the path")
        return _check_text_model(path)
    files = model_files(folder)
    refuse_own_code(folder)
    num_bytes = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    run_with_limits(f"model {path!r}", partial(_check_text_model, path), _CHECK_TIMEOUT_S, CHECK_BYTES + num_bytes)


def _check_text_model(path: str) -> None:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from actors.chat.local import render_chat
    from actors.engines.weights import manifest_of_checkpoint
    from policies.chat import ChatMessage

    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # libraries may raise anything on an untrusted file
        raise UserError(f"model {path!r} cannot be read: {one_line(error)}; give a Hugging Face id or a folder") from error
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model {path!r} is a {found.model_type} model; expected a text model such as Llama or Qwen")
    said = "what is there", "a cat", "and where"
    try:
        text = render_chat(tokenizer, [ChatMessage("system", "Look."), *map(ChatMessage, ("user", "assistant", "user"), said)])
    except Exception as error:  # a template is a program: it may raise anything
        raise UserError(f"the chat template of model {path!r} cannot be used: {one_line(error)}; take a model that has one") from error
    if not all(one in text for one in said):
        raise UserError(f"the chat template of model {path!r} drops messages; use the one the model was trained with")
    if os.path.isdir(path):
        try:
            manifest_of_checkpoint(Path(path))
        except ValueError as error:
            raise UserError(f"the weights of model {path!r} cannot be read as safetensors: {one_line(error)}; fetch it again") from error


def refuse_own_code(folder: Path) -> None:
    """Refuse a model whose configs name code of its own.

    Raises:
        UserError: a config names code, or is not JSON.
    """
    for path in sorted(folder.glob(_CONFIG_FILES)):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"model {str(folder)!r} cannot be read: {path.name} is not JSON ({one_line(error)}); fetch it again") from error
        if code := next(_own_code(content), None):
            raise UserError(
                f"{path.name} of model {str(folder)!r} needs its own code (auto_map: {code}), which is never run; choose a model "
                "whose classes transformers has, and remove auto_map from its files"
            )


def _own_code(content: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(content, dict) and depth < _DEEPEST_CONFIG:
        if content.get("auto_map"):
            yield str(content["auto_map"])[:200]
        for inner in content.values():
            yield from _own_code(inner, depth + 1)


def _check(path: str, engine: _Engine | None, trainings: Mapping[str, Hyperparameters], *, tried: bool = False) -> str:
    found = image_text_config(path)
    if engine is not None and engine.kind == "vllm":
        _check_vllm(path, found)
    processor = load_checked_processor(path)
    check_chat_template(path, processor, found.model_type)
    if os.path.isdir(path):
        check_weights(Path(path), found, engine)
    for where, hyper in trainings.items():
        _check_training(path, found, processor, where, hyper)
    if tried and engine is not None:
        try_to_load(path, engine.dtype)
    return _slow_way(path, found, processor) if engine is not None and engine.kind == "transformers" else ""


def _slow_way(path: str, config: Any, processor: Any) -> str:
    from actors.engines.errors import UnfitModelError
    from actors.engines.families import Whole, family_of

    try:
        family = family_of(empty_model(config), processor)
    except UnfitModelError as error:
        raise UserError(f"model {path!r}: {error}") from error
    if not isinstance(family, Whole):
        return ""
    return (
        f"the transformers engine runs {config.model_type} models whole: it encodes an image again for every prompt about it, at least "
        "twice a record, where other models encode it once; set engine.kind to vllm, if vLLM has the model"
    )


def image_text_config(path: str) -> Any:
    """The config of an image-text-to-text model.

    Raises:
        UserError: it is another kind of model, or its config cannot be read.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # libraries may raise anything on an untrusted config
        raise UserError(f"model {path!r} cannot be read: {one_line(error)}; give `embedded`, a Hugging Face id or a folder") from error
    if type(found) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(f"model {path!r} is a {found.model_type} model; expected an image-text-to-text model such as LLaVA")
    return found


def _check_training(path: str, config: Any, processor: Any, where: str, hyper: Hyperparameters) -> None:
    from actors.training.core import check_fits

    try:
        check_fits(empty_model(config), processor.image_processor, hyper)
    except ValueError as error:
        raise UserError(f"{where} does not fit model {path!r}: {one_line(error)}") from error


def try_to_load(path: str, dtype: str) -> None:
    """Load the model on the CPU as an engine would, which compares its results with those of the model's own `generate`.

    Raises:
        UserError: it cannot be loaded, or the results differ.
    """
    from actors.engines.errors import UnfitModelError
    from actors.engines.transformers import TransformersEngine

    try:
        TransformersEngine(path, dtype=dtype)
    except UnfitModelError as error:
        raise UserError(f"model {path!r}: {error}") from error
    except Exception as error:  # libraries may raise anything on untrusted files
        raise UserError(f"model {path!r} cannot be loaded: {type(error).__name__}: {one_line(error)}; fetch it again") from error


def _check_vllm(path: str, config: Any) -> None:
    from actors.engines.vllm.registry import architectures

    if find_spec("vllm") is None:
        raise UserError("engine.kind is vllm, which is not installed: `make install-vllm` on a CPU, `pip install -e .[gpu]` beside a GPU")
    named = config.architectures or []
    if not architectures() & {*named}:
        raise UserError(
            f"model {path!r} has the architecture {', '.join(named) or '(none)'}, which the installed vLLM does not have; set engine.kind "
            "to transformers"
        )


def load_checked_processor(path: str) -> Any:
    """The processor of a model.

    Raises:
        UserError: it cannot be read, or needs a package that is not installed.
    """
    try:
        return load_processor(path)
    except Exception as error:  # tokenizers raises a plain Exception for a damaged file
        if package := _missing_package(error):
            remedy = torchvision_remedy() if package == "torchvision" else f"install it beside torch: `pip install {package}`"
            raise UserError(f"the processor of model {path!r} needs {package}, which is not installed: {remedy}") from error
        raise UserError(f"the processor of model {path!r} cannot be read: {one_line(error)}; save it beside the weights") from error


def _missing_package(error: BaseException) -> str | None:
    """The package that is not installed and whose absence an error of a processor reports, or one that caused it."""
    said = f"{error} {error.__cause__ or error.__context__ or ''}".lower()
    return next((name for name in _PROCESSOR_PACKAGES if name in said and find_spec(name) is None), None)


def check_chat_template(path: str, processor: Any, model_type: str) -> None:
    """Check that a model has a chat template that says what it is given.

    Raises:
        UserError: it has none, or it cannot be used.
    """
    from actors.engines.base import Request
    from actors.engines.prompting import Prompter

    if not processor.chat_template:
        raise UserError(f"the processor of model {path!r} has no chat template; {template_remedy(path, model_type)}")
    try:
        prompter = Prompter(path)
        request = Request(Image.new("RGB", (64, 64)), "What is it?", "It is")
        texts = prompter.render(request), prompter.render_answered(request, "a cat.")
        told = ["What is it?" in text and "It is" in text and bool(prompter.token_ids(text)) for text in texts]
    except Exception as error:  # a template is a program: it may raise anything
        raise UserError(
            f"the chat template of model {path!r} cannot be used: {type(error).__name__}: {one_line(error)}; take the one the model was "
            "trained with"
        ) from error
    if not all(told):
        raise UserError(f"the chat template of model {path!r} drops messages; use the one the model was trained with")


def check_weights(folder: Path, config: Any, engine: _Engine | None) -> None:
    """Check the headers of the weights against the config and, with an engine, against its dtype.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    from actors.engines.weights import manifest_of_checkpoint

    remedy = "fetch the folder again, or convert its weights with save_pretrained"
    try:
        manifest = manifest_of_checkpoint(folder)
    except ValueError as error:
        raise UserError(f"the weights of model {str(folder)!r} cannot be read as safetensors: {one_line(error)}; {remedy}") from error
    if engine is None:
        manifest = {name: replace(spec, dtype="float32") if spec.dtype in _FLOATS else spec for name, spec in manifest.items()}
    dtype = "float32" if engine is None else engine.dtype
    if other := sorted({spec.dtype for spec in manifest.values()} & {*_FLOATS} - {dtype}):
        raise UserError(f"the weights of model {str(folder)!r} are {', '.join(other)}, but engine.dtype is {dtype}; make the two the same")
    if engine is None or engine.kind == "transformers":
        _check_shapes(folder, config, manifest, dtype)


def _check_shapes(folder: Path, config: Any, manifest: Any, dtype: str) -> None:
    """Check the weights against the model that the config describes, as every swap of the run will."""
    from actors.engines.transformers import served_tensors
    from actors.engines.weights import difference_of, manifest_of

    remedy = "fetch the folder again, or convert its weights with save_pretrained"
    try:
        wanted = manifest_of(served_tensors(empty_model(config, dtype)))
    except Exception as error:  # libraries may raise anything on an untrusted config
        raise UserError(f"model {str(folder)!r} cannot be built from its config: {one_line(error)}; {remedy}") from error
    if difference := difference_of(manifest, wanted):
        raise UserError(f"the weights of model {str(folder)!r} do not fit its config: {difference}; {remedy}")


def empty_model(config: Any, dtype: str = "float32") -> Any:
    """The model that a config describes, without memory for its weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
