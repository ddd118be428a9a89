"""Which source each window of a run comes from: a function of (seed, window number), with nothing to replay.

Window w stands at the place u(w) = u(0) + w / golden ratio (mod 1) of the unit interval, and the interval is shared
out among the sources by their weights. These places keep apart as well as any sequence can (Knuth, The Art of
Computer Programming 6.4, theorem S): any stretch of windows, a batch or a million, holds each source in its share, give
or take a few. How many of the first n windows a source has is a sum of floors, which Euclid's algorithm gives in
O(log n). So a run resumes from its step alone, and any host finds its own rows.

The mix may change with the tokens seen (L3-1.15, L3-4.3; Llama 3, sections 3.1.2 and 3.4.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from min_llm.config import UserError, nearest

UNIT = 1 << 63  # the unit interval in integers: its ends fit into uint64
STEP = (
    math.isqrt(5 * UNIT**2) - UNIT
) // 2 | 1  # of UNIT, one over the golden ratio; odd: no place comes twice


@dataclasses.dataclass(frozen=True)
class Phase:
    """The weights of the sources up to a number of tokens seen, or to the end of the run."""

    weights: dict[str, float]  # shares of the tokens: they sum to 1; a source that is not named has none
    until: int | None = None  # tokens seen by the run, not by this phase


def check_phases(phases: Sequence[Phase], names: Collection[str]) -> None:
    """Refuse phases that make no sense for the sources of these names, with a sentence."""
    seen = 0
    for k, phase in enumerate(phases):
        here = f"data.mix[{k}]"
        _check_weights(here, phase.weights, names)
        if k == len(phases) - 1:
            if phase.until is not None:
                raise UserError(
                    f"{here} is the last phase and lasts to the end of the run. Remove its 'until'."
                )
        elif phase.until is None:
            raise UserError(
                f"{here} needs 'until': the tokens that the run has seen when the next phase begins."
            )
        elif phase.until <= seen:
            raise UserError(
                f"{here} ends at {phase.until:,} tokens, but it begins at {seen:,}. Put the phases in order."
            )
        seen = phase.until or seen
    if idle := [name for name in names if not any(name in phase.weights for phase in phases)]:
        raise UserError(
            f"data.sources names {idle[0]!r}, which no phase of data.mix weighs. Remove it, or give it the weight 0 "
            "to validate on it without training."
        )


def _check_weights(here: str, weights: Mapping[str, float], names: Collection[str]) -> None:
    for name, weight in weights.items():
        if name not in names:
            raise UserError(
                f"{here} weighs a source {name!r} that data.sources does not name.{nearest(name, list(names))}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{here} gives {name!r} the weight {weight}; a weight is a share from 0 to 1.")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        scaled = {name: round(weight / total, 6) for name, weight in weights.items()} if total else {}
        advice = f"Did you mean {scaled}?" if scaled else "Give at least one source a share."
        raise UserError(f"The weights of {here} sum to {total:g}, not to 1. {advice}")


class Schedule:
    """The source of every window of `seq_len` tokens. A window that begins in a phase belongs to it."""

    def __init__(self, phases: Sequence[Phase], names: Sequence[str], seq_len: int, start: int) -> None:
        """start: an integer that stands for u(0), modulo 2^63; names: of the sources, in the order of their places."""
        self.first = [0, *(-(-p.until // seq_len) for p in phases if p.until is not None)]
        self._start = start % UNIT
        self._edges = [_edges(phase.weights, names) for phase in phases]
        # what to add in each phase to the counts of a run that had its weights from the first window on
        self._before = [np.zeros(len(names), np.int64)]
        for k in range(1, len(phases)):
            self._before.append(self.counts(self.first[k]) - self._counts(k, self.first[k]))

    def phase(self, window: int) -> int:
        """The phase that a window belongs to."""
        return int(np.searchsorted(self.first, window, "right")) - 1

    def counts(self, n: int) -> Int[np.ndarray, sources]:
        """How many of the first n windows each source has."""
        k = self.phase(max(n - 1, 0))
        return self._before[k] + self._counts(k, n)

    def place(self, first: int, n: int) -> tuple[Int[np.ndarray, n], Int[np.ndarray, n]]:
        """(source, number within the source) of the n windows from `first` on."""
        windows = np.arange(first, first + n)
        u = (np.uint64(self._start) + windows.astype(np.uint64) * np.uint64(STEP)) % np.uint64(UNIT)
        source = np.empty(n, np.int64)
        phase = np.searchsorted(self.first, windows, "right") - 1
        for k in range(phase[0], phase[-1] + 1):
            here = phase == k
            inner = np.array(self._edges[k][1:-1], np.uint64)
            source[here] = np.searchsorted(inner, u[here], "right")
        within = np.empty(n, np.int64)
        for s, before in enumerate(self.counts(first)):
            mine = source == s
            within[mine] = before + np.arange(mine.sum())
        return source, within

    def _counts(self, k: int, n: int) -> Int[np.ndarray, sources]:
        """How many of the first n windows each source would have if all were of phase k.

        x mod m < e, for 0 <= e <= m, exactly where floor(x / m) - floor((x - e) / m) is 1; adding m to x - e keeps it
        from below 0.
        """
        whole = floor_sum(n, UNIT, STEP, self._start)
        inner = self._edges[k][1:-1]
        below = [whole + n - floor_sum(n, UNIT, STEP, self._start - edge + UNIT) for edge in inner]
        return np.diff([0, *below, n])


def _edges(weights: Mapping[str, float], names: Sequence[str]) -> list[int]:
    """Where the share of each source begins, and UNIT."""
    reached = np.cumsum([weights.get(name, 0.0) for name in names])
    return [0, *(round(UNIT * float(share)) for share in reached[:-1] / reached[-1]), UNIT]


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of floor((a i + b) / m) over i = 0 .. n - 1, for a, b >= 0.

    Lattice points below a line: whole rows are taken off, then the axes change places, as in Euclid's algorithm
    (Graham, Knuth and Patashnik, Concrete Mathematics, section 3.5). O(log m).
    """
    total = 0
    while n > 0:
        total += (a // m) * (n * (n - 1) // 2) + (b // m) * n
        a, b = a % m, b % m
        n, b = divmod(a * n + b, m)
        m, a = a, m
    return total
