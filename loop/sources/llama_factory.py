"""Labelled data of LLaMA-Factory: a JSON file as `dataset_info.json` describes it, with names of its own for columns and roles.

    {"NAME": {"file_name": "data.json", "formatting": "sharegpt",
              "columns": {"messages": "dialog", "images": "photos", "system": "role_prompt"},
              "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "person", "assistant_tag": "model"}}}

`formatting` is `sharegpt` or `alpaca` (the default), and columns and tags have LLaMA-Factory's defaults. A record has images only if the
description names their column. Data for preferences, and data on a hub, are refused; `num_samples` is not applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loop.errors import UserError, one_line, printable
from loop.sources.labelled import Conversation, Turns
from loop.sources.llava_json import LlavaJsonData, joined, paired_turns
from loop.sources.reading.chats import MESSAGES
from loop.sources.reading.odd_records import OddRecords, OnBadRecord
from loop.sources.reading.places import ACCESS_ERRORS, Place
from policies.checks import did_you_mean
from policies.texts import decoded_text

DATASET_INFO = "dataset_info.json"
_ON_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
"""Columns that a description need not name."""
_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}
_KEPT = ("id", "type")
_MEDIA = ("videos", "audios")


class LlamaFactoryData(LlavaJsonData):
    """Questions and answers of one dataset of a `dataset_info.json`."""

    what, holds = "LLaMA-Factory file", "a conversation"

    def __init__(
        self, path: str | Path, dataset: str | None = None, images: str | Path | None = None, turns: Turns = "pairs",
        on_bad_record: OnBadRecord = "refuse",
    ) -> None:  # fmt: skip
        """Args:
            path: `dataset_info.json` or the folder that holds it, or a URI of either.
            dataset: name of the dataset; None if there is one alone.
            images: the folder that images are relative to (`media_dir`); None for that of `dataset_info.json`.
            turns: what a VIC sample is.
            on_bad_record: whether records that cannot be used are refused, all of them at once, or left out and counted.

        Raises:
            UserError: the description or its file cannot be read, the dataset is of another kind, or as for `LlavaJsonData`.
        """
        place = Place.of(path, "LLaMA-Factory data")
        folder, name = (place.parent, place.name) if place.is_file() else (place, DATASET_INFO)
        where, found = f"{folder.address}/{name}", _descriptions(folder, name)
        description = _chosen(found, dataset, where)
        self._formatting = description.get("formatting", "alpaca")
        self._columns = {**_COLUMNS, **_texts(description, "columns", where)}
        self._tags = {**_TAGS, **_texts(description, "tags", where)}
        super().__init__(f"{folder.address}/{_file_name(description, where)}", images or folder.address, turns, on_bad_record)

    def _conversation(self, index: int, entry: dict[str, Any], where: str, odd: OddRecords) -> Conversation:
        turns = self._of_sharegpt(entry) if self._formatting == "sharegpt" else self._of_alpaca(entry, where)
        others = {name: self._column(entry, name) for name in (*_MEDIA, "images", "system")}
        kept = {name: entry[name] for name in _KEPT if name in entry}
        return super()._conversation(index, {**kept, **others, MESSAGES.list_name: turns}, where, odd)

    def _column(self, entry: Mapping[str, Any], name: str) -> Any:
        column = self._columns.get(name)
        return None if column is None else entry.get(column)

    def _of_sharegpt(self, entry: Mapping[str, Any]) -> Any:
        """The turns with the roles of `MESSAGES`. What is no turn stays as it is, and is refused by the reader of turns."""
        turns = self._column(entry, "messages")
        return [self._turn(turn) if isinstance(turn, dict) else turn for turn in turns] if isinstance(turns, list) else turns

    def _turn(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        roles = {self._tags["user_tag"]: MESSAGES.user, self._tags["assistant_tag"]: MESSAGES.assistant, self._tags["system_tag"]: "system"}
        role = turn.get(self._tags["role_tag"])
        known = roles.get(role, role) if isinstance(role, str) else role
        return {MESSAGES.speaker: known, MESSAGES.text: turn.get(self._tags["content_tag"])}

    def _of_alpaca(self, entry: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        question = joined(self._column(entry, "prompt"), self._column(entry, "query"))
        return paired_turns(self._column(entry, "history"), question, self._column(entry, "response"), where)


def _descriptions(folder: Place, name: str) -> dict[str, Any]:
    try:
        with folder.open(name) as stream:
            found = json.loads(decoded_text(stream.read()))
    except (*ACCESS_ERRORS, RecursionError) as error:
        raise UserError(
            f"LLaMA-Factory's {folder.address}/{name} cannot be read: {printable(one_line(error))}; expected dataset_info.json"
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
        raise UserError(f"{folder.address}/{name} describes no datasets; expected {{NAME: {{file_name: ..., columns: ...}}}}")
    return found


def _chosen(found: Mapping[str, dict[str, Any]], dataset: str | None, where: str) -> dict[str, Any]:
    """The description of the dataset."""
    names = ", ".join(map(printable, list(found)[:10])) + (", ..." if len(found) > 10 else "")
    if dataset is None and len(found) > 1:
        raise UserError(f"{where} describes {len(found)} datasets; name one with `dataset`: {names}")
    name = next(iter(found)) if dataset is None else dataset
    if name not in found:
        raise UserError(f"{where} describes no dataset {printable(name)!r}; there are {names}{did_you_mean(name, found)}")
    return found[name]


def _file_name(description: Mapping[str, Any], where: str) -> str:
    """The name of the data file, checked to be of a kind that holds questions and answers."""
    if on_hub := next((name for name in _ON_HUBS if description.get(name)), None):
        raise UserError(f"{where}: the dataset is at {on_hub} {description[on_hub]!r:.80}; download it, and describe it with file_name")
    if description.get("ranking"):
        raise UserError(f"{where}: the dataset holds preferences (ranking); expected questions with one answer each")
    if (formatting := description.get("formatting", "alpaca")) not in ("alpaca", "sharegpt"):
        raise UserError(f"{where}: formatting is {formatting!r:.80}; expected alpaca or sharegpt")
    name = description.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: file_name is {name!r:.80}; expected the name of a JSON file beside it")
    if not name.endswith((".json", ".jsonl")):
        hint = "; take the kind messages for Parquet files with images" if name.endswith(".parquet") else ""
        raise UserError(f"{where}: file_name is {printable(name)!r}; expected a .json or .jsonl file{hint}")
    return name


def _texts(description: Mapping[str, Any], name: str, where: str) -> dict[str, str]:
    """The object `name` of a description, text to text."""
    given = description.get(name) or {}
    if not isinstance(given, dict) or not all(isinstance(one, str) for one in given.values()):
        raise UserError(f"{where}: {name} is {given!r:.80}; expected an object of texts")
    return given
