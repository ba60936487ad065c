"""Model families: turn images and texts into the inputs of a language model.

An image is encoded once for all prompts; a prompt then combines the encoded image with the text. Most families insert image features
into the text (`PlaceholderFamily`), BLIP-2 does so outside of its `forward`, and InstructBLIP's Q-Former conditions its features on the
text, so that only the vision tower's output can be cached. Any other model runs `Whole`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import chain
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import ProcessorMixin

from actors.engines.errors import UnfitModelError

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Arguments that say which tokens are an image's, for attention in both directions (Gemma) or for positions."""

_PER_TOKEN = ("cross_attention_mask",)
"""Arguments with one row for each token, whose last row holds for every new token (Mllama)."""

_PER_IMAGE = ("pooler_output", "deepstack_features")
_SHARED = ("visual_indicator_features",)
"""Fields of `get_image_features`'s outputs: some for each image (those of Qwen3-VL and others for each layer), some for all (Ovis2)."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """One image as encoded by its family."""

    text: str = ""
    """What the processor writes in place of the prompt's image placeholder."""
    outputs: Any = None
    """What `get_image_features` returns, without the fields that `forward` does not read."""
    grid: torch.Tensor | None = None
    """[3], patches along time, height and width, for families with positions on several axes."""
    tokens: torch.Tensor | None = None
    """[tokens, width], of a Q-Former or of what it reads."""
    image: Image.Image | None = None
    """The image itself, if the model can only be run whole."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors. An image without tensors is not worth caching."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in((self.outputs, self.tokens)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text about one image."""

    rendered: str
    """With the chat template and one image placeholder."""
    spoken: str
    """The user's text and the answer so far, which a Q-Former reads."""
    answer: str = ""
    """The answer so far, as it stands in `rendered`."""


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
    step_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further arguments of every later pass, each with one row per prompt."""


ENCODER_DECODER = "has an encoder-decoder language model; expected a decoder-only one (Vicuna, Llama)"


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
        UnfitModelError: a BLIP-2 or InstructBLIP whose language model is an encoder-decoder, or a model without an image token.
    """
    if model.config.model_type in _OTHERS:
        return _OTHERS[model.config.model_type](model, processor)
    takes_features = "mm_encoder_outputs" in signature(model.forward).parameters and not has_encoder_decoder(model.config)
    writes_placeholders = type(processor).replace_image_token is not ProcessorMixin.replace_image_token
    return PlaceholderFamily(model, processor) if takes_features and writes_placeholders else Whole(model, processor)


