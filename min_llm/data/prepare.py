"""Text -> split -> tokenizer -> token files: done once, then found again by what it was made from.

`prepare(DataConfig)` fills `$MIN_LLM_HOME/data/<name>-<hash>/` and never changes it afterwards:

    train.bin, val.bin            token ids, little-endian uint16 (vocabulary <= 65,536) or uint32
    train.docs.npy, val.docs.npy  where documents start (tokenfile.py)
    tokenizer.json                trained on the training text only, where it is trained
    meta.json                     counts, hashes, licence, attribution, configuration, version of this format

The folder is made under another name and renamed when it is complete. Its hash covers the configuration and
the identity of the sources (pins, sha256; size and time of the user's own files): other input, another folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from min_llm import fetch, tokenizers
from min_llm.config import UserError, dump, option
from min_llm.data import readers
from min_llm.data.sources import Source, resolve, slug
from min_llm.data.tokenfile import TokenFile, open_token_file, token_dtype
from min_llm.reporting import reporter
from min_llm.tokenizers import Tokenizer

FORMAT, VERSION = "min_llm.data", 1
SPLITS = ("train", "val")
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokenizer, which split."""

    source: str | tuple[str, ...] = option(
        "shakespeare", "name from `min-llm data list`, hf:OWNER/NAME, or a path; or a list of them"
    )
    tokenizer: str = option(
        "bpe:2048", "chars or bpe:SIZE (of the training text), bytes, gpt2, llama3, a path"
    )
    split: Literal["auto", "tail", "documents", "holdout"] = option(
        "auto",
        "validation text: the tail of every document, whole documents drawn by their hash, the works that the "
        "source holds out; auto: the source's own rule",
    )
    val_fraction: float = option(0.1, "share of the text for validation (tail and documents)")
    tune: bool = option(False, "validate on the tail of the training text and leave the validation text out")
    seed: int = option(0, "of the draw of documents")
    field: str = option("text", "field of .jsonl, .parquet and Hugging Face rows that holds the text")
    home: str = option("", "folder for prepared data instead of $MIN_LLM_HOME")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source


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
        lines = []
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


def prepare(cfg: DataConfig) -> Prepared:
    """The token files of a configuration: opened when they exist, made otherwise. Reports what is in them.

    Raises UserError for unknown or malformed sources, a split that leaves nothing, a full or read-only disk,
    and prepared files that have been damaged.
    """
    if not 0 < cfg.val_fraction < 1:
        raise UserError(
            f"data.val_fraction is {cfg.val_fraction}; it must lie between 0 and 1, for example 0.1."
        )
    if not cfg.sources:
        raise UserError("data.source is an empty list; name at least one source (`min-llm data list`).")
    sources = [resolve(spec, cfg.field) for spec in cfg.sources]
    folder = data_folder(cfg.home) / f"{_name(cfg, sources)}-{_hash(cfg, sources)}"
    if not folder.is_dir():
        reporter().info(f"Preparing {folder.name} in {folder.parent}")
        with _disk_errors(folder.parent):
            _make(cfg, sources, folder)
    prepared = open_prepared(folder)
    for line in prepared.describe():
        reporter().info(f"Data {'+'.join(s.name for s in sources)}, {line}")
    return prepared


def data_folder(home: str = "") -> Path:
    """Where prepared folders lie."""
    return (Path(home).expanduser() if home else fetch.home()) / "data"


def _name(cfg: DataConfig, sources: list[Source]) -> str:
    names = "+".join(s.name for s in sources) if len(sources) < 4 else f"{len(sources)}-sources"
    return f"{names}-{slug(Path(cfg.tokenizer).stem)}" + ("-tune" if cfg.tune else "")


def _hash(cfg: DataConfig, sources: list[Source]) -> str:
    made_from: dict[str, Any] = {"version": VERSION, "sources": [s.identity() for s in sources]}
    made_from |= {k: getattr(cfg, k) for k in ("tokenizer", "split", "val_fraction", "tune", "seed")}
    if Path(cfg.tokenizer).exists():
        made_from["tokenizer"] = tokenizers.load(cfg.tokenizer).fingerprint()
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:10]


