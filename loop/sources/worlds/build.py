"""The source of a set of an embedded world, from a config or from a text such as `drawings:styles=noto,seed=7,num_images=100`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from loop.config.sets import DrawingsSet, ShapesSet
from loop.errors import UserError
from loop.sources.drawings.houses import SHIPPED, check_houses, house_names
from loop.sources.drawings.source import DrawingsImages
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.source import WorldImages

EXAMPLES = {
    "shapes": "shapes:seed=7,num_images=100,max_shift=0.2",
    "drawings": "drawings:styles=noto+twemoji,seed=7,num_images=100",
}
"""A text for a set of each world."""
_SETS = {"shapes": ShapesSet, "drawings": DrawingsSet}


def build_world(spec: ShapesSet | DrawingsSet) -> WorldImages[Any]:
    """The images of a set.

    Raises:
        UserError: the folder of drawings lacks a house, or a house's drawings cannot be used.
    """
    if isinstance(spec, ShapesSet):
        return ShapesImages(spec.seed, spec.min_shift, spec.max_shift, spec.num_images, spec.habit)
    folder = spec.path or SHIPPED
    check_houses(folder, spec.styles)
    return DrawingsImages(spec.seed, spec.styles, spec.num_images, folder, spec.habit)


def names_world(text: str) -> bool:
    """Whether a text names a world, with or without keys."""
    return text.partition(":")[0] in EXAMPLES


def parse_world(text: str, option: str, **defaults: Any) -> ShapesSet | DrawingsSet:
    """The set in a text: the world, then keys of a config's set with commas between them; several `styles` have a plus between them.

    Args:
        text: as a command is given it.
        option: of the command, for errors.
        defaults: values of keys that the text may leave out; the shifts of `shapes` are 0.

    Raises:
        UserError: the text is invalid.
    """
    world, _, given = text.partition(":")
    keys: dict[str, Any] = {**({"min_shift": 0.0, "max_shift": 0.0} if world == "shapes" else {"kind": world}), **defaults}
    for part in filter(None, given.split(",")):
        name, _, value = part.partition("=")
        keys[name.strip()] = value.strip().split("+") if name.strip() == "styles" else value.strip()
    try:
        return _SETS[world].model_validate(keys)
    except ValidationError as error:
        findings = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"{option} is {text!r}: {findings}; expected, for example, {EXAMPLES[world]}") from error


def named_images(text: str, option: str) -> WorldImages[Any]:
    """The images of a world by their names: any image that questions name can be opened. Of drawings, those of the houses `styles`, by
    default all of the folder `path`.

    Raises:
        UserError: the text is invalid, or a house's drawings cannot be used.
    """
    defaults: dict[str, Any] = {"seed": 0, "num_images": 1}
    if text.startswith("drawings") and "styles=" not in text:
        path = parse_world(text, option, **defaults, styles=("any",)).model_dump()["path"]
        defaults["styles"] = tuple(house_names(path or SHIPPED))
    return build_world(parse_world(text, option, **defaults))
