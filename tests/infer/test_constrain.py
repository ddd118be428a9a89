"""Masks say exactly what may follow, whatever the tokenizer; what cannot be compiled is refused in time."""

import json
import re
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.infer import grammar_trial
from min_llm.infer.constrain import MOST_BYTES, Constrainer
from min_llm.infer.request import Grammar
from min_llm.tokenizers import Chars
from tests.toy_tokenizers import KINDS, toy

pytest.importorskip("llguidance")

PADDED = 7  # ids of the model beyond the tokenizer's


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


_made = {}


def constrainer(kind):
    """The constrainer of a toy, whose answers end with its end of text or of turn."""
    if kind not in _made:
        tokenizer = toy(kind)
        ends = [tokenizer.special["<|end_of_text|>"], tokenizer.special["<|eot_id|>"]]
        _made[kind] = Constrainer(tokenizer, tokenizer.vocab_size + PADDED, ends)
    return _made[kind]


def quickly(constrainer, grammar):
    """A matcher without the trial in a process of its own, for grammars that are no bombs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_trial, "refusal", lambda lark: None)
        return constrainer.compile(grammar)


def walk(constrainer, tokenizer, matcher, rng, patience=40):
    """A random answer that the masks allow, its end token aside; behind `patience` tokens it ends when it can."""
    data, n = b"", 0
    while True:
        mask = matcher.mask()
        assert mask.shape == (constrainer.vocab_size,) and mask.any(), matcher.error
        assert not mask[tokenizer.vocab_size :].any()
        ends = mask[constrainer.end_ids]
        assert ends.all() or not ends.any()
        if ends.any() and (n > patience or rng.random() < 0.2 or matcher.done):
            matcher.advance(int(rng.choice(constrainer.end_ids)))
            assert matcher.done and not matcher.mask().any() and matcher.error is None
            return data
        mask[constrainer.end_ids] = False
        allowed = np.flatnonzero(mask)
        closing = [i for i in allowed if tokenizer.spelled[int(i)] in (b'"', b"}", b"]")]
        token = int(rng.choice(closing if closing and n > patience else allowed))
        matcher.advance(token)
        data += tokenizer.spelled[token]
        n += 1


WORDS = st.lists(st.text(st.sampled_from('thea "é🙂\n/\\.'), max_size=6), min_size=1, max_size=5)


def test_a_mask_is_exactly_what_continues_some_text_that_matches(kind):
    tokenizer, made = toy(kind), constrainer(kind)
    special = {*tokenizer.special.values()} | ({0} if kind == "sentencepiece" else set())  # its unknown token

    @settings(deadline=None, max_examples=25)
    @given(WORDS, st.integers(0, 1000))
    def exact(words, seed):
        rng = np.random.default_rng(seed)
        matcher = quickly(made, Grammar("regex", "|".join(map(re.escape, words))))
        words = sorted({word.encode() for word in words})
        data = b""
        while True:
            mask = matcher.mask()
            for token in range(made.vocab_size):
                if token in special or token >= tokenizer.vocab_size:
                    may = token in made.end_ids and data in words
                else:
                    longer = data + tokenizer.spelled[token]
                    may = any(word.startswith(longer) for word in words)
                assert mask[token] == may, (data, token)
            if data:  # before the first token the library does not look
                assert matcher.done == ([w for w in words if w.startswith(data)] == [data])
            mask[made.end_ids] = False
            if not mask.any():
                break
            token = int(rng.choice(np.flatnonzero(mask)))
            matcher.advance(token)
            data += tokenizer.spelled[token]

    exact()


REGEX = [
    r"(the )*a",
    r"[a-z]+@[a-z]+\.(com|org)",
    r"\d{4}-\d\d",
    r"é*🙂|東京?",
    r"^(a|b)*$",
    r"a/b\n\"\\",
    r"[^\x00-\x7f]{1,3}",
]


@pytest.mark.parametrize("pattern", REGEX)
def test_answers_match_the_expression(kind, pattern):
    tokenizer, made = toy(kind), constrainer(kind)
    for seed in range(4):
        matcher = quickly(made, Grammar("regex", pattern))
        text = walk(made, tokenizer, matcher, np.random.default_rng(seed)).decode()
        assert re.fullmatch(pattern, text), text


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "the \"x\""]}, "maxItems": 3},
        "boss": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


def is_person(value):
    return (
        isinstance(value, dict)
        and {"name", "age"} <= set(value) <= set(PERSON["properties"])
        and isinstance(value["name"], str)
        and len(value["name"]) <= 12
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and len(value.get("tags", [])) <= 3
        and all(tag in PERSON["properties"]["tags"]["items"]["enum"] for tag in value.get("tags", []))
        and (value.get("boss") is None or is_person(value["boss"]))
    )


@pytest.mark.parametrize(
    ("grammar", "good"),
    [
        (Grammar("json"), lambda value: isinstance(value, dict)),
        (Grammar("json_schema", json.dumps(PERSON)), is_person),
        (Grammar("json_schema", '{"type": "array", "items": {"type": "number"}}'),
         lambda value: all(type(item) in (int, float) for item in value)),
        (Grammar("lark", 'start: "{\\"a\\": " X "}"\nX: /[1-9]{1,3}/'), lambda value: 0 < value["a"] < 1000),
    ],
    ids=["json", "person", "numbers", "lark"],
)  # fmt: skip
def test_answers_are_json_of_the_schema(kind, grammar, good):
    tokenizer, made = toy(kind), constrainer(kind)
    for seed in range(8):
        text = walk(made, tokenizer, quickly(made, grammar), np.random.default_rng(seed)).decode()
        assert good(json.loads(text)), text


def test_white_space_in_json_ends():
    made = constrainer("byte")
    matcher = quickly(made, Grammar("json"))
    matcher.advance(ord("{"))
    n = 0
    while matcher.mask()[ord(" ")]:
        matcher.advance(ord(" "))
        n += 1
    assert n == 64 and matcher.mask()[ord('"')]


def test_tokens_that_do_not_match_are_refused_and_change_nothing():
    made = constrainer("byte")
    end = made.end_ids[0]
    matcher = quickly(made, Grammar("regex", "ab?"))
    for wrong in (ord("b"), end, 256, 258, made.vocab_size - 1, made.vocab_size, -1):
        with pytest.raises(UserError, match=f"The token {wrong} does not match"):
            matcher.advance(wrong)
    matcher.advance(ord("a"))
    assert np.flatnonzero(matcher.mask()).tolist() == [ord("b"), *made.end_ids] and not matcher.done
    matcher.advance(ord("b"))
    assert np.flatnonzero(matcher.mask()).tolist() == made.end_ids and matcher.done
    matcher.advance(made.end_ids[1])
    with pytest.raises(UserError, match="does not match"):
        matcher.advance(end)


def test_a_draft_is_accepted_as_far_as_it_matches(kind):
    tokenizer, made = toy(kind), constrainer(kind)
    end = made.end_ids[1]

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 1000), st.lists(st.integers(-1, made.vocab_size), max_size=4))
    def as_far(seed, tail):
        rng = np.random.default_rng(seed)
        matcher = quickly(made, Grammar("regex", r"(the |a)*\."))
        draft = []
        ahead = matcher.copy()
        for _ in range(rng.integers(5)):
            mask = ahead.mask()
            draft.append(int(rng.choice(np.flatnonzero(mask))))
            ahead.advance(draft[-1])
            if draft[-1] in made.end_ids:
                break
        masks = matcher.masks([*draft, *tail])
        assert len(masks) > len(draft)
        for token, mask in zip([*draft, *tail], masks, strict=False):
            assert (mask == matcher.mask()).all()
            if mask[token] if 0 <= token < made.vocab_size else False:
                matcher.advance(token)
            else:
                break
        assert (masks[-1] == matcher.mask()).all()

    as_far()
    matcher = quickly(made, Grammar("regex", "a"))
    token = next(i for i, data in tokenizer.spelled.items() if data == b"a")
    assert len(matcher.masks([token, end, end])) == 3 and len(matcher.masks([end])) == 1


def test_copies_go_their_own_ways():
    made = constrainer("byte")
    first = quickly(made, Grammar("regex", "ab|cd"))
    second = first.copy()
    first.advance(ord("a"))
    second.advance(ord("c"))
    again = quickly(made, Grammar("regex", "ab|cd"))
    allowed = [np.flatnonzero(matcher.mask()).tolist() for matcher in (first, second, again)]
    assert allowed == [[ord("b")], [ord("d")], [ord("a"), ord("c")]]


def test_a_text_the_tokenizer_cannot_spell_is_reported():
    tokenizer = Chars("ab", ("<end>",), "<end>")
    made = Constrainer(tokenizer, 3, [2])
    matcher = quickly(made, Grammar("regex", "axb|b"))
    assert matcher.mask().tolist() == [True, True, False]
    matcher.advance(0)
    assert not matcher.mask().any() and not matcher.done and matcher.error == "no token can follow"


def test_without_end_tokens_an_answer_is_done():
    made = Constrainer(toy("byte"), 300, [])
    matcher = quickly(made, Grammar("regex", "a"))
    matcher.advance(ord("a"))
    assert matcher.done and not matcher.mask().any() and matcher.error is None


def chain(n):
    rules = {str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(n)}
    return json.dumps({"$ref": "#/$defs/0", "$defs": {**rules, str(n): {"type": "null"}}})


def all_of(n):
    return json.dumps({"type": "string", "allOf": [{"pattern": f".*{i}.*"} for i in range(n)]})


RULES = "\n".join(f'r{i}: "a" r{i + 1}' for i in range(9000))
BOMBS = {
    "nested": (Grammar("regex", "(" * 60_000 + "a" + ")" * 60_000), "invalid regex"),
    "deep lark": (Grammar("lark", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000), "too deeply nested"),
    "deep schema": (Grammar("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000), "recursion"),
    "chain of rules": (Grammar("lark", f'start: r0\n{RULES}\nr9000: "b"'), "nested too deep"),
    "chain of refs": (Grammar("json_schema", chain(3000)), "nested too deep"),
    "all patterns": (Grammar("json_schema", all_of(30)), "not compiled after"),
    "megabyte": (
        Grammar("json_schema", json.dumps({"enum": [f"number {i}" for i in range(60_000)]})),
        "at most",
    ),
    "alternatives": (Grammar("lark", "start: " + " | ".join(f'"{i}"' for i in range(100_000))), "at most"),
    "itself": (Grammar("json_schema", '{"$ref": "#"}'), "no token can follow"),
    "endless": (Grammar("lark", "start: start"), "no token can follow"),
    "nothing": (Grammar("regex", r"[^\s\S]"), "no token can follow"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time(name, monkeypatch):
    monkeypatch.setattr(grammar_trial, "SECONDS", 3.0)
    started = time.monotonic()
    grammar, reason = BOMBS[name]
    with pytest.raises(UserError, match=reason):
        constrainer("byte").compile(grammar)
    assert time.monotonic() - started < 6


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "a{1,1000000}", "((a{1,1000}){1,1000}){1,1000}", "(a|b)*a(a|b){30}", "(.*a){50}.{200}b"],
)
def test_bombs_of_other_engines_are_none(pattern):
    made = constrainer("bpe")
    started = time.monotonic()
    matcher = made.compile(Grammar("regex", pattern))
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = matcher.mask()
        mask[made.end_ids] = False
        if not mask.any():
            assert matcher.done or matcher.error
            break
        matcher.advance(int(rng.choice(np.flatnonzero(mask))))
    assert time.monotonic() - started < grammar_trial.SECONDS


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("regex", "foo**("), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("lark", 'start: "a" b'), 'unknown name: "b"'),
        (Grammar("lark", ""), "start"),
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", "[1]"), "an object"),
        (Grammar("json_schema", '{"items": {"uniqueItems": true, "x-guidance": {"lenient": true}}}'), "uniqueItems"),
        (Grammar("json_schema", '{"uniqueItems": true, "x-guidance": {"lenient": true}}'), "uniqueItems"),
        (Grammar("json_schema", '{"$ref": "http://127.0.0.1/x"}'), "127.0.0.1"),
        (Grammar("json_schema", '{"type": "string", "minLength": 5, "maxLength": 3}'), "minLength"),
        (Grammar("regex", "\ud800"), "lone surrogate"),
        (Grammar("regex", "a" * (MOST_BYTES + 1)), "at most"),
    ],
)  # fmt: skip
def test_what_does_not_compile_is_refused_with_the_reason(grammar, reason):
    with pytest.raises(UserError, match=re.escape(reason)) as raised:
        constrainer("byte").compile(grammar)
    assert len(str(raised.value)) < 500


def test_a_trial_that_says_nothing_is_a_refusal(monkeypatch, tmp_path):
    broken = tmp_path / "trial.py"
    monkeypatch.setattr(grammar_trial, "__file__", str(broken))
    broken.write_text("import absent")
    assert "No module named 'absent'" in grammar_trial.refusal('start: "a"')
    broken.write_text("")
    assert "its trial failed" in grammar_trial.refusal('start: "a"')


def test_a_grammar_is_compiled_once():
    made = Constrainer(toy("byte"), 300, [256])
    made.compile(Grammar("json"))
    started = time.monotonic()
    for _ in range(100):
        made.compile(Grammar("json"))
    assert time.monotonic() - started < 0.5  # no process was started


def test_the_missing_library_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'min_llm\[serve\]'"):
        Constrainer(toy("byte"), 300, [256]).compile(Grammar("json"))
