"""Fingerprints know a picture again and confuse no two; questions are compared by what they ask."""

from __future__ import annotations

import pickle

import pytest
from PIL import Image

from policies.decontamination.fingerprints import Fingerprints, fingerprint
from policies.decontamination.held_out import HeldOutImage, HeldOutImages, HeldOutQuestionFilter, question_key
from policies.filtering.chain import FilterChain
from policies.records import Reason
from tests.paths import DATA
from tests.pictures import copy_of, picture
from tests.policies.make import make_record


def prints(images: list[Image.Image]) -> Fingerprints:
    return Fingerprints.of([fingerprint(image) for image in images])


def held_out(*questions: str) -> HeldOutImages:
    """Two tested pictures; the questions are about the first."""
    asked = frozenset(map(question_key, questions))
    images = HeldOutImage("held_out.test", "a.png", "/a.png", asked), HeldOutImage("held_out.test", "b.png", "/b.png", frozenset())
    return HeldOutImages(images, prints([picture(1), picture(2)]))


def test_a_copy_is_found_and_no_other_picture() -> None:
    known = prints([picture(number) for number in range(30)])
    assert all(known.same_as(fingerprint(copy_of(picture(number)))) == [number] for number in range(30))
    assert all(known.same_as(fingerprint(picture(number))) == [] for number in range(30, 60))


def test_photos_are_found_at_half_their_size_and_never_confused() -> None:
    paths = sorted((DATA / "photos").glob("*.jpg"))[:12]
    if not paths:
        pytest.skip(f"there are no photos in {DATA}")
    photos = [Image.open(path).convert("RGB") for path in paths]
    known = prints(photos)
    assert [known.same_as(fingerprint(copy_of(photo, quality=30))) for photo in photos] == [[number] for number in range(12)]


def test_pictures_without_contrast_are_equal_only_if_their_colour_is() -> None:
    white, grey = Image.new("RGB", (80, 60), "white"), Image.new("RGB", (80, 60), (250, 250, 250))
    assert prints([white, grey]).same_as(fingerprint(white.resize((20, 20)))) == [0]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("What is the dog doing?", "what is the dogs doing", True),
        ("What does the photo show?", "What does this image show?", True),
        ("What color is the cup in the picture?", "What color is a cup?", True),
        ("What is on the table?", "What is under the table?", False),
        ("Is there a dog?", "Is there a cat?", False),
        ("何が見えますか", "何が見えますか.", True),
    ],
)
def test_questions_are_equal_if_they_ask_the_same(one: str, other: str, equal: bool) -> None:
    assert (question_key(one) == question_key(other)) is equal


def test_a_tested_question_about_a_copy_of_its_image_is_rejected_and_few_images_are_opened() -> None:
    opened = []

    def open_image(image_id: str) -> Image.Image:
        opened.append(image_id)
        return copy_of(picture(int(image_id)))

    records = [
        make_record(0, image_id="1", question="What does the image show?"),
        make_record(1, image_id="1", question="Who is there?"),
        make_record(2, image_id="2", question="What does the photo show?"),
        make_record(3, image_id="3", question="What does the photo show?"),
    ]
    chain = pickle.loads(pickle.dumps(FilterChain([HeldOutQuestionFilter(held_out("What does the photo show?"))])))
    result = chain.apply(records, open_image)
    assert [record.reasons for record in result.records] == [(Reason.HELD_OUT_QUESTION,), (), (), ()]
    assert opened == ["1", "2", "3"], "the image of a question that is not tested is not needed"
    assert result.counts == [("held_out_questions", 4, 3)]
