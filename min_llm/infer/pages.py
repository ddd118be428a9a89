"""Who holds which page of the key-value cache: free pages, pages in use, and full pages kept for later prompts.

A page holds keys and values of `size` consecutive tokens. A full page is known by the hash of everything that its
numbers depend on: all tokens up to its end, and the adapter and salt of the request (`root`). Such pages are shared,
never written again, and stay after their last user until somebody needs the room; the least recently used go first. A
page that is still being filled has one owner: who continues from the middle of a shared page copies it first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

TRASH = 0  # the page that padding is written to; nobody holds it
CHILDREN = 64  # cached pages looked at for one that begins with a prompt's next tokens


@dataclasses.dataclass(frozen=True)
class Match:
    """The longest known beginning of some tokens: whole pages, and the first `part` tokens of one more (`tail`)."""

    pages: tuple[int, ...] = ()
    tail: int | None = None
    part: int = 0


@dataclasses.dataclass(frozen=True)
class _Full:
    digest: bytes
    parent: bytes
    tokens: tuple[int, ...]


def root(adapter: str, salt: str) -> bytes:
    """What a prompt's pages depend on beside its tokens. adapter: its version, not only its name."""
    return hashlib.sha256(f"{len(adapter)}:{adapter}{salt}".encode("utf-8", "surrogatepass")).digest()


class Pages:
    def __init__(self, total: int, size: int) -> None:
        """total: pages that can be held, numbered from 1 (0 is TRASH). size: tokens of a page."""
        self.total, self.size = total, size
        self._free = list(range(total, 0, -1))
        self._users = [0] * (total + 1)
        self._full: dict[int, _Full] = {}  # page -> what it holds
        self._known: dict[bytes, int] = {}  # digest -> page
        self._children: dict[bytes, OrderedDict[int, None]] = {}  # parent's digest -> pages
        self._kept: OrderedDict[int, None] = (
            OrderedDict()
        )  # full pages without users, least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._kept)

    @property
    def used(self) -> int:
        return sum(n > 0 for n in self._users)

    @property
    def available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._kept)

    def take(self, n: int) -> list[int] | None:
        """n pages for one owner, or None if there are not so many; forgets cached pages if it must."""
        if n > self.available:
            return None
        while len(self._free) < n:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
            self._free.append(page)
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._users[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more user of full pages."""
        for page in pages:
            self._users[page] += 1
            self._kept.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One user less. The ends of texts are forgotten before their beginnings, which more prompts share."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._full:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def match(self, tokens: Sequence[int], start: bytes) -> Match:
        """What is known of the beginning of these tokens; `share` the pages before anything else is taken."""
        pages: list[int] = []
        digest = start
        while (len(pages) + 1) * self.size <= len(tokens):
            part = tuple(tokens[len(pages) * self.size : (len(pages) + 1) * self.size])
            page = self._known.get(_digest(digest, part))
            if page is None or self._full[page].tokens != part or self._full[page].parent != digest:
                break
            digest = self._full[page].digest
            pages.append(page)
        rest = tokens[len(pages) * self.size : (len(pages) + 1) * self.size]
        tail, part_length = None, self.size // 4 - 1  # copying a page for less is not worth it
        for page in list(self._children.get(digest, ()))[-CHILDREN:]:
            common = _common(self._full[page].tokens, rest)
            if common > part_length:
                tail, part_length = page, common
        return Match(tuple(pages), tail, part_length if tail is not None else 0)

    def keep(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """A page of one owner is full: let other prompts find it. Returns its digest."""
        part = tuple(tokens)
        digest = _digest(parent, part)
        if digest not in self._known and page not in self._full:
            self._full[page] = _Full(digest, parent, part)
            self._known[digest] = page
            self._children.setdefault(parent, OrderedDict())[page] = None
        return digest

    def digest(self, page: int) -> bytes:
        """Of a full page."""
        return self._full[page].digest

    def clear(self) -> None:
        """Forget all cached pages, when the model's parameters change. Nobody may hold a page."""
        if self.used:
            raise RuntimeError(f"{self.used} pages are in use; the prefix cache is cleared between requests.")
        for page in list(self._full):
            self._forget(page)
        self._free.extend(self._kept)
        self._kept.clear()

    def _forget(self, page: int) -> None:
        full = self._full.pop(page)
        del self._known[full.digest]
        siblings = self._children[full.parent]
        del siblings[page]
        if not siblings:
            del self._children[full.parent]


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + np.asarray(tokens, np.int32).tobytes()).digest()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
