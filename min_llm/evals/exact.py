"""Generation with exact match: the model's greedy answer is one of the right ones, letter by letter."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from min_llm.config import UserError
from min_llm.data.readers import json_lines
from min_llm.evals.intervals import Accuracy
from min_llm.evals.scoring import outputs
from min_llm.infer.engine import Engine
from min_llm.infer.request import Sampling

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclasses.dataclass(frozen=True)
class Task:
    """answers: any of them is right."""

    prompt: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Exact:
    """strict: equal but for space at both ends. normalised: equal after `normalised`. texts: what the model wrote."""

    strict: Accuracy
    normalised: Accuracy
    texts: tuple[str, ...]


def read(path: Path) -> list[Task]:
    """A .jsonl file: {"prompt": "…", "answer": "…" or ["…", …]} in each line. Raises UserError with the line."""
    return [_task(row, f"{path}, line {number}") for number, row in json_lines(path)]


def _task(row: Any, where: str) -> Task:
    row = row if isinstance(row, dict) else {}
    prompt, answer = row.get("prompt"), row.get("answer")
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"{where}: prompt is {prompt!r}; it must be text.")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{where}: answer is {answer!r}; it must be text or a list of texts.")
    return Task(prompt, tuple(answers))


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces (SQuAD, Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(
    engine: Engine, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], max_tokens: int = 64,
    stop: Sequence[str] = ("\n",),
) -> Exact:  # fmt: skip
    """prompts: the tokens that each task begins with. An answer ends before a stop string, at the model's own end, or
    after max_tokens. Raises UserError for a prompt that does not fit beside them."""
    if not tasks:
        raise UserError("There are no tasks.")
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop=stop, seed=0)
    texts = answers(engine, [(prompt, sampling) for prompt in prompts])

    def right(form: Callable[[str], str]) -> Accuracy:
        hits = [form(text) in map(form, task.answers) for text, task in zip(texts, tasks, strict=True)]
        return Accuracy(sum(hits), len(hits))

    return Exact(right(str.strip), right(normalised), tuple(texts))


def answers(engine: Engine, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[str]:
    """The text that follows each prompt."""
    found = [""] * len(requests)
    for place, output in outputs(engine, requests):
        found[place] += output.text
    return found
