"""Build the parts that a config names: policies, image sources and samples.

Everything that is wrong with a config is found here, before any actor starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from actors.images import ImageSource, LabelledSource, Oracle
from actors.views import find_view
from cluster.planning.request import ResourceRequest
from loop.config.run_config import AcceptanceSet, HeldOutSet, RunConfig
from loop.config.sets import (
    CocoSet,
    DrawingsSet,
    FolderSet,
    HfDatasetSet,
    ImageSet,
    LabelledSet,
    LlamaFactorySet,
    LlavaJsonSet,
    MessagesSet,
    ParquetSet,
    ShapesSet,
    VigcJsonSet,
    WebDatasetSet,
)
from loop.errors import UserError, one_line, printable
from loop.sources.reading.first_images import problem_of, refuse_unreadable
from loop.sources.worlds.build import build_world
from policies.acceptance.rules import ACCEPTANCE_POLICIES, AcceptancePolicy
from policies.correction.methods import CORRECTION_POLICIES, CorrectionPolicy
from policies.errors import MissingMeasurementError
from policies.filtering.chain import FilterChain, check_measurements
from policies.filtering.filters import FILTER_POLICIES
from policies.filtering.near_duplicates import TextSimilarity
from policies.generation.instructions import INSTRUCTION_POLICIES, InstructionPolicy
from policies.records import HeldOutQuestion
from policies.registry import Registry, UnknownPolicyError
from policies.schedule import SCHEDULE_POLICIES, START_POLICIES, STOP_POLICIES, SchedulePolicy, StartPolicy, StopPolicy
from policies.scoring.answer_metrics import ANSWER_METRICS, AUTO, MEASURES, YES_NO, AnswerMetric, Judge, choose
from policies.training.mixing import MIXING_POLICIES, MixingPolicy
from policies.training.selection import SELECTION_POLICIES, SelectionPolicy


@dataclass(frozen=True)
class Policies:
    """Every decision of a run, as plain objects."""

    instructions: InstructionPolicy
    correction: CorrectionPolicy
    filters: FilterChain
    similarity: TextSimilarity | None
    """What counts as a duplicate after the filters; None where they are not looked for."""
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
    metric: AnswerMetric
    """How answers are scored."""
    metric_name: str
    why: str = ""
    """Why this metric was chosen; empty if the config names it."""
    seed_domain: bool = False
    """Whether its questions are like the seed data."""
    yes_no: bool = False
    """Whether a yes where no is right counts as a hallucination."""

    @property
    def described(self) -> str:
        """The set and its metric, in one line."""
        return f"{self.name}: {self.metric_name}, " + (f"chosen because {self.why}" if self.why else "as the config says")


def build_policies(config: RunConfig) -> Policies:
    """The policies that a config names.

    Raises:
        UserError: a policy, a view or a metric does not exist or refuses its options, a filter needs what the correction does not measure,
            or makes a control equal to the candidate.
    """

    def build(registry: Registry[Any], spec: Any) -> Any:
        return registry.build(spec.policy, spec.options)

    try:
        policies = Policies(
            instructions=build(INSTRUCTION_POLICIES, config.generation.instructions),
            correction=build(CORRECTION_POLICIES, config.correction),
            filters=FilterChain([build(FILTER_POLICIES, spec) for spec in config.filters]),
            similarity=None if config.deduplication is None else config.deduplication.similarity,
            selection=build(SELECTION_POLICIES, config.selection),
            mixing=build(MIXING_POLICIES, config.mixing),
            schedule=build(SCHEDULE_POLICIES, config.schedule),
            start=build(START_POLICIES, config.start),
            acceptance=build(ACCEPTANCE_POLICIES, config.acceptance),
            stop=build(STOP_POLICIES, config.stop),
        )
        check_measurements(policies.filters.policies, policies.correction)
        find_view(config.generation.view)
        _check_views(policies.correction)
    except (UnknownPolicyError, MissingMeasurementError) as error:
        raise UserError(one_line(error)) from error
    for spec in (*config.held_out.values(), *config.acceptance_sets.values()):
        if spec.metric.policy != AUTO:
            build_metric(spec.metric.policy, spec.metric.options)
    unchanged = any(spec.policy == "agreement" and spec.options.get("require_original", True) for spec in config.filters)
    if (dpo := config.training.dpo) is not None:
        if unchanged:
            raise UserError(
                "training.objective dpo has no pairs: the filter agreement keeps only records whose answer correction did not change; give "
                "it require_original false, or set objective sft"
            )
        if needed := dpo.missing(policies.correction):
            raise UserError(f"training.objective dpo needs {needed}")
    if unchanged and "no_correction" in config.control:
        raise UserError(
            "control no_correction would learn what the candidate learns: the filter agreement keeps only records whose answer correction "
            "did not change; give it require_original false, or drop the control"
        )
    return policies


def _check_views(correction: CorrectionPolicy) -> None:
    if not correction.view_transforms:
        return
    from actors.transforms import build_transforms  # imports torch

    try:
        build_transforms(correction.view_transforms)
    except ValueError as error:
        raise UserError(f"correction view_transforms: {one_line(error)}") from error


_REMEDIES = {
    "folder": "expected whole JPEG, PNG or WebP files",
    "coco": "is `images` the right folder, and num_name_parts right?",
    "parquet": "expected a column with the bytes of the images; embed them before to_parquet, or take the kind folder or coco",
    "webdataset": "expected whole JPEG, PNG or WebP members",
    "hf_dataset": "expected a column with the bytes of the images; embed them before save_to_disk, or take the kind folder or coco",
}
"""What to do if none of the first images of a set can be read, by the kind of the set."""


def build_images(spec: ImageSet) -> ImageSource:
    """The image source of an unlabelled set.

    Raises:
        UserError: it is missing, unreadable or without images, or none of its first images can be read.
    """
    source = _image_source(spec)
    if spec.kind in _REMEDIES:
        refuse_unreadable(source, source.image_ids(), getattr(spec, "path", ""), _REMEDIES[spec.kind])
    return source


def _image_source(spec: ImageSet) -> ImageSource:
    match spec:
        case FolderSet():
            from loop.sources.folder import ImageFolder

            return ImageFolder(spec.path, limit=spec.num_images)
        case CocoSet():
            from loop.sources.coco import CocoImages

            return CocoImages(spec.path, spec.images, spec.num_name_parts, limit=spec.num_images)
        case ParquetSet():
            from loop.sources.tables import parquet_images

            return parquet_images(spec.path, spec.column, limit=spec.num_images)
        case WebDatasetSet():
            from loop.sources.webdataset import TarImages

            return TarImages(spec.path, limit=spec.num_images, members=spec.members)
        case HfDatasetSet():
            from loop.sources.tables import saved_images

            return saved_images(spec.path, spec.split, spec.column, limit=spec.num_images)
        case ShapesSet() | DrawingsSet():
            return build_world(spec)


def build_labelled(spec: LabelledSet) -> LabelledSource:
    """The source of a labelled set; one that is missing, unreadable or holds a wrong record raises `UserError`."""
    match spec:
        case LlavaJsonSet():
            from loop.sources.llava_json import LlavaJsonData

            return LlavaJsonData(spec.path, spec.images, spec.turns, spec.on_bad_record)
        case LlamaFactorySet():
            from loop.sources.llama_factory import LlamaFactoryData

            return LlamaFactoryData(spec.path, spec.dataset, spec.images, spec.turns, spec.on_bad_record)
        case VigcJsonSet():
            from loop.sources.vigc_json import VigcJsonData

            return VigcJsonData(spec.path, spec.images, spec.question_type, spec.on_bad_record)
        case MessagesSet():
            from loop.sources.messages import MessagesData

            return MessagesData(spec.path, spec.question_type, spec.turns, spec.on_bad_record)
        case ShapesSet() | DrawingsSet():
            return build_world(spec)


def build_held_out(sets: Mapping[str, HeldOutSet], seed: int) -> list[HeldOut]:
    """The held-out or acceptance sets with their questions, the same for a run seed."""
    built = []
    for name, spec in sets.items():
        source = build_labelled(spec.data)
        questions = tuple(source.questions(spec.num_questions, seed))
        metric_name, why = _metric_of(spec, source, questions)
        seed_domain, yes_no = (spec.seed_domain, spec.yes_no) if isinstance(spec, AcceptanceSet) else (False, False)
        options = {} if why else spec.metric.options
        built.append(HeldOut(name, source, questions, build_metric(metric_name, options), metric_name, why, seed_domain, yes_no))
    return built


def build_metric(name: str, options: Mapping[str, Any]) -> AnswerMetric:
    """The metric of that name; raises `UserError` if there is none, or if it refuses its options."""
    try:
        metric = ANSWER_METRICS.build(name, options)
    except UnknownPolicyError as error:
        raise UserError(one_line(error)) from error
    if metric.measure not in MEASURES:
        raise UserError(f"the measure of metric {name} is {str(metric.measure)[:80]!r}; expected one of {', '.join(MEASURES)}")
    return metric


def _metric_of(spec: HeldOutSet, source: LabelledSource, questions: Sequence[HeldOutQuestion]) -> tuple[str, str]:
    """Name of a set's metric, and why it was chosen if the config leaves that open."""
    if spec.metric.policy != AUTO:
        return spec.metric.policy, ""
    if isinstance(spec, AcceptanceSet) and spec.yes_no:
        return YES_NO, "yes_no is true"
    return choose(questions, has_program=isinstance(source, Oracle))


