"""What deduplication and the filters do to texts of which the truth is known: `python -m apps.dedup.run [CASE ...]`.

A pair (pairs.py) is found when one of its versions goes and the other stays for it, or both go for the same text. Where
a text goes in favour of another thing, it is a false positive unless the two are alike, too (Jaccard similarity of
5-grams 0.5 and more): chapters of the Bible and pages of the kernel do repeat each other. For mails (mails.py), what
folders and headers say is the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps import results
from apps.dedup import mails, pairs
from apps.dedup.decide import decided, jaccard
from apps.dedup.pairs import Pair
from bench.results import Row, row
from min_llm import machine
from min_llm.data.curate.exact import Exact
from min_llm.data.curate.minhash import MinHash, collision

ALIKE = 0.5
LOOSE = MinHash(bands=400, rows=4, words=3)  # for editions in another spelling


def pair_rows(case: str, step: Exact | MinHash, known: Sequence[Pair], **about: Any) -> list[Row]:
    """Recall, what the collision curve expects of it, false positives, speed."""
    half = len(known)
    texts = [*(pair.first for pair in known), *(pair.second for pair in known)]
    decision, seconds = decided(step, texts)
    gone = np.flatnonzero(decision >= 0)
    others = gone[decision[gone] % half != gone % half]
    wrong = [i for i in others.tolist() if jaccard(texts[i], texts[decision[i]], 5) < ALIKE]
    kept = np.where(decision >= 0, decision, np.arange(2 * half))
    recall = float((kept[:half] == kept[half:]).mean())
    about |= {"pairs": half, "false_positives": len(wrong), "alike": len(others) - len(wrong)}
    if isinstance(step, MinHash):
        similar = np.array([jaccard(pair.first, pair.second, step.words) for pair in known])
        about |= {
            "setting": f"{step.bands} bands of {step.rows}, {step.words}-grams",
            "jaccard": float(similar.mean()),
            "expected": float(collision(similar, step.bands, step.rows).mean()),
        }
    return [
        row(case, "recall", "share", "text", recall, **about),
        row(case, "speed", "documents/s", "text", len(texts) / seconds, **about),
    ]


def planted_rows(seeds: Sequence[int] = (0, 1, 2)) -> list[Row]:
    """The mean over the seeds, which draw texts and changes."""
    runs = [pair_rows("planted", MinHash(), pairs.planted(seed)) for seed in seeds]
    made = []
    for several in zip(*runs, strict=True):
        values = [one["ours"] for one in several]
        merged = several[0] | {"ours": float(np.mean(values)), "spread": [min(values), max(values)]}
        merged |= {name: float(np.mean([one[name] for one in several])) for name in ("jaccard", "expected")}
        merged["false_positives"] = sum(one["false_positives"] for one in several)
        made.append(merged | {"runs": len(seeds), "seeds": list(seeds)})
    return made


CASES = {
    "planted": planted_rows,
    "folio": lambda: [
        *pair_rows("folio", MinHash(), pairs.folio()),
        *pair_rows("folio, loose", LOOSE, pairs.folio()),
    ],
    "bibles": lambda: [
        *pair_rows("bibles", MinHash(), pairs.bibles()),
        *pair_rows("bibles, loose", LOOSE, pairs.bibles()),
    ],
    "kernel": lambda: [
        *pair_rows("kernel, exact", Exact(), pairs.kernel()),
        *pair_rows("kernel", MinHash(), pairs.kernel()),
    ],
    "mails": mails.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    arguments = parser.parse_args()
    for case in arguments.cases or CASES:
        if case not in CASES:
            parser.error(f"there is no case {case!r}; there are {', '.join(CASES)}")
        with machine.exclusive(print):
            rows = CASES[case]()
        for made in rows:
            print(f"{made['case']} {made['metric']}: {made['ours']:.4g} {made['unit']}")
        print(f"wrote {results.write('dedup', rows, arguments.into)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
