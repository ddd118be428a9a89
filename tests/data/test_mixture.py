"""Batches of a mixture: the right windows of the right sources, the same on any number of hosts and after a stop."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError, build, dump
from min_llm.data import loader
from min_llm.data.mix import Phase
from min_llm.data.mixture import Mixture
from min_llm.data.prepare import DataConfig, prepare_corpus
from min_llm.data.tokenfile import join

SEQ_LEN = 8
BASE = {"a": 0, "b": 10_000, "c": 20_000}  # the source of a token is its ten thousands
FILES = {
    "a": join([BASE["a"] + np.arange(1, 700), BASE["a"] + np.arange(700, 1500)], 65_000, eos=0),
    "b": join([BASE["b"] + np.arange(n) for n in (40, 3, 50)], 65_000, eos=10_000),
    "c": join([BASE["c"] + np.arange(200)], 65_000),  # one document: alone it needs no segments
}
PHASES = [Phase({"a": 0.7, "b": 0.3}, 1000), Phase({"a": 0.4, "b": 0.35, "c": 0.25})]


def mixture(seed=3, files=FILES, phases=PHASES):
    return Mixture(files, phases, seed=seed, seq_len=SEQ_LEN)


def equal(a, b):
    for name in loader.FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or np.array_equal(x, y), name


def sources(batch):
    return (batch.tokens[:, 0] // 10_000).tolist()


def test_rows_are_the_windows_of_their_sources_in_order():
    """Taken apart by source, the stream of a mixture is each source's own stream of shuffled epochs."""
    made = [mixture().batch(step, 5) for step in range(100)]
    source, within = mixture().schedule.place(0, 500)
    assert [s for batch in made for s in sources(batch)] == source.tolist()
    seeds = mixture()._seeds
    rows = {name: np.concatenate([b.tokens for b in made])[source == s] for s, name in enumerate(FILES)}
    for s, (name, tokens) in enumerate(FILES.items()):
        own = loader.windows(tokens, np.arange((source == s).sum()), seed=seeds[s], seq_len=SEQ_LEN)
        assert np.array_equal(rows[name], own.tokens) and within[source == s][-1] == len(rows[name]) - 1
    assert len(set(seeds)) == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(1, 9), st.data())
