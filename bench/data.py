"""Curation against datatrove, its classifier against fastText, and what a batch costs: `python -m bench.data`.

The text is what anyone can have: modules of Python's standard library and leads of Wikipedia in three languages, and
for extraction the pages of LibreOffice's help as Debian ships them. Both sides get the same .jsonl files.

A step is timed in one process, over documents in memory, by what it does for each document. The whole pipeline (mask
personal data, drop repetitive documents, drop near duplicates, write .jsonl.gz) reads and writes files in as many
processes as there are cores. Sides take turns, round by round; a ratio is the median over the rounds.

Equal work as far as it goes:

    extract     trafilatura without the process that datatrove guards each call with; ours keeps code, formulas and
                alternative texts, which its favoured precision drops
    pii         datatrove masks addresses of mail and IPv4; ours also telephones, cards, IPv6, and drops documents
    repetition  the same six n-gram limits, datatrove's other Gopher rules switched off; it counts repeated n-grams from
                their second occurrence on, ours all of them, and stops at the first limit that a document breaks
    minhash     signatures of 14 bands of 8 over word 5-grams; datatrove splits words with spaCy and hashes with
                xxhash to 64 bits, ours have 32
    classify    ours and fastText learn the same texts with the same sizes, epochs and rate, ours compiled before and
                with XLA's threads, fastText with one, which repeats; its character n-grams are those of words. Labels
                are the sources of the texts; the area under the curve is on held-out documents
    pipeline    datatrove's three stages of MinHash with an executor each; ours also writes the report

Batches (bench/batches.py) have no peer: `--only batches` needs no .venv-peers.

Steps that datatrove has not (KL), has only as stages over files (exact duplicates, lines) or downloads the lists of
(dirty words) have a speed and no ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import batches, results
from bench.race import say, timed
from bench.results import median_and_spread
from min_llm import machine, reporting
from min_llm.config import build
from min_llm.data import sources
from min_llm.data.curate import labelled, train_linear
from min_llm.data.curate.train_linear import ClassifierConfig
from peers import client
from peers.pipe import Child

TEXT = ("python-stdlib", "wiki-en", "wiki-fr", "wiki-es")
HELP = "help-en"
FILES = 8  # of the corpus: shards, and tasks of datatrove
TOGETHER = 128  # texts classified at a time: as many characters as a batch of curation has
STAGES = ("extract", "pii", "repetition", "minhash")
ALONE = ("exact", "lines", "dirty", "kl")
QUALITY: dict[str, Any] = {
    "name": "quality",
    "data": {"sources": {"reference": "wiki-en", "other": ["python-stdlib", "spam-assassin"]}, "most": 3000},
}


def corpus(folder: Path, megabytes: float) -> list[str]:
    """FILES .jsonl files, equal parts of each source, about so many megabytes together."""
    paths = [folder / f"{number:02}.jsonl" for number in range(FILES)]
    files = [path.open("w", encoding="utf-8") for path in paths]
    for source in TEXT:
        left = megabytes * 1e6 / len(TEXT)
        for number, (name, text) in enumerate(sources.resolve(source).documents()):
            row = {"id": f"{source}/{name}", "text": text}
            files[number % FILES].write(json.dumps(row, ensure_ascii=False) + "\n")
            left -= len(text.encode())
            if left <= 0:
                break
    for file in files:
        file.close()
    return [str(path) for path in paths]


def pages(folder: Path, n: int) -> list[str]:
    """One .jsonl file of n pages of HTML."""
    path = folder / "pages.jsonl"
    found = sources.resolve(HELP).files()
    rows = [
        {"id": page.stem, "text": page.read_text(encoding="utf-8")} for page in found[:: len(found) // n][:n]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(path)]


def rows_of(
    case: str, size: dict[str, int], ours: Sequence[float], theirs: Sequence[float] = (), **extra: Any
) -> list[results.Row]:
    """Documents and megabytes a second from the seconds of each round, with the peer's beside them."""
    mine, _ = median_and_spread(ours)
    about: dict[str, Any] = {
        "runs": len(ours),
        "documents": size["documents"],
        "bytes": size["bytes"],
        **extra,
    }
    if theirs:
        ratio, spread = median_and_spread([t / o for o, t in zip(ours, theirs, strict=True)])
        about |= {"peer_name": extra.get("peer_name", "datatrove"), "ratio": ratio, "spread": spread}
    rows = []
    for metric, unit, amount in (
        ("documents_per_second", "documents/s", size["documents"]),
        ("megabytes_per_second", "MB/s", size["bytes"] / 1e6),
    ):
        peer = amount / median_and_spread(theirs)[0] if theirs else None
        rows.append(results.row(case, metric, unit, "text", amount / mine, peer=peer, **about))
    return rows


