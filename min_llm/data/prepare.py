"""Text -> split -> tokenizer -> token files: done once, then found again by what it was made from.

`prepare(DataConfig)` fills `$MIN_LLM_HOME/data/<name>-<hash>/` and never changes it afterwards:

    train.bin, val.bin            token ids, little-endian uint16 (vocabulary <= 65,536) or uint32
    train.docs.npy, val.docs.npy  where documents start (tokenfile.py)
    tokenizer.json                trained on the training text only, where it is trained
    meta.json                     counts, hashes, licence, attribution, configuration, version of this format

The sources of a mix get a folder each and share a tokenizer, which lies beside them when it is learned from their text.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from min_llm import fetch, tokenizers
from min_llm.config import UserError, dump, option
from min_llm.data import readers
from min_llm.data.mix import Phase, check_phases
from min_llm.data.prepared import FORMAT, SPLITS, VERSION, Corpus, Prepared, data_folder, open_prepared
from min_llm.data.sources import Source, resolve, slug
from min_llm.data.split import Piece, splitter
from min_llm.data.tokenfile import token_dtype
from min_llm.reporting import reporter
from min_llm.tokenizers import Tokenizer

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokenizer, which split."""

    source: str | tuple[str, ...] = option(
        "shakespeare", "name from `min-llm data list`, hf:OWNER/NAME, or a path; or a list of them"
    )
    sources: dict[str, str | tuple[str, ...]] = option(
        {},
        "names for what data.mix weighs, each a source or a list of them; without it the mix names sources",
    )
    mix: tuple[Phase, ...] = option(
        (),
        "instead of data.source: phases of {until: TOKENS, weights: {NAME: SHARE}}, the last without until",
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
    def specs(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def parts(self) -> dict[str, DataConfig]:
        """The configuration of each source of the mix by its name; of the text itself without a mix."""
        if not self.mix:
            if self.sources:
                raise UserError(
                    "data.sources names the sources of a mix, but data.mix is empty; add its weights."
                )
            return {"text": self}
        weighed = {name: name for phase in self.mix for name in phase.weights}
        named = self.sources or weighed
        check_phases(self.mix, named)
        return {name: replace(self, source=source, sources={}, mix=()) for name, source in named.items()}


def prepare_corpus(cfg: DataConfig) -> Corpus:
    """`prepare` for every source of the mix, in a folder each, with one tokenizer: one that is learned is learned from
    the training texts of all of them. Other weights, or another order of phases, prepare nothing anew."""
    parts = cfg.parts
    if cfg.mix and is_learned(cfg.tokenizer):
        path = str(_shared_tokenizer(cfg, list(parts.values())))
        parts = {name: replace(part, tokenizer=path) for name, part in parts.items()}
    return Corpus({name: prepare(part) for name, part in parts.items()})


def prepare(cfg: DataConfig) -> Prepared:
    """The token files of a configuration: opened when they exist, made otherwise. Reports what is in them.

    Raises UserError for unknown or malformed sources, a split that leaves nothing, a full or read-only disk,
    and prepared files that have been damaged.
    """
    sources = _sources(cfg)
    folder = data_folder(cfg.home) / f"{_name(cfg, sources)}-{_hash(cfg, sources)}"
    if not folder.is_dir():
        reporter().info(f"Preparing {folder.name} in {folder.parent}")
        with _disk_errors(folder.parent):
            _make(cfg, sources, folder)
    prepared = open_prepared(folder)
    for line in prepared.describe():
        reporter().info(f"data: {line}")
    return prepared


def _sources(cfg: DataConfig) -> list[Source]:
    if not 0 < cfg.val_fraction < 1:
        raise UserError(
            f"data.val_fraction is {cfg.val_fraction}; it must lie between 0 and 1, for example 0.1."
        )
    if not cfg.specs:
        raise UserError("A source is an empty list; name at least one (`min-llm data list`).")
    return [resolve(spec, cfg.field) for spec in cfg.specs]


def _shared_tokenizer(cfg: DataConfig, parts: list[DataConfig]) -> Path:
    """The file of the tokenizer learned from the training texts of all parts, beside the prepared folders."""
    sources = [source for part in parts for source in _sources(part)]
    folder = data_folder(cfg.home)
    path = folder / f"{slug(cfg.tokenizer)}-{_hash(cfg, sources)}.json"
    if not path.is_file():
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            splits = _splits(cfg, sources)
            _tokenizer(cfg.tokenizer, lambda: _pieces(sources, splits, 0)).save(path)
    return path


def _name(cfg: DataConfig, sources: list[Source]) -> str:
    names = "+".join(s.name for s in sources) if len(sources) < 4 else f"{len(sources)}-sources"
    return f"{names}-{slug(Path(cfg.tokenizer).stem)}" + ("-tune" if cfg.tune else "")


def _hash(cfg: DataConfig, sources: list[Source]) -> str:
    made_from: dict[str, Any] = {"version": VERSION, "sources": [s.identity() for s in sources]}
    made_from |= {k: getattr(cfg, k) for k in ("tokenizer", "split", "val_fraction", "tune", "seed")}
    if _is_path(cfg.tokenizer):
        made_from["tokenizer"] = tokenizers.load(cfg.tokenizer).fingerprint()
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:10]


def _make(cfg: DataConfig, sources: list[Source], folder: Path) -> None:
    """Fill `folder` under another name and rename it; whatever goes wrong, nothing half made is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=folder.parent))
    try:
        splits = _splits(cfg, sources)
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


def _splits(cfg: DataConfig, sources: list[Source]) -> list[Piece]:
    return [splitter(s, cfg.split, cfg.val_fraction, cfg.seed, cfg.tune) for s in sources]


def _pieces(sources: list[Source], splits: list[Piece], which: int) -> Iterator[str]:
    """The non-empty training (0) or validation (1) texts of all documents of all sources."""
    for source, split in zip(sources, splits, strict=True):
        for name, text in source.documents():
            piece = split(name, text)[which]
            if piece:
                yield piece


def is_learned(tokenizer: str) -> bool:
    """Whether it is made from the training text."""
    return tokenizer == "chars" or tokenizer.startswith("bpe:")


def _is_path(tokenizer: str) -> bool:
    return not is_learned(tokenizer) and tokenizer not in ("bytes", *tokenizers.NAMED)


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
        for ids in _encodable(tokenizer.encode_documents(counted()), name):
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


def _encodable(encoded: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The same, with a way out where a tokenizer cannot encode a text."""
    try:
        yield from encoded
    except tokenizers.TokenizerError as error:
        raise UserError(
            f"The {name} text cannot be encoded. {error} bytes and bpe:SIZE take any text."
        ) from error


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
    except (OSError, tokenizers.TokenizerError) as raised:
        error = raised if isinstance(raised, OSError) else raised.__cause__
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"The disk is full: no room for prepared data in {folder}. {advice}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"Prepared data cannot be written to {folder}: {error.strerror}. {advice}"
            ) from error
        raise
