"""The tokenizer in a GGUF file's metadata, written as the `tokenizer.json` it was converted from.

GGUF keeps tokens, merges or scores and, in `tokenizer.ggml.pre`, the name of an expression that splits text;
llama.cpp (llama-vocab.cpp) knows what each name means, and so does `_SPLITS`. A name that is not here is refused:
a wrong expression gives wrong ids without a sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from min_llm.tokenizers import split
from min_llm.tokenizers.base import TokenizerError

# llama.h: kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Qwen 2: as Llama 3, but each digit by itself.
QWEN2 = split.LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# What llama.cpp does with files that name nothing: each expression splits what the one before left.
_UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", split.GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

_SPACE = "\u2581"  # as SentencePiece writes it

_SPLITS: dict[str, tuple[str, ...]] = {
    "default": _UNNAMED,
    "gpt-2": (split.GPT2,),
    "llama-bpe": (split.LLAMA3,),
    "qwen2": (QWEN2,),
    "smollm": (r"\p{N}", split.GPT2),
}


def definition(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as a dict. Raises TokenizerError for metadata that is not complete or not known."""
    model = metadata.get("tokenizer.ggml.model")
    tokens = _list(metadata, "tokens", str)
    types = (
        _list(metadata, "token_type", int)
        if "tokenizer.ggml.token_type" in metadata
        else [NORMAL] * len(tokens)
    )
    if len(types) != len(tokens):
        raise TokenizerError(f"The GGUF file has {len(tokens)} tokens, but {len(types)} token types.")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise TokenizerError(f"The GGUF file has the token {twice!r} twice.")
    if model == "gpt2":
        made = _byte_level(metadata, vocab)
    elif model == "llama":
        made = _sentencepiece(metadata, tokens, types, vocab)
    else:
        raise TokenizerError(
            f"The GGUF file has a tokenizer of the kind {model!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece's BPE)."
        )
    added = [
        {"id": i, "content": token, "special": kind != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    # llama.cpp begins texts with a BOS for these two kinds unless the file says otherwise
    usual = model == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", usual) and bos is not None and int(bos) < len(tokens):
        made["post_processor"] = beginning([(tokens[int(bos)], int(bos))])
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **made}


def beginning(opening: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
    """The post-processor that puts these tokens before every text."""
    if not opening:
        return None
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in opening]
    text, second = ({"Sequence": {"id": part, "type_id": n}} for n, part in enumerate("AB"))
    known = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in opening}
    return {"type": "TemplateProcessing", "single": [*first, text], "pair": [*first, text, *first, second],
            "special_tokens": known}  # fmt: skip


def name_of(made: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text. Raises TokenizerError where it has none."""
    pre = made.get("pre_tokenizer") or {}
    patterns: list[str] = []
    for part in pre.get("pretokenizers", [pre]):
        if part.get("type") == "Split" and part.get("behavior") == "Isolated":
            patterns.append(part["pattern"].get("Regex", ""))
        elif part.get("type") == "Digits" and part.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif part.get("type") == "ByteLevel":
            patterns += [split.GPT2] * bool(part.get("use_regex", True))
    for name, known in _SPLITS.items():
        if tuple(patterns) == known:
            return name
    raise TokenizerError(
        f"llama.cpp has no name for how this tokenizer splits text ({patterns}), so a GGUF file cannot hold it; "
        "write a Hugging Face folder instead."
    )


def _byte_level(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise TokenizerError(
            f"The GGUF file splits text by {pre!r}, an expression that is not known here; known are "
            f"{', '.join(_SPLITS)}."
        )
    merges = [merge.split(" ") for merge in _list(metadata, "merges", str)]
    wrong = next((m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= vocab.keys()), None)
    if wrong is not None:
        raise TokenizerError(
            f"The merge {' '.join(wrong)!r} of the GGUF file does not join two tokens to a third."
        )
    parts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in _SPLITS[pre]
    ]
    spelling = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        # Qwen composes accents before anything else; llama.cpp leaves that out.
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, spelling]},
        "post_processor": None,
        "decoder": spelling,
        # Llama 3 has tokens that no merges reach: a piece that is a token becomes that token.
        "model": _bpe(vocab, merges, ignore_merges=pre == "llama-bpe"),
    }


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], vocab: Mapping[str, int]
) -> dict[str, Any]:
    """SentencePiece's BPE joins the neighbours whose joint piece has the best score: the merges, best first.

    Exact where every byte has a token and no two pieces share a score, runs of spaces apart (theirs is one in
    Mistral's vocabulary; the result is the same, longest first from the left). Anything else is refused. Where one
    piece has several splits they are tried by the ids of their halves, as in Hugging Face's own conversion.
    """
    scores = _list(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise TokenizerError(f"The GGUF file has {len(tokens)} tokens, but {len(scores)} scores.")
    pieces = [(scores[i], token) for i, token in enumerate(tokens) if types[i] == NORMAL]
    long = sorted((-score, vocab[token], token) for score, token in pieces if len(token) > 1)
    shared = [one for one, two in itertools.pairwise(long) if one[0] == two[0]]
    lacking = [
        b for b in range(256) if vocab.get(f"<0x{b:02X}>", -1) < 0 or types[vocab[f"<0x{b:02X}>"]] != BYTE
    ]
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN]
    if lacking or len(unknown) != 1:
        what = f"a token for the byte {lacking[0]:#04x}" if lacking else "exactly one unknown token"
        raise TokenizerError(f"The GGUF file's SentencePiece vocabulary lacks {what}.")
    if any(token.strip(_SPACE) for _, _, token in shared):
        raise TokenizerError(
            "Several pieces of the GGUF file's SentencePiece vocabulary have one score, so the order of merges "
            "is not known; use the model's tokenizer.json."
        )
    if any(_SPACE in token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED):
        raise TokenizerError(
            "The GGUF file's SentencePiece vocabulary has user-defined tokens with spaces, which are matched after "
            "normalisation; use the model's tokenizer.json."
        )
    known = {token for _, token in pieces}
    merges = [
        [left, right]
        for _, _, token in long
        for left, right in sorted(
            ((token[:at], token[at:]) for at in range(1, len(token))),
            key=lambda pair: (vocab.get(pair[0], 0), vocab.get(pair[1], 0)),
        )
        if left in known and right in known
    ]
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": _SPACE}] if prefix else []), space],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=True),
    }


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    plain = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    switches = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **plain, **switches, **options, "vocab": dict(vocab), "merges": merges}


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """A list out of the metadata (a list or NumPy array), its items as `kind`."""
    try:
        return [kind(item) for item in metadata[f"tokenizer.ggml.{key}"]]
    except KeyError as error:
        raise TokenizerError(f"The GGUF file has no tokenizer.ggml.{key}.") from error
    except (TypeError, ValueError) as error:
        raise TokenizerError(
            f"tokenizer.ggml.{key} of the GGUF file must be a list of {kind.__name__}."
        ) from error