def has_encoder_decoder(config: Any) -> bool:
    """Whether the language model is an encoder-decoder, as Flan-T5 in some BLIP-2 and InstructBLIP, whose own config does not say so."""
    return config.is_encoder_decoder or not getattr(config, "use_decoder_only_language_model", True)


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
    """Most families: the processor writes placeholders for an image, and the model puts one image feature in place of each.

    The class knows no family. The processor says what it writes for an image, `get_image_features` encodes it, and `forward` takes the
    result as `mm_encoder_outputs`. Families with positions on several axes compute them by their own `get_rope_index`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.language_model = model
        self._processor = processor
        self._image_token_id = image_token_id(model)
        self._encoder = model.base_model.get_image_features
        self._encoder_inputs = signature(self._encoder).parameters
        self._rope_index = getattr(model.base_model, "get_rope_index", None)
        self._token_types = [name for name in _TOKEN_TYPES if name in signature(model.forward).parameters]

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        numbers: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            numbers.setdefault(image.size, []).append(number)
        found: dict[int, ImageFeatures] = {}
        for alike in numbers.values():
            found |= dict(zip(alike, self._encode_alike([images[number] for number in alike]), strict=True))
        return [found[number] for number in range(len(images))]

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        placeholder = self._processor.image_token
        texts = [prompt.rendered.replace(placeholder, seen.text, 1) for prompt, seen in zip(prompts, features, strict=True)]
        ids, mask = _tokenized(self._processor.tokenizer, texts, self.language_model.device)
        is_image = (ids == self._image_token_id).int()
        outputs = _joined([feature.outputs for feature in features])
        inputs = {"input_ids": ids, "mm_encoder_outputs": {"image": outputs}} | dict.fromkeys(self._token_types, is_image)
        return Prefill(inputs | self._further_inputs(ids, prompts), ids, mask, self._positions(ids, mask, is_image, features))

    def _further_inputs(self, ids: torch.Tensor, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Arguments of `forward` that replace or complete the usual ones."""
        return {}

    def _encode_alike(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        """Encode images of one size, for which every processor writes equal numbers of placeholders."""
        inputs = self._processor(
            text=[self._processor.image_token] * len(images), images=[[image] for image in images], return_tensors="pt",
            add_special_tokens=False, return_text_replacement_offsets=True,
        )  # fmt: skip
        texts = [replaced["replacement"] for (replaced,) in inputs["text_replacement_offsets"]]
        given = placed(self.language_model, {name: value for name, value in inputs.items() if name in self._encoder_inputs})
        outputs = _parted(_read_by_forward(self._encoder(**given, return_dict=True)), len(images))
        grids = given["image_grid_thw"] if self._rope_index else [None] * len(images)
        return [ImageFeatures(*one) for one in zip(texts, outputs, grids, strict=True)]

    def _positions(self, ids: torch.Tensor, mask: torch.Tensor, is_image: torch.Tensor, features: Sequence[ImageFeatures]) -> torch.Tensor:
        """[axes, rows, tokens] if the family has positions on several axes, else [rows, tokens]."""
        if self._rope_index is None:
            return _positions(mask)
        grids = torch.stack([feature.grid for feature in features if feature.grid is not None])
        return self._rope_index(ids, mm_token_type_ids=is_image, image_grid_thw=grids, attention_mask=mask)[0]


class PaliGemma(PlaceholderFamily):
    """PaliGemma: attends in both directions up to the answer, which does not see what follows and which the text before does not see."""

    def _further_inputs(self, ids: torch.Tensor, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        num_said = torch.tensor([self._num_said(prompt) for prompt in prompts], device=ids.device)
        from_end = torch.arange(ids.shape[1], 0, -1, device=ids.device)
        return {"token_type_ids": (from_end <= num_said[:, None]).int()}

    def _num_said(self, prompt: Prompt) -> int:
        """Tokens of a prompt from the start of its answer on."""
        asked = prompt.rendered[: prompt.rendered.rindex(prompt.answer)].rstrip(" ") if prompt.answer else prompt.rendered
        whole, told = self._processor.tokenizer([prompt.rendered, asked], add_special_tokens=False)["input_ids"]
        return len(whole) - len(told)


class Blip2:
    """BLIP-2: a Q-Former's output comes before the text. Decoding calls the language model alone, since `forward` wants an image."""

    def __init__(self, model: Any, processor: Any) -> None:
        if has_encoder_decoder(model.config):
            raise UnfitModelError(f"this {model.config.model_type} model {ENCODER_DECODER}")
        self.language_model = model.language_model
        self._model = model
        self._processor = processor
        self._placeholder = processor.tokenizer.convert_ids_to_tokens(image_token_id(model))

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> list[ImageFeatures]:
        inputs = placed(self._model, self._processor.image_processor(images=list(images), return_tensors="pt"))
        return [ImageFeatures(tokens=tokens) for tokens in self._seen(inputs)]

    def prefill(self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> Prefill:
        queries = self._queries(prompts, torch.stack([feature.tokens for feature in features if feature.tokens is not None]))
        ids, mask = _tokenized(
            self._processor.tokenizer, [self._expanded(prompt.rendered, queries.shape[1]) for prompt in prompts], self._model.device
        )
        embedded = self._model.get_input_embeddings()(ids)
        places = (ids == self._model.config.image_token_id)[..., None]
        return Prefill({"inputs_embeds": embedded.masked_scatter(places, queries.to(embedded.dtype))}, ids, mask, _positions(mask))

    def _seen(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is cached of images, [images, tokens, width]."""
        return self._model.get_image_features(**inputs, return_dict=True).pooler_output

    def _queries(self, prompts: Sequence[Prompt], seen: torch.Tensor) -> torch.Tensor:
        """The Q-Former's output for each prompt, projected for the language model: [rows, query tokens, width]."""
        return seen

    def _expanded(self, text: str, num_queries: int) -> str:
        """One placeholder per query: in place of the text's, or before the text if it has none, as the processors do."""
        queries = self._placeholder * num_queries
        return text.replace(self._placeholder, queries, 1) if self._placeholder in text else queries + text


class QFormer(Blip2):
    """InstructBLIP: for every text, the Q-Former reads the vision tower's features together with the text."""

    def _seen(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._model.vision_model(**inputs, return_dict=True).last_hidden_state

    def _queries(self, prompts: Sequence[Prompt], seen: torch.Tensor) -> torch.Tensor:
        model, texts = self._model, [prompt.spoken for prompt in prompts]
        asked = self._processor.qformer_tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
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


_OTHERS = {"blip-2": Blip2, "instructblip": QFormer, "paligemma": PaliGemma}


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
            images=[[feature.image] for feature in features],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        given = placed(self.language_model, inputs)
        mask = given.pop("attention_mask")
        later = {name: given[name][:, -1:] for name in _PER_TOKEN if name in given}
        return Prefill(given, given["input_ids"], mask, _positions(mask), later)


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


def _tokenized(tokenizer: Any, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of texts, both [rows, tokens], padded on the left."""
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)


def _read_by_forward(outputs: Any) -> Any:
    """The fields of an encoder's outputs that models read: the pooled features and what goes with them, or the only ones."""
    names = [name for name in _PER_IMAGE + _SHARED if outputs.get(name) is not None] or ["last_hidden_state"]
    return type(outputs)(**{name: outputs[name] for name in names})


def _parted(outputs: Any, num: int) -> list[Any]:
    """The outputs of each of `num` images that all have the same shapes."""
    parts = {name: [value] * num if name in _SHARED else _chunks(value, num) for name, value in outputs.items()}
    return [type(outputs)(**{name: values[number] for name, values in parts.items()}) for number in range(num)]


def _joined(outputs: Sequence[Any]) -> Any:
    """One output for several images."""
    first = outputs[0]
    values = {name: value if name in _SHARED else _concatenated([one[name] for one in outputs]) for name, value in first.items()}
    return type(first)(**values)


def _chunks(value: Any, num: int) -> list[Any]:
    """Equal parts of a tensor along its first axis or of a sequence of tensors; a sequence of such sequences, one per layer, is parted
    layer by layer."""
    if isinstance(value, torch.Tensor):
        return list(value.chunk(num))
    if isinstance(value[0], torch.Tensor):
        size = len(value) // num
        return [value[start : start + size] for start in range(0, len(value), size)]
    return list(zip(*[_chunks(layer, num) for layer in value], strict=True))


def _concatenated(values: Sequence[Any]) -> Any:
    """The inverse of `_chunks`."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    if isinstance(values[0][0], torch.Tensor):
        return list(chain.from_iterable(values))
    return [_concatenated(layers) for layers in zip(*values, strict=True)]


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for one in nested for tensor in _tensors_in(one)]
