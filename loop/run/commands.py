"""The `vigc` commands about runs and trainings: start, resume, look at, verify and export them."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from loop.credentials import masked
from loop.errors import UserError, printable
from loop.monitors.terminal import print_loading
from loop.scoring.commands import AsJson

if TYPE_CHECKING:
    from loop.config.run_config import RunConfig
    from loop.config.train_config import TrainConfig
    from loop.store.documents import VerifyReport

commands = typer.Typer()

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by `ray job submit` for the command that it runs."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as loop/recipes/shapes.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, such as training.num_steps=50")]
AssumeNodes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NxG", help="plan for these nodes: 4x8 (4 nodes, 8 GPUs each), 4x96c8g (with 96 CPUs each) or 4x96c; repeat it for a mix"
    ),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="run folder, or its URI")]


@commands.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[str | None, typer.Option(help="run folder or pyarrow.fs URI; default runs/NAME")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="check all that is here, print the resolved config and, on stderr, what is missing; then stop"),
    ] = False,
    assume_nodes: AssumeNodes = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the folder, if there is one with this config")] = False,
) -> None:
    """Start a new run and drive it to its end."""
    if not dry_run:
        print_loading(f"run {config}")
    from loop.config.run_config import load_config

    if assume_nodes and not dry_run:
        raise UserError("--assume-nodes needs --dry-run; a run uses the machine or cluster as it is")
    resolved = load_config(config, overrides or [])
    if dry_run:
        from loop.setup.planning import assumed_nodes
        from loop.setup.rehearsal import rehearse  # slow to import, so only once the config is right

        rehearsal = rehearse(resolved, assumed_nodes(assume_nodes, use_gpus=resolved.cluster.use_gpus) if assume_nodes else None)
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


@commands.command()
def plan(config: ConfigFile, overrides: Overrides = None, assume_nodes: AssumeNodes = None) -> None:
    """Show which actors of a run fit on which node of its cluster, or of this machine; nothing is started."""
    from loop.config.run_config import load_config
    from loop.setup.plan_table import print_plan
    from loop.setup.planning import Available, assumed_nodes, available_nodes, planned_now

    resolved = load_config(config, overrides or [])
    if assume_nodes:
        nodes = assumed_nodes(assume_nodes, use_gpus=resolved.cluster.use_gpus)
        available = Available(nodes, nodes, "assumed nodes")
    else:
        available = available_nodes(resolved.cluster)
    print_plan(Console(), resolved, planned_now(resolved, available), available)


@commands.command()
def resume(run_dir: RunDir) -> None:
    """Continue an interrupted run from its last finished shard."""
    console = Console()
    print_loading(f"resume {run_dir}")
    from loop.run import driver

    store = driver.resume(run_dir, console)
    _print_results(console, store.uri)


@commands.command()
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
        findings = training.look_at_images(parsed, training.check(parsed, ask_cluster=False))
        typer.echo(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), nl=False)
        for finding in findings:
            typer.echo(printable(finding.line), err=True)
        return
    assert out is not None, "both ways give one"
    training.print_summary(console, training.train(parsed, out, console), out)
    _print_where(console, parsed, "its curves and models in MLflow", printable(str(out)))


@commands.command()
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


@commands.command()
def watch(
    run_dir: RunDir, once: Annotated[bool, typer.Option("--once", help="show it once instead of until its driver ends")] = False
) -> None:
    """Show a run live that another process drives: rounds, stages, time left, the last decision."""
    from loop.monitors.watch import watch as show
    from loop.run.state import driver_lines, run_state
    from loop.store.run_store import Store

    store = Store.open(run_dir)
    with suppress(KeyboardInterrupt):  # the usual end
        show(store, lambda: run_state(store), lambda state: driver_lines(store, state), Console(), once=once)


@commands.command()
def ui(
    run_dir: RunDir,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port on this machine; default 5000, or another if it is taken")
    ] = None,
) -> None:
    """Open a run in MLflow: start its server on this machine, and print the address."""
    print_loading(f"MLflow for {run_dir}")
    from loop.monitors.ui import show

    show(run_dir, port, lambda line: print(printable(line), flush=True))


@commands.command()
def verify(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Check every committed file and print one digest over all committed data."""
    from loop.store.run_store import Store
    from loop.store.verifying import verify as verify_run

    report = verify_run(Store.open(run_dir))
    if as_json:
        fields = ("ok", "digest", "num_files", "num_bytes", "num_pruned_files", "problems")
        typer.echo(json.dumps({name: getattr(report, name) for name in fields}))
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def _print_report(report: VerifyReport) -> None:
    for problem in report.problems:
        typer.echo(f"damaged: {printable(problem)}", err=True)
    state = "all intact" if report.ok else f"{len(report.problems)} damaged"
    pruned = f", {report.num_pruned_files} files pruned" if report.num_pruned_files else ""
    typer.echo(f"{report.num_files} files, {report.num_bytes} bytes, {state}{pruned}")
    typer.echo(f"digest {report.digest}")


