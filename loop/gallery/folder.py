"""The folder of a report: it appears whole, and replaces nothing but an earlier report."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from loop.errors import UserError

INDEX = "index.html"
MARK = '<meta name="generator" content="vigc report">'
"""Line of an index by which an earlier report is recognised."""
_PAGE = re.compile(r"round-\d{4,}\.html")
_MARK_WITHIN = 4000
"""Characters of an index in which the mark is looked for."""


def page_name(round: int) -> str:
    return f"round-{round:04d}.html"


def check_folder(folder: Path) -> None:
    """Raises `UserError` if the folder is neither new, nor empty, nor an earlier report and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; expected a new folder, or one with an earlier report")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name != INDEX and not _PAGE.fullmatch(name)]
    if INDEX in found and not _is_marked(folder / INDEX):
        others.append(INDEX)
    elif found and INDEX not in found:
        others = found
    if others:
        raise UserError(
            f"--out {folder} holds {others[0]!r}, which is not of an earlier report; a report replaces only an earlier one: "
            "choose a new folder, or move the files"
        )


def _is_marked(index: Path) -> bool:
    with index.open(encoding="utf-8", errors="replace") as stream:
        return MARK in stream.read(_MARK_WITHIN)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to write into. It takes the place of `folder` if the block succeeds, and is deleted otherwise.

    Raises:
        UserError: `check_folder` refuses the folder, or it cannot be written.
    """
    folder = folder.resolve()
    tmp, old = (folder.with_name(f".{folder.name}.{uuid4().hex}.{kind}") for kind in ("tmp", "old"))
    try:
        check_folder(folder)
        tmp.mkdir(parents=True)
        yield tmp
        if folder.exists():
            folder.rename(old)
        tmp.rename(folder)
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error}; choose an --out that you can write to") from error
    finally:
        for left in (tmp, old):
            shutil.rmtree(left, ignore_errors=True)
