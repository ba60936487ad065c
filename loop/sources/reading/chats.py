"""Parse conversations about one image in the field's formats: LLaVA's turns, and chat messages with roles.

    {"from": "human", "value": "<image>\\nWhat ...?"}     LLaVA, ShareGPT
    {"role": "user", "content": "<image>What ...?"}       LlamaFactory, ms-swift, TRL; content may be a list of parts

A leading system turn is counted but not used. `<image>` must appear once, anywhere in the first user turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loop.sources.reading.odd_records import BadRecordError, Fault, OddRecords

IMAGE_TOKEN = "<image>"
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
        raise BadRecordError(Fault.OTHER_MEDIA, f"{where} is about the {media} {entry[media]!r:.80}; expected one image")


def chat_turns(conversation: Any, form: ChatForm, where: str, odd: OddRecords, *, needs_token: bool) -> tuple[tuple[str, str], ...]:
    """The `(question, answer)` pairs of a conversation about one image, without the image token.

    Args:
        conversation: the list of turns, as the file holds it.
        form: how it spells them.
        where: the record, as errors name it.
        odd: where a system turn is counted.
        needs_token: whether the image token is required; otherwise the image comes first.

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
    texts[0] = _without_token(texts, where, needs_token=needs_token)
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
        return IMAGE_TOKEN in content
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
    texts = [checked_text(part["text"], name) if part["type"] == "text" else IMAGE_TOKEN for part in parts]
    if has_part:
        texts = [text.replace(IMAGE_TOKEN, "") if part["type"] == "text" else text for text, part in zip(texts, parts, strict=True)]
    return "\n".join(texts).strip()


def _is_readable(part: dict[str, Any]) -> bool:
    return part.get("type") in _IMAGE_PARTS or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _without_token(texts: Sequence[str], where: str, *, needs_token: bool) -> str:
    """The first text without the image token."""
    later = "\n".join(texts[1:])
    if other := next((token for token in _OTHER_TOKENS if token in texts[0] or token in later), None):
        raise BadRecordError(Fault.OTHER_MEDIA, f"{where} holds {other}; expected a conversation about one image")
    num_tokens = texts[0].count(IMAGE_TOKEN)
    if num_tokens > 1 or num_tokens < needs_token or IMAGE_TOKEN in later:
        rule = f"is about one image, which is in its first turn: {IMAGE_TOKEN} must appear exactly once, in the first human turn"
        raise BadRecordError(Fault.IMAGE_TAG, f"{where}: a conversation {rule}")
    return texts[0].replace(IMAGE_TOKEN, "").strip()
