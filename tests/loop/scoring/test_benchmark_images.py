"""Images of a benchmark's questions: found, unpacked, or told of by name."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError
from loop.scoring.images import NO_IMAGE, find_images
from policies.benchmarks import Question


def photo(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path)
    return path


@pytest.mark.parametrize(("question", "file"), [
    (Question("1", "", "a.jpg"), "a.jpg"),
    (Question("1", "", "sub/a.png"), "sub/a.png"),
    (Question("1", "", "139"), "000000000139.jpg"),
    (Question("1", "", "139"), "COCO_val2014_000000000139.jpg"),
    (Question("1", "", "COCO_val2014_000000000139.jpg"), "000000000139.jpg"),
    (Question("1", "", "COCO_val2014_000000000139"), "COCO_val2014_000000000139.jpg"),
    (Question("1", "", "000000000139.jpg"), "COCO_train2014_000000000139.jpg"),
    (Question("25", "", "image.png", split="test"), "test/25/image.png"),
    (Question("25", "", "image.png", split="test"), "25/image.png"),
    (Question("25", "", "25", split="test"), "25/image.png"),
    (Question("1", "", "landmark/a.jpg"), "landmark/images/a.jpg"),
    (Question("1", "", "scan"), "scan.webp"),
])  # fmt: skip
def test_images_are_found_by_the_names_that_the_field_uses(tmp_path: Path, question: Question, file: str) -> None:
    photo(tmp_path / file)
    found = find_images([question], str(tmp_path), tmp_path / "unpacked")
    assert (found.ids, found.problems) == ({question.question_id: file}, {})
    assert found.source.open(file).size == (40, 30)


def test_missing_unreadable_and_outside_images_are_told_of_each_by_its_questions(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "good.jpg")
    photo(tmp_path / "secret.jpg")
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    names = ["good.jpg", "bad.jpg", "absent.jpg", "../secret.jpg", "x" * 5000, "nul\0.jpg", ""]
    questions = [Question(str(number), "", name) for number, name in enumerate(names)]
    found = find_images(questions, str(tmp_path / "in"), tmp_path / "unpacked")
    assert list(found.problems) == ["1", "2", "3", "4", "5"]
    assert [text.split(": ")[0] for text in list(found.problems.values())[:3]] == ["bad.jpg", "absent.jpg", "../secret.jpg"]
    assert found.ids["6"] == NO_IMAGE


def test_images_of_the_table_itself_are_unpacked_once(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(stream, "JPEG")
    held = base64.b64encode(stream.getvalue()).decode()
    questions = [Question("1", "", held), Question("1000001", "", held), Question("2", "", "A" * 300), Question("3", "", "A" * 301)]
    found = find_images(questions, None, tmp_path / "unpacked")
    assert found.ids["1"] == found.ids["1000001"]
    assert found.source.open(found.ids["1"]).size == (32, 32)
    assert set(found.problems) == {"2", "3"}
    written = (tmp_path / "unpacked" / found.ids["1"]).stat().st_mtime_ns
    assert find_images(questions, None, tmp_path / "unpacked").ids == found.ids
    assert (tmp_path / "unpacked" / found.ids["1"]).stat().st_mtime_ns == written


def test_images_of_the_embedded_world_need_no_files(tmp_path: Path) -> None:
    questions = [Question("1", "", "shapes-7-000000-0154"), Question("2", "", "shapes-7-0")]
    found = find_images(questions, "shapes", tmp_path)
    assert list(found.problems) == ["2"]
    assert found.source.open("shapes-7-000000-0154").mode == "RGB"
    with pytest.raises(BadImageError):
        found.source.open("shapes-7-0")


def test_images_of_a_house_are_drawn_by_their_names_and_others_are_refused(tmp_path: Path) -> None:
    questions = [Question("1", "", "drawings-noto-7-000000"), Question("2", "", "drawings-twemoji-7-000000")]
    assert find_images(questions, "drawings", tmp_path).problems == {}
    assert list(find_images(questions, "drawings:styles=noto", tmp_path).problems) == ["2"]
    with pytest.raises(UserError, match="there is no house 'blob'"):
        find_images(questions, "drawings:styles=blob", tmp_path)
    with pytest.raises(UserError, match=r"--images is 'drawings:house=noto': house: .*expected, for example, drawings:styles="):
        find_images(questions, "drawings:house=noto", tmp_path)


def test_a_question_without_an_image_gets_a_grey_one(tmp_path: Path) -> None:
    found = find_images([Question("1", "Why?")], None, tmp_path)
    assert (found.ids, found.problems) == ({"1": NO_IMAGE}, {})
    assert found.source.open(NO_IMAGE).getcolors() == [(336 * 336, (128, 128, 128))]


def test_a_folder_is_asked_for_where_questions_name_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 2 questions name an image, such as 'a\.jpg'; give their folder with --images"):
        find_images([Question("1", "", "a.jpg"), Question("2", "")], None, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_images([Question("1", "", "a.jpg")], str(tmp_path / "none"), tmp_path)
