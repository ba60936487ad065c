"""Credentials in texts: masked wherever a text is shown or stored, and refused in a config, which the run folder keeps.

Recognized are users and passwords in a URI, secrets in its query, HTTP's `Authorization`, keys in well-known formats, values after a name
such as `api_key=`, and the values of this process's environment variables with such names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"

_MIN_VALUE_CHARACTERS = 6
"""Masking shorter values of environment variables would mask ordinary words."""

_WORDS = r"password|passwd|passphrase|(?:api|access|account|private|secret)[_-]?key|(?:access|auth|session|api)[_-]?token"
"""Names of secrets, whole or as the end of a name."""

_SECRET_VARIABLE = re.compile(r"(?i)(?:.*_)?(?:password|passwd|passphrase|secret|token|key|pat|credentials?)")
_SECRET_KEY = re.compile(rf"(?i)(?:.*[_.-])?(?:{_WORDS}|secret)")

_RULES = [
    # A password with unescaped slashes, as in AWS secrets, is distinguished from a port by its other characters.
    (r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/:@\[\"'<>]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s@\"'<>]*@(?:[^\s/@\"'<>]*@)*", rf"\1{MASK}@"),
    (r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/\"'<>]*@", rf"\1{MASK}@"),
    (rf"(?i)([?&;][\w.-]*(?:{_WORDS}|secret|token|pwd|signature|\bsig|credential|auth|\bkey)=)[^\s&#\"'<>]+", rf"\1{MASK}"),
    (r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token|digest)\s+)?)[^\s\"',}]+", rf"\1{MASK}"),
    (r"(\b[Bb]earer\s+)(?=[^\s\"',]*[\d._~+/=-])[\w.~+/=-]{8,}", rf"\1{MASK}"),
    (r"(\b[A-Z][A-Z0-9_]*_(?:PASSWORD|TOKEN|SECRET|KEY|CREDENTIALS?)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+", rf"\1{MASK}"),
    (rf"(?i)(\b(?:{_WORDS})[\"']?\s*[:=]\s*[\"']?)[^\s\"',}}&]+", rf"\1{MASK}"),
    # OpenAI, Hugging Face, GitHub, AWS, Google, Databricks, Slack
    (r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{16,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|dapi[0-9a-f]{30,}|xox[abpr]-[\w-]{10,})", MASK),
]


def masked(text: str) -> str:
    """`text` with every credential in it replaced by `***`."""
    for value in _values_of_the_environment():
        text = text.replace(value, MASK)
    if not any(mark in text for mark in "@=:_- "):
        return text
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    return text


def masked_value(key: str, text: str) -> str:
    """The value of a setting, masked entirely if the last part of its dotted key names a secret."""
    return MASK if text and _SECRET_KEY.fullmatch(key.rpartition(".")[2]) else masked(text)


def keys_with_credentials(document: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of a config that contain credentials."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from keys_with_credentials(value, f"{key}.{name}" if key else str(name))
    elif isinstance(document, list | tuple):
        for number, value in enumerate(document):
            yield from keys_with_credentials(value, f"{key}.{number}")
    elif isinstance(document, str) and masked_value(key, document) != document:
        yield key


def _values_of_the_environment() -> list[str]:
    """Longest first, since one may contain another."""
    found = {value for name, value in os.environ.items() if len(value) >= _MIN_VALUE_CHARACTERS and _SECRET_VARIABLE.fullmatch(name)}
    return sorted((value for value in found if not _is_ordinary(value)), key=len, reverse=True)


def _is_ordinary(value: str) -> bool:
    """Paths and words such as `disabled` are settings, regardless of the variable's name."""
    return value.startswith(("/", "~", "./")) or value.lower() in ("disabled", "enabled", "default", "notset")
