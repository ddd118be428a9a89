"""HTML into tags and text, as browsers take it apart, in time linear in the page whatever the page.

The standard library's html.parser raises on some pages and gives other tokens in other versions of Python; training
text should depend on neither.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)*+"""
TAG = re.compile(rf"<(/?)([a-zA-Z][^\s/>]*+)({ATTRIBUTES})>")
ATTRIBUTE = re.compile(r"""([^\s/>=][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+)))?""")
# Closes whatever is open at the end of a page: a value, a tag, a comment. Without it, each of a million opened tags
# would look for its end in all the rest.
END = "\"'>-->"

RAW = {
    tag: re.compile(rf"</{tag}(?=[\s/>])", re.IGNORECASE) for tag in "script style textarea title xmp".split()
}


class Start(NamedTuple):
    tag: str
    attributes: dict[str, str]


class End(NamedTuple):
    tag: str


def tokens(page: str) -> Iterator[Start | End | str]:
    """Opening tags, closing tags and text between them, escapes resolved. Comments and declarations are left out; what
    is in scripts and the like is one text."""
    size = len(page)
    page += END
    place = 0
    while place < size:
        opening = page.find("<", place, size)
        if opening < 0:
            opening = size
        if opening > place:
            yield html.unescape(page[place:opening])
        place = opening
        if place == size:
            return
        if tag := TAG.match(page, place):
            place = tag.end()
            name = tag[2].lower()
            if tag[1]:
                yield End(name)
                continue
            yield Start(name, _attributes(tag[3]) if tag[3] else {})
            if name in RAW:
                closing = RAW[name].search(page, place, size)
                end = closing.start() if closing else size
                if end > place:
                    yield page[place:end]
                place = end
        elif page.startswith("<!--", place):
            place = page.index("-->", place) + 3
        elif page[place + 1] in "!?/":
            place = page.index(">", place) + 1
        else:
            yield "<"
            place += 1


def _attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, double, single, bare in ATTRIBUTE.findall(text):
        value = double or single or bare
        found.setdefault(name.lower(), html.unescape(value) if "&" in value else value)
    return found
