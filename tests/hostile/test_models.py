"""Models of a stranger's: refused with one line before an actor starts, nothing of them run, nothing outside of their folder read."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.engines import families
from actors.engines.families import ENCODER_DECODER
from actors.training.job import Hyperparameters, Lora
from loop.bounded import run_with_limits
from loop.config.engine_config import TransformersEngineConfig
from loop.config.run_config import EMBEDDED_MODEL
from loop.errors import UserError
from loop.models.checks import check_model
from loop.models.files import model_files
from loop.run.models import Models
from loop.store.run_store import Store
from tests.actors.engines.family_models import save_instructblip, save_instructblip_t5, save_paligemma
from tests.actors.engines.tiled_models import save_lfm2_vl, save_mllama

WEIGHTS = "model.safetensors"
HEAD = "language_model.lm_head.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model to make bad."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))


def refusal(model: Path) -> str:
    with pytest.raises(UserError) as refused:
        check_model(str(model), TransformersEngineConfig())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, {"format": "pt"})


class Payload:
    """What a pickle of it does when it is read."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


def test_a_small_model_that_the_engine_would_run_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(families._OTHERS, "paligemma")
    found = refusal(save_paligemma(tmp_path / "paligemma"))
    assert found.startswith(
        f"model {str(tmp_path / 'paligemma')!r}: the transformers engine cannot run this paligemma model as it runs by itself: "
    )
    assert found.endswith("; set engine.kind to vllm, if vLLM supports the model, or use another model")


def test_a_model_with_an_encoder_decoder_is_neither_run_nor_trained(tmp_path: Path) -> None:
    folder = save_instructblip_t5(tmp_path / "t5")
    assert refusal(folder) == f"model {str(folder)!r}: this instructblip model {ENCODER_DECODER}"
    with pytest.raises(UserError, match=f"^stages.1.training does not fit model .*: it {re.escape(ENCODER_DECODER)}$"):
        check_model(str(folder), None, {"stages.1.training": Hyperparameters(8, 1, 1e-3)})


def test_a_model_that_runs_whole_is_told_with_its_cost(tmp_path: Path) -> None:
    assert check_model(str(EMBEDDED_MODEL), TransformersEngineConfig()) == ""
    found = check_model(str(save_mllama(tmp_path)), TransformersEngineConfig())
    assert found.startswith("the transformers engine runs mllama models whole: it encodes an image again for every prompt about it")


@pytest.mark.parametrize(
    ("save", "hyper", "said"),
    [
        (
            save_instructblip,
            {"frozen": ("language_model",), "lora": Lora(targets=("gate",))},
            "lora targets ['gate'] are not linear layers",
        ),
        (save_instructblip, {"frozen": ("vision_tower",), "pixel_noise": 0.1}, ""),
        (save_lfm2_vl, {"brightness": 0.1}, "set pixel_noise, brightness and color_jitter to 0"),
        (save_lfm2_vl, {"lora": Lora(), "frozen": ("language_model",)}, ""),
        (save_instructblip, {"attention": "flash_attention_2"}, "attention flash_attention_2 cannot be used: "),
    ],
)
def test_a_training_that_does_not_fit_is_refused_before_it_starts(
    save: Callable[[Path], Path], hyper: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if save is save_lfm2_vl:
        pytest.importorskip("torchvision", reason="its processor needs torchvision: make install")
    trainings = {"stages.2.training": Hyperparameters(8, 1, 1e-3, **hyper)}
    model = str(save(tmp_path / "model"))
    if not said:
        check_model(model, None, trainings)
        return
    with pytest.raises(UserError) as refused:
        check_model(model, None, trainings)
    assert str(refused.value).startswith(f"stages.2.training does not fit model {model!r}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_model_as_it_is_passes(model: Path) -> None:
    check_model(str(model), TransformersEngineConfig())


# ---- code


PICKLES = ("pytorch_model.bin", "model.pt", "adapter_model.bin", "tokenizer.pkl", "vocab.pkl", "training_args.bin", "optimizer.pt")


def test_pickles_beside_safetensors_are_neither_read_nor_copied(model: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for name in PICKLES:
        (model / name).write_bytes(pickle.dumps(Payload(touched)))
    check_model(str(model), TransformersEngineConfig())
    assert not touched.exists()
    assert not {path.name for path in model_files(model)} & set(PICKLES)


@pytest.mark.parametrize("protocol", [0, 4])
def test_pickles_instead_of_safetensors_are_refused_unread(model: Path, tmp_path: Path, protocol: int) -> None:
    touched = tmp_path / "touched"
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(touched), protocol))
    assert "cannot be read as safetensors" in refusal(model)
    (model / WEIGHTS).write_bytes(pickle.dumps(Payload(touched), protocol))  # under the right name
    assert "cannot be read as safetensors" in refusal(model)
    assert not touched.exists()


CODE = "import pathlib\npathlib.Path({touched!r}).touch()\nclass Mine: pass\n"


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoConfig": "mine.Mine", "AutoModelForImageTextToText": "mine.Mine"}),
        ("config.json", {"AutoConfig": "someone/else--mine.Mine"}),
        ("processor_config.json", {"AutoProcessor": "mine.Mine"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["mine.Mine", None]}),
        ("generation_config.json", {"AutoGenerate": "mine.Mine"}),
    ],
)
def test_code_of_its_own_is_refused_and_not_run(model: Path, tmp_path: Path, file: str, auto_map: Any) -> None:
    touched = tmp_path / "touched"
    (model / "mine.py").write_text(CODE.format(touched=str(touched)))
    change(model / file, auto_map=auto_map)
    assert f"{file} of model {str(model)!r} needs its own code (auto_map: " in refusal(model)
    change(model / file, auto_map=None, nested={"image_processor": {"auto_map": auto_map}})
    assert "needs its own code" in refusal(model)
    assert not touched.exists()
    assert not any(path.suffix == ".py" for path in model_files(model))


