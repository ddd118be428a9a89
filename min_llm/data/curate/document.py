"""What flows through curation: documents, and the reasons why some of them end there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together, and where it came from."""

    name: str  # file and line, or what the source calls it
    text: str
    source: str = ""  # the key under `inputs`
    url: str = ""
    time: str | float | None = None  # ISO 8601, or seconds since 1970
    meta: dict[str, Any] = field(default_factory=dict)  # other columns, carried through


class Drop(NamedTuple):
    """Why a document goes: `kind` is counted, `detail` says what was found in this one."""

    kind: str
    detail: str = ""
    shown: str | None = None  # in the report, in place of the text


Outcome = Document | Drop  # the same document (kept), another one (rewritten), or the reason to drop it


class Filter(Protocol):
    """A step that judges each document by itself. It is called with a batch, so that NumPy sees long arrays; an
    outcome depends on its own document only, never on the rest of the batch."""

    def __call__(self, documents: list[Document], /) -> list[Outcome]: ...


def judge(documents: list[Document], reason: Callable[[Document], Drop | None]) -> list[Outcome]:
    """The outcomes of a function that looks at one document and gives a reason or none."""
    return [reason(document) or document for document in documents]
