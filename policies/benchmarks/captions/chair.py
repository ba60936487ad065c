"""CHAIR (Rohrbach et al. 2018, arXiv 1809.02156): objects that a caption names and the image does not have.

    CHAIRi = hallucinated mentions / all mentions        CHAIRs = captions with a hallucinated mention / all captions

An image has the objects that are annotated in it and those that its human captions name. What counts as a mention depends on the list of
words and on how words are found; see `policies.benchmarks.captions.chair_words` for both ways. The public code makes every word singular
first, also where it is already ("bus" becomes "bu" and is never counted, "canoes" becomes "cano", "ties" becomes "ty"); by default words
and their plurals are looked up as they stand, and captions that are empty, or only the reasoning before one, are left out and counted in
`num_unparsable`. `published` repeats the public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.answers.reasoning import final_text
from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question, percent
from policies.benchmarks.captions.chair_words import Finder, Mention, PublishedFinder, WordFinder, parse_synonyms, parse_synonyms_published
from policies.benchmarks.captions.coco_objects import synonym_lists
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, read_records, show
from policies.benchmarks.predictions import AnswerBenchmark, Fields, read_predictions

DESCRIBE = "Describe this image in detail."


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """Objects that one caption names."""

    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]


@BENCHMARKS.register("chair")
class Chair(AnswerBenchmark):
    """`chair_i` and `chair_s`, and `by_set` where the captions name sets.

    Data: a record for each image (`image_id`, `captions`, `instance_categories`), or COCO's instances and captions files, both.
    Predictions: records with `image_id` and `caption`, or `{image id: caption}`; images without a caption are allowed.
    """

    def __init__(self, published: bool = False, synonyms: str | None = None) -> None:
        """Args:
            published: find words as the public code does.
            synonyms: the text of a synonym list; our own list for COCO's categories without it.

        Raises:
            ValueError: the list is empty.
        """
        super().__init__(published)
        self.own_list = synonyms is None
        if published:
            self.finder: Finder = PublishedFinder(synonym_lists() if synonyms is None else parse_synonyms_published(synonyms))
        else:
            self.finder = WordFinder(synonym_lists() if synonyms is None else parse_synonyms(synonyms))

    def read(self, documents: Sequence[Document]) -> list[Question]:
        contents = [document.content for document in documents]
        if any(isinstance(content, dict) and "annotations" in content for content in contents):
            questions = _coco(documents)
        else:
            questions = read_records(documents, "images, an object a line, or COCO's instances and captions files", _image)
        faults = [
            f"image {question.question_id}: {show(name)} is not a category of the synonym list; expected one of its words"
            for question in questions
            for name in dict.fromkeys(question.objects)
            if self.finder.category(name) is None
        ]
        if faults:
            raise BenchmarkDataError(faults)
        return questions

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        fields = Fields(key="image_id", values=("caption",), groups=("set",))
        return read_predictions(document, {question.question_id: None for question in questions}, fields, allow_missing=True)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return answer if self.published else final_text(answer) or None

    def objects(self, question: Question) -> frozenset[str]:
        """Categories that an image has, by its annotated objects and its human captions."""
        annotated = {self.finder.category(name) or name for name in question.objects}
        return frozenset(annotated | {category for caption in question.answers for _, category in self.finder.find(caption)})

    def caption(self, caption: str, objects: frozenset[str]) -> CaptionScore:
        """Objects that a caption of an image with these objects names."""
        mentions = tuple(self.finder.find(caption))
        return CaptionScore(mentions, tuple(mention for mention in mentions if mention[1] not in objects))

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        wanted = {prediction.question_id for prediction in predictions}
        objects = {q.question_id: self.objects(q) for q in questions if q.question_id in wanted}
        sets: dict[str, list[CaptionScore]] = {}
        num_unparsable = 0
        for one in predictions:
            caption = one.answer if self.published else final_text(one.answer)
            scores = sets.setdefault(one.group, [])
            if self.published or caption.strip():
                scores.append(self.caption(caption, objects[one.question_id]))
            else:
                num_unparsable += 1
        found = _scores([score for scores in sets.values() for score in scores]) | {"num_unparsable": num_unparsable}
        if set(sets) - {""}:
            found["by_set"] = {name: _scores(scores) for name, scores in sets.items()}
        return found | {"synonyms": "our own" if self.own_list else "given"}


def _scores(captions: Sequence[CaptionScore]) -> dict[str, Any]:
    num_mentions = sum(len(one.mentions) for one in captions)
    num_hallucinated = sum(len(one.hallucinated) for one in captions)
    return {
        "chair_i": percent(num_hallucinated, num_mentions),
        "chair_s": percent(sum(bool(one.hallucinated) for one in captions), len(captions)),
        "num_captions": len(captions),
        "num_mentions": num_mentions,
        "num_hallucinated": num_hallucinated,
    }


def _image(entry: Entry, reader: Reader) -> Question:
    image_id = reader.id(entry, "image_id")
    captions = reader.texts(entry, "captions", "a list of texts")
    objects = reader.texts(entry, "instance_categories", "a list of texts")
    reader.once(entry.place, image_id, "image")
    return Question(image_id, DESCRIBE, image_id, answers=captions, objects=objects)


def _coco(documents: Sequence[Document]) -> list[Question]:
    """From COCO's own files; images with neither an object nor a caption are images too."""
    captions: dict[str, list[str]] = {}
    objects: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    kinds = set()
    for document in documents:
        reader, content = Reader(document), document.content
        is_instances = isinstance(content, dict) and content.get("categories") is not None
        kinds.add(is_instances)
        for image in document.listed("images"):
            image_id = reader.id(image, "id")
            files[image_id] = str(image.value.get("file_name") or image_id)
        names = {
            reader.id(one, "id"): reader.get(one, "name", str, "a text") for one in (document.listed("categories") if is_instances else ())
        }
        for one in document.listed("annotations"):
            image_id = reader.id(one, "image_id")
            if is_instances:
                category = reader.id(one, "category_id")
                if category and category not in names:
                    reader.fault(one.place, f"category_id {category} is not among the file's categories")
                objects.setdefault(image_id, []).append(names.get(category, ""))
            else:
                captions.setdefault(image_id, []).append(reader.get(one, "caption", str, "a text"))
        reader.done()
    if kinds != {True, False}:
        have, lack = ("instances", "captions") if True in kinds else ("captions", "instances")
        raise BenchmarkDataError([f"{documents[0].name} holds COCO's {have}; give the {lack} file with another --data"])
    return [
        Question(image_id, DESCRIBE, name, answers=tuple(captions.get(image_id, ())), objects=tuple(objects.get(image_id, ())))
        for image_id, name in files.items()
    ]
