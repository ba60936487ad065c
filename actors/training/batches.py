"""Batches encoded conversations with their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from actors.images import BadImageError
from actors.training.inputs.encoding import IGNORED, BadSampleError, ConversationEncoder, EncodedText
from actors.training.inputs.skips import Skip, SkipReason
from actors.training.pixels import Augmentation, ImageInputs, PixelReader
from policies.records import TrainingSample

_PAD_MULTIPLE = 8
_TELL_SIZES = ("image_sizes", "pixel_attention_mask")
"""Inputs by which models know what of padded pixels is the image: LLaVA-NeXT, LLaVA-OneVision and Pixtral; Idefics3 and SmolVLM."""
_QUESTION_PAD_ID = 0  # masked, so any id of the Q-Former's vocabulary works; the language model's pad id may be outside it
_EXAMPLE_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch."""

    inputs: Mapping[str, torch.Tensor]
    """The model's arguments: `input_ids` and `attention_mask` [rows, tokens], the image processor's tensors, for some models
    `mm_token_type_ids` or `token_type_ids` [rows, tokens] or `cross_attention_mask` [rows, tokens, images, tiles], and for a Q-Former
    `qformer_input_ids` and `qformer_attention_mask` [rows, question tokens]."""
    labels: torch.Tensor
    """[rows, tokens]"""
    num_target_tokens: int
    """Labels that are predicted and are not `IGNORED`."""


@dataclass(frozen=True, slots=True)
class Row:
    """A sample, read and encoded."""

    position: int
    """Position in the global batch."""
    text: EncodedText
    images: tuple[ImageInputs, ...]
    skip: Skip | None = None
    """Why text and images are placeholders for a bad sample; `None` for a good one."""

    @property
    def width(self) -> int:
        """Tokens of the row when padded alone."""
        return _padded_length(len(self.text.ids))


class BatchBuilder:
    """Builds batches from the samples of one rank."""

    def __init__(self, encoder: ConversationEncoder, reader: PixelReader, augmentation: Augmentation, pad_id: int) -> None:
        self._encoder = encoder
        self._reader = reader
        self._augmentation = augmentation
        self._pad_id = pad_id

    def rows(self, samples: Iterable[tuple[int, TrainingSample]], step: int) -> list[Row]:
        """Encode `(position in the global batch, sample)` as rows. The row of a bad sample has no loss.

        Raises:
            ValueError: augmentation does not fit the images' tensors.
        """
        return [self._augmented(row, step) for row in self.plain_rows(samples)]

    def plain_rows(self, samples: Iterable[tuple[int, TrainingSample]]) -> list[Row]:
        """`rows` without augmentation."""
        return [self._row(position, sample) for position, sample in samples]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Collate rows into a batch; see also `with_image`.

        Raises:
            ValueError: the images' tensors do not fit together.
        """
        rows = self.with_image(rows)
        inputs, labels = collate([row.text for row in rows], self._pad_id)
        inputs.update(_joined([image.tensors for row in rows for image in row.images]))
        if self._encoder.cross_attention_token is not None:
            sees = (inputs["input_ids"] == self._encoder.cross_attention_token).cumsum(1).bool()
            inputs["cross_attention_mask"] = sees[..., None, None] * inputs["aspect_ratio_mask"][:, None]
        return Batch(inputs, labels, int((labels[:, 1:] != IGNORED).sum()))

    def with_image(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows, and if none has an image, one about a blank image without a loss: every rank must run the same modules."""
        return rows if any(row.images for row in rows) else [*rows, self._placeholder(rows[0].position)]

    def row_about(self, turns: Sequence[tuple[str, str]], image: Image.Image) -> Row:
        """The row of a conversation about an image that is in no source, without augmentation."""
        inputs = self._reader.inputs_of([image])
        return Row(0, self._encoder.encode(turns, *inputs.sizes), (inputs,))

    def build(self, samples: Iterable[tuple[int, TrainingSample]], step: int) -> Batch:
        """`rows`, then `batch`; raises what they do."""
        return self.batch(self.rows(samples, step))

    def _row(self, position: int, sample: TrainingSample) -> Row:
        try:
            images = self._reader.read_all(sample.images)
            return Row(position, self._encoder.encode(sample.turns, *(size for image in images for size in image.sizes)), images)
        except BadImageError as error:
            skip = Skip(SkipReason.BAD_IMAGE, error.reason, error.where)
        except BadSampleError as error:
            skip = Skip(error.reason, f"{', '.join(sample.images) or 'no image'}: {error.message}, in {_shortened(sample)}")
        return self._placeholder(position, skip)

    def _placeholder(self, position: int, skip: Skip | None = None) -> Row:
        """A row about a blank image, without a loss."""
        blank = self._reader.blank()
        text = self._encoder.encode((("?", "!"),), *blank.sizes)
        return Row(position, replace(text, labels=np.full_like(text.labels, IGNORED)), (blank,), skip)

    def _augmented(self, row: Row, step: int) -> Row:
        if not self._augmentation.is_on:
            return row
        images = []
        for place, image in enumerate(row.images):
            pixels = self._augmentation.apply(image.tensors["pixel_values"], step, row.position, place)
            images.append(replace(image, tensors={**image.tensors, "pixel_values": pixels}))
        return replace(row, images=tuple(images))


