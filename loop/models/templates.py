"""The chat templates in `loop/recipes`, for models that are published without one."""

from __future__ import annotations

from pathlib import Path

from loop.errors import UserError, one_line

_FOLDER = Path(__file__).parents[1] / "recipes"
_PROPOSED = {"blip-2": "minigpt4", "instructblip": "instructblip", "llava": "llava", "llava_next": "llava"}
"""Templates for model types whose published models have a common form."""


def template_names() -> list[str]:
    """The names of the templates that come with this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def read_template(name_or_file: str) -> str:
    """The text of a template, by the name of one in `loop/recipes` or by the path of a Jinja file.

    Raises:
        UserError: there is neither, or the file cannot be read.
    """
    path = _FOLDER / f"{name_or_file}.jinja" if name_or_file in template_names() else Path(name_or_file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the chat template {name_or_file}: {one_line(error)}; give a Jinja file, or one of {', '.join(template_names())}"
        ) from error


def template_remedy(model: str, model_type: str) -> str:
    """How a model of this type gets a chat template."""
    proposed = _PROPOSED.get(model_type)
    source = proposed or "FILE.jinja"
    known = "" if proposed else ", with the template that the model was trained with"
    return f"write a copy with one{known}: `vigc fetch {model} --out FOLDER --chat-template {source}`"
