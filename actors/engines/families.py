"""Model families: turn images and texts into the inputs of a language model.

An image is encoded once for all prompts; a prompt then combines the encoded image with the text. Families differ in how: LLaVA
inserts the vision tower's features into the text, Qwen-VL counts positions on three axes, and a Q-Former (InstructBLIP)
conditions its features on the text, so that only the vision tower's output can be cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from actors.engines.errors import UnfitModelError

_WITH_PLACEHOLDERS = ("llava", "qwen2_vl", "qwen2_5_vl")
"""Model types whose features replace image placeholders one by one."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """One image as encoded by its family."""

    tokens: torch.Tensor | None = None
    """[tokens, width] after the vision tower, and after the projector unless that reads text."""
    grid: torch.Tensor | None = None
    """Qwen-VL: [3], patches along time, height and width."""
    image: Image.Image | None = None
    """The image itself, if the model can only be run whole."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors, not of the image, which is kept anyway."""
        return 0 if self.tokens is None else self.tokens.numel() * self.tokens.element_size()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text about one image."""

    rendered: str
    """With the chat template and one image placeholder."""
    spoken: str
    """The user's text and the answer so far, which a Q-Former reads."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """A left-padded batch, ready for the first pass of the language model."""

    inputs: dict[str, Any]
    """Arguments other than mask and positions."""
    token_ids: torch.Tensor
    """[rows, tokens]"""
    attention_mask: torch.Tensor
    """[rows, tokens]"""
    position_ids: torch.Tensor
    """[rows, tokens], or [axes, rows, tokens] if positions have several axes."""


class Family(Protocol):
    """Encodes images and prompts for one loaded model."""

    @property
    def language_model(self) -> Any:
        """The module called for logits: first with `Prefill.inputs`, then with `input_ids` only."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Features of each image that do not depend on a text."""
        ...

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        """Combine each prompt with the features of its image."""
        ...


def family_of(model: Any, processor: Any) -> Family:
    """The family of a loaded model. An unknown model runs whole: correct, but its images are encoded for each prompt.

    Raises:
        UnfitModelError: an InstructBLIP whose language model is an encoder-decoder, or a model without an image token.
    """
    model_type = model.config.model_type
    if model_type == "instructblip":
        return QFormer(model, processor)
    return PlaceholderFamily(model, processor) if model_type in _WITH_PLACEHOLDERS else Whole(model, processor)


def image_token_id(model: Any) -> int:
    """The id of the token that is the placeholder of an image or of a part of one.

    Raises:
        UnfitModelError: the model's config has none.
    """
    found = getattr(model.config, "image_token_id", None)
    if found is None:
        raise UnfitModelError(
            f"the transformers engine cannot run this {model.config.model_type} model: its config has no image_token_id; use another model"
        )
    return int(found)


class PlaceholderFamily:
    """LLaVA and Qwen-VL: one image feature replaces each image placeholder of the text."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.language_model = model
        self._texts = _Texts(model, processor)
        self._processor = processor
        self._image_token_id = image_token_id(model)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        inputs = placed(self.language_model, self._processor.image_processor(images=list(images), return_tensors="pt"))
        features = self.language_model.get_image_features(**inputs, return_dict=True).pooler_output
        grids = inputs.get("image_grid_thw", [None] * len(images))
        return [ImageFeatures(tokens, grid) for tokens, grid in zip(features, grids, strict=True)]

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        tokens = [_tokens_of(feature) for feature in features]
        ids, mask = self._texts.encode([prompt.rendered for prompt in prompts], [len(rows) for rows in tokens])
        grids = [feature.grid for feature in features if feature.grid is not None]
        positions = self._positions_on_axes(ids, mask, torch.stack(grids)) if grids else _positions(mask)
        return Prefill(
            {"input_ids": ids, "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}},  # type: ignore[arg-type]
            ids,
            mask,
            positions,
        )

    def _positions_on_axes(self, ids: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Qwen-VL's rotary positions, [3, rows, tokens]."""
        kinds = (ids == self._image_token_id).int()
        positions, _ = self.language_model.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=grids.to(ids.device), attention_mask=mask
        )
        return positions


