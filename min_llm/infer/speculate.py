"""Speculative decoding: guess the next tokens cheaply and let the model check them all in one step.

Leviathan et al. (2023) accept a guess with a probability that keeps the model's distribution. Here the next token is a
function of the model's logits, the request's seed and the place, so a guess is right if it is that token: the answer is
the very same as without guesses, token for token, at any temperature. A draft model draws its guesses with the same
random numbers, so that where the two distributions are alike so are the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from min_llm.infer import drawing, step
from min_llm.infer.answer import Answer
from min_llm.infer.pages import Pages
from min_llm.infer.scheduler import Scheduler
from min_llm.infer.scheduler import Sequence as Text


class Drafter(Protocol):
    def propose(self, answers: Sequence[Answer], k: int) -> None:
        """Set the drafts of each answer's sequence, k at most. Every call names all running answers."""
        ...

    def forget(self) -> None:
        """Begin anew: a step has failed."""
        ...


class Prompt:
    """What followed the last time that these tokens came (prompt lookup, Saxena 2023): good where an answer repeats its
    prompt, as in summaries, edits and code."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        """Matches of `longest` last tokens are tried first, of fewer than `shortest` never."""
        self._lengths = range(longest, shortest - 1, -1)
        self._seen: dict[Answer, tuple[dict[tuple[int, ...], int], int]] = {}

    def propose(self, answers: Sequence[Answer], k: int) -> None:
        self._seen = {a: self._seen.get(a, ({}, 0)) for a in answers}
        for answer in answers:
            tokens = answer.sequence.tokens
            answer.sequence.drafts = self._guess(answer, tokens)[:k]

    def forget(self) -> None:
        self._seen.clear()

    def _guess(self, answer: Answer, tokens: list[int]) -> list[int]:
        """The tokens behind the latest earlier place that ends like these."""
        after, known = self._seen[answer]
        for end in range(known, len(tokens)):  # the last place itself is not known yet
            for n in self._lengths:
                if end >= n:
                    after[tuple(tokens[end - n : end])] = end
        self._seen[answer] = after, len(tokens)
        for n in self._lengths:
            place = after.get(tuple(tokens[-n:])) if len(tokens) >= n else None
            if place is not None:
                return tokens[place:]
        return []


class Draft:
    """A smaller model of the same tokens. It has pages of its own, for as many tokens as the model that checks it."""

    def __init__(self, program: step.Program, scheduler: Scheduler) -> None:
        self._program, self._scheduler = program, scheduler
        self._shadows: dict[Answer, Text] = {}

    def propose(self, answers: Sequence[Answer], k: int) -> None:
        for gone in set(self._shadows) - set(answers):
            self._scheduler.remove(self._shadows.pop(gone))
        for answer in answers:
            self._follow(answer)
        lengths = {a: len(a.sequence.tokens) for a in answers}
        wanting = set(answers)
        for _ in range(k):
            wanting = self._advance(wanting)
            if not wanting:
                break
        for answer, n in lengths.items():
            answer.sequence.drafts = self._shadows[answer].tokens[n:]

    def forget(self) -> None:
        for shadow in self._shadows.values():
            self._scheduler.remove(shadow)
        self._shadows.clear()
        self._program.empty()

    def _follow(self, answer: Answer) -> None:
        """Begin where the checked tokens are: what was computed for wrong guesses is computed again."""
        tokens = answer.sequence.tokens
        shadow = self._shadows.get(answer)
        if shadow is None:
            shadow = self._shadows[answer] = Text(list(tokens), b"", fresh=True)
            self._scheduler.add(shadow)
            return
        right = 0
        for ours, theirs in zip(shadow.tokens[: shadow.computed], tokens, strict=False):
            if ours != theirs:
                break
            right += 1
        shadow.computed, shadow.tokens = right, list(tokens)

    def _advance(self, wanting: set[Answer]) -> set[Answer]:
        """One token more for each; those that got one. A prompt that is not through yet gets none."""
        owners = {self._shadows[a]: a for a in wanting}
        plan = self._scheduler.plan()
        logits, _, _ = self._program.run(plan)
        sampled = [p for p in plan.parts if p.samples]
        drawn = self._program.draw(
            logits, [(_owner(self._shadows, p.sequence), p.start + p.count) for p in sampled]
        )
        for part in plan.parts:
            self._scheduler.commit(part, part.count)
        got = set()
        for part, token in zip(sampled, drawn, strict=True):
            answer = owners.get(part.sequence)
            if answer is not None and token.id != drawing.FORBIDDEN:
                part.sequence.tokens.append(token.id)
                got.add(answer)
        return got


def _owner(shadows: dict[Answer, Text], sequence: Text) -> Answer:
    return next(answer for answer, shadow in shadows.items() if shadow is sequence)


def draft(program: step.Program, pages: Pages, rows: int, chunk: int) -> Draft:
    """A draft model with a scheduler over pages of its own that keeps nothing for others."""
    return Draft(program, Scheduler(pages, rows, rows, chunk, keep=False))
