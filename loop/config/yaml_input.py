"""Read untrusted YAML: plain values only, within bounds that are checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import yaml

from loop.errors import one_line

MAX_BYTES = 1 << 18
"""Largest document: a hundred times the recipe."""
MAX_DEPTH = 40
"""Deepest nesting of mappings and lists."""
_MAX_NODES = 20_000
"""Most values in a document. Values behind an alias count at every use: a few lines of aliases and merge keys can expand to billions."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAX_INTEGER = (1 << 63) - 1
_CONSTRUCTION_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML's constructors raise on invalid tags, numbers and dates."""


class YamlInputError(ValueError):
    """A text is not YAML of plain values within the bounds. The message is one line."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text: mappings with text keys, lists, text, integers, finite numbers, booleans and null.

    Raises:
        YamlInputError: it is anything else, too large, or nested too deeply.
    """
    if len(text) > MAX_BYTES:
        raise YamlInputError(f"it is larger than {MAX_BYTES} bytes")
    try:
        value = _construct(text)
    except RecursionError as error:
        raise YamlInputError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise YamlInputError(one_line(error)) from error
    except _CONSTRUCTION_ERRORS as error:
        if isinstance(error, YamlInputError):
            raise
        raise YamlInputError(f"a number, date or tag cannot be read ({type(error).__name__}: {one_line(error)})") from error
    _check_plain(value)
    return value


class _BoundedLoader(yaml.SafeLoader):
    """Enforces the bounds while it reads: scanning half a million brackets would take hours."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._num_nodes += 1
        _refuse_beyond(self._num_nodes, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
        return node


def _construct(text: str) -> Any:
    loader = _BoundedLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_beyond(num_nodes: int, depth: int) -> None:
    if num_nodes > _MAX_NODES:
        raise YamlInputError(f"it holds more than {_MAX_NODES} values, those behind aliases included")
    if depth > MAX_DEPTH:
        raise YamlInputError(f"it is nested more than {MAX_DEPTH} levels deep")


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a mapping with a repeated key: PyYAML would silently take the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
            if key.value in seen:
                where = f"the second time on line {key.start_mark.line + 1}"
                raise YamlInputError(f"the key {key.value[:80]!r} appears twice in one mapping, {where}; keep one of them")
            seen.add(key.value)


def _check_extent(root: yaml.Node) -> None:
    measured: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Number of values in a node, and of levels below it."""
        if id(node) in open_nodes:
            raise YamlInputError("a value contains itself")
        if id(node) not in measured:
            open_nodes.add(id(node))
            inner = [measure(child) for child in _children(node)]
            open_nodes.remove(id(node))
            measured[id(node)] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        return measured[id(node)]

    _refuse_beyond(*measure(root))


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (one for pair in node.value for one in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise YamlInputError(f"the key {str(key)[:80]!r} is not text; put it in quotes")
            _check_plain(key)
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise YamlInputError(f"the text {value[:80]!r} is not valid Unicode: it holds half of a character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise YamlInputError(f"the number {value} is not finite")
    elif isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise YamlInputError(f"the number of {value.bit_length()} bits is out of range")
    elif value is not None:
        raise YamlInputError(f"the value {str(value)[:80]!r} is a {type(value).__name__}; put it in quotes if it is meant as text")
