"""Photos of other people with their captions, where `../shared/data` has them, and a small model that learned a little of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from actors.training.core import run_local
from actors.training.job import Hyperparameters, TrainingJob
from loop.models.seed.model import build_model, build_processor, vocabulary_of
from loop.sources.llava_json import LlavaJsonData
from policies.generation.instructions import TRAINING_INSTRUCTIONS
from tests.paths import DATA

NUM_SEED_PHOTOS = 46
_SIZE = 96
QUESTIONS = (
    "What is in the picture?",
    "What does the photo show?",
    "Describe the photo.",
    "What can you see here?",
    "What is this a photo of?",
)


def captions() -> dict[str, list[str]]:
    """File name of a photo -> its five captions."""
    if not (DATA / "coco" / "captions.json").exists():
        pytest.skip(f"there are no photos in {DATA}")
    content = json.loads((DATA / "coco" / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[str]] = {}
    for one in content["annotations"]:
        found.setdefault(names[one["image_id"]], []).append(" ".join(one["caption"].split()))
    return found


def write_sets(folder: Path) -> None:
    """`seed.json` and `dev.json` in LLaVA's format about different photos, which lie in `images/`, small, as the model sees them; those in
    `photos/` have no label."""
    by_photo = sorted(captions().items())
    (folder / "images").mkdir()
    (folder / "photos").mkdir()
    for number, (photo, _) in enumerate(by_photo):
        with Image.open(DATA / "photos" / photo) as image:
            image.thumbnail((_SIZE, _SIZE))
            image.save(folder / "images" / photo)
            if number < NUM_SEED_PHOTOS and number % 3 == 0:
                image.save(folder / "photos" / photo)
    for name, chosen in (("seed", by_photo[:NUM_SEED_PHOTOS]), ("dev", by_photo[NUM_SEED_PHOTOS:])):
        (folder / f"{name}.json").write_text(json.dumps(list(_entries(chosen))))


def _entries(by_photo: list[tuple[str, list[str]]]) -> Iterator[dict[str, Any]]:
    for photo, texts in by_photo:
        for number, (question, caption) in enumerate(zip(QUESTIONS, texts, strict=False)):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": caption}]
            yield {"id": f"{photo}-{number}", "image": photo, "conversations": turns}


def train_model(folder: Path, num_steps: int) -> Path:
    """A LLaVA of the embedded model's anatomy over the captions' words, trained for so many steps on the seed set."""
    torch.manual_seed(0)
    texts = [caption for of in captions().values() for caption in of]
    texts += [*QUESTIONS, "USER: ASSISTANT: Question: Answer:", *(text for options in TRAINING_INSTRUCTIONS.values() for text in options)]
    vocabulary = vocabulary_of(texts)
    build_model(vocabulary).save_pretrained(folder / "untrained")
    build_processor(vocabulary).save_pretrained(folder / "untrained")
    source = LlavaJsonData(folder / "seed.json", folder / "images")
    hyper = Hyperparameters(batch_size=16, num_steps=num_steps, learning_rate=1e-3)
    run_local(TrainingJob(folder / "untrained", folder / "model", source.training_samples(16 * num_steps, seed=1), 1, hyper), source)
    return folder / "model"
