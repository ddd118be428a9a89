"""One answer in the making: its tokens, its text, what may come next, and when it ends."""

from __future__ import annotations

import dataclasses

import numpy as np

from min_llm.infer.choose import bias_of
from min_llm.infer.constrain import Matcher
from min_llm.infer.request import Finish, Output, Sampling, Token
from min_llm.infer.scheduler import Sequence
from min_llm.infer.text_stream import TextStream


@dataclasses.dataclass(eq=False)
class Answer:
    """seed: of this choice. prompt: how many tokens of the sequence are the prompt. most: tokens after which it ends.
    ends: tokens that end it. counts [vocab]: how often each token occurs in the answer, kept where a penalty needs it.
    seen [vocab]: which occur in prompt or answer. matcher: what its grammar allows. scores: of the prompt's tokens.
    embedding: the sum of hidden states, for a request that wants nothing else."""

    request: int
    choice: int
    sampling: Sampling
    seed: int
    sequence: Sequence
    prompt: int
    most: int
    ends: frozenset[int]
    text: TextStream | None
    matcher: Matcher | None = None
    counts: np.ndarray | None = None
    seen: np.ndarray | None = None
    scores: list[Token] | None = None
    embedding: np.ndarray | None = None
    cached: int | None = None  # told with the first output

    @property
    def produced(self) -> int:
        return len(self.sequence.tokens) - self.prompt

    @property
    def edited(self) -> bool:
        """Whether its logits are changed before a token is drawn."""
        s = self.sampling
        held_open = self.produced < s.min_tokens
        return bool(s.logit_bias or held_open or self.matcher is not None or self.counts is not None)

    def edit(self, seen: np.ndarray, bias: np.ndarray) -> None:
        """Fill its rows: which tokens the repetition penalty counts as seen, and what is added to each logit."""
        counts = np.zeros(len(bias), np.int32) if self.counts is None else self.counts
        bias[:] = bias_of(self.sampling, counts, self.ends, self.produced)
        if self.seen is not None:
            seen[:] = self.seen
        if self.matcher is not None:
            bias[~self.matcher.mask()[: len(bias)]] = -np.inf

    def take(self, token: Token) -> Output:
        """The answer goes on with this token."""
        self.sequence.tokens.append(token.id)
        if self.counts is not None:
            self.counts[token.id] += 1
        if self.seen is not None:
            self.seen[token.id] = True
        finish: Finish | None = None
        stopped_by: str | int | None = None
        text = ""
        done = self._advance(token.id)
        if token.id in self.ends:
            finish, stopped_by = "stop", token.id
        else:
            if self.text is not None:
                text = self.text.feed(token.id)
                if self.text.stopped is not None:
                    finish, stopped_by = "stop", self.text.stopped
            if finish is None and done:
                finish = "stop"
            if finish is None and self.produced >= self.most:
                finish = "length"
        if finish is not None and self.text is not None and self.text.stopped is None:
            text += self.text.finish()
        prompt, self.scores = tuple(self.scores) if self.scores else None, None  # told once
        return Output(
            self.request,
            self.choice,
            (token,),
            text,
            finish,
            stopped_by,
            prompt=prompt,
            cached=self.cached or 0,
        )

    @property
    def stuck(self) -> str:
        """Why no token may follow."""
        if self.matcher is not None and self.matcher.error:
            return f"The grammar allows no token here: {self.matcher.error}."
        return "No token may follow: the grammar or the biases forbid them all."

    def fail(self, why: str) -> Output:
        return Output(self.request, self.choice, finish="error", error=why, cached=self.cached or 0)

    def scored(self, start: int, count: int, found: list[np.ndarray]) -> None:
        """found: log-probabilities [count] of the tokens behind each of prompt tokens start to start + count, and the
        likeliest tokens with theirs [count, k]."""
        assert self.scores is not None
        del self.scores[start + 1 :]  # it may have been preempted
        k = self.sampling.prompt_logprobs or 0
        for i in range(min(count, self.prompt - 1 - start)):
            logprob, ids, tops = (part[i] for part in found)
            best = tuple(zip(ids[:k].tolist(), tops[:k].tolist(), strict=True))
            self.scores.append(Token(self.sequence.tokens[start + i + 1], float(logprob), best))

    def _advance(self, token: int) -> bool:
        """Whether the grammar is complete and allows nothing more."""
        if self.matcher is None or token in self.ends:
            return False
        self.matcher.advance(token)
        return self.matcher.done
