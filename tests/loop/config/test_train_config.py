"""What is wrong with a config of `vigc train` is said before a rank starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from loop.cli import app
from loop.config.run_config import parse_config, validated
from loop.config.train_config import TrainConfig, differences
from loop.errors import UserError
from loop.run.train import check, stored_config, train
from tests.paths import RECIPES

RECIPE = RECIPES / "shapes-stages.yaml"
SHAPES = {"kind": "shapes", "seed": 1, "min_shift": 0.0, "max_shift": 0.1, "num_images": 24}
ALIGN = {"num_steps": 2, "batch_size": 8, "frozen": ["vision_tower", "language_model"]}
INSTRUCT = {"num_steps": 2, "batch_size": 8, "frozen": ["vision_tower"]}


def document(**changes: Any) -> dict[str, Any]:
    stages = [
        {"name": "align", "data": SHAPES, "form": "captions", "training": ALIGN},
        {"name": "instruct", "data": SHAPES, "training": INSTRUCT},
    ]
    return {"stages": stages, **changes}


def one_stage(training: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return document(stages=[{"name": "only", "data": SHAPES, "training": {**INSTRUCT, **(training or {})}, **changes}])


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        check(validated(TrainConfig, content))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_recipe_has_llavas_two_stages() -> None:
    align, instruct = check(validated(TrainConfig, yaml.safe_load(RECIPE.read_text())))
    assert (align.config.training.frozen, instruct.config.training.frozen) == (("vision_tower", "language_model"), ("vision_tower",))
    assert align.config.training.learning_rate == 2e-3
    job = instruct.job(Path("out"), Path("out/checkpoints/1-align"), seed=17)
    assert job.hyper.num_steps == 3 * 4000 // 32
    assert len(job.samples) == 4000
    assert any(len(sample.turns) > 1 for sample in job.samples)


def test_forms_make_the_samples_that_they_name() -> None:
    def samples(form: str, num_samples: int | None = None) -> list[Any]:
        (stage,) = check(validated(TrainConfig, one_stage(form=form, num_samples=num_samples)))
        return stage.samples

    assert len(samples("conversations")) == len(samples("captions")) == 24
    assert len(samples("vigc", 30)) == 30
    assert max(len(sample.turns) for sample in samples("conversations")) > 1
    captions, bare = samples("captions"), samples("bare_captions")
    assert [sample.turns[0][0] for sample in bare] == [""] * 24
    assert [sample.turns[0][1] for sample in bare] == [sample.turns[0][1] for sample in captions]
    assert {len(sample.turns) for sample in captions} == {1}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"num_epochs": 1.0}, "num_steps 2 and num_epochs 1.0 exclude each other; set one of them to null"),
        ({"num_steps": None}, "num_steps and num_epochs are both null; give one of them"),
        ({"batch_size": 9, "gradient_accumulation": 2}, "batch_size 9 is not a multiple of gradient_accumulation 2"),
        ({"offload": ["optimizer"]}, "offload ['optimizer'] needs zero_stage 2 or 3"),
        ({"offload": ["optimizer"], "zero_stage": 2}, "with cluster.use_gpus false everything is there already"),
        ({"max_micro_batch_tokens": 64}, "max_micro_batch_tokens 64 has no room for a conversation of max_tokens 512"),
        ({"frozen": ["qformer"]}, "stages.0.training does not fit model"),
        ({"frozen": ["qformer"]}, "the model has no parameters of ['qformer']: it has ['language_model', 'projector', 'vision_tower']"),
        ({"frozen": ["vision_tower", "projector", "language_model"]}, "the model has nothing to train"),
        ({"frozen": ["language_model"], "lora": {"targets": ["q_proj", "gate"]}}, "lora targets ['gate'] are not linear layers"),
        ({"lora": {"rank": 4}}, "name language_model in `frozen`"),
        ({"objective": "dpo"}, "stages.0: objective dpo learns from what correction changes in a round of `vigc run`; set objective sft"),
    ],
    ids=str,
)
def test_a_training_without_a_meaning_is_refused(training: dict[str, Any], said: str) -> None:
    assert said in refused(one_stage(training))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (document(stages=[]), "stages: "),
        (document(stages=[document()["stages"][0]] * 2), "several stages are called ['align']; give each a unique name"),
        (document(cluster={"trainer_ranks": 3}), "stages.0.training.batch_size / gradient_accumulation = 8 cannot be shared by 3"),
        (document(cluster={"address": "auto", "num_cpus": 2}), "num_cpus can only be set for a local Ray"),
        (one_stage(form="vigc"), "draws any number of samples; set num_samples"),
        (one_stage(form="poems"), "form: "),
        (one_stage(name="a/b"), "name: "),
        (document(model="/no/such/folder"), "model folder /no/such/folder does not exist"),
        (document(cluster={"trainer_ranks": 8, "num_cpus": 2}), "there are 2 CPU(s) and 0 GPU(s). It fits with trainer_ranks 2;"),
        (document(cluster={"use_gpus": True, "trainer_ranks": 8}), "8 GPU(s)"),
    ],
    ids=[str(number) for number in range(10)],
)
def test_a_config_that_cannot_work_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises((UserError, ValueError)) as error:
        check(validated(TrainConfig, content))
    assert said in str(error.value)


def test_captions_of_a_file_of_conversations_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    turns = [
        {"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, ("<image> What?", "It.", "Where?", "Here."), strict=True)
    ]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}]))
    data = {"kind": "llava_json", "path": str(tmp_path / "data.json"), "images": str(tmp_path)}
    assert refused(one_stage(data=data, form="captions")).startswith("record 1#0 of ")
    (stage,) = check(validated(TrainConfig, one_stage(data=data)))
    assert [sample.turns for sample in stage.samples] == [(("What?", "It."), ("Where?", "Here."))]


def test_epochs_become_steps() -> None:
    (stage,) = check(validated(TrainConfig, one_stage({"num_steps": None, "num_epochs": 1.5})))
    assert stage.job(Path("out"), Path("base"), 1).hyper.num_steps == 5  # 36 samples in batches of 8, the last begins the next pass
    assert validated(TrainConfig, one_stage()).stages[0].training.steps_for(1000) == 2


def test_epochs_alone_take_the_place_of_the_default_steps() -> None:
    training = {"num_epochs": 2, "batch_size": 8}
    config = validated(TrainConfig, document(stages=[{"name": "only", "data": SHAPES, "training": training}]))
    assert config.stages[0].training.num_steps is None
    assert validated(TrainConfig, config.model_dump(mode="json")) == config


def test_a_run_refuses_what_its_trainer_would_not_do() -> None:
    held_out = {"near": {"data": SHAPES, "num_questions": 5}}
    content = {
        "seed_data": {"data": SHAPES}, "image_sets": [SHAPES], "held_out": held_out, "acceptance_sets": held_out, "filters": [],
        "training": {"zero_stage": 2, "offload": ["optimizer"]},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"training\.offload .* drop it, or set cluster\.use_gpus true"):
        parse_config(content)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    from rich.console import Console

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', not a training"):
        train(validated(TrainConfig, document()), tmp_path, Console())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="holds no training"):
        stored_config(tmp_path)


def test_a_dry_run_prints_the_resolved_config_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document()))
    done = CliRunner().invoke(app, ["train", "config.yaml", "stages.1.training.learning_rate=1e-5", "--dry-run"])
    assert done.exit_code == 0, done.output
    config = validated(TrainConfig, yaml.safe_load(done.stdout))
    assert config.stages[1].training.learning_rate == 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_dry_run_names_images_that_are_missing(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ring."}]
    records = [{"id": str(index), "image": f"{index}.png", "conversations": turns} for index in range(5)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    data = {"kind": "llava_json", "path": str(tmp_path / "data.json"), "images": str(tmp_path)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(one_stage(data=data)))
    done = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "unreadable_images (4): of the 5 images looked at cannot be read" in done.stderr
    assert "does not exist" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["config.yaml", "--resume", "x"], ["--resume", "x", "--out", "y"]])
def test_a_config_and_a_folder_to_go_on_in_exclude_each_other(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(done.exception, UserError)
    assert "takes a CONFIG" in str(done.exception)


def test_differences_are_named_by_their_keys() -> None:
    first, second = (
        validated(TrainConfig, document()).model_dump(mode="json"),
        validated(TrainConfig, document(seed=3)).model_dump(mode="json"),
    )
    second["stages"][1]["training"]["learning_rate"] = 1.0
    assert differences(first, second) == ["seed", "stages.1.training.learning_rate"]
    assert differences(first, first) == []
