"""A teacher that runs here: any text model of transformers with a chat template, weights as safetensors, none of its own code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.processors import SpecialTokens
from policies.chat import ChatMessage, Reply, Usage
from policies.teaching import TeachingTask, teaching_messages


class LocalTeacher:
    """One model in this process, on the GPU where there is one. Batches of equal tasks give equal texts."""

    def __init__(self, model: str | Path, max_tokens: int, temperature: float, batch_size: int = 8) -> None:
        """
        Raises:
            OSError, ValueError: the model cannot be read, or has no chat template.
        """
        self.name = str(model)
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._batch_size = batch_size
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False, use_safetensors=True, dtype="auto")
        self._model = loaded.to(self._device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._window = int(getattr(self._model.config, "max_position_embeddings", 0) or 0)

    def write(self, tasks: Iterable[TeachingTask]) -> Iterator[Reply]:
        """See `Teacher`. A prompt that leaves no room in the model's window is a failure of that task."""
        taken = iter(tasks)
        while batch := list(islice(taken, self._batch_size)):
            fitting, texts = [], []
            for task in batch:
                text = render_chat(self._tokenizer, teaching_messages(task))
                num_tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
                if self._window and num_tokens + self._max_tokens > self._window:
                    too_long = f"{num_tokens} tokens and {self._max_tokens} of output do not fit into the model's {self._window}"
                    yield Reply(task.key, "", Usage(), failure=too_long)
                else:
                    fitting.append(task)
                    texts.append(text)
            if fitting:
                yield from self._complete(fitting, texts)

    @torch.inference_mode()
    def _generate(self, texts: Sequence[str], seed: int) -> tuple[Any, Any]:
        inputs = self._tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt").to(self._device)
        sampling: dict[str, Any] = {"do_sample": False}
        if self._temperature > 0.0:
            torch.manual_seed(seed)
            sampling = {"do_sample": True, "temperature": self._temperature, "top_p": 1.0, "top_k": 0}
        output = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self._max_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        return inputs, output[:, inputs["input_ids"].shape[1] :].tolist()

    def _complete(self, tasks: Sequence[TeachingTask], texts: Sequence[str]) -> Iterator[Reply]:
        inputs, outputs = self._generate(texts, tasks[0].seed)
        ends = self._ends()
        for row, (task, tokens) in enumerate(zip(tasks, outputs, strict=True)):
            written = next((index for index, token in enumerate(tokens) if token in ends), None)
            text = self._tokenizer.decode(tokens[:written], skip_special_tokens=True)
            usage = Usage(1, int(inputs["attention_mask"][row].sum()), len(tokens) if written is None else written + 1)
            yield Reply(task.key, text, usage, "length" if written is None else "stop")

    def _ends(self) -> set[int]:
        found = self._model.generation_config.eos_token_id
        ends = set(found) if isinstance(found, list) else {found}
        return {token for token in ends | {self._tokenizer.eos_token_id} if token is not None}


def render_chat(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """The prompt of a chat. Templates without a system role, as Gemma's, get its text before the first user's.

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
