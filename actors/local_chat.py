"""A text model that runs here and answers chats as an endpoint does: any causal language model of transformers with a chat template,
weights as safetensors, none of its own code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.teachers.local import render_chat
from policies.chat import Ask, ChatMessage, Reply, Usage


class LocalChat:
    """One model in this process, on the GPU where there is one. Every chat is answered by itself: equal asks have equal replies."""

    def __init__(self, model: str | Path) -> None:
        """
        Raises:
            ValueError: the model cannot be read, or has no chat template that can be used.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False, use_safetensors=True, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{model} cannot be read as a text model: {error}") from error
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{model} has no chat template: add chat_template.jinja to its folder")
        self._rendered((ChatMessage("system", "Be brief."), ChatMessage("user", "What is it?")))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = loaded.to(self._device).eval()
        self._window = int(getattr(self._model.config, "max_position_embeddings", 0) or 0)

    def complete(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `actors.chat_model.ChatModel`. A chat that leaves no room in the model's window is a failure of that chat."""
        return map(self._answer, asks)

    def _answer(self, ask: Ask) -> Reply:
        inputs = self._tokenizer(self._rendered(ask.messages), add_special_tokens=False, return_tensors="pt").to(self._device)
        num_read = int(inputs["input_ids"].shape[1])
        if self._window and num_read + ask.max_tokens > self._window:
            failure = f"{num_read} tokens and {ask.max_tokens} of output do not fit into the model's {self._window}"
            return Reply(ask.key, "", Usage(), failure=failure)
        written = self._generate(inputs, ask)
        ends = self._ends()
        end = next((index for index, token in enumerate(written) if token in ends), None)
        text = self._tokenizer.decode(written[:end], skip_special_tokens=True)
        usage = Usage(1, num_read, len(written) if end is None else end + 1)
        return Reply(ask.key, text, usage, "length" if end is None else "stop")

    def _rendered(self, messages: Sequence[ChatMessage]) -> str:
        try:
            return render_chat(self._tokenizer, messages)
        except TemplateError as error:
            raise ValueError(f"the model's chat template cannot be used: {error}") from error

    @torch.inference_mode()
    def _generate(self, inputs: Any, ask: Ask) -> list[int]:
        sampling: dict[str, Any] = {"do_sample": False}
        if ask.temperature > 0.0:
            torch.manual_seed(ask.seed or 0)
            sampling = {"do_sample": True, "temperature": ask.temperature, "top_p": 1.0, "top_k": 0}
        output = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=ask.max_tokens,
            pad_token_id=self._tokenizer.eos_token_id if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id,
            **sampling,
        )
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    def _ends(self) -> set[int]:
        found = self._model.generation_config.eos_token_id
        ends = set(found) if isinstance(found, list) else {found}
        return {token for token in ends | {self._tokenizer.eos_token_id} if token is not None}
