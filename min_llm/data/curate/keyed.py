"""Deduplication over all shards in bounded memory: keys a shard (map), equal keys (reduce), survivors (filter).

Each shard leaves runs of records (key, row), sorted by key. A reduce walks the keys in ranges that fit into memory and
takes its slice of every run through a memory map, so that all records with one key are seen together. Keys are 64-bit
hashes: among 10^9 different texts two share one with a probability of 3%.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.words import mixed

RUN = 1 << 21  # records that a shard sorts in memory at a time
AT_ONCE = 1 << 22  # records that a reduce sorts in memory at a time

Keys = tuple[UInt64[np.ndarray, " keys"], Int64[np.ndarray, " keys"]]  # and the document each belongs to
Rows = Int64[np.ndarray, " documents"]  # where documents stand among all
Run = tuple[UInt64[np.ndarray, "2 records"], int]  # key and row; what to add to the rows


class Collector:
    """The records of one shard and step, written as sorted runs `<name>.<number>.npy`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._keys: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._held = self._runs = 0

    def add(self, keys: Keys, first_row: int) -> None:
        self._keys.append(keys[0])
        self._rows.append(keys[1].astype(np.uint64) + np.uint64(first_row))
        self._held += len(keys[0])
        if self._held >= RUN:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        records = np.stack([np.concatenate(self._keys), np.concatenate(self._rows)])
        order = np.argsort(records[0], kind="stable")
        np.save(self._folder / f"{self._name}.{self._runs}.npy", records[:, order])
        self._keys, self._rows = [], []
        self._held, self._runs = 0, self._runs + 1


@dataclass(frozen=True)
class Corpus:
    """What a reduce sees: the records of a step in all shards, with the rows numbered through."""

    runs: list[Run]
    alive: Bool[np.ndarray, " rows"]  # not dropped by the steps before
    times: Float64[np.ndarray, " rows"] = field(default_factory=lambda: np.zeros(0))  # seconds since 1970

    def ranges(self, at_once: int = AT_ONCE) -> Iterator[Keys]:
        """The records of living documents, range by range, sorted by key, then row."""
        parts = max(1, -(-sum(run.shape[1] for run, _ in self.runs) // at_once))
        edges = np.array([(part << 64) // parts for part in range(1, parts)], np.uint64)
        cuts = [[0, *np.searchsorted(run[0], edges).tolist(), run.shape[1]] for run, _ in self.runs]
        for part in range(parts):
            keys, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
            for (run, offset), cut in zip(self.runs, cuts, strict=True):
                row = run[1, cut[part] : cut[part + 1]].astype(np.int64) + offset
                living = self.alive[row]
                keys.append(run[0, cut[part] : cut[part + 1]][living])
                rows.append(row[living])
            key, row = np.concatenate(keys), np.concatenate(rows)
            order = np.lexsort((row, key))
            yield key[order], row[order]


def first_of_each(keys: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """For sorted keys, where the run of equal ones begins that each is in."""
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))


def apart(keys: Keys, documents: list[Document], column: str) -> Keys:
    """Keys that are equal only where the documents' values in a column are, too; without a column, the keys."""
    if not column:
        return keys
    values = [str(document.meta.get(column, "")).encode("utf-8", "surrogatepass") for document in documents]
    digests = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in values)
    salts = np.frombuffer(digests, "<u8").astype(np.uint64)
    return mixed(keys[0] + salts[keys[1]]), keys[1]


@runtime_checkable
class Keyed(Protocol):
    """A step that needs to see equal keys of the whole corpus together."""

    def keys(self, documents: list[Document], /) -> Keys:
        """Keys of a batch, with the number of the document in the batch: none, one or several a document."""
        ...

    def decide(self, corpus: Corpus, /) -> np.ndarray:
        """The decision, from all records. What it means is the step's own affair."""
        ...

    def apply(
        self, documents: list[Document], rows: Rows, decision: np.ndarray, names: Names, /
    ) -> list[Outcome]:
        """The outcomes of a batch whose documents have these rows."""
        ...


class Names(Protocol):
    def __getitem__(self, row: int, /) -> str: ...


class Duplicates:
    """Base of the steps that drop documents in favour of others. Their decision is int64 [rows]: the row that is kept
    instead, or -1."""

    kind = "duplicate"

    def apply(
        self, documents: list[Document], rows: Rows, decision: np.ndarray, names: Names, /
    ) -> list[Outcome]:
        kept = decision[rows].tolist()
        return [
            document if row < 0 else Drop(self.kind, f"of {names[row]}")
            for document, row in zip(documents, kept, strict=True)
        ]
