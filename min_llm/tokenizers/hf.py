"""Tokenizers of Hugging Face: a `tokenizer.json`, run by the Rust library that defines the format.

The library splits, normalises and merges; this file adds what min_llm promises and the library does not. Text
never becomes a special token unless asked for, no BOS or EOS is added, ids keep the numbers of the file even
where these have holes, and ids give back exact bytes. The tokens a file calls added but not special (Qwen's
`<tool_call>`) are found in any text, as in every other program. What a file's normaliser changes (NFC in Qwen,
"▁" and the first space in SentencePiece's kind) stays changed: decoding gives the text the model sees.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.tokenizers import base, byte_level, gguf_vocabulary
from min_llm.tokenizers.base import TokenizerError
from min_llm.tokenizers.bpe import GROUP_CHARS, grouped

CONFIG_NAME = "tokenizer_config.json"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_UNDERLINE = "\u2581"  # SentencePiece writes a space as this block


@dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer:
    """What a tokenizer.json says, and the ids that begin (`bos`) and end (`eos`) a document, if any.

    Raises TokenizerError for a definition the library refuses, and for one whose decoder gives no exact bytes
    (WordPiece).
    """

    definition: Mapping[str, Any]
    bos: int | None = None
    eos: int | None = None
    name: str = "hf"

    def __post_init__(self) -> None:
        _added(self.definition)  # checked before the library sees it, which names no place
        _ = self._rust, self.spelled
        for what, token in (("bos", self.bos), ("eos", self.eos)):
            if token is not None and token not in self._by_id:
                raise TokenizerError(f"The {what} id {token} is not among the ids of {self.name!r}.")

    @cached_property
    def _pinned(self) -> dict[str, Any]:
        """The definition without padding and truncation, with added tokens where the library keeps their ids.

        The library numbers added tokens itself unless the model has them, so those that follow a hole go there.
        """
        given = {**self.definition, "truncation": None, "padding": None}
        rust = _build(given)
        wrong = {t["content"]: t["id"] for t in _added(given) if rust.token_to_id(t["content"]) != t["id"]}
        if wrong:
            model = given["model"]
            if not isinstance(model.get("vocab"), dict):
                raise TokenizerError(
                    f"The added token {next(iter(wrong))!r} has an id the library cannot keep."
                )
            taken = {i: token for token, i in model["vocab"].items()}
            for token, i in wrong.items():
                if taken.get(i, token) != token or model["vocab"].get(token, i) != i:
                    raise TokenizerError(f"The id {i} of the added token {token!r} belongs to another token.")
            given["model"] = {**model, "vocab": {**model["vocab"], **wrong}}
        return given

    @cached_property
    def _rust(self) -> Any:
        """The library's tokenizer, special tokens found in the text."""
        return _build(self._pinned)

    @cached_property
    def _plain(self) -> Any:
        """The library's tokenizer, to which special tokens are text. (A second one: a switch is not thread-safe.)"""
        rust = _build(self._pinned)
        rust.encode_special_tokens = True
        return rust

    @cached_property
    def _by_id(self) -> dict[int, str]:
        return {i: token for token, i in self._rust.get_vocab(with_added_tokens=True).items()}

    @cached_property
    def vocab_size(self) -> int:
        """The highest id + 1; ids in between may be holes."""
        return max(self._by_id, default=-1) + 1

    @cached_property
    def special(self) -> dict[str, int]:
        tokens = [t for t in _added(self.definition) if t.get("special")]
        return {t["content"]: t["id"] for t in sorted(tokens, key=lambda t: t["id"])}

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What the file's post-processor puts before every text: a BOS, or nothing."""
        put = self._rust.encode("", add_special_tokens=True).ids
        return tuple(i for i in put if i == self.bos or i != self.eos)

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        """Ids that no plain text may have: the special tokens and the one that stands for unknown text."""
        model = self.definition["model"]
        unknown = model.get("unk_id", self._rust.token_to_id(model.get("unk_token") or ""))
        return frozenset(self.special.values()) | ({unknown} if unknown is not None else set())

    @cached_property
    def _lacking(self) -> bytes:
        """Bytes that a byte-level vocabulary has no token for: the library would drop them (SmolLM2 lacks 0xF1)."""
        if "ByteLevel" not in self._decoders:
            return b""
        single = {token for token in self.spelled.values() if len(token) == 1}
        return bytes(byte for byte in range(256) if bytes([byte]) not in single)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        self._check(text)
        if allow_special:
            return self._rust.encode(text, add_special_tokens=False).ids
        return self._checked(text, self._plain.encode(text, add_special_tokens=False).ids)

    def _check(self, text: str) -> None:
        """Refuse text that the library would drop characters of."""
        data = base.utf8(text)
        if self._lacking and (found := re.search(b"[" + re.escape(self._lacking) + b"]", data)):
            start = len(data[: found.start()].decode(errors="ignore"))
            raise TokenizerError(
                f"{text[start]!r} at position {start} is outside the vocabulary of {self.name!r}, which lacks the "
                f"byte {found[0][0]:#04x}."
            )

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The ids of plain text, none of them special: the last guard against injection.

        A model may reach one without the added tokens: its unknown token, or a Unigram model that lists `</s>`.
        """
        if self._forbidden.isdisjoint(ids):
            return ids
        at = next(place for place, i in enumerate(ids) if i in self._forbidden)
        # The fast path keeps no offsets, so the place is looked up again.
        start, end = self._plain.encode(text, add_special_tokens=False).offsets[at]
        raise TokenizerError(
            f"{text[start:end]!r} at position {start} is outside the vocabulary of {self.name!r}: as plain text "
            f"it becomes the special token {self._by_id[ids[at]]!r}."
        )

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        dtype = base.id_dtype(self.vocab_size)
        groups = grouped(texts, GROUP_CHARS * (os.cpu_count() or 1))  # the library has threads of its own
        for group in groups:
            for text in group:
                self._check(text)
            encoded = self._plain.encode_batch_fast(group, add_special_tokens=False)
            for text, encoding in zip(group, encoded, strict=True):
                ids = self._checked(text, encoding.ids)
                yield np.fromiter(ids, dtype, len(ids))

    @cached_property
    def _decoders(self) -> set[Any]:
        return {part.get("type") for part in _parts(self.definition.get("decoder"), "decoders")}

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        kinds = self._decoders
        if "ByteLevel" in kinds:
            spell = _byte_level
        elif kinds & {"ByteFallback", "Metaspace"}:
            spell = _sentencepiece
        else:
            raise TokenizerError(
                f"The decoder of {self.name!r} is {', '.join(sorted(map(str, kinds))) or 'missing'}; exact bytes "
                "need ByteLevel (GPT-2, Llama 3, Qwen), ByteFallback or Metaspace (Llama 2, Mistral, Gemma)."
            )
        added = {t["id"] for t in _added(self.definition)}
        return {i: token.encode() if i in added else spell(token) for i, token in self._by_id.items()}

    @cached_property
    def _first_space_is_added(self) -> bool:
        """Whether encoding puts a space before the text, which decoding then takes away."""
        parts = _parts(self.definition.get("decoder"), "decoders")
        return any(
            (part.get("type") == "Strip" and part.get("content") == " " and part.get("start"))
            or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
            for part in parts
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        checked = base.check_ids(ids, self.vocab_size, self.name)
        try:
            data = b"".join([self.spelled[i] for i in checked])
        except KeyError as error:
            raise TokenizerError(
                f"Id {error.args[0]} at position {checked.index(error.args[0])} is a hole in the vocabulary of "
                f"{self.name!r}: no token has it."
            ) from error
        return data.removeprefix(b" ") if self._first_space_is_added else data

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        return base.fingerprint({"tokenizer": self._pinned, "bos": self.bos, "eos": self.eos})

    def save(self, path: str | Path) -> Path:
        """Write the tokenizer.json, and BOS, EOS and name into the tokenizer_config.json beside it (the file of
        the first has no room for them); what else that one says stays. Returns the path of the first."""
        path = base.write_text(path, json.dumps(self.definition, ensure_ascii=False, indent=0) + "\n")
        config = _config(path.parent / CONFIG_NAME)
        for key, token in (("bos_token", self.bos), ("eos_token", self.eos)):
            config[key] = None if token is None else self._by_id[token]
        config["name_or_path"] = self.name
        base.write_text(path.parent / CONFIG_NAME, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        return path


def is_hugging_face(given: Any) -> bool:
    """Whether JSON that was read is a tokenizer.json of Hugging Face (and not min_llm's file of that name)."""
    return isinstance(given, dict) and "model" in given and given.get("format") != base.FORMAT


def from_folder(folder: str | Path) -> HuggingFaceTokenizer:
    """The tokenizer of a model's folder. Raises TokenizerError."""
    path = Path(folder).expanduser() / base.FILE_NAME
    return from_file(path, base.read_json(path))


def from_file(path: Path, given: Any) -> HuggingFaceTokenizer:
    """The tokenizer of a tokenizer.json that was read; BOS and EOS are in the files beside it.

    EOS is tokenizer_config.json's `eos_token`, else the first `eos_token_id` of generation_config.json.
    """
    if not is_hugging_face(given):
        raise TokenizerError(f"{path} is not a tokenizer in Hugging Face's format: it has no model.")
    config, generation = (_config(path.parent / file) for file in (CONFIG_NAME, "generation_config.json"))
    name = config.get("name_or_path")
    name = name if isinstance(name, str) and name else path.resolve().parent.name or "hf"
    try:
        given = _with_named(given, config)
        bos, eos = (_end_id(given, config, generation, what) for what in ("bos", "eos"))
        return HuggingFaceTokenizer(given, bos, eos, name)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged: {error!r} while reading Hugging Face's format.") from error


def _end_id(
    given: Mapping[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any], what: str
) -> int | None:
    """The id of BOS or EOS: the token that tokenizer_config.json names, else the id in generation_config.json."""
    token = _content(config.get(f"{what}_token"))
    if token is not None:
        known = _ids(given)
        if token not in known:
            raise TokenizerError(f"{CONFIG_NAME} names the {what} token {token!r}, which has no id.")
        return known[token]
    ids = generation.get(f"{what}_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids  # Llama 3 lists all ids that stop it
    return first if type(first) is int else None


def _with_named(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with the tokens that tokenizer_config.json names (its EOS, padding, …) among the special ones:
    transformers holds them for special whatever the tokenizer.json says."""
    lists = (config.get("additional_special_tokens"), config.get("extra_special_tokens"))
    named = {
        _content(config.get(f"{what}_token")) for what in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    }
    named |= {_content(token) for some in lists if isinstance(some, list) for token in some}
    known, added = _ids(given), _added(given)
    listed = {t["content"] for t in added}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [{"id": known[token], "content": token, **flags} for token in named - listed if token in known]
    marked = [{**t, "special": True} if t["content"] in named else t for t in added]
    return {**given, "added_tokens": sorted([*marked, *new], key=lambda t: t["id"])}


def _ids(given: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the model (a dict, or Unigram's list of pieces) and of the added tokens."""
    vocab = given["model"].get("vocab")
    known = {**vocab} if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab or [])}
    return known | {t["content"]: t["id"] for t in _added(given)}


def _content(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its `content`."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def from_gguf(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """The tokenizer inside a GGUF file, from its metadata (`tokenizer.ggml.*`). Raises TokenizerError."""
    definition = gguf_vocabulary.definition(metadata)
    bos, eos = (metadata.get(f"tokenizer.ggml.{what}_token_id") for what in ("bos", "eos"))
    name = str(metadata.get("general.name") or metadata.get("general.basename") or "gguf")
    return HuggingFaceTokenizer(
        definition, None if bos is None else int(bos), None if eos is None else int(eos), name
    )


def _build(definition: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(
            f"The tokenizers library cannot read this file in Hugging Face's format: {error}."
        ) from error


def _added(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or any(
        not isinstance(t, dict) or not isinstance(t.get("content"), str) or type(t.get("id")) is not int
        for t in added
    ):
        raise TokenizerError("'added_tokens' must be a list of objects with 'content' and 'id'.")
    return added


def _parts(given: Any, inside: str) -> list[dict[str, Any]]:
    """The parts of a decoder, which may be a sequence of others."""
    if not isinstance(given, dict):
        return []
    if given.get("type") != "Sequence":
        return [given]
    return list(itertools.chain.from_iterable(_parts(part, inside) for part in given.get(inside, ())))


def _byte_level(token: str) -> bytes:
    """A token of byte-level BPE; one outside its alphabet is plain text, as the library has it."""
    try:
        return byte_level.from_printable(token)
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_UNDERLINE, " ").encode()


def _config(path: Path) -> dict[str, Any]:
    """A JSON object beside the tokenizer, {} where there is none."""
    if not path.is_file():
        return {}
    given = base.read_json(path)
    if not isinstance(given, dict):
        raise TokenizerError(f"{path} must hold a JSON object.")
    return given
