"""Documents into files: JSON lines between passes, JSON lines or Parquet at the end. The same documents give the same
bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from min_llm.config import UserError
from min_llm.data.curate.document import Document

COLUMNS = ("name", "source", "url", "time", "text", "meta")


class Writer(Protocol):
    def write(self, documents: list[Document], /) -> None: ...


@contextmanager
def writer(path: Path, format: str) -> Iterator[Writer]:
    """A file of documents in one of the formats of `CurateConfig.format`."""
    if format == "parquet":
        with _parquet(path) as found:
            yield found
        return
    with path.open("wb") as file:
        if format == "jsonl.gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                yield _Lines(packed)
        elif format == "jsonl.zst":
            with _pyarrow(path).CompressedOutputStream(file, "zstd") as packed:
                yield _Lines(packed)
        else:
            yield _Lines(file)


def read_lines(path: Path) -> Iterator[Document]:
    """What `writer(path, "jsonl")` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield Document(**json.loads(line))


class _Lines:
    def __init__(self, file: Any) -> None:
        self._file: IO[bytes] = file

    def write(self, documents: list[Document]) -> None:
        lines = [json.dumps(_row(d), ensure_ascii=False, default=str) + "\n" for d in documents]
        self._file.write("".join(lines).encode())


def _row(document: Document) -> dict[str, Any]:
    """Its fields, without the empty ones."""
    row: dict[str, Any] = {"name": document.name, "source": document.source, "url": document.url}
    row |= {"time": document.time, "text": document.text, "meta": document.meta}
    return {k: v for k, v in row.items() if v not in ("", None, {}) or k in ("name", "text")}


@contextmanager
def _parquet(path: Path) -> Iterator[Writer]:
    """Columns of strings: `meta` as JSON, times in ISO 8601."""
    arrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    schema = arrow.schema([(name, arrow.string()) for name in COLUMNS])

    class Rows:
        def write(self, documents: list[Document]) -> None:
            rows = [_row(d) for d in documents]
            for row in rows:
                if not isinstance(row.get("time"), str | None):
                    row["time"] = datetime.fromtimestamp(row["time"], UTC).isoformat()
                row["meta"] = (
                    json.dumps(row["meta"], ensure_ascii=False, default=str) if "meta" in row else None
                )
            arrays = [arrow.array([row.get(name) for row in rows], arrow.string()) for name in COLUMNS]
            file.write_table(arrow.Table.from_arrays(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        yield Rows()


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{path.name} needs pyarrow to be written: pip install 'min_llm[parquet]'."
        ) from error
    return pyarrow
