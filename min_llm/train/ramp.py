"""A run in phases of growing batches and rows, keyed on the tokens seen (Llama 3 section 3.4.1, L3-4.2).

The paper's run is 4M tokens a step in rows of 4,096, from 252M tokens on 8M in rows of 8,192, from 2.87T on 16M:

    train:
      ramp:
        - {until_tokens: 252e6, batch_size: 1024, seq_len: 4096}
        - {until_tokens: 2.87e12, batch_size: 1024, seq_len: 8192}
      batch_size: 2048
      seq_len: 8192

Steps and tokens determine each other, so a step number is still all that a run has to remember of where it is.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any

from min_llm.config import UserError
from min_llm.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Span:
    """A phase, placed: its first step, the tokens and (in rows of its own length) the rows seen before it."""

    first_step: int
    first_token: int
    first_row: int
    batch_size: int
    seq_len: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def row(self, step: int) -> int:
        """The place of a step's first row in a stream of rows of this length."""
        return self.first_row + (step - self.first_step) * self.batch_size


@dataclasses.dataclass(frozen=True)
class Ramp:
    """The phases of a run in their order; one, where nothing ramps."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, cfg: TrainConfig) -> Ramp:
        """A phase ends with the step in which its `until_tokens` are reached; the last one is the configuration's own
        batch_size and seq_len. A phase whose rows are as long as those before goes on with the next row; one with
        other rows begins at the row in which the tokens seen end."""
        step = token = row = length = 0
        spans = []
        for until, batch_size, seq_len in [
            *((p.until_tokens, p.batch_size, p.seq_len) for p in cfg.ramp),
            (None, cfg.batch_size, cfg.seq_len),
        ]:
            row = row if seq_len == length else -(-token // seq_len)
            spans.append(Span(step, token, row, batch_size, seq_len))
            if until is not None:
                if until <= token:
                    raise UserError(
                        f"'train.ramp' has a phase until {until:,} tokens that begins after {token:,}; phases are "
                        "listed in order, each until more tokens than the one before."
                    )
                steps = -(-(until - token) // (batch_size * seq_len))
                step, token, row = (
                    step + steps,
                    token + steps * batch_size * seq_len,
                    row + steps * batch_size,
                )
            length = seq_len
        return cls(tuple(spans))

    def at(self, step: int) -> Span:
        """The phase of a step."""
        return self.spans[bisect.bisect_right([s.first_step for s in self.spans], step) - 1]

    def tokens(self, step: int) -> int:
        """Tokens seen when `step` steps are done."""
        span = self.at(step)
        return span.first_token + (step - span.first_step) * span.tokens_per_step

    def steps(self, tokens: int) -> int:
        """Steps after which at least so many tokens were seen."""
        span = [s for s in self.spans if s.first_token <= tokens][-1]
        return span.first_step - (span.first_token - tokens) // span.tokens_per_step

    def words(self, times: str = "x") -> str:
        """ "16 x 128, then 32 x 256" """
        return ", then ".join(f"{s.batch_size} {times} {s.seq_len}" for s in self.spans)

    def places(self, step: Any) -> tuple[Any, Any]:
        """(tokens seen before it, tokens in it) of a step or an array of steps, in NumPy or under jit, in the dtype of
        `step`: float32 holds 15.6T tokens to one part in ten million."""
        xp = step.__array_namespace__()
        seen, size = step, step
        for s in self.spans:
            here, per_step = step >= s.first_step, float(s.tokens_per_step)
            seen = xp.where(here, float(s.first_token) + (step - s.first_step) * per_step, seen)
            size = xp.where(here, per_step, size)
        return seen, size
