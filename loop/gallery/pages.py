"""Write the pages of a report from templates. Everything that comes from a run is escaped.

A page is one file. Its policy of content allows pictures inside the page and its own style sheet and script, which it knows by their
hashes, and nothing else: even markup that was not escaped could neither run nor fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loop.gallery.charts import HEIGHT, WIDTH
from loop.gallery.folder import MARK, page_name
from loop.gallery.samples import shown
from policies.counts import rejections

MISSING = "\u2013"  # an en dash
_TEMPLATES = "templates"


def environment() -> Environment:
    """The templates with what they share."""
    found = Environment(
        loader=PackageLoader("loop.gallery", _TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (_asset(name) for name in ("gallery.css", "gallery.js"))
    found.globals |= {"style": Markup(style), "script": Markup(script), "policy": _content_policy(style, script), "mark": Markup(MARK)}
    found.globals |= {"width": WIDTH, "height": HEIGHT, "page_name": page_name, "missing": MISSING, "rejections": rejections}
    found.filters |= {"percent": percent, "points": points, "signed": signed, "words": _words, "utc": _utc, "shown": shown}
    return found


def write_page(templates: Environment, template: str, path: Path, values: Mapping[str, Any]) -> None:
    """Render a template into a file, piece by piece."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(templates.get_template(template).generate(**values))


def _asset(name: str) -> str:
    return (Path(__file__).parent / _TEMPLATES / name).read_text(encoding="utf-8")


def _content_policy(style: str, script: str) -> str:
    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; img-src data:; style-src {hashed(style)}; script-src {hashed(script)}; base-uri 'none'; form-action 'none'"


def percent(share: float | None, digits: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of shares in points."""
    return signed(100 * share, 1)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, if it does not round to zero."""
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "\u2212")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %Y, %H:%M UTC")