@commands.command()
def export(
    run_dir: RunDir,
    out: Annotated[str, typer.Option(help="folder to write, or NAME.parquet; it must not exist")],
    round: Annotated[str, typer.Option("--round", help="a round's number, or all")] = "all",
    format: Annotated[
        str, typer.Option("--format", help="llava, vigc, sharegpt, swift, webdataset, messages, trl-dpo or parquet")
    ] = "llava",
    shard_size: Annotated[int | None, typer.Option("--shard-size", min=1, help="records per file of Parquet or WebDataset")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes that read images; default one for each core, up to 8")] = None,
) -> None:
    """Write the accepted records of committed rounds for use elsewhere."""
    from loop.config.run_config import parse_config
    from loop.export import export as write
    from loop.interruption import interruptible
    from loop.setup.assembly import build_images, build_labelled, build_policies
    from loop.setup.routing import routing, run_images
    from loop.store.run_store import Store

    if round != "all" and not round.isdigit():
        raise UserError(f"--round is {round!r}; expected a number or all")
    if "://" in out:
        raise UserError(f"--out {out} is a URI, and an export is written to this machine; give a folder, and copy it there afterwards")
    store = Store.open(run_dir)
    config = parse_config(store.read_run().config)
    route = routing(config, build_policies(config).schedule)
    images = run_images(build_labelled(config.seed_data.data), map(build_images, config.image_sets))
    with interruptible(out, "nothing of it is left; export again"):
        report = write(store, "all" if round == "all" else int(round), format, Path(out), images, route, shard_size, workers)
    for problem in report.bad_images:
        typer.echo(f"left out: {printable(problem)}", err=True)
    typer.echo(f"{report.num_records} records in {report.path}, described in {report.card}")


@commands.command()
def report(
    run_dir: RunDir,
    out: Annotated[str, typer.Option(help="folder for the pages: a new one, or an earlier report, which is replaced")],
    round: Annotated[int | None, typer.Option("--round", min=0, help="a round's number; default all")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="most records of a round to show; default 500")] = None,
) -> None:
    """Write a gallery of a run's records with their images, and charts over its rounds: pages that open from disk in any browser."""
    from loop.config.run_config import parse_config
    from loop.gallery import NUM_SAMPLES, write_report
    from loop.interruption import interruptible
    from loop.run.state import run_state
    from loop.setup.routing import record_images
    from loop.store.run_store import Store

    if "://" in out:
        raise UserError(f"--out {out} is a URI, and a report is written to this machine; give a folder, and copy it there afterwards")
    store = Store.open(run_dir)
    images_of = record_images(parse_config(store.read_run().config))
    state = "" if store.readable_commits()[1] else run_state(store)
    with interruptible(out, "nothing of it is left; write the report again"):
        written = write_report(store, images_of, Path(out), None if round is None else [round], samples or NUM_SAMPLES, state=state)
    for number, (num_shown, num_records) in written.num_shown.items():
        typer.echo(f"round {number}: {num_shown:,} of {num_records:,} records")
    if bad := written.missing_pictures:
        which = "1 image has a placeholder: it" if len(bad) == 1 else f"{len(bad)} images have placeholders: they"
        typer.echo(f"{which} cannot be read, such as {printable(bad[0])}", err=True)
    for problem in written.problems:
        typer.echo(f"damaged: {printable(problem)}", err=True)
    typer.echo(f"report in {printable(str(written.index))}")
    if written.problems:
        raise typer.Exit(1)


def _outliving_job(folder: str | None, default: str, option: str) -> str:
    """The output folder of a command. A Ray job must name one outside its working folder, which is deleted with the cluster."""
    is_lost = folder is None or not ("://" in folder or Path(folder).expanduser().is_absolute())
    if is_lost and _RAY_JOB in os.environ:
        raise UserError(
            f"under `ray job submit` {option} {folder or default} is in Ray's temporary folder, which is deleted with the cluster; "
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
    console.print(f"its records with their images: {_this_command()} report {shown} --out report", highlight=False, soft_wrap=True)
    _print_where(console, config, "its charts, models and records in MLflow", shown)


def _print_where(console: Console, config: RunConfig | TrainConfig, what: str, shown: str) -> None:
    """How MLflow is opened on a run or training, if it is tracked."""
    from loop.monitors.mirroring import MLFLOW

    if MLFLOW in config.monitors and config.tracking.enabled:
        console.print(f"{what}: {_this_command()} ui {shown}", highlight=False, soft_wrap=True)


def _this_command() -> str:
    """How to call this program from a shell: by name, or by the path of the script beside Python."""
    if shutil.which("vigc"):
        return "vigc"
    script = Path(sys.executable).with_name("vigc")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m loop"
    return shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))
