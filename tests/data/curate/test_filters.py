"""Filters that look at words: repetition, dirty words, KL, evaluation texts; and block lists of domains."""

import base64
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data import sources
from min_llm.data.curate import words
from min_llm.data.curate.decontaminate import Decontaminate
from min_llm.data.curate.dirty import Dirty
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.domains import Domains
from min_llm.data.curate.kl import KL, divergence
from min_llm.data.curate.repetition import Repetition, coverage


def docs(*texts):
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


# Repetition


def counted_by_hand(text, n):
    """The share of the characters of words in n-grams that occur more than once, the slow way."""
    spelled = text.split()
    spans = [tuple(spelled[i : i + n]) for i in range(len(spelled) - n + 1)]
    covered = {i + j for i, span in enumerate(spans) if spans.count(span) > 1 for j in range(n)}
    return sum(len(spelled[i]) for i in covered) / max(sum(map(len, spelled)), 1)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("a b c d e x a b c d e", [10 / 11, 0, 0, 0, 0, 0]),
        ("aa bb cc dd ee ff yyyy aa bb cc dd ee ff", [24 / 28, 24 / 28, 0, 0, 0, 0]),
        ("a a a a a a a", [1, 1, 0, 0, 0, 0]),  # two 6-grams, one 7-gram
        ("a b c d e a b c d", [0, 0, 0, 0, 0, 0]),
        (" ".join("abcdefghij" * 2), [1, 1, 1, 1, 1, 1]),
        ("", [0] * 6),
    ],
)
def test_coverage_by_hand(text, shares):
    assert coverage(words.split([text]), 6)[0].tolist() == pytest.approx(shares)


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="ab ", max_size=50), max_size=4))
def test_coverage_equals_counting(texts):
    found = coverage(words.split(texts), 4)
    expected = [[counted_by_hand(text, n) for n in range(5, 9)] for text in texts]
    assert np.allclose(found, np.array(expected).reshape(found.shape))


def test_logs_are_dropped_and_prose_is_kept():
    log = "\n".join(f"12:00:{k:02} worker {k} of the pool has finished its job" for k in range(50))
    prose = [text for name, text in sources.resolve("wiki-en").documents()][:300]
    outcomes = Repetition()(docs(log, *prose))
    assert isinstance(outcomes[0], Drop) and outcomes[0].kind == "repeated 5-grams"
    assert sum(isinstance(o, Document) for o in outcomes[1:]) >= 0.97 * 300


def test_limits_must_be_shares():
    with pytest.raises(UserError, match="between 0 and 1"):
        Repetition((15.0,))


# Dirty words


