"""MkDocs hooks: reference pages from the code, and pages for the files of the repository that documents link to.

Links in `docs/` are relative paths in the repository, which work where its Markdown is shown as it is. A link that leaves `docs/`, such as
`../loop/recipes/shapes.yaml`, gets a page of the site with the content of that file, below `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from loop.cli import app
from loop.config.reference import key_tables, policy_rows

ROOT = Path(__file__).parents[1]
_DOCS = "docs"
_REPOSITORY = "repository"
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
"""A link or an image with a relative target; what has a scheme or is only an anchor does not match."""
_PLACE = re.compile(r"<!-- generated: (\w+) -->")
_LANGUAGES = {"py": "python", "sh": "bash", "yml": "yaml", "jinja": "jinja"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file of the repository that a document links to, and for what these link to."""
    waiting = [f"{_DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    for path in waiting:
        if not path.endswith(".md"):
            continue
        for target in _targets(path):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
                if not target.startswith(f"{_DOCS}/"):
                    files.append(File.generated(config, _in_site(target), content=_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the reference, and point links to the pages that `on_files` has added."""
    here = page.file.src_uri
    source = here.removeprefix(f"{_REPOSITORY}/") if here.startswith(f"{_REPOSITORY}/") else f"{_DOCS}/{here}"
    if source.endswith(".md"):
        markdown = _LINK.sub(lambda link: link[1] + _link(source, here, link[2]) + link[3], markdown)
    return _PLACE.sub(lambda place: _REFERENCE[place[1]](), markdown)


def _targets(path: str) -> Iterator[str]:
    """The files of the repository that a document links to, as paths from its root; a folder stands for its README."""
    for link in _LINK.finditer((ROOT / path).read_text(encoding="utf-8")):
        target = _target(path, link[2])
        if (ROOT / target).is_file():
            yield target


def _target(path: str, link: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return f"{target}/README.md" if (ROOT / target).is_dir() else target


def _in_site(target: str) -> str:
    """Where the site has a file of the repository."""
    if target.startswith(f"{_DOCS}/"):
        return target.removeprefix(f"{_DOCS}/")
    return f"{_REPOSITORY}/{target}" if target.endswith(".md") else f"{_REPOSITORY}/{target}.md"


def _link(source: str, here: str, link: str) -> str:
    """A link of the document `source` of the repository, for its page `here`. What does not exist stays, and is reported by MkDocs."""
    target = _target(source, link)
    return posixpath.relpath(_in_site(target), posixpath.dirname(here)) if (ROOT / target).is_file() else link


def _page(target: str) -> str:
    """A file of the repository as a page: Markdown as it is, other text as code."""
    text = (ROOT / target).read_text(encoding="utf-8")
    if target.endswith(".md"):
        return text
    suffix = target.rpartition(".")[2]
    return f"# {target}\n\n````{_LANGUAGES.get(suffix, suffix if suffix in ('yaml', 'json') else 'text')}\n{text}\n````\n"


def _config() -> str:
    return "\n".join(f"## {_capital(title)}\n\n{_rows(('key', 'default', 'meaning'), rows)}" for title, rows in key_tables())


def _policies() -> str:
    places = groupby(policy_rows(), key=itemgetter(0))
    return "\n".join(f"## {where}\n\n{_rows(('policy', 'meaning'), (row[1:] for row in rows))}" for where, rows in places)


def _commands() -> str:
    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="vigc")
    return "\n".join(get_docs_for_click(obj=group.commands[name], ctx=context, indent=1, call_prefix="vigc") for name in group.commands)


_REFERENCE = {"config": _config, "policies": _policies, "commands": _commands}
"""What stands in the place of `<!-- generated: NAME -->`."""


def _rows(titles: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table, with code in all columns but the one of the meaning."""
    lines = [_line(titles), _line("---" for _ in titles)]
    lines += [_line(_escaped(cell) if title == "meaning" else _code(cell) for title, cell in zip(titles, row, strict=True)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterator[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _escaped(text: str) -> str:
    """Text in which only backticks are markup."""
    return re.sub(r"`[^`]*`|[|<*_\[\]]", lambda found: found[0] if found[0].startswith("`") else f"\\{found[0]}", text)


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