def test_the_union_of_the_hosts_is_the_batch(seed, step, rows, data):
    made = mixture(seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    hosts = [made.batch(step, rows, a, b - a) for a, b in itertools.pairwise([0, *cuts, rows])]
    equal(made.batch(step, rows), loader.combine(np.concatenate, hosts))


def test_a_batch_is_a_function_of_seed_and_step():
    before = [mixture().batch(step, 4) for step in range(60)]
    loader._orders.cache_clear()  # as a new process would find it
    for step in (59, 0, 31, 32, 17):
        equal(mixture().batch(step, 4), before[step])
    assert any(sources(mixture(4).batch(step, 4)) != sources(before[step]) for step in range(5))


def test_the_number_of_rows_does_not_change_the_stream():
    """Window 12 is window 12 whatever the batch: a batch that grows goes on in the same text."""
    small = loader.combine(np.concatenate, [mixture().batch(step, 4) for step in range(6)])
    equal(small, loader.combine(np.concatenate, [mixture().batch(step, 8) for step in range(3)]))


def test_documents_stay_apart_and_all_batches_are_alike():
    """The source of one document gets segments as well: a compiled step takes one form."""
    forms = set()
    for step in range(90, 200):
        batch = mixture().batch(step, 1)
        assert batch.segment_ids.min() == 1 and batch.weights.shape == (1, SEQ_LEN)
        starts = np.diff(batch.segment_ids, axis=1, prepend=0) > 0
        assert (batch.positions[starts] == 0).all()
        forms.add((sources(batch)[0], batch.segment_ids.dtype, batch.positions.dtype))
    assert {form[0] for form in forms} == {0, 1, 2} and len(forms) == 3
    alone = Mixture({"c": FILES["c"]}, [Phase({"c": 1.0})], seed=0, seq_len=SEQ_LEN)
    assert alone.batch(0, 2).segment_ids is None


def test_the_account_is_what_was_served():
    made = mixture()
    served = np.zeros(3)
    for step in range(200):
        served += np.bincount(sources(made.batch(step, 4)), minlength=3)
        account = made.account((step + 1) * 4)
        assert [account[f"tokens/{name}"] for name in FILES] == (served * SEQ_LEN).tolist()
    for name, tokens in FILES.items():
        epochs = account[f"tokens/{name}"] / SEQ_LEN / (tokens.n_targets // SEQ_LEN)
        assert account[f"epochs/{name}"] == pytest.approx(epochs)
        assert account[f"share/{name}"] == pytest.approx(PHASES[1].weights[name], abs=0.005)
    assert made.account(125)["share/a"] == pytest.approx(0.7, abs=0.02)  # the last window of the first phase
    assert made.account(125)["share/c"] == made.account(0)["share/a"] == 0


def test_the_plan_says_shares_and_epochs_of_each_phase():
    first, second = mixture().plan(1125)
    assert first.startswith("0 to 1,000 tokens: a 70.") and ", c " not in first
    n = (mixture().schedule.counts(1125) - mixture().schedule.counts(125)).tolist()
    assert n == pytest.approx([400, 350, 250], abs=3)
    epochs = [count / (tokens.n_targets // SEQ_LEN) for count, tokens in zip(n, FILES.values(), strict=True)]
    parts = [
        f"{name} {count / 1000:.2%} ({e:.2f} epochs)" for name, count, e in zip(FILES, n, epochs, strict=True)
    ]
    assert second == f"1,000 to 9,000 tokens: {', '.join(parts)}"
    assert len(mixture().plan(100)) == 1 and "0 to 800 tokens" in mixture().plan(100)[0]
    short = [Phase({"a": 1.0}, 9), Phase({"b": 1.0}, 15), Phase({"c": 1.0})]  # no window begins in the second
    assert [line.split(":")[1][:3] for line in mixture(phases=short).plan(5)] == [" a ", " c "]


def test_a_source_shorter_than_a_window_is_a_sentence():
    short = join([np.arange(5)], 65_000)
    with pytest.raises(UserError, match="holds 5 tokens; seq_len 8 needs at least 9"):
        mixture(files={**FILES, "b": short})


# From configuration to token files


@pytest.fixture
def texts(tmp_path):
    words = {"plain": "the cat sat on the mat ", "sums": "1 + 2 = 3; ", "other": "der Hund und die Katze "}
    for name, text in words.items():
        (tmp_path / f"{name}.txt").write_text(text * 300)
    return tmp_path


def config(folder, **given):
    return build(DataConfig, {"home": str(folder / "home"), "tokenizer": "bpe:276", **given}, "data")


def test_sources_share_one_tokenizer_and_other_weights_prepare_nothing(texts):
    names = {name: str(texts / f"{name}.txt") for name in ("plain", "sums")}
    names["both"] = [names["sums"], str(texts / "other.txt")]
    mix = [{"until": 1e4, "weights": {"plain": 0.5, "sums": 0.5}}, {"weights": {"both": 1}}]
    cfg = config(texts, sources=names, mix=mix)
    assert build(DataConfig, dump(cfg), "data") == cfg
    corpus = prepare_corpus(cfg)
    assert list(corpus.parts) == ["plain", "sums", "both"]
    assert len({part.tokenizer.fingerprint() for part in corpus.parts.values()}) == 1
    assert any(b"un" in token for token in corpus.tokenizer.spelled.values())  # learned from all of them
    assert any(b"at" in token for token in corpus.tokenizer.spelled.values())
    assert corpus.parts["sums"].text("train").startswith(b"1 + 2")
    assert b"Hund" in corpus.parts["both"].text("val")
    assert any(line.startswith("both: train: ") for line in corpus.describe())
    before = {path: path.stat().st_mtime_ns for path in (texts / "home").rglob("*")}
    again = prepare_corpus(
        config(texts, sources=names, mix=[{"weights": {"plain": 0.9, "sums": 0.05, "both": 0.05}}])
    )
    assert again.parts["sums"].folder == corpus.parts["sums"].folder
    assert {path: path.stat().st_mtime_ns for path in (texts / "home").rglob("*")} == before


def test_a_mix_may_name_sources_directly(texts):
    path = str(texts / "sums.txt")
    corpus = prepare_corpus(config(texts, tokenizer="bytes", mix=[{"weights": {path: 1.0}}]))
    assert list(corpus.parts) == [path] and corpus.tokenizer.name == "byte"


def test_a_tokenizer_that_is_damaged_is_a_sentence(texts):
    cfg = config(texts, tokenizer="bpe:258", mix=[{"weights": {str(texts / "sums.txt"): 1.0}}])
    prepare_corpus(cfg)
    (file,) = (texts / "home/data").glob("bpe-258-*.json")
    file.write_text("{")
    with pytest.raises(UserError, match=f"{file.name} is not a tokenizer file"):
        prepare_corpus(cfg)


@pytest.mark.parametrize(
    "given_, said",
    [
        ({"sources": {"a": "shakespeare"}}, "data.mix is empty; add its weights"),
        ({"mix": [{"weights": {"shakespear": 1.0}}]}, "no source 'shakespear'. Did you mean 'shakespeare'"),
        ({"mix": [{"until": 5}]}, r"needs 'data.mix\[0\].weights'"),
        ({"mix": [{"weights": {"a": "half"}}]}, r"'data.mix\[0\].weights.a' is 'half'"),
        ({"mix": [{"weights": {"a": 1.0}, "untill": 5}]}, r"data.mix\[0\].untill'. Did you mean 'until'"),
        ({"sources": {"a": []}, "mix": [{"weights": {"a": 1.0}}]}, "source is an empty list"),
    ],
)
def test_sentences(texts, given_, said):
    with pytest.raises(UserError, match=said):
        prepare_corpus(config(texts, **given_))
