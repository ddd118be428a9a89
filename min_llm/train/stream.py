"""The batches of a run, as its ramp and its mix have them: each a function of the step and of nothing that came before.

Where rows get longer they are cut anew, in another shuffled order, from the place that the tokens seen have reached:
text of the epoch that the ramp falls into may then come twice, or not before the next.
"""

from __future__ import annotations

import dataclasses

from min_llm.config import UserError
from min_llm.data.loader import batch
from min_llm.data.mixture import Mixture
from min_llm.data.prepare import Corpus
from min_llm.nn.batch import Batch
from min_llm.train.config import RunConfig
from min_llm.train.ramp import Ramp


class Stream:
    """`batch(step)`, and for a mix what each source gives."""

    def __init__(self, cfg: RunConfig, data: Corpus) -> None:
        self.cfg, self.ramp = cfg, Ramp.of(cfg.train)
        self.files = {name: part.train for name, part in data.parts.items()}
        lengths = {span.seq_len for span in self.ramp.spans} if cfg.data.mix else ()
        self.mixtures = {length: self._mixture(length) for length in lengths}

    def _mixture(self, seq_len: int) -> Mixture:
        if self.cfg.train.order != "shuffled":
            raise UserError(
                f"'train.order' is {self.cfg.train.order!r}, but a mix counts epochs. Remove it, or train on one "
                "data.source."
            )
        return Mixture(self.files, self.cfg.data.mix, seed=self.cfg.seed, seq_len=seq_len)

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the host."""
        made = self._masked(step)
        return (
            made
            if self.cfg.train.document_mask
            else dataclasses.replace(made, segment_ids=None, positions=None)
        )

    def _masked(self, step: int) -> Batch:
        span = self.ramp.at(step)
        rows, place = span.batch_size, span.row(step)
        if self.mixtures:
            return self.mixtures[span.seq_len].batch(step, rows, place=place)
        (tokens,) = self.files.values()
        return batch(
            tokens, seed=self.cfg.seed, step=step, rows=rows, seq_len=span.seq_len, order=self.cfg.train.order,
            place=place,
        )  # fmt: skip

    def account(self, steps: int) -> dict[str, float]:
        """What each source of the mix has given after so many steps (`Mixture.account`); where rows were shorter, what
        it would have given in rows of the present length."""
        span = self.ramp.at(max(steps - 1, 0))
        return self.mixtures[span.seq_len].account(span.row(steps))

    def plan(self) -> list[str]:
        """What the run will take from each source of the mix, phase by phase, in rows of the last length."""
        steps = self.cfg.train.steps
        span = self.ramp.at(steps - 1)
        return self.mixtures[span.seq_len].plan(span.row(steps)) if self.mixtures else []
