"""A toy model as other programs give one: a folder in Hugging Face's form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from min_llm.formats import huggingface
from min_llm.tokenizers import export
from tests.toy_tokenizers import toy
from tests.toys import LLAMA, random_weights


def write(path: Path) -> Path:
    """A Llama with random weights and a small BPE, whose texts begin with the token that ends them."""
    tokenizer = toy("bpe")
    cfg = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    files = export.folder_files(tokenizer, None, (tokenizer.eos,), cfg.max_seq_len)
    return huggingface.write(path, cfg, random_weights(cfg), extra=files)
