"""Our tokenizers written for other programs: a Hugging Face tokenizer.json with its configuration, or GGUF metadata.

Byte-level BPE is the kind that others have too; characters and bytes alone have no place in their files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from min_llm.tokenizers import gguf_vocabulary
from min_llm.tokenizers.base import Tokenizer, TokenizerError
from min_llm.tokenizers.bpe import BPE, join
from min_llm.tokenizers.byte_level import printable
from min_llm.tokenizers.chat import ChatTemplate
from min_llm.tokenizers.hf import HuggingFaceTokenizer


def definition(tokenizer: Tokenizer, opening: Sequence[int] = ()) -> dict[str, Any]:
    """The tokenizer.json, whose post-processor begins every text with the tokens `opening`."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return dict(tokenizer.definition)
    if not isinstance(tokenizer, BPE):
        raise TokenizerError(
            f"The tokenizer {tokenizer.name!r} has no form in other programs' files; byte-level BPE has "
            "(data.tokenizer=bpe:SIZE)."
        )
    spelling = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pattern = {
        "type": "Split",
        "pattern": {"Regex": tokenizer.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    names = {i: name for name, i in tokenizer.special.items()}
    vocab = {printable(token): i for i, token in enumerate(tokenizer.tokens)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": name, "special": True} | plain for name, i in tokenizer.special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, spelling]},
        "post_processor": gguf_vocabulary.beginning([(names[i], i) for i in opening]),
        "decoder": spelling,
        # a piece that is a token becomes that token, as in tiktoken
        "model": {"type": "BPE", "vocab": vocab, "merges": merges(tokenizer), "ignore_merges": True},
    }  # fmt: skip


def merges(tokenizer: BPE) -> list[list[str]]:
    """The two parts of every token, in the order in which they are joined: what the ranks imply."""
    found = []
    for rank, token in enumerate(tokenizer.tokens):
        if len(token) > 1:
            parts = join(token, tokenizer.ranks, rank)
            if len(parts) == 2:  # one that no merges reach is there as a whole piece only
                found.append([printable(part) for part in parts])
    return found


def folder_files(
    tokenizer: Tokenizer, template: ChatTemplate | None, opening: Sequence[int], max_seq_len: int
) -> dict[str, str]:
    """Text of each file that goes beside the weights, by its name."""
    spelled = {i: name for name, i in tokenizer.special.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_seq_len}
    bos = opening[0] if opening else getattr(tokenizer, "bos", None)
    for what, token in (("bos", bos), ("eos", tokenizer.eos)):
        if token is not None and token in spelled:
            config[f"{what}_token"] = spelled[token]
    if template is not None:
        config["chat_template"] = template.source
    ends = {"eos_token_id": tokenizer.eos} | ({} if bos is None else {"bos_token_id": bos})
    files = {"tokenizer.json": definition(tokenizer, opening), "tokenizer_config.json": config,
             "generation_config.json": ends}  # fmt: skip
    return {name: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for name, content in files.items()}


def gguf_metadata(
    tokenizer: Tokenizer, template: ChatTemplate | None, opening: Sequence[int]
) -> dict[str, Any]:
    """`tokenizer.ggml.*`, as llama.cpp reads it. Raises TokenizerError for an expression that it has no name for."""
    made = definition(tokenizer)
    model = made["model"]
    if model.get("type") != "BPE" or (made.get("decoder") or {}).get("type") != "ByteLevel":
        raise TokenizerError(
            f"Only byte-level BPE is written to GGUF files; {tokenizer.name!r} is of another kind."
        )
    special = {t["id"]: t for t in made["added_tokens"]}
    by_id = {i: token for token, i in model["vocab"].items()} | {i: t["content"] for i, t in special.items()}
    tokens = [by_id.get(i, f"[UNUSED{i}]") for i in range(tokenizer.vocab_size)]
    kinds = [
        gguf_vocabulary.UNUSED if i not in by_id
        else gguf_vocabulary.NORMAL if i not in special
        else gguf_vocabulary.CONTROL if special[i].get("special") else gguf_vocabulary.USER_DEFINED
        for i in range(len(tokens))
    ]  # fmt: skip
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": gguf_vocabulary.name_of(made),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.add_bos_token": bool(opening),
    }
    bos = opening[0] if opening else getattr(tokenizer, "bos", None)
    for what, token in (("bos", bos), ("eos", tokenizer.eos)):
        if token is not None:
            metadata[f"tokenizer.ggml.{what}_token_id"] = np.uint32(token)
    return metadata | ({} if template is None else {"tokenizer.chat_template": template.source})
