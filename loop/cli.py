"""The command `vigc`: verbs, one YAML file, dotted overrides."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text
from typer.core import TyperGroup

from loop.credentials import masked
from loop.errors import LoopError, UserError, printable
from loop.monitors.terminal import encode_any_text, unusable_locale
from loop.review.commands import commands as review_commands
from loop.run.commands import commands as run_commands
from loop.scoring.commands import AsJson
from loop.scoring.commands import commands as scoring_commands
from loop.teaching.commands import commands as teaching_commands
from policies.errors import PolicyError

if TYPE_CHECKING:
    from loop.doctor import Finding


class PathGroup(TyperGroup):
    """Expands `~/x` in every argument: shells do not expand it after `--out=` or in quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_with_home(one) for one in args])


def _with_home(argument: str) -> str:
    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{mark}{os.path.expanduser(value)}"


app = typer.Typer(
    cls=PathGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Closed-loop self-enhancement of vision-language models.",
)
commands = typer.Typer()
"""The commands about models, configs and this machine."""


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


@commands.command()
def fetch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face id, or a folder")],
    out: Annotated[Path, typer.Option(help="folder for the model; it must not exist")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: that of engine.dtype in the config")] = "bfloat16",
    chat_template: Annotated[
        str | None, typer.Option(help="for a model without a template: instructblip, llava, minigpt4, or a Jinja file")
    ] = None,
) -> None:
    """Fetch a published model and write it as a run needs it: safetensors of one dtype, with a chat template."""
    from loop.models.fetch import fetch as write

    _check_dtype(dtype)
    num_parameters = write(model, out, dtype, chat_template)
    typer.echo(f"{num_parameters} parameters in {dtype} in {out}")


@commands.command()
def assemble(
    vision: Annotated[str, typer.Option(help="BLIP-2 or InstructBLIP, a Hugging Face id or a folder: its vision tower and Q-Former")],
    language_model: Annotated[str, typer.Option(help="decoder-only text model such as Vicuna, a Hugging Face id or a folder")],
    out: Annotated[Path, typer.Option(help="folder for the model; it must not exist")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: that of engine.dtype in the config")] = "bfloat16",
    chat_template: Annotated[str, typer.Option(help="minigpt4, instructblip, or a Jinja file")] = "minigpt4",
    seed: Annotated[int, typer.Option(help="random seed of the linear layer")] = 0,
) -> None:
    """Build a MiniGPT-4 from a vision tower with Q-Former, a new linear layer and a language model; the layer has to be trained."""
    from loop.models.assemble import assemble as write

    _check_dtype(dtype)
    num_parameters = write(vision, language_model, out, dtype, chat_template, seed)
    typer.echo(f"{num_parameters} parameters in {dtype} in {out}; train the linear layer next: loop/recipes/minigpt4-stages.yaml")


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype is {dtype!r}; expected float32 or bfloat16")


@commands.command()
def seed(
    out: Annotated[Path, typer.Option(help="folder for the checkpoint; it must not exist")] = Path("seed-checkpoint"),
    world: Annotated[Literal["shapes", "drawings"], typer.Option(help="the embedded world that the model is for")] = "shapes",
    seed: Annotated[int, typer.Option(help="random seed of the whole curriculum")] = 0,
    num_ranks: Annotated[int, typer.Option(help="trainer ranks; two use two cores")] = 2,
) -> None:
    """Train the seed model of an embedded world from nothing and print its scores."""
    from loop.models.seed.curriculum import CURRICULA, make_seed_model

    make_seed_model(CURRICULA[world], out, seed, num_ranks, Console())


@commands.command()
def config() -> None:
    """Every key of a config with its default and meaning, and every policy with its options."""
    from loop.config.reference import print_reference

    print_reference()


@commands.command()
def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="a folder, or a Hugging Face id in the cache")] = None,
    tried: Annotated[bool, typer.Option("--try", help="load MODEL on the CPU, and compare with its own generate")] = False,
    as_json: AsJson = False,
) -> None:
    """What this machine has for running the loop, and what is missing; with MODEL, how this model would run here."""
    from loop.doctor import examine, print_findings

    if model is None and tried:
        raise UserError("--try needs a model: vigc doctor MODEL --try")
    findings = examine() if model is None else _examined(model, tried=tried)
    if as_json:
        typer.echo(json.dumps(list(map(asdict, findings))))
    else:
        print_findings(Console(), findings)
    if any(not finding.ok and finding.required for finding in findings):
        raise typer.Exit(1)


def _examined(model: str, *, tried: bool) -> list[Finding]:
    from loop.config.run_config import model_path
    from loop.models.examine import examine_model

    return examine_model(model_path(model), tried=tried)


for group in (run_commands, review_commands, commands, teaching_commands, scoring_commands):
    app.add_typer(group)


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


if __name__ == "__main__":
    main()