def _shortened(sample: TrainingSample) -> str:
    """The sample's text, shortened to one line."""
    return repr(shorten(" / ".join(text for turn in sample.turns for text in turn if text), _EXAMPLE_CHARACTERS, placeholder="..."))


def collate(texts: Sequence[EncodedText], pad_id: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """`input_ids` and `attention_mask`, and the labels, each [rows, tokens] padded on the right to a multiple of 8.

    Token kinds, if the model reads them, become the argument that `kinds_name` names. Questions for a Q-Former become
    `qformer_input_ids` and `qformer_attention_mask`, padded in the same way.
    """
    inputs = {
        "input_ids": _padded([text.ids for text in texts], pad_id),
        "attention_mask": _padded([np.ones_like(text.ids) for text in texts], 0),
    }
    questions = [text.question for text in texts if text.question is not None]
    if questions:
        inputs["qformer_input_ids"] = _padded(questions, _QUESTION_PAD_ID)
        inputs["qformer_attention_mask"] = _padded([np.ones_like(question) for question in questions], 0)
    kinds = [text.kinds for text in texts if text.kinds is not None]
    if kinds:
        inputs[texts[0].kinds_name] = _padded(kinds, 0)
    return inputs, _padded([text.labels for text in texts], IGNORED)


def _padded(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    """Rows of different lengths as one tensor [rows, tokens], int64."""
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), _padded_length(longest)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def _padded_length(num_tokens: int) -> int:
    return -(-num_tokens // _PAD_MULTIPLE) * _PAD_MULTIPLE


def _joined(images: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The images' tensors, one after the other. Tensors of several sizes are padded with zeros, if others tell the model which part of
    them is the image."""
    fitted = _same_size if any(name in images[0] for name in _TELL_SIZES) else list
    try:
        return {name: torch.cat(fitted([image[name] for image in images])) for name in images[0]}
    except (RuntimeError, KeyError) as error:
        shapes = sorted({(name, tuple(value.shape)) for image in images for name, value in image.items()})
        raise ValueError(
            f"images of one batch do not fit together, {shapes}: this image processor makes tensors of several sizes, and none of "
            f"{', '.join(_TELL_SIZES)} that tells them apart; set training.max_micro_batch_tokens so that a pass has one conversation"
        ) from error


def _same_size(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors padded at their ends with zeros, so that only their first dimensions differ."""
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    missing = [[wanted - size for wanted, size in zip(largest, tensor.shape[1:], strict=True)] for tensor in tensors]
    # `pad` takes pairs (before, after) from the last dimension on
    return [pad(tensor, [one for size in reversed(sizes) for one in (0, size)]) for tensor, sizes in zip(tensors, missing, strict=True)]
