"""The `transformers` engine: any image-text-to-text model on the CPU or a GPU; the embedded default.

Greedy and sampled outputs on the CPU are a function of weights, requests and sampling alone: batches are formed from the
requests in a fixed way and one thread count is used throughout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from actors.engines.base import Attestation, Completion, FinishReason, Request, Sampling, Score, SwapError, WeightUpdate
from actors.engines.weights import digest_of, load_update, manifest_of, num_bytes_of, verify

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersEngine:
    """Implements `actors.engines.base.Engine` on a Hugging Face folder or id."""

    def __init__(
        self, model: str | Path, *, batch_size: int = 64, dtype: str = "float32", device: str = "cpu", num_threads: int = 1
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub id of an image-text-to-text model with safetensors weights.
            batch_size: rows per forward pass.
            dtype: float32, bfloat16 or float16.
            device: `cpu`, `cuda`, `cuda:1`.
            num_threads: torch's intra-op threads for this process.

        Raises:
            ValueError: `model` is no image-text-to-text model, or has no safetensors.
        """
        torch.set_num_threads(num_threads)
        self._batch_size = batch_size
        self._device = torch.device(device)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=_DTYPES[dtype], trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"cannot load {model} as an image-text-to-text model: {error}") from error
        self._model = loaded.to(self._device).eval()
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "left"
        self._end_ids = _end_ids(self._model.generation_config.eos_token_id, self._tokenizer.eos_token_id)
        pad_id = self._tokenizer.pad_token_id
        # A checkpoint's own sampling settings (a repetition penalty, a top-k) must not mix with those of a request.
        self._model.generation_config = GenerationConfig(eos_token_id=list(self._end_ids), pad_token_id=pad_id)
        # Neither is text: an image placeholder would break the next prompt, and padding marks where a row has ended.
        self._banned = [int(self._model.config.image_token_id), *({pad_id} - {None, *self._end_ids})]
        self._weight_version = ""

    @property
    def weight_version(self) -> str:
        return self._weight_version

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        prompts = [self._render(request.prompt, request.answer_prefix) for request in requests]
        completions: list[Completion | None] = [None] * len(requests)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(sampling.seed)
            for rows in self._batches(prompts):
                written = self._generate([prompts[row] for row in rows], [requests[row].image for row in rows], sampling)
                for row, completion in zip(rows, written, strict=True):
                    completions[row] = completion
        return [completion for completion in completions if completion is not None]

    def score(self, requests: Sequence[Request], continuations: Sequence[str], *, blank_image: bool = False) -> list[Score]:
        prompts = [self._render(request.prompt, request.answer_prefix) for request in requests]
        texts = [
            self._render_answered(request.prompt, request.answer_prefix, continuation)
            for request, continuation in zip(requests, continuations, strict=True)
        ]
        scores: list[Score | None] = [None] * len(requests)
        for rows in self._batches(texts):
            images = [_blank_like(requests[row].image) if blank_image else requests[row].image for row in rows]
            for row, score in zip(rows, self._score([prompts[row] for row in rows], [texts[row] for row in rows], images), strict=True):
                scores[row] = score
        return [score for score in scores if score is not None]

    def swap(self, update: WeightUpdate) -> Attestation:
        started = time.perf_counter()
        tensors = load_update(update)
        served = self._served()
        verify(update, tensors, manifest_of(served))
        try:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    served[name].copy_(tensor)
        except RuntimeError as error:
            raise SwapError(f"weights {update.version} were applied in part: {error}") from error
        self._weight_version = update.version
        attested = self._served()
        return Attestation(update.version, digest_of(attested), num_bytes_of(attested), time.perf_counter() - started)

    def _served(self) -> dict[str, torch.Tensor]:
        """The served tensors under their checkpoint names; renamed, never copied, so that writing to them is what is served."""
        untied = remove_tied_weights_from_state_dict(self._model.state_dict(), self._model)
        return dict(revert_weight_conversion(self._model, untied))

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Rows sorted by length, so that a batch pads little; ties keep their order."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    def _render(self, prompt: str, answer_prefix: str) -> str:
        messages = [_user(prompt)]
        if not answer_prefix:
            return self._processor.apply_chat_template(messages, add_generation_prompt=True)
        return self._processor.apply_chat_template([*messages, _assistant(answer_prefix)], continue_final_message=True)

    def _render_answered(self, prompt: str, answer_prefix: str, continuation: str) -> str:
        answer = " ".join(part for part in (answer_prefix, continuation) if part)
        text = self._processor.apply_chat_template([_user(prompt), _assistant(answer)])
        end = text.rfind(self._tokenizer.eos_token)
        return text if end < 0 else text[: end + len(self._tokenizer.eos_token)]

    def _inputs(self, texts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        inputs = self._processor(text=list(texts), images=list(images), return_tensors="pt", padding=True, add_special_tokens=False)
        return {name: self._placed(tensor) for name, tensor in inputs.items()}

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._model.dtype) if tensor.is_floating_point() else tensor.to(self._device)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], images: Sequence[Image.Image], sampling: Sampling) -> list[Completion]:
        inputs = self._inputs(prompts, images)
        recorder = _LogprobRecorder(self._banned)
        num_prompt_tokens = inputs["input_ids"].shape[1]
        stops = [_StopAtText(sampling.stop, self._tokenizer, num_prompt_tokens)] if sampling.stop else []
        sampled = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        sequences = self._model.generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=LogitsProcessorList([recorder]),
            **(sampled if sampling.temperature > 0 else {"do_sample": False}),
            stopping_criteria=StoppingCriteriaList(stops),
        )
        written = sequences[:, num_prompt_tokens:]
        logprobs = recorder.finish(written)
        return [self._completion(tokens, values, sampling.stop) for tokens, values in zip(written.tolist(), logprobs.tolist(), strict=True)]

    def _completion(self, tokens: list[int], logprobs: list[float], stop: Sequence[str]) -> Completion:
        """A row cut where it ended: after its stop string, else at the model's end token, else at the token budget."""
        over = {self._tokenizer.pad_token_id, *self._end_ids}
        length = next((i for i, token in enumerate(tokens) if token in over), len(tokens))
        text = self._tokenizer.decode(tokens[:length], skip_special_tokens=True)
        cut = min((text.index(one) + len(one) for one in stop if one in text), default=None)
        ended = cut is None and length < len(tokens)
        counted = length + 1 if ended else length
        return Completion(
            text=text.strip() if cut is None else text[:cut].lstrip(),
            token_ids=tuple(tokens[:length]),
            logprob=sum(logprobs[:counted]),
            num_logprob_tokens=counted,
            finish_reason=FinishReason.LENGTH if cut is None and not ended else FinishReason.STOP,
            weight_version=self._weight_version,
        )

    @torch.inference_mode()
    def _score(self, prompts: Sequence[str], texts: Sequence[str], images: Sequence[Image.Image]) -> list[Score]:
        inputs = self._inputs(texts, images)
        prompt_mask = self._inputs(prompts, images)["attention_mask"]
        targets = inputs["attention_mask"].sum(1) - prompt_mask.sum(1)
        longest = max(1, int(targets.max()))
        logits = self._model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
        logits[..., self._banned] = -torch.inf
        logprobs = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        counted = torch.arange(longest, device=self._device) >= (longest - targets)[:, None]
        sums = logprobs.masked_fill(~counted, 0.0).sum(1)
        return [Score(total, count, self._weight_version) for total, count in zip(sums.tolist(), targets.tolist(), strict=True)]


