"""Documents out of shards of the user's files. One bad line costs a line: it is counted with its reason, not skipped in
silence and not the end of a run. What a whole source lacks (files, the text column) is refused.

.jsonl: a document a line. .parquet: a row. .txt, .md, .html: a file. All but .parquet may be compressed (.gz, .bz2,
.xz, .zst).
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from min_llm.config import UserError
from min_llm.data import sources
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.settings import CurateConfig, Fields
from min_llm.data.curate.urls import seconds

Read = Iterator[tuple[str, Outcome]]  # the name of each document, and itself or why it cannot be read

LINES = (".jsonl", ".ndjson")
WHOLE = (".txt", ".md", ".html", ".htm")
SUFFIXES = (*LINES, ".parquet", *WHOLE)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
PARQUET_ROWS = 256  # read at a time
SKIPPED = 1 << 20  # bytes of a line that is too long, thrown away at a time


@dataclass(frozen=True)
class Shard:
    """What one process reads in one go: some files, or a part of one."""

    source: str  # the key under `inputs`
    files: tuple[str, ...] = ()
    root: str = ""  # documents are named by their files, from here
    part: tuple[int, int] | None = None  # lines that begin at these bytes of a plain .jsonl file
    named: str = ""  # a registered source or a data set of Hugging Face, in place of files


def shards(cfg: CurateConfig) -> list[Shard]:
    """The shards of all inputs, in the order of the configuration and of the files' names."""
    found: list[Shard] = []
    for source, given in cfg.inputs.items():
        for spec in (given,) if isinstance(given, str) else given:
            if spec in sources.registry() or spec.startswith("hf:"):
                found.append(Shard(source, named=sources.resolve(spec, cfg.fields.text).spec))
            else:
                found += _grouped(source, _files(source, spec), cfg.together)
    return found


def read(shard: Shard, cfg: CurateConfig) -> Read:
    """The documents of a shard."""
    if shard.named:
        for name, text in sources.resolve(shard.named, cfg.fields.text).documents():
            yield name, Document(name, text, shard.source)
    for file in shard.files:
        yield from _read_file(Path(file), shard, cfg)


def _files(source: str, spec: str) -> list[Path]:
    """The files of a path or pattern. Of folders, those that can be read; what is named itself must be such a one."""
    files: list[Path] = []
    for path in sorted(map(Path, glob.glob(os.path.expanduser(spec), recursive=True))):
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES)
        files += inside if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"inputs.{source}: nothing to read at {spec!r}. Give a file, a folder, a pattern such as crawl/*.jsonl.gz, "
            "or a name that `min-llm data list` shows."
        )
    for file in files:
        if _suffix(file) not in SUFFIXES:
            raise UserError(
                f"inputs.{source}: {file} is of no kind that can be read; those are {', '.join(SUFFIXES)}, all but "
                f".parquet also with {', '.join(COMPRESSED)}."
            )
    return files


def _suffix(path: Path) -> str:
    """The suffix that says what is inside; empty for compressed parquet."""
    if path.suffix not in COMPRESSED:
        return path.suffix
    inner = Path(path.stem).suffix
    return "" if inner == ".parquet" else inner


def _grouped(source: str, files: list[Path], together: int) -> list[Shard]:
    """Small files together, large .jsonl files in parts; what is compressed can only be read from its beginning."""
    root = os.path.commonpath([file.parent for file in files])
    found: list[Shard] = []
    group: list[str] = []
    room = together
    for file in files:
        size = file.stat().st_size
        if group and size > room:
            found.append(Shard(source, tuple(group), root))
            group, room = [], together
        if size > together and file.suffix in LINES:
            parts = range(0, size, together)
            found += [Shard(source, (str(file),), root, (k, min(k + together, size))) for k in parts]
        else:
            group.append(str(file))
            room -= size
    return [*found, Shard(source, tuple(group), root)] if group else found


def _read_file(path: Path, shard: Shard, cfg: CurateConfig) -> Read:
    readers = {".parquet": _parquet, **dict.fromkeys(LINES, _jsonl)}
    label = path.relative_to(shard.root).as_posix()
    number = 0
    try:
        for name, outcome in readers.get(_suffix(path), _whole)(path, label, shard, cfg):
            number += 1
            yield name, outcome
    except _damages() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield label, Drop("damaged file", f"after {number:,} documents: {reason[:200]}")
    else:
        if not number and shard.part is None:
            yield label, Drop("empty file")


def _damages() -> tuple[type[Exception], ...]:
    """What a damaged or truncated file raises."""
    kinds: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
    with contextlib.suppress(ImportError):
        import pyarrow

        kinds += (pyarrow.ArrowException,)
    return kinds


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".zst":
        try:
            import pyarrow
        except ImportError as error:
            raise UserError(f"{path} needs pyarrow to be read: pip install 'min_llm[parquet]'.") from error
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")  # type: ignore[operator]


