"""Personal data: precision and recall on a planted corpus, and what real text has of it."""

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from min_llm.data import sources
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.pii import PII, find, luhn, masked

PLANTED = {
    "email": [
        "jo.public@example.com",
        "A_B+news@mail.example.co.uk",
        "x@y-z.org",
        "müller99@web.de",
        "me@sub.dom.io",
    ],
    "phone": [
        "(415) 555-0132",
        "+44 20 7946 0958",
        "+1-202-555-0143",
        "212-555-0187",
        "020 7946 0123",
        "+49 (0)30 901820",
        "1-800-555-0199",
        "303.555.0112",
        "+33 1 42 68 53 00",
        "(030) 9018 2010",
        "+14155550123",
        "06 12 34 56 78",
    ],
    "ip": ["8.8.4.4", "93.184.216.34", "151.101.1.69", "2a00:1450:4001:81b::200e", "52.95.110.1"],
    "card": [
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "6011000990139424",
        "3530111333300000",
    ],
}
DECOYS = [
    "on 2024-01-15 and 12/31/1999",
    "1990-1995, 1,234,567.89 dollars",
    "version 3.13.0 of 2.7.18",
    "ISBN 978-0-306-40615-7",
    "127.0.0.1 and 192.168.0.12, 10.0.0.1",
    "order 4111111111111112 of 1234567890123456",
    "17:45:30 12.05.2021",
    "f(1, 2, 3) = 123456789",
    "std::vector<int> a::b::c",
    "@dataclass, a@b, foo @ bar.com",
    "3.14159265358979 and 6.02214076e23",
    "0x7fff5fbff8c0 deadbeef-1234-5678-9abc-def012345678",
    "chapter 1.2.3.4.5, verse 12-14",
    "ratio 100:200:300",
    "pages 100-200 and 300-400",
    "2024 01 02 03 04 05",
]


def planted_corpus(shared_data):
    """Real prose with personal data and decoys in between; and where each kind stands."""
    draw = random.Random(0)
    prose = (shared_data / "tinyshakespeare.txt").read_text().split("\n\n")[:2000]
    text, truth = "", []
    for paragraph in prose:
        kind = draw.choice([*PLANTED, None])
        planted = draw.choice(PLANTED[kind] if kind else DECOYS)
        before, after = draw.choice(
            [(" ", " "), (" ", ". "), (": ", "\n"), (" (", ") "), (" <", "> "), (" ", ", ")]
        )
        text += paragraph + before
        if kind:
            truth.append((kind, len(text), len(text) + len(planted)))
        text += planted + after
    return text, truth


def test_precision_and_recall_on_a_planted_corpus(shared_data):
    text, truth = planted_corpus(shared_data)
    found = [tuple(hit) for hit in find(text)]
    for kind in PLANTED:
        ours, true = {h for h in found if h[0] == kind}, {h for h in truth if h[0] == kind}
        precision, recall = len(ours & true) / max(len(ours), 1), len(ours & true) / len(true)
        missed = sorted({text[a:b] for _, a, b in true - ours})
        wrong = sorted({text[a - 10 : b + 10] for _, a, b in ours - true})
        assert precision >= 0.95 and recall >= 0.9, (
            f"{kind}: {precision:.3f} {recall:.3f} {missed} {wrong[:9]}"
        )


def test_decoys_are_nothing():
    assert {decoy: find(decoy) for decoy in DECOYS if find(decoy)} == {}


def test_false_hits_on_real_text(shared_data):
    """Shakespeare has no personal data; Python's library has addresses of its authors, and few other hits."""
    assert find((shared_data / "tinyshakespeare.txt").read_text()) == []
    texts = [text for name, text in sources.resolve("python-stdlib").documents() if name[0] in "abcdef"]
    hits = [
        (hit.kind, text[hit.begin : hit.end]) for text in texts for hit in find(text) if hit.kind != "email"
    ]
    assert sum(map(len, texts)) > 1_000_000
    assert len(hits) <= 5, hits


@given(st.integers(0, 10**15))
def test_luhn(number):
    """Exactly one check digit fits."""
    assert [luhn(f"{number}{digit}") for digit in range(10)].count(True) == 1
    assert luhn("79927398713") and not luhn("79927398710")


@given(st.text(alphabet="0123456789.:-+()@ abc/\n"))
def test_hits_are_in_order_and_masked(text):
    hits = find(text)
    assert all(a.end <= b.begin for a, b in itertools.pairwise(hits))
    assert masked(text, []) == text
    assert masked(text, hits).count("<") == len(hits)


@pytest.mark.parametrize("piece", ["a", "1", "1.", "1 ", ":", "a:", "@", "a@", "a@b.", "+1 ", "(1"])
def test_hostile_texts_end(piece):
    began = time.perf_counter()
    find(piece * 20_000)
    assert time.perf_counter() - began < 30


def test_the_step_drops_high_volumes_and_masks_the_rest():
    some = Document("a", "Write to me@example.com, please. " + "x " * 3000)
    many = Document("b", "me@example.com, you@example.com, (415) 555-0132: a list.")
    none = Document("c", "Nothing here.")
    masked_, drop, same = PII()([some, many, none])
    assert masked_.text.startswith("Write to <email>, please.") and same is none
    assert drop == Drop("personal data", "2 email, 1 phone", "<email>, <email>, <phone>: a list.")
    assert PII(mask=False)([some]) == [some]
