"""Our side of the curation benchmark: a child process that runs steps over the documents it was told to load."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from min_llm.config import build
from min_llm.data.curate import pipeline as pipeline_lib
from min_llm.data.curate.document import Document
from min_llm.data.curate.keyed import Keyed
from min_llm.data.curate.kl import KL
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.curate.steps import STEPS
from min_llm.data.curate.walk import BATCH
from peers.pipe import serve

MINHASH = {"bands": 14, "rows": 8}  # datatrove's
SETTINGS: dict[str, dict[str, Any]] = {"extract": {"html": "always"}, "minhash": MINHASH}
_documents: list[Document] = []


def versions() -> dict[str, str]:
    from bench.results import own_versions

    return own_versions()


def load(files: list[str]) -> dict[str, int]:
    """The documents of .jsonl files into memory; how many, and their bytes in UTF-8."""
    texts = [Path(file).read_bytes() for file in files]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    _documents[:] = [Document(row["id"], row["text"]) for row in rows]
    return {"documents": len(_documents), "bytes": sum(len(d.text.encode()) for d in _documents)}


def stage(name: str) -> dict[str, Any]:
    """One step over the loaded documents, in batches as `min-llm data curate` makes them, in this process. Of a step
    that needs the whole corpus, what it does for each document: keys, or counts and their comparison."""
    step = build(STEPS[name], SETTINGS.get(name, {}), name)
    _run(step, [_documents[:2]])
    batches: list[list[Document]] = [[]]
    size = 0
    for document in _documents:
        batches[-1].append(document)
        size += len(document.text)
        if size >= BATCH:
            batches.append([])
            size = 0
    began = time.perf_counter()
    kept = _run(step, batches)
    return {"seconds": time.perf_counter() - began, "kept": kept}


def _run(step: Any, batches: list[list[Document]]) -> int:
    """How many documents a step keeps, as far as it can say without the others."""
    if isinstance(step, Keyed):
        return sum(len(batch) for batch in batches if step.keys(batch))
    if isinstance(step, KL):
        counts = sum(step.count(batch) for batch in batches)
        return sum(isinstance(o, Document) for batch in batches for o in step.apply(batch, counts))
    return sum(isinstance(outcome, Document) for batch in batches for outcome in step(batch))


def pipeline(folder: str, workers: int) -> dict[str, Any]:
    """`min-llm data curate` over all files of a folder: mask personal data, drop repetitive documents, drop near
    duplicates, write .jsonl.gz and the report."""
    with tempfile.TemporaryDirectory() as out:
        largest = max(path.stat().st_size for path in Path(folder).glob("*.jsonl"))  # a shard a file
        steps = {"pii": None, "repetition": None, "minhash": MINHASH}
        given = {
            "inputs": {"text": folder},
            "output": out,
            "steps": steps,
            "workers": workers,
            "together": largest,
        }
        began = time.perf_counter()
        pipeline_lib.curate(build(CurateConfig, given))
        seconds = time.perf_counter() - began
        report = json.loads((Path(out) / "report.json").read_text())
    return {"seconds": seconds, "kept": report["steps"][-1]["kept"]["documents"]}


if __name__ == "__main__":
    serve({f.__name__: f for f in (versions, load, stage, pipeline)})
