"""Prompt a teacher to write about an image that it reads as text, or that it is shown.

After LLaVA (arXiv 2304.08485, section 3): captions, and for detail and complex one line per object with its box, represent the image;
a system message and worked examples define the form; the output should read as if its writer saw the image. A teacher
that sees the image, as GPT-4V for ShareGPT4V (arXiv 2311.12793), is shown it in place of this text, without examples. Wordings and examples
are our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from policies.chat import ChatImage, ChatMessage
from policies.generation.instructions import QuestionType
from policies.teaching.examples import DETAIL_QUESTIONS, EXAMPLES, SIGHTED_MESSAGES, SIGHTED_REQUEST, SYSTEM_MESSAGES
from policies.teaching.output import MARKS

_MAX_CAPTION_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class SeenObject:
    """One object: its category and box as shares of width and height."""

    category: str
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2: top left and bottom right, 0..1."""
    is_crowd: bool = False
    """Whether the box encloses an uncounted group of objects."""

    def line(self) -> str:
        category = f"{one_line(self.category)} (a group)" if self.is_crowd else one_line(self.category)
        return f"{category}: [{', '.join(f'{edge:.3f}' for edge in self.box)}]"


@dataclass(frozen=True, slots=True)
class TextView:
    """An image as text."""

    image_id: str
    image: str
    """File name, relative to the folder of images."""
    captions: tuple[str, ...] = ()
    objects: tuple[SeenObject, ...] = ()
    digest: str = ""
    """Of the image file, if the teacher is shown the image."""

    def text(self, question_type: QuestionType) -> str:
        """The text for the teacher: the captions, and the objects unless captions are enough for the type."""
        parts = []
        if self.captions:
            parts.append("Captions:\n" + "\n".join(f"- {one_line(caption)}" for caption in self.captions))
        if self.objects and (question_type is not QuestionType.CONVERSATION or not self.captions):
            parts.append("Objects:\n" + "\n".join(f"- {each.line()}" for each in self.objects))
        return "\n\n".join(parts)


@dataclass(frozen=True, slots=True)
class TeachingTask:
    """One thing for a teacher to write: a conversation, a description or a question that needs reasoning, about one image."""

    view: TextView
    question_type: QuestionType
    question: str
    """For detail, the question that the description will answer; empty if the teacher asks."""
    seed: int
    image: ChatImage | None = None
    """What the teacher is shown; None if it reads text."""

    @property
    def key(self) -> str:
        return f"{self.view.image_id}/{self.question_type}"


def one_line(text: str) -> str:
    """A caption or category that cannot be mistaken for another part of the prompt: one line, with every mark broken up by a space."""
    text = " ".join(text.split())[:_MAX_CAPTION_CHARACTERS]
    while MARKS.search(text):
        text = MARKS.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)
    return text


def teaching_task(
    view: TextView, question_type: QuestionType, seed: int, detail_questions: Sequence[str] = DETAIL_QUESTIONS
) -> TeachingTask:
    """The task of one image and type. Only `seed` and the image's id determine its random choices."""
    spelled = f"{seed}/{question_type}/{view.image_id}".encode(errors="replace")
    drawn = int.from_bytes(hashlib.sha256(spelled).digest()[:4]) >> 1  # 31 bits, a seed that any sampler accepts
    question = detail_questions[drawn % len(detail_questions)] if question_type is QuestionType.DETAIL else ""
    return TeachingTask(view, question_type, question, drawn)


def teaching_messages(task: TeachingTask) -> tuple[ChatMessage, ...]:
    """The chat that a teacher is asked to continue: system message, worked examples and the image as text; or system message and image."""
    if task.image is not None:
        request = ChatMessage("user", task.question or SIGHTED_REQUEST, (task.image,))
        return ChatMessage("system", SIGHTED_MESSAGES[task.question_type]), request
    return (*_preamble(task.question_type), ChatMessage("user", task.view.text(task.question_type)))


@cache
def _preamble(question_type: QuestionType) -> tuple[ChatMessage, ...]:
    messages = [ChatMessage("system", SYSTEM_MESSAGES[question_type])]
    for example in EXAMPLES:
        view = TextView("", "", example.captions, tuple(SeenObject(category, box) for category, box in example.objects))
        messages.append(ChatMessage("user", view.text(question_type)))
        messages.append(ChatMessage("assistant", example.outputs[question_type]))
    return tuple(messages)


def prompts_digest(*, sees_images: bool = False) -> str:
    """A digest of the wording of the prompts, so that texts of different prompts are not mixed unnoticed."""
    texts = [f"{message.role}: {message.text}" for kind in QuestionType for message in _preamble(kind)]
    texts = [*SIGHTED_MESSAGES.values(), SIGHTED_REQUEST] if sees_images else texts
    return hashlib.sha256("\n".join([*texts, *DETAIL_QUESTIONS]).encode()).hexdigest()[:16]
