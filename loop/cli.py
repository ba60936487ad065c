"""The command `vigc`: verbs, one YAML file, dotted overrides."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from loop.errors import LoopError, UserError, printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Closed-loop self-enhancement of vision-language models.",
)

RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="run folder, or its URI")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as loop/recipes/shapes.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as training.num_steps=50")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="run folder or pyarrow.fs URI; default runs/NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, print the resolved config and stop")] = False,
) -> None:
    """Start a new run and drive it to its end."""
    from loop.config import load_config

    resolved = load_config(config, overrides or [])
    from loop import driver  # after the config: it takes seconds to import, and a typo should not

    if dry_run:
        driver.check(resolved)
        typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    console = Console()
    store = driver.start(resolved, run_dir or f"runs/{resolved.name}", console)
    _print_results(console, store.uri)


@app.command()
def resume(run_dir: RunDir) -> None:
    """Continue an interrupted run from its last finished shard."""
    from loop import driver

    console = Console()
    store = driver.resume(run_dir, console)
    _print_results(console, store.uri)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file, such as loop/recipes/shapes-stages.yaml")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as stages.0.training.num_steps=50")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the checkpoints; default runs/NAME")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="go on in this folder, with the config it was begun with")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, print the resolved config and stop")] = False,
) -> None:
    """Train a model in stages, as LLaVA is: the projector on captions, then the language model on instructions. The same command, or
    --resume DIR, goes on where an interrupted one stopped."""
    from loop.config import read_document, validated
    from loop.train_config import TrainConfig

    if (config is None) == (resume is None) or (resume is not None and out is not None):
        raise UserError("vigc train takes a CONFIG, with --out DIR or without, or --resume DIR alone")
    parsed = None if config is None else validated(TrainConfig, read_document(config, overrides or []))
    from loop import train as training  # after the config: it takes seconds to import, and a typo should not

    if resume is not None:
        parsed, out = training.stored_config(resume), resume
    assert parsed is not None, "a config or a folder is given"
    if dry_run:
        training.check(parsed)
        typer.echo(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    out, console = out or Path("runs") / parsed.name, Console()
    training.print_summary(console, training.train(parsed, out, console), out)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """What a run has done so far, and its champion."""
    from loop.report import print_status, status_dict
    from loop.state import run_state
    from loop.store import Store

    store = Store.open(run_dir)
    info, (commits, problems) = store.read_run(), store.readable_commits()
    state = "damaged" if problems else run_state(store)
    if as_json:
        typer.echo(json.dumps({**status_dict(info.run_id, state, commits), "problems": problems}))
        return
    for problem in problems:
        typer.echo(f"damaged: {printable(problem)}", err=True)
    print_status(Console(), info.run_id, state, commits)


@app.command()
def verify(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Check every committed file and print one digest over all committed data."""
    from loop.store import Store

    report = Store.open(run_dir).verify()
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
    out: Annotated[Path, typer.Option(help="file or folder to write; it must not exist")],
    round: Annotated[str, typer.Option("--round", help="a round's number, or all")] = "all",
    format: Annotated[str, typer.Option("--format", help="llava, messages or parquet")] = "llava",
) -> None:
    """Write the accepted records of committed rounds for use elsewhere."""
    from loop.config import parse_config
    from loop.export import export as write
    from loop.house import routing, run_images
    from loop.store import Store

    if round != "all" and not round.isdigit():
        raise UserError(f"--round is {round!r}; expected a number or all")
    store = Store.open(run_dir)
    config = parse_config(store.read_run().config)
    report = write(store, "all" if round == "all" else int(round), format, out, run_images(config), routing(config))
    for problem in report.bad_images:
        typer.echo(f"left out: {printable(problem)}", err=True)
    typer.echo(f"{report.num_records} records in {report.path}")


@app.command()
def seed(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint; it must not exist")] = Path("seed-checkpoint"),
    seed: Annotated[int, typer.Option(help="random seed of the whole curriculum")] = 0,
    num_ranks: Annotated[int, typer.Option(help="trainer ranks; two use two cores")] = 2,
) -> None:
    """Train the embedded seed model from nothing and print its scores."""
    from loop.seed.curriculum import make_seed_model

    make_seed_model(out, seed, num_ranks, Console())


@app.command()
def config() -> None:
    """Every key of a config with its default and meaning, and every policy with its options."""
    from loop.reference import print_reference

    print_reference(Console())


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


class PrintableLines(logging.Formatter):
    """What is logged may quote a stranger's file."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def main() -> None:
    """Entry point: errors of the loop become one clear line and their exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on torchvision would stand before every error line
    handler = RichHandler(show_path=False, console=Console(stderr=True))
    handler.setFormatter(PrintableLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        app(prog_name="vigc")
    except LoopError as error:
        _fail(str(error), error.exit_code)
    except RuntimeError as error:
        from actors.engines.base import EngineError
        from actors.training.job import TrainerError
        from cluster.errors import ClusterError, NotEnoughResourcesError

        if not isinstance(error, ClusterError | EngineError | TrainerError):
            raise
        _fail(f"{type(error).__name__}: {error}", UserError.exit_code if isinstance(error, NotEnoughResourcesError) else 1)


def _fail(text: str, exit_code: int) -> NoReturn:
    """One line per finding on stderr, whatever brackets it holds, and out."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in text.split("\n"):
        console.print(Text.assemble(("error:", "bold red"), " ", printable(line)))
    sys.exit(exit_code)


def _print_results(console: Console, uri: str) -> None:
    from loop.config import parse_config
    from loop.report import print_results
    from loop.store import Store

    store = Store.open(uri)
    config = parse_config(store.read_run().config)
    print_results(console, store.commits(), list(config.held_out))
    console.print(f"run folder {uri}; look at it with: vigc status {uri}", highlight=False)


if __name__ == "__main__":
    main()