def check_held_out(sets: Sequence[HeldOut]) -> None:
    """Check that all images of held-out questions can be opened: without some of them scores would not be comparable.

    Raises:
        UserError: an image cannot be read, a question cannot be scored by the metric of its set, or the judge cannot be asked.
    """
    for one in sets:
        problems = {question.question_id: problem for question in one.questions if (problem := one.metric.problem(question))}
        if problems:
            example, problem = next(iter(problems.items()))
            raise UserError(
                f"{len(problems)} of {len(one.questions)} questions of the set {one.name} cannot be scored by the metric "
                f"{one.metric_name}, such as {printable(example)}: {printable(problem)}; choose another metric, or correct the data"
            )
        if isinstance(one.metric, Judge):
            from loop.scoring.run_judge import judge_of  # imports a client of HTTP

            judge_of(one.metric)
        for image_id in dict.fromkeys(question.image_id for question in one.questions):
            if problem := problem_of(one.source, image_id):
                raise unreadable_image(one.name, problem)


def unreadable_image(set_name: str, problem: str) -> UserError:
    """The error about an image of a held-out or acceptance set that cannot be read."""
    return UserError(f"an image of the held-out set {set_name} cannot be read: {problem}; replace it or remove its record")


def resource_request(config: RunConfig) -> ResourceRequest:
    """Engines, filters and trainer ranks of a run, and the resources of each; with `num_engines: auto`, the fewest engines."""
    cluster = config.cluster
    return ResourceRequest(
        cluster.planned_engines, cluster.num_filters, cluster.trainer_ranks, cluster.cpus_per_actor, cluster.use_gpus, cluster.colocated,
        config.engine.tensor_parallel_size,
    )  # fmt: skip


def derived_seed(run_seed: int, round_index: int, stage: str, shard: int = 0) -> int:
    """A seed of 63 bits from (run seed, round, stage, shard): the root of the loop's determinism."""
    text = f"{run_seed}/{round_index}/{stage}/{shard}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def evenly(items: Sequence[Any], num_parts: int) -> list[list[Any]]:
    """`items` cut into at most `num_parts` contiguous parts whose sizes differ by at most one; no part is empty."""
    num_parts = min(num_parts, len(items))
    bounds = [len(items) * part // num_parts for part in range(num_parts + 1)] if num_parts else [0]
    return [list(items[start:end]) for start, end in pairwise(bounds)]
