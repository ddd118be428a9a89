"""Training: the merges of Hugging Face's trainer, ties included; compression grows; added tokens disturb
nothing."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from min_llm.tokenizers import (
    TokenizerError,
    bpe_train,
    byte_level,
    chars_per_token,
    extend,
    split,
    train_bpe,
)

BYTES_AND_END = 257


def hugging_face_merges(texts: list[str], vocab_size: int, pattern: str) -> list[tuple[bytes, bytes]]:
    """Merges of `tokenizers`' BpeTrainer on the same pieces."""
    theirs = HfTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    pairs = json.loads(theirs.to_str())["model"]["merges"]
    return [(byte_level.from_printable(a), byte_level.from_printable(b)) for a, b in pairs]


def counted_anew(texts: list[str], n_merges: int, pattern: str) -> list[tuple[bytes, bytes]]:
    """The textbook trainer: count all pairs before each merge. What the incremental one must equal."""
    pieces = Counter(piece for text in texts for piece in split.pieces(text, pattern))
    words = [[byte_level.RANK[byte] for byte in piece.encode()] for piece in pieces]
    spelled = [bytes([byte]) for byte in byte_level.ORDER]
    merges = []
    for new in range(256, 256 + n_merges):
        pairs = Counter()
        for word, count in zip(words, pieces.values(), strict=True):
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((spelled[left], spelled[right]))
        spelled.append(spelled[left] + spelled[right])
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == (left, right):
                    word[at : at + 2] = [new]
                at += 1
    return merges


@pytest.mark.parametrize("name", split.PATTERNS)
def test_merges_equal_hugging_face_on_real_text(english, foreign, name):
    texts = [english[0][:60_000], foreign]
    theirs = hugging_face_merges(texts, 256 + 1500, split.PATTERNS[name])
    assert train_bpe(texts, BYTES_AND_END + 1500, pattern=name).merges() == theirs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("aab é\n"), max_size=40), min_size=1, max_size=4))
def test_merges_equal_hugging_face_where_ties_and_overlaps_decide(texts):
    theirs = hugging_face_merges(texts, 256 + 40, split.LLAMA3)
    ours = train_bpe(texts, BYTES_AND_END + len(theirs))
    assert ours.merges() == theirs == counted_anew(texts, len(theirs), split.LLAMA3)
    if len(theirs) < 40:
        with pytest.raises(
            TokenizerError, match=f"only {len(theirs)} pairs to merge, {len(theirs) + 1} were asked"
        ):
            train_bpe(texts, BYTES_AND_END + len(theirs) + 1)


def test_ties_go_to_the_lower_ids():
    """All pairs occur once, and GPT-2's order of ids is: letters, tab, space."""
    tokenizer = train_bpe(["zy bc\tba"], BYTES_AND_END + 5)
    assert tokenizer.merges() == [
        (b"b", b"a"),
        (b"b", b"c"),
        (b"z", b"y"),
        (b"\t", b"ba"),
        (b" ", b"bc"),
    ]


def test_vocabulary_has_the_size_asked_for(english):
    tokenizer = train_bpe([english[0][:20_000]], 400, special=("<|end_of_text|>", "<|pad|>"), name="mine")
    assert tokenizer.vocab_size == 400 and len(tokenizer.tokens) == 398
    assert tokenizer.special == {"<|end_of_text|>": 398, "<|pad|>": 399} and tokenizer.eos == 398
    assert tokenizer.name == "mine"
    assert train_bpe([], BYTES_AND_END).vocab_size == 257
    with pytest.raises(TokenizerError, match="256 bytes and 1 special tokens need at least 257"):
        train_bpe(["text"], 256)


def test_training_twice_gives_the_same(english):
    texts = [english[0][:20_000]]
    assert train_bpe(texts, 500).fingerprint() == train_bpe(iter(texts), 500).fingerprint()


def test_several_processes_count_the_same(english, foreign, monkeypatch):
    """Pieces in the same order with the same counts, whatever the groups that processes take."""
    texts = [*english[0][:60_000].split("\n"), foreign]
    monkeypatch.setattr(bpe_train, "GROUP_CHARS", 7000)
    alone = bpe_train.count_pieces(texts, split.LLAMA3)
    assert list(bpe_train.count_pieces(iter(texts), split.LLAMA3, 2).items()) == list(alone.items())
    assert train_bpe(texts, 400, processes=2).fingerprint() == train_bpe(texts, 400).fingerprint()
    with pytest.raises(TokenizerError, match="lone surrogate U\\+D800"):
        bpe_train.count_pieces(["fine", "not \ud800"], split.LLAMA3, 2)


