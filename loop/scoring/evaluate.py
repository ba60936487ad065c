"""`vigc evaluate`: a model answers the questions of a benchmark on the project's engines, and is scored.

    evaluation.json       model, questions and settings; a folder holds one evaluation
    chunks/00003.json     answers to 64 prompts, sealed with their hash; a finished chunk is never asked again
    images/               images from the benchmark's table
    predictions.jsonl     all answers, in the format of `vigc score`
    score.json            the score

Prompts are the benchmark's own (`policies.benchmarks`), answered greedily. Running the same command again resumes the evaluation. At the
end it is logged to MLflow (`loop.scoring.evaluation_tracking`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError

from actors.engines.base import WeightUpdate
from actors.engines.errors import WeightMismatchError
from actors.engines.weights import weight_version
from actors.folders import local_path
from actors.images import ImageSource
from cluster.fleet.fleet import Fleet
from cluster.fleet.weights import prepare
from loop.config.engine_config import ClusterConfig, EngineConfig
from loop.config.run_config import EMBEDDED_MODELS
from loop.credentials import masked
from loop.errors import DamagedFileError, UserError, printable
from loop.models.checks import check_model
from loop.models.files import downloaded, model_files
from loop.models.serving import serving
from loop.monitors.mirror.facts import DataSet
from loop.monitors.progress import RunProgress
from loop.scoring.evaluation_tracking import Evaluation, log_evaluation
from loop.scoring.images import NO_IMAGE, FoundImages, find_images
from loop.scoring.score import build, filter_split, read_document, read_questions
from loop.store.commits import champion_commit
from loop.store.documents import canonical_json, seal, unseal
from loop.store.files import locked, write, write_json, write_lines
from loop.store.run_store import Store
from loop.store.storage.local import LocalStorage
from policies.answers.reasoning import without_reasoning
from policies.benchmarks import Benchmark, Question
from policies.records import HeldOutQuestion
from policies.scoring.asking import default_max_new_tokens, is_scored, prediction_record

log = logging.getLogger(__name__)

MANIFEST, CHUNKS, IMAGES, PREDICTIONS, SCORE = "evaluation.json", "chunks", "images", "predictions.jsonl", "score.json"
CHUNK_SIZE = 64
"""Prompts per chunk, the unit of work and of resuming."""
_NUM_SHOWN = 10


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """What is evaluated, and how."""

    model: str
    """`embedded`, `embedded-drawings`, a folder, a hub id, or the folder or URI of a run (its champion is evaluated)."""
    benchmark: str
    data: tuple[Path, ...]
    images: str | None = None
    """A folder, or a world such as `shapes`; None if the data contains the images or there are none."""
    split: str | None = None
    plain: bool = False
    """Ask only the questions, without the benchmark's choices and instructions."""
    max_new_tokens: int | None = None
    """None for the benchmark's default."""
    allow_missing_images: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    """Keys of a config's `engine` section."""
    num_engines: int = 1
    chunk_timeout_s: float = 600.0
    """Time limit for one chunk."""
    experiment: str | None = None
    """MLflow experiment that the evaluation is logged to; None for none."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The result of an evaluation."""

    folder: Path
    scores: dict[str, Any]
    """As in `score.json`; empty for a benchmark that needs a judge."""
    num_asked: int
    """Prompts that this process asked, without those of chunks finished before."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt about one image."""

    question: Question
    setting: str
    image_id: str
    text: str

    @property
    def asked(self) -> HeldOutQuestion:
        return HeldOutQuestion(self.question.question_id, self.image_id, self.text, "")


Serve = Callable[[WeightUpdate, EngineConfig, ClusterConfig, str], AbstractContextManager[Fleet]]
"""Starts engines, like `loop.models.serving.serving`."""


