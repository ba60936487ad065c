"""The files of a model: which of a folder are used, and where the folder of a hub id is."""

from __future__ import annotations

import os
from pathlib import Path

from actors.engines.errors import WeightMismatchError
from actors.training.job import RESULT_FILE
from loop.errors import UserError

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Files of a model: no pickles and no code, which are never loaded."""


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that are used and copied. Others are ignored, among them the notes of `vigc train`, which contain
    times.

    Raises:
        UserError: one is not a regular file, or links out of the folder (links into the store of Hugging Face's cache are allowed).
    """
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parents[1] / "blobs")
    found = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name != RESULT_FILE})
    for path in found:
        target = Path(os.path.realpath(path))
        if not target.is_file() or not any(target.is_relative_to(home) for home in homes):
            problem = "is not a regular file" if not target.is_file() else f"is a link to {target}, outside of the folder"
            raise UserError(f"{path.name} of model folder {str(folder)!r} {problem}; put the file itself there")
    return found


def downloaded(model: str) -> Path:
    """A local folder of the model: a hub id is fetched by the hub's client, only weights in safetensors."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=list(MODEL_FILES)))


def local_model(model: str) -> Path | None:
    """The folder of a model, its own or in Hugging Face's cache; `None` if it is not completely on this machine."""
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from actors.engines.weights import weight_files

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(MODEL_FILES), local_files_only=True))
        is_whole = all(file.exists() for file in weight_files(folder))
    except (LocalEntryNotFoundError, HFValidationError, WeightMismatchError):  # the second one: a path that is not an id
        return None
    return folder if is_whole else None