def test_compression_rises_with_the_vocabulary(english):
    """Measured on text that was not trained on: a smaller vocabulary is a prefix of a larger, so never
    better."""
    seen, held = english
    sizes = [257, 300, 400, 600, 1000, 2000, 4000]
    trained = [train_bpe([seen], size) for size in sizes]
    measured = [chars_per_token(tokenizer, [held]) for tokenizer in trained]
    assert measured[0] == pytest.approx(1.0, abs=0.01)
    assert all(a < b for a, b in itertools.pairwise(measured)), measured
    assert measured[-1] > 3
    for small, large in itertools.pairwise(trained):
        assert large.tokens[: len(small.tokens)] == small.tokens


# The "base vocabulary + added vocabulary" step (L3-2.6)


@pytest.fixture(scope="module")
def extended(trained, foreign):
    return extend(trained, [foreign], 150)


def as_base_ids(ids, extended, base_size):
    """Ids with every added token replaced by the two tokens it was merged from, until only the base's are
    left."""
    pairs = {256 + i: pair for i, pair in enumerate(extended.merges())}
    result, stack = [], list(reversed(ids))
    while stack:
        i = stack.pop()
        if i < base_size:
            result.append(i)
        else:
            stack += [extended.ranks[part] for part in reversed(pairs[i])]
    return result


def test_added_tokens_only_join_tokens_of_the_base(trained, extended, any_text, foreign, english):
    """Exact for every text: taking the added merges back gives the base's ids, so where none fired nothing
    moved."""
    size = len(trained.tokens)

    def check(text):
        ids = extended.encode(text)
        assert as_base_ids(ids, extended, size) == trained.encode(text)
        assert ids == extended.encode_plain(text)
        if max(ids, default=0) < size:
            assert ids == trained.encode(text)

    settings(deadline=None)(given(any_text)(check))()
    for text in (foreign, english[0][:20_000], english[1][:20_000]):
        check(text)


def test_added_tokens_follow_the_base(trained, extended):
    size = len(trained.tokens)
    assert extended.tokens[:size] == trained.tokens and len(extended.tokens) == size + 150
    assert (
        list(extended.special) == list(trained.special) and extended.special["<|end_of_text|>"] == size + 150
    )
    assert extended.name == "bpe-1000+150"


def test_added_tokens_help_the_other_languages(trained, extended, foreign):
    assert chars_per_token(extended, [foreign]) > 1.5 * chars_per_token(trained, [foreign])


def test_unguarded_addition_changes_english(trained, extended, english):
    """Otherwise the next two tests would prove nothing."""
    assert any(extended.encode(text) != trained.encode(text) for text in english)


def test_protected_text_is_tokenised_as_before(trained, foreign, english):
    extended = extend(trained, [foreign], 150, protect=english)
    for text in english:
        assert extended.encode(text) == trained.encode(text)
        assert [a.tolist() for a in extended.encode_documents([text])] == [trained.encode(text)]
    assert chars_per_token(extended, [foreign]) > 1.5 * chars_per_token(trained, [foreign])
    words = english[1].split()
    shuffled = " " + " ".join(reversed(words))  # text nobody protected, made of protected words
    protected_words = extend(trained, [foreign], 150, protect=[" " + word for word in words])
    assert protected_words.encode(shuffled) == trained.encode(shuffled)


def test_non_ascii_additions_leave_all_ascii_text_alone(trained, foreign, english):
    extended = extend(trained, [foreign, english[1]], 150, only_non_ascii=True)
    assert not any(token.isascii() for token in extended.tokens[len(trained.tokens) :])

    @settings(deadline=None)
    @given(st.text(st.characters(max_codepoint=127)))
    def unchanged(text):
        assert extended.encode(text) == trained.encode(text)

    unchanged()
    ascii_english = english[1].encode("ascii", "ignore").decode()
    assert extended.encode(ascii_english) == trained.encode(ascii_english)
    assert chars_per_token(extended, [foreign]) > 1.3 * chars_per_token(trained, [foreign])


def test_extension_runs_out_of_pairs_with_a_sentence(trained):
    with pytest.raises(TokenizerError, match="only 0 pairs to merge, 5 were asked for"):
        extend(trained, ["é"], 5, protect=["é"])


def test_llama3_can_be_extended(llama3, english):
    """A base whose vocabulary has tokens that merging does not reach: protected text still stays as it is."""
    text = "Ĉiuj homoj estas denaske liberaj kaj egalaj laŭ digno kaj rajtoj. Ili posedas racion kaj konsciencon."
    extended = extend(llama3, [text] * 2, 20, protect=[english[1]])
    assert extended.encode(english[1]) == llama3.encode(english[1])
    assert len(extended.encode(text)) < len(llama3.encode(text))
    assert extended.special["<|begin_of_text|>"] == 128_020
