"""A tiny text model of a folder's own, taught in a second to say one thing whatever it reads."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("8", "9", "A", "B", "C", "good", "bad", "and", "the", "answer", "is")
TEMPLATE = "{{ bos_token }}{% for one in messages %}{{ one['content'] }} {% endfor %}{{ '<asked>' }}"


def save_text_model(folder: Path, says: str, window: int = 2048) -> Path:
    """A Hugging Face folder of a model that ends every chat with `says`, whose words are of `WORDS`."""
    special = ("<unk>", "<s>", "</s>", "<pad>", "<asked>")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate((*special, *WORDS))}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<asked>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=window, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    said = [*(fast.convert_tokens_to_ids(word) for word in ("<asked>", *says.split())), 2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        read = torch.randint(0, len(fast), (16, 24))
        rows = torch.cat([read, torch.tensor(said).expand(16, -1)], dim=1)
        labels = torch.cat([torch.full((16, 25), -100), rows[:, 25:]], dim=1)
        loss = model(input_ids=rows, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