def evaluate(spec: EvaluationSpec, out: Path | None, progress: RunProgress, serve: Serve = serving) -> Evaluated:
    """Answer the remaining prompts and score all answers.

    Args:
        spec: what to evaluate, and how.
        out: the folder of the evaluation; None for one in `evaluations/` named after the benchmark and a hash of all inputs.
        progress: shows the work.
        serve: starts engines; called only if there are prompts left.

    Raises:
        UserError: model, data, images or options cannot be used, or `out` holds another evaluation.
    """
    engine, cluster = _engine(spec)
    benchmark, listed = build(spec.benchmark, spec.data)
    questions = filter_split(read_questions(spec.benchmark, benchmark, spec.data), spec.split)
    if not questions:
        raise UserError(f"{spec.benchmark} has no question to ask; give its questions with --data")
    max_new_tokens = spec.max_new_tokens or default_max_new_tokens(spec.benchmark)
    update = _model(spec.model, engine)
    facts = {
        "benchmark": spec.benchmark, "data": [_sha256(path.read_bytes()) for path in spec.data], "split": spec.split, "plain": spec.plain,
        "images": spec.images, "max_new_tokens": max_new_tokens, "model": update.version, "model_files": _digest_beside_weights(update),
        "engine": {"kind": engine.kind, "dtype": engine.dtype},
    }  # fmt: skip
    folder = out or Path("evaluations") / f"{spec.benchmark.replace(':', '-')}-{_sha256(canonical_json(facts))[:12]}"
    with locked(LocalStorage(folder.absolute())):
        _claim(folder, facts)
        with progress.stage("look for images"):
            found = find_images(questions, spec.images, folder / IMAGES)
        asked = _with_image(questions, found, spec.allow_missing_images)
        prompts = [
            _Prompt(
                question, setting, found.ids[question.question_id], question.text if spec.plain else benchmark.prompt(question, setting)
            )
            for question in asked
            for setting in benchmark.settings
        ]
        engines = partial(serve, update, engine, cluster, str(folder.absolute()))
        answers, num_asked = _answered(folder, prompts, found.source, engines, max_new_tokens, progress)
        if num_unfinished := sum(without_reasoning(answer) is None for answer in answers):
            progress.note(f"{num_unfinished} of {len(answers)} answers end before their reasoning does; increase --max-new-tokens")
        scores = _scored(folder, spec, benchmark, prompts, answers)
        if scores:
            scores |= {"num_blank_images": sum(found.ids[one.question_id] == NO_IMAGE for one in asked)}
            scores |= {"num_left_out": len(questions) - len(asked), "published": benchmark.published, **listed}
            write_json(folder / SCORE, scores)
    if spec.experiment is not None:
        with progress.stage("log to MLflow"):
            log_evaluation(_tracked(folder, spec, facts, update, scores, len(asked)), spec.experiment)
    return Evaluated(folder, scores, num_asked)


def _tracked(
    folder: Path, spec: EvaluationSpec, facts: dict[str, Any], update: WeightUpdate, scores: dict[str, Any], num_questions: int
) -> Evaluation:
    """What MLflow gets of an evaluation."""
    told = {**facts, "digest": _sha256(canonical_json(facts))[:12], "model": _shown_model(spec.model), "weight_version": update.version}
    files = [folder / PREDICTIONS, *([folder / SCORE] if scores else [])]
    data = [
        DataSet(path.name, "evaluation", digest[:16], str(path.resolve()), num_questions if len(spec.data) == 1 else None)
        for path, digest in zip(spec.data, facts["data"], strict=True)
    ]
    checkpoint = update.checkpoint.resolve().as_uri() if isinstance(update.checkpoint, Path) else masked(str(update.checkpoint))
    return Evaluation(folder, {**told, "weight_digest": update.digest}, scores, files, data, update.version, checkpoint)


def _shown_model(model: str) -> str:
    """The model's name. A URI is shown without user and query, which may contain keys."""
    return re.sub(r"//[^/@]*@", "//", model.partition("?")[0]) if "://" in model else model


