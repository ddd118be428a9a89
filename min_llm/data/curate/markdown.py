"""Markdown without its markers: Llama 3 removed them all, as they hurt a model that reads mostly web text
(section 3.1.1, L3-1.2). Code stays as it is, byte for byte."""

from __future__ import annotations

import re

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^`\n]*$")
HEADING = re.compile(r"^ {0,3}#{1,6}(?:[ \t]+|$)(.*?)(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r"^ {0,3}(?:=+|-+)[ \t]*$")
RULE = re.compile(r"^ {0,3}(?:(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|(?:-[ \t]*){3,})$")
DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]:[ \t]+\S+.*$")
QUOTE = re.compile(r"^ {0,3}(?:> ?)+")
BULLET = re.compile(r"^([ \t]*)[*+-][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)")
DIVIDER = re.compile(r"^(?=.*\|)(?=.*-)[ \t|:-]+$")  # under the head of a table
INDENTED = re.compile(r"^(?: {4}|\t)")

# Code spans lose their backquotes and nothing else; TeX loses nothing.
EXACT = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    r"|\$\$[^$]+\$\$|(?<![\w$])\$[^\s$](?:[^$\n]*[^\s$\\])?\$(?![\w$])|\\\([^\n]+?\\\)|\\\[[^\[\]]+\\\]",
    re.DOTALL,
)
ESCAPED = "\\`*_{}[]()#+.!|>~-"
ESCAPE = re.compile(r"\\([" + re.escape(ESCAPED) + "])")
ASIDE = {character: chr(0xFDD0 + i) for i, character in enumerate(ESCAPED)}  # no characters, says Unicode
BACK = {ord(aside): character for character, aside in ASIDE.items()}
INLINE = (
    (
        re.compile(r"!\[([^\]\n]*)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\[[^\]\n]*\])"),
        r"\1",
    ),  # image: its alt text
    (re.compile(r"\[([^\[\]\n]+)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\[[^\]\n]*\])"), r"\1"),
    (re.compile(r"(?<!\w)(\*\*\*|___)(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL), r"\2"),
    (re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", re.DOTALL), r"\1"),
    (re.compile(r"(?<!\w)__(?=\S)(.+?)(?<=\S)__(?!\w)", re.DOTALL), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w_])_(?=[^\s_])([^_\n]+?)(?<=\S)_(?![\w_])"), r"\1"),
    (re.compile(r"~~(?=\S)(.+?)(?<=\S)~~", re.DOTALL), r"\1"),
)


def strip(text: str) -> str:
    """The text without markers of headings, emphasis, links, images, lists, quotes, tables, rules and fences."""
    out: list[str] = []
    prose: list[str] = []
    fence = ""

    def flush() -> None:
        if prose:
            out.append(strip_inline("\n".join(prose)))
            prose.clear()

    lines = text.split("\n")
    for number, line in enumerate(lines):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
            else:
                out.append(line)
        elif mark:
            flush()
            fence = mark[1]
        elif INDENTED.match(line) and (
            number == 0 or not lines[number - 1].strip() or INDENTED.match(lines[number - 1])
        ):
            flush()
            out.append(line)
        elif not (DEFINITION.match(line) or DIVIDER.match(line) or _is_rule(lines, number)):
            prose.append(_strip_block(line))
    flush()
    return "\n".join(out)


def strip_inline(text: str) -> str:
    """Prose without the markers inside lines."""
    if not any(mark in text for mark in "`*_[~\\"):
        return text
    parts, place = [], 0
    for exact in EXACT.finditer(text):
        parts += [_replaced(text[place : exact.start()]), exact["code"] or exact[0]]
        place = exact.end()
    return "".join(parts) + _replaced(text[place:])


def _replaced(text: str) -> str:
    escaped = "\\" in text
    if escaped:
        text = ESCAPE.sub(lambda match: ASIDE[match[1]], text)
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return text.translate(BACK) if escaped else text


def _is_rule(lines: list[str], number: int) -> bool:
    """A horizontal rule, or the line under a heading."""
    line = lines[number]
    if RULE.match(line):
        return True
    return bool(UNDERLINE.match(line)) and number > 0 and bool(lines[number - 1].strip())


def _strip_block(line: str) -> str:
    line = QUOTE.sub("", line)
    if heading := HEADING.match(line):
        return heading[1]
    line = BULLET.sub(r"\1", line)
    cells = line.strip()
    if len(cells) > 1 and cells[0] == cells[-1] == "|":
        return "\t".join(cell.strip() for cell in cells[1:-1].split("|"))
    return line
