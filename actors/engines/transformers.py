"""The `transformers` engine, the default: runs any image-text-to-text model on the CPU or a GPU.

On the CPU, greedy and sampled outputs depend only on weights, requests and sampling: batches are formed deterministically from
the requests, and the number of threads is fixed.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils.logging import disable_progress_bar

from actors.engines.adapters.applied import AppliedAdapter
from actors.engines.base import Attestation, Completion, Request, Sampling, Score, WeightUpdate
from actors.engines.decoding import Decoder, Written, draw_numbers
from actors.engines.errors import EngineError, SwapError
from actors.engines.families import ImageFeatures, Prompt, QFormer, Whole, family_of, image_token_id
from actors.engines.guard import check_matches_reference
from actors.engines.preloading import Preloader, load_update, require_one_source, verify_base, verify_manifest
from actors.engines.prompting import BlankImage, Prompter
from actors.engines.reference import ReferenceModel
from actors.engines.weights import digest_of, manifest_of, num_bytes_of, read_checkpoint
from actors.images import BadImageError, LazyImage
from actors.look_ahead import LookAhead, Planned, looking_ahead
from actors.process.memory import release_memory

_CACHED_FEATURE_BYTES = 1 << 28
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersEngine:
    """Implements `actors.engines.base.Engine` on a Hugging Face folder or id."""

    def __init__(
        self, model: str | Path, *, batch_size: int = 64, dtype: str = "float32", device: str = "cpu", num_threads: int = 1,
        image_workers: int = 1,
    ) -> None:  # fmt: skip
        """Load the model.

        Args:
            model: folder or hub id of an image-text-to-text model with safetensors weights.
            batch_size: rows per forward pass.
            dtype: float32, bfloat16 or float16.
            device: `cpu`, `cuda`, `cuda:1`.
            num_threads: torch's intra-op threads for this process.
            image_workers: threads that open the images of the next batch while the model computes.

        Raises:
            ValueError: `model` is not an image-text-to-text model, or has no safetensors.
            UnfitModelError: this engine does not compute what the model computes by itself.
        """
        torch.set_num_threads(num_threads)
        self._folder = Path(model)
        self._batch_size, self._image_workers = batch_size, image_workers
        self._device = torch.device(device)
        self._model = load_model(model, dtype).to(self._device)
        if self._device.type == "cpu":
            _align(self._model)
        self._prompter = Prompter(model)
        self._family = family_of(self._model, self._prompter.processor)
        end_ids = self._prompter.end_ids(self._model.generation_config.eos_token_id)
        banned_ids = self._prompter.banned_ids(image_token_id(self._model), end_ids)
        self._decoder = Decoder(self._family.language_model, self._prompter.tokenizer, end_ids, banned_ids)
        self._features: LRUCache[_Key, ImageFeatures] = LRUCache(_CACHED_FEATURE_BYTES, lambda features: features.num_bytes)
        """Encoded images by the keys of their requests, valid for one set of weights: a swap clears it."""
        self._weight_version = ""
        self._manifest = manifest_of(served_tensors(self._model))
        self._adapter = AppliedAdapter(self._model)
        self._base_digest = ""
        self._preloader = Preloader(self._load)
        self._released: _ReleasedParameters | None = None
        check_matches_reference(ReferenceModel(self._model, self._prompter), self._follow)

    @property
    def weight_version(self) -> str:
        return self._weight_version

    @property
    def features_depend_on_text(self) -> bool:
        return isinstance(self._family, QFormer)

    @property
    def model(self) -> Any:
        """The transformers model, for counting its calls."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._prompter.tokenizer

    def complete(self, requests: Sequence[Request], sampling: Sampling, *, skip_bad_images: bool = False) -> list[Completion]:
        if any(request.form for request in requests):
            raise ValueError("the transformers engine cannot force a form on its text; leave `form` empty, or take the vllm engine")
        self._require_weights()
        prompts = [self._prompt(request) for request in requests]
        draws = draw_numbers(len(requests), sampling)
        completions: dict[int, Completion] = {}
        images = [_image_of(request) for request in requests]
        with closing(self._batches(prompts, images, skip_bad_images=skip_bad_images)) as batches:
            for rows, features in batches:
                written = self._decoded([prompts[row] for row in rows], features, sampling, None if draws is None else draws[rows])
                completions |= {row: self._completion(one, sampling.stop) for row, one in zip(rows, written, strict=True)}
        return [completions.get(row) or self._prompter.skipped(self._weight_version) for row in range(len(requests))]

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        self._require_weights()
        prompts = [self._prompt(request) for request in requests]
        answered = [
            Prompt(self._prompter.render_answered(request, continuation), prompt.spoken, self._prompter.answer(request, continuation))
            for request, prompt, continuation in zip(requests, prompts, continuations, strict=True)
        ]
        scores: dict[int, Score] = {}
        images = [_blank_of(request) if blank_image else _image_of(request) for request in requests]
        with closing(self._batches(answered, images)) as batches:
            for rows, features in batches:
                scored = self._score([prompts[row].rendered for row in rows], [answered[row] for row in rows], features)
                scores |= dict(zip(rows, scored, strict=True))
        return [scores[row] for row in range(len(requests))]

    def preload(self, update: WeightUpdate) -> None:
        self._preloader.preload(update)

    def swap(self, update: WeightUpdate) -> Attestation:
        started = time.perf_counter()
        tensors = self._preloader.take(update)
        self._features.clear()
        self._weight_version = ""  # nothing is served from here on unless all steps succeed
        try:
            self._overwrite(tensors)
            self._adapter.apply(update.adapter)
        except RuntimeError as error:
            raise SwapError(f"weights {update.version} were applied in part: {error}") from error
        if (digest := self._adapter.digest(self._digest_of_base())) != update.digest:
            raise SwapError(f"the served weights have digest {digest}; {update.digest} was prepared as {update.version}")
        self._weight_version, self._released = update.version, None
        return Attestation(update.version, digest, num_bytes_of(served_tensors(self._model)), time.perf_counter() - started)

    def sleep(self) -> None:
        if self._released is not None:
            return
        self._weight_version = ""
        self._features.clear()
        self._adapter.apply(None)
        self._base_digest = ""
        self._released = _ReleasedParameters(self._model)
        release_memory()

    def _require_weights(self) -> None:
        if self._released is not None:
            raise EngineError("the engine is asleep; swap weights to wake it")

    def _load(self, update: WeightUpdate) -> dict[str, torch.Tensor]:
        """Load the tensors that the update writes over the model's own, and verify names, shapes and dtypes: for an adapter none, or its
        base if the engine sleeps. The digest is left to `swap`, which hashes the live parameters and so finds damaged bytes as well as a
        failed copy."""
        if update.adapter is None:
            tensors = load_update(update)
        else:
            require_one_source(update)
            self._adapter.check(update.adapter)
            if self._released is None:
                verify_base(update, update.adapter, self._digest_of_base())
                return {}
            tensors = read_checkpoint(self._folder)
        verify_manifest(update, manifest_of(tensors), self._manifest)
        return tensors

    def _overwrite(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write over the model's own weights, if the update has any."""
        if not tensors:
            return
        self._base_digest = ""
        if self._released is not None:
            self._released.allocate()
        served = served_tensors(self._model)
        with torch.no_grad():
            for name, tensor in tensors.items():
                served[name].copy_(tensor)

    def _digest_of_base(self) -> str:
        """Digest of the model's own live weights, which are hashed once after they have been written."""
        if not self._base_digest:
            self._base_digest = digest_of(served_tensors(self._model))
        return self._base_digest

    def _batches(
        self, prompts: Sequence[Prompt], images: Sequence[_KeyedImage], *, skip_bad_images: bool = False
    ) -> Generator[tuple[list[int], list[ImageFeatures]]]:
        """Rows sorted by length to reduce padding, ties in their order, with the features of their images. While a batch is computed,
        threads open the images of the next. Rows that are skipped are in no batch."""
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].rendered))
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        coming: set[_Key] = set()
        with looking_ahead(self._planned(batches, images, coming), self._image_workers, self._batch_size) as ahead:
            for number, rows in enumerate(batches):
                found = self._encoded(number, [images[row] for row in rows], ahead, skip_bad_images=skip_bad_images)
                coming.difference_update(images[row].key for row in rows)
                ahead.discard((number, images[row].key) for row in rows)
                readable = {row: features for row, features in zip(rows, found, strict=True) if features is not None}
                if readable:
                    yield list(readable), list(readable.values())

    def _planned(self, batches: Sequence[Sequence[int]], images: Sequence[_KeyedImage], coming: set[_Key]) -> Planned:
        """The images whose pixels are needed, each under the number of the batch that needs them and its key. `coming` receives the keys
        whose features are going to be cached."""
        for number, rows in enumerate(batches):
            for key, image in {images[row].key: images[row].image for row in rows}.items():
                if key in coming or key in self._features:
                    continue
                if isinstance(key, str) and not isinstance(self._family, Whole):
                    coming.add(key)
                yield (number, key), image

    def _encoded(self, batch: int, images: Sequence[_KeyedImage], ahead: LookAhead, *, skip_bad_images: bool) -> list[ImageFeatures | None]:
        """Features of each image, in order, None for a bad one; images with equal keys are encoded once, and cached if the request has
        a key."""
        found: dict[_Key, ImageFeatures | None] = {image.key: self._features.get(image.key) for image in images}
        missing: dict[_Key, Image.Image] = {}
        for key, image in {image.key: image.image for image in images if found[image.key] is None}.items():
            try:
                missing[key] = ahead.open((batch, key), image)
            except BadImageError:
                if not skip_bad_images:
                    raise
        for key, features in zip(missing, self._family.encode(list(missing.values())) if missing else [], strict=True):
            found[key] = features
            if isinstance(key, str) and 0 < features.num_bytes <= _CACHED_FEATURE_BYTES:
                self._features[key] = features
        return [found[image.key] for image in images]

    def _decoded(
        self, prompts: Sequence[Prompt], features: Sequence[ImageFeatures], sampling: Sampling, draws: torch.Tensor | None
    ) -> list[Written]:
        """What the model writes in each row of a batch; equal prompts about one image are prefilled once."""
        asked = [(prompt.rendered, id(seen)) for prompt, seen in zip(prompts, features, strict=True)]
        first: dict[tuple[str, int], int] = {}
        for at, key in enumerate(asked):
            first.setdefault(key, at)
        number = {key: prompt for prompt, key in enumerate(first)}
        prefill = self._family.prefill([prompts[at] for at in first.values()], [features[at] for at in first.values()])
        return self._decoder.decode(prefill, [number[key] for key in asked], sampling, draws)

    def _prompt(self, request: Request) -> Prompt:
        return Prompt(self._prompter.render(request), self._prompter.spoken(request), self._prompter.answer(request))

    def _completion(self, written: Written, stop: Sequence[str]) -> Completion:
        return self._prompter.completion(
            written.token_ids, written.logprobs, ended=written.ended, stop=stop, weight_version=self._weight_version
        )

    def _follow(self, requests: Sequence[Request], said: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of requests and given tokens as `complete` computes them; see `actors.engines.guard`."""
        prompts = [self._prompt(request) for request in requests]
        found: dict[int, torch.Tensor] = {}
        with closing(self._batches(prompts, [_image_of(request) for request in requests])) as batches:
            for rows, features in batches:
                prefill = self._family.prefill([prompts[row] for row in rows], features)
                found |= dict(zip(rows, self._decoder.follow(prefill, said[rows]), strict=True))
        return torch.stack([found[row] for row in range(len(requests))])

    @torch.inference_mode()
    def _score(self, prompts: Sequence[str], answered: Sequence[Prompt], features: Sequence[ImageFeatures]) -> list[Score]:
        prefill = self._family.prefill(answered, features)
        num_told = [len(self._prompter.token_ids(text)) for text in prompts]
        num_read = [len(self._prompter.token_ids(prompt.rendered)) for prompt in answered]
        targets = torch.tensor(num_read) - torch.tensor(num_told)
        longest = max(1, int(targets.max()))
        output = self._family.language_model(
            **prefill.inputs, attention_mask=prefill.attention_mask, position_ids=prefill.position_ids, logits_to_keep=longest + 1
        )
        said = prefill.token_ids[:, -longest:, None]
        logprobs = self._decoder.logprobs(output.logits[:, -longest - 1 : -1]).gather(-1, said)[..., 0].cpu()
        counted = torch.arange(longest) >= (longest - targets)[:, None]
        sums = logprobs.masked_fill(~counted, 0.0).sum(1)
        return [Score(total, count, self._weight_version) for total, count in zip(sums.tolist(), targets.tolist(), strict=True)]


def load_model(model: str | Path, dtype: str) -> Any:
    """Load an image-text-to-text model with its own class, on the CPU, in evaluation mode.

    Raises:
        ValueError: `model` is not one, or has no safetensors.
    """
    disable_progress_bar()  # it would stand between the lines of a log
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=_DTYPES[dtype], trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load {model} as an image-text-to-text model: {error}") from error
    return loaded.eval()


def _align(model: torch.nn.Module) -> None:
    """Copy the parameters to memory that torch allocates, as after a sleep, which is aligned. Mapped from a file, they begin at any
    address, and the last bits of products depend on it on some CPUs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def served_tensors(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors under their checkpoint names; never copied, so that writing to them changes the served weights."""
    untied = remove_tied_weights_from_state_dict(model.state_dict(), model)
    return dict(revert_weight_conversion(model, untied))


class _ReleasedParameters:
    """Frees the memory of a model's parameters but keeps the parameter objects, so that references to them, including tied weights,
    stay valid after `allocate`. Buffers keep their memory, since not all of them are in a checkpoint."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._shapes = [(parameter, parameter.shape) for parameter in model.parameters()]
        for parameter, _ in self._shapes:
            parameter.data = parameter.data.new_empty(0)

    def allocate(self) -> None:
        """Allocate uninitialized memory for all parameters. Raises `RuntimeError` if there is not enough."""
        for parameter, shape in self._shapes:
            parameter.data = parameter.data.new_empty(shape)


_Key = str | int
"""A request's key, which is permanent, or the `id` of its image, which is valid for one call."""


@dataclass(frozen=True, slots=True)
class _KeyedImage:
    key: _Key
    image: Image.Image | LazyImage


def _image_of(request: Request) -> _KeyedImage:
    return _KeyedImage(request.image_key or id(request.image), request.image)


def _blank_of(request: Request) -> _KeyedImage:
    width, height = request.image.size
    return _KeyedImage(f"\0blank {width}x{height}", BlankImage((width, height)))
