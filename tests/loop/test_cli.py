"""The real command: bad input is one clear line and exit code 2, before any actor starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from loop.cli import app
from loop.config.run_config import EMBEDDED_MODEL, parse_config
from loop.errors import UserError
from loop.run import driver
from tests.paths import ROOT

TIMEOUT_S = 280  # a start takes seconds; on a machine with other work, a minute


def shapes(seed: int) -> dict[str, Any]:
    return {"kind": "shapes", "seed": seed, "min_shift": 0.0, "max_shift": 0.1, "num_images": 10}


def document(model: Path | str, **changes: Any) -> dict[str, Any]:
    """A config without fault on a machine with one core."""
    held_out = {"near": {"data": shapes(2), "num_questions": 5}}
    least = {
        "name": "small",
        "model": str(model),
        "seed_data": {"data": shapes(1), "num_samples": 10},
        "image_sets": [shapes(3)],
        "held_out": held_out,
        "acceptance_sets": held_out,
        "filters": ["parsable"],
        "cluster": {"num_engines": 1, "trainer_ranks": 1},
    }
    return {**least, **changes}


def config_file(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def vigc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, away from the repository; anything of Ray would show in its `ray` folder."""
    (folder / "ray").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(folder / "ray"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "loop", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def refusal(folder: Path, *arguments: str) -> str:
    """What the command says of bad input: exit code 2, one line, nothing started, nothing written."""
    before = sorted(path.name for path in folder.iterdir())
    done = vigc(folder, *arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == done.stderr.splitlines()[-1:]
    assert len(errors) == 1
    assert sorted((folder / "ray").iterdir()) == []
    assert sorted({*before, "ray"}) == sorted(path.name for path in folder.iterdir())
    return errors[0].removeprefix("error: ")


# ---- through the command


def test_an_unknown_key_is_refused(tmp_path: Path, model: Path) -> None:
    path = config_file(tmp_path, document(model, training={"num_stepz": 3}))
    assert refusal(tmp_path, "run", path) == "training.num_stepz: unknown key; did you mean training.num_steps?"


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "run", "nowhere.yaml").startswith("cannot read the config nowhere.yaml: ")


def test_a_policy_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path, model: Path) -> None:
    text = refusal(tmp_path, "run", config_file(tmp_path, document(model)), "filters=[parsable, brilliance]")
    assert text.startswith("unknown filter policy 'brilliance'; expected one of ['agreement', 'basis', ")


def test_a_replay_share_above_one_is_refused(tmp_path: Path, model: Path) -> None:
    text = refusal(tmp_path, "run", config_file(tmp_path, document(model)), "mixing.replay.seed_share=1.2")
    assert text.endswith("seed_share is 1.2; expected a share from 0 to 1")


def test_more_ranks_than_cpus_are_refused(tmp_path: Path, model: Path) -> None:
    text = refusal(tmp_path, "run", config_file(tmp_path, document(model)), "cluster.trainer_ranks=4096", "training.batch_size=4096")
    assert "4096 trainer rank(s)" in text
    assert "It fits with trainer_ranks " in text


def test_a_missing_image_folder_is_refused(tmp_path: Path, model: Path) -> None:
    path = config_file(tmp_path, document(model, image_sets=[{"kind": "folder", "path": str(tmp_path / "no" / "photos")}]))
    assert refusal(tmp_path, "run", path) == f"image folder {tmp_path}/no/photos does not exist; expected a folder of images"


def test_a_checkpoint_that_is_no_image_text_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    text = refusal(tmp_path, "run", config_file(tmp_path, document(tmp_path / "llama")))
    assert text.endswith("llama' is a llama model; expected an image-text-to-text model such as LLaVA")


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    text = refusal(tmp_path, "run", config_file(tmp_path, document(model)), "--run-dir", str(tmp_path / "file" / "run"))
    assert text.startswith(f"cannot create a run in {tmp_path / 'file' / 'run'}: ")
    assert text.endswith("choose a folder that you can write to")


def test_a_dry_run_prints_the_resolved_config_and_starts_nothing(tmp_path: Path, model: Path) -> None:
    done = vigc(tmp_path, "run", config_file(tmp_path, document(model)), "rounds=7", "--dry-run")
    assert done.returncode == 0, done.stderr
    config = parse_config(yaml.safe_load(done.stdout))
    assert (config.rounds, config.name, config.model) == (7, "small", str(model))
    assert "min_learning_rate_ratio: 0.05" in done.stdout  # defaults included
    assert "Loading" not in done.stderr, "a library's progress bar"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "ray"]
    assert list((tmp_path / "ray").iterdir()) == []


