"""The metrics of the COCO caption challenge (Chen et al. 2015, arXiv 1504.00325) that need no model: BLEU, ROUGE-L and CIDEr-D.

Captions are split into words by `policies.benchmarks.captions.tokens` and compared by `policies.benchmarks.captions.overlap`; the values
are those of the public code (salaniz/pycocoevalcap), in percent: a CIDEr-D of 1.2 there is 120 here. By default a caption is what comes
after a model's reasoning, and one that never came is counted in `num_unparsable` and scored as a caption without words; `published` scores
the text as it stands. An image without a prediction counts as a caption without words, as in the public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.answers.reasoning import final_text
from policies.benchmarks.base import ANSWER, BENCHMARKS, Prediction, Question, by_question, percent
from policies.benchmarks.captions.overlap import bleu, cider_d, rouge_l
from policies.benchmarks.captions.tokens import tokenize
from policies.benchmarks.documents import BenchmarkDataError, Document, Entry, Reader, read_records
from policies.benchmarks.predictions import AnswerBenchmark, Fields, missing_count, read_predictions

CAPTION = "Provide a one-sentence caption for the provided image."
"""The caption prompt of LLaVA-1.5's training data (arXiv 2310.03744, table 7)."""


@BENCHMARKS.register("captions")
class Captions(AnswerBenchmark):
    """`cider_d`, `bleu_1` to `bleu_4` and `rouge_l`.

    Data: COCO's captions file (`images` with `id` and `file_name`, `annotations` with `image_id` and `caption`), or a record for each image
    (`image_id`, `captions`). Predictions: COCO's results (records with `image_id` and `caption`), or `{image id: caption}`.
    """

    def read(self, documents: Sequence[Document]) -> list[Question]:
        is_coco = any(isinstance(document.content, dict) and "annotations" in document.content for document in documents)
        if is_coco:
            return [question for document in documents for question in _coco(document)]
        return read_records(documents, "COCO's captions file, or images with image_id and captions, an object a line", _image)

    def read_predictions(self, document: Document, questions: Sequence[Question], allow_missing: bool = False) -> list[Prediction]:
        ids = {question.question_id: None for question in questions}
        return read_predictions(document, ids, Fields(key="image_id", values=("caption",)), allow_missing=allow_missing)

    def parse(self, question: Question, answer: str, setting: str = ANSWER) -> str | None:
        return answer if self.published else final_text(answer) or None

    def score(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
        answers = by_question(predictions)
        captions = {question.question_id: self.parse(question, answers.get(question.question_id, "")) or "" for question in questions}
        said = [tokenize(caption) for caption in captions.values()]
        references = [[tokenize(caption) for caption in question.answers] for question in questions]
        found: dict[str, Any] = {"cider_d": percent(sum(cider_d(said, references)), len(questions))}
        found |= {f"bleu_{order}": 100 * score for order, score in enumerate(bleu(said, references), 1)}
        found["rouge_l"] = percent(sum(map(rouge_l, said, references)), len(questions))
        found["num_captions"] = len(questions)
        found["num_unparsable"] = sum(not captions[one].strip() for one in captions if one in answers)
        return found | missing_count(list(captions), answers)


def _coco(document: Document) -> list[Question]:
    """From COCO's own file; an image without a caption cannot be scored."""
    reader = Reader(document)
    if isinstance(document.content, dict) and document.content.get("categories"):
        raise BenchmarkDataError([f"{document.name} holds COCO's instances; give the captions file (captions_val2014.json)"])
    captions: dict[str, list[str]] = {}
    files = {reader.id(image, "id"): str(image.value.get("file_name") or "") for image in document.listed("images")}
    for one in document.listed("annotations"):
        captions.setdefault(reader.id(one, "image_id"), []).append(reader.get(one, "caption", str, "a text"))
    reader.done()
    return [Question(image_id, CAPTION, files.get(image_id) or image_id, answers=tuple(of)) for image_id, of in captions.items()]


def _image(entry: Entry, reader: Reader) -> Question | None:
    image_id = reader.id(entry, "image_id")
    captions = reader.texts(entry, "captions", "a list of texts")
    reader.once(entry.place, image_id, "image")
    if "captions" in entry.value and not captions:
        reader.fault(entry.place, "captions is empty; expected one or more reference captions")
        return None
    return Question(image_id, CAPTION, image_id, answers=captions)