def stage(
    name: str, ours: Child, peer: Child | None, size: dict[str, int], args: Any, **settings: Any
) -> list:
    """The rows of one step over what both sides have loaded."""
    seconds: tuple[list[float], list[float]] = ([], [])
    others: list[float] = []
    kept = [0, 0]
    for turn in range(args.rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            child = (ours, peer)[side]
            if child is not None:
                answer, used = timed(child, "stage", args.tries, name=name)
                seconds[side].append(answer["seconds"])
                kept[side] = answer["kept"]
                others.append(used)
    extra = {"kept": kept[0], "peer_kept": kept[1] if peer else None, "others": max(others)}
    return rows_of(name, size, *seconds, **extra)


def pipelines(folder: Path, ours: Child, peer: Child, size: dict[str, int], args: Any) -> list[results.Row]:
    """The rows of the whole pipeline."""
    seconds: tuple[list[float], list[float]] = ([], [])
    kept = [0, 0]
    for turn in range(args.pipelines):
        for side in (0, 1) if turn % 2 else (1, 0):
            child = (ours, peer)[side]
            answer = child.call("pipeline", timeout=3600.0, folder=str(folder), workers=results.cores())
            seconds[side].append(answer["seconds"])
            kept[side] = answer["kept"]
    return rows_of("pipeline", size, *seconds, kept=kept[0], peer_kept=kept[1], cores=results.cores())


def classifiers(peer: Child, args: Any) -> list[results.Row]:
    """Training, prediction and the area under the curve beside fastText's, on the quality labels."""
    cfg = build(ClassifierConfig, QUALITY)
    labels, texts = labelled.read(cfg.data, cfg.seed)
    learnt, tested = ([t for t in texts if t.held_out == held] for held in (False, True))
    first = cfg.ngrams.first
    request = {
        "train": [[labels[t.label], t.text[:first]] for t in learnt],
        "test": [t.text[:first] for t in tested],
        "positive": labels[1],
        "settings": {
            "dim": cfg.dim, "epoch": cfg.epochs, "lr": cfg.rate, "bucket": 1 << cfg.ngrams.bits,
            "wordNgrams": max(cfg.ngrams.words), "minn": min(cfg.ngrams.characters),
            "maxn": max(cfg.ngrams.characters),
        },
    }  # fmt: skip
    truth = np.array([t.label == 1 for t in tested])
    batches = [[t.text for t in tested[k : k + TOGETHER]] for k in range(0, len(tested), TOGETHER)]
    fits: tuple[list[float], list[float]] = ([], [])
    answers: tuple[list[float], list[float]] = ([], [])
    train_linear.fit(cfg, labels, learnt)  # compiles
    for _ in range(args.pipelines):
        began = time.perf_counter()
        model = train_linear.fit(cfg, labels, learnt)
        fitted = time.perf_counter()
        found = np.concatenate([model.predict(batch) for batch in batches])
        fits[0].append(fitted - began)
        answers[0].append(time.perf_counter() - fitted)
        theirs = peer.call("fasttext", timeout=1200.0, **request)
        fits[1].append(theirs["train_seconds"])
        answers[1].append(theirs["predict_seconds"])
    size = lambda given: {"documents": len(given), "bytes": sum(len(t.text[:first].encode()) for t in given)}
    ours, peers_ = (train_linear.auc(values, truth) for values in (found[:, 1], np.array(theirs["values"])))
    about: dict[str, Any] = {"peer_name": "fastText", "seed": cfg.seed}
    return [
        *rows_of("classifier training", size(learnt), *fits, **about),
        *rows_of("classify", size(tested), *answers, **about),
        results.row("classify", "auc", "area under the curve", "text", ours, peer=peers_, **about),
    ]


def curated(args: Any) -> tuple[list[results.Row], dict[str, str]]:
    """The rows of curation, and the versions of the peers."""
    reporting.reporter().info("reading the sources")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(
            Child([sys.executable, "-m", "bench.curation"], name="ours", cwd=results.ROOT)
        )
        peer = stack.enter_context(client.start("datatrove"))
        versions = peer.call("versions")
        (folder / "text").mkdir()
        rows = []
        for files, names in (
            (pages(folder, args.pages), STAGES[:1]),
            (corpus(folder / "text", args.megabytes), STAGES[1:]),
        ):
            size = ours.call("load", files=files)
            if peer.call("load_texts", files=files) != size:
                raise RuntimeError("the sides have not read the same documents")
            for name in names:
                rows += shown(stage(name, ours, peer, size, args))
        for name in ALONE:
            rows += shown(stage(name, ours, None, size, args))
        rows += shown(pipelines(folder / "text", ours, peer, size, args))
        rows += shown(classifiers(peer, args))
    return rows, versions


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("curation", "batches"), help="one part instead of both")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of text")
    parser.add_argument("--pages", type=int, default=200, help="of HTML")
    parser.add_argument("--rounds", type=int, default=5, help="of a step, and of batches")
    parser.add_argument("--pipelines", type=int, default=3, help="rounds of the pipeline and the classifier")
    parser.add_argument("--tries", type=int, default=3, help="times that a disturbed block is made at most")
    parser.add_argument("--into", type=Path, default=results.RESULTS, help="folder of the result file")
    parser.add_argument("--dry", action="store_true", help="write no results")
    args = parser.parse_args()
    rows: list[results.Row] = []
    versions: dict[str, str] = {}
    with machine.exclusive(say):
        if args.only != "batches":
            rows, versions = curated(args)
        if args.only != "curation":
            rows += shown(batches.rows(args.rounds))
    if not args.dry:
        say(f"wrote {results.write('data', rows, versions=versions, into=args.into)}")
    return 0


def shown(rows: list[results.Row]) -> list[results.Row]:
    for row in rows:
        beside = (
            "" if row["peer"] is None else f"; {row['peer_name']} {row['peer']:.4g}, ratio {row['ratio']:.2f}"
        )
        print(f"{row['case']} {row['metric']}: {row['ours']:.4g} {row['unit']}{beside}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