# Opening


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


# Making

Piece = Callable[[str, str], tuple[str, str]]  # (document's name, text) -> (training text, validation text)


def _make(cfg: DataConfig, sources: list[Source], folder: Path) -> None:
    """Fill `folder` under another name and rename it; whatever goes wrong, nothing half made is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=folder.parent))
    try:
        splits = [_splitter(cfg, source) for source in sources]
        pieces = {name: lambda k=k: _pieces(sources, splits, k) for k, name in enumerate(SPLITS)}
        tokenizer = _tokenizer(cfg.tokenizer, pieces["train"])
        tokenizer.save(part / "tokenizer.json")
        dtype = token_dtype(tokenizer.vocab_size)
        about = {}
        for name in SPLITS:
            about[name] = _encode(pieces[name](), tokenizer, part, name, sources)
            if about[name]["tokens"] < 2:
                raise UserError(
                    f"The split {cfg.split!r} leaves {about[name]['tokens']} tokens for {name}. "
                    "Use more text, another data.val_fraction or another data.split."
                )
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "config": dump(cfg),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sources": [_about(source) for source in sources],
            "tokenizer": {
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint(),
                "vocab_size": tokenizer.vocab_size,
                "eos": tokenizer.eos,
            },
            "dtype": dtype.str,
            "splits": about,
            "files": {path.name: fetch.file_digest(path) for path in sorted(part.iterdir())},
        }
        _write(part / "meta.json", (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode())
        part.chmod(0o755)
        try:
            os.rename(part, folder)
        except OSError as error:  # another process was first: its folder is as good
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _about(source: Source) -> dict[str, Any]:
    """What meta.json says of a source; the user's own files with their sha256."""
    about = {k: getattr(source, k) for k in ("spec", "title", "licence", "attribution", "hf", "split")}
    about["identity"] = source.identity()
    if not source.entry and not source.spec.startswith("hf:"):
        files = readers.user_files(Path(source.spec))
        about["sha256"] = {str(path): fetch.file_digest(path) for path in files}
    return about


def _pieces(sources: list[Source], splits: list[Piece], which: int) -> Iterator[str]:
    """The non-empty training (0) or validation (1) texts of all documents of all sources."""
    for source, split in zip(sources, splits, strict=True):
        for name, text in source.documents():
            piece = split(name, text)[which]
            if piece:
                yield piece


def _splitter(cfg: DataConfig, source: Source) -> Piece:
    """The rule that cuts a source's documents into training and validation text."""
    rule = source.split if cfg.split == "auto" else cfg.split
    if rule == "tail":
        split: Piece = lambda name, text: tail(text, cfg.val_fraction)
    elif rule == "holdout":
        if not source.holdout:
            raise UserError(f"{source.name} names no works to hold out; use data.split=tail or documents.")
        split = lambda name, text: ("", text) if name in source.holdout else (text, "")
    else:
        last = _last_held_out(cfg, source)
        split = lambda name, text: ("", text) if draw(text, cfg.seed) <= last else (text, "")
    if cfg.tune:
        return lambda name, text: tail(split(name, text)[0], cfg.val_fraction)
    return split


def tail(text: str, fraction: float) -> tuple[str, str]:
    """The first and the last part of a text: nanoGPT's split, in characters."""
    at = int(len(text) * (1 - fraction))
    return text[:at], text[at:]


