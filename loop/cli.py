"""The command `vigc`: verbs, one YAML file, dotted overrides."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from loop.credentials import masked
from loop.errors import LoopError, UserError, printable
from loop.monitors.terminal import encode_any_text, print_loading, unusable_locale
from loop.scoring.commands import commands
from loop.user_paths import PathGroup
from policies.errors import PolicyError

app = typer.Typer(
    cls=PathGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Closed-loop self-enhancement of vision-language models.",
)

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by `ray job submit` for the command that it runs."""

RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="run folder, or its URI")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("vigc-loop")
        except PackageNotFoundError:  # run from a checkout that is not installed
            number = "(not installed)"
        typer.echo(f"vigc {number}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and stop")] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as loop/recipes/shapes.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as training.num_steps=50")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="run folder or pyarrow.fs URI; default runs/NAME")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="check all that is here, print the resolved config and, on stderr, what is missing; then stop"),
    ] = False,
    assume_cpus: Annotated[int | None, typer.Option(min=1, help="with --dry-run: CPUs of the machine or cluster that it is for")] = None,
    assume_gpus: Annotated[int | None, typer.Option(min=0, help="with --dry-run: its GPUs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the folder, if there is one with this config")] = False,
) -> None:
    """Start a new run and drive it to its end."""
    if not dry_run:
        print_loading(f"run {config}")
    from loop.config.run_config import load_config

    is_assumed = assume_cpus is not None or assume_gpus is not None
    if is_assumed and not dry_run:
        raise UserError("--assume-cpus and --assume-gpus need --dry-run; a run uses the machine as it is")
    resolved = load_config(config, overrides or [])
    if dry_run:
        from loop.setup.rehearsal import Machine, rehearse  # slow to import, so only once the config is right

        rehearsal = rehearse(resolved, Machine(assume_cpus, assume_gpus) if is_assumed else None)
        typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)
        told = {"plan": rehearsal.plan, "metric": rehearsal.metrics, "missing": rehearsal.missing, "finding": rehearsal.findings}
        for label, lines in told.items():
            for line in lines:
                typer.echo(f"{label}: {printable(line)}", err=True)
        return
    run_dir, console = _outliving_job(run_dir, f"runs/{resolved.name}", "--run-dir"), Console()
    from loop.run import driver

    store = driver.start(resolved, run_dir, console, resume_existing=resume)
    _print_results(console, store.uri)


@app.command()
def resume(run_dir: RunDir) -> None:
    """Continue an interrupted run from its last finished shard."""
    console = Console()
    print_loading(f"resume {run_dir}")
    from loop.run import driver

    store = driver.resume(run_dir, console)
    _print_results(console, store.uri)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file, such as loop/recipes/shapes-stages.yaml")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as stages.0.training.num_steps=50")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the checkpoints; default runs/NAME")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="continue the training in this folder, with its own config")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, print the resolved config and stop")] = False,
) -> None:
    """Train a model in stages, as LLaVA does: the projector on captions, then the language model on instructions. The same command, or
    --resume DIR, continues an interrupted training."""
    from loop.config.train_config import load_train_config

    if (config is None) == (resume is None) or (resume is not None and out is not None):
        raise UserError("vigc train takes a CONFIG with an optional --out DIR, or --resume DIR alone")
    parsed = None if config is None else load_train_config(config, overrides or [])
    console = Console()
    if parsed is not None and not dry_run:
        out = Path(_outliving_job(None if out is None else str(out), f"runs/{parsed.name}", "--out"))
        print_loading(f"train {parsed.name} in {out}")
    from loop.run import train as training  # slow to import, so only once the config is right

    if resume is not None:
        parsed, out = training.stored_config(resume), resume
    assert parsed is not None, "a config or a folder is given"
    if dry_run:
        findings = training.look_at_images(parsed, training.check(parsed))
        typer.echo(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), nl=False)
        for finding in findings:
            typer.echo(printable(finding.line), err=True)
        return
    assert out is not None, "both ways give one"
    training.print_summary(console, training.train(parsed, out, console), out)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """What a run has done so far, and its champion."""
    from loop.monitors.report import print_status, status_dict
    from loop.run.state import driver_dict, driver_lines, run_state
    from loop.store.run_store import Store

    store = Store.open(run_dir)
    info, (commits, problems) = store.read_run(), store.readable_commits()
    state = "damaged" if problems else run_state(store)
    if as_json:
        typer.echo(
            json.dumps({**status_dict(info.run_id, state, commits), **driver_dict(store, state), "problems": list(map(masked, problems))})
        )
        return
    for problem in problems:
        typer.echo(f"damaged: {printable(problem)}", err=True)
    console = Console()
    print_status(console, info.run_id, state, commits)
    for line in driver_lines(store, state):
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


