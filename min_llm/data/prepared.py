"""A prepared folder: what lies in it, how it is opened, checked and described (prepare.py makes it)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from min_llm import fetch, tokenizers
from min_llm.config import UserError
from min_llm.data.tokenfile import TokenFile, open_token_file
from min_llm.tokenizers import Tokenizer

FORMAT, VERSION = "min_llm.data", 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened."""

    folder: Path
    train: TokenFile
    val: TokenFile
    tokenizer: Tokenizer
    meta: dict[str, Any]

    @property
    def attribution(self) -> str:
        return "; ".join(dict.fromkeys(s["attribution"] for s in self.meta["sources"] if s["attribution"]))

    @property
    def licence(self) -> str:
        return "; ".join(dict.fromkeys(s["licence"] for s in self.meta["sources"]))

    def split(self, name: str) -> TokenFile:
        return self.train if name == "train" else self.val

    def text(self, name: str) -> bytes:
        """The text of a split, its documents end to end, as it was before tokenization."""
        ids = self.split(name).plain
        eos = self.tokenizer.eos
        return self.tokenizer.decode_bytes(ids if eos is None else ids[ids != eos])

    def describe(self) -> list[str]:
        """The data report: what the run is about to learn from."""
        titles = ", ".join(s["title"] for s in self.meta["sources"])
        lines = [f"{titles} ({self.folder})"]
        for name in SPLITS:
            tokens = self.split(name)
            lines.append(
                f"{name}: {len(tokens):,} tokens in {tokens.n_documents:,} documents, "
                f"{tokens.text_bytes:,} bytes, {tokens.text_bytes / max(len(tokens), 1):.2f} bytes a token"
            )
        made = self.meta["tokenizer"]
        lines.append(f"tokenizer: {made['name']}, {made['vocab_size']:,} tokens, {made['fingerprint'][:12]}")
        lines.append(f"licence: {self.licence}" + (f". Text: {self.attribution}" if self.attribution else ""))
        return lines


@dataclass(frozen=True)
class Corpus:
    """The text of a run: a prepared folder for each named source, all with one tokenizer."""

    parts: dict[str, Prepared]

    @property
    def tokenizer(self) -> Tokenizer:
        return next(iter(self.parts.values())).tokenizer

    def describe(self) -> list[str]:
        """The data report of every source."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).describe()
        return [f"{name}: {line}" for name, part in self.parts.items() for line in part.describe()]


def data_folder(home: str = "") -> Path:
    """Where prepared folders lie."""
    return (Path(home).expanduser() if home else fetch.home()) / "data"


def prepared_folders(home: str = "") -> list[Path]:
    """All prepared folders, by name."""
    folder = data_folder(home)
    return sorted(
        path.parent for path in folder.glob("*/meta.json") if not path.parent.name.startswith("part-")
    )


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; sizes and forms are checked, contents are not (`verify` does that)."""
    try:
        meta = read_meta(folder)
        tokenizer = tokenizers.load(str(folder / "tokenizer.json"))
        if tokenizer.fingerprint() != meta["tokenizer"]["fingerprint"]:
            raise UserError(f"{folder / 'tokenizer.json'} is not the tokenizer these tokens were made with.")
        files = {}
        for name in SPLITS:
            about = meta["splits"][name]
            files[name] = open_token_file(
                folder / f"{name}.bin",
                about["tokens"],
                np.dtype(meta["dtype"]),
                folder / f"{name}.docs.npy",
                about["documents"],
                vocab_size=tokenizer.vocab_size,
                eos=tokenizer.eos,
                text_bytes=about["text_bytes"],
                scored_bytes=about["scored_bytes"],
            )
    except (UserError, KeyError, OSError) as error:
        said = str(error) if isinstance(error, UserError) else f"{folder} is damaged ({error!r})."
        raise UserError(f"{said} Delete the folder {folder} and prepare the data again.") from error
    return Prepared(folder, files["train"], files["val"], tokenizer, meta)


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a prepared folder. Raises UserError when it is absent, broken or of another version."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no prepared data: it has no meta.json.") from error
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(meta, dict) or (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is not in the format {FORMAT} version {VERSION} that this min_llm reads.")
    return meta


def verify(prepared: Prepared) -> None:
    """Read every byte and compare with the sha256 in meta.json. Raises UserError naming the file that differs."""
    for name, expected in prepared.meta["files"].items():
        if fetch.file_digest(prepared.folder / name) != expected:
            raise UserError(
                f"{prepared.folder / name} has changed since it was written. Delete the folder "
                f"{prepared.folder} and prepare the data again."
            )
