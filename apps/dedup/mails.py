"""The filters on SpamAssassin's corpus of mails, whose folders tell spam from ham and whose headers name people."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Sequence

from apps.dedup.decide import decided
from bench.results import Row, row
from min_llm.data import sources
from min_llm.data.curate.dirty import Dirty
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.exact import Exact
from min_llm.data.curate.pii import find, masked

HEADER = re.compile(r"^(?:From|To|Cc|Reply-To):((?:.*\n[ \t])*.*)$", re.MULTILINE | re.IGNORECASE)
ADDRESS = re.compile(r"[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
PROSE = ("moby-dick", "austen")  # written before there were telephones


def rows() -> list[Row]:
    found = list(sources.resolve("spam-assassin").documents())
    spam, ham = (
        [text for name, text in found if name.startswith("spam") == is_spam] for is_spam in (True, False)
    )
    prose = [text for name in PROSE for text in sources.documents(name)]
    return [
        *duplicates([text.partition("\n\n")[2] for _, text in found]),
        *personal([text for _, text in found], prose),
        *dirty_words(spam, ham, prose),
    ]


def duplicates(bodies: Sequence[str]) -> list[Row]:
    """Bodies that another mail has, too; a set of strings knows how many there are."""
    decision, seconds = decided(Exact(), bodies)
    truth = len(bodies) - len({body.strip() for body in bodies})
    return [
        row("mails, exact", "recall", "share", "text", float((decision >= 0).sum() / truth), pairs=truth),
        row("mails, exact", "speed", "documents/s", "text", len(bodies) / seconds, pairs=truth),
    ]


def personal(mails: Sequence[str], prose: Sequence[str]) -> list[Row]:
    """Addresses that the standard library's parser finds in the headers, and hits in prose that can have none."""
    known = missed = 0
    for mail in mails:
        head = mail.partition("\n\n")[0]
        pairs = email.utils.getaddresses(HEADER.findall(head))
        addresses = {address for _, address in pairs if ADDRESS.fullmatch(address)}
        left = masked(head, find(head))
        known += len(addresses)
        missed += sum(address in left for address in addresses)
    hits = sum(len(find(text)) for text in prose)
    size = sum(map(len, prose))
    return [
        row("mails, addresses of headers", "recall", "share", "text", 1 - missed / known, addresses=known),
        row("novels, personal data", "false positives", "hits", "text", hits, characters=size),
    ]


def dirty_words(spam: Sequence[str], ham: Sequence[str], prose: Sequence[str]) -> list[Row]:
    """The share that our own short list drops of each. Spam of 2002 is mostly not adult, so that it tells no recall."""
    made = []
    for name, texts in (("spam", spam), ("ham", ham), ("novels", prose)):
        outcomes = Dirty()([Document("", text) for text in texts])
        share = sum(isinstance(outcome, Drop) for outcome in outcomes) / len(texts)
        made.append(row(f"{name}, dirty words", "dropped", "share", "text", share, documents=len(texts)))
    return made