@app.command()
def verify(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Check every committed file and print one digest over all committed data."""
    from loop.store.run_store import Store
    from loop.store.verifying import verify as verify_run

    report = verify_run(Store.open(run_dir))
    if as_json:
        fields = ("ok", "digest", "num_files", "num_bytes", "num_pruned_files", "problems")
        typer.echo(json.dumps({name: getattr(report, name) for name in fields}))
    else:
        for problem in report.problems:
            typer.echo(f"damaged: {printable(problem)}", err=True)
        state = "all intact" if report.ok else f"{len(report.problems)} damaged"
        pruned = f", {report.num_pruned_files} files pruned" if report.num_pruned_files else ""
        typer.echo(f"{report.num_files} files, {report.num_bytes} bytes, {state}{pruned}")
        typer.echo(f"digest {report.digest}")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option(help="folder to write, or NAME.parquet; it must not exist")],
    round: Annotated[str, typer.Option("--round", help="a round's number, or all")] = "all",
    format: Annotated[str, typer.Option("--format", help="llava, vigc, messages or parquet")] = "llava",
) -> None:
    """Write the accepted records of committed rounds for use elsewhere."""
    from loop.config.run_config import parse_config
    from loop.export import export as write
    from loop.setup.assembly import build_policies
    from loop.setup.routing import routing, run_images
    from loop.store.run_store import Store

    if round != "all" and not round.isdigit():
        raise UserError(f"--round is {round!r}; expected a number or all")
    store = Store.open(run_dir)
    config = parse_config(store.read_run().config)
    route = routing(config, build_policies(config).schedule)
    report = write(store, "all" if round == "all" else int(round), format, out, run_images(config), route)
    for problem in report.bad_images:
        typer.echo(f"left out: {printable(problem)}", err=True)
    typer.echo(f"{report.num_records} records in {report.path}, described in {report.card}")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face id, or a folder")],
    out: Annotated[Path, typer.Option(help="folder for the model; it must not exist")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: that of engine.dtype in the config")] = "bfloat16",
    chat_template: Annotated[Path | None, typer.Option(help="Jinja file, for a model without a template")] = None,
) -> None:
    """Fetch a published model and write it as a run needs it: safetensors of one dtype, with a chat template."""
    from loop.models.fetch import fetch as write

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; expected float32 or bfloat16")
    num_parameters = write(model, out, dtype, chat_template)
    typer.echo(f"{num_parameters} parameters in {dtype} in {out}")


@app.command()
def seed(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint; it must not exist")] = Path("seed-checkpoint"),
    seed: Annotated[int, typer.Option(help="random seed of the whole curriculum")] = 0,
    num_ranks: Annotated[int, typer.Option(help="trainer ranks; two use two cores")] = 2,
) -> None:
    """Train the embedded seed model from nothing and print its scores."""
    from loop.models.seed.curriculum import make_seed_model

    make_seed_model(out, seed, num_ranks, Console())


@app.command()
def teach(
    out: Annotated[Path, typer.Option(help="output folder; the same command continues what is there")],
    captions: Annotated[Path | None, typer.Option(help="COCO captions, or JSON Lines with captions and boxes")] = None,
    instances: Annotated[Path | None, typer.Option(help="COCO or Objects365 instances")] = None,
    images: Annotated[Path | None, typer.Option(help="folder of the annotated images; missing ones are set aside")] = None,
    num_images: Annotated[int | None, typer.Option(help="number of annotated images, drawn by the seed; default all")] = None,
    shapes: Annotated[int | None, typer.Option(metavar="NUM_IMAGES", help="images of the embedded world instead")] = None,
    min_shift: Annotated[float, typer.Option(help="of --shapes, 0..1")] = 0.0,
    max_shift: Annotated[float, typer.Option(help="of --shapes, 0..1")] = 0.15,
    write_images: Annotated[bool, typer.Option("--write-images", help="draw the images of --shapes into OUT/images")] = False,
    types: Annotated[str, typer.Option(help="question types, with commas")] = "conversation,detail,complex",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    teacher: Annotated[str, typer.Option(help="exact (for --shapes), or a text model's folder or Hugging Face id")] = "",
    endpoint: Annotated[str, typer.Option(help="URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")] = "",
    model: Annotated[str, typer.Option(help="the model's name at the endpoint")] = "",
    api_key_env: Annotated[str, typer.Option(help="environment variable that holds the endpoint's key")] = "",
    concurrency: Annotated[int, typer.Option(help="concurrent requests")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="most requests started in a minute; default no limit")] = None,
    timeout_s: Annotated[float, typer.Option(help="time limit for one request")] = 120.0,
    max_attempts: Annotated[int, typer.Option(help="attempts for one text before it is given up")] = 8,
    usd_per_million_input: Annotated[float, typer.Option(help="price of a million tokens read")] = 0.0,
    usd_per_million_output: Annotated[float, typer.Option(help="price of a million tokens written")] = 0.0,
    max_usd: Annotated[float | None, typer.Option(help="spending cap for OUT, over all commands that wrote into it")] = None,
    extra_body: Annotated[str, typer.Option(metavar="JSON", help="more fields for every request; null removes one")] = "{}",
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens in one text")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.7,
    batch_size: Annotated[int, typer.Option(help="texts per batch of a model that runs here")] = 8,
    as_json: AsJson = False,
) -> None:
    """Have a text-only teacher write seed data about images from their captions and boxes."""
    from loop.teaching.teach import TeachOptions, endpoint_options, print_summary, question_types, shapes_images
    from loop.teaching.teach import teach as write

    server = endpoint_options(
        endpoint, model, extra_body, api_key_env=api_key_env, max_concurrency=concurrency, requests_per_minute=requests_per_minute,
        timeout_s=timeout_s, max_attempts=max_attempts, usd_per_million_input=usd_per_million_input,
        usd_per_million_output=usd_per_million_output, max_usd=max_usd,
    )  # fmt: skip
    options = TeachOptions(
        out=out, types=question_types(types), seed=seed, captions=captions, instances=instances, images=images, num_images=num_images,
        shapes=shapes_images(shapes, seed, min_shift, max_shift), write_images=write_images, teacher=teacher, endpoint=server,
        max_tokens=max_tokens, temperature=temperature, batch_size=batch_size,
    )  # fmt: skip
    console = Console(stderr=as_json)
    summary = write(options, console)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(console, summary, out)


@app.command()
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="vqa, okvqa, aokvqa, pope, chair, scienceqa, mmbench, llava-bench")],
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


@app.command()
def config() -> None:
    """Every key of a config with its default and meaning, and every policy with its options."""
    from loop.config.reference import print_reference

    print_reference()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine has for running the loop, and what is missing."""
    from loop.doctor import examine, print_findings

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        print_findings(Console(), findings)
    if any(not finding.ok and finding.required for finding in findings):
        raise typer.Exit(1)


app.add_typer(commands)


_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for an unknown, missing or invalid verb, option or argument; it exports only this subclass."""


class PrintableLines(logging.Formatter):
    """Makes log lines safe to print: they may quote untrusted files."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def main() -> None:
    """Entry point: errors of the loop become one clear line and their exit code."""
    encode_any_text()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # otherwise its advice on torchvision precedes every error line
    handler = RichHandler(show_path=False, console=Console(stderr=True))
    handler.setFormatter(PrintableLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _print_masked
    try:
        sys.exit(app(prog_name="vigc", standalone_mode=False))  # the code of a `typer.Exit`, else None
    except _UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        if message:  # without a verb the help has been printed
            _fail(f"{message}; see `{error.ctx.command_path if error.ctx else 'vigc'} --help`", UserError.exit_code)
        sys.exit(UserError.exit_code)
    except LoopError as error:
        _fail(str(error), error.exit_code)
    except PolicyError as error:
        for line in error.trace.splitlines():
            typer.echo(printable(line), err=True)
        _fail(str(error), 1)
    except UnicodeError as error:
        if (cause := unusable_locale(error)) is None:
            raise
        _fail(str(cause), cause.exit_code)
    except RuntimeError as error:
        from actors.chat.endpoint import EndpointError
        from actors.engines.errors import EngineError
        from actors.training.job import TrainerError
        from cluster.errors import ClusterError

        if not isinstance(error, ClusterError | EndpointError | EngineError | TrainerError):
            raise
        # What the caller can fix, such as too few CPUs or a model that the engine refuses, is a ValueError as well.
        _fail(f"{type(error).__name__}: {error}", UserError.exit_code if isinstance(error, ValueError) else 1)


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python prints it, credentials masked."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _fail(text: str, exit_code: int) -> NoReturn:
    """Print one line per finding on stderr, brackets unchanged, and exit."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in text.split("\n"):
        console.print(Text.assemble(("error:", "bold red"), " ", printable(line)))
    sys.exit(exit_code)


def _outliving_job(folder: str | None, default: str, option: str) -> str:
    """The output folder of a command. A Ray job must name one outside its working folder, which is deleted with the cluster."""
    is_lost = folder is None or not ("://" in folder or Path(folder).expanduser().is_absolute())
    if is_lost and _RAY_JOB in os.environ:
        raise UserError(
            f"under `ray job submit` {option} {folder or default} lies in Ray's temporary folder, which is deleted with the cluster; "
            f"set {option} to an absolute path that outlives the machine, or a URI"
        )
    return folder or default


def _print_results(console: Console, uri: str) -> None:
    from loop.config.run_config import parse_config
    from loop.monitors.report import TABLE_WIDTH, print_results
    from loop.monitors.run_log import RunLog
    from loop.store.run_store import Store

    store = Store.open(uri)
    config = parse_config(store.read_run().config)
    print_results(console, store.commits(), list(config.held_out))
    tables = io.StringIO()
    print_results(Console(file=tables, width=TABLE_WIDTH), store.commits(), list(config.held_out))
    RunLog(store.storage).text(tables.getvalue())
    shown = printable(uri)
    console.print(f"run folder {shown}; look at it with: {_this_command()} status {shown}", highlight=False, soft_wrap=True)


def _this_command() -> str:
    """How to call this program from a shell: by name, or by the path of the script beside Python."""
    if shutil.which("vigc"):
        return "vigc"
    script = Path(sys.executable).with_name("vigc")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m loop"
    return shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))


if __name__ == "__main__":
    main()
