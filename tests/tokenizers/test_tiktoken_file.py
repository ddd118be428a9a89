"""Published vocabularies: ids that others publish, special tokens, and files that are not what they should
be."""

import json

import pytest
import tiktoken
from hypothesis import given, settings

from min_llm import tokenizers
from min_llm.tokenizers import BPE, TokenizerError, byte_level, split, tiktoken_file

BYTES = tuple(bytes([byte]) for byte in byte_level.ORDER)


def test_llama3_published_ids(llama3):
    """llama-models 0.3.0, llama3/tests/api/test_tokenizer.py."""
    text = "<|begin_of_text|>This is a test sentence.<|end_of_text|>"
    ids = [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3.encode(text, allow_special=True) == ids and llama3.decode(ids) == text
    dialog = "<|start_header_id|>system<|end_header_id|>\n\nThis is a test sentence.<|eot_id|>"
    dialog += "<|start_header_id|>user<|end_header_id|>\n\nThis is a response.<|eot_id|>"
    dialog += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert llama3.encode(dialog, allow_special=True) == [
        *(128006, 9125, 128007, 271, 2028, 374, 264, 1296, 11914, 13, 128009),
        *(128006, 882, 128007, 271, 2028, 374, 264, 2077, 13, 128009),
        *(128006, 78191, 128007, 271),
    ]
    assert llama3.encode("Hello world! The") == [9906, 1917, 0, 578]


def test_llama3_special_tokens(llama3):
    assert llama3.vocab_size == 128_256 and llama3.eos == llama3.special["<|end_of_text|>"] == 128_001
    expected = {"<|begin_of_text|>": 128_000, "<|finetune_right_pad_id|>": 128_004, "<|step_id|>": 128_005}
    expected |= {"<|start_header_id|>": 128_006, "<|end_header_id|>": 128_007, "<|eom_id|>": 128_008}
    expected |= {"<|eot_id|>": 128_009, "<|python_tag|>": 128_010, "<|image|>": 128_011}
    expected |= {"<|reserved_special_token_1|>": 128_003, "<|reserved_special_token_2|>": 128_012}
    expected |= {"<|reserved_special_token_245|>": 128_255}
    assert expected.items() <= llama3.special.items() and len(llama3.special) == 256


def test_gpt2_published_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.encode("<|endoftext|>", allow_special=True) == [50256] == [gpt2.eos]
    assert gpt2.vocab_size == 50257 and gpt2.name == "gpt2" and len(gpt2.merges()) == 50_000


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_special_handling_equals_tiktoken(name, request, any_text):
    ours = request.getfixturevalue(name)
    theirs = tiktoken.Encoding(
        name, pat_str=ours.pattern, mergeable_ranks=dict(ours.ranks), special_tokens=ours.special
    )

    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert ours.encode(text) == theirs.encode(text, disallowed_special=())
        assert ours.encode(text, allow_special=True) == theirs.encode(text, allowed_special="all")
        assert not set(ours.encode(text)) & set(ours.special.values())

    equal()


def test_file_round_trip(trained, tmp_path):
    path = tmp_path / "mine.tiktoken"
    tiktoken_file.write_ranks(path, trained)
    assert tuple(tiktoken_file.read_ranks(path)) == trained.tokens
    loaded = tokenizers.load(path)
    assert loaded.encode("Some text.") == trained.encode("Some text.")
    assert loaded.vocab_size == len(trained.tokens) + 256


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"IQ== 0\n!!! 1\n", "line 2: expected a token in base64"),
        (b"IQ== 0\nIg== one\n", "line 2"),
        (b"IQ==\n", "line 1"),
        (b"IQ== 0\nIg== 2\n", "ranks are missing or doubled"),
        (b"IQ== 0\nIg== 0\nIw== 1\n", "ranks are missing or doubled"),
        (b"", "ranks are missing"),
        (b"IQ== 0\n", "must hold all 256 bytes"),
        (b"\x80\x81\x82", "is this a file in tiktoken's format"),
    ],
)
def test_wrong_files_are_sentences(tmp_path, content, sentence):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=sentence):
        tokenizers.load(path)


def gpt2_files(folder, merges, change=None):
    """encoder.json and vocab.bpe of a vocabulary with a few merges."""
    tokens = [*BYTES, *(a + b for a, b in merges)]
    ids = {byte_level.printable(token): i for i, token in enumerate(tokens)} | {"<|endoftext|>": len(tokens)}
    (folder / "encoder.json").write_text(json.dumps(change(ids) if change else ids))
    lines = [f"{byte_level.printable(a)} {byte_level.printable(b)}" for a, b in merges]
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    return folder / "encoder.json", folder / "vocab.bpe"


def test_gpt2_pair_of_files(tmp_path):
    tokenizer = tiktoken_file.gpt2(*gpt2_files(tmp_path, [(b" ", b"t"), (b"h", b"e"), (b" t", b"he")]))
    assert tokenizer.encode(" the") == [258] and tokenizer.eos == 259
    assert isinstance(tokenizer, BPE) and tokenizer.pattern == split.GPT2


def test_gpt2_files_of_two_models_are_refused(tmp_path):
    pair = gpt2_files(
        tmp_path, [(b"h", b"e"), (b"i", b"n")], lambda ids: ids | {"he": ids["in"], "in": ids["he"]}
    )
    with pytest.raises(TokenizerError, match="do not follow the merges"):
        tiktoken_file.gpt2(*pair)
    pair[1].write_text("#version: 0.2\nh e x\n")
    with pytest.raises(TokenizerError, match="are not GPT-2's"):
        tiktoken_file.gpt2(*pair)
