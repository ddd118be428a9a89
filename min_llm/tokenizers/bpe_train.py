"""Learning byte-level BPE (Sennrich et al., arXiv:1508.07909), and adding tokens to a finished vocabulary.

Each step joins the pair of neighbouring tokens that occurs most often within the pieces of the text. A pair's
count is the number of places where it stands, overlapping ones included ("aaa" has "a a" twice); among equal
counts the pair with the lower left id, then the lower right id, wins. Both rules are those of Hugging Face
`tokenizers`, so the merges are equal to its trainer's. Counts are kept up to date instead of being counted
anew: a heap gives the next pair, an index gives the pieces that contain it, and only the neighbours of a
merge change.

Two facts the tests rely on. More merges only join: on any text a vocabulary never needs more tokens than its
own prefix. And merges that `extend` adds come after all of the base's, so the base's tokens are joined
further or left alone, and text in which no new token appears has exactly the ids it had.
"""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from min_llm.reporting import reporter
from min_llm.tokenizers import base, bpe, byte_level, split
from min_llm.tokenizers.base import TokenizerError
from min_llm.tokenizers.bpe import BPE

Pair = tuple[int, int]
PROGRESS_EVERY = 64
GROUP_CHARS = 4_000_000  # of text that one process counts at a time


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "llama3",
    special: Sequence[str] = (base.END_OF_TEXT,),
    end_of_document: str | None = base.END_OF_TEXT,
    name: str | None = None,
    processes: int = 1,
) -> BPE:
    """A BPE tokenizer with `vocab_size` ids: 256 bytes, the learned merges, then the special tokens.

    pattern: a name in `split.PATTERNS` or a regular expression. processes: as in `count_pieces`; the tokenizer is the
    same for any number. Raises TokenizerError when the vocabulary is too small for the bytes and special tokens, or
    larger than the text has pairs to merge.
    """
    count = vocab_size - 256 - len(special)
    if count < 0:
        raise TokenizerError(
            f"A byte-level vocabulary of {vocab_size} is too small: 256 bytes and {len(special)} special "
            f"tokens need at least {256 + len(special)}."
        )
    pattern = split.PATTERNS.get(pattern, pattern)
    pieces = count_pieces(texts, pattern, processes)
    words = [[byte_level.RANK[byte] for byte in piece.encode("utf-8")] for piece in pieces]
    tokens = [bytes([byte]) for byte in byte_level.ORDER]
    tokens += _learn(words, list(pieces.values()), tokens, count)
    return BPE(tuple(tokens), pattern, tuple(special), end_of_document, name or f"bpe-{vocab_size}")


def extend(
    tokenizer: BPE,
    texts: Iterable[str],
    extra: int,
    *,
    protect: Iterable[str] = (),
    only_non_ascii: bool = False,
    name: str | None = None,
    processes: int = 1,
) -> BPE:
    """The tokenizer with `extra` tokens learned from other text and put behind its own (Llama 3, section 3.2:
    28K tokens for other languages behind tiktoken's 100K; the special tokens move behind the new ones).

    Ids of ordinary tokens stay. Two guards make "no impact on English" exact: the pieces of the `protect`
    texts are tokenised as before, and with `only_non_ascii` no new token is pure ASCII, so every ASCII text
    is. Raises TokenizerError when the text has too few pairs that may be merged.
    """
    ranks = tokenizer.ranks
    guarded: set[bytes] = set()
    for piece, ids in _base_ids(tokenizer, count_pieces(protect, tokenizer.pattern, processes)):
        spelled = [tokenizer.tokens[i] for i in ids]
        guarded.add(piece)
        guarded.update(a + b for a, b in itertools.pairwise(spelled))

    def allowed(token: bytes) -> bool:
        return token not in guarded and token not in ranks and not (only_non_ascii and token.isascii())

    pieces = count_pieces(texts, tokenizer.pattern, processes)
    words = [ids for _, ids in _base_ids(tokenizer, pieces)]
    tokens = list(tokenizer.tokens)
    tokens += _learn(words, list(pieces.values()), tokens, extra, allowed)
    name = name or f"{tokenizer.name}+{extra}"
    return BPE(tuple(tokens), tokenizer.pattern, tokenizer.special_tokens, tokenizer.end_of_document, name)


