"""An untrained model that writes what a test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from loop.models.seed.model import build_model, build_processor

WORDS = ("▁There", "▁is", "▁a", "▁red", "▁ring", "▁star", "▁large")


def save_biased(folder: Path, biases: Mapping[str, float], chain: Sequence[str] = ()) -> Path:
    """An untrained model that writes the tokens of `biases` alone, each the likelier the higher its bias.

    Llama's head has no bias, so one hidden unit is held up: every text embedding has it, and the head reads it.
    After a token of `chain` the next one is likeliest by far.
    """
    torch.manual_seed(0)
    model, processor = build_model(), build_processor()
    vocabulary = processor.tokenizer.get_vocab()
    with torch.no_grad():
        embedding, head = model.model.language_model.embed_tokens.weight, model.lm_head.weight
        embedding.mul_(20)  # the last token says more about the next one than the layers do
        embedding[:, 0] = 6.0
        head[:, 0] = -5.0
        for token, bias in biases.items():
            head[vocabulary[token], 0] = bias
        for token, following in pairwise(chain):
            head[vocabulary[following], 1:] += embedding[vocabulary[token], 1:]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
