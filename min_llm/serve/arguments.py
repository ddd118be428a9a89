"""Arguments of a tool call as a model writes them, to strict JSON, one character at a time."""

from __future__ import annotations

import json
import re
import string
import sys
from collections.abc import Callable

MOST_DEEP = 200
_SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Broken(Exception):
    """The text is not what is being read."""


class Arguments:
    """Reads an object `{"a": 1}`, or the keyword arguments `(a=1)` of a Python call, and writes the object.

    `feed` gives the part of the JSON that is certain with a character, spaced as by `json.dumps`; all parts together
    are strict JSON when `done`, and no JSON at all before. Beside JSON it reads what models write for it: Python's
    True, False, None, quotes and escapes, control characters inside strings, backslashes that escape nothing, a comma
    behind the last item. Raises Broken for other text, and behind the end.
    """

    def __init__(self) -> None:
        self.done = False
        self._open: list[str] = []
        self._owed = ""  # the comma that comes before the next item
        self._word = ""
        self._quote = ""
        self._is_key = False
        self._state: Callable[[str], str] = self._begin

    def feed(self, char: str) -> str:
        return self._state(char)

    def _begin(self, char: str) -> str:
        return self._enter(char) if char in ("{", "(") else self._end(char)

    def _enter(self, char: str) -> str:
        if len(self._open) == MOST_DEEP:
            raise Broken
        self._open.append(char)
        self._state = self._item
        return self._paid("[" if char == "[" else "{")

    def _paid(self, text: str) -> str:
        owed, self._owed = self._owed, ""
        return owed + text

    def _item(self, char: str) -> str:
        """The beginning of an item, or the end of all."""
        if char in _SPACE:
            return ""
        inside = self._open[-1]
        if char == _CLOSING[inside]:
            return self._close()
        self._is_key = inside != "["
        if inside == "[":
            return self._value(char)
        if inside == "{" and char in "\"'":
            return self._open_string(char)
        if inside == "(" and (char.isalpha() or char == "_"):
            self._word, self._state = char, self._keyword
            return ""
        raise Broken

    def _close(self) -> str:
        self._owed = ""
        closed = "]" if self._open.pop() == "[" else "}"
        self.done = not self._open
        self._state = self._end if self.done else self._behind
        return closed

    def _end(self, char: str) -> str:
        raise Broken

    def _behind(self, char: str) -> str:
        """What follows an item."""
        if char in _SPACE:
            return ""
        if char == ",":
            self._owed, self._state = ", ", self._item
            return ""
        if char == _CLOSING[self._open[-1]]:
            return self._close()
        raise Broken

    def _value(self, char: str) -> str:
        if char in _SPACE:
            return ""
        self._is_key = False
        if char in "{[":
            return self._enter(char)
        if char in "\"'":
            return self._open_string(char)
        if char.isalnum() or char == "-":
            self._word, self._state = char, self._in_word
            return ""
        raise Broken

    def _in_word(self, char: str) -> str:
        if char.isalnum() or char in "+-.":
            self._word += char
            return ""
        word = _WORDS.get(self._word) or (self._word if _NUMBER.fullmatch(self._word) else None)
        if word is None:
            raise Broken
        self._state = self._behind
        return self._paid(word) + self._behind(char)

    def _open_string(self, quote: str) -> str:
        self._quote, self._state = quote, self._in_string
        return self._paid('"')

    def _in_string(self, char: str) -> str:
        if char == self._quote:
            self._state = self._colon if self._is_key else self._behind
            return '"'
        if char == "\\":
            self._state = self._escape
            return ""
        return json.dumps(char)[1:-1] if char == '"' or char < " " else char

    def _escape(self, char: str) -> str:
        self._state = self._in_string
        if char in _HEX_DIGITS:
            self._word, self._state = char, self._hex
            return ""
        if char == "'":
            return char
        return f"\\{char}" if char in '"\\/bfnrt' else "\\\\" + self._in_string(char)

    def _hex(self, char: str) -> str:
        kind, digits = self._word[0], self._word[1:] + char
        if char not in string.hexdigits or (len(digits) == 8 and int(digits, 16) > sys.maxunicode):
            self._state = self._in_string
            return f"\\\\{self._word}" + self._in_string(char)
        self._word += char
        if len(digits) < _HEX_DIGITS[kind]:
            return ""
        self._state = self._in_string
        return json.dumps(chr(int(digits, 16)))[1:-1]

    def _colon(self, char: str) -> str:
        if char in _SPACE:
            return ""
        if char != ":":
            raise Broken
        self._state = self._value
        return ": "

    def _keyword(self, char: str) -> str:
        if char.isalnum() or char == "_":
            self._word += char
            return ""
        self._state = self._equals
        return self._equals(char)

    def _equals(self, char: str) -> str:
        if char in _SPACE:
            return ""
        if char != "=":
            raise Broken
        self._state = self._value
        return self._paid(f"{json.dumps(self._word, ensure_ascii=False)}: ")