def draw(text: str, seed: int) -> int:
    """A number in [0, 2^64) that depends on seed and text alone: equal documents fall on the same side."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode(errors="replace")).digest()[:8], "big")


def _last_held_out(cfg: DataConfig, source: Source) -> int:
    """The highest draw that is validation: the lowest draws make up val_fraction of the characters."""
    draws, lengths = array("Q"), array("Q")
    for _, text in source.documents():
        draws.append(draw(text, cfg.seed))
        lengths.append(len(text))
    order = np.argsort(np.asarray(draws))
    reached = np.cumsum(np.asarray(lengths)[order]) / max(sum(lengths), 1)
    n = int(np.searchsorted(reached, cfg.val_fraction)) + 1
    held, rest = np.asarray(draws)[order[:n]], np.asarray(draws)[order[n:]]
    if not len(rest) or rest.max() == held.max():
        raise UserError(
            f"{source.name} has {len(draws)} documents: too few to hold out whole ones. Use data.split=tail."
        )
    if reached[n - 1] > 2 * cfg.val_fraction:
        reporter().warn(
            f"{reached[n - 1]:.0%} of {source.name} is validation text, because its documents are few and long; "
            "data.split=tail cuts every document."
        )
    return int(held.max())


def _tokenizer(spec: str, train: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer of a spec; chars and bpe:SIZE learn from the training texts and nothing else."""
    if spec == "chars":
        documents = sum(1 for _ in train())
        end = (tokenizers.END_OF_TEXT,) if documents > 1 else ()  # one long text has no end to learn
        return tokenizers.train_chars(train(), end, end[0] if end else None)
    kind, _, size = spec.partition(":")
    if kind != "bpe":
        return tokenizers.load("byte" if spec == "bytes" else spec)
    if not size.isdigit():
        raise UserError(f"data.tokenizer is {spec!r}; write bpe:SIZE, for example bpe:2048.")
    reporter().info(f"Training a byte-level BPE of {int(size):,} tokens on the training text")
    return tokenizers.train_bpe(train(), int(size))


def _encode(
    texts: Iterable[str], tokenizer: Tokenizer, folder: Path, name: str, sources: list[Source]
) -> dict[str, int]:
    """Write one split; returns its counts. EOS opens the first document and follows each (tokenfile.py)."""
    dtype, eos = token_dtype(tokenizer.vocab_size), tokenizer.eos
    text_bytes = unscored = n_tokens = 0
    starts = array("q")

    def counted() -> Iterator[str]:
        nonlocal text_bytes
        for text in texts:
            size = len(text.encode(errors="replace"))
            text_bytes += size
            progress.advance(size)
            yield text

    total = sum(source.size for source in sources)  # of both splits: the bar is a rough one
    path = folder / f"{name}.bin"
    with path.open("wb") as file, reporter().progress(total, f"encoding {name}") as progress:
        if eos is not None:
            file.write(np.array([eos], dtype).tobytes())
        for ids in tokenizer.encode_documents(counted()):
            starts.append(n_tokens)
            file.write(ids.astype(dtype, copy=False).tobytes())
            n_tokens += len(ids) + (eos is not None)
            if eos is None:
                unscored += len(tokenizer.decode_bytes(ids[:1]))
            else:
                file.write(np.array([eos], dtype).tobytes())
        n_tokens += eos is not None
        _flush(file)
    with (folder / f"{name}.docs.npy").open("wb") as file:
        np.save(file, np.frombuffer(starts, np.int64) if starts else np.zeros(0, np.int64))
        _flush(file)
    counts = {"tokens": n_tokens, "documents": len(starts)}
    return counts | {"text_bytes": text_bytes, "scored_bytes": text_bytes - unscored}


# Disk


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _flush(file)


def _flush(file: Any) -> None:
    """On the disk, not in its cache: the rename that follows must not overtake the bytes."""
    file.flush()
    os.fsync(file.fileno())


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind; preparing takes less than a day."""
    for part in folder.glob("part-*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk becomes a sentence with the way out."""
    advice = "Choose another folder with data.home or MIN_LLM_HOME."
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"The disk is full: no room for prepared data in {folder}. {advice}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"Prepared data cannot be written to {folder}: {error.strerror}. {advice}"
            ) from error
        raise


def prepared_folders(home: str = "") -> list[Path]:
    """All prepared folders, by name."""
    folder = data_folder(home)
    return sorted(
        path.parent for path in folder.glob("*/meta.json") if not path.parent.name.startswith("part-")
    )
