"""Domains whose pages are left out: a block list. Llama 3, section 3.1.1 (L3-1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from min_llm.config import UserError, option
from min_llm.data.curate.document import Document, Drop, Outcome, judge
from min_llm.data.curate.listing import Stamp, read_list, stamp

SETTING = "steps.domains.file"


@dataclass(frozen=True)
class Domains:
    """Drop documents whose URL lies in a blocked domain or below it. Documents without a URL stay."""

    block: tuple[str, ...] = option((), "blocked domains, such as example.com")
    file: str = option("", "file of blocked domains, one a line; a hosts file will do")

    def __post_init__(self) -> None:
        if not self.block and not self.file:
            raise UserError(
                "steps.domains blocks nothing. Give steps.domains.file=FILE, or steps.domains.block."
            )

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        blocked = _listed(self.block, *(stamp(path, SETTING) for path in self.files()))
        return judge(documents, lambda document: _reason(document, blocked))

    def files(self) -> list[Path]:
        return [Path(self.file).expanduser()] if self.file else []


def _reason(document: Document, blocked: frozenset[str]) -> Drop | None:
    labels = _host(document.url).split(".")
    for first in range(len(labels)):
        domain = ".".join(labels[first:])
        if domain in blocked:
            return Drop("blocked domain", domain)
    return None


@lru_cache(maxsize=4)
def _listed(block: tuple[str, ...], file: Stamp | None = None) -> frozenset[str]:
    lines = read_list(file.path, SETTING) if file else []
    entries = [*block, *(line.split()[-1] for line in lines)]  # a hosts file: address, name
    return frozenset(entry.lower().strip(".").removeprefix("www.") for entry in entries)


def _host(url: str) -> str:
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:
        return ""
