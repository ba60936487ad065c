"""`vigc doctor MODEL` says how a model would run here, before its weights are loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from actors.engines import families
from actors.engines.weights import read_checkpoint
from loop.cli import app
from loop.config.run_config import EMBEDDED_MODEL
from loop.doctor import Finding
from loop.errors import UserError
from loop.models.examine import examine_model
from tests.actors.engines.family_models import save_instructblip, save_paligemma, save_qwen2
from tests.actors.engines.tiled_models import save_mllama, save_smolvlm
from tests.hostile.test_models import change
from tests.loop.test_assemble import save_language_model


def examined(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_model(str(folder))}


def missing(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.required and not finding.ok}


def test_the_embedded_model_has_everything() -> None:
    done = CliRunner().invoke(app, ["doctor", "embedded", "--json"])
    assert done.exit_code == 0, done.output
    found = {one["name"]: one["found"] for one in json.loads(done.stdout)}
    assert found["model"] == "LlavaForConditionalGeneration (llava), 2.16M parameters"
    assert found["end tokens"] == "</s> (3)"
    assert found["image token"] == "<image> (4)"
    assert found["parameter groups"] == "vision_tower 695k, projector 46.4k, language_model 1.42M"
    assert found["own generate"] == "the transformers engine computes the same"
    num_bytes = (EMBEDDED_MODEL / "model.safetensors").stat().st_size
    num_parameters = sum(tensor.numel() for tensor in read_checkpoint(EMBEDDED_MODEL).values())
    assert found["weights"] == f"float32, {num_bytes / 2**20:.3g} MiB in 1 file(s)"
    assert found["memory"].startswith(f"{num_bytes / 2**20:.3g} MiB to serve, {16 * num_parameters / 2**20:.3g} MiB to train all")
    assert ("has LlavaForConditionalGeneration" in found["vLLM"]) == (find_spec("vllm") is not None)


@pytest.mark.parametrize(
    ("save", "way", "extra"),
    [
        (save_instructblip, "its Q-Former looks again for every text", {}),
        (save_mllama, "it encodes the image again for every prompt", {}),
        (save_qwen2, "encodes an image once for all prompts", {"augmentation": "pixels [40, 1176]"}),
    ],
    ids=["instructblip", "mllama", "qwen2_vl"],
)
def test_how_the_transformers_engine_runs_a_family(save: Callable[[Path], Path], way: str, extra: dict[str, str], tmp_path: Path) -> None:
    if save is save_qwen2 and find_spec("torchvision") is None:
        pytest.skip("its processor needs torchvision")
    findings = examined(save(tmp_path))
    assert way in findings["transformers engine"].found
    assert missing(findings) == set()
    absent = {name: finding.found for name, finding in findings.items() if not finding.ok and name not in ("vLLM", "transports")}
    assert absent == extra


def test_a_model_that_the_engine_runs_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(families._OTHERS, "paligemma")
    findings = examined(save_paligemma(tmp_path))
    assert missing(findings) == {"own generate"}
    assert "cannot run this paligemma model as it runs by itself" in findings["own generate"].advice


def _bare(folder: Path) -> None:
    """A model as some are published: without a template, in float16, with an end token in no file."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL, dtype=torch.float16)
    shutil.copytree(EMBEDDED_MODEL, folder)
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()


def test_what_a_model_lacks_comes_with_its_remedy(tmp_path: Path) -> None:
    _bare(tmp_path / "bare")
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "bare"), "--json"])
    assert done.exit_code == 1
    rows = {one["name"]: one for one in json.loads(done.stdout)}
    assert [name for name, row in rows.items() if not row["ok"] and row["required"]] == ["chat template", "weights", "own generate"]
    assert "vigc fetch" in rows["weights"]["advice"]
    assert rows["chat template"]["advice"].endswith(f"`vigc fetch {tmp_path / 'bare'} --out FOLDER --chat-template llava`")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("num2words") is None or find_spec("torchvision") is None, reason="it needs both to be saved")
def test_a_package_that_a_processor_needs_is_named(tmp_path: Path) -> None:
    folder = save_smolvlm(tmp_path)
    hidden = "import sys; sys.modules['num2words'] = sys.modules['vllm'] = None; from loop.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden, "doctor", str(folder), "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    row = next(one for one in json.loads(done.stdout) if one["name"] == "processor")
    assert "needs num2words, which is not installed: " in row["advice"]
    assert "pip install num2words" in row["advice"]


def test_what_is_no_model_for_this_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    alien = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "alien"))
    change(alien / "config.json", auto_map={"AutoConfig": "mine.Mine"})
    text = save_language_model(tmp_path / "text")
    for model, expected in (
        (broken, "cannot be read as safetensors"),
        (alien, "needs its own code"),
        (text, "is a llama model; expected an image-text-to-text model"),
        (tmp_path / "none", "is neither a folder here nor whole in Hugging Face's cache"),
    ):
        with pytest.raises(UserError, match=expected) as refused:
            examine_model(str(model))
        assert "\n" not in str(refused.value)


def test_try_needs_a_model() -> None:
    done = CliRunner().invoke(app, ["doctor", "--try"])
    assert isinstance(done.exception, UserError)
