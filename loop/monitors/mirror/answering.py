"""The model that MLflow loads for a checkpoint of a run: answers questions about images. MLflow's flavor is `python_function`.

The input is a table with the columns `image` (a path, or the file's bytes in base64) and `question`; the output is a list of answers.
Loading needs this package, and reads the checkpoint where the run has it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from actors.engines.base import Request, Sampling
from loop.errors import UserError
from loop.store.reading import RUN
from loop.store.run_store import Store

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "checkpoint.json"
UNAVAILABLE = "pruned"
"""Stands for the checkpoint of a model whose weights the run has deleted."""
_FOLDER = "/checkpoints/"
_MAX_NEW_TOKENS = 64


class Answerer:
    """Answers questions about images greedily."""

    def __init__(self, checkpoint: Path) -> None:
        from actors.engines.transformers import TransformersEngine

        self._engine = TransformersEngine(checkpoint)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """One answer a row. `params` may set `max_new_tokens`.

        Raises:
            UserError: a column is missing, or an image cannot be read.
        """
        if missing := {"image", "question"} - set(model_input.columns):
            raise UserError(f"the input lacks the column {sorted(missing)[0]}; give a table with the columns image and question")
        requests = [Request(_image(str(image)), str(question)) for image, question in zip(*_columns(model_input), strict=True)]
        sampling = Sampling(int((params or {}).get("max_new_tokens", _MAX_NEW_TOKENS)))
        return [done.text for done in self._engine.complete(requests, sampling)]


def _columns(table: pd.DataFrame) -> tuple[list[Any], list[Any]]:
    return table["image"].tolist(), table["question"].tolist()


def _load_pyfunc(path: str) -> Answerer:
    """MLflow calls this with the path of the reference."""
    return Answerer(checkpoint_of(json.loads(Path(path).read_text())["checkpoint"]))


def checkpoint_of(uri: str) -> Path:
    """The checkpoint folder of a run on this machine, verified; behind a URI, a copy. Other checkpoints are read where they are.

    Raises:
        UserError: it is gone.
        StoreError: it has been deleted since, or is damaged.
    """
    if uri == UNAVAILABLE:
        raise UserError("the weights of this model were pruned before it was logged; keep more checkpoints with retention.keep_last")
    place = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
    run, _, name = place.rpartition(_FOLDER)
    if uri.startswith("file://") and not (run and (Path(run) / RUN).exists()):
        if not Path(place).is_dir():
            raise UserError(f"the checkpoint {place} of this model does not exist; restore it, or train the model again")
        return Path(place)
    return Store.open(run).local_checkpoint(f"checkpoints/{name}")


def _image(given: str) -> Image.Image:
    """An image in a file or in base64."""
    try:
        source: Any = given if len(given) < 4096 and Path(given).is_file() else io.BytesIO(base64.b64decode(given, validate=True))
        return Image.open(source).convert("RGB")
    except (OSError, binascii.Error, ValueError) as error:
        raise UserError(f"the image {given[:80]!r} cannot be read: {error}; give the path of an image or its bytes in base64") from error
