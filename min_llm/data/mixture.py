"""Batches out of several named sources in given shares, and the account of what each has given.

mix.py says which source a window comes from and how many the source has given before; loader.py cuts the window out
of that source's own shuffled epochs. Nothing depends on how many hosts ask or on what was asked before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from min_llm.data import loader
from min_llm.data.mix import Phase, Schedule
from min_llm.data.tokenfile import TokenFile
from min_llm.nn.batch import Batch


class Mixture:
    """The training text of a run: token files by name (same tokenizer), of which each phase takes its shares."""

    def __init__(
        self, files: Mapping[str, TokenFile], phases: Sequence[Phase], *, seed: int, seq_len: int
    ) -> None:
        """Raises UserError where a source is shorter than a window."""
        for tokens in files.values():
            loader.check_length(tokens, seq_len)
        self.files, self.phases, self.seq_len = dict(files), tuple(phases), seq_len
        start, *self._seeds = loader.derive(seed, 1 + len(self.files))  # a place, and a seed for each source
        self.schedule = Schedule(phases, list(self.files), seq_len, start)
        self._segmented = any(tokens.n_documents > 1 for tokens in self.files.values())

    def batch(
        self, step: int, rows: int, first_row: int = 0, n_rows: int | None = None, place: int | None = None
    ) -> Batch:
        """Rows `first_row` to `first_row + n_rows` (default: all) of the batch of a step, as `loader.batch` counts."""
        n_rows = loader.check_rows(rows, self.seq_len, first_row, n_rows)
        first = first_row + (step * rows if place is None else place)
        source, within = self.schedule.place(first, n_rows)
        pieces, order = [], []
        for s, tokens in enumerate(self.files.values()):
            mine = np.flatnonzero(source == s)
            if len(mine):
                made = loader.windows(tokens, within[mine], seed=self._seeds[s], seq_len=self.seq_len)
                pieces.append(_segmented(made) if self._segmented else made)
                order.append(mine)
        back = np.argsort(np.concatenate(order))
        return loader.combine(lambda fields: np.concatenate(fields)[back], pieces)

    def account(self, windows: int) -> dict[str, float]:
        """After so many windows, for each source: tokens/NAME, epochs/NAME, and share/NAME of the tokens since the
        present phase began."""
        schedule = self.schedule
        counts = schedule.counts(windows)
        began = schedule.first[schedule.phase(max(windows - 1, 0))]
        shares = (counts - schedule.counts(began)) / max(windows - began, 1)
        found: dict[str, float] = {}
        for (name, tokens), count, share in zip(
            self.files.items(), counts.tolist(), shares.tolist(), strict=True
        ):
            found[f"tokens/{name}"] = count * self.seq_len
            found[f"epochs/{name}"] = loader.epochs_done(tokens, count, self.seq_len)
            found[f"share/{name}"] = share
        return found

    def plan(self, windows: int) -> list[str]:
        """What a run of so many windows will take from each source, phase by phase, as sentences."""
        lines = []
        firsts = self.schedule.first
        for phase, began, end in zip(self.phases, firsts, [*firsts[1:], windows], strict=True):
            end = min(end, windows)
            if end <= began:
                continue
            counts = self.schedule.counts(end) - self.schedule.counts(began)
            parts = [
                f"{name} {count / (end - began):.2%} ({loader.epochs_done(tokens, count, self.seq_len):.2f} epochs)"
                for (name, tokens), count in zip(self.files.items(), counts.tolist(), strict=True)
                if phase.weights.get(name)
            ]
            lines.append(f"{began * self.seq_len:,} to {end * self.seq_len:,} tokens: {', '.join(parts)}")
        return lines


def _segmented(batch: Batch) -> Batch:
    """The batch with the segments and positions of one document where it has none, so that all batches are alike."""
    if batch.segment_ids is not None:
        return batch
    shape = batch.tokens.shape
    ones: Any = np.ones(shape, np.int32)
    positions: Any = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return dataclasses.replace(batch, segment_ids=ones, positions=positions)
