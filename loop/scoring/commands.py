"""The `vigc` commands that evaluate models on benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from loop.chat_models import chat_model
from loop.config.tracking_config import DEFAULT_EXPERIMENT
from loop.monitors.terminal import print_loading

if TYPE_CHECKING:
    pass

commands = typer.Typer()

BENCHMARK_NAMES = (
    "captions, chair, pope, amber, hallusion-bench, vqa, okvqa, aokvqa, textvqa, vizwiz, gqa, scienceqa, mmbench, mme, seed-bench, "
    "llava-bench, mm-vet, exact, or module:Name"
)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Data = Annotated[list[Path], typer.Option(help="file of the benchmark; may be repeated")]
Url = Annotated[str | None, typer.Option(help="endpoint of a text model, up to and with its version: http://127.0.0.1:8000/v1")]
Api = Annotated[Literal["openai", "anthropic"], typer.Option(help="the endpoint's protocol: OpenAI's, as most servers, or Anthropic's")]
ApiKeyEnv = Annotated[str, typer.Option(help="environment variable that holds the endpoint's key")]
Concurrency = Annotated[int, typer.Option(help="concurrent requests")]
RequestsPerMinute = Annotated[float | None, typer.Option(help="maximum rate; default: no limit")]
RequestTimeout = Annotated[float, typer.Option(help="timeout of a request in seconds")]
UsdPerMillion = Annotated[float, typer.Option(help="price of a million tokens, for --max-usd")]
MaxUsd = Annotated[float | None, typer.Option(help="spending cap of this call")]
ExtraBody = Annotated[str, typer.Option(metavar="JSON", help="further fields of every request; null removes one")]


class PopeSplit(StrEnum):
    """POPE's ways to sample absent objects."""

    RANDOM = "random"
    POPULAR = "popular"
    ADVERSARIAL = "adversarial"


@commands.command()
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help=BENCHMARK_NAMES)],
    predictions: Annotated[Path, typer.Option(help="JSON object {question id: answer}, or JSON Lines with question_id and answer")],
    data: Annotated[list[Path] | None, typer.Option(help="the benchmark's file; again for a second one")] = None,
    published: Annotated[bool, typer.Option("--published", help="repeat the public code where it is known to be wrong")] = False,
    synonyms: Annotated[Path | None, typer.Option(help="CHAIR's words; default synonyms.txt beside the data, else our own")] = None,
    split: Annotated[str | None, typer.Option(help="only the questions of this split, where the data names splits")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="count questions without a prediction as wrong")] = False,
    as_json: AsJson = False,
) -> None:
    """Score predictions on one of the field's benchmarks, in percent."""
    from loop.scoring.score import print_scores, score_files

    files = data or []
    scores = score_files(benchmark, files, predictions, published=published, synonyms=synonyms, split=split, allow_missing=allow_missing)
    if as_json:
        typer.echo(json.dumps(scores))
    else:
        print_scores(Console(), benchmark, scores)


