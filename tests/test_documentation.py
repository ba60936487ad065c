"""What README and `docs/` show is real: the command line parses the commands, config models the configs, and links have targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from loop.cli import app
from loop.config.reference import policy_rows
from loop.config.run_config import RunConfig, load_config, parse_config
from loop.config.train_config import TrainConfig, load_train_config
from tests.loop.test_cli import document
from tests.paths import ROOT

MAX_README_LINES = 120
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "cluster/launch/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GROUP = typer.main.get_group(app)
TAKES_CONFIG = {"run": load_config, "plan": load_config, "train": load_train_config}
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def shown(path: Path) -> Iterator[str]:
    """The lines of the shell blocks of a document, continued lines joined."""
    text = path.read_text(encoding="utf-8")
    blocks = [code for language, code in FENCED.findall(text) if language in ("", "bash", "console")]
    blocks += re.findall(r"^    (?! ).*\n(?:    .*\n)*", FENCED.sub("", text), re.MULTILINE)
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `vigc` command that a document shows on a line of its own."""
    for line in shown(path):
        if "vigc " in line:
            words = [word.removeprefix(".venv/bin/") for word in shlex.split(line.replace("$(", "(").replace("'", ""), comments=True)]
            if "vigc" in words:
                yield words[words.index("vigc") + 1 :]


def spans(path: Path) -> Iterator[str]:
    """The code in the running text of a document."""
    text = re.sub(r"^    .*$|<!--.*?-->", "", FENCED.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


@each_document
def test_shown_commands_are_accepted_by_the_command_line(path: Path) -> None:
    for verb, *arguments in commands(path):
        parsed = GROUP.commands[verb].make_context(f"vigc {verb}", list(arguments)).params
        if verb in TAKES_CONFIG and str(parsed["config"]).startswith("loop/"):
            TAKES_CONFIG[verb](ROOT / parsed["config"], parsed["overrides"] or [])


def test_the_documents_show_commands() -> None:
    assert {verb for path in DOCUMENTS for verb, *_ in commands(path)} >= {"run", "resume", "train", "export", "evaluate", "teach"}


@each_document
def test_commands_in_the_text_have_the_verbs_and_options_that_it_names(path: Path) -> None:
    for span in spans(path):
        program, _, rest = span.partition(" ")
        verb, *words = rest.split() or [""]
        if program != "vigc" or not verb or verb.isupper() or verb.startswith("--"):
            continue
        options = {option for param in GROUP.commands[verb].params for option in param.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, span


@each_document
def test_shown_configs_are_valid(path: Path) -> None:
    for language, code in FENCED.findall(path.read_text(encoding="utf-8")):
        if language == "yaml":
            shown = yaml.safe_load(code)
            if "stages" in shown:
                TrainConfig.model_validate({"name": "shown", **shown})
            else:
                parse_config({**document("embedded"), **shown})


def known_keys() -> set[str]:
    """Every word that a config may have before a colon: keys of all its sections, policies and their options."""
    schemas = [model.model_json_schema() for model in (RunConfig, TrainConfig)]
    sections = [section for schema in schemas for section in (schema, *schema["$defs"].values())]
    keys = {key for section in sections for key in section.get("properties", ())}
    return keys | {word for _, signature, _ in policy_rows() for word in re.findall(r"\w+(?=[(=])", signature)}


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            if key != "type_mix":  # its keys are question types
                yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


@each_document
def test_config_keys_in_the_text_exist(path: Path) -> None:
    known = known_keys()
    for span in spans(path):
        if re.match(r"[a-z_0-9]+: ", span):
            assert set(keys_of(yaml.safe_load(span))) <= known, span
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(?<!\.json)", span) and span.partition(".")[0] in RunConfig.model_fields:
            assert set(span.split(".")) <= known, span


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as hosts of Markdown and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_have_targets(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#?([^)\s:]*)\)", FENCED.sub("", path.read_text(encoding="utf-8"))):
        file = path.parent / target if target else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES
