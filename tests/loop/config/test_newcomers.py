"""What a person who is new here types wrongly: told what was probably meant."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len
from typer.testing import CliRunner

from loop import cli, doctor
from loop.cli import app
from loop.config.reference import _keys
from loop.config.run_config import EMBEDDED_MODEL, RunConfig, validated
from loop.config.train_config import TrainConfig, load_train_config
from loop.errors import UserError
from loop.models import checks as models
from loop.run import commands
from policies.benchmarks import BENCHMARKS
from policies.filtering.filters import FILTER_POLICIES
from policies.registry import UnknownPolicyError
from tests.paths import RECIPES


def run(*arguments: str) -> str:
    """What the command prints; its refusals are raised."""
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def findings(config: Any, document: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as refused:
        validated(config, document)
    return str(refused.value).split("\n")


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((RECIPES / name).read_text()), **changes}


@pytest.mark.parametrize(
    ("changes", "where", "meant"),
    [
        ({"rond": 2}, "rond", "rounds"),
        ({"num_steps": 2}, "num_steps", "training.num_steps"),
        ({"training": {"num_stpes": 2}}, "training.num_stpes", "training.num_steps"),
        ({"image_sets": [{"kind": "folder", "path": "x", "num_image": 3}]}, "image_sets.0.num_image", "image_sets.0.num_images"),
        ({"engine": {"kind": "vllm", "blocksize": 32}}, "engine.blocksize", "engine.block_size"),
        ({"trainer_ranks": 2}, "trainer_ranks", "cluster.trainer_ranks"),
        ({"held_out": {"near": {"data": {}, "num_question": 2}}}, "held_out.near.num_question", "held_out.near.num_questions"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(changes: dict[str, Any], where: str, meant: str) -> None:
    assert f"{where}: unknown key; did you mean {meant}?" in findings(RunConfig, recipe("shapes.yaml", **changes))


def test_a_key_of_a_stage_is_found_too() -> None:
    document = recipe("shapes-stages.yaml")
    document["stages"][1]["learning_rate"] = 1.0
    assert "stages.1.learning_rate: unknown key; did you mean stages.N.training.learning_rate?" in findings(TrainConfig, document)


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    assert "qqqq: unknown key; remove it or correct its spelling" in findings(RunConfig, recipe("shapes.yaml", qqqq=1))


def test_unknown_policies_benchmarks_and_question_types_name_the_ones_that_were_meant() -> None:
    with pytest.raises(UnknownPolicyError, match="did you mean 'agreement'"):
        FILTER_POLICIES.build("agreemnt")
    with pytest.raises(UnknownPolicyError, match="did you mean 'okvqa'"):
        BENCHMARKS.build("ok-vqa")
    with pytest.raises(UserError, match="did you mean 'detail'"):
        run("teach", "--out", "nowhere", "--types", "conversation,detial")
    document = recipe("shapes.yaml", generation={"type_mix": {"complexe": 1.0}})
    assert "did you mean 'complex'?" in findings(RunConfig, document)[0]


def test_a_config_of_another_kind_is_called_by_its_name() -> None:
    stages, loop = RECIPES / "shapes-stages.yaml", RECIPES / "shapes.yaml"
    with pytest.raises(UserError) as refused:
        run("run", str(stages))
    assert str(refused.value) == f"{stages} is a config of training in stages; start it with `vigc train {stages}`"
    with pytest.raises(UserError) as refused:
        load_train_config(loop)
    assert str(refused.value) == f"{loop} is the config of a run; start it with `vigc run {loop}` (a training has `stages`)"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train.json", "holds no run, but a training of `vigc train`; continue it with `vigc train --resume "),
        ("evaluation.json", "holds no run, but an evaluation; run the same `vigc evaluate` command again to continue it"),
        ("journal.sqlite", "holds no run, but the output of a teacher; run the same `vigc teach` command again to continue it"),
    ],
)
def test_a_folder_of_another_command_is_no_run(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_text("{}")
    for verb in ("resume", "status"):
        with pytest.raises(UserError) as refused:
            run(verb, str(tmp_path))
        assert str(refused.value).startswith(f"{tmp_path} {told}")


def test_a_run_is_no_training(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run, not a training; resume it with `vigc resume "):
        run("train", "--resume", str(tmp_path))


def test_a_folder_instead_of_a_config_is_called_one(tmp_path: Path) -> None:
    for verb in ("run", "train"):
        with pytest.raises(UserError, match=f"^cannot read the config {tmp_path}: it is a folder; give a YAML file"):
            run(verb, str(tmp_path))


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").startswith(f"vigc {version('vigc-loop')}, Python 3.")


def test_the_reference_in_a_pipe_has_a_line_for_each_key_and_shows_values_as_a_config_spells_them() -> None:
    lines = run("config").splitlines()
    keys = [line.split()[0] for line in lines if line.startswith(" ")]
    assert {name for name, _, _ in _keys(RunConfig, "")} <= set(keys)
    assert any("generation.type_mix" in line and "{conversation: 0.45, detail: 0.2, complex: 0.35}" in line for line in lines)
    assert not any("…" in line or "<Question" in line or line != line.rstrip() for line in lines)
    assert max(map(cell_len, lines)) < 2000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["statsu", "x"], "No such command 'statsu'. Did you mean 'status'?; see `vigc --help`"),
        (["resume"], "Missing argument 'RUN_DIR'; see `vigc resume --help`"),
        (["train", "--dry"], "No such option: --dry (Possible options: --dry-run); see `vigc train --help`"),
    ],
)
def test_a_wrong_verb_or_option_is_one_line(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.sys, "argv", ["vigc", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {told}\n"


# ---- torchvision


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processors of several families meet where torchvision is not installed."""

    def load(model: str) -> Any:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found in your environment.\nSee ...")

    monkeypatch.setattr(models, "load_processor", load)
    monkeypatch.setattr(models, "find_spec", lambda _: None)


@pytest.mark.usefixtures("no_torchvision")
def test_a_processor_that_needs_torchvision_says_how_to_get_it() -> None:
    with pytest.raises(UserError) as refused:
        models.load_checked_processor(str(EMBEDDED_MODEL))
    text = str(refused.value)
    assert text.startswith(f"the processor of model {str(EMBEDDED_MODEL)!r} needs torchvision, which is not installed: `make install` ")
    assert "\n" not in text


def test_the_doctor_says_whether_torchvision_is_there_and_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu"}

    def found(name: str) -> str:
        if name not in versions:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", found)
    absent = next(one for one in doctor.examine() if one.name == "torchvision")
    assert (absent.ok, absent.required) == (False, False)
    assert "Qwen2.5-VL" in absent.advice
    assert "torchvision==0.28.* with torch 2.13" in absent.advice
    versions["torchvision"] = "0.28.0"
    assert next(one for one in doctor.examine() if one.name == "torchvision").ok


def test_a_command_to_paste_is_found_by_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands.sys, "executable", str(scripts / "python"))
    assert commands._this_command() == f"{scripts / 'python'} -m loop"
    (scripts / "vigc").write_text("#!/bin/sh\n")
    (scripts / "vigc").chmod(0o755)
    assert commands._this_command() == ".venv/bin/vigc"
    monkeypatch.setenv("PATH", str(scripts))
    assert commands._this_command() == "vigc"
