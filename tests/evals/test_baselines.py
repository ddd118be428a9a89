"""Kneser-Ney against its formula spelled out, and both baselines on text whose entropy is known."""

import json
import lzma
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.prepare import DataConfig, prepare
from min_llm.evals import baselines
from min_llm.evals.baselines import KneserNey, ngram_bits_per_byte, xz_bits_per_byte

TEXT = (
    b"the cat sat on the mat. the dog sat on the log. " * 3
    + b"a cat and a dog met on the mat; then they sat."
)


def plain_kneser_ney(train, order):
    """Chen & Goodman, equations of section 3, with dictionaries: (context, byte) -> probability."""
    counts = {order: Counter(train[i : i + order] for i in range(len(train) - order + 1))}
    for n in range(order - 1, 0, -1):
        counts[n] = Counter(gram[1:] for gram in counts[n + 1])
    discounts = {}
    for n, found in counts.items():
        have = Counter(found.values())
        discounts[n] = (0.5, 1.0, 1.5)
        if min(have[k] for k in (1, 2, 3, 4)) > 0:
            y = have[1] / (have[1] + 2 * have[2])
            d = [k - (k + 1) * y * have[k + 1] / have[k] for k in (1, 2, 3)]
            if all(0 <= d[k] <= k + 1 for k in range(3)):
                discounts[n] = tuple(d)
    followers = defaultdict(list)
    for n, found in counts.items():
        for gram, count in found.items():
            followers[n, gram[:-1]].append(count)

    def probability(context, byte, n):
        if n == 0:
            return 1 / 256
        context = context[len(context) - n + 1 :]
        below = probability(context[1:], byte, n - 1)
        seen = followers.get((n, context))
        if not seen:
            return below
        taken = lambda count: min(discounts[n][min(count, 3) - 1], count) if count else 0.0
        count = counts[n][context + bytes([byte])]
        return (count - taken(count) + sum(map(taken, seen)) * below) / sum(seen)

    return lambda context, byte: probability(context, byte, min(order, len(context) + 1))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_formula(order):
    model, plain = KneserNey.fit(TEXT, order), plain_kneser_ney(TEXT, order)
    val = b"the cow sat on a \xffmat with the cat"
    for i, log2 in enumerate(model.log2_probabilities(val)):
        expected = plain(val[max(0, i - order + 1) : i], val[i])
        assert log2 == pytest.approx(np.log2(expected), abs=1e-9)


@given(st.binary(min_size=5, max_size=200), st.binary(max_size=8), st.integers(1, 5))
@settings(max_examples=100)
def test_probabilities_of_all_bytes_sum_to_one(train, context, order):
    p = KneserNey.fit(train, order).distribution(context)
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()


def test_the_distribution_is_what_text_is_scored_with():
    model = KneserNey.fit(TEXT, 4)
    val = b"the mat"
    for i, log2 in enumerate(model.log2_probabilities(val)):
        assert log2 == pytest.approx(np.log2(model.distribution(val[:i])[val[i]]), abs=1e-12)


def test_random_bytes_cost_eight_bits_and_a_known_text_little():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 40_000, np.uint8).tobytes()
    assert ngram_bits_per_byte(noise[:30_000], noise[30_000:], 1) == pytest.approx(8, abs=0.02)
    coin = bytes(rng.integers(97, 99, 40_000).tolist())
    assert ngram_bits_per_byte(coin[:30_000], coin[30_000:], 5) == pytest.approx(1, abs=0.01)
    assert ngram_bits_per_byte(TEXT * 9, TEXT, 5) < 0.6


def test_xz_is_the_size_of_the_xz_file():
    train, val = TEXT * 20, TEXT
    found = xz_bits_per_byte(train, val)
    assert found["alone"] == 8 * len(lzma.compress(val, preset=9)) / len(val)
    assert found["conditional"] < 0.2 * found["alone"]


def test_impossible_orders_are_refused():
    with pytest.raises(UserError, match="from 1 to 8"):
        KneserNey.fit(TEXT, 9)
    with pytest.raises(UserError, match="has 2 bytes"):
        KneserNey.fit(b"ab", 5)


def test_baselines_are_kept_beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(TEXT * 4)
    prepared = prepare(DataConfig(source=str(tmp_path / "a.txt"), tokenizer="bytes", home=str(tmp_path)))
    found = baselines.baselines(prepared)
    text = TEXT * 4
    at = int(len(text) * 0.9)
    assert found["kneser_ney"]["bits_per_byte"] == ngram_bits_per_byte(text[:at], text[at:])
    assert (found["train_bytes"], found["val_bytes"]) == (at, len(text) - at)
    assert json.loads((prepared.folder / "baselines.json").read_text()) == found
    monkeypatch.setattr(baselines, "xz_bits_per_byte", lambda *_: pytest.fail("computed again"))
    assert baselines.baselines(prepared) == found
