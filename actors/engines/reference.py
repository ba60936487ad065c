"""The reference for engines and probes: runs a model by its own class and processor, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from actors.engines.base import Request
from actors.engines.decoding import logprobs_without
from actors.engines.families import placed
from actors.engines.prompting import Prompter
from actors.images import opened
from actors.processors import reads_both_ways


class ReferenceModel:
    """A loaded model with its processor, without this project's code for prompts, features and caches between them."""

    def __init__(self, model: Any, prompter: Prompter) -> None:
        self.model = model
        self._prompter = prompter

    @torch.inference_mode()
    def generate_greedy(
        self, request: Request, num_tokens: int, allowed_ids: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The greedy completion, continued past end tokens, and the logits of each token: ids [tokens] and logits
        [tokens, vocabulary]. `allowed_ids` are the tokens to choose from, by default all."""
        output = self.model.generate(
            **self._inputs(self._prompter.render(request), request), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
            do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True,
            prefix_allowed_tokens_fn=None if allowed_ids is None else lambda *_: list(allowed_ids),
        )  # fmt: skip
        return output.sequences[0, -num_tokens:], torch.cat(output.logits).float()

    @torch.inference_mode()
    def logprob(self, request: Request, continuation: str, banned_ids: Sequence[int]) -> float:
        """Log-probability of a continuation and its end token, as in `Engine.score`."""
        told, answered = self._prompter.render(request), self._prompter.render_answered(request, continuation)
        num_tokens = len(self._prompter.token_ids(answered)) - len(self._prompter.token_ids(told))
        inputs = self._inputs(answered, request)
        logprobs = logprobs_without(banned_ids, self.model(**inputs).logits[0, -num_tokens - 1 : -1])
        return logprobs.gather(1, inputs["input_ids"][0, -num_tokens:, None]).sum().item()

    def _inputs(self, text: str, request: Request) -> dict[str, torch.Tensor]:
        processor = self._prompter.processor
        inputs = processor(text=[text], images=[opened(request.image)], return_tensors="pt", add_special_tokens=False)
        if reads_both_ways(processor):
            asked = self._prompter.render(replace(request, answer_prefix=""))
            num_said = len(self._prompter.token_ids(text)) - len(self._prompter.token_ids(asked))
            inputs["token_type_ids"][:, inputs["input_ids"].shape[1] - num_said :] = 1
            del inputs["labels"]
        if "qformer_input_ids" in inputs:  # a Q-Former reads the text without the chat template
            spoken = processor.qformer_tokenizer([self._prompter.spoken(request)], return_tensors="pt")
            inputs |= {"qformer_input_ids": spoken["input_ids"], "qformer_attention_mask": spoken["attention_mask"]}
        return placed(self.model, inputs)
