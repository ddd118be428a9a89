"""What all tokenizers promise: round trips, special tokens that text cannot inject, errors, files,
fingerprints."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm import tokenizers
from min_llm.tokenizers import Bytes, Chars, TokenizerError, base, chars_per_token, id_dtype

KINDS = ["chars", "byte", "bpe"]


@pytest.fixture(params=range(4), ids=[*KINDS, "hugging_face"])
def tokenizer(request, each_tokenizer, hugging_face):
    return [*each_tokenizer, hugging_face][request.param]


def text_for(tokenizer, any_text):
    return st.text(st.sampled_from(tokenizer.alphabet)) if isinstance(tokenizer, Chars) else any_text


def test_text_round_trips(tokenizer, any_text):
    @settings(deadline=None)
    @given(text_for(tokenizer, any_text))
    def round_trip(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert all(0 <= i < tokenizer.vocab_size for i in ids)

    round_trip()


def test_every_id_has_its_bytes(tokenizer):
    assert sorted(tokenizer.spelled) == list(range(tokenizer.vocab_size))
    assert all(tokenizer.decode_bytes([i]) == spelled for i, spelled in tokenizer.spelled.items())


def test_text_cannot_inject_special_tokens(tokenizer, any_text):
    names = st.sampled_from(list(tokenizer.special))

    @settings(deadline=None)
    @given(st.lists(st.one_of(names, text_for(tokenizer, any_text))).map("".join))
    def no_special(text):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special.values())
        assert tokenizer.decode(ids) == text
        (document,) = tokenizer.encode_documents([text])
        assert document.tolist() == ids

    no_special()


def test_templates_can_use_special_tokens(tokenizer):
    text = "a<|eot_id|>b<|eot_id|><|end_of_text|>"
    plain, eot, end = tokenizer.encode, tokenizer.special["<|eot_id|>"], tokenizer.special["<|end_of_text|>"]
    ids = tokenizer.encode(text, allow_special=True)
    assert ids == [*plain("a"), eot, *plain("b"), eot, end]
    assert end == tokenizer.eos and tokenizer.decode(ids) == text


def test_special_tokens_come_last(tokenizer):
    assert list(tokenizer.special.values()) == [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]


def test_documents_are_arrays_of_the_smallest_type(tokenizer):
    texts = ["one two", "", "three"]
    arrays = list(tokenizer.encode_documents(iter(texts)))
    assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in texts]
    assert all(array.dtype == id_dtype(tokenizer.vocab_size) == np.uint16 for array in arrays)
    assert id_dtype(65_536) == np.uint16 and id_dtype(65_537) == np.uint32


@pytest.mark.parametrize("wrong", [-1, "vocab_size"])
def test_ids_out_of_range_are_named(tokenizer, wrong):
    wrong = tokenizer.vocab_size if wrong == "vocab_size" else wrong
    with pytest.raises(
        TokenizerError, match=rf"Id {wrong} at position 2 .* 0 to {tokenizer.vocab_size - 1}\."
    ):
        tokenizer.decode([1, 2, wrong])


@pytest.mark.parametrize("wrong", [[0.5], ["a"], [[1, 2]], np.float32([1]), [True]])
def test_ids_must_be_a_list_of_integers(tokenizer, wrong):
    with pytest.raises(TokenizerError, match="list of integers"):
        tokenizer.decode(wrong)


def test_ids_may_be_arrays(tokenizer):
    ids = tokenizer.encode("abc def")
    for array in (np.array(ids, np.uint16), jnp.array(ids), tuple(ids), iter(ids)):
        assert tokenizer.decode(array) == "abc def"
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes(np.zeros(0, np.uint16)) == b""


def test_lone_surrogates_are_named(tokenizer):
    for call in (tokenizer.encode, lambda text: list(tokenizer.encode_documents([text]))):
        with pytest.raises(TokenizerError, match=r"position 2 is the lone surrogate U\+DC80"):
            call("ab\udc80")
    with pytest.raises(TokenizerError, match="encodes str, but got bytes"):
        tokenizer.encode(b"ab")


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    for source in (tmp_path, path, str(path)):
        again = tokenizers.load(source)
        assert again.fingerprint() == tokenizer.fingerprint()
        assert (again.name, again.special, again.eos) == (tokenizer.name, tokenizer.special, tokenizer.eos)
        assert again.encode("some text<|eot_id|>") == tokenizer.encode("some text<|eot_id|>")
    assert tokenizer.save(tmp_path / "other.json") == tmp_path / "other.json"
    assert (tmp_path / "other.json").read_bytes() == path.read_bytes()


def test_failed_save_keeps_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenizerError, match=f"cannot be written to {path}: No space left"):
        tokenizer.save(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TokenizerError, match="No such file or directory"):
        tokenizer.save(tmp_path / "absent" / "tokenizer.json")


@pytest.mark.parametrize("tokenizer", range(3), indirect=True, ids=KINDS)
def test_damaged_files_are_sentences(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path)
    given = json.loads(path.read_text())
    for key in given:
        for broken in (
            {k: v for k, v in given.items() if k != key},
            given | {key: 7},
            given | {key: ["a", 7]},
        ):
            path.write_text(json.dumps(broken))
            with pytest.raises(TokenizerError, match=str(path)):
                tokenizers.load(path)


def test_foreign_files_are_sentences(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content, sentence in [
        ("{", "not JSON"),
        ("[]", "min_llm did not write it"),
        ('{"version": "1.0", "model": {}}', "Hugging Face's format"),
        ('{"format": "min_llm.tokenizer", "version": 2}', "version 2 .* reads 1"),
        ('{"format": "min_llm.tokenizer", "version": 1, "kind": "unigram"}', "kind 'unigram'"),
    ]:
        path.write_text(content)
        with pytest.raises(TokenizerError, match=sentence):
            tokenizers.load(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="not JSON"):
        tokenizers.load(path)


def test_unknown_names_have_a_suggestion():
    with pytest.raises(TokenizerError, match="Did you mean 'llama3'"):
        tokenizers.load("llama-3")


def test_fingerprint_is_of_the_definition_alone():
    assert Bytes(name="other").fingerprint() == Bytes().fingerprint()
    assert Bytes(("<|eot|>",), None).fingerprint() != Bytes(("<|eot|>",), "<|eot|>").fingerprint()
    assert Chars("ab").fingerprint() != Chars("ba").fingerprint()
    # A changed value here means that every token file written before is considered to be of another
    # tokenizer.
    assert Bytes().fingerprint() == "2c1011396dc8fdd845e34951ced99e3babe1fe54e753c1c1a45d32852441d7ce"


@pytest.mark.parametrize("special", [("a", "a"), ("",), (1,)])
def test_special_tokens_must_make_sense(special):
    with pytest.raises(TokenizerError, match="different non-empty strings"):
        Bytes(special, None)


def test_end_of_document_must_be_special():
    with pytest.raises(TokenizerError, match=r"<\|end\|>. is not among"):
        Bytes((), "<|end|>")
    assert Bytes((), None).eos is None


def test_longest_special_token_wins():
    tokenizer = Bytes(("<|a|>", "<|a|><|b|>"), None)
    assert tokenizer.encode("<|a|><|b|><|a|>", allow_special=True) == [257, 256]


def test_characters_are_counted_per_token(each_tokenizer):
    chars, byte, _ = each_tokenizer
    assert chars_per_token(chars, ["abc", "de"]) == 1.0
    assert chars_per_token(byte, iter(["aé", "é"])) == 3 / 5
    with pytest.raises(TokenizerError, match="no text"):
        chars_per_token(byte, [""])


def test_unknown_characters_are_named_with_their_place():
    tokenizer = tokenizers.train_chars(["banana", "bread"])
    assert tokenizer.alphabet == "abdenr" and tokenizer.name == "chars-6" and tokenizer.eos is None
    assert tokenizer.encode("bad") == [1, 0, 2]
    for text, char in [("bad cat", " "), ("bad\U0001f600", "\U0001f600"), ("badé", "é")]:
        with pytest.raises(TokenizerError, match=f"{char!r} at position 3 is not among the 6 characters"):
            tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="at least one"):
        tokenizers.train_chars([])


def test_nanogpt_alphabet(shared_data):
    """nanoGPT's shakespeare_char: 65 characters, "hii there" as in its README's style of check."""
    tokenizer = tokenizers.train_chars([(shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")])
    assert tokenizer.vocab_size == 65
    assert tokenizer.alphabet == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert tokenizer.encode("hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]


def test_definitions_name_their_format(each_tokenizer, tmp_path):
    for tokenizer, kind in zip(each_tokenizer, KINDS, strict=True):
        given = json.loads(tokenizer.save(tmp_path).read_text())
        assert (given["format"], given["version"], given["kind"]) == (base.FORMAT, base.VERSION, kind)
