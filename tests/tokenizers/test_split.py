"""Cutting text into pieces: nothing is lost, published examples, and long runs as Llama's own tokenizer cuts
them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.tokenizers import TokenizerError, byte_level, split, train_bpe


def llama_cut(text: str, longest: int) -> list[str]:
    """The loop of llama-models 0.3.0, llama3/tokenizer.py, written again."""
    parts, start, length = [], 0, 0
    is_space = text[0].isspace() if text else False
    for i, char in enumerate(text):
        if char.isspace() == is_space:
            length += 1
            if length > longest:
                parts.append(text[start:i])
                start, length = i, 1
        else:
            is_space, length = char.isspace(), 1
    return [*parts, text[start:]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("a \n\u00a0\x1c"), st.integers(1, 20)), max_size=5), st.integers(1, 12)
)
def test_runs_are_cut_as_llama_cuts_them(runs, longest):
    text = "".join(char * length for char, length in runs)
    assert split.cut_runs(text, longest) == llama_cut(text, longest)


def test_long_runs_between_text_are_cut():
    text = "x y " + "a" * 60_000 + " " * 70_000 + "b c"
    assert split.cut_runs(text) == llama_cut(text, split.LONGEST_RUN)
    assert len(split.cut_runs(text)) == 5


@pytest.mark.parametrize("pattern", split.PATTERNS.values(), ids=split.PATTERNS)
def test_pieces_join_to_the_text(pattern, any_text, python_source):
    @settings(deadline=None)
    @given(any_text)
    def joins(text):
        assert "".join(split.pieces(text, pattern)) == text

    joins()
    assert "".join(split.pieces(python_source, pattern)) == python_source


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt2", "I'll've 1234  x\n\n y's", ["I", "'ll", "'ve", " 1234", " ", " x", "\n\n", " y", "'s"]),
        ("llama3", "I'LL 12345  x\n\n y.\n", ["I", "'LL", " ", "123", "45", " ", " x", "\n\n", " y", ".\n"]),
        ("llama3", "(foo) $bar", ["(foo", ")", " $", "bar"]),
        ("gpt2", "(foo) $bar", ["(", "foo", ")", " $", "bar"]),
    ],
)
def test_examples(name, text, pieces):
    assert list(split.pieces(text, split.PATTERNS[name])) == pieces


def test_byte_order_is_that_of_gpt2():
    assert [bytes([byte]) for byte in byte_level.ORDER[:3]] == [b"!", b'"', b"#"]
    assert byte_level.RANK[ord(" ")] == 220 and byte_level.printable(b" a\n") == "ĠaĊ"
    assert sorted(byte_level.ORDER) == list(range(256))
    everything = bytes(range(256))
    assert byte_level.from_printable(byte_level.printable(everything)) == everything
    assert len(set(byte_level.printable(everything))) == 256
    assert not any(char.isspace() or not char.isprintable() for char in byte_level.printable(everything))


def test_expressions_that_lose_text_are_refused():
    with pytest.raises(TokenizerError, match="leaves out parts of the text"):
        train_bpe(["two words"], 258, pattern=r"\w+")
    for wrong in ("(", 7):
        with pytest.raises(TokenizerError, match="cannot be used"):
            train_bpe(["text"], 258, pattern=wrong)
