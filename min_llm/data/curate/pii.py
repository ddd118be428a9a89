"""Personal data by rules: e-mail addresses, telephone numbers, IP addresses, card numbers. Llama 3, section 3.1.1
(L3-1.1)."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from min_llm.config import option
from min_llm.data.curate.document import Document, Drop, Outcome

Kind = Literal["email", "phone", "ip", "card"]

# Patterns begin with a character or a set, so that the engine can leap to it; what must not stand before a hit is
# looked at afterwards.
LOCAL = re.compile(r"[\w.+-]{1,64}(?![\w.+-])")  # matched from the @ backwards
DOMAIN = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])")
NUMBER = re.compile(
    r"[0-9](?:[ .()/-]{0,2}[0-9]){6,18}(?![\w=]|[.,/-][0-9])"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])"
)
BRACKET = re.compile(r"[0-9]{1,5}\)")
IPV6 = re.compile(r":[0-9A-Fa-f:]{3,36}(?![\w:.])")
HEX = frozenset("0123456789abcdefABCDEF")
DATE = re.compile(
    r"(?:19|20)\d\d[ ./-]\d\d?[ ./-]\d\d?|\d\d?[ ./-]\d\d?[ ./-](?:19|20)\d\d|(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d"
)
PLAIN_PHONE = re.compile(r"(?:\(\d{2,5}\)|0\d{1,4}|1|\d{3})[ ./-]{1,2}\d{2,4}(?:[ .-]\d{2,4}){1,3}")

# Issuers' prefixes and the lengths they use.
CARDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|6(?:011|5\d\d)\d{12}|35\d{14}"
)


class Hit(NamedTuple):
    kind: Kind
    begin: int
    end: int


@dataclass(frozen=True)
class PII:
    """Drop documents with a high volume of personal data and mask what the others have."""

    rate: float = option(2.0, "largest number of hits per 1,000 characters")
    least: int = option(3, "so many hits are needed to drop a document, however short it is")
    mask: bool = option(True, "replace what is found in other documents by <email>, <phone>, <ip>, <card>")

    def __call__(self, documents: list[Document]) -> list[Outcome]:
        return [self._outcome(document) for document in documents]

    def _outcome(self, document: Document) -> Outcome:
        hits = find(document.text)
        if len(hits) >= self.least and 1000 * len(hits) > self.rate * len(document.text):
            kinds = Counter(hit.kind for hit in hits).most_common()
            detail = ", ".join(f"{n} {kind}" for kind, n in kinds)
            return Drop("personal data", detail, masked(document.text, hits))  # a report is passed around
        if not hits or not self.mask:
            return document
        return dataclasses.replace(document, text=masked(document.text, hits))


def find(text: str) -> list[Hit]:
    """All personal data, in the order of the text, without overlaps."""
    hits = [*_emails(text), *_numbers(text), *_ipv6(text)]
    hits.sort(key=lambda hit: hit.begin)
    return [hit for i, hit in enumerate(hits) if i == 0 or hit.begin >= hits[i - 1].end]


def masked(text: str, hits: list[Hit]) -> str:
    """The text with <kind> for every hit."""
    parts, place = [], 0
    for hit in hits:
        parts += [text[place : hit.begin], f"<{hit.kind}>"]
        place = hit.end
    return "".join(parts) + text[place:]


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number fits (ISO/IEC 7812-1)."""
    values = [int(d) for d in reversed(digits)]
    return sum(values[0::2] + [v * 2 - 9 * (v > 4) for v in values[1::2]]) % 10 == 0


def _emails(text: str) -> Iterator[Hit]:
    for domain in DOMAIN.finditer(text) if "@" in text else ():
        at = domain.start()
        if local := LOCAL.match(text[max(at - 66, 0) : at][::-1]):
            yield Hit("email", at - local.end(), domain.end())


def _numbers(text: str) -> Iterator[Hit]:
    for match in NUMBER.finditer(text):
        begin = match.start()
        begin -= text[begin - 1 : begin] == "(" and BRACKET.match(match[0]) is not None
        begin -= text[begin - 1 : begin] == "+"
        if begin and (text[begin - 1].isalnum() or text[begin - 1] in "_.,+/=#$€£-"):
            continue
        if kind := _kind(match[0], text[begin : match.start()]):
            yield Hit(kind, begin, match.end())


def _ipv6(text: str) -> Iterator[Hit]:
    for match in IPV6.finditer(text) if "::" in text or text.count(":") >= 7 else ():
        begin = match.start()
        while begin and text[begin - 1] in HEX:
            begin -= 1
        before = text[begin - 1 : begin]
        if not (before.isalnum() or before in ("_", ":", ".")) and _is_public(text[begin : match.end()]):
            yield Hit("ip", begin, match.end())


def _kind(number: str, opening: str) -> Kind | None:
    """What a run of digits is, given the plus and the bracket before it; most are nothing."""
    if number.count(".") == 3 and number.replace(".", "").isdigit() and _is_public(number):
        return "ip"
    digits = re.sub(r"\D", "", number)
    if not opening and not re.search(r"[./()]", number) and CARDS.fullmatch(digits) and luhn(digits):
        return "card"
    if "+" in opening:
        return "phone" if 8 <= len(digits) <= 15 else None
    if 9 <= len(digits) <= 12 and PLAIN_PHONE.fullmatch(opening + number) and not DATE.match(number):
        return "phone"
    return None


def _is_public(address: str) -> bool:
    """Whether it can be a person's: 127.0.0.1, 192.168.0.1 and what is no address cannot."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
