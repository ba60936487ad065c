"""From a config to its parts: policies, image sources and samples.

All that can be wrong with a config shows here, before any actor starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from actors.images import ImageSource, LabelledSource
from actors.processors import load_processor
from loop.config import (
    EMBEDDED_MODEL,
    FolderSet,
    HeldOutSet,
    LlavaJsonSet,
    RunConfig,
    ShapesSet,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from loop.errors import UserError, one_line
from policies.acceptance import ACCEPTANCE_POLICIES, AcceptancePolicy
from policies.chain import FilterChain, MissingMeasurementError, check_measurements
from policies.correction import CORRECTION_POLICIES, CorrectionPolicy
from policies.filters import FILTER_POLICIES
from policies.instructions import INSTRUCTION_POLICIES, InstructionPolicy
from policies.mixing import MIXING_POLICIES, MixingPolicy
from policies.records import HeldOutQuestion
from policies.registry import Registry, UnknownPolicyError
from policies.schedule import SCHEDULE_POLICIES, START_POLICIES, STOP_POLICIES, SchedulePolicy, StartPolicy, StopPolicy
from policies.selection import SELECTION_POLICIES, SelectionPolicy

_NOT_IN_VLLM = ("instructblip",)
"""Model types that the transformers engine runs and vLLM does not."""


@dataclass(frozen=True)
class Policies:
    """Every decision of a run, as plain objects."""

    instructions: InstructionPolicy
    correction: CorrectionPolicy
    filters: FilterChain
    selection: SelectionPolicy
    mixing: MixingPolicy
    schedule: SchedulePolicy
    start: StartPolicy
    acceptance: AcceptancePolicy
    stop: StopPolicy


@dataclass(frozen=True)
class HeldOut:
    """A held-out set with its questions drawn."""

    name: str
    source: LabelledSource
    questions: tuple[HeldOutQuestion, ...]


def build_policies(config: RunConfig) -> Policies:
    """The policies a config names.

    Raises:
        UserError: a policy does not exist or refuses its options, or a filter needs what the correction does not measure.
    """

    def build(registry: Registry[Any], spec: Any) -> Any:
        return registry.build(spec.policy, spec.options)

    try:
        policies = Policies(
            instructions=build(INSTRUCTION_POLICIES, config.generation.instructions),
            correction=build(CORRECTION_POLICIES, config.correction),
            filters=FilterChain([build(FILTER_POLICIES, spec) for spec in config.filters]),
            selection=build(SELECTION_POLICIES, config.selection),
            mixing=build(MIXING_POLICIES, config.mixing),
            schedule=build(SCHEDULE_POLICIES, config.schedule),
            start=build(START_POLICIES, config.start),
            acceptance=build(ACCEPTANCE_POLICIES, config.acceptance),
            stop=build(STOP_POLICIES, config.stop),
        )
        check_measurements(policies.filters.policies, policies.correction)
    except (UnknownPolicyError, MissingMeasurementError) as error:
        raise UserError(one_line(error)) from error
    return policies


def build_images(spec: ShapesSet | FolderSet) -> ImageSource:
    """The image source of an unlabelled set; a folder that is missing, unreadable or without images raises `UserError`."""
    if isinstance(spec, FolderSet):
        from loop.sources.folder import ImageFolder

        return ImageFolder(spec.path, limit=spec.num_images)
    return _shapes(spec)


def build_labelled(spec: ShapesSet | LlavaJsonSet) -> LabelledSource:
    """The source of a labelled set."""
    if isinstance(spec, LlavaJsonSet):
        from loop.sources.llava_json import LlavaJsonData

        return LlavaJsonData(spec.path, spec.images)
    return _shapes(spec)


def build_held_out(sets: dict[str, HeldOutSet], seed: int) -> list[HeldOut]:
    """The held-out sets with their questions, the same for a run seed."""
    built = []
    for name, spec in sets.items():
        source = build_labelled(spec.data)
        built.append(HeldOut(name, source, tuple(source.questions(spec.num_questions, seed))))
    return built


def check_model(path: str, engine: TransformersEngineConfig | VllmEngineConfig) -> None:
    """Make sure that `path` is an image-text-to-text model with a processor and weights that the engine can serve.

    Reads configs and the headers of the weights, not the weights.

    Raises:
        UserError: it is not, or it cannot be read.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    folder = Path(path)
    if folder.is_absolute() and not folder.is_dir():
        advice = "make the embedded one with `vigc seed --out loop/seed/checkpoint`" if folder == EMBEDDED_MODEL else "check the path"
        raise UserError(f"model folder {path} does not exist; {advice}")
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # what the libraries raise on a config of a stranger's is no closed set
        raise UserError(f"model {path!r} cannot be read: {one_line(error)}; give `embedded`, a Hugging Face id or a folder") from error
    if type(found) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(f"model {path!r} is a {found.model_type} model; expected an image-text-to-text model such as LLaVA")
    if engine.kind == "vllm":
        _check_vllm(path, found.model_type)
    _check_processor(path)
    if folder.is_dir():
        _check_weights(folder, engine.dtype)


def _check_vllm(path: str, model_type: str) -> None:
    if find_spec("vllm") is None:
        raise UserError("engine.kind is vllm, which is not installed: `make install-vllm` on a CPU, `pip install -e .[gpu]` beside a GPU")
    if model_type in _NOT_IN_VLLM:
        raise UserError(f"model {path!r} is a {model_type} model, which vLLM does not run; set engine.kind to transformers")


def _check_processor(path: str) -> None:
    try:
        processor = load_processor(path)
    except Exception as error:  # of a damaged file tokenizers says so with a plain Exception
        raise UserError(f"the processor of model {path!r} cannot be read: {one_line(error)}; save it beside the weights") from error
    if not processor.chat_template:
        raise UserError(f"the processor of model {path!r} has no chat template; add the one the model was trained with")


def _check_weights(folder: Path, dtype: str) -> None:
    from safetensors import SafetensorError, safe_open

    from actors.engines.weights import weight_files

    remedy = "fetch the folder again, or convert its weights with save_pretrained"
    try:
        dtypes: set[str] = set()
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the weights of model {str(folder)!r} cannot be read as safetensors: {one_line(error)}; {remedy}") from error
    served = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    if other := sorted(dtypes & {"F64", "F32", "F16", "BF16"} - {served}):
        raise UserError(f"the weights of model {str(folder)!r} are {', '.join(other)}, but engine.dtype is {dtype}; make the two the same")


def derived_seed(run_seed: int, round_index: int, stage: str, shard: int = 0) -> int:
    """A seed of 63 bits from (run seed, round, stage, shard): the root of the loop's determinism."""
    text = f"{run_seed}/{round_index}/{stage}/{shard}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def evenly(items: Sequence[Any], num_parts: int) -> list[list[Any]]:
    """`items` cut into at most `num_parts` contiguous parts whose sizes differ by at most one; no part is empty."""
    num_parts = min(num_parts, len(items))
    bounds = [len(items) * part // num_parts for part in range(num_parts + 1)] if num_parts else [0]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


def _shapes(spec: ShapesSet) -> Any:
    from loop.sources.shapes.source import ShapesImages

    return ShapesImages(spec.seed, spec.min_shift, spec.max_shift, spec.num_images)
