"""The text of an HTML page without what surrounds it on every page of its site. Llama 3, section 3.1.1 (L3-1.2).

Kept: paragraphs, headings, lists, tables, the alternative texts of images (formulas are often pictures), mathematics
as TeX where the page has it, preformatted text byte for byte. Left out: navigation, asides, footers, forms, scripts,
what classes and roles name so, and short blocks that are mostly links (boilerplate by link density: Kohlschütter et
al. 2010). No markers are put in, and Markdown's are taken out of the prose.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

from min_llm.data.curate import markdown
from min_llm.data.curate.tags import End, Start, tokens

VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
OF_TAG = {
    tag: effect
    for effect, tags in {
        "hidden": "script style noscript template head iframe object svg canvas audio video map select option textarea "
        "button dialog annotation-xml",
        "named": "nav aside footer form menu",
        "main": "main article",
        "formula": "math",
    }.items()
    for tag in tags.split()
}
WHOLE = frozenset("html body".split())  # their class says what the page has, not what they are
CODE = frozenset("pre code kbd samp tt".split())
ANCHORS = ("#", "¶", "§")  # what links to a heading show
EFFECTS = ("", "hidden", "tex", "display", "formula", "main", "named")  # on what is inside (`_effect`)
BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hr html legend li main nav ol p pre section summary table tbody tfoot thead tr ul".split()
)
HEADINGS = {f"h{level}": level for level in range(1, 7)}
TIGHT = {"li": "list", "tr": "table", "dt": "terms", "dd": "terms"}  # no blank line between those of one kind
CLOSED_BY = {  # an open element of the key ends where one of these begins
    "p": BLOCKS,
    "li": frozenset({"li"}),
    "dt": frozenset({"dt", "dd"}),
    "dd": frozenset({"dt", "dd"}),
    "tr": frozenset({"tr", "tbody", "tfoot"}),
    "td": frozenset({"td", "th", "tr"}),
    "th": frozenset({"td", "th", "tr"}),
    "head": frozenset({"body"}),
}
ROLES = frozenset(
    "navigation banner contentinfo complementary search menu menubar toolbar alert dialog".split()
)
NAMES = re.compile(
    r"(?:^|[\s_-])(?:nav(?:bar|igation|links?)?|menu|side-?bar|footer|masthead|bread-?crumbs?|cookies?|consent|banner"
    r"|share|sharing|social|comments?|respond|ad|ads|advert\w*|sponsor\w*|promo\w*|related|recommend\w*|subscribe"
    r"|newsletter|popup|modal|pagination|pager|toolbar|skip|skiplinks?|headerlink|sphinxsidebar\w*|login|sign-?up"
    r"|noprint|mw-editsection|catlinks|toc|sr-only|visually-hidden|line-?(?:no|numbers?))(?:$|[\s_-])",
    re.IGNORECASE,
)
TEX = re.compile(r"(?:math/|application/x-)?(?:la)?tex(?P<display>; *mode=display)?", re.IGNORECASE)
DRAWN = re.compile(r"(?:^| )(?:katex-html|MathJax(?:_\w+)?)(?: |$)")  # a formula whose TeX stands beside it
FORMULA = re.compile(
    r"(?:^|[\s_-])(?:(?:la)?tex|math|equation|formula)(?:$|[\s_-])", re.IGNORECASE
)  # an image of one
SPACE = re.compile(r"\s+")
LOOKS_LIKE = re.compile(r"<!doctype html|<(?:html|head|body|article|div|h1|p|table|ul)[\s>]", re.IGNORECASE)
LOOKED_AT = 20_000  # characters, to tell whether a text is a page

LINKED = 0.5  # a block with a larger share of characters in links is a menu …
PROSE = 200  # … unless it has so many outside them
MAIN = 0.3  # <main> and <article> are believed when they hold this share of the text
LEFT = 0.2  # classes and roles are believed when they leave this share of it


@dataclass
class Block:
    """A run of text that is set apart from the rest."""

    tag: str
    main: bool  # inside <main> or <article>
    named: bool  # called boilerplate by a class or role
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # text, and whether it is exact: code, TeX
    linked: int = 0  # characters in links
    text: str = ""


def looks_like(text: str) -> bool:
    """Whether a text begins like an HTML page or a piece of one."""
    head = text[:LOOKED_AT].lstrip()
    return head.startswith("<") and LOOKS_LIKE.search(head) is not None


def extract(page: str) -> str:
    """The text of a page: blocks with a blank line between them, list items and table rows a line each."""
    blocks = _Page().read(page)
    size = sum(len(block.text) for block in blocks)
    unnamed = [block for block in blocks if not block.named]
    if sum(len(block.text) for block in unnamed) > LEFT * size:
        blocks = unnamed
    main = [block for block in blocks if block.main]
    if sum(len(block.text) for block in main) > MAIN * size:
        blocks = main
    return _joined(_with_bodies([block for block in blocks if not _is_menu(block)]))


@lru_cache(maxsize=4096)
def _is_boilerplate(names: str) -> bool:
    return NAMES.search(names) is not None


def _is_menu(block: Block) -> bool:
    if block.tag == "pre" or not block.linked:
        return False
    size = len(block.text)
    return block.linked > LINKED * size and size - block.linked < PROSE and block.tag not in HEADINGS


def _with_bodies(blocks: list[Block]) -> list[Block]:
    """Without headings that head nothing: what they headed was left out."""
    kept: list[Block] = []
    following = 1  # level of the heading that follows, 0 where text follows; the end is like a new chapter
    for block in reversed(blocks):
        level = HEADINGS.get(block.tag, 0)
        if not level or not 0 < following <= level:
            kept.append(block)
            following = level
    return kept[::-1]


def _joined(blocks: list[Block]) -> str:
    parts: list[str] = []
    for before, block in zip([None, *blocks], blocks, strict=False):
        if before is not None:
            tight = TIGHT.get(before.tag) and TIGHT.get(before.tag) == TIGHT.get(block.tag)
            parts.append("\n" if tight else "\n\n")
        parts.append(block.text)
    return "".join(parts)


class _Page:
    """Tokens into blocks. Tags that are never closed, or were never opened, do no harm beyond their parent."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._block: Block | None = None
        self._open: list[tuple[str, str]] = []  # tag, and its effect on what is inside (`_effect`)
        self._within: list[str] = []  # tags of the open blocks
        self._tags: defaultdict[str, int] = defaultdict(int)  # open elements by tag
        self._inside = dict.fromkeys(EFFECTS, 0)  # open elements by effect
        self._code = 0  # open elements whose text is exact
        self._formula: list[str] = []  # the characters of a formula without TeX

    def read(self, page: str) -> list[Block]:
        for token in tokens(page):
            if isinstance(token, str):
                self._text(token)
            elif isinstance(token, Start):
                self._start(*token)
            else:
                self._end(token)
        while self._open:
            self._pop()
        self._end_block()
        return self._blocks

    def _start(self, tag: str, given: dict[str, str]) -> None:
        while self._open and tag in CLOSED_BY.get(self._open[-1][0], ()):
            self._pop()
        if tag in VOID:
            if not self._inside["hidden"]:
                self._void(tag, given)
            return
        if tag == "a" and "href" not in given:  # a place to link to, often never closed
            return
        effect = self._effect(tag, given)
        if not self._inside["hidden"]:
            if tag in BLOCKS:
                self._end_block()
            elif tag in ("td", "th") and self._block is not None:
                self._block.pieces.append(("\t", False))
            elif tag == "math" and effect == "hidden":
                self._add(f"${given['alttext']}$", exact=True)
        self._open.append((tag, effect))
        if tag in BLOCKS:
            self._within.append(tag)
        self._inside[effect] += 1
        self._tags[tag] += 1
        self._code += tag in CODE

    def _end(self, token: End) -> None:
        if self._tags[token.tag]:
            while self._open[-1][0] != token.tag:
                self._pop()
            self._pop()

    def _text(self, text: str) -> None:
        if self._inside["hidden"]:
            return
        if self._inside["tex"] or self._inside["display"]:
            mark = "$" if self._inside["tex"] else "$$"
            self._add(f"{mark}{text.strip()}{mark}", exact=True)
            self._formula.clear()
        elif self._inside["formula"]:
            self._formula.append(text)
        elif self._tags["pre"]:
            self._add(text, exact=True)
        elif self._code:
            self._add(SPACE.sub(" ", text), exact=True)
        elif not (self._tags["a"] and text.strip() in ANCHORS):
            self._add(SPACE.sub(" ", text))

    def _end_block(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.text = _text(block)
            if block.text.strip():
                self._blocks.append(block)

    def _effect(self, tag: str, given: dict[str, str]) -> str:
        """hidden: never text; tex, display: TeX; formula: MathML; main: the page's own; named: called boilerplate."""
        if not given:
            return OF_TAG.get(tag, "")
        if tag in ("script", "annotation"):
            tex = TEX.fullmatch(given.get("type") or given.get("encoding") or "")
            return "hidden" if tex is None else "display" if tex["display"] else "tex"
        names, role = f"{given.get('class', '')} {given.get('id', '')}", given.get("role")
        if (tag == "math" and given.get("alttext")) or "hidden" in given:
            return "hidden"
        if DRAWN.search(names) and tag != "mjx-container":  # that one holds MathML
            return "hidden"
        if role == "main" or role in ROLES:
            return "main" if role == "main" else "named"
        if effect := OF_TAG.get(tag):
            return effect
        return "named" if len(names) > 1 and tag not in WHOLE and _is_boilerplate(names) else ""

    def _void(self, tag: str, given: dict[str, str]) -> None:
        if tag == "br":
            self._add("\n", exact=True)
        elif tag == "hr":
            self._end_block()
        elif tag == "img" and given.get("alt") and "math-fallback" not in given.get("class", ""):
            self._add(*_alternative(given["alt"], given.get("class", "")))

    def _pop(self) -> None:
        tag, effect = self._open.pop()
        self._inside[effect] -= 1
        self._tags[tag] -= 1
        self._code -= tag in CODE
        if tag in BLOCKS:
            self._within.pop()
        if self._inside["hidden"]:
            return
        if effect == "formula" and self._formula:
            self._add("".join("".join(self._formula).split()))
            self._formula.clear()
        if tag in BLOCKS:
            self._end_block()

    def _add(self, text: str, exact: bool = False) -> None:
        if self._block is None:
            if not text.strip() and not self._tags["pre"]:
                return
            tag = "pre" if self._tags["pre"] else self._within[-1] if self._within else "p"
            self._block = Block(tag, self._inside["main"] > 0, self._inside["named"] > 0)
        self._block.pieces.append((text, exact))
        if self._tags["a"]:
            self._block.linked += len(text.strip())


def _alternative(alt: str, names: str) -> tuple[str, bool]:
    """What stands for an image, and whether that is exact: TeX, where the image is a formula."""
    if not FORMULA.search(names):
        return f" {alt} ", False
    return alt if alt.startswith(("$", "\\(", "\\[")) else f"${alt}$", True


def _text(block: Block) -> str:
    """The pieces joined; what is not exact loses its Markdown."""
    if block.tag == "pre":
        return "".join(text for text, _ in block.pieces).removeprefix("\n")
    parts: list[str] = []
    for exact, pieces in itertools.groupby(block.pieces, key=lambda piece: piece[1]):
        text = "".join(text for text, _ in pieces)
        parts.append(text if exact else markdown.strip_inline(text))
    lines = (
        re.sub(r" *\t *", "\t", re.sub(r" {2,}", " ", line)).strip() for line in "".join(parts).split("\n")
    )
    return "\n".join(filter(None, lines))