class QFormer:
    """InstructBLIP: for every text, the Q-Former reads the vision tower's features together with the text."""

    def __init__(self, model: Any, processor: Any) -> None:
        if not model.config.use_decoder_only_language_model:
            raise UnfitModelError("this InstructBLIP has an encoder-decoder language model; expected a decoder-only one (Vicuna, Llama)")
        self.language_model = model.language_model
        self._model = model
        self._processor = processor
        self._texts = _Texts(model, processor)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        inputs = placed(self._model, self._processor.image_processor(images=list(images), return_tensors="pt"))
        return [ImageFeatures(tokens) for tokens in self._model.vision_model(**inputs, return_dict=True).last_hidden_state]

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        queries = self._queries([prompt.spoken for prompt in prompts], torch.stack([_tokens_of(feature) for feature in features]))
        ids, mask = self._texts.encode([prompt.rendered for prompt in prompts], [queries.shape[1]] * len(prompts))
        embedded = self._model.get_input_embeddings()(ids)
        places = (ids == self._model.config.image_token_id)[..., None]
        return Prefill({"inputs_embeds": embedded.masked_scatter(places, queries.to(embedded.dtype))}, ids, mask, _positions(mask))

    def _queries(self, texts: Sequence[str], seen: torch.Tensor) -> torch.Tensor:
        """The Q-Former's output for each image, projected for the language model: [rows, query tokens, width]."""
        model = self._model
        asked = self._processor.qformer_tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        asked = placed(model, {"ids": asked["input_ids"], "mask": asked["attention_mask"]})
        queries = model.query_tokens.expand(len(texts), -1, -1)
        said = model.qformer(
            input_ids=asked["ids"],
            attention_mask=torch.cat([asked["mask"].new_ones(queries.shape[:2]), asked["mask"]], dim=1),
            query_embeds=queries,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            return_dict=True,
        )
        return model.language_projection(said.last_hidden_state[:, : queries.shape[1]])


class Whole:
    """Any other model: the processor prepares images and texts together, and the model's first pass reads both."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.language_model = model
        self._processor = processor

    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        return [ImageFeatures(image=image) for image in images]

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        inputs = self._processor(
            text=[prompt.rendered for prompt in prompts],
            images=[feature.image for feature in features],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        given = placed(self.language_model, inputs)
        mask = given.pop("attention_mask")
        return Prefill(given, given["input_ids"], mask, _positions(mask))


class _Texts:
    """Encodes texts as left-padded token ids and repeats the image placeholder for every feature."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._tokenizer = processor.tokenizer
        self._placeholder = self._tokenizer.convert_ids_to_tokens(image_token_id(model))

    def encode(self, texts: Sequence[str], num_features: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both [rows, tokens]."""
        whole = [self._expanded(text, count) for text, count in zip(texts, num_features, strict=True)]
        encoded = self._tokenizer(whole, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        return encoded["input_ids"].to(self._model.device), encoded["attention_mask"].to(self._model.device)

    def _expanded(self, text: str, num_features: int) -> str:
        """One placeholder per feature: in place of the text's, or before the text if it has none, as InstructBLIP's processor does."""
        features = self._placeholder * num_features
        return text.replace(self._placeholder, features, 1) if self._placeholder in text else features + text


def placed(model: Any, tensors: Any) -> dict[str, torch.Tensor]:
    """Move a processor's tensors to the model's device, and floating-point ones to its dtype."""
    return {
        name: tensor.to(model.device, model.dtype) if tensor.is_floating_point() else tensor.to(model.device)
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of the tokens without padding, [rows, tokens]; padding is at 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _tokens_of(features: ImageFeatures) -> torch.Tensor:
    assert features.tokens is not None, "features of this family have tokens"
    return features.tokens
