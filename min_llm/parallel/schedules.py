"""Pipeline schedules: which rank takes which micro-batch when, and what that costs. Plain Python; runs no model.

A model is cut into stages, one after the other. Stage s lies on rank s % PP and is chunk s // PP of that rank, so
with V chunks a rank (virtual stages) each of the M micro-batches passes every rank V times, forward and back. A
schedule is the order in which each rank does its operations; the rest follows from it:

    timeline    when each operation starts and ends, or a sentence about why it never does
    bubble      the time a rank waits, over the time it computes
    in_flight   the most activations a rank holds at once

After "The Llama 3 Herd of Models", section 3.3.2 and figure 6: N contiguous micro-batches pass a chunk before the rank
turns to its next chunk. Depth-first schedules have N = PP, breadth-first ones N = M, Llama's any N between.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from min_llm.config import UserError

Kind = Literal["forward", "backward"]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One micro-batch through one chunk of a rank."""

    kind: Kind
    chunk: int
    micro_batch: int

    def __str__(self) -> str:
        return f"the {self.kind} pass of micro-batch {self.micro_batch} through chunk {self.chunk}"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """ranks[r] is what rank r does, in that order."""

    virtual: int  # chunks a rank
    micro_batches: int
    ranks: tuple[tuple[Operation, ...], ...]

    @property
    def pp(self) -> int:
        return len(self.ranks)


@dataclasses.dataclass(frozen=True)
class Slot:
    """An operation in time."""

    operation: Operation
    start: float
    end: float


# Orders -------------------------------------------------------------------------------------------------------


def gpipe(pp: int, micro_batches: int) -> Schedule:
    """All forwards, then all backwards (Huang et al. 2019). Every rank holds M micro-batches."""
    return flexible(pp, 1, micro_batches, n=micro_batches)


def one_f_one_b(pp: int, micro_batches: int) -> Schedule:
    """PP - 1 - r forwards, then a forward and a backward in turn (PipeDream-Flush; Narayanan et al. 2021, section 2.2).

    Takes as long as GPipe where sends take no time, and rank r holds no more than PP - r micro-batches.
    """
    _at_least_one(pp=pp, micro_batches=micro_batches)
    return _schedule(1, [micro_batches], [pp - 1 - r for r in range(pp)])


def interleaved(pp: int, virtual: int, micro_batches: int) -> Schedule:
    """Depth-first, `flexible` with its smallest N: Megatron's interleaved 1F1B (ibid.), whose forwards are in the order
    of a circular pipeline. Megatron asks for M % PP == 0."""
    return flexible(pp, virtual, micro_batches, n=min(pp, micro_batches))


