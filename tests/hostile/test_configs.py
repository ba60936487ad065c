"""Configs of a stranger's: each is a config or a `UserError`, soon and in little memory."""

# ruff: noqa: PT017 (an input may be refused or not; where it is, the reason is looked at)

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from loop.config.run_config import RunConfig, load_config, parse_config
from loop.errors import UserError
from loop.run import driver
from tests.hostile.fuzz import NASTY_TEXTS, fuzzed, json_values, texts
from tests.loop.config.test_config import RECIPE, document

RECIPE_DOCUMENT: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
MAX_SECONDS = 10.0
"""Processor time that any config may take."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in a document."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
    """A document with a few values replaced, removed or added."""
    changed = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(sorted(places(changed), key=str)))
        target: Any = changed
        for step in way:
            target = target[step]
        action = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if action == "remove" and len(changed) > 1:
            del target[last]
        elif action == "add" and isinstance(target, dict):
            target[draw(texts)] = draw(json_values)
        else:
            target[last] = draw(json_values | st.sampled_from((0, -1, 1 << 40, 1 << 80, 0.5, 1e308, [], {}, True)))
    return changed


def outcome(make: Any) -> RunConfig | None:
    """The config, or None where it was refused; nothing else may happen, and not for long."""
    started = time.process_time()
    try:
        return make()
    except UserError as error:
        assert str(error).strip()
        return None
    finally:
        assert time.process_time() - started < MAX_SECONDS


def loaded(folder: Path, content: bytes, *overrides: str) -> RunConfig | None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    return outcome(lambda: load_config(path, overrides))


def assert_survives_its_own_dump(config: RunConfig | None) -> None:
    if config is not None:
        dumped = config.model_dump(mode="json")
        assert parse_config(json.loads(json.dumps(dumped))) == config
        assert parse_config(yaml.safe_load(yaml.safe_dump(dumped))) == config


@fuzzed(content=mutated(RECIPE_DOCUMENT) | mutated(document()))
def test_a_mutated_recipe_is_a_config_or_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    assert_survives_its_own_dump(loaded(tmp_path, yaml.safe_dump(content, allow_unicode=True).encode(errors="surrogatepass")))


@fuzzed(content=mutated(document()))
def test_a_mutated_mapping_is_a_config_or_refused(content: dict[str, Any]) -> None:
    outcome(lambda: parse_config(content))


YAML_PIECES = (
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system [id]", b"!!binary /w==", b"!!set {a}", b"!!timestamp x", b"!!bool x",
    b"!!int x", b"!!float x", b"!!omap [a: b]", b"!!null x", b"2024-99-99", b"0b_", b"0x_", b"1:99", b".inf", b".nan", b"[",
    b"]", b"{", b"}",
    b"? ", b": ", b"- ", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 9.9\n", b"%TAG ! x\n", b"\0", b"\xff\xfe", b"\xc3(", b"\t",
    b"\r", b"'", b'"',
    b'"\\ud800"', b'"\\x00"', b'"\\U00110000"', b"\xef\xbb\xbf", b"\xe2\x80\xae", b"9" * 5000, b"~",
)  # fmt: skip


@fuzzed(data=st.data())
def test_a_file_of_damaged_bytes_is_a_config_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = yaml.safe_dump(document()).encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        gone = data.draw(st.integers(0, 12))
        content = content[:start] + data.draw(st.sampled_from(YAML_PIECES) | st.binary(max_size=8)) + content[start + gone :]
    assert_survives_its_own_dump(loaded(tmp_path, content))


KEYS = st.sampled_from(sorted({".".join(map(str, path)) for path in places(RECIPE_DOCUMENT)}))
OVERRIDES = st.one_of(
    st.tuples(KEYS | texts | st.lists(texts, max_size=5).map(".".join), texts | st.integers().map(str) | json_values.map(str)).map(
        "=".join
    ),
    st.tuples(KEYS, st.sampled_from(("options", "policy", "0", "-1", "kind", "x.y.z")), texts).map(
        lambda one: f"{one[0]}.{one[1]}={one[2]}"
    ),
    texts,
)


@fuzzed(overrides=st.lists(OVERRIDES, min_size=1, max_size=4))
def test_random_overrides_give_a_config_or_are_refused(overrides: list[str]) -> None:
    assert_survives_its_own_dump(outcome(lambda: load_config(RECIPE, overrides)))


POLICIES = (
    "correction",
    "filters.0",
    "filters.1",
    "selection",
    "mixing",
    "schedule",
    "start",
    "acceptance",
    "stop",
    "generation.instructions",
)
NAMES = st.sampled_from(
    ("sentence_by_sentence", "grounded", "none", "parsable", "length", "duplicates", "agreement", "confidence",
     "all", "top_share", "replay",
     "in_order", "champion", "base", "paired_test", "evidence", "rounds",
     "canonical", "loop.nothing:X", "loop.errors:UserError", "os:path", ":", "a:b")
)  # fmt: skip
OPTION_NAMES = st.sampled_from(
    ("num_views", "view_noise", "max_new_tokens", "premise_refutations", "premise_questions", "describe_prompt",
     "max_p", "min_gain", "share",
     "seed_share", "min_mean_logprob", "max_question_words", "threshold", "min_votes", "max_drop", "patience", "num_candidates")
)  # fmt: skip


@fuzzed(place=st.sampled_from(POLICIES), name=NAMES, options=st.dictionaries(OPTION_NAMES | texts, json_values, max_size=3))
def test_the_check_of_a_config_passes_or_refuses(place: str, name: str, options: dict[str, Any]) -> None:
    content = document()
    target: Any = content
    *way, last = place.split(".")
    for step in way:
        target = target.setdefault(step, {}) if isinstance(target, dict) else target
    if place.startswith("filters"):
        content["filters"] = ["parsable", {name: options}]
    else:
        target[last] = {name: options}
    config = outcome(lambda: parse_config(content))
    if config is not None:
        outcome(lambda: driver.check(config))


@pytest.mark.parametrize("text", [text for text in NASTY_TEXTS if text.strip()])
@pytest.mark.parametrize("place", ["model", "image_sets", "seed_data", "name", "tracking", "held_out"])
def test_a_nasty_text_in_a_config_passes_or_is_refused(monkeypatch: pytest.MonkeyPatch, place: str, text: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    content = document()
    content |= {
        "model": {"model": text},
        "image_sets": {"image_sets": [{"kind": "folder", "path": text}]},
        "seed_data": {"seed_data": {"data": {"kind": "llava_json", "path": text, "images": text}}},
        "name": {"name": text},
        "tracking": {"tracking": {"experiment": text}},
        "held_out": {"held_out": {text: content["held_out"]["near"]}},
    }[place]
    config = outcome(lambda: parse_config(content))
    if config is not None and place in ("model", "image_sets", "seed_data"):
        outcome(lambda: driver.check(config))


def laughs(levels: int, width: int, merge: bool = False) -> str:
    lines = ["a0: &a0 {x: y}" if merge else "a0: &a0 [lol]"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {{<<: [{inner}]}}" if merge else f"a{level}: &a{level} [{inner}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "content",
    [
        laughs(30, 10),
        laughs(30, 10, merge=True),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 20_000,
        "{a: " * 20_000,
        "- " * 20_000,
        "x: " + "y" * 10_000_000,
        "x: " + "[1, " * 100 + "]" * 100,
        "\n".join(f"k{index}: {index}" for index in range(200_000)),
        "? " * 3000,
        "seed: " + "9" * 4000,
    ],
    ids=lambda content: content[:12],
)
def test_a_config_that_would_grow_without_bound_is_refused_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "bomb.yaml").write_text(content)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError, match=r"bomb\.yaml"):
        load_config(tmp_path / "bomb.yaml")
    assert time.process_time() - started < MAX_SECONDS
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "override", ["a=" + "[" * 50_000, ".".join(["a"] * 50_000) + "=1", "mixing=&a {replay: *a}", "=" * 50_000, "x=" + laughs(9, 9)]
)
def test_an_override_that_would_grow_without_bound_is_refused_at_once(override: str) -> None:
    assert outcome(lambda: load_config(RECIPE, [override])) is None


def test_a_tag_of_a_config_runs_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for tag in (
        f"!!python/object/apply:os.system ['touch {touched}']",
        f"!!python/object/new:pathlib.Path ['{touched}']",
        "!!python/name:os.system",
    ):
        assert loaded(tmp_path, yaml.safe_dump(document()).encode() + f"\nmodel: {tag}\n".encode()) is None
    assert not touched.exists()


def test_an_endless_file_is_no_config() -> None:
    with pytest.raises(UserError, match="larger than"):
        load_config(Path("/dev/urandom").with_name("zero"))
