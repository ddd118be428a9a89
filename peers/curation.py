"""datatrove's steps over documents in memory, its whole pipeline over files, and fastText itself."""

import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.logging import logger

logger.disable("datatrove")
BUCKETS = 14
CONFIG = MinhashConfig(num_buckets=BUCKETS, hashes_per_bucket=8)
_texts: list[str] = []


def load(files: list[str]) -> dict[str, int]:
    """The texts of .jsonl files into memory; how many, and their bytes in UTF-8."""
    _texts[:] = [json.loads(line)["text"] for file in files for line in Path(file).read_bytes().splitlines()]
    return {"documents": len(_texts), "bytes": sum(len(text.encode()) for text in _texts)}


def repetition() -> GopherRepetitionFilter:
    """The duplicate n-grams alone: Gopher's lines, paragraphs and top n-grams are other rules."""
    none: Any = None
    return GopherRepetitionFilter(none, none, none, none, top_n_grams=())


def _filter(step: Any) -> Callable[[str], bool]:
    return lambda text: step.filter(Document(text=text, id="")) is True


def xxhash64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())


def signatures(folder: str) -> MinhashDedupSignature:
    """The first stage of MinHash. datatrove hands strings to xxhash, whose version 4 takes bytes alone."""
    step = MinhashDedupSignature(folder, CONFIG)
    step._hash_func = xxhash64
    return step


def _minhash() -> Callable[[str], bool]:
    step = signatures(tempfile.mkdtemp())

    def sign(text: str) -> bool:
        shingles = step.get_shingles(text)
        return bool(shingles.size and step.get_signature(shingles))

    return sign


def _extract() -> Callable[[str], bool]:
    """Without the process that datatrove guards each call with, which would cost time, and without memory of the texts
    of earlier rounds."""
    step = Trafilatura(deduplicate=False)
    return lambda text: bool(step.extract(text))


STAGES: dict[str, Callable[[], Callable[[str], Any]]] = {
    "extract": _extract,
    "pii": lambda: PIIFormatter().format,
    "repetition": lambda: _filter(repetition()),
    "minhash": _minhash,
}
_made: dict[str, Callable[[str], Any]] = {}


def stage(name: str) -> dict[str, Any]:
    """One step over the loaded texts, in this process; the first call of a step makes it and warms it."""
    if name not in _made:
        _made[name] = STAGES[name]()
        any(map(_made[name], _texts[:2]))
    began = time.perf_counter()
    kept = sum(bool(_made[name](text)) for text in _texts)
    return {"seconds": time.perf_counter() - began, "kept": kept}


def pipeline(folder: str, workers: int) -> dict[str, Any]:
    """Mask personal data, drop repetitive documents, drop near duplicates over all files of a folder, write .jsonl.gz:
    five of datatrove's executors one after another, as its own examples chain them."""
    work = Path(tempfile.mkdtemp())
    files = len(list(Path(folder).glob("*.jsonl")))
    within = lambda name: str(work / name)
    walks: list[tuple[list[Any], int]] = [
        ([JsonlReader(folder), PIIFormatter(), repetition(), JsonlWriter(within("filtered"))], files),
        ([JsonlReader(within("filtered")), signatures(within("signatures"))], files),
        ([MinhashDedupBuckets(within("signatures"), within("pairs"), config=CONFIG)], BUCKETS),
        ([MinhashDedupCluster(within("pairs"), within("removed"), config=CONFIG)], 1),
        (
            [
                JsonlReader(within("filtered")),
                MinhashDedupFilter(within("removed")),
                JsonlWriter(within("out")),
            ],
            files,
        ),
    ]
    began = time.perf_counter()
    for number, (steps, tasks) in enumerate(walks):
        LocalPipelineExecutor(steps, tasks, min(workers, tasks), logging_dir=within(f"logs{number}")).run()
    seconds = time.perf_counter() - began
    kept = sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in (work / "out").glob("*.gz"))
    shutil.rmtree(work)
    return {"seconds": seconds, "kept": kept}


def fasttext(
    train: list[list[str]], test: list[str], positive: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """fastText's train_supervised on (label, text), one thread; then the probability of a label for other texts. The
    seconds of both, and the probabilities."""
    import fasttext as library

    line = lambda text: " ".join(text.split())
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.writelines(f"__label__{label} {line(text)}\n" for label, text in train)
        file.flush()
        began = time.perf_counter()
        model = library.train_supervised(file.name, thread=1, verbose=0, **settings)
        fitted = time.perf_counter()
    lines = list(map(line, test))
    asked = time.perf_counter()
    found = [dict(zip(*model.predict(text, k=-1), strict=True)) for text in lines]
    answered = time.perf_counter()
    values = [float(each.get(f"__label__{positive}", 0.0)) for each in found]
    return {"train_seconds": fitted - began, "predict_seconds": answered - asked, "values": values}
