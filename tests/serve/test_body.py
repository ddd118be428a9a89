"""Bodies of strangers."""

import pytest

from min_llm.serve.body import Fields, parse_object
from min_llm.serve.errors import Refused

BAD = {
    "not JSON": b"{",
    "truncated": b'{"prompt": "hel',
    "empty": b"",
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "overflow": b'{"temperature": 1e999}',
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "rather deep": b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}",
    "twice": b'{"prompt": "a", "prompt": "b"}',
    "twice inside": b'{"a": [{"b": 1, "b": 2}]}',
    "huge integer": b'{"seed": ' + b"9" * 10_000 + b"}",
    "lone surrogate": b'{"prompt": "a\\ud800"}',
    "lone surrogate as a name": b'{"\\udc00": 1}',
    "no UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_refused(data):
    with pytest.raises(Refused) as caught:
        parse_object(data)
    assert caught.value.status == 400 and len(caught.value.message) < 300


def test_a_good_body_is_read():
    data = '{"prompt": "naïve \\ud83d\\ude00", "a": [[1, 2.5, true, null]]}'.encode()
    assert parse_object(data) == {"prompt": "naïve 😀", "a": [[1, 2.5, True, None]]}


@pytest.mark.parametrize(
    ("read", "value"),
    [
        ("integer", True), ("integer", 1.0), ("integer", "1"), ("number", False), ("number", "1"),
        ("number", 10**400), ("flag", 1), ("flag", "true"), ("text", 1), ("text", ["a"]), ("texts", [1]),
        ("texts", ["a", None]), ("texts", {}), ("object", []), ("list", "ab"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_with_the_name_of_the_field(read, value):
    with pytest.raises(Refused) as caught:
        default = (0.0,) if read == "number" else ()
        getattr(Fields({"x": value}, "outer."), read)("x", *default)
    assert caught.value.param == "outer.x" and "outer.x" in caught.value.message


def test_null_is_no_field():
    fields = Fields({"x": None})
    assert "x" not in fields and fields.integer("x", 3) == 3 and fields.object("x") is None
    assert fields.texts("x") == () and fields.flag("x") is False