def test_a_class_that_transformers_does_not_have_is_refused_and_not_run(model: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    (model / "mine.py").write_text(CODE.format(touched=str(touched)))
    change(model / "config.json", model_type="mine")
    assert "cannot be read" in refusal(model)
    assert not touched.exists()


TEMPLATES = {
    "a sandbox escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "another": "{{ cycler.__init__.__globals__.os.popen('touch TOUCHED').read() }}",
    "a third": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch TOUCHED') }}",
    "a fourth": "{{ lipsum.__globals__['os'].system('touch TOUCHED') }}",
    "a format string": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch TOUCHED') }}",
    "a syntax error": "{% for %}",
    "nothing": "nothing",
    "only the question": "{{ messages[0]['content'][1]['text'] }}",
    "changed messages": "{{ messages.clear() }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_hostile_chat_template_is_refused_and_not_run(model: Path, tmp_path: Path, template: str) -> None:
    touched = tmp_path / "touched"
    (model / "chat_template.jinja").write_text(template.replace("TOUCHED", str(touched)))
    assert refusal(model).startswith(f"the chat template of model {str(model)!r} ")
    assert not touched.exists()


def test_a_model_without_a_chat_template_is_refused_with_the_command_that_adds_one(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert refusal(model) == (
        f"the processor of model {str(model)!r} has no chat template; write a copy with one: "
        f"`vigc fetch {model} --out FOLDER --chat-template llava`"
    )
    change(model / "config.json", model_type="internvl", architectures=None)
    assert "with the template that the model was trained with: `vigc fetch " in refusal(model)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ 9 ** (9 ** (9 ** 9)) }}"], ids=["loop", "power"])
def test_a_chat_template_without_an_end_is_stopped(model: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr("loop.models.checks._CHECK_TIMEOUT_S", 8.0)
    (model / "chat_template.jinja").write_text("{# content #}" + template)
    before = {*psutil.Process().children()}
    assert refusal(model) == f"model {str(model)!r} cannot be checked within 8 s; use one from a trusted source"
    assert {*psutil.Process().children()} <= before


def test_a_chat_template_that_eats_memory_is_stopped(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{# content #}{% set x = 'a' * 9999999999 %}{{ x }}")
    before = psutil.Process().memory_info().rss
    assert "chat template" in refusal(model)
    assert psutil.Process().memory_info().rss - before < 1 << 30


# ---- weights


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda tensors: tensors.pop(HEAD), f"{HEAD}: nothing given, float32[261, 160] served"),
        (lambda tensors: tensors.update(stray=torch.zeros(3)), "stray: float32[3] given, nothing served"),
        (lambda tensors: tensors.update({HEAD: torch.zeros(160, 261)}), f"{HEAD}: float32[160, 261] given, float32[261, 160] served"),
        (lambda tensors: tensors.update({HEAD: torch.zeros(0)}), f"{HEAD}: float32[0] given"),
        (lambda tensors: tensors.clear(), "nothing given"),
    ],
    ids=["missing", "extra", "turned", "empty", "none"],
)
def test_weights_that_do_not_fit_the_config_are_refused(model: Path, change: Callable[..., object], finding: str) -> None:
    save_weights(model, change)
    text = refusal(model)
    assert text.startswith(f"the weights of model {str(model)!r} do not fit its config: ")
    assert finding in text


def test_weights_of_a_tied_model_that_are_there_twice_are_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (model / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight: float32[261, 160] given, nothing served" in refusal(model)


@pytest.mark.parametrize(
    "change_of",
    [
        {"hidden_size": 1 << 40}, {"hidden_size": -1}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**15}, {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "nothing"}}, {"hidden_act": "__import__('os')"}, {"head_dim": "many"},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_of_impossible_sizes_is_refused_within_its_bounds(
    model: Path, monkeypatch: pytest.MonkeyPatch, change_of: dict[str, Any]
) -> None:
    monkeypatch.setattr("loop.models.checks._CHECK_TIMEOUT_S", 8.0)
    config = json.loads((model / "config.json").read_text())
    config["text_config"] |= change_of
    (model / "config.json").write_text(json.dumps(config))
    before = psutil.Process().memory_info().rss
    assert str(model) in refusal(model)
    assert psutil.Process().memory_info().rss - before < 1 << 30


def header(content: Any, size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


HEADERS = {
    "a header without an end": header({}, (1 << 64) - 1),
    "a header of an exabyte": header({}, 1 << 60),
    "a header longer than the file": header({}, 1 << 20),
    "a header that is not JSON": header(b"{" * 1000),
    "a header of nests": header(b"[" * 100_000),
    "a header that is no UTF-8": header(b'{"\xff": 1}'),
    "overlapping tensors": header({"a": tensor(0, 16), "b": tensor(8, 24)}) + bytes(24),
    "a hole": header({"a": tensor(0, 8), "b": tensor(16, 24)}) + bytes(24),
    "offsets outside": header({"a": tensor(0, 1 << 40)}) + bytes(24),
    "offsets turned around": header({"a": {**tensor(0, 8), "data_offsets": [8, 0]}}) + bytes(8),
    "negative offsets": header({"a": {**tensor(0, 8), "data_offsets": [-8, 0]}}) + bytes(8),
    "a shape that overflows": header({"a": tensor(0, 8, [1 << 62, 1 << 62])}) + bytes(8),
    "an unknown dtype": header({"a": tensor(0, 8, dtype="O")}) + bytes(8),
    "nothing": b"",
    "seven bytes": bytes(7),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_hostile_safetensors_header_is_refused(model: Path, content: bytes) -> None:
    (model / WEIGHTS).write_bytes(content)
    assert refusal(model).startswith(f"the weights of model {str(model)!r} cannot be read as safetensors: ")


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../../secret.safetensors"}},
        {"weight_map": {"a": "/etc/secret.safetensors"}},
        {"weight_map": {"a": "sub/model.safetensors"}},
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": ["model.safetensors"]}},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": None},
        {},
        [],
        None,
    ],
    ids=str,
)
def test_an_index_that_lists_anything_else_is_refused(model: Path, index: Any) -> None:
    shutil.copyfile(model / WEIGHTS, model.parent.parent / "secret.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(model).startswith(f"the weights of model {str(model)!r} cannot be read as safetensors: ")


# ---- files


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "extra.json"])
def test_a_link_out_of_the_folder_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    shutil.copyfile(model / (name if (model / name).exists() else "config.json"), outside)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(outside)
    assert f"{name} of model folder {str(model)!r} is a link to {outside}, outside of the folder" in refusal(model)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "special_tokens_map.json"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    assert f"{name} of model folder {str(model)!r} is not a regular file" in refusal(model)


