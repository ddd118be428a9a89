"""Multiple choice from any text: how does this passage go on? The other choices are how other passages do.

Passages are cut within a word, so that spelling alone says something about the right choice and models far too small
for a benchmark rise above guessing (L3-2.9).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from min_llm.config import UserError
from min_llm.evals.choices import Question
from min_llm.platform import write_atomic

OPTIONS = 4
KEPT = 2  # letters of the word on either side of the cut


def cloze(
    texts: Iterable[str], count: int, before: int = 80, after: int = 16, seed: int = 0
) -> list[Question]:
    """`count` questions with 4 options, the same for the same texts and seed: after `before` characters, which `after`
    of them? White space is made single spaces. The questions are scored with the delimiter "". UserError where the
    texts have too few passages that a cut leaves in the middle of a word in small letters.
    """
    if before < KEPT or after < KEPT:
        raise UserError(
            f"Passages of {before} + {after} characters were asked for; both must be at least {KEPT}."
        )
    passages = [p for text in texts for p in _passages(" ".join(text.split()), before, after)]
    endings = list(dict.fromkeys(end for _, end in passages))
    if len(passages) < count or len(endings) < OPTIONS:
        raise UserError(
            f"The texts have {len(passages)} passages of {before} + {after} characters that are cut within a word; "
            f"{max(count, OPTIONS)} are needed. Ask for fewer or shorter ones, or give more text."
        )
    random = np.random.default_rng(seed)
    drawn = random.permutation(len(passages))[:count]
    return [_question(context, right, endings, random) for context, right in (passages[i] for i in drawn)]


def write(path: Path, questions: Sequence[Question]) -> None:
    """The .jsonl file that `choices.read` reads."""
    rows = [{"context": q.context, "choices": q.choices, "answer": q.answer} for q in questions]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _passages(text: str, before: int, after: int) -> list[tuple[str, str]]:
    """(beginning, end) of the passages that are cut within a word."""
    cuts = range(before, len(text) - after + 1, before + after)
    around = [(at, text[at - KEPT : at + KEPT]) for at in cuts]
    return [
        (text[at - before : at], text[at : at + after])
        for at, word in around
        if word.isalpha() and word.islower()
    ]


def _question(context: str, right: str, endings: Sequence[str], random: np.random.Generator) -> Question:
    drawn = [endings[i] for i in random.choice(len(endings), OPTIONS, replace=False)]
    wrong = [end for end in drawn if end != right][: OPTIONS - 1]
    answer = int(random.integers(OPTIONS))
    return Question(context, (*wrong[:answer], right, *wrong[answer:]), answer)
