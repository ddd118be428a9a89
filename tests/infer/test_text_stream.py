"""Streamed text is the whole text: characters cut by tokens, stop strings cut by tokens."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from min_llm.infer.text_stream import StopStrings, TextStream
from min_llm.tokenizers import TokenizerError
from tests.toy_tokenizers import KINDS, toy

STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def stream(tokenizer, ids, stop=(), **options):
    """The pieces a stream gives, and the stream."""
    made = TextStream(tokenizer, stop, **options)
    return [*(made.feed(i) for i in ids), made.finish()], made


def cut(text, stop):
    """The text before the stop string that is complete first, the longest of several, and that string."""
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            found = max(ending, key=len)
            return text[: end - len(found)], found
    return text, None


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokens_give_the_text_that_decode_gives(kind):
    tokenizer = toy(kind)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)), STOPS)
    def equal(ids, stop):
        pieces, made = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids) and made.stopped is None
        pieces, made = stream(tokenizer, ids, stop)
        assert ("".join(pieces), made.stopped) == cut(tokenizer.decode(ids), stop)

    equal()


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_streamed_whole(kind):
    tokenizer = toy(kind)

    @settings(deadline=None)
    @given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3))
    def equal(text, stop):
        text = tokenizer.decode(tokenizer.encode(text))  # SentencePiece writes "▁" as a space
        pieces, made = stream(tokenizer, tokenizer.encode(text), stop)
        assert ("".join(pieces), made.stopped) == cut(text, stop)
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text

    equal()


@settings(deadline=None)
@given(st.text("ab\n"), STOPS, st.data())
@example("abab", ["abc", "ba"], None)
@example("xabcd", ["abce", "bc"], None)
def test_stop_strings_are_found_in_any_pieces(text, stop, data):
    stops, given_out, at = StopStrings(stop), "", 0
    while at < len(text):
        end = at + (data.draw(st.integers(1, 4)) if data else 1)
        given_out += stops.feed(text[at:end])
        at = end
        before, found = cut(text[:at], stop)
        if found is None:  # nothing more than what may still become a stop string is held back
            held = max(n for s in ("", *stop) for n in range(len(s) or 1) if before.endswith(s[:n]))
            assert given_out == before[: len(before) - held]
    assert (given_out + stops.finish(), stops.found) == cut(text, stop)


def test_characters_come_when_they_are_complete():
    pieces, _ = stream(toy("byte"), "a🙂é".encode())
    assert pieces == ["a", "", "", "", "🙂", "", "é", ""]
    pieces, _ = stream(toy("byte"), "a🙂".encode()[:-1])
    assert pieces == ["a", "", "", "", "\ufffd"]
    pieces, made = stream(toy("byte"), "é".encode()[:1], ["\ufffd"])
    assert pieces == ["", ""] and made.stopped == "\ufffd"


def test_nothing_follows_a_stop_string():
    made = TextStream(toy("byte"), ["\n\n", "User:"])
    given_out = [made.feed(i) for i in b"Hi Use\n\nmore"]
    assert "".join(given_out) == "Hi Use" and made.stopped == "\n\n" and made.finish() == ""


def test_the_first_space_of_sentencepiece_is_the_text_s_own_behind_other_tokens():
    tokenizer = toy("sentencepiece")
    ids = tokenizer.encode("the the")
    assert "".join(stream(tokenizer, ids)[0]) == "the the"
    assert "".join(stream(tokenizer, ids, before=ids)[0]) == " the the"
    assert tokenizer.decode([*ids, *ids]) == "the the the the"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_spelled_unless_hidden(kind):
    tokenizer = toy(kind)
    eot = tokenizer.special["<|eot_id|>"]
    ids = [*tokenizer.encode("é"), eot, *tokenizer.encode("é")]
    shown = "".join(stream(tokenizer, ids)[0])
    assert shown == tokenizer.decode(ids) and shown.startswith("é<|eot_id|>")
    hidden = "".join(stream(tokenizer, ids, hidden=[eot])[0])
    assert hidden == shown.replace("<|eot_id|>", "")


def test_unknown_ids_are_named():
    made = TextStream(toy("sentencepiece"))
    made.feed(5)
    with pytest.raises(TokenizerError, match="Id 9999 .* outside the vocabulary"):
        made.feed(9999)


def test_time_grows_with_the_tokens_and_not_with_the_text():
    def seconds(n):
        started = time.perf_counter()
        stream(toy("byte"), b"ab" * (n // 2), ["abc" * 100, "b" * 50])
        return time.perf_counter() - started

    seconds(1000)
    few, many = (min(seconds(n) for _ in range(3)) for n in (4_000, 64_000))
    assert many < 16 * few * 4
