"""Documents of the retrieval task "needle in a haystack": facts put between the sentences of real text, and asked for
again later (Llama 3, section 3.4.2; L3-4.4).

    … the dog gave chase to the squirrel. Remember Rome amber falcon. She went home. Recall Rome amber falcon. …

A small model does not learn to retrieve from ordinary text within minutes, so it is trained on the task itself, and
the task is made easy to learn: a document states and asks for many needles, the word of a key stands right before its
value both times, and all words come from two short lists. Only which value a key has is drawn anew for each document.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from min_llm.config import UserError

KEYS = tuple(
    """Accra Algiers Amman Ankara Athens Baghdad Baku Bangkok Beijing Beirut Belgrade Berlin Bern Bogota Boston Brasilia
    Brussels Budapest Cairo Canberra Caracas Chicago Dakar Damascus Delhi Denver Dhaka Dublin Geneva Havana Helsinki
    Houston Jakarta Kabul Kiev Lagos Lima Lisbon London Lusaka Madrid Manila Miami Milan Minsk Moscow Mumbai Munich
    Nairobi Naples Osaka Oslo Ottawa Paris Prague Quito Riga Rome Santiago Seoul Sofia Tokyo Vienna Warsaw""".split()
)
WORDS = tuple(
    """amber apple arrow basket beaver bottle bridge butter button candle carpet castle cherry cotton crystal desert
    dragon eagle engine falcon feather flower forest garden ginger guitar hammer honey island jacket kettle ladder
    lantern lemon marble meadow mirror monkey needle ocean orange oyster paper pepper pillow planet pocket rabbit ribbon
    river rocket saddle salmon shadow silver spider summer temple tiger tunnel turtle velvet violin window""".split()
)


SHORTEST, LONGEST = 20, 200  # characters of a sentence


@dataclasses.dataclass(frozen=True)
class Needle:
    """value: two words of WORDS; guessing blindly is right once in 4,032 times."""

    key: str
    value: str

    @property
    def fact(self) -> str:
        return f"Remember {self.key} {self.value}."

    @property
    def question(self) -> str:
        return f"Recall {self.key}"

    @property
    def answer(self) -> str:
        """What follows the question."""
        return f" {self.value}"


def draw(rng: random.Random, count: int) -> list[Needle]:
    """Needles of different keys. Raises UserError for more than there are keys."""
    if not 1 <= count <= len(KEYS):
        raise UserError(f"A document has 1 to {len(KEYS)} needles, a key each; {count} were asked for.")
    return [Needle(key, " ".join(rng.sample(WORDS, 2))) for key in rng.sample(KEYS, count)]


def sentences(haystack: Iterable[str]) -> list[str]:
    """Those of all documents in their order, each on one line, without what is too short or too long to be one.
    Raises UserError where there are none."""
    parts = (part for text in haystack for part in re.split(r"(?<=[.!?])\s+", text))
    found = [" ".join(part.split()) for part in parts]
    kept = [sentence for sentence in found if SHORTEST <= len(sentence) <= LONGEST]
    if not kept:
        raise UserError(
            f"The haystack has no sentence of {SHORTEST} to {LONGEST} characters. Give it ordinary text."
        )
    return kept


def onwards(hay: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The sentences from one that is drawn, round and round."""
    begin = rng.randrange(len(hay))
    return itertools.chain(hay[begin:], itertools.cycle(hay))


def documents(
    haystack: Iterable[str],
    count: int,
    length: int,
    seed: int,
    density: float = 0.6,
    asks: int = 1,
    far: float = 0.0,
) -> Iterator[str]:
    """`count` documents of at most `length` bytes, short of it by less than a sentence.

    density: share of the bytes that needles and questions take, at most (there are 64 keys). A needle and its `asks`
    questions, each with its answer, stand at places drawn uniformly, so that all distances occur up to the length of
    the document; far: the share of needles that are stated in its first tenth and asked for in its last, since such
    distances are rare otherwise. The same arguments give the same bytes. Raises UserError for a length that holds no
    needle.
    """
    if not 0 < density <= 1 or asks < 1 or count < 1:
        raise UserError(
            f"density is {density:g}, asks {asks} and documents {count}; density is above 0 and at most 1, the others "
            "at least 1."
        )
    least = max(map(_size, KEYS)) + 40  # of a fact or a question with its answer
    if length * density < least * (1 + asks):
        raise UserError(
            f"Documents of {length} bytes with density {density:g} may hold no needle; make them "
            f"{least * (1 + asks) / density:.0f} or longer."
        )
    hay, rng = sentences(haystack), random.Random(seed)
    for _ in range(count):
        yield _document(hay, length, density, asks, far, rng)


def lists(count: int, length: int, seed: int) -> Iterator[str]:
    """`count` documents of at most `length` bytes that say a list of the same words again and again.

    Whoever looks back for the word before it knows all but the first round, so that nearly every token teaches what
    finding a needle needs (induction heads: Olsson et al. 2022, arXiv 2209.11895). Raises UserError for a length that
    does not hold a short list twice.
    """
    shortest = 4  # words; most lists are short, since short ones are learned from first
    longest = min(len(KEYS + WORDS), length // (2 * (1 + max(map(len, KEYS + WORDS)))))
    if longest < shortest:
        raise UserError(f"Lists of {length} bytes are too short to be said twice; make them 80 or longer.")
    rng = random.Random(f"lists {seed}")
    for _ in range(count):
        words = rng.sample(KEYS + WORDS, round(shortest * (longest / shortest) ** rng.random()))
        text = " ".join(words * (length // sum(map(_size, words)) + 1))
        yield text[: text.rindex(" ", 0, length)] + "\n"


def _document(
    hay: Sequence[str], length: int, density: float, asks: int, far: float, rng: random.Random
) -> str:
    placed: list[tuple[float, str]] = []  # where in the document, from 0 to 1; what
    room = length * density
    for needle in draw(rng, len(KEYS)):
        texts = [needle.fact, *asks * [f"{needle.question}{needle.answer}."]]
        room -= sum(map(_size, texts))
        if room < 0:
            break
        places = sorted(rng.random() for _ in texts)
        if far and rng.random() < far:
            places = [0.1 * places[0], *(1 - 0.1 * place for place in places[1:])]
        placed += zip(places, texts, strict=True)
    room = length - sum(_size(text) for _, text in placed)
    plain = []
    for sentence in onwards(hay, rng):
        room -= _size(sentence)
        if room < 0:
            break
        plain.append(sentence)
    placed += zip(sorted(rng.random() for _ in plain), plain, strict=True)
    return " ".join(text for _, text in sorted(placed)) + "\n"


def _size(text: str) -> int:
    """Bytes of a sentence and of what separates it from the next."""
    return len(text.encode()) + 1
