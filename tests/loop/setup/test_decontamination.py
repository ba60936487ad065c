"""What a run is tested on is kept out of its seed data, and sets that hold copies of test images are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loop.config.run_config import RunConfig, parse_config, stored_config
from loop.errors import UserError
from loop.run import driver
from loop.setup import copies as comparing
from loop.setup import rehearsal
from loop.setup.assembly import build_images, build_labelled, build_policies
from loop.setup.copies import copies, spread
from loop.setup.data import build_data
from loop.setup.decontamination import compares_images, decontaminated, held_out_images, seed_samples
from loop.store.commits import Finding
from policies.decontamination.held_out import HeldOutImages
from policies.filtering.chain import FilterChain
from tests.loop.test_cli import document, shapes
from tests.pictures import copy_of, picture, save

SHOWN = "What does the photo show?"


def labelled(folder: Path, pictures: dict[str, int], question: str = SHOWN, copied: bool = False) -> dict[str, Any]:
    """A set with one question about each picture, as a config names it."""
    entries = []
    for name, number in pictures.items():
        save(copy_of(picture(number)) if copied else picture(number), folder / name)
        said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "A dog runs over the wet grass."}]
        entries.append({"id": name, "image": name, "conversations": said})
    (folder / "data.json").write_text(json.dumps(entries))
    return {"kind": "llava_json", "path": str(folder / "data.json"), "images": str(folder)}


def config_of(seed: dict[str, Any], images: dict[str, Any], test: dict[str, Any], dev: dict[str, Any], **changes: Any) -> RunConfig:
    sets = {"seed_data": {"data": seed, "num_samples": 8}, "image_sets": [images]}
    tests = {"held_out": {"test": {"data": test}}, "acceptance_sets": {"dev": {"data": dev}}}
    return parse_config(document("embedded", **sets, **tests, **changes))


def images_of(config: RunConfig) -> HeldOutImages:
    return held_out_images(config, build_data(config).questions)


def found(config: RunConfig) -> list[Finding]:
    others = {
        "seed_data": (config.seed_data.data, build_labelled(config.seed_data.data)),
        "image_sets.0": (config.image_sets[0], build_images(config.image_sets[0])),
    }
    return copies(config, images_of(config), others)


def test_a_seed_sample_that_asks_a_tested_question_about_a_copy_is_left_out_and_counted(tmp_path: Path) -> None:
    seed = labelled(tmp_path / "seed", {"x.png": 1, "y.png": 5}, "what does this photograph show", copied=True)
    config = config_of(seed, shapes(3), labelled(tmp_path / "test", {"a.png": 1, "b.png": 2}), shapes(2))
    samples = seed_samples(config, build_labelled(config.seed_data.data), images_of(config))
    assert [sample.image_id for sample in samples.samples] == ["y.png"] * 4
    (finding,) = samples.findings
    assert (finding.kind, finding.count) == ("held_out_questions", 4)
    assert finding.message.startswith("of 8 samples of seed_data ask what held-out or acceptance sets ask about the same images")
    assert finding.example == "x.png: what does this photograph show"


def test_other_questions_about_a_tested_image_are_trained_on(tmp_path: Path) -> None:
    seed = labelled(tmp_path / "seed", {"x.png": 1}, "Who runs?", copied=True)
    config = config_of(seed, shapes(3), labelled(tmp_path / "test", {"a.png": 1}), shapes(2))
    samples = seed_samples(config, build_labelled(config.seed_data.data), images_of(config))
    assert (len(samples.samples), samples.findings) == (8, ())
    (finding,) = copies(config, images_of(config), {"seed_data": (config.seed_data.data, build_labelled(config.seed_data.data))})
    assert finding.line == (
        "overlap (1): seed_data has copies of 1 of the 1 images of held_out.test, which should be kept apart from it; for example: x.png "
        "is the same picture as a.png"
    )


def test_the_same_file_is_tested_in_both_sets_even_if_it_cannot_be_read(tmp_path: Path) -> None:
    data = labelled(tmp_path / "all", {"a.png": 1, "b.png": 2})
    config = config_of(data, shapes(3), labelled(tmp_path / "test", {"c.png": 3}), data)
    tested = images_of(config)
    (tmp_path / "all" / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"all 8 samples of seed_data ask what .* such as (a|b)\.png: What does the photo show\?; .*false"):
        seed_samples(config, build_labelled(config.seed_data.data), tested)
    off = config.model_copy(update={"decontamination": config.decontamination.model_copy(update={"questions": False})})
    assert len(seed_samples(off, build_labelled(off.seed_data.data), tested).samples) == 8


def test_an_unreadable_image_of_a_test_is_named(tmp_path: Path) -> None:
    config = config_of(shapes(1), {"kind": "folder", "path": str(tmp_path)}, labelled(tmp_path, {"a.png": 1, "b.png": 2}), shapes(2))
    sets = build_data(config).questions
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"an image of the held-out set test cannot be read: b\.png: .*; replace it or remove its record"):
        held_out_images(config, sets)


@pytest.mark.parametrize(("switches", "expected"), [({}, True), ({"images": False}, True), ({"images": False, "questions": False}, False)])
def test_images_are_compared_only_if_files_may_be_copies_of_files(tmp_path: Path, switches: dict[str, bool], expected: bool) -> None:
    files = labelled(tmp_path, {"a.png": 1})
    assert compares_images(config_of(files, shapes(3), files, shapes(2), decontamination=switches)) is expected
    assert not compares_images(config_of(shapes(1), shapes(3), files, shapes(2), decontamination=switches))
    assert not compares_images(config_of(files, shapes(3), shapes(4), shapes(2), decontamination=switches))


def test_generated_questions_are_filtered_only_if_tested_images_are_used(tmp_path: Path) -> None:
    files = labelled(tmp_path, {"a.png": 1})

    def names(**switches: bool) -> Sequence[str]:
        config = config_of(files, shapes(3), files, shapes(2), decontamination=switches)
        return decontaminated(build_policies(config).filters, config, images_of(config)).names

    assert names() == ("parsable",)
    assert names(images=False) == ("parsable", "held_out_questions")
    assert names(images=False, questions=False) == ("parsable",)
    config = config_of(shapes(1), shapes(3), shapes(4), shapes(2), decontamination={"images": False})
    assert decontaminated(FilterChain([]), config, None).names == ()


def test_copies_are_found_in_every_set_that_should_be_apart(tmp_path: Path) -> None:
    test, dev = labelled(tmp_path / "test", {"a.png": 1, "b.png": 2}), labelled(tmp_path / "dev", {"c.png": 2, "d.png": 4}, copied=True)
    for name, number in {"same.png": 1, "other.png": 9}.items():
        save(picture(number), tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"?")
    apart = "which should be kept apart from it; for example"
    assert [one.line for one in found(config_of(shapes(1), {"kind": "folder", "path": str(tmp_path / "photos")}, test, dev))] == [
        "overlap (1): image_sets.0 (2 of its 3 images were compared) has copies of 1 of the 2 images of held_out.test, "
        f"{apart}: same.png is the same picture as a.png",
        f"overlap (1): acceptance_sets.dev has copies of 1 of the 2 images of held_out.test, {apart}: c.png is the same picture as b.png",
        "not_compared (1): of the 3 images of image_sets.0 were not compared by content with those of tests, 1 of those looked at cannot "
        "be read; a run compares each before it asks the model about it",
    ]


def test_the_same_file_is_left_to_the_comparison_of_locations(tmp_path: Path) -> None:
    files = labelled(tmp_path, {"a.png": 1})
    assert found(config_of(files, {"kind": "folder", "path": str(tmp_path)}, files, files)) == []


def test_of_a_large_set_blocks_are_compared_and_the_rest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [str(number) for number in range(100_000)]
    chosen = spread(ids)
    assert (len(chosen), len(set(chosen)), chosen[0], chosen[-1]) == (2000, 2000, "0", "99999")
    assert spread(ids[:2000]) == ids[:2000]
    monkeypatch.setattr(comparing, "MAX_COMPARED", 4)
    monkeypatch.setattr(comparing, "_BLOCK", 2)
    for number in range(9):
        save(picture(number), tmp_path / "photos" / f"{number}.png")
    test = labelled(tmp_path / "test", {"a.png": 8, "b.png": 4})
    config = config_of(shapes(1), {"kind": "folder", "path": str(tmp_path / "photos")}, test, shapes(2), decontamination={"images": False})
    overlap, rest = found(config)
    assert "(4 of its 9 images were compared) has copies of 1 of the 2 images" in overlap.message
    assert rest.line == (
        "not_compared (5): of the 9 images of image_sets.0 were not compared by content with those of tests; a run compares those that "
        "a tested question is about"
    )


def test_the_start_of_a_run_and_a_dry_run_tell_what_is_shared(tmp_path: Path) -> None:
    test, seed = labelled(tmp_path / "test", {"a.png": 1}), labelled(tmp_path / "seed", {"x.png": 1, "y.png": 5}, copied=True)
    save(picture(1), tmp_path / "photos" / "z.png")
    config = config_of(seed, {"kind": "folder", "path": str(tmp_path / "photos")}, test, shapes(2))
    told = [finding.line.partition(":")[0] for finding in driver.check(config).findings]
    assert told == ["held_out_questions (4)", "overlap (1)"]
    rehearsed = [line for line in rehearsal.rehearse(config).findings if line.startswith(("held_out_questions", "overlap"))]
    assert [line.split(" has ")[0] for line in rehearsed[1:]] == ["overlap (1): seed_data", "overlap (1): image_sets.0"]


def test_a_run_from_before_decontamination_goes_on_without_it(tmp_path: Path) -> None:
    stored = document("embedded")
    assert not any(stored_config(stored).decontamination.model_dump().values())
    assert all(parse_config(document("embedded")).decontamination.model_dump().values())
