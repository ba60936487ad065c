"""Decoding: continues a batch of prompts token by token.

A batch shares one key-value cache. Equal prompts are prefilled once and then decoded separately. Rows that have ended leave the
batch, so that short rows do not pay for the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, TopPLogitsWarper

from actors.engines.base import Sampling
from actors.engines.families import Prefill

_REPACK_BELOW = 0.75
"""Ended rows leave once a smaller share of the batch is still decoding: copying the cache for every row would cost more."""

_TOKENS_PER_CHARACTER = 4
"""Most tokens of one character (the bytes of UTF-8)."""


@dataclass(slots=True)
class Written:
    """Output of one row. Log-probabilities are natural and at temperature 1, over the tokens that are not banned."""

    token_ids: list[int] = field(default_factory=list)
    """Without the end token."""
    logprobs: list[float] = field(default_factory=list)
    """One per token, and one for the end token if the row ended with it."""
    ended: bool = False
    """By its end token, not by a stop string or the token budget."""


class Decoder:
    """Continues prompts with one language model."""

    def __init__(self, language_model: Any, tokenizer: Any, end_ids: Sequence[int], banned_ids: Sequence[int]) -> None:
        """Wrap a model.

        Args:
            language_model: called for logits; see `actors.engines.families.Family.language_model`.
            tokenizer: decodes the text that is searched for stop strings.
            end_ids: tokens that end a row.
            banned_ids: tokens that are never generated.
        """
        self._model = language_model
        self._tokenizer = tokenizer
        self._end_ids = list(end_ids)
        self._banned_ids = list(banned_ids)

    @torch.inference_mode()
    def decode(self, prefill: Prefill, prompt_of_row: Sequence[int], sampling: Sampling, draws: torch.Tensor | None) -> list[Written]:
        """Continue prompts.

        Args:
            prefill: distinct prompts.
            prompt_of_row: index of the prompt for each row to decode.
            sampling: `max_new_tokens`, `temperature`, `top_p` and `stop`; its seed is already in `draws`.
            draws: random numbers in [0, 1) to sample by, [rows, max_new_tokens]; `None` is greedy.
        """
        batch = self._begin(prefill, prompt_of_row)
        written = [Written() for _ in prompt_of_row]
        for step in range(sampling.max_new_tokens):
            chosen = self._write(batch, written, sampling, None if draws is None else draws[:, step])
            if not batch.writing or step + 1 == sampling.max_new_tokens:
                break
            if len(batch.writing) < _REPACK_BELOW * len(batch.rows):
                chosen = chosen[batch.repack()]
            self._advance(batch, chosen)
        return written

    @torch.inference_mode()
    def follow(self, prefill: Prefill, said: torch.Tensor) -> torch.Tensor:
        """Continue each prompt with given tokens, as `decode` would if it chose them.

        Args:
            prefill: prompts.
            said: token ids, [prompts, tokens].

        Returns:
            log-probabilities before the first token and after each, [prompts, tokens + 1, vocabulary].
        """
        batch = self._begin(prefill, range(len(said)))
        batch.repack()  # drops no row, but a cache that cannot drop rows fails here
        found = [self.logprobs(batch.logits)]
        for chosen in said.to(batch.logits.device).unbind(1):
            self._advance(batch, chosen)
            found.append(self.logprobs(batch.logits))
        return torch.stack(found, dim=1)

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """Natural log-probabilities in float32 of logits [..., vocabulary], over the tokens that are not banned."""
        return logprobs_without(self._banned_ids, logits)

    def _begin(self, prefill: Prefill, prompt_of_row: Sequence[int]) -> _Batch:
        """Prefill distinct prompts once, then copy them to their rows."""
        logits, cache = self._first_pass(prefill)
        picked = torch.tensor(prompt_of_row, device=logits.device)
        if len(picked) != len(logits) or not torch.equal(picked, torch.arange(len(logits), device=logits.device)):
            _select_rows(cache, picked)
        num_axes = prefill.position_ids.shape[0] if prefill.position_ids.ndim == 3 else 0
        positions = _next_positions(prefill.position_ids)[picked]
        step_inputs = {name: value[picked] for name, value in prefill.step_inputs.items()}
        return _Batch(cache, logits[picked], prefill.attention_mask[picked], positions, num_axes, step_inputs)

    def _first_pass(self, prefill: Prefill) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self._model.config.get_text_config())
        output = self._model(
            **prefill.inputs,
            attention_mask=prefill.attention_mask,
            position_ids=prefill.position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    def _write(self, batch: _Batch, written: list[Written], sampling: Sampling, draws: torch.Tensor | None) -> torch.Tensor:
        """Choose and record a token for every row that is still decoding.

        Returns:
            the chosen tokens, [rows in the batch].
        """
        logprobs = self.logprobs(batch.logits)
        chosen = logprobs.argmax(-1) if draws is None else _sample(logprobs, sampling, draws[batch.rows.cpu()].to(logprobs.device))
        values = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        still = []
        tokens, rows = chosen.tolist(), batch.rows.tolist()
        for place in batch.writing:
            row = written[rows[place]]
            row.logprobs.append(values[place])
            if tokens[place] in self._end_ids:
                row.ended = True
                continue
            row.token_ids.append(tokens[place])
            still.append(place)
        batch.writing = self._without_stopped(still, written, rows, sampling.stop)
        return chosen

    def _without_stopped(self, places: list[int], written: list[Written], rows: list[int], stop: Sequence[str]) -> list[int]:
        """The places whose rows contain no stop string yet. Searches decoded text, since tokens of word-level tokenizers do not
        concatenate to a stop string, and only its end: the rest has been searched before."""
        if not stop or not places:
            return places
        longest = max(map(len, stop)) * _TOKENS_PER_CHARACTER
        ends = self._tokenizer.batch_decode([written[rows[place]].token_ids[-longest:] for place in places], skip_special_tokens=True)
        return [place for place, end in zip(places, ends, strict=True) if not any(one in end for one in stop)]

    def _advance(self, batch: _Batch, chosen: torch.Tensor) -> None:
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(chosen), 1)], dim=1)
        positions = batch.positions[:, None]
        output = self._model(
            input_ids=chosen[:, None],
            attention_mask=batch.mask,
            position_ids=positions.expand(batch.num_axes, -1, -1) if batch.num_axes else positions,
            past_key_values=batch.cache,
            use_cache=True,
            **batch.step_inputs,
        )
        batch.logits = output.logits[:, -1]
        batch.positions = batch.positions + 1


class _Batch:
    """The rows in flight. `rows` [places] are their numbers, `writing` the places of rows that have not ended; positions have
    `num_axes` axes, or a single one (0); `step_inputs` have one row per place and go into every pass."""

    def __init__(
        self,
        cache: DynamicCache,
        logits: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        num_axes: int,
        step_inputs: dict[str, torch.Tensor],
    ) -> None:
        self.cache = cache
        self.logits = logits
        self.mask = mask
        self.positions = positions
        self.num_axes = num_axes
        self.step_inputs = step_inputs
        self.rows = torch.arange(len(positions), device=positions.device)
        self.writing = list(range(len(positions)))

    def repack(self) -> torch.Tensor:
        """Drop ended rows.

        Returns:
            the places that stay, [rows still decoding].
        """
        kept = torch.tensor(self.writing, device=self.rows.device)
        _select_rows(self.cache, kept)
        self.mask, self.positions, self.rows = self.mask[kept], self.positions[kept], self.rows[kept]
        self.step_inputs = {name: value[kept] for name, value in self.step_inputs.items()}
        self.writing = list(range(len(kept)))
        return kept


def _select_rows(cache: DynamicCache, rows: torch.Tensor) -> None:
    """Keep the given rows, of which some may be repeated. `batch_select_indices` does the same but knows no convolutions (LFM2)."""
    cache.reorder_cache(rows)  # type: ignore[arg-type]


def logprobs_without(banned_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """Natural log-probabilities in float32 of logits [..., vocabulary], over the tokens that are not banned. Banned ids may lie outside of
    the vocabulary, as Mllama's image token does."""
    logits = logits.float()
    logits[..., [one for one in banned_ids if one < logits.shape[-1]]] = -torch.inf
    return logits.log_softmax(-1)


def draw_numbers(num_rows: int, sampling: Sampling) -> torch.Tensor | None:
    """Random numbers in [0, 1) for `Decoder.decode`, [rows, max_new_tokens]; they do not depend on a row's batch."""
    if sampling.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(sampling.seed)
    return torch.rand(num_rows, sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def _sample(logprobs: torch.Tensor, sampling: Sampling, draws: torch.Tensor) -> torch.Tensor:
    """Sample one token per row, [rows], by inverting the cumulative distribution at `draws` [rows]."""
    warmed = logprobs / sampling.temperature
    if sampling.top_p < 1:
        warmed = TopPLogitsWarper(sampling.top_p)(None, warmed)  # type: ignore[arg-type]
    cumulative = warmed.softmax(-1).double().cumsum(-1)
    reached = cumulative <= (draws * cumulative[:, -1])[:, None]
    return reached.sum(-1)


def _next_positions(position_ids: torch.Tensor) -> torch.Tensor:
    """Position of the first new token of each row, [rows]: one more than the largest on any axis."""
    largest = position_ids.amax(-1)
    return (largest.amax(0) if largest.ndim == 2 else largest) + 1
