"""Small tokenizers of the kinds that differ in how ids become text: bytes, our BPE, and Hugging Face's two."""

from __future__ import annotations

import functools

from min_llm import tokenizers
from min_llm.tokenizers import HuggingFaceTokenizer, Tokenizer, export, hf

KINDS = ("byte", "bpe", "byte_level", "sentencepiece")
SPECIAL = ("<|end_of_text|>", "<|eot_id|>", "<|python_tag|>")
_TEXT = """The theory, "in all the rest", he said: {"a": [1, 22, 333], "b": {"c": true}}. Größe 東京 🙂🙃"""


@functools.cache
def toy(kind: str) -> Tokenizer:
    """The tokenizer of a kind, with the special tokens SPECIAL; merges cut characters and JSON where they like."""
    if kind == "byte":
        return tokenizers.Bytes(SPECIAL)
    if kind == "bpe":
        return tokenizers.train_bpe([_TEXT * 3], 310, special=SPECIAL)
    if kind == "byte_level":
        return HuggingFaceTokenizer(export.definition(toy("bpe")), eos=toy("bpe").eos)
    pieces = ["▁t", "he", "▁the", '▁"', '":', "▁▁", '"a', '":▁', "▁{", "é", "🙂", "東京", *'▁aehnt"1{}:,']
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 260 + [-float(i) for i in range(len(pieces))],
        "token_type": [2, 3, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "eos_token_id": 1,
    }
    return hf.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
