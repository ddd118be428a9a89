"""Batches as a pure function of (seed, step), and the fixed windows of validation.

There is no iterator state to save: a resumed run asks for the next step, a host asks for its rows, and the
union over hosts is the batch one host would make. Random numbers are the raw stream of Philox, keyed by seed and
counted by epoch or step: NumPy guarantees that stream, while the methods of Generator may change.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int

from min_llm.config import UserError
from min_llm.data.tokenfile import TokenFile
from min_llm.nn.batch import Batch

Item = TypeVar("Item")

FIELDS = [field.name for field in dataclasses.fields(Batch)]

_PERMUTATION, _OFFSET, _RANDOM, _SEEDS = range(4)  # what a stream of random numbers is for


def batch(
    tokens: TokenFile,
    *,
    seed: int,
    step: int,
    rows: int,
    seq_len: int,
    order: str = "shuffled",
    place: int | None = None,
    first_row: int = 0,
    n_rows: int | None = None,
) -> Batch:
    """Rows `first_row` to `first_row + n_rows` (default: all) of the batch of `rows` x `seq_len` of one step.

    place: of the batch's first row in the stream of rows, step * rows where all batches are equal (`train.ramp`).
    order "shuffled": an epoch cuts the file, seen as a ring of N - 1 targets, into (N - 1) // seq_len windows
    from an offset drawn for the epoch, and visits them in an order drawn for the epoch. No target comes twice
    in an epoch; fewer than seq_len are left out (fewer than 2 seq_len when the file is one document, because the
    window that runs over the file's end then stops at it), others in each epoch.
    order "random": each row starts at a uniformly drawn place (nanoGPT's sampling, with replacement).
    """
    n_rows = check_rows(rows, seq_len, first_row, n_rows)
    if order == "random":
        check_length(tokens, seq_len)
        draws = _philox(seed, _RANDOM, step, rows)[first_row : first_row + n_rows]
        return cut(tokens, (draws % np.uint64(tokens.n_targets - seq_len + 1)).astype(np.int64), seq_len)
    if order != "shuffled":
        raise UserError(f"order is {order!r}; it must be 'shuffled' or 'random'.")
    first = first_row + (step * rows if place is None else place)
    return windows(tokens, np.arange(first, first + n_rows), seed=seed, seq_len=seq_len)


def windows(tokens: TokenFile, numbers: Int[np.ndarray, rows], *, seed: int, seq_len: int) -> Batch:
    """The windows of these numbers (ascending) in the shuffled order of `batch`, counted over all epochs."""
    check_length(tokens, seq_len)
    n, n_windows = tokens.n_targets, tokens.n_targets // seq_len
    epochs, places = np.divmod(numbers, n_windows)
    begin = np.empty(len(numbers), np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        offset, permutation = _orders(tokens)(seed, epoch, n_windows, n)
        mine = epochs == epoch
        begin[mine] = (offset + permutation[places[mine]] * seq_len) % n
    if (begin + seq_len <= n).all():
        return cut(tokens, begin, seq_len)
    return combine(np.concatenate, [_cut_ring(tokens, int(b), seq_len) for b in begin])


def check_rows(rows: int, seq_len: int, first_row: int, n_rows: int | None) -> int:
    """The number of rows from `first_row` on, all of them without `n_rows`; a sentence where they do not exist."""
    n_rows = rows - first_row if n_rows is None else n_rows
    if rows < 1 or seq_len < 1 or first_row < 0 or n_rows < 1 or first_row + n_rows > rows:
        raise UserError(
            f"rows {first_row} to {first_row + n_rows} of a batch of {rows} x {seq_len} do not exist."
        )
    return n_rows


def check_length(tokens: TokenFile, seq_len: int) -> None:
    """Refuse a file without one window."""
    if seq_len > tokens.n_targets:
        raise UserError(
            f"{tokens.name} holds {tokens.n_targets + 1:,} tokens; seq_len {seq_len:,} needs at least {seq_len + 1:,}. "
            "Use a shorter seq_len or more text."
        )


def epochs_done(tokens: TokenFile, n_windows: int, seq_len: int) -> float:
    """How many times the file has been seen after so many windows."""
    return n_windows / max(tokens.n_targets // seq_len, 1)


def cut(tokens: TokenFile, begin: Int[np.ndarray, rows], seq_len: int) -> Batch:
    """The windows of `seq_len` inputs from each place in `begin`, with the documents in them told apart.

    segment_ids count the documents of a row from 1 and positions restart with each; both are None when the
    whole file is one document. A target that nothing in its own document precedes has weight 0.
    """
    text: Any = tokens.windows(seq_len + 1)[begin].astype(np.int32)
    weights: Any = np.ones((len(begin), seq_len), np.float32)
    if tokens.n_documents == 1:
        return Batch(text[:, :-1], text[:, 1:], weights=weights)
    first = np.searchsorted(tokens.places, begin, "right")
    count = np.searchsorted(tokens.places, begin + seq_len, "right") - first
    is_start = np.zeros(text.shape, bool)
    row = np.repeat(np.arange(len(begin)), count)
    document = np.arange(len(row)) + np.repeat(first - (np.cumsum(count) - count), count)
    is_start[row, tokens.places[document] - begin[row]] = True
    segment_ids: Any = 1 + np.cumsum(is_start[:, :-1], axis=1, dtype=np.int32)
    index = np.arange(seq_len, dtype=np.int32)
    positions: Any = index - np.maximum.accumulate(np.where(is_start[:, :-1], index, np.int32(0)), axis=1)
    if tokens.eos is None:
        weights[is_start[:, 1:]] = 0
    return Batch(text[:, :-1], text[:, 1:], positions=positions, segment_ids=segment_ids, weights=weights)


def _cut_ring(tokens: TokenFile, begin: int, seq_len: int) -> Batch:
    """One row; where it reaches the file's end it goes on at its beginning, where a document starts."""
    room = tokens.n_targets - begin
    if seq_len <= room:
        return cut(tokens, np.array([begin]), seq_len)
    tail, head = cut(tokens, np.array([begin]), room), cut(tokens, np.array([0]), seq_len - room)
    if tail.segment_ids is None:  # no segments keep the two apart: what follows the end is not scored
        assert head.weights is not None
        head.weights[:] = 0
    else:
        assert head.segment_ids is not None
        head = dataclasses.replace(head, segment_ids=head.segment_ids + tail.segment_ids[:, -1:])
    return combine(lambda pieces: np.concatenate(pieces, axis=1), [tail, head])


def combine(fn: Callable[[list[Any]], Any], batches: Sequence[Batch]) -> Batch:
    """A batch whose fields are `fn` of the list of the batches' fields; what is None stays None."""
    columns = {name: [getattr(b, name) for b in batches] for name in FIELDS}
    made: dict[str, Any] = {name: None if c[0] is None else fn(c) for name, c in columns.items()}
    return Batch(**made)


def derive(seed: int, n: int) -> list[int]:
    """n seeds that follow from one; the first of them do not depend on n."""
    return _philox(seed, _SEEDS, 0, n).tolist()


def _philox(seed: int, purpose: int, count: int, n: int) -> np.ndarray:
    """n raw 64-bit numbers of the stream (seed, purpose, count)."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, count], np.uint64)).random_raw(n)


@lru_cache(maxsize=64)
def _orders(tokens: TokenFile) -> Callable[[int, int, int, int], tuple[int, np.ndarray]]:
    """`_epoch` that keeps the last two of each file: a batch of a mixture reads many files."""
    return lru_cache(maxsize=2)(_epoch)


def _epoch(seed: int, epoch: int, n_windows: int, n_targets: int) -> tuple[int, np.ndarray]:
    """(offset of the first window, order of the windows). Memory: 8 bytes a window."""
    offset = int(_philox(seed, _OFFSET, epoch, 1)[0] % np.uint64(n_targets))
    return offset, np.argsort(_philox(seed, _PERMUTATION, epoch, n_windows), kind="stable")


def validation_batches(
    tokens: TokenFile, rows: int, seq_len: int, stride: int | None = None
) -> Iterator[Batch]:
    """The whole split in fixed windows: every target is scored (has its weight) in exactly one window.

    stride (default seq_len): places between window starts. With a smaller one windows overlap, and a target
    is scored in the first window that holds it: past the first window it has at least seq_len - stride tokens of
    context. Places past the end and rows past the last window have weight 0 and segment 0 (a single document
    has no segments: its padding comes last and causal attention never looks at it). All have one shape.
    """
    stride = seq_len if stride is None else stride
    if rows < 1 or not 1 <= stride <= seq_len:
        raise UserError(
            f"rows ({rows}) must be positive and stride ({stride}) from 1 to seq_len ({seq_len})."
        )
    if tokens.n_targets < 1:
        raise UserError(f"{tokens.name} holds {len(tokens)} tokens: there is nothing to predict.")
    n_windows = 1 + max(0, -(-(tokens.n_targets - seq_len) // stride))
    for first in range(0, n_windows, rows):
        begin = np.arange(first, min(first + rows, n_windows)) * stride
        whole = begin[begin + seq_len <= tokens.n_targets]  # only the very last window can be short
        pieces = [cut(tokens, whole, seq_len)] if len(whole) else []
        if len(whole) < len(begin):
            pieces.append(_padded(cut(tokens, begin[-1:], tokens.n_targets - int(begin[-1])), seq_len))
        empty = combine(lambda fields: np.zeros_like(fields[0][:1]), pieces[:1])
        pieces += [empty] * (rows - len(begin))
        made = combine(np.concatenate, pieces)
        assert made.weights is not None
        overlaps = np.arange(first, first + rows)[:, None] > 0
        made.weights[overlaps & (np.arange(seq_len) < seq_len - stride)] = 0  # scored by the window before
        yield made


def _padded(row: Batch, seq_len: int) -> Batch:
    """Zeros at the end of every field, up to seq_len."""
    room = seq_len - row.tokens.shape[1]
    return combine(lambda fields: np.pad(fields[0], ((0, 0), (0, room))), [row])


class Prefetcher(Generic[Item]):
    """Computes fn(start_step), fn(start_step + 1), … in a background thread, at most `depth` items ahead.

    `next()` returns (item, seconds waited for it). An exception of fn is raised by the `next()` that would
    have returned its item, and by every one after that. Use it as a context manager, or call `close()`.
    """

    def __init__(self, fn: Callable[[int], Item], start_step: int, depth: int = 2) -> None:
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(
            target=self._work, args=(fn, start_step), name="min_llm prefetch", daemon=True
        )
        self._thread.start()

    def _work(self, fn: Callable[[int], Item], step: int) -> None:
        while not self._stop.is_set():
            try:
                made: tuple[Any, BaseException | None] = (fn(step), None)
            except BaseException as error:
                made = (None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if made[1] is not None:
                return
            step += 1

    def next(self) -> tuple[Item, float]:
        if self._failed is not None:
            raise self._failed
        if self._stop.is_set():
            raise RuntimeError("next() was called on a Prefetcher that is closed.")
        before = time.perf_counter()
        item, self._failed = self._queue.get()
        if self._failed is not None:
            raise self._failed
        return item, time.perf_counter() - before

    def close(self) -> None:
        """Stop the thread and wait for it; what it has made is dropped."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
