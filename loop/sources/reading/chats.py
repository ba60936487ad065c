"""Parse conversations about images in the field's formats: LLaVA's turns, and chat messages with roles.

    {"from": "human", "value": "<image>\\nWhat ...?"}     LLaVA, ShareGPT
    {"role": "user", "content": "<image>What ...?"}       LlamaFactory, ms-swift, TRL; content may be a list of parts

A leading system turn is counted but not used. `<image>` must appear once for each image: in the first user turn if there is one image, in
any user turn if there are several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loop.sources.reading.odd_records import BadRecordError, Fault, OddRecords
from policies.records import IMAGE_MARK

MAX_TEXT_CHARACTERS = 32_768
"""Limit for a turn, an id or a file name, because each is held in memory as a whole."""

_USERS, _ASSISTANTS = ("human", "user"), ("gpt", "assistant", "model", "chatgpt")
_SYSTEM = "system"
_IMAGE_PARTS = ("image", "image_url")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_OTHER_TOKENS = ("<video>", "<audio>")


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How a kind of file spells its turns."""

    list_name: str
    turn_name: str
    speaker: str
    text: str
    user: str
    assistant: str

    @property
    def expected(self) -> str:
        return f"{self.list_name} must be a list of {self.user} and {self.assistant} in turn, ending with {self.assistant}"

    def must_be(self, role: str) -> str:
        return f"must be of the role {role}" if self.speaker == "role" else f"must be {{{self.speaker!r}: {role!r}, {self.text!r}: TEXT}}"


LLAVA = ChatForm("conversations", "turn", "from", "value", "human", "gpt")
MESSAGES = ChatForm("messages", "message", "role", "content", "user", "assistant")


