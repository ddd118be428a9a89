"""One version of each page: the most recent one a URL has. Llama 3, section 3.1.1 (L3-1.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus, urlencode, urlsplit

import numpy as np

from min_llm.data.curate.document import Document
from min_llm.data.curate.exact import fingerprints
from min_llm.data.curate.keyed import Corpus, Duplicates, Keys, first_of_each

NEVER = -np.inf  # older than any time
LATEST = 253_402_300_800  # the year 10000: what is more counts milliseconds
PORTS = {"http": "80", "https": "443"}
TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|mc_[ce]id|igshid|ref_src|_ga|_hsenc|_hsmi|(php|j)?sess(ion)?_?id",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Url(Duplicates):
    """Keep the most recent document of each URL, by its `time`; the first one where none is more recent. Documents
    without a URL stay."""

    kind = "other version of a URL"

    def keys(self, documents: list[Document]) -> Keys:
        having = [i for i, d in enumerate(documents) if d.url]
        return fingerprints(normalised(documents[i].url) for i in having), np.array(having, np.int64)

    def decide(self, corpus: Corpus) -> np.ndarray:
        kept = np.full(len(corpus.alive), -1, np.int64)
        for keys, rows in corpus.ranges():
            order = np.lexsort((rows, -corpus.times[rows], keys))
            keys, rows = keys[order], rows[order]
            best = rows[first_of_each(keys)]
            kept[rows] = np.where(best == rows, -1, best)
        return kept


def normalised(url: str) -> str:
    """What two spellings of one address have in common: no scheme, `www.`, default port, fragment, tracking
    parameters or final slash; parameters in order, escapes resolved."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:  # a broken port or bracket: the address stands for itself
        return url.strip()
    if port is not None and str(port) != PORTS.get(parts.scheme):
        host = f"{host}:{port}"
    path = re.sub(r"/{2,}", "/", unquote_plus(parts.path.replace("+", "%2B"))).rstrip("/")
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    query = sorted((unquote_plus(k), unquote_plus(v)) for k, _, v in pairs if not TRACKING.fullmatch(k))
    return host + path + ("?" + urlencode(query) if query else "")


def seconds(time: str | float | None) -> float | None:
    """Seconds since 1970 of a document's time, NEVER for none; None where it cannot be read."""
    if time is None or time == "":
        return NEVER
    if isinstance(time, int | float):
        return float(time) if abs(time) < LATEST else None
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
