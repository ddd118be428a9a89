"""One pass over one shard, and the barrier after a pass: pure functions from files to files.

    <work>/<pass>/<shard>/    docs.jsonl   what goes on, from the last pass in the output's format
                              names.npy, times.npy, <step>.<run>.npy   what the barrier needs
                              tally.json   counts and samples
    <work>/<pass>/decision/   offsets.npy, <step>.npy
    <work>/<pass>.json        the pass is complete: counts and samples of all shards

A folder appears by being renamed when it is complete. Whoever runs these functions, in whatever order and process,
gets the same files; what is there need not be made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from min_llm.data.curate import read as read_lib
from min_llm.data.curate.document import Document, Drop, Outcome
from min_llm.data.curate.keyed import Collector, Corpus, Duplicates, Keyed
from min_llm.data.curate.kl import KL
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.curate.steps import Named, Pass, passes
from min_llm.data.curate.tally import Tally
from min_llm.data.curate.urls import NEVER, seconds
from min_llm.data.curate.write import read_lines, writer

BATCH = 1 << 18  # characters of documents that steps see at a time
LONGEST_NAME = 200  # bytes of a name in "duplicate of"


@dataclass(frozen=True)
class Task:
    """What a process is told: pass `number` over the shard with this `index`."""

    cfg: CurateConfig
    work: Path
    number: int
    index: int
    shard: read_lib.Shard

    @property
    def folder(self) -> Path:
        return self.work / str(self.number) / f"{self.index:05d}"

    @property
    def before(self) -> Path:
        """The folder of the last pass."""
        return self.work / str(self.number - 1)


def output_name(cfg: CurateConfig, last: bool) -> str:
    return f"docs.{cfg.format if last else 'jsonl'}"


def run_shard(task: Task) -> None:
    """Fill `task.folder`, unless it is there."""
    if task.folder.is_dir():
        return
    walks = passes(task.cfg.steps)
    walk, last = walks[task.number], task.number == len(walks) - 1
    with made(task.folder) as folder:
        tally = Tally()
        collected = _Collected(folder, task.shard.source, walk.collected)
        with writer(folder / output_name(task.cfg, last), task.cfg.format if last else "jsonl") as out:
            barrier = _Barrier(task.before)
            first = int(barrier.offsets[task.index]) if task.number else 0
            for documents, rows in _arrivals(task, tally, first):
                documents = _applied(task, walk, documents, rows, barrier, tally)
                documents = _filtered(task, walk, documents, tally)
                collected.add(documents, tally)
                out.write(documents)
        collected.close()
        (folder / "tally.json").write_text(json.dumps(tally.to_json()), encoding="utf-8")


def _arrivals(task: Task, tally: Tally, first: int) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Batches, with the rows of the documents: those of the shard begin at `first`."""
    batch: list[Document] = []
    size = 0
    for document in _documents(task, tally):
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch, np.arange(first, first + len(batch))
            first += len(batch)
            batch, size = [], 0
    if batch:
        yield batch, np.arange(first, first + len(batch))


def _documents(task: Task, tally: Tally) -> Iterator[Document]:
    if task.number:
        yield from read_lines(task.before / f"{task.index:05d}" / "docs.jsonl")
        return
    for name, outcome in read_lib.read(task.shard, task.cfg):
        if isinstance(outcome, Drop):
            tally.unreadable("read", task.shard.source, name, outcome)
        else:
            tally.record("read", [outcome], [outcome])
            yield outcome


def _applied(
    task: Task, walk: Pass, documents: list[Document], rows: np.ndarray, barrier: _Barrier, tally: Tally
) -> list[Document]:
    """The batch after the decisions of the last barrier."""
    for named in walk.applied:
        with _timed(tally, named.name):
            decision = barrier.decision(named.name)
            outcomes: list[Outcome] = list(documents)
            if named.takes(task.shard.source):
                if isinstance(named.step, KL):
                    outcomes = named.step.apply(documents, decision)
                elif isinstance(named.step, Keyed):
                    outcomes = named.step.apply(documents, rows, decision, barrier)
            rows = rows[[isinstance(outcome, Document) for outcome in outcomes]]
        documents = tally.record(named.name, documents, outcomes)
    return documents


