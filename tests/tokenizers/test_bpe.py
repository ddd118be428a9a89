"""Byte-level BPE: the fast encoder equals the plain one and Hugging Face's on the same merges; any bytes
survive."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE as HfBPE

from min_llm.tokenizers import BPE, TokenizerError, bpe, byte_level, split


def hugging_face(tokenizer: BPE) -> HfTokenizer:
    """The same vocabulary and merges in `tokenizers`, for one piece at a time."""
    show = byte_level.printable
    vocab = {show(token): i for i, token in enumerate(tokenizer.tokens)}
    return HfTokenizer(HfBPE(vocab, [(show(a), show(b)) for a, b in tokenizer.merges()]))


def hugging_face_ids(theirs: HfTokenizer, text: str, pattern: str) -> list[int]:
    pieces = (byte_level.printable(piece.encode()) for piece in split.pieces(text, pattern))
    return [i for piece in pieces for i in theirs.encode(piece, add_special_tokens=False).ids]


def test_fast_equals_plain(trained, any_text, english, foreign, python_source):
    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert trained.encode(text) == trained.encode_plain(text)
        assert trained.encode(text, allow_special=True) == trained.encode_plain(text, allow_special=True)

    equal()
    for text in (english[1], foreign, python_source):
        assert trained.encode(text) == trained.encode_plain(text)


def test_equals_hugging_face_on_the_same_merges(trained, any_text, english, foreign):
    theirs = hugging_face(trained)

    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert trained.encode(text) == hugging_face_ids(theirs, text, trained.pattern)

    equal()
    for text in (english[1], foreign):
        assert trained.encode(text) == hugging_face_ids(theirs, text, trained.pattern)


def test_gpt2_equals_hugging_face_on_the_same_merges(gpt2, english, foreign, python_source):
    theirs = hugging_face(gpt2)
    for text in (english[1], foreign, python_source):
        assert gpt2.encode(text) == gpt2.encode_plain(text) == hugging_face_ids(theirs, text, gpt2.pattern)


def test_llama3_fast_equals_plain(llama3, any_text, english, foreign, python_source):
    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert llama3.encode(text) == llama3.encode_plain(text)

    equal()
    for text in (english[1], foreign, python_source):
        assert llama3.encode(text) == llama3.encode_plain(text)


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_round_trip(trained, data):
    assert trained.decode_bytes(trained.encode_bytes(data)) == data


def test_bytes_of_text_are_encoded_as_the_text(trained, any_text, foreign):
    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert trained.encode_bytes(text.encode()) == trained.encode(text)

    equal()
    cut = foreign.encode()[:-1]
    assert trained.decode(trained.encode_bytes(cut)).endswith("�")


def test_bytes_that_are_no_text_are_merged_too():
    """Parts of characters are tokens as well, so a cut character need not fall into single bytes."""
    tokens = (*(bytes([byte]) for byte in byte_level.ORDER), b"\xe3\x81")
    tokenizer = BPE(tokens, split.LLAMA3)
    assert tokenizer.encode_bytes(b"a\xe3\x81b") == [
        byte_level.RANK[ord("a")],
        256,
        byte_level.RANK[ord("b")],
    ]
    assert len(tokenizer.encode_bytes(b"\xff" * 1000)) == 1000


@pytest.mark.parametrize(
    "text", [" " * 1_000_000, "a" * 300_000, "\n " * 100_000, "é" * 50_000, " " * 60_000 + "x"]
)
def test_long_runs_are_encoded_in_time(trained, text):
    start = time.monotonic()
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.encode(text, allow_special=True) == ids
    assert (
        time.monotonic() - start < 20
    )  # quadratic time would be minutes, and without cutting tiktoken panics


def test_long_runs_are_cut_before_encoding(trained):
    """At 25,000 characters, as Llama's own tokenizer does: the ids are those of the parts."""
    parts = [" " * 25_000, " " * 25_000, " " * 10_000 + "word"]
    assert trained.encode("".join(parts)) == [i for part in parts for i in trained.encode(part)]
    (document,) = trained.encode_documents(["".join(parts)])
    assert document.tolist() == trained.encode("".join(parts))


def test_documents_keep_their_order_in_threads(trained, english):
    texts = [english[0][i : i + 997] for i in range(0, len(english[0]), 997)] * 8
    encoded = [array.tolist() for array in trained.encode_documents(iter(texts))]
    assert encoded == [trained.encode(text) for text in texts]
    assert list(trained.encode_documents([])) == []


def test_documents_are_read_as_they_are_needed(trained):
    """A stream that is larger than memory: only some groups of documents are held at a time."""

    def stream():
        for _ in range(4 * (os.cpu_count() or 1) + 1):
            yield "x" * bpe.GROUP_CHARS
        pytest.fail("more documents were read than are worked on at a time")

    documents = trained.encode_documents(stream())
    assert next(documents).size > 0
    documents.close()


def test_leftmost_of_equal_pairs_is_merged_first():
    ranks = {b"a": 0, b"aa": 1}
    assert bpe.join(b"aaa", ranks) == [b"aa", b"a"]
    assert bpe.merge(b"aaaa", {b"a": 0, b"aa": 1, b"aaa": 2}) == [1, 1]
    assert bpe.merge(b"aaa", {b"a": 0, b"aa": 1, b"aaa": 2}) == [2]


def test_a_piece_that_is_a_token_needs_no_merges():
    """Llama 3 has tokens that merging lower ranks never makes; tiktoken looks the whole piece up first."""
    tokens = (*(bytes([byte]) for byte in byte_level.ORDER), b"xyz")
    tokenizer = BPE(tokens, split.LLAMA3)
    assert tokenizer.encode("xyz") == tokenizer.encode_plain("xyz") == [256]
    assert len(tokenizer.encode(" xyz")) == len(tokenizer.encode_plain(" xyz")) == 4
    with pytest.raises(TokenizerError, match="b'xyz' of 'bpe' is not the merge of two"):
        tokenizer.merges()


def test_vocabulary_must_hold_every_byte_once():
    every = tuple(bytes([byte]) for byte in range(256))
    with pytest.raises(TokenizerError, match="lacks the byte 0xff"):
        BPE(every[:-1], split.GPT2)
    with pytest.raises(TokenizerError, match="b'ab' is in the vocabulary of 'bpe' twice"):
        BPE((*every, b"ab", b"ab"), split.GPT2)
    with pytest.raises(TokenizerError, match="non-empty"):
        BPE((*every, b""), split.GPT2)