def test_dirty_words_by_rate_and_count(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("# a comment\nrude\nvery bad phrase  # and another\n")
    step = Dirty(str(listed), rate=0.1, least=2)
    clean = "word " * 17
    texts = [
        clean + "rude, RUDE",  # 2 of 19: more than a tenth
        clean + "word rude rude",  # 2 of 20: exactly a tenth
        "rude",  # less than two
        "a Very bad\nphrase and a very bad phrase again",  # phrases count once
        "very bad. and then: phrase",
        "crude rudely",
        "very bad",  # its phrase would go on in the next document
        "phrase",
    ]
    outcomes = step(docs(*texts))
    assert [i for i, o in enumerate(outcomes) if isinstance(o, Drop)] == [0, 3]
    assert outcomes[0] == Drop("dirty words", "2 of 19 words")
    listed.write_text("other\n")  # a list that changes is read again
    assert step(docs(texts[0])) == docs(texts[0])


def test_the_list_of_our_own_spares_ordinary_text():
    prose = [Document(name, text) for name, text in sources.resolve("wiki-en").documents()]
    dropped = [prose[i].name for i, o in enumerate(Dirty()(prose)) if isinstance(o, Drop)]
    assert len(dropped) <= 8 and "Pornography" in dropped, dropped


def test_a_missing_or_empty_list(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Dirty(str(tmp_path / "none"))(docs("a"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(UserError, match="no words"):
        Dirty(str(tmp_path / "empty"))(docs("a"))


# KL


def test_the_divergence_of_the_corpus_from_itself_is_zero():
    text = " ".join(f"w{k % 97}" for k in range(20_000))
    found = words.split([text])
    step = KL(bits=12)
    counts = step.count(docs(text))
    assert counts.sum() == 20_000
    exact = divergence(step.bins(found), found.offsets, counts * 10**9)  # smoothing is nothing beside this
    assert abs(exact[0]) < 1e-6


@settings(max_examples=60)
@given(st.lists(st.text(alphabet="abc ", max_size=40), min_size=1, max_size=5))
def test_divergence_is_never_negative_and_equals_the_formula(texts):
    step = KL(bits=10)
    found = words.split(texts)
    counts = step.count(docs(*texts))
    ours = divergence(step.bins(found), found.offsets, counts)
    assert (ours >= -1e-12).all()
    corpus = (counts + 0.5) / (counts + 0.5).sum()
    for t, value in enumerate(ours):
        mine = np.bincount(step.bins(found)[found.offsets[t] : found.offsets[t + 1]], minlength=1024)
        p = mine / max(mine.sum(), 1)
        assert value == pytest.approx(sum(p[w] * np.log(p[w] / corpus[w]) for w in np.flatnonzero(p)))


def test_junk_ranks_above_the_99th_percentile():
    """Encoded data, random letters and bytes read as Latin-1 among encyclopedia articles of equal length."""
    draw = random.Random(0)
    articles = [text for _, text in sources.resolve("wiki-en").documents() if len(text.split()) >= 80][:3000]
    data = draw.randbytes(600)
    letters = " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(100))
    junk = [
        " ".join(base64.b64encode(draw.randbytes(6)).decode() for _ in range(100)),
        letters,
        data.decode("latin-1"),
        " ".join(f"{b:02x}{c:02x}{d:02x}" for b, c, d in zip(data, data[1:], data[2:], strict=False)),
    ]
    step = KL()
    documents = docs(*articles, *junk)
    counts = step.count(documents)
    found = words.split([d.text for d in documents])
    nats = divergence(step.bins(found), found.offsets, counts)
    assert (nats[-4:] > np.quantile(nats[:-4], 0.99)).all(), (nats[-4:], np.quantile(nats, [0.5, 0.99, 1]))
    outcomes = step.apply(documents, counts)
    assert all(isinstance(o, Drop) for o in outcomes[-4:])
    assert sum(isinstance(o, Drop) for o in outcomes[:-4]) <= 3
    assert step.apply(docs(letters[:300]), counts) == docs(letters[:300])  # too short to judge


# Evaluation texts


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "eval.jsonl"
    rows = [
        "Natalia sold clips to 48 of her friends in April and then half as many in May",
        "A robe takes two bolts of blue fiber and half that much white fiber how many bolts",
        "too short",
    ]
    path.write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    return path, rows


def test_documents_that_hold_evaluation_texts(questions):
    path, (natalia, robe, short) = questions
    step = Decontaminate((str(path),), "question")
    spelled = natalia.split()
    texts = [
        f"Question: {natalia.upper()}? Answer: 72.",
        robe.replace(" ", ", "),
        " ".join(spelled[:8]),  # 8 of 17 words: less than half
        " ".join(spelled[:9]),  # 9 of 17: more
        " ".join(spelled[:7]) + " and " + " ".join(spelled[7:14]),  # no 8-gram
        short,
        " ".join(spelled[:5]),  # would go on in the next document
        " ".join(spelled[5:10]),
    ]
    outcomes = step(docs(*texts))
    assert [i for i, o in enumerate(outcomes) if isinstance(o, Drop)] == [0, 1, 3]
    assert outcomes[0] == Drop("evaluation text", "holds 100% of eval.jsonl:1")
    assert (
        outcomes[1].detail == "holds 100% of eval.jsonl:2"
        and outcomes[3].detail == "holds 53% of eval.jsonl:1"
    )


def test_real_questions_are_found_in_a_crawl(shared_data):
    """Every tenth GSM8K question, pasted into an article, and no article for none."""
    step = Decontaminate((str(shared_data / "gsm8k-test.jsonl"),), "question")
    asked = [json.loads(line)["question"] for line in (shared_data / "gsm8k-test.jsonl").open()][::10]
    articles = [text for _, text in sources.resolve("wiki-en").documents()][: len(asked)]
    outcomes = step(docs(*(f"{a}\n{q}\n{a}" for a, q in zip(articles, asked, strict=True)), *articles))
    assert [isinstance(o, Drop) for o in outcomes] == [True] * len(asked) + [False] * len(asked)
    assert outcomes[3].detail == "holds 100% of gsm8k-test.jsonl:31"


def test_evaluation_texts_that_cannot_be_looked_for(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(UserError, match="none of the 1 evaluation texts has 8 words"):
        Decontaminate((str(tmp_path / "short.txt"),))(docs("a"))
    with pytest.raises(UserError, match="Name files"):
        Decontaminate()


# Domains


def test_domains_and_what_is_below_them(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# blocked\n0.0.0.0 bad.example.com\nworse.org\n")
    step = Domains(("www.evil.com",), str(hosts))
    urls = {
        "http://bad.example.com/x": True,
        "https://a.b.bad.example.com": True,
        "http://example.com": False,
        "http://notbad.example.com": False,
        "https://WORSE.org:8080/": True,
        "worse.org/page": True,
        "http://evil.com": True,
        "http://good.com/evil.com": False,
        "http://evil.com.good.net": False,
        "": False,
        "http://[broken": False,
    }
    outcomes = step([Document("", "text", url=url) for url in urls])
    assert [isinstance(o, Drop) for o in outcomes] == list(urls.values())
    assert outcomes[1] == Drop("blocked domain", "bad.example.com")
    with pytest.raises(UserError, match="blocks nothing"):
        Domains()