def _filtered(task: Task, walk: Pass, documents: list[Document], tally: Tally) -> list[Document]:
    """The batch after the filters of a pass."""
    for named in walk.filters:
        with _timed(tally, named.name):
            takes = named.takes(task.shard.source)
            outcomes = named.step(documents) if takes else list(documents)  # type: ignore[operator]
        documents = tally.record(named.name, documents, outcomes)
    return documents


@contextlib.contextmanager
def _timed(tally: Tally, step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    tally.spent(step, time.perf_counter() - began)


class _Collected:
    """What the next barrier needs of a shard."""

    def __init__(self, folder: Path, source: str, steps: tuple[Named, ...]) -> None:
        self._folder, self._steps = folder, [named for named in steps if named.takes(source)]
        self._collectors = {
            name: Collector(folder, name) for name, step, _ in steps if isinstance(step, Keyed)
        }
        self._counts: dict[str, np.ndarray] = {}
        self._names: list[bytes] = []
        self._times: list[float] = []

    def add(self, documents: list[Document], tally: Tally) -> None:
        for name, step, _ in self._steps:
            with _timed(tally, name):
                if isinstance(step, KL):
                    self._counts[name] = self._counts.get(name, 0) + step.count(documents)
                elif isinstance(step, Keyed):
                    self._collectors[name].add(step.keys(documents), len(self._names))
        self._names += [d.name.encode()[:LONGEST_NAME] for d in documents]
        self._times += [NEVER if (t := seconds(d.time)) is None else t for d in documents]

    def close(self) -> None:
        for collector in self._collectors.values():
            collector.flush()
        for name, counts in self._counts.items():
            np.save(self._folder / f"{name}.npy", counts)
        np.save(self._folder / "names.npy", np.array(self._names, np.bytes_))
        np.save(self._folder / "times.npy", np.array(self._times, np.float64))


def decide(cfg: CurateConfig, work: Path, number: int, shards_: int) -> Tally:
    """The barrier after a pass whose shards are all there: decisions of its collected steps; returns the sum of the
    tallies."""
    folder = work / str(number)
    shards = [folder / f"{index:05d}" for index in range(shards_)]
    collected = passes(cfg.steps)[number].collected
    total = Tally()
    for shard in shards:
        total.add(Tally.from_json(json.loads((shard / "tally.json").read_text(encoding="utf-8"))))
    if (folder / "decision").is_dir():
        return total
    with made(folder / "decision") as into:
        times = [np.load(shard / "times.npy") for shard in shards]
        offsets = np.concatenate([[0], np.cumsum([len(found) for found in times])]).astype(np.int64)
        np.save(into / "offsets.npy", offsets)
        alive = np.ones(offsets[-1], bool)
        for name, step, _ in collected:
            with _timed(total, name):
                if isinstance(step, KL):
                    counts = [np.load(path) for shard in shards if (path := shard / f"{name}.npy").is_file()]
                    decision = sum(counts, np.zeros(1 << step.bits, np.int64))
                elif isinstance(step, Keyed):
                    runs = [
                        (np.load(path, mmap_mode="r"), int(offset))
                        for shard, offset in zip(shards, offsets, strict=False)
                        for path in shard.glob(f"{name}.*.npy")
                    ]
                    decision = step.decide(Corpus(runs, alive, np.concatenate(times)))
            np.save(into / f"{name}.npy", decision)
            if isinstance(step, Duplicates):
                alive &= decision < 0
    return total


class _Barrier:
    """What the last pass and the barrier after it have left, by memory maps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = lru_cache(maxsize=64)(lambda name: np.load(folder / name, mmap_mode="r"))

    @property
    def offsets(self) -> np.ndarray:
        """Where the rows of each shard begin."""
        return self.decision("offsets")

    def decision(self, step: str) -> np.ndarray:
        return self._loaded(f"decision/{step}.npy")

    def __getitem__(self, row: int) -> str:
        """The name of the document that had this row."""
        shard = int(np.searchsorted(self.offsets, row, "right")) - 1
        names = self._loaded(f"{shard:05d}/names.npy")
        return names[row - int(self.offsets[shard])].decode(errors="replace")


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder that is complete or not there."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():  # otherwise the worker of a killed run was first: its folder is the same
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
