"""Images as text from COCO's files: against the real selection, and with everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loop.errors import UserError
from loop.sources.annotations import MAX_OBJECTS, Annotations, read_annotations
from policies.generation.instructions import QuestionType
from tests.paths import DATA

real = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data with a selection of COCO is not there")

IMAGES = [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}, {"id": 2, "file_name": "2.jpg", "width": 100, "height": 100}]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]
CAPTIONS = [{"image_id": 1, "caption": "A cat."}, {"image_id": 1, "caption": "One cat."}, {"image_id": 2, "caption": "A dog."}]


def box(*edges: Any, image: Any = 1, category: Any = 7, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(edges), **more}


def read(folder: Path, boxes: Any = None, captions: Any = None, images: Any = None) -> Annotations:
    paths: list[Path | None] = [None, None]
    if captions is not None:
        paths[0] = folder / "captions.json"
        paths[0].write_text(json.dumps({"images": IMAGES if images is None else images, "annotations": captions}))
    if boxes is not None:
        paths[1] = folder / "instances.json"
        content = {"images": IMAGES if images is None else images, "categories": CATEGORIES, "annotations": boxes}
        paths[1].write_text(json.dumps(content))
    return read_annotations(*paths)


@real
def test_the_selection_of_coco_reads_as_its_annotations_say() -> None:
    captions, instances = (json.loads((DATA / "coco" / f"{name}.json").read_bytes()) for name in ("captions", "instances"))
    found = read_annotations(DATA / "coco" / "captions.json", DATA / "coco" / "instances.json")
    assert (len(found.views), dict(found.images_set_aside), dict(found.objects_set_aside)) == (70, {}, {})
    assert sum(len(view.objects) for view in found.views) == len(instances["annotations"]) == 562
    assert sum(len(view.captions) for view in found.views) == len(captions["annotations"]) == 350
    assert sum(each.is_crowd for view in found.views for each in view.objects) == 9
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    for view in found.views:
        lines = view.text(QuestionType.DETAIL).split("Objects:\n")[1].split("\n") if view.objects else []
        wanted = [one for one in instances["annotations"] if str(one["image_id"]) == view.image_id]
        assert len(lines) == len(wanted)
        for line, one in zip(lines, wanted, strict=True):
            width, height = sizes[one["image_id"]]
            x, y, w, h = one["bbox"]
            edges = x / width, y / height, min(1.0, (x + w) / width), min(1.0, (y + h) / height)
            group = " (a group)" if one["iscrowd"] else ""
            assert line == f"- {names[one['category_id']]}{group}: [{', '.join(f'{edge:.3f}' for edge in edges)}]"


@real
def test_llavas_own_lines_are_read() -> None:
    found = read_annotations(DATA / "llava_caps_boxes.jsonl", None)
    rows = [json.loads(line) for line in (DATA / "llava_caps_boxes.jsonl").read_text().splitlines()]
    assert [view.image for view in found.views] == [row["image"] for row in rows]
    assert [len(view.objects) for view in found.views] == [len(row["instances"]) for row in rows]
    first = rows[0]["instances"][0]
    assert f"- {first['category']}: [{', '.join(f'{edge:.3f}' for edge in first['bbox'])}]" in found.views[0].text(QuestionType.COMPLEX)


def test_boxes_a_little_outside_are_clamped_and_others_set_aside_by_reason(tmp_path: Path) -> None:
    boxes = [
        box(-1.5, 50, 101.5, 51.5), box(-2.5, 0, 10, 10), box(150, 0, 53, 10), box(0, 90, 10, 12.5), box(5, 5, 0, 9), box(201, 5, 1, 9),
        box(1, 2, 3), box(1, 2, 3, "4"), box(1, 2, 3, 1e300), box(0, 0, 9, 9, category=9), box(0, 0, 9, 9, image=3),
        box(0, 0, 200, 100, category=8, iscrowd=1),
    ]  # fmt: skip
    found = read(tmp_path, boxes, CAPTIONS)
    assert [each.line() for each in found.views[0].objects] == [
        "cat: [0.000, 0.500, 0.500, 1.000]",
        "dog (a group): [0.000, 0.000, 1.000, 1.000]",
    ]
    assert found.views[1].objects == ()
    assert dict(found.objects_set_aside) == {
        "outside_image": 3, "empty_box": 2, "bad_box": 3, "unknown_category": 1, "unknown_image": 1,
    }  # fmt: skip


def test_images_without_captions_without_anything_or_without_size_are_set_aside(tmp_path: Path) -> None:
    images = [*IMAGES, {"id": 3, "file_name": "3.jpg", "width": 0, "height": 10}, {"id": 4, "file_name": "4.jpg"}]
    found = read(tmp_path, [box(0, 0, 9, 9)], CAPTIONS[:2], images)
    assert [view.image_id for view in found.views] == ["1"]
    assert dict(found.images_set_aside) == {"no_captions": 1, "zero_size": 2}
    found = read(tmp_path, [box(0, 0, 9, 9)], images=images)  # as Objects365 has it: no captions at all
    assert [(view.image_id, view.captions) for view in found.views] == [("1", ())]
    assert dict(found.images_set_aside) == {"nothing_known": 1, "zero_size": 2}


def test_captions_alone_will_do(tmp_path: Path) -> None:
    assert [view.text(QuestionType.DETAIL) for view in read(tmp_path, None, CAPTIONS).views] == [
        "Captions:\n- A cat.\n- One cat.", "Captions:\n- A dog.",
    ]  # fmt: skip


def test_of_very_many_objects_the_largest_are_shown(tmp_path: Path) -> None:
    found = read(tmp_path, [box(0, 0, 10 + i, 50) for i in range(MAX_OBJECTS + 9)])
    assert len(found.views[0].objects) == MAX_OBJECTS
    assert found.views[0].objects[0].box[2] == pytest.approx(19 / 200)
    assert dict(found.objects_set_aside) == {"too_many": 9}


def test_files_that_do_not_fit_are_refused_with_counts_and_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit .*no image id in common \(such as 11, 12\)"):
        read(tmp_path, [box(0, 0, 9, 9)], [{"image_id": i, "caption": "x"} for i in (11, 12)])
    with pytest.raises(UserError, match=r"captions of 5 images that the latter does not list \(such as 10, 11, 12\)"):
        read(tmp_path, [box(0, 0, 9, 9)], [*CAPTIONS, *({"image_id": i, "caption": "x"} for i in range(10, 15))])
    with pytest.raises(UserError, match=r"no object of .* can be used: unknown_category 2"):
        read(tmp_path, [box(0, 0, 9, 9, category=99), box(0, 0, 9, 9, category="x")], CAPTIONS)


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "cannot be read"), (b"{", "cannot be read"), (b"[" * 100_000, "cannot be read"), (b"\xff\xfe{}", "cannot be read"),
    (b"[]", "hold list; expected an object"), (b"{}", "hold no list 'images'"), (b'{"images": 5}', "hold no list 'images'"),
    (b'{"images": [5]}', r"images\[0\] of .* is int; expected an object"),
    (b'{"images": [{"id": 1}]}', "has file_name None"), (b'{"images": [{"id": null}]}', "has id None; expected a number or a name"),
    (b'{"images": [{"id": true, "file_name": "x"}]}', "has id True"),
    (b'{"images": [{"id": 1, "file_name": "x"}, {"id": "1", "file_name": "y"}]}', "which another image has too"),
    (b'{"images": [], "categories": [], "annotations": [{"image_id": 1}]}', "has no bbox or no category_id"),
    (b'{"images": [], "categories": [], "annotations": []}', "no image of .* can be used: the file lists none"),
    (b'{"images": [{"id": 1, "file_name": "\\ud800"}]}', "which is not valid Unicode"),
])  # fmt: skip
def test_a_file_of_another_layout_is_refused_in_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        read_annotations(None, tmp_path / "x.json")
    assert "x.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read.*No such file"):
        read_annotations(tmp_path / "none.json", None)
    with pytest.raises(UserError, match="no annotations are given"):
        read_annotations(None, None)
    with pytest.raises(UserError, match="leave --instances out"):
        read_annotations(tmp_path / "x.jsonl", tmp_path / "y.json")