def _engine(spec: EvaluationSpec) -> tuple[EngineConfig, ClusterConfig]:
    try:
        engine = TypeAdapter(EngineConfig).validate_python(spec.engine)
        cluster = ClusterConfig.model_validate({
            "num_engines": spec.num_engines, "cpus_per_actor": engine.num_threads, "use_gpus": engine.device == "cuda",
            "task_timeout_s": spec.chunk_timeout_s,
        })  # fmt: skip
    except ValidationError as error:
        findings = (f"{'.'.join(map(str, one['loc'][1:] or one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError("\n".join(findings)) from error
    if spec.max_new_tokens is not None and spec.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {spec.max_new_tokens}; expected at least 1")
    return engine, cluster


def _model(model: str, engine: EngineConfig) -> WeightUpdate:
    """The weights to serve, with their digest."""
    if "://" in model or (Path(model) / "run.json").is_file():
        store = Store.open(model)
        commits = store.commits()
        if not commits:
            raise UserError(f"the run {model} has no champion yet; wait for its first round, or give a model's folder")
        champion = champion_commit(commits)
        update = prepare(store.checkpoint(champion.champion_path), champion.champion, "checkpoint")
        if champion.champion != weight_version(champion.round, update.digest):
            remedy = "restore it from a copy of the run"
            found = weight_version(champion.round, update.digest)
            raise DamagedFileError(champion.champion_path, f"weights {champion.champion}", found, remedy)
        return update
    path = str(EMBEDDED_MODELS.get(model, model))
    check_model(path, engine)
    try:
        update = prepare(downloaded(path), "", "checkpoint")
    except WeightMismatchError as error:
        raise UserError(f"model {model!r} cannot be read: {error}") from error
    return replace(update, version=f"weights-{update.digest[:12]}")


def _digest_beside_weights(update: WeightUpdate) -> str:
    """Digest of tokenizer, processor, chat template and configs, which answers also depend on."""
    assert update.checkpoint is not None
    files = [file for file in model_files(local_path(update.checkpoint)) if file.suffix != ".safetensors"]
    return _sha256(canonical_json([[file.name, _sha256(file.read_bytes())] for file in files]))


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest into a new folder, or verify that the folder holds this evaluation."""
    path = folder / MANIFEST
    if not path.exists():
        if strange := sorted(set(os.listdir(folder)) - {"lock"}):
            raise UserError(f"{folder} holds other files, such as {strange[0]}, but no {MANIFEST}; choose another --out")
        write(path, seal(facts))
        return
    there = unseal(str(path), path.read_bytes())
    for name in sorted({*there, *facts}):
        if there.get(name) != facts.get(name):
            raise UserError(
                f"{folder} holds another evaluation: its {name} is {printable(str(there.get(name)))}, now it is "
                f"{printable(str(facts.get(name)))}; choose another --out"
            )


def _with_image(questions: Sequence[Question], found: FoundImages, allow_missing: bool) -> list[Question]:
    """The questions that have no image or a readable one."""
    if found.problems and not allow_missing:
        bad = list(dict.fromkeys(found.problems.values()))
        more = f"\nand {len(bad) - _NUM_SHOWN} more images" if len(bad) > _NUM_SHOWN else ""
        raise UserError(
            "\n".join(bad[:_NUM_SHOWN]) + f"{more}\n{len(found.problems)} of {len(questions)} questions have an image that is missing or "
            "unreadable; fix the images, or leave these questions out with --allow-missing-images"
        )
    asked = [question for question in questions if question.question_id not in found.problems]
    if not asked:
        raise UserError(f"the images of all {len(questions)} questions are missing or unreadable: {next(iter(found.problems.values()))}")
    return asked


def _answered(
    folder: Path, prompts: Sequence[_Prompt], source: ImageSource, engines: Callable[[], AbstractContextManager[Fleet]],
    max_new_tokens: int, progress: RunProgress,
) -> tuple[list[str], int]:  # fmt: skip
    """The answers to all prompts, and how many prompts were asked now. No engine is started if no prompt is left."""
    chunks = [prompts[start : start + CHUNK_SIZE] for start in range(0, len(prompts), CHUNK_SIZE)]
    answers = {index: known for index, chunk in enumerate(chunks) if (known := _finished(folder, index, chunk)) is not None}
    todo = [index for index in range(len(chunks)) if index not in answers]
    num_asked = 0

    def submit(engine: Any, index: int) -> ray.ObjectRef:
        return engine.evaluate.remote(source, [prompt.asked for prompt in chunks[index]], max_new_tokens)

    with ExitStack() as stack:
        if todo:
            with progress.stage("start engines", total=1, unit="fleet") as starting:
                fleet = stack.enter_context(engines())
                starting.advance(1)
            stage = stack.enter_context(progress.stage("evaluate", total=len(prompts), unit="prompts"))
            stage.advance(sum(map(len, answers.values())))
            for index, predictions in fleet.run(todo, submit):
                assert {one.weight_version for one in predictions} == {fleet.weight_version}
                answers[index] = [one.answer for one in predictions]
                write(_chunk_path(folder, index), seal({"prompts": _digest_of(chunks[index]), "answers": answers[index]}))
                num_asked += len(predictions)
                stage.advance(len(predictions))
    return [answer for index in range(len(chunks)) for answer in answers[index]], num_asked


def _digest_of(chunk: Sequence[_Prompt]) -> str:
    return _sha256(canonical_json([[one.question.question_id, one.setting, one.image_id, one.text] for one in chunk]))


def _finished(folder: Path, index: int, chunk: Sequence[_Prompt]) -> list[str] | None:
    """The answers of a finished chunk of exactly these prompts; None if it must be asked (again)."""
    path = _chunk_path(folder, index)
    if not path.exists():
        return None
    try:
        content = unseal(str(path), path.read_bytes())
    except DamagedFileError as error:
        log.warning("%s; asking again", error)
        return None
    return content["answers"] if content["prompts"] == _digest_of(chunk) else None


def _chunk_path(folder: Path, index: int) -> Path:
    return folder / CHUNKS / f"{index:05d}.json"


def _scored(folder: Path, spec: EvaluationSpec, benchmark: Benchmark, prompts: Sequence[_Prompt], answers: Sequence[str]) -> dict[str, Any]:
    """Write the predictions and return their scores, as from `vigc score`."""
    texts: dict[str, dict[str, str]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        texts.setdefault(prompt.question.question_id, {})[prompt.setting] = answer
    write_lines(folder / PREDICTIONS, [prediction_record(spec.benchmark, one, given) for one, given in texts.items()])
    if not is_scored(spec.benchmark):
        return {}
    questions = list({prompt.question.question_id: prompt.question for prompt in prompts}.values())
    return benchmark.score(questions, benchmark.read_predictions(read_document(folder / PREDICTIONS), questions))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