@pytest.mark.parametrize("verb", ["status", "verify", "resume", "export"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty [1]").mkdir()
    arguments = ["--out", str(tmp_path / "out")] if verb == "export" else []
    assert refusal(tmp_path, verb, "empty [1]", *arguments).startswith("empty [1] holds no run (no run.json); start one with")
    assert list((tmp_path / "empty [1]").iterdir()) == []


def test_an_export_to_a_uri_is_refused_and_makes_no_folder_of_that_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path), "--out", "s3://bucket/data"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == (
        "--out s3://bucket/data is a URI, and an export is written to this machine; give a folder, and copy it there afterwards"
    )


def test_the_doctor_says_what_there_is_as_json(tmp_path: Path) -> None:
    done = vigc(tmp_path, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert {"Python", "torch", "ray", "deepspeed", "CPU cores", "memory", "free disk", "GPU", "vLLM"} <= set(findings)
    assert findings["Python"]["ok"]
    assert findings["torch"]["found"] == torch.__version__
    assert findings["embedded seed model"]["ok"] == (EMBEDDED_MODEL / "model.safetensors").exists()
    assert all(finding["advice"] for finding in findings.values() if not finding["ok"])
    assert done.returncode == int(any(not finding["ok"] and finding["required"] for finding in findings.values()))
    assert list((tmp_path / "ray").iterdir()) == []


# ---- the same check, without the seconds that a process takes


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        driver.check(parse_config(content))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(model, tmp_path / "damaged"))


def test_a_config_without_fault_passes(model: Path) -> None:
    driver.check(parse_config(document(model)))


def test_a_relative_model_folder_passes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    driver.check(parse_config(document("untrained")))


@pytest.mark.parametrize("make", ["file", "empty", "no images"])
def test_an_image_folder_that_gives_nothing_is_refused(model: Path, tmp_path: Path, make: str) -> None:
    folder = tmp_path / "photos"
    if make == "file":
        folder.write_text("no folder")
    else:
        folder.mkdir()
    if make == "no images":
        (folder / "notes.txt").write_text("no image")
    text = refused(document(model, image_sets=[{"kind": "folder", "path": str(folder)}]))
    assert text.startswith(f"image folder {folder} {'is a file' if make == 'file' else 'holds no image'}; expected ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_image_folder_that_may_not_be_read_is_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir(mode=0)
    assert "cannot be read: Permission denied" in refused(document(model, image_sets=[{"kind": "folder", "path": str(folder)}]))


def test_labelled_data_that_cannot_be_read_are_refused(model: Path, tmp_path: Path) -> None:
    data = {"kind": "llava_json", "path": str(tmp_path / "data.json"), "images": str(tmp_path)}
    assert refused(document(model, seed_data={"data": data})).startswith(f"LLaVA file {tmp_path / 'data.json'} cannot be read: ")


@pytest.mark.parametrize("sets", ["held_out", "acceptance_sets"])
def test_a_held_out_image_that_cannot_be_read_is_refused(model: Path, tmp_path: Path, sets: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "It."}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": name, "conversations": turns} for name in ("good.png", "bad.png")]))
    data = {"kind": "llava_json", "path": str(tmp_path / "data.json"), "images": str(tmp_path)}
    text = refused(document(model, **{sets: {"mine": {"data": data}}}))
    assert text.startswith("an image of the held-out set mine cannot be read: bad.png: ")


def test_a_model_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert refused(document(tmp_path / "gone")) == f"model folder {tmp_path / 'gone'} does not exist; check the path"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert refused(document(tmp_path)).startswith(f"model '{tmp_path}' cannot be read: ")


def test_a_config_that_is_no_json_is_refused(damaged: Path) -> None:
    (damaged / "config.json").write_text("{")
    assert refused(document(damaged)).startswith(f"model '{damaged}' cannot be read: ")


@pytest.mark.parametrize(
    "change", [{"model_type": "mystery"}, {"text_config": {"model_type": "llama", "hidden_size": 7}}, {"text_config": 3}]
)
def test_a_config_that_makes_no_sense_is_refused(damaged: Path, change: dict[str, Any]) -> None:
    config = damaged / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    assert refused(document(damaged)).startswith(f"model '{damaged}' cannot be read: ")


def test_a_model_without_its_processor_is_refused(damaged: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (damaged / name).unlink(missing_ok=True)
    assert "processor" in refused(document(damaged))


def test_a_model_with_a_damaged_tokenizer_is_refused(damaged: Path) -> None:
    (damaged / "tokenizer.json").write_text("{}")
    assert refused(document(damaged)).startswith(f"the processor of model '{damaged}' cannot be read: ")


def test_a_model_without_a_chat_template_is_refused(damaged: Path) -> None:
    (damaged / "chat_template.jinja").unlink()
    assert refused(document(damaged)).startswith(f"the processor of model '{damaged}' has no chat template")


def test_a_model_without_safetensors_is_refused(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    assert refused(document(damaged)).startswith(f"the weights of model '{damaged}' cannot be read as safetensors: ")


def test_weights_that_are_cut_off_are_refused(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refused(document(damaged)).startswith(f"the weights of model '{damaged}' cannot be read as safetensors: ")


def test_a_missing_shard_of_the_weights_is_refused(damaged: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refused(document(damaged))


def test_weights_that_the_engine_would_not_serve_are_refused(model: Path) -> None:
    changes = {"engine": {"dtype": "bfloat16"}, "training": {"precision": "bf16", "zero_stage": 1}}
    assert refused(document(model, **changes)).endswith("are float32, but engine.dtype is bfloat16; make the two the same")


def test_more_engines_than_cpus_are_refused(model: Path) -> None:
    cluster = {"num_engines": 3, "trainer_ranks": 1, "num_cpus": 2}
    assert "It fits with num_engines 2" in refused(document(model, cluster=cluster))
    apart = {"num_engines": 1, "trainer_ranks": 1, "num_cpus": 2, "colocated": False}
    assert "It fits with colocated true" in refused(document(model, cluster=apart))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_gpus_that_are_not_there_are_refused(model: Path) -> None:
    cluster = {"num_engines": 1, "trainer_ranks": 1, "use_gpus": True}
    assert "It fits with use_gpus false and engine.device cpu" in refused(document(model, cluster=cluster, engine={"device": "cuda"}))
