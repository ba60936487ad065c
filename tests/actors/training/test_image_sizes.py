"""Photos of several sizes in one batch: padding their pixels changes no loss."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from actors.processors import load_processor
from actors.training.batches import BatchBuilder, _joined
from actors.training.checkpoint import load_model
from actors.training.inputs.encoding import ConversationEncoder
from actors.training.job import Hyperparameters
from actors.training.pixels import Augmentation, PixelReader
from loop.sources.shapes.render import render
from loop.sources.shapes.scene import image_id, scene_of
from policies.records import TrainingSample
from tests.actors.engines.tiled_models import save_llava_next, save_pixtral

SIZES = {"wide": (96, 40), "tall": (48, 112), "square": (64, 64)}
SAMPLES = [(index, TrainingSample(name, (("What is at the center?", "There is a red ring."),))) for index, name in enumerate(SIZES)]


class Photos:
    """Pictures of several sizes."""

    def image_ids(self) -> list[str]:
        return list(SIZES)

    def open(self, image_id_: str) -> Image.Image:
        return render(scene_of(image_id(1, len(image_id_), 0.1))).resize(SIZES[image_id_])


@pytest.mark.parametrize("save", [save_llava_next, pytest.param(save_pixtral, marks=pytest.mark.skipif(
    find_spec("torchvision") is None, reason="its processor needs torchvision: make install"))])  # fmt: skip
def test_a_batch_has_the_loss_of_its_rows(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    folder = save(tmp_path / "model")
    model, processor = load_model(folder).eval(), load_processor(folder)
    hyper = Hyperparameters(3, 1, 1e-3)
    reader = PixelReader(processor.image_processor, Photos())
    builder = BatchBuilder(ConversationEncoder(processor, 512), reader, Augmentation(hyper, processor.image_processor, 0), 0)

    def loss(samples: list[tuple[int, TrainingSample]]) -> tuple[float, int]:
        batch = builder.build(samples, 0)
        with torch.inference_mode():
            found: Any = model(**batch.inputs, labels=batch.labels)
        return float(found.loss), batch.num_target_tokens

    rows = [loss([sample]) for sample in SAMPLES]
    together, num_tokens = loss(SAMPLES)
    assert len({round(one, 4) for one, _ in rows}) == 3
    assert together * num_tokens == pytest.approx(sum(one * count for one, count in rows), rel=1e-4)


def test_tensors_whose_sizes_nothing_tells_are_refused() -> None:
    pixels = [{"pixel_values": torch.ones(1, 3, size, 8)} for size in (8, 16)]
    with pytest.raises(ValueError, match=r"images of one batch do not fit together.*max_micro_batch_tokens"):
        _joined(pixels)
    masks = [{**one, "pixel_attention_mask": torch.ones(1, size, 8)} for one, size in zip(pixels, (8, 16), strict=True)]
    joined = _joined(masks)
    assert (joined["pixel_values"].shape, joined["pixel_attention_mask"].sum().item()) == ((2, 3, 16, 8), 64 + 128)
