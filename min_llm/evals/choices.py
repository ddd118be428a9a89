"""Multiple choice: the answer is the choice that the model finds likeliest after the question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.config import UserError
from min_llm.data.readers import json_lines
from min_llm.evals.intervals import Accuracy
from min_llm.evals.scoring import Score, scores, split
from min_llm.infer.engine import Engine


@dataclasses.dataclass(frozen=True)
class Question:
    """answer: the index of the right choice."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class Choices:
    """Accuracies, with the likeliest choice taken as it is, per token, or per byte (long choices are unlikely by their
    length alone). chance: of guessing. scores: of each choice of each question."""

    raw: Accuracy
    per_token: Accuracy
    per_byte: Accuracy
    chance: float
    scores: tuple[tuple[Score, ...], ...]


def read(path: Path) -> list[Question]:
    """A .jsonl file: {"context": "…", "choices": ["…", "…"], "answer": 0} in each line. Raises UserError with the
    line."""
    return [_question(row, f"{path}, line {number}") for number, row in json_lines(path)]


def _question(row: Any, where: str) -> Question:
    row = row if isinstance(row, dict) else {}
    context, choices, answer = (row.get(name) for name in ("context", "choices", "answer"))
    texts = (
        isinstance(context, str) and isinstance(choices, list) and all(isinstance(c, str) for c in choices)
    )
    if not texts or not context.strip() or len(choices) < 2 or not all(choices):
        raise UserError(f"{where}: a question has a context and two or more choices, all of them text.")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer is {answer!r}; it must be the index of a choice, from 0.")
    return Question(context, tuple(choices), answer)


def choices(
    engine: Engine, questions: Sequence[Question], opening: Sequence[int] = (), delimiter: str = " "
) -> Choices:
    """opening: tokens that every text begins with. delimiter: stands between context and choice and is scored with it,
    but counts as none of its bytes."""
    encode: Callable[[str], list[int]] = lambda text: [*opening, *engine.tokenizer.encode(text)]
    pairs = [split(encode, q.context, delimiter + choice) for q in questions for choice in q.choices]
    if not pairs:
        raise UserError("There are no questions.")
    if not all(after for _, after in pairs):
        raise UserError(
            "A choice has no token of its own: it joins the last one of its context. Separate the two with a delimiter."
        )
    found = iter(scores(engine, pairs))
    grouped = tuple(tuple(next(found) for _ in q.choices) for q in questions)

    def right(length: Callable[[Score, str], float]) -> Accuracy:
        correct = 0
        for question, some in zip(questions, grouped, strict=True):
            rates = [s.logprob / length(s, c) for s, c in zip(some, question.choices, strict=True)]
            correct += int(np.argmax(rates)) == question.answer
        return Accuracy(correct, len(questions))

    return Choices(
        raw=right(lambda *_: 1.0),
        per_token=right(lambda score, _: score.tokens),
        per_byte=right(lambda _, choice: len(choice.encode())),
        chance=float(np.mean([1 / len(q.choices) for q in questions])),
        scores=grouped,
    )
