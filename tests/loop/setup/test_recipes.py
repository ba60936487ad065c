"""The shipped recipes: each resolves, says what is missing here, and trains its model's family with its own values."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from actors.engines.transformers import TransformersEngine
from actors.engines.vllm.options import VllmOptions
from actors.engines.weights import read_checkpoint
from actors.training.checkpoint import group_of
from actors.training.core import run_local
from actors.training.job import Lora, TrainingJob
from loop.config.run_config import EMBEDDED_MODELS, load_config, parse_config
from loop.errors import UserError
from loop.setup.planning import assumed_nodes
from loop.setup.rehearsal import rehearse
from tests.actors.engines.family_models import save_blip2, save_instructblip, save_qwen
from tests.actors.training.helpers import Shapes, samples_of, save_base
from tests.loop.test_cli import config_file, document, shapes, vigc
from tests.paths import RECIPES
from tests.world.untrained import save_untrained

FOLDER = RECIPES
RECIPES = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.endswith("-stages")]  # those are for `vigc train`
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": save_base,
    "qwen": save_qwen,
    "instructblip": save_instructblip,
    "minigpt4": save_blip2,
}
"""A small model of each published one, by a part of its name, of the same classes."""


def recipe_id(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_a_recipe_lacks_nothing_but_what_is_to_be_provided(path: Path) -> None:
    config = load_config(path)
    rehearsal = rehearse(config)
    where = {line.partition(":")[0].partition(".")[0] for line in rehearsal.missing}
    assert where <= {"image_sets", "seed_data", "held_out", "acceptance_sets", "model", "cluster", "engine"}
    assert all(line.endswith("is not on this machine") for line in rehearsal.missing if "data" in line.partition(":")[0])
    shipped = config.model in EMBEDDED_MODELS
    assert ("model" in where) == (not shipped)
    assert rehearsal.findings == ()


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in ("shapes", "drawings")], ids=recipe_id)
def test_a_recipe_fits_the_machine_that_its_head_names_and_no_smaller_one(path: Path) -> None:
    found = re.search(r"--assume-nodes (\S+)", path.read_text())
    assert found is not None
    (node,) = assumed_nodes([found[1]], use_gpus=True)
    config = load_config(path)
    rehearsal = rehearse(config, [node])
    assert rehearsal.plan[-2] == f"{node.cpus:g} CPU(s) and {node.gpus:g} GPU(s) in all"
    assert rehearsal.plan[-1].endswith("0 CPU(s) and 0 GPU(s) free")
    assert not any(line.startswith("cluster") for line in rehearsal.missing)
    for smaller in (replace(node, cpus=node.cpus - 1), replace(node, gpus=node.gpus - 1), replace(node, cpus=math.inf, gpus=node.gpus - 1)):
        with pytest.raises(UserError, match=r"there are .*GPU\(s\)"):
            rehearse(config, [smaller])


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_the_engine_of_a_recipe_can_be_made(path: Path) -> None:
    config = load_config(path)
    if config.engine.kind == "transformers":
        inspect.signature(TransformersEngine).bind("model", **config.engine_options)
        return
    made = VllmOptions(**config.engine_options).for_vllm()
    assert (made["enable_sleep_mode"], made["gpu_memory_utilization"]) == (config.cluster.sleep_while_training, 0.85)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in ("shapes", "drawings")], ids=recipe_id)
def test_every_value_of_a_recipe_says_where_it_comes_from(path: Path) -> None:
    lines = path.read_text().splitlines()
    start = lines.index("training:") if "training:" in lines else next(i for i, line in enumerate(lines) if line.startswith("training:"))
    section = [line for line in lines[start + 1 :] if line.startswith("  ")]
    obvious = ("num_threads", "stall_timeout_s", "timeout_s", "precision")
    assert [line for line in section if "#" not in line and not line.strip().startswith(obvious)] == []


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_the_training_of_a_recipe_can_be_applied_to_its_family(path: Path, with_lora: bool, tmp_path: Path) -> None:
    """One step with the recipe's frozen groups, rates, decay, precision and ZeRO stage, also with VIGC's adapters where they may be."""
    config = load_config(path)
    family = next((name for name in FAMILIES if name in config.model), "llava")
    if family == "qwen" and find_spec("torchvision") is None:
        pytest.skip("Qwen2.5-VL's processor needs torchvision: make install")
    hyper = config.training.hyperparameters(num_samples=100)
    if with_lora and ("language_model" not in hyper.frozen or hyper.lora is not None):
        pytest.skip("its language model is trained whole, or has adapters already")
    hyper = replace(hyper, num_steps=1, batch_size=2, gradient_accumulation=1, lora=Lora() if with_lora else hyper.lora)
    base = FAMILIES[family](tmp_path / "base")

    result = run_local(TrainingJob(base, tmp_path / "out", samples_of(4), seed=3, hyper=hyper), Shapes())

    assert (result.num_steps, result.num_skipped_samples) == (1, 0)
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "out")
    changed = {group_of(name) for name in before if not torch.equal(before[name].to(after[name].dtype), after[name])}
    trained = {group_of(name) for name in before} - set(hyper.frozen) | ({"language_model"} if hyper.lora else set())
    # Adapters begin at a product of zero: their first step is too small to show in bfloat16.
    assert trained - ({"language_model"} if hyper.lora else set()) <= changed <= trained


# ---- the command


def test_a_dry_run_lists_what_is_missing_and_a_run_is_refused_for_its_resources_first(tmp_path: Path) -> None:
    recipe = str(FOLDER / "vigc-llava-7b.yaml")
    done = vigc(tmp_path, "run", recipe, "--dry-run", "--assume-nodes", "1x64c8g")
    assert done.returncode == 0, done.stderr
    assert parse_config(yaml.safe_load(done.stdout)).name == "vigc-llava-7b"
    lines = done.stderr.splitlines()
    assert "plan: 8 bundle(s) of 8 CPU(s) and 1 GPU(s), each on one node" in lines
    assert f"missing: seed_data: {tmp_path}/data/llava/llava_instruct_150k.json is not on this machine" in lines
    assert any(line.startswith("missing: model: models/llava-1.5-7b-hf is neither a folder here") for line in lines)
    assert all(line.startswith(("plan: ", "missing: ")) for line in lines)

    started = vigc(tmp_path, "run", recipe)

    assert started.returncode == 2
    assert (
        "error: 8 engine(s), 8 trainer rank(s) and 8 filter(s), colocated, 8 CPU(s) per actor, need 64 CPU(s) and 8 GPU(s)"
        in started.stderr
    )


def test_a_mistake_beside_what_is_missing_is_still_an_error(tmp_path: Path) -> None:
    recipe = str(FOLDER / "one-gpu.yaml")
    for override, line in (
        ("training.learning_rat=1", "error: training.learning_rat: unknown key"),
        ("filters=[brilliance]", "error: unknown filter policy 'brilliance'"),
        ("cluster.colocated=false", "error: cluster: sleep_while_training has no effect when the trainer has its own devices"),
    ):
        done = vigc(tmp_path, "run", recipe, override, "--dry-run")
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr


def test_what_is_here_is_looked_into(tmp_path: Path) -> None:
    """A folder that is there and holds no image, data that are not JSON, and a model that is damaged, are mistakes."""
    save_untrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    (tmp_path / "data.json").write_text("{")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    data: dict[str, Any] = {"data": {"kind": "llava_json", "path": str(tmp_path / "data.json"), "images": str(tmp_path)}}
    for changes, text in (
        ({"image_sets": [{"kind": "folder", "path": str(tmp_path / "photos")}]}, "holds no image"),
        ({"seed_data": data}, "LLaVA file"),
        ({"held_out": {"mine": data}}, "LLaVA file"),
        ({"model": str(tmp_path / "damaged")}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=text):
            rehearse(parse_config({**document(tmp_path / "model"), **changes}))
    assert not rehearse(parse_config(document(tmp_path / "model"))).missing


def test_a_model_that_is_half_in_the_cache_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub" / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = parse_config(document("org/name", image_sets=[shapes(3)]))
    assert rehearse(config).missing == ("model: org/name is neither a folder here nor whole in Hugging Face's cache",)
    save_untrained(snapshot)
    weights = snapshot / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    assert len(rehearse(config).missing) == 1
    (tmp_path / "elsewhere").rename(weights)
    assert rehearse(config).missing == ()


def test_what_is_assumed_goes_with_a_dry_run_alone(tmp_path: Path) -> None:
    done = vigc(tmp_path, "run", config_file(tmp_path, document("embedded")), "--assume-nodes", "1x8")
    assert done.returncode == 2
    assert "--assume-nodes needs --dry-run" in done.stderr
