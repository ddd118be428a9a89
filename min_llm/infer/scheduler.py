"""Which tokens of which sequences the next step computes. Plain Python: it knows pages, not arrays.

Every sequence is a list of tokens of which the first `computed` have their keys and values in the cache. Running
sequences that lack only their last token come first, one row each (decode); what a step holds beside them goes to
prompts, in chunks, oldest first (chunked prefill: Agrawal et al. 2023); waiting sequences are admitted in order, when
the pages for all that they have are there. A sequence that finds no page takes those of the youngest, which then waits
and recomputes (preemption by recompute: Kwon et al. 2023). The oldest can always go on, so there is always progress.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from min_llm.infer.pages import Pages
from min_llm.kernels.attention.paged import BLOCK  # tokens of a chunk that belong to one sequence


@dataclasses.dataclass(eq=False)
class Sequence:
    """One text being continued. tokens: prompt and answer. root: what its pages depend on beside them. row: its place
    in the page tables while it runs. drafts: guesses of its next tokens, to be checked in one step. fresh: take
    nothing from the prefix cache. cached: tokens that it found there. adapter: the slot of its own, 0 without one."""

    tokens: list[int]
    root: bytes
    fresh: bool = False
    adapter: int = 0
    computed: int = 0
    cached: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)
    digests: list[bytes] = dataclasses.field(default_factory=list)  # of its full pages
    row: int | None = None
    drafts: list[int] = dataclasses.field(default_factory=list)

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens `start` to `start + count` of a sequence, drafts included."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the last token is reached, so that a next one is drawn."""
        return self.start + self.count >= len(self.sequence.tokens)


@dataclasses.dataclass
class Plan:
    """singles: parts whose tokens each take a row. chunks: parts that are laid out in blocks. copies: pages to be
    copied before anything is written (from, to)."""

    singles: list[Part] = dataclasses.field(default_factory=list)
    chunks: list[Part] = dataclasses.field(default_factory=list)
    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> list[Part]:
        return self.singles + self.chunks


class Scheduler:
    def __init__(self, pages: Pages, rows: int, singles: int, chunk: int, keep: bool = True) -> None:
        """rows: sequences that run at once. singles: single tokens of a step, at least as many; what is left is for
        drafts. chunk: tokens of a step in BLOCKs. keep: let full pages be found by others."""
        self.pages, self.singles, self.chunk, self._keep = pages, singles, chunk, keep
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self._free_rows = list(range(rows - 1, -1, -1))
        self.preemptions = 0
        self.prefix_hits = 0  # tokens that were not computed again

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, or nobody wants it any more."""
        if sequence.row is not None:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def stop_all(self) -> None:
        """Every running sequence waits again and begins anew."""
        for sequence in reversed(self.running[:]):
            self._stop(sequence)
            self.waiting.appendleft(sequence)

    def plan(self) -> Plan:
        """What the next step computes; pages for it are taken. Empty only when there is nothing to do."""
        plan = Plan()
        planned: set[int] = set()
        spare = self.singles - sum(s.missing == 1 for s in self.running)
        for sequence in list(self.running):  # some may be preempted for others on the way
            if sequence.row is None or sequence.missing != 1:
                continue
            if self._room(sequence, len(sequence.tokens), planned):
                drafts = min(len(sequence.drafts), spare)
                while drafts and not self._take(sequence, len(sequence.tokens) + drafts):
                    drafts -= 1
                del sequence.drafts[drafts:]
                plan.singles.append(Part(sequence, sequence.computed, 1 + drafts))
                planned.add(id(sequence))
                spare -= drafts
        budget = self.chunk
        for sequence in list(self.running):
            if sequence.row is not None and sequence.missing > 1:
                budget -= self._chunk(plan, planned, sequence, budget)
        while self.waiting and self._free_rows and budget >= BLOCK and self._admit(plan):
            budget -= self._chunk(plan, planned, self.running[-1], budget)
        return plan

    def commit(self, part: Part, accepted: int) -> None:
        """The step is done: `accepted` of a part's tokens are right (all but rejected drafts). Pages that are full now
        can be found by others."""
        sequence = part.sequence
        sequence.computed = part.start + accepted
        size = self.pages.size
        while self._keep and (len(sequence.digests) + 1) * size <= sequence.computed:
            i = len(sequence.digests)
            parent = sequence.digests[-1] if i else sequence.root
            tokens = sequence.tokens[i * size : (i + 1) * size]
            sequence.digests.append(self.pages.keep(sequence.pages[i], parent, tokens))

    def _chunk(self, plan: Plan, planned: set[int], sequence: Sequence, budget: int) -> int:
        """Plan as much of a sequence's missing tokens as fits; the budget that takes."""
        count = min(sequence.missing, budget)
        if count < 1 or not self._room(sequence, sequence.computed + count, planned):
            return 0
        plan.chunks.append(Part(sequence, sequence.computed, count))
        planned.add(id(sequence))
        return -(-count // BLOCK) * BLOCK

    def _admit(self, plan: Plan) -> bool:
        """Let the first waiting sequence run if there are pages for all its tokens and one more."""
        sequence = self.waiting[0]
        # the last token is always computed: its logits are wanted
        found = self.pages.match([] if sequence.fresh else sequence.tokens[:-1], sequence.root)
        self.pages.share(found.pages)
        n = self._pages_of(len(sequence.tokens) + 1) - len(found.pages)
        new, part = self._take_beside(found.tail, n), found.part
        if new is None:  # the page to be copied may be the one that is needed
            new, part = self.pages.take(n), 0
        if new is None:
            self.pages.release(found.pages)
            return False
        sequence.pages = [*found.pages, *new]
        sequence.digests = [self.pages.digest(page) for page in found.pages]
        known = len(found.pages) * self.pages.size + part
        if part:
            assert found.tail is not None
            plan.copies.append((found.tail, new[0]))
        sequence.computed = sequence.cached = known
        self.prefix_hits += known
        sequence.row = self._free_rows.pop()
        self.waiting.popleft()
        self.running.append(sequence)
        return True

    def _take_beside(self, page: int | None, n: int) -> list[int] | None:
        """n pages without forgetting `page`."""
        if page is None:
            return None
        self.pages.share([page])
        new = self.pages.take(n)
        self.pages.release([page])
        return new

    def _room(self, sequence: Sequence, end: int, planned: set[int]) -> bool:
        """Pages for the first `end` tokens, from younger sequences if need be; False: it must wait."""
        while not self._take(sequence, end):
            younger = self.running[self.running.index(sequence) + 1 :]
            victims = [s for s in younger if id(s) not in planned]
            if not victims:
                return False
            self._stop(victims[-1])
            self.waiting.appendleft(victims[-1])
            self.preemptions += 1
        return True

    def _take(self, sequence: Sequence, end: int) -> bool:
        missing = self._pages_of(end) - len(sequence.pages)
        if missing > 0:
            new = self.pages.take(missing)
            if new is None:
                return False
            sequence.pages += new
        return True

    def _stop(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        self.pages.release(sequence.pages)
        self._free_rows.append(sequence.row)
        self.running.remove(sequence)
        sequence.pages, sequence.digests, sequence.drafts = [], [], []
        sequence.computed, sequence.row = 0, None

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.pages.size)