def test_links_into_the_cache_of_the_hub_are_its_own(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    shutil.copytree(EMBEDDED_MODEL, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    check_model(str(snapshot), TransformersEngineConfig())
    assert {path.name for path in model_files(snapshot)} == {path.name for path in EMBEDDED_MODEL.iterdir()}


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": {"type": "BPE"}}', b'{"added_tokens": 7}']
)
def test_garbage_in_place_of_a_file_is_refused_or_harmless(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    try:
        check_model(str(model), TransformersEngineConfig())
    except UserError as error:
        assert "\n" not in str(error)
        assert str(model) in str(error)


def test_only_what_a_model_needs_is_copied_into_the_run(model: Path, store: Store, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "touched")))
    (model / "mine.py").write_text("x = 1")
    (model / ".hidden").write_text("secret")
    (model / "sub").mkdir()
    (model / "sub" / "link").symlink_to("/etc/passwd")
    adopted = Models(store, []).adopt(str(model))
    copied = {Path(file.path).name for file in adopted.files}
    assert copied == {path.name for path in EMBEDDED_MODEL.iterdir()}
    assert not any(path.is_symlink() for path in store.local_checkpoint(adopted.path).iterdir())


# ---- the process that looks


def test_a_check_that_ends_its_process_is_told() -> None:
    with pytest.raises(UserError, match="x crashes the process that reads it"):
        run_with_limits("x", lambda: os.kill(os.getpid(), signal.SIGKILL), 20.0, 1 << 30)


def test_errors_of_a_check_arrive_as_they_are() -> None:
    def fail() -> None:
        raise UserError("so \ud800")

    before = {*psutil.Process().children()}
    with pytest.raises(UserError, match=r"so \\ud800"):
        run_with_limits("x", fail, 20.0, 1 << 30)
    run_with_limits("x", lambda: None, 20.0, 1 << 30)
    assert {*psutil.Process().children()} <= before
