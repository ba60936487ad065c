"""Print any text on terminals with limited encodings: ASCII, Latin-1, GBK."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

from loop.errors import UserError, printable

_HANDLER = "vigc.terminal"


def encode_any_text() -> None:
    """Let stdout and stderr print any text: characters that their encoding lacks are replaced, see `_replaced`."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks replace it by other objects
            stream.reconfigure(errors=_HANDLER)


def print_loading(what: str) -> None:
    """The first line of a command, on stderr, before torch, transformers and Ray are imported, which takes seconds."""
    print(f"{printable(what)}: loading", file=sys.stderr, flush=True)


def encodes_unicode(encoding: str) -> bool:
    """Whether a stream of this encoding shows every character."""
    return encoding.lower().startswith("utf")


def unusable_locale(error: UnicodeError) -> UserError | None:
    """The error for a file name that this system's encoding cannot represent; None for every other error."""
    names = sys.getfilesystemencoding()
    if not isinstance(error, UnicodeEncodeError) or encodes_unicode(names) or codecs.lookup(names) != codecs.lookup(error.encoding):
        return None
    lacking = error.object[error.start : error.end]
    return UserError(
        f"the name {error.object!r} cannot be used: this locale encodes file names as {names}, which has no {lacking!r}; "
        "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    )


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Letters are spelled out (`\\u81ea`), so that names stay distinct. Symbols and punctuation become question
    marks of the same width, so that lines keep their length."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join("?" if unicodedata.category(one)[0] in "PSZ" else _spelled(one) for one in lacking), error.end


def _spelled(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode()
