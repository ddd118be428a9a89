"""Calls are told from text the same way whether the answer comes whole or in pieces, and their arguments are JSON."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.infer import grammar_trial
from min_llm.infer.constrain import Constrainer
from min_llm.serve.arguments import Arguments, Broken
from min_llm.serve.tool_parser import TAG, Call, CallPart, Text, ToolParser, gather, parse
from min_llm.serve.tools import grammar_for, messages_for_template, tool_names
from min_llm.tokenizers.chat import ChatTemplate
from tests.toy_tokenizers import toy

NAMES = ["get_weather", "f", "brave_search"]
LLAMA3 = (Path(__file__).parent.parent / "tokenizers" / "chats" / "llama3.jinja").read_text(encoding="utf-8")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=4)
keywords = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True), values, max_size=4)


def in_pieces(text, cuts):
    """All deltas of a text that comes in pieces."""
    parser, deltas, at = ToolParser(NAMES), [], 0
    for cut in [*sorted(cuts), len(text)]:
        deltas += parser.feed(text[at:cut])
        at = max(at, cut)
    return [*deltas, *parser.finish()]


def scan(text):
    arguments = Arguments()
    return "".join(map(arguments.feed, text)), arguments.done


def is_json(text):
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def as_keywords(arguments):
    return "(" + ", ".join(f"{name}={value!r}" for name, value in arguments.items()) + ")"


# Arguments


@settings(deadline=None)
@given(objects, st.booleans(), st.sampled_from([None, 0, 3]))
def test_json_stays_what_it_says(value, ascii_only, indent):
    written, done = scan(json.dumps(value, ensure_ascii=ascii_only, indent=indent))
    assert done and json.loads(written) == value
    if not ascii_only and indent is None:
        assert written == json.dumps(value, ensure_ascii=False)


@settings(deadline=None)
@given(keywords)
def test_python_s_literals_become_json(value):
    for text in (repr(value), as_keywords(value)):
        written, done = scan(text)
        assert done and json.loads(written) == value


@settings(deadline=None)
@given(objects, st.data())
def test_a_part_of_arguments_is_never_json(value, data):
    text = json.dumps(value)
    written, done = scan(text[: data.draw(st.integers(1, len(text) - 1))])
    assert not done and not is_json(written)


@settings(deadline=None)
@given(st.text(st.sampled_from("{}[](),:=\"'\\ua1-.etrufalsNo \n\x01é"), max_size=20))
def test_whatever_is_read_to_its_end_is_strict_json(text):
    for opening in "{(":
        try:
            written, done = scan(opening + text)
        except Broken:
            continue
        assert done == is_json(written)
        assert not done or isinstance(json.loads(written), dict)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": "x\ny\t\\d \\x41\\u00e9\\uZ\\q"}', r'{"a": "x\ny\t\\d A\u00e9\\uZ\\q"}'),
        ("{'a': 'it\\'s \"so\"', 'b': (1)}", None),
        ("{'a': 'it\\'s \"so\"'}", r'{"a": "it' "'" r's \"so\""}'),
        ('{"a": [1, 2, ], }', '{"a": [1, 2]}'),
        ("(a=True, b=[None, false], c=-1.5e3)", '{"a": true, "b": [null, false], "c": -1.5e3}'),
        ('{"a": 01}', None), ('{"a": NaN}', None), ('{"a": +1}', None), ('{"a" 1}', None), ('{,}', None),
        ('{"a": 1]', None), ("(1)", None), ("(a)", None), ("[1]", None), ('{"a": 1}}', None), ('{"a": [}', None),
        ('{"a": ' + "[" * 300, None),
    ],
)  # fmt: skip
def test_what_is_read_beside_json(text, written):
    if written is None:
        with pytest.raises(Broken):
            scan(text)
    else:
        assert scan(text) == (written, True) and is_json(written)


# Calls


def as_json(name, arguments, key="parameters"):
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


FORMS = [
    as_json,
    lambda name, arguments: as_json(name, arguments, "arguments"),
    lambda name, arguments: json.dumps({"type": "function", "name": name, "parameters": arguments}, indent=2),
    lambda name, arguments: json.dumps({"parameters": arguments, "type": "function", "name": name}),
    lambda name, arguments: TAG + as_json(name, arguments),
    lambda name, arguments: f"<function={name}>{json.dumps(arguments)}</function>",
    lambda name, arguments: f"{TAG}{name}.call{as_keywords(arguments)}",
    lambda name, arguments: f"[{name}{as_keywords(arguments)}]",
    lambda name, arguments: f"[ {name}{as_keywords(arguments)} , {as_json(name, arguments)} ]",
]
said = st.sampled_from(["", "I will look.\n\n", "One moment: {a} [b] <c>\n", "1 < 2 {\n"])
calls = st.lists(st.tuples(st.sampled_from(NAMES), keywords, st.sampled_from(FORMS)), min_size=1, max_size=3)


@settings(deadline=None)
@given(said, calls, st.sampled_from(["; ", "\n", ";", " "]), st.lists(st.integers(0, 400)))
def test_calls_of_every_form_are_found_in_any_pieces(before, calls, between, cuts):
    text = before + between.join(form(name, arguments) for name, arguments, form in calls)
    expected = [(name, arguments) for name, arguments, form in calls for _ in range(1 + (form is FORMS[-1]))]
    content, found = gather(in_pieces(text, [cut for cut in cuts if cut < len(text)]))
    assert content == before.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in found] == expected


FRAGMENTS = [
    '{"name": "f", "parameters": {', '"a": 1', "}}", '{"name": "g", "parameters": {}}', "}", "{", "[", "]", "; ", "\n",
    "<function=f>", "<function=", "</function>", TAG, "<|python", "f", "f(a=", "f.call(", "brave_search.call(query=",
    ")", '"x"', "'", ", ", '"name": "f"', '"parameters": ', '"type": "function"', "é", "True", "\\", " text ", "12",
]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join), st.data())
def test_pieces_do_not_matter(text, data):
    cuts = data.draw(st.lists(st.integers(0, len(text))))
    deltas = in_pieces(text, cuts)
    content, found = gather(deltas)
    assert (content, found) == parse(text, NAMES)
    assert all(delta.text if isinstance(delta, Text) else delta.arguments for delta in deltas)
    parts = [delta for delta in deltas if isinstance(delta, CallPart)]
    assert [part.index for part in parts if part.name is not None] == list(range(len(found)))
    assert [part.index for part in parts] == sorted(part.index for part in parts)
    for call in found:  # whole, or no JSON
        assert not is_json(call.arguments) or isinstance(json.loads(call.arguments), dict)
    if not found:
        assert content == text.replace(TAG, "")


@pytest.mark.parametrize(
    "text",
    [
        'The object {"name": "f", "parameters": {}} is a call, {"a": 1} is none.',
        '{"name": "Ada", "parameters": {"born": 1815}}',
        '{"name": "f"}', '{"name": "f", "parameters": []}',
        '{"parameters": {"a": 1}, "name": "g"}', '{"parameters": {"a": 1}}', '{"name": "f", "a": {}}',
        "[1, 2, 3]", "[f]", "[f(x)]", "[g(a=1)]", "f(a=1)", "f is a function.", "g.call(a=1)",
        "<function=g>{}</function>", "<function", "a < b; c <|", "[]", "{}", "", " \n ", "```json\n[1]\n```\n",
    ],
)  # fmt: skip
def test_text_is_never_swallowed(text):
    assert parse(text, NAMES) == (text, [])
    assert parse(text, []) == (text, [])


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        (f"{TAG}print(1)", "print(1)", []),
        ('{"name": "f", "parameters": {"a": {"b": "}\\"{;"}}}; ', "", [Call("f", '{"a": {"b": "}\\"{;"}}')]),
        ('brave_search.call(query="it\'s")', "", [Call("brave_search", '{"query": "it\'s"}')]),
        ("Now <function=f>{}</function> done.", "Now done.", [Call("f", "{}")]),
        ('```\n{"name": "f", "parameters": {}}\n```', "```\n```", [Call("f", "{}")]),
        ('{"name": "f", "parameters": {"a": 1}', "", [Call("f", '{"a": 1}')]),
        ('<function=f>{"a": 1}', "", [Call("f", '{"a": 1}')]),
        ('{"name": "f", "parameters": {"a": "Par', "", [Call("f", '{"a": "Par')]),
        ('{"name": "f", "parameters": {"a": 1, "b": 12', "", [Call("f", '{"a": 1, "b": ')]),
        ('{"name": "f", "parameters": {"a": oops}}', " oops}}", [Call("f", '{"a": ')]),
        ('{"parameters": {"a": 1}', '{"parameters": {"a": 1}', []),
    ],
)
def test_calls_among_text_and_calls_that_are_cut(text, content, found):
    assert parse(text, NAMES) == (content, found)


def test_arguments_come_as_they_are_written():
    parser = ToolParser(NAMES)
    assert parser.feed('{"name": "get_weather", "parameters": {') == []
    assert parser.feed('"city": "Zü') == [CallPart(0, "get_weather", '{"city": "Zü')]
    assert parser.feed('rich", "n": 1') == [CallPart(0, None, 'rich", "n": ')]
    assert parser.feed("2}") == [CallPart(0, None, "12}")]
    assert parser.feed('}; {"name": "f", "parameters": {}}') == [CallPart(1, "f", "{}")]
    assert parser.finish() == []


def test_text_is_held_back_only_while_it_may_become_a_call():
    parser = ToolParser(NAMES)
    given_out = [parser.feed(char) for char in "get <up"]
    assert given_out == [[], [], [], [Text("get")], [], [Text(" <u")], [Text("p")]]


@pytest.mark.parametrize(
    "text",
    ["A line.\n", "{\n", '{"parameters":\n', "<function=", "[f(", '{"name": "f", "parameters": {}}\n'],
)
def test_time_is_linear(text):
    def seconds(n):
        started = time.perf_counter()
        parse(text * n, NAMES)
        return (time.perf_counter() - started) / n

    n = 8000 // len(text)
    assert min(seconds(16 * n) for _ in range(2)) < 8 * min(seconds(n) for _ in range(3))


# What clients say about tools

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"$ref": "#/$defs/place"},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "default": {"$ref": "#/$defs/place"},
                "like": {"$ref": "#"},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
            "$defs": {"place": {"enum": ["Zürich", {"$ref": "#"}]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def is_weather(value):
    return (
        {"place", "days"} <= set(value) <= {"place", "days", "default", "like"}
        and value["place"] in ("Zürich", {"$ref": "#"})
        and 1 <= value["days"] <= 9
        and ("like" not in value or is_weather(value["like"]))
    )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_is_always_one_of_the_tools(choice, monkeypatch):
    pytest.importorskip("llguidance")
    monkeypatch.setattr(grammar_trial, "refusal", lambda lark: None)
    tokenizer = toy("bpe")
    constrainer = Constrainer(tokenizer, tokenizer.vocab_size, [tokenizer.eos])
    grammar = grammar_for([WEATHER, CLOCK], choice)
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        matcher = constrainer.compile(grammar)
        ids = []
        while not matcher.done:
            allowed = np.flatnonzero(matcher.mask())
            closing = [i for i in allowed if tokenizer.spelled[i].startswith(b"}")]
            ids.append(int(rng.choice(closing or allowed)))
            matcher.advance(ids[-1])
        content, [call] = parse(
            tokenizer.decode([i for i in ids if i != tokenizer.eos]), ["get_weather", "clock"]
        )
        assert content == ""
        value = json.loads(call.arguments)
        assert is_weather(value) if call.name == "get_weather" else value == {}
        seen.add(call.name)
    assert seen == ({"get_weather", "clock"} if choice == "required" else {"get_weather"})


def test_no_call_is_required():
    assert grammar_for([WEATHER], "auto") is None and grammar_for([WEATHER], "none") is None


@pytest.mark.parametrize(
    ("tools", "choice", "sentence"),
    [
        ({}, "auto", "must be a list"),
        ([CLOCK] * 200, "auto", "at most 128"),
        ([CLOCK, CLOCK], "auto", "'clock' twice"),
        ([{"type": "function"}], "auto", "Tool 1 must be of the form"),
        ([{"type": "function", "function": {"name": "a b"}}], "auto", "letters, digits"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}], "auto", "of an object"),
        ([CLOCK], "maybe", "tool_choice must be"),
        ([CLOCK], {"type": "function", "function": {}}, "tool_choice must be"),
        ([CLOCK], {"type": "function", "function": {"name": "f"}}, "asks for 'f', but the tools are clock"),
        ([], "required", "asks for 'a tool', but the tools are none"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_sentence(tools, choice, sentence):
    with pytest.raises(UserError, match=sentence):
        grammar_for(tools, choice)


def test_parameters_nested_too_deep_are_a_sentence():
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}
    with pytest.raises(UserError, match="too deep"):
        grammar_for([tool], "required")


def test_the_template_shows_tools_and_calls_as_the_parser_reads_them():
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"place": "Zürich"}'},
    }
    messages = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    template = ChatTemplate(LLAMA3, "", "")
    text = template.render(messages_for_template(messages), tools=[WEATHER], date_string="now")
    assert (
        '"description": "The weather of a place."' in text
        and "ipython<|end_header_id|>\n\nrain<|eot_id|>" in text
    )
    answer = text.split("assistant<|end_header_id|>\n\n")[1].split("<|eot_id|>")[0]
    assert parse(answer, tool_names([WEATHER])) == ("", [Call("get_weather", '{"place": "Zürich"}')])
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"place": "Zürich"}'


@pytest.mark.parametrize("arguments", ["{", "[1]", 7, None])
def test_arguments_that_are_no_object_are_refused(arguments):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    with pytest.raises(UserError, match="arguments of the call of 'f' must be"):
        messages_for_template([message])