def count_pieces(texts: Iterable[str], pattern: str, processes: int = 1) -> Counter[str]:
    """How often each piece occurs, in the order of first occurrence.

    processes: how many share the work, which is worth it from some megabytes on. They are spawned, so a script that
    asks for several keeps its own work under `if __name__ == "__main__"`, as multiprocessing wants it.
    """
    if processes == 1:
        return _count_group(texts, pattern)
    counts: Counter[str] = Counter()
    groups = bpe.grouped(texts, GROUP_CHARS)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while batch := list(itertools.islice(groups, 2 * processes)):  # no more of the text is held at a time
            for found in pool.map(_count_group, batch, itertools.repeat(pattern)):
                counts.update(found)
    return counts


def _count_group(texts: Iterable[str], pattern: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        base.utf8(text)
        counts.update(split.pieces(text, pattern))
    return counts


def _base_ids(tokenizer: BPE, pieces: Iterable[str]) -> Iterator[tuple[bytes, list[int]]]:
    """(bytes, ids) of each piece taken whole: a piece alone may be split otherwise than within its text."""
    import tiktoken

    whole = tiktoken.Encoding(
        "pieces", pat_str=r"[\s\S]+", mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    for piece in pieces:
        yield piece.encode("utf-8"), whole.encode_ordinary(piece)


def _learn(
    words: list[list[int]],
    counts: list[int],
    tokens: Sequence[bytes],
    n_merges: int,
    allowed: Callable[[bytes], bool] = lambda _token: True,
) -> list[bytes]:
    """The bytes of `n_merges` new tokens, the first of which gets the id len(tokens).

    words: ids of each distinct piece (changed in place); counts: how often each occurs.
    """
    spelled = list(tokens)
    pair_counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, set[int]] = defaultdict(set)
    for index, (word, count) in enumerate(zip(words, counts, strict=True)):
        for neighbours in itertools.pairwise(word):
            pair_counts[neighbours] += count
            where[neighbours].add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    with reporter().progress(n_merges, "learning merges") as progress:
        while (done := len(spelled) - len(tokens)) < n_merges:
            pair = _most_frequent(heap, pair_counts)
            if pair is None:
                raise TokenizerError(
                    f"The text has only {done} pairs to merge, {n_merges} were asked for: "
                    f"ask for {n_merges - done} fewer tokens or give more text."
                )
            joined = spelled[pair[0]] + spelled[pair[1]]
            if allowed(joined):
                changes = _merge_words(pair, len(spelled), words, counts, where)
                spelled.append(joined)
                for changed, change in changes.items():
                    is_new = changed not in pair_counts
                    pair_counts[changed] += change
                    if is_new and change > 0:
                        heapq.heappush(heap, (-change, changed))
                if (done + 1) % PROGRESS_EVERY == 0:
                    progress.advance(PROGRESS_EVERY)
            del where[pair], pair_counts[pair]
        progress.advance(n_merges % PROGRESS_EVERY)
    return spelled[len(tokens) :]


def _most_frequent(heap: list[tuple[int, Pair]], pair_counts: Mapping[Pair, int]) -> Pair | None:
    """Take the pair with the highest count. Counts of pairs in the heap only fall; one that fell goes
    back."""
    while heap:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count == -negative and count > 0:
            return pair
        if count > 0:
            heapq.heappush(heap, (-count, pair))
    return None


def _merge_words(
    pair: Pair, new: int, words: list[list[int]], counts: list[int], where: dict[Pair, set[int]]
) -> dict[Pair, int]:
    """Join `pair` to `new` in every word that has it; returns the changes of the other pairs' counts."""
    left, right = pair
    changes: dict[Pair, int] = defaultdict(int)
    for index in where[pair]:
        word, count = words[index], counts[index]
        at = 0
        while at < len(word) - 1:
            if word[at] != left or word[at + 1] != right:
                at += 1
                continue
            word[at : at + 2] = [new]
            if at > 0:
                before = word[at - 1]
                changes[before, left] -= count
                changes[before, new] += count
                where[before, new].add(index)
            if at + 1 < len(word):
                after = word[at + 1]
                changes[right, after] -= count
                changes[new, after] += count
                where[new, after].add(index)
            at += 1
    return changes
