"""VIGC's published inference in plain transformers: the baseline of `benchmarks.quality.correction`, not part of the product.

It follows the public code (opendatalab/VIGC, `vigc/tasks/llava_150k_gen.py`): one VIG pass, then four VIC passes. Every pass reads the
whole prompt and the image again and decodes to the end; all but the first sentence is discarded, and that sentence is appended to the
prompt of the next pass. Finished rows, and rows whose VIG output cannot be parsed, still go through all passes. Unlike in the paper
(beam 5 and a repetition penalty), decoding is greedy, so that outputs can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from actors.processors import load_processor
from policies.correction.methods import SentenceBySentence
from policies.generation.instructions import parse_vig

NUM_PASSES = 4
MAX_NEW_TOKENS = 250
AS_PUBLISHED = SentenceBySentence(
    end_at_repetition=False, max_passes=NUM_PASSES, max_new_tokens=MAX_NEW_TOKENS, num_views=0, describe=False, measure_blank=False
)
"""The policy by which our corrector makes what the published inference makes."""


@dataclass(slots=True)
class PublishedRecord:
    """One record; `question` is empty if VIG's output cannot be parsed."""

    question: str
    original_answer: str
    answer: str = ""


@dataclass(slots=True)
class Work:
    """The cost of the passes."""

    decoded_tokens: int = 0
    """Tokens decoded by the VIC passes, up to each row's end."""
    kept_tokens: int = 0
    """Those that belong to a kept sentence."""


class PublishedInference:
    """The published inference for one model."""

    def __init__(self, checkpoint: Path, batch_size: int) -> None:
        self._model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self._processor: Any = load_processor(checkpoint)
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "left"
        self._batch_size = batch_size
        self._unwritable = [int(self._model.config.image_token_id), int(self._tokenizer.pad_token_id)]
        self.work = Work()

    @property
    def model(self) -> Any:
        """The transformers model, for counting its calls."""
        return self._model

    def generate(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> list[PublishedRecord]:
        """VIG: one record per image and instruction, in static batches in the given order."""
        records = []
        for batch in self._batches(len(images)):
            for text in self._texts(self._generate(images[batch], instructions[batch], [""] * len(images[batch]))):
                pair = parse_vig(text)
                records.append(PublishedRecord(pair.question if pair else "", pair.answer if pair else ""))
        return records

    def correct(self, images: Sequence[Image.Image], instructions: Sequence[str], records: list[PublishedRecord]) -> None:
        """VIC: four passes that fill in the answers."""
        for batch in self._batches(len(images)):
            prompts = [record.question or instruction for record, instruction in zip(records[batch], instructions[batch], strict=True)]
            for _ in range(NUM_PASSES):
                written = self._generate(images[batch], prompts, [record.answer for record in records[batch]])
                for record, tokens, text in zip(records[batch], written, self._texts(written), strict=True):
                    sentence = text[: text.index(".") + 1] if "." in text else ""
                    record.answer = " ".join(part for part in (record.answer, sentence) if part)
                    self.work.decoded_tokens += len(tokens)
                    self.work.kept_tokens += len(self._tokenizer(sentence, add_special_tokens=False)["input_ids"])

    def _batches(self, num: int) -> list[slice]:
        return [slice(start, start + self._batch_size) for start in range(0, num, self._batch_size)]

    @torch.inference_mode()
    def _generate(self, images: Sequence[Image.Image], prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The tokens that the model writes after each prompt and partial answer, without the end token."""
        texts = [self._rendered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        nested = [[image] for image in images] if "qformer_tokenizer" not in self._processor.get_attributes() else list(images)
        inputs = self._processor(
            text=texts, images=nested, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        if "qformer_input_ids" in inputs:  # VIGC's Q-Former reads the prompt and the partial answer without a template
            spoken = [f"{prompt} {answer}".strip() for prompt, answer in zip(prompts, answers, strict=True)]
            read = self._processor.qformer_tokenizer(spoken, return_tensors="pt", padding=True)
            inputs |= {"qformer_input_ids": read["input_ids"], "qformer_attention_mask": read["attention_mask"]}
        sequences = self._model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            suppress_tokens=self._unwritable,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        ends = {self._tokenizer.eos_token_id, self._tokenizer.pad_token_id}
        rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: next((at for at, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def _rendered(self, prompt: str, answer: str) -> str:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        if not answer:
            return self._processor.apply_chat_template([user], add_generation_prompt=True)
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        return self._processor.apply_chat_template([user, said], continue_final_message=True)

    def _texts(self, rows: Sequence[list[int]]) -> list[str]:
        return [text.strip() for text in self._tokenizer.batch_decode(rows, skip_special_tokens=True)]
