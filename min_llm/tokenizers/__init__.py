"""Tokenizers: text to ids and back. `load` gives a published or a saved one, `train_bpe` and `train_chars`
make one; all of them have the interface `Tokenizer` (base.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from min_llm.config import nearest
from min_llm.formats import gguf, named
from min_llm.tokenizers import bpe, byte, chars, hf, tiktoken_file
from min_llm.tokenizers.base import (
    END_OF_TEXT,
    FILE_NAME,
    Tokenizer,
    TokenizerError,
    chars_per_token,
    check_definition,
    id_dtype,
    read_json,
)
from min_llm.tokenizers.bpe import BPE
from min_llm.tokenizers.bpe_train import extend, train_bpe
from min_llm.tokenizers.byte import Bytes
from min_llm.tokenizers.chars import Chars, train_chars
from min_llm.tokenizers.hf import HuggingFaceTokenizer

__all__ = [
    "BPE",
    "END_OF_TEXT",
    "NAMED",
    "Bytes",
    "Chars",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "TokenizerError",
    "chars_per_token",
    "extend",
    "id_dtype",
    "load",
    "train_bpe",
    "train_chars",
]

NAMED: dict[str, Callable[[], Tokenizer]] = {
    "byte": Bytes,
    "gpt2": tiktoken_file.gpt2,
    "llama3": tiktoken_file.llama3,
}
_KINDS: dict[str, Callable[..., Tokenizer]] = {
    "bpe": bpe.from_definition,
    "byte": byte.from_definition,
    "chars": chars.from_definition,
}


def load(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer of a name in `NAMED`, of a file that `save` wrote (or the folder it lies in), of a
    `*.model` or `*.tiktoken` file in the format of Llama 3, or of a Hugging Face `tokenizer.json` or its folder.

    "llama3" and "gpt2" are downloaded at first use (min_llm/fetch.py). A GGUF file or the name of a model
    (formats/named.py) gives that model's. Raises TokenizerError.
    """
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]()
    model = str(name_or_path) in named.NAMED
    path = named.fetched(str(name_or_path)) if model else Path(name_or_path).expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise TokenizerError(
            f"{str(name_or_path)!r} is neither a tokenizer file nor a known tokenizer."
            + nearest(str(name_or_path), list(NAMED))
        )
    if path.suffix == ".gguf":
        return hf.from_gguf(gguf.read(path).metadata)
    if path.suffix in (".model", ".tiktoken"):
        return tiktoken_file.llama3(path)
    given = read_json(path)
    if hf.is_hugging_face(given):
        return hf.from_file(path, given)
    given = check_definition(given, path)
    kind = str(given.get("kind"))
    if kind not in _KINDS:
        raise TokenizerError(f"{path} holds a tokenizer of the kind {kind!r}; known are {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](given)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged: {error!r} while reading its {kind} tokenizer.") from error