def flexible(pp: int, virtual: int, micro_batches: int, n: int, lead: int = 2) -> Schedule:
    """Micro-batches in groups of N; a group passes all chunks of a rank, one after the other, before the next group.

    n: from PP (depth-first) to M (breadth-first: all forwards, then all backwards). More hides slower sends and holds
        more activations. A smaller group than PP would make each chunk wait for it, so where N does not divide M the
        groups are nearly equal: of at most N, or, where those would be smaller than PP, of at least PP. With fewer
        micro-batches than ranks N = M is the only choice.
    lead: 1 or 2; how many forwards a rank is ahead of the rank after it when both take turns. 1 is enough if sends
        take no time; 2, as in Megatron, holds more activations and leaves time for sends.

    Rank r does (V - 1) N + lead (PP - 1 - r) forwards before it does a forward and a backward in turn.
    """
    _at_least_one(pp=pp, virtual=virtual, micro_batches=micro_batches)
    if not min(pp, micro_batches) <= n <= micro_batches:
        raise UserError(
            f"n is {n}; with {pp} ranks and {micro_batches} micro-batches it must be between "
            f"{min(pp, micro_batches)} and {micro_batches}."
        )
    if lead not in (1, 2):
        raise UserError(f"lead is {lead}; it must be 1 or 2.")
    groups = max(1, min(-(-micro_batches // n), micro_batches // pp))
    each, larger = divmod(micro_batches, groups)
    sizes = [each + (g < larger) for g in range(groups)]
    if n == micro_batches:
        return _schedule(virtual, sizes, [virtual * micro_batches] * pp)
    return _schedule(virtual, sizes, [(virtual - 1) * sizes[0] + lead * (pp - 1 - r) for r in range(pp)])


def _schedule(virtual: int, sizes: Sequence[int], ahead: Sequence[int]) -> Schedule:
    """Groups of these sizes, the largest first; rank r does ahead[r] forwards before it takes turns."""
    forwards, backwards = (tuple(_passes(kind, virtual, sizes)) for kind in ("forward", "backward"))
    ranks = (_in_turn(forwards, backwards, min(k, len(forwards))) for k in ahead)
    return Schedule(virtual, sum(sizes), tuple(ranks))


def _passes(kind: Kind, virtual: int, sizes: Sequence[int]) -> Iterator[Operation]:
    """All forward or backward passes of a rank: group by group, chunk by chunk, micro-batch by micro-batch."""
    chunks = range(virtual) if kind == "forward" else range(virtual)[::-1]
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        for chunk in chunks:
            for micro_batch in range(end - size, end):
                yield Operation(kind, chunk, micro_batch)


def _in_turn(
    forwards: tuple[Operation, ...], backwards: tuple[Operation, ...], ahead: int
) -> tuple[Operation, ...]:
    """`ahead` forwards, then a forward and a backward in turn, then the backwards that are left."""
    turns = len(forwards) - ahead
    pairs = zip(forwards[ahead:], backwards[:turns], strict=True)
    return (*forwards[:ahead], *itertools.chain.from_iterable(pairs), *backwards[turns:])


# What an order costs ------------------------------------------------------------------------------------------


def timeline(
    schedule: Schedule, forward: float = 1, backward: float = 2, send: float = 0
) -> tuple[tuple[Slot, ...], ...]:
    """When each rank does what: each operation as early as its rank and the operations that it needs allow.

    A forward needs that of the stage before, a backward that of the stage after and its own forward.
    forward, backward: time of one micro-batch in one chunk. send: time from a rank to another; both compute meanwhile.
    Raises UserError where the list of a rank is not every operation once, or where ranks wait for ever.
    """
    _check_complete(schedule)
    ends: dict[tuple[int, Operation], float] = {}
    slots: list[list[Slot]] = [[] for _ in schedule.ranks]
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(schedule.ranks):
            for operation in order[len(slots[rank]) :]:
                needs = _needs(schedule, rank, operation)
                if not all(need in ends for need in needs):
                    break
                there = [ends[need] + (send if need[0] != rank else 0) for need in needs]
                start = max([slots[rank][-1].end if slots[rank] else 0, *there])
                end = start + (forward if operation.kind == "forward" else backward)
                slots[rank].append(Slot(operation, start, end))
                ends[rank, operation] = end
                moved = True
    waiting = [r for r, order in enumerate(schedule.ranks) if len(slots[r]) < len(order)]
    if waiting:
        rank = waiting[0]
        operation = schedule.ranks[rank][len(slots[rank])]
        source, need = next(need for need in _needs(schedule, rank, operation) if need not in ends)
        raise UserError(
            f"The schedule never ends, because ranks {waiting} are stuck: rank {rank} is at {operation}, "
            f"which needs {need} on rank {source} first."
        )
    return tuple(map(tuple, slots))


def _needs(schedule: Schedule, rank: int, operation: Operation) -> list[tuple[int, Operation]]:
    """The operations, and their ranks, that must end before this one starts."""
    pp, kind = schedule.pp, operation.kind
    source = operation.chunk * pp + rank + (-1 if kind == "forward" else 1)  # the stage it comes from
    needs = []
    if 0 <= source < pp * schedule.virtual:
        needs.append((source % pp, dataclasses.replace(operation, chunk=source // pp)))
    if kind == "backward":
        needs.append((rank, dataclasses.replace(operation, kind="forward")))
    return needs


def _check_complete(schedule: Schedule) -> None:
    size = schedule.virtual, [schedule.micro_batches]
    wanted = {*_passes("forward", *size), *_passes("backward", *size)}
    for rank, order in enumerate(schedule.ranks):
        for operation, times in collections.Counter(order).items():
            if operation not in wanted:
                raise UserError(
                    f"Rank {rank} does {operation}; there are {schedule.virtual} chunks and "
                    f"{schedule.micro_batches} micro-batches, counted from 0."
                )
            if times > 1:
                raise UserError(
                    f"Rank {rank} does {operation} {times} times; each operation belongs there once."
                )
        if missing := wanted.difference(order):
            first = min(missing, key=lambda o: (o.micro_batch, o.chunk, o.kind))
            raise UserError(f"Rank {rank} never does {first} ({len(missing)} operations are missing).")


def bubble(schedule: Schedule, forward: float = 1, backward: float = 2, send: float = 0) -> float:
    """The time a rank waits over the time it computes, V M (forward + backward); equal for all ranks.

    No order has less than (PP - 1) / (V M): the last rank starts PP - 1 forwards late, and PP - 1 backwards follow
    its last one. All schedules above have just that (Herd 3.3.2), whatever a forward and a backward take, if sends
    take no time and V = 1 or M >= PP. With fewer micro-batches than ranks and V > 1, each chunk waits for the first
    micro-batch to come round: ((PP - M) V + M - 1) / (V M).
    """
    total = max(slots[-1].end for slots in timeline(schedule, forward, backward, send))
    return total / (schedule.virtual * schedule.micro_batches * (forward + backward)) - 1


def in_flight(schedule: Schedule) -> tuple[int, ...]:
    """For each rank, the most forwards it has done whose backward it has not: the activations it holds, in chunks.

    A chunk is 1 / V of a rank's layers, so schedules of different V compare by in_flight / V.
    """
    steps = ([1 if operation.kind == "forward" else -1 for operation in order] for order in schedule.ranks)
    return tuple(max(itertools.accumulate(each)) for each in steps)


# Layers -------------------------------------------------------------------------------------------------------


def layers_of_stages(n_layers: int, pp: int, virtual: int = 1, spare_ends: bool = True) -> tuple[range, ...]:
    """The layers of each stage; stage s is chunk s // PP of rank s % PP.

    spare_ends: the first and the last stage have one layer less, because they also have the embedding and the head
    with the loss. Llama 3 405B has 126 = 128 - 2 layers for its 16 ranks; with one layer a chunk the first stage is
    the embedding alone, the last one the head (Herd 3.3.2).
    """
    _at_least_one(n_layers=n_layers, pp=pp, virtual=virtual)
    stages, spared = pp * virtual, 2 * spare_ends
    each, rest = divmod(n_layers + spared, stages)
    if rest:
        fits = [count for count in (n_layers - rest, n_layers - rest + stages) if count > 0]
        raise UserError(
            f"{n_layers} layers do not divide into {stages} stages"
            f"{', the first and the last one with a layer less' if spare_ends else ''}; "
            f"{' or '.join(map(str, fits))} would."
            f"{' So would these with spare_ends=False.' if spare_ends and n_layers % stages == 0 else ''}"
        )
    sizes = [each] * stages
    if spare_ends:
        sizes[0] -= 1
        sizes[-1] -= 1
    return tuple(range(end - size, end) for end, size in zip(itertools.accumulate(sizes), sizes, strict=True))


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