@commands.command()
def evaluate(
    model: Annotated[str, typer.Option(help="embedded, embedded-drawings, a folder, a Hugging Face id, or a run folder (its champion)")],
    benchmark: Annotated[str, typer.Option(help=BENCHMARK_NAMES)],
    data: Data,
    images: Annotated[str | None, typer.Option(help="folder of the images, or a world: shapes, drawings, drawings:path=FOLDER")] = None,
    split: Annotated[str | None, typer.Option(help="only the questions of this split")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="ask the questions alone, without the benchmark's instructions")] = False,
    engine: Annotated[Literal["transformers", "vllm"], typer.Option(help="what runs the model")] = "transformers",
    num_engines: Annotated[int, typer.Option(help="number of engines")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    num_threads: Annotated[int, typer.Option(help="threads and CPUs of an engine")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(help="bound on an answer; by default the benchmark's")] = None,
    chunk_timeout_s: Annotated[float, typer.Option(help="bound on 64 prompts")] = 600.0,
    allow_missing_images: Annotated[bool, typer.Option("--allow-missing-images", help="leave out questions whose image is bad")] = False,
    out: Annotated[Path | None, typer.Option(help="folder; default evaluations/BENCHMARK-HASH. the same command resumes in it")] = None,
    tracking: Annotated[
        bool, typer.Option("--tracking/--no-tracking", help="log to MLflow: to MLFLOW_TRACKING_URI, or to mlflow.db beside the folder")
    ] = True,
    experiment: Annotated[str, typer.Option(envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow experiment")] = DEFAULT_EXPERIMENT,
    as_json: AsJson = False,
) -> None:
    """Ask a model a benchmark's questions, and score its answers."""
    print_loading(f"evaluate {model} on {benchmark}")
    from loop.interruption import interruptible
    from loop.monitors.progress import RunProgress
    from loop.scoring.evaluate import PREDICTIONS, EvaluationSpec
    from loop.scoring.evaluate import evaluate as run

    keys = {"kind": engine, "device": device, "dtype": dtype, "num_threads": num_threads}
    spec = EvaluationSpec(
        model, benchmark, tuple(data), images, split, plain, max_new_tokens, allow_missing_images, keys, num_engines,
        chunk_timeout_s, experiment if tracking else None,
    )  # fmt: skip
    console = Console(stderr=as_json)
    with interruptible("the evaluation", "run the same command to resume"), RunProgress(console) as progress:
        done = run(spec, out, progress)
    if as_json:
        typer.echo(json.dumps({"folder": str(done.folder), "num_asked": done.num_asked, **done.scores}))
        return
    _print_scores(console, benchmark, done.scores)
    console.print(f"predictions in {done.folder / PREDICTIONS}", highlight=False, soft_wrap=True)


@commands.command()
def pope(
    objects: Annotated[
        str,
        typer.Option(help="COCO's instances file, JSON Lines with instances, or a world such as shapes:seed=7,num_images=100"),
    ],
    out: Annotated[Path, typer.Option(help="JSON Lines to write")],
    split: Annotated[list[PopeSplit] | None, typer.Option(help="random, popular or adversarial; may be repeated, by default all")] = None,
    num_per_image: Annotated[int, typer.Option(help="questions about an image in each split, half of them with a yes")] = 6,
    num_images: Annotated[int | None, typer.Option(help="ask about so many images, drawn by the seed")] = None,
    seed: Annotated[int, typer.Option(help="seed of all draws")] = 0,
    counts_from: Annotated[
        str | None,
        typer.Option(help="objects in which frequency and co-occurrence are counted, such as a labelled set's; default those of --objects"),
    ] = None,
) -> None:
    """Build POPE's questions for images whose objects are known."""
    from loop.scoring.pope import pope_questions, read_objects, world_objects, write_questions
    from loop.sources.worlds.build import names_world

    def known(text: str, option: str) -> dict[str, list[str]]:
        return world_objects(text, option) if names_world(text) else read_objects(Path(text))

    splits = [str(one) for one in split or list(PopeSplit)]
    questions = pope_questions(
        known(objects, "--objects"), splits, num_per_image, num_images, seed,
        short=names_world(objects), counted=known(counts_from, "--counts-from") if counts_from else None,
    )  # fmt: skip
    write_questions(out, questions)
    typer.echo(f"{len(questions)} questions about {len({one.image for one in questions})} images in {out}")


@commands.command()
def questions(
    world: Annotated[
        str, typer.Argument(metavar="WORLD", help="shapes:seed=7,num_images=500 or drawings:styles=noto,seed=7,num_images=500")
    ],
    out: Annotated[Path, typer.Option(help="JSON Lines to write")],
    num_questions: Annotated[int | None, typer.Option(help="number of questions; default one per image")] = None,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
) -> None:
    """Write questions about an embedded world with their exact answers, for the benchmark exact."""
    from loop.scoring.world_questions import write_world_questions

    typer.echo(f"{write_world_questions(world, out, num_questions, seed)} questions in {out}")


@commands.command()
def judge(
    questions: Annotated[Path, typer.Option(help="the benchmark's questions")],
    answers: Annotated[Path, typer.Option(help="the model's answers: question_id and answer or text")],
    out: Annotated[Path, typer.Option(help="reviews to write, for `vigc score`")],
    benchmark: Annotated[
        Literal["llava-bench", "mm-vet"], typer.Option(help="compare answers with references, or grade them from 0 to 1")
    ] = "llava-bench",
    reference: Annotated[Path | None, typer.Option(help="reference answers; default the questions' own gpt4_answer")] = None,
    context: Annotated[Path | None, typer.Option(help="captions and boxes of the images; default the questions' own")] = None,
    rules: Annotated[Path | None, typer.Option(help="LLaVA's rule.json, or a text file with MM-Vet's prompt; default our own")] = None,
    endpoint: Url = None,
    model: Annotated[str | None, typer.Option(help="the endpoint's name of the judge")] = None,
    judge: Annotated[str | None, typer.Option(help="folder or Hugging Face id of a text model that judges here")] = None,
    both_orders: Annotated[bool, typer.Option("--both-orders", help="ask in both orders of the answers, and average")] = False,
    num_attempts: Annotated[int, typer.Option(help="requests for one review whose first line is not a verdict")] = 3,
    temperature: Annotated[float | None, typer.Option(help="of the judge; default 0.2, for mm-vet 0")] = None,
    max_tokens: Annotated[int, typer.Option(help="bound on a review")] = 1024,
    api: Api = "openai",
    api_key_env: ApiKeyEnv = "",
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    timeout_s: RequestTimeout = 120.0,
    usd_per_million_input: UsdPerMillion = 0.0,
    usd_per_million_output: UsdPerMillion = 0.0,
    max_usd: MaxUsd = None,
    extra_body: ExtraBody = "{}",
    as_json: AsJson = False,
) -> None:
    """Have a text model compare a model's answers with reference answers, or grade them."""
    from loop.errors import UserError
    from loop.interruption import interruptible
    from loop.monitors.progress import RunProgress
    from loop.scoring.grading import grade, read_to_grade
    from loop.scoring.judging import JudgeFiles, JudgeOptions, read_pairs
    from loop.scoring.judging import judge as compare

    is_graded = benchmark == "mm-vet"
    if is_graded and (reference or context or both_orders):
        raise UserError("--reference, --context and --both-orders are for llava-bench; mm-vet's questions contain the right answers")
    options = JudgeOptions(both_orders, num_attempts, max_tokens, (0.0 if is_graded else 0.2) if temperature is None else temperature)
    # files are read before a model is loaded
    run = (
        partial(grade, read_to_grade(questions, answers, rules))
        if is_graded
        else partial(compare, read_pairs(JudgeFiles(questions, answers, reference, context, rules)))
    )
    limits = {
        "api": api, "api_key_env": api_key_env, "max_concurrency": concurrency, "requests_per_minute": requests_per_minute,
        "timeout_s": timeout_s, "usd_per_million_input": usd_per_million_input, "usd_per_million_output": usd_per_million_output,
        "max_usd": max_usd, "extra_body": extra_body,
    }  # fmt: skip
    asked, name = chat_model(endpoint, model, judge, "--judge", limits)
    console = Console(stderr=as_json)
    with interruptible(str(out), "run the same command to resume"), RunProgress(console) as progress:
        done = run(asked, name, out, options, progress)
    counts = {"num_asked": done.num_asked, "num_failed": done.num_failed, "usd": done.usage.usd}
    if as_json:
        typer.echo(json.dumps({**done.scores, **counts}))
        return
    _print_scores(console, benchmark, {**done.scores, **counts})
    console.print(f"reviews in {out}", highlight=False, soft_wrap=True)


@commands.command()
def ensemble(
    how: Annotated[
        Literal["complement", "judge"],
        typer.Argument(metavar="complement|judge", help="take the other's answer where the text model has none, or ask it again"),
    ],
    benchmark: Annotated[str, typer.Option(help="scienceqa or mmbench")],
    data: Data,
    predictions: Annotated[Path, typer.Option(help="answers of the model that sees the images")],
    out: Annotated[Path, typer.Option(help="predictions to write, for `vigc score`")],
    text_predictions: Annotated[Path | None, typer.Option(help="answers of the text model; without them it is asked")] = None,
    split: Annotated[str | None, typer.Option(help="only the questions of this split")] = None,
    endpoint: Url = None,
    model: Annotated[str | None, typer.Option(help="the endpoint's name of the text model")] = None,
    text_model: Annotated[str | None, typer.Option(help="folder or Hugging Face id of a text model that runs here")] = None,
    api: Api = "openai",
    api_key_env: ApiKeyEnv = "",
    concurrency: Concurrency = 8,
    requests_per_minute: RequestsPerMinute = None,
    timeout_s: RequestTimeout = 120.0,
    usd_per_million_input: UsdPerMillion = 0.0,
    usd_per_million_output: UsdPerMillion = 0.0,
    max_usd: MaxUsd = None,
    extra_body: ExtraBody = "{}",
    as_json: AsJson = False,
) -> None:
    """Combine the answers of a model that sees the images with those of a text-only model."""
    from loop.interruption import interruptible
    from loop.monitors.progress import RunProgress
    from loop.scoring.ensembles import EnsembleFiles, combine
    from policies.scoring.ensembles import Ensemble

    files = EnsembleFiles(benchmark, tuple(data), predictions, text_predictions, split)
    limits = {
        "api": api, "api_key_env": api_key_env, "max_concurrency": concurrency, "requests_per_minute": requests_per_minute,
        "timeout_s": timeout_s, "usd_per_million_input": usd_per_million_input, "usd_per_million_output": usd_per_million_output,
        "max_usd": max_usd, "extra_body": extra_body,
    }  # fmt: skip
    given = any(one is not None for one in (endpoint, model, text_model))
    asked, name = chat_model(endpoint, model, text_model, "--text-model", limits) if given else (None, "")
    console = Console(stderr=as_json)
    with interruptible(str(out), "run the same command to resume"), RunProgress(console) as progress:
        done = combine(files, Ensemble(how), asked, name, out, progress)
    counts = {"num_asked": done.num_asked, "num_failed": done.num_failed}
    if as_json:
        typer.echo(json.dumps({**done.scores, **counts}))
        return
    _print_scores(console, benchmark, {**done.scores, **counts})
    console.print(f"predictions in {out}", highlight=False, soft_wrap=True)


def _print_scores(console: Console, name: str, scores: Mapping[str, Any]) -> None:
    from loop.scoring.score import print_scores

    if scores:
        print_scores(console, name, scores)
