"""Our tokenizers in other programs' files give the same ids there; kinds that have no form are refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Rust

from min_llm import tokenizers
from min_llm.tokenizers import export, hf
from min_llm.tokenizers.base import TokenizerError
from min_llm.tokenizers.bpe_train import train_bpe
from min_llm.tokenizers.byte import Bytes

TEXT = [
    "the cat sat on the mat, the dog sat on the cat",
    "it's 1234 naïve cafés — don't you think? 你好你好",
] * 20


@pytest.fixture(scope="module")
def ours():
    return train_bpe(TEXT, 300)


@pytest.fixture(scope="module")
def rust(ours):
    return Rust.from_str(json.dumps(export.definition(ours, (ours.eos,))))


@given(st.text(max_size=60) | st.sampled_from(TEXT))
@settings(max_examples=200)
def test_a_trained_tokenizer_gives_the_same_ids_as_a_tokenizer_json(ours, rust, text):
    assert rust.encode(text, add_special_tokens=False).ids == ours.encode(text, allow_special=True)
    assert rust.encode(text).ids == [ours.eos, *ours.encode(text, allow_special=True)]


def test_a_folder_is_loaded_as_the_same_tokenizer(ours, tmp_path):
    for name, text in export.folder_files(ours, None, (ours.eos,), 128).items():
        (tmp_path / name).write_text(text)
    again = hf.from_folder(tmp_path)
    assert (again.vocab_size, again.eos, again.bos, again.opening) == (
        ours.vocab_size,
        ours.eos,
        ours.eos,
        (ours.eos,),
    )
    assert all(again.encode(text) == ours.encode(text) for text in TEXT)


def test_gguf_metadata_is_loaded_as_the_same_tokenizer(ours):
    again = hf.from_gguf(export.gguf_metadata(ours, None, (ours.eos,)))
    assert all(again.encode(text) == ours.encode(text) for text in TEXT)
    assert again.opening == (ours.eos,) and again.vocab_size == ours.vocab_size
    assert hf.from_gguf(export.gguf_metadata(ours, None, ())).opening == ()


def test_llama_3s_merges_are_recovered_from_its_ranks():
    try:
        llama3 = tokenizers.load("llama3")
    except TokenizerError as error:
        pytest.skip(str(error))
    rust = Rust.from_str(json.dumps(export.definition(llama3)))
    text = " ".join(TEXT[:2]) + " def f(x):\n\treturn x  # ünïcödé 🙂"
    assert rust.encode(text, add_special_tokens=False).ids == llama3.encode(text)


def test_other_kinds_are_refused():
    with pytest.raises(TokenizerError, match="no form in other programs' files"):
        export.definition(Bytes())
    odd = train_bpe(TEXT, 290, pattern=r"\S+|\s+")
    with pytest.raises(TokenizerError, match="llama.cpp has no name"):
        export.gguf_metadata(odd, None, ())