def _whole(path: Path, name: str, shard: Shard, cfg: CurateConfig) -> Read:
    with _opened(path) as file:
        data = file.read(cfg.longest + 1)
    if not data:
        return
    if len(data) > cfg.longest:
        yield name, Drop("too long", f"more than {cfg.longest:,} bytes")
        return
    text = _decoded(data)
    yield name, text if isinstance(text, Drop) else _checked(Document(name, text, shard.source))


def _jsonl(path: Path, label: str, shard: Shard, cfg: CurateConfig) -> Read:
    """A document a line. In a part of a file, lines are counted from its beginning: `crawl.jsonl+67108864:1`."""
    begin, end = shard.part or (0, sys.maxsize)
    label += f"+{begin}" if begin else ""
    with _opened(path) as file:
        place, number = begin, 0
        if begin:
            file.seek(begin - 1)
            place += _skip(file) - 1
        while place < end and (line := file.readline(cfg.longest + 1)):
            place, number = place + len(line), number + 1
            name = f"{label}:{number}"
            if len(line) > cfg.longest:
                if not line.endswith(b"\n"):
                    place += _skip(file)
                yield name, Drop("too long", f"a line of more than {cfg.longest:,} bytes")
                continue
            text = _decoded(line)
            if isinstance(text, Drop):
                yield name, text
            elif text.strip():
                yield name, _parsed(text, name, shard.source, cfg.fields)


def _skip(file: IO[bytes]) -> int:
    """Read to the end of a line, however long; returns its bytes."""
    size = 0
    while piece := file.readline(SKIPPED):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _parquet(path: Path, label: str, shard: Shard, cfg: CurateConfig) -> Read:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow to be read: pip install 'min_llm[parquet]'.") from error
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if cfg.fields.text not in columns:
            raise UserError(
                f"{path} has no column {cfg.fields.text!r}; it has {', '.join(map(repr, columns))}. Name the one that "
                "holds the text with fields.text."
            )
        number = 0
        for rows in file.iter_batches(PARQUET_ROWS):
            for row in rows.to_pylist():
                number += 1
                name = f"{label}:{number}"
                outcome = _document(row, name, shard.source, cfg.fields)
                if isinstance(outcome, Document) and len(outcome.text) > cfg.longest:
                    outcome = Drop("too long", f"{len(outcome.text):,} characters")
                yield name, outcome


def _decoded(data: bytes) -> str | Drop:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return Drop("not UTF-8", f"byte 0x{data[error.start]:02x} at place {error.start:,}: {error.reason}")


def _parsed(line: str, name: str, source: str, fields: Fields) -> Outcome:
    try:
        row = json.loads(line)
    except ValueError as error:
        return Drop("not JSON", str(error))
    except RecursionError:
        return Drop("not JSON", "nested too deeply")
    if not isinstance(row, dict):
        return Drop("no JSON object", f"but {type(row).__name__}")
    if "\\u" in line:  # an escape can spell half of a surrogate pair, which UTF-8 cannot
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return Drop("half a surrogate pair", f"\\u{ord(error.object[error.start]):x}")
    return _document(row, name, source, fields)


def _document(row: dict[str, Any], name: str, source: str, fields: Fields) -> Outcome:
    """A row as a document; its other columns become `meta`."""
    if fields.text not in row:
        return Drop(f"no field {fields.text!r}", f"it has {', '.join(map(repr, row))[:200] or 'none'}")
    text, given = row.pop(fields.text), row.pop(fields.name, None)
    url, time = row.pop(fields.url, None), row.pop(fields.time, None)
    if isinstance(time, datetime):
        time = time.isoformat()
    if not isinstance(text, str):
        return Drop(f"field {fields.text!r} is no string", f"but {type(text).__name__}")
    if not isinstance(url, str | None):
        return Drop(f"field {fields.url!r} is no string", f"but {type(url).__name__}")
    if not isinstance(time, str | int | float | None) or seconds(time) is None:
        return Drop(f"field {fields.time!r} is no time", f"but {time!r:.80}")
    meta = _meta(row.pop("meta", None))
    named = str(given) if given not in (None, "") else name
    return _checked(Document(named, text, source, url or "", time, meta | row))


def _meta(given: Any) -> dict[str, Any]:
    """The `meta` of a file that curation wrote; in .parquet it is a string."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            given = json.loads(given)
    if given is None:
        return {}
    return given if isinstance(given, dict) else {"meta": given}


def _checked(document: Document) -> Outcome:
    return document if document.text.strip() else Drop("no text in it")