def checked_text(text: str, where: str) -> str:
    """`text`, checked to be usable for tokenizers and tables.

    Raises:
        BadRecordError: it is too long, or not valid Unicode.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise BadRecordError(Fault.TOO_LONG, f"{where} holds a text of {len(text)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[:80].encode(errors="backslashreplace").decode()
        raise BadRecordError(Fault.NOT_UNICODE, f"{where} holds the text {shown!r}, which is not valid Unicode: {error.reason}") from error
    return text


def refuse_other_media(entry: dict[str, Any], where: str) -> None:
    """Raises `BadRecordError` for a record about a video or audio."""
    if media := next((key for key in _OTHER_MEDIA if entry.get(key)), None):
        raise BadRecordError(Fault.OTHER_MEDIA, f"{where} is about the {media} {entry[media]!r:.80}; expected images")


def chat_turns(
    conversation: Any, form: ChatForm, where: str, odd: OddRecords, *, needs_token: bool, num_images: int = 1
) -> tuple[tuple[str, str], ...]:
    """The `(question, answer)` pairs of a conversation. Image tokens stay where they are if there are several images.

    Args:
        conversation: the list of turns, as the file holds it.
        form: how it spells them.
        where: the record, as errors name it.
        odd: where a system turn is counted.
        needs_token: whether image tokens are required; without any, the images come first.
        num_images: number of images of the record.

    Raises:
        BadRecordError: it is not such a conversation.
    """
    turns = conversation if isinstance(conversation, list) else []
    num_system = int(bool(turns) and _role(turns[0], form) == _SYSTEM)
    places = range(num_system, len(turns))
    has_part = any(_has_image_part(turn.get(form.text)) for turn in turns if isinstance(turn, dict))
    texts = [_turn_text(turns[place], place, (place - num_system) % 2 == 0, has_part, form, where) for place in places]
    if not texts or len(texts) % 2:
        raise BadRecordError(Fault.TURNS, f"{where}: {form.expected}")
    texts = _with_images(texts, where, num_images, needs_token=needs_token and num_images > 0)
    if not all(texts):
        empty = next(place for place, text in zip(places, texts, strict=True) if not text)
        raise BadRecordError(Fault.EMPTY, f"{where}: a turn is empty: {form.turn_name} {empty} is empty")
    odd.num_system_turns += num_system
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def has_image_token(conversation: Any, form: ChatForm) -> bool:
    """Whether any turn contains an image token."""
    turns = conversation if isinstance(conversation, list) else []
    return any(_holds_image(turn.get(form.text)) for turn in turns if isinstance(turn, dict))


def _holds_image(content: Any) -> bool:
    if isinstance(content, str):
        return IMAGE_MARK in content
    parts = content if isinstance(content, list) else []
    return any(part.get("type") in _IMAGE_PARTS or _holds_image(part.get("text")) for part in parts if isinstance(part, dict))


def _has_image_part(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in _IMAGE_PARTS for part in content)


def _role(turn: Any, form: ChatForm) -> str:
    role = turn.get(form.speaker) if isinstance(turn, dict) else None
    return role.strip().lower() if isinstance(role, str) else ""


def _turn_text(turn: Any, place: int, is_user: bool, has_part: bool, form: ChatForm, where: str) -> str:
    """The text of a turn, with the image token in place of an image part. If there is such a part (`has_part`), a token within a text
    is not an image, and is removed, because a model cannot be given it as text."""
    roles = _USERS if is_user else _ASSISTANTS
    given = turn.get(form.text) if isinstance(turn, dict) and turn.get(form.speaker) in roles else None
    if isinstance(given, str) and given.isascii() and len(given) <= MAX_TEXT_CHARACTERS and not has_part:
        return given.strip()  # nearly all turns: a file has millions
    name = f"{where}, {form.turn_name} {place}"
    wanted = form.user if is_user else form.assistant
    if _role(turn, form) not in roles:
        found = turn.get(form.speaker) if isinstance(turn, dict) else turn
        raise BadRecordError(Fault.TURNS, f"{name} {form.must_be(wanted)}; it is of {found!r:.80}")
    content = turn.get(form.text)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) and _is_readable(part) for part in parts):
        expected = "expected a text, or a list of parts of type text and image"
        raise BadRecordError(Fault.NO_TEXT, f"{name} {form.must_be(wanted)} and has {form.text} {content!r:.80}; {expected}")
    texts = [checked_text(part["text"], name) if part["type"] == "text" else IMAGE_MARK for part in parts]
    if has_part:
        texts = [text.replace(IMAGE_MARK, "") if part["type"] == "text" else text for text, part in zip(texts, parts, strict=True)]
    return "\n".join(texts).strip()


def _is_readable(part: dict[str, Any]) -> bool:
    return part.get("type") in _IMAGE_PARTS or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _with_images(texts: list[str], where: str, num_images: int, *, needs_token: bool) -> list[str]:
    """The texts without the token of a single image, or with those of several."""
    if other := next((token for token in _OTHER_TOKENS for text in texts if token in text), None):
        raise BadRecordError(Fault.OTHER_MEDIA, f"{where} holds {other}; expected a conversation about images")
    counts = [text.count(IMAGE_MARK) for text in texts]
    users = counts[::2] if num_images > 1 else counts[:1]
    if sum(counts) == sum(users) == num_images or (sum(counts) == 0 and not needs_token):
        return texts if sum(counts) > 1 else [_with_first_images(texts[0], num_images), *texts[1:]]
    rule = (
        f"several images, which are in turns of the user: {IMAGE_MARK} must appear exactly {num_images} times, in human turns"
        if num_images > 1
        else f"one image, which is in its first turn: {IMAGE_MARK} must appear exactly once, in the first human turn"
    )
    raise BadRecordError(Fault.IMAGE_TAG, f"{where}: a conversation is about {rule}")


def _with_first_images(text: str, num_images: int) -> str:
    """The first text without the token of the only image, or with those of several images in front."""
    marks = IMAGE_MARK * num_images if num_images > 1 else ""
    return f"{marks}{text.replace(IMAGE_MARK, '').strip()}"