class _LogprobRecorder(LogitsProcessor):
    """Bans what is no text and records the log-probability of what was chosen, before temperature and top-p."""

    def __init__(self, banned: Sequence[int]) -> None:
        self._banned = list(banned)
        self._last: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        if self._last is not None:
            self._chosen.append(self._last.gather(1, input_ids[:, -1:]))
        scores = scores.float()
        scores[:, self._banned] = -torch.inf
        self._last = scores.log_softmax(-1)
        return scores

    def finish(self, written: torch.Tensor) -> torch.Tensor:
        """Log-probabilities, one per written token: [rows, tokens]."""
        assert self._last is not None
        return torch.cat([*self._chosen, self._last.gather(1, written[:, -1:])], dim=1)


class _StopAtText(StoppingCriteria):
    """Ends a row once its text holds a stop string. Works on decoded text: transformers' own criterion maps the stop strings
    onto the vocabulary instead, which fails for word-level tokenizers."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_tokens: int) -> None:
        self._stop = stop
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt_tokens :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self._stop) for text in texts], device=input_ids.device)


def _end_ids(*given: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end a row: a generation config may name one, several or none beside the tokenizer's."""
    found = [ids if isinstance(ids, Sequence) else [ids] for ids in given if ids is not None]
    return tuple(dict.fromkeys(one for ids in found for one in ids))


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _blank_like(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, (128, 128, 128))
