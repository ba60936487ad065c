"""A local text model that answers chats as an endpoint does: any causal language model of transformers with a chat template and
safetensors weights, without custom code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from actors.processors import SpecialTokens
from policies.chat import Ask, ChatMessage, Reply, Usage


class LocalChat:
    """One model in this process, on the GPU if there is one."""

    def __init__(self, model: str | Path, batch_size: int = 1) -> None:
        """Args:
            model: folder or Hugging Face id.
            batch_size: chats per batch. With 1, equal asks have equal replies; with more, sampled replies depend on the other chats
                of the batch, greedy ones do not.

        Raises:
            ValueError: the model cannot be read, or has no usable chat template.
        """
        self._batch_size = batch_size
        disable_progress_bar()  # it would stand between the lines of a log
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False, use_safetensors=True, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{model} cannot be read as a text model: {error}") from error
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{model} has no chat template: add chat_template.jinja to its folder")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._rendered((ChatMessage("system", "Be brief."), ChatMessage("user", "What is it?")))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = loaded.to(self._device).eval()
        self._window = int(getattr(self._model.config, "max_position_embeddings", 0) or 0)

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `policies.chat.ChatModel`. A chat that does not fit into the model's context window fails alone."""
        for _, alike in groupby(asks, lambda ask: (ask.max_tokens, ask.temperature)):
            while batch := list(islice(alike, self._batch_size)):
                yield from self._answer(batch)

    def _answer(self, asks: Sequence[Ask]) -> Iterator[Reply]:
        fitting: list[tuple[Ask, str]] = []
        for ask in asks:
            assert not any(message.images for message in ask.messages), "a text model sees no images"
            text = self._rendered(ask.messages)
            num_read = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            if self._window and num_read + ask.max_tokens > self._window:
                failure = f"{num_read} tokens and {ask.max_tokens} of output do not fit into the model's {self._window}"
                yield Reply(ask.key, "", Usage(), failure=failure)
            else:
                fitting.append((ask, text))
        if fitting:
            yield from self._generate(*zip(*fitting, strict=True))

    def _rendered(self, messages: Sequence[ChatMessage]) -> str:
        try:
            return render_chat(self._tokenizer, messages)
        except TemplateError as error:
            raise ValueError(f"the model's chat template cannot be used: {error}") from error

    @torch.inference_mode()
    def _generate(self, asks: Sequence[Ask], texts: Sequence[str]) -> list[Reply]:
        inputs = self._tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt").to(self._device)
        sampling: dict[str, Any] = {"do_sample": False}
        if asks[0].temperature > 0.0:
            torch.manual_seed(asks[0].seed or 0)
            sampling = {"do_sample": True, "temperature": asks[0].temperature, "top_p": 1.0, "top_k": 0}
        output = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=asks[0].max_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        num_read = inputs["attention_mask"].sum(1).tolist()
        return [self._reply(*row) for row in zip(asks, num_read, rows, strict=True)]

    def _reply(self, ask: Ask, num_read: int, tokens: Sequence[int]) -> Reply:
        ends = self._ends()
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        usage = Usage(1, num_read, len(tokens) if end is None else end + 1)
        return Reply(ask.key, text, usage, "length" if end is None else "stop")

    def _ends(self) -> set[int]:
        found = self._model.generation_config.eos_token_id
        ends = set(found) if isinstance(found, list) else {found}
        return {token for token in ends | {self._tokenizer.eos_token_id} if token is not None}


def render_chat(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """The prompt of a chat. If the template has no system role, as Gemma's, the system text precedes the first user's.

    Raises:
        ValueError: the tokenizer has no chat template.
        jinja2.TemplateError: the template cannot be used.
    """
    special = SpecialTokens(SimpleNamespace(tokenizer=tokenizer))
    chat = [{"role": message.role, "content": special.broken_up(message.text)} for message in messages]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        if chat[0]["role"] != "system" or len(chat) < 2:
            raise
        first = {"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
        return tokenizer.apply_chat_template([first, *chat[2:]], tokenize=False, add_generation_prompt=True)
