"""Tool calls in what a Llama 3 says: one state machine, whether the answer is streamed or whole.

It knows the forms in which the models of the family call (llama-models, llama3/prompt_templates):

    {"name": "f", "parameters": {"a": 1}}    or "arguments"; several with ";" or on lines of their own, or in a list
    <function=f>{"a": 1}</function>
    f.call(a=1)                              the built-in brave_search and wolfram_alpha
    [f(a=1), g(b="x")]                       Llama 3.2

each of them with or without <|python_tag|> before it. `<function=` is looked for anywhere, the others where an answer
or a line begins, behind another call and behind the tag. Only calls of known tools are calls; whatever else looks like
one is text, and comes out as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Generator
from typing import Any

from min_llm.serve.arguments import Arguments, Broken

TAG = "<|python_tag|>"
_FUNCTION = "<function="
_END = "</function>"
_ARGUMENTS = ("parameters", "arguments")
_OTHERS = ("type", "id")
_BETWEEN = "; \t\r\n"  # what stands between calls

# A part of the machine: takes a character at a time, returns behind the last of what it reads, raises Broken with the
# first that does not belong to it.
_Reader = Generator[None, str, None]


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of the answer's content."""

    text: str


@dataclasses.dataclass(frozen=True)
class CallPart:
    """A piece of the call number `index`: its name with the first, then more of its arguments' JSON."""

    index: int
    name: str | None
    arguments: str


@dataclasses.dataclass(frozen=True)
class Call:
    """arguments: JSON text of an object."""

    name: str
    arguments: str


Delta = Text | CallPart


def parse(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """The content and the calls of a whole answer."""
    parser = ToolParser(names)
    return gather([*parser.feed(text), *parser.finish()])


def gather(deltas: Collection[Delta]) -> tuple[str, list[Call]]:
    """The content and the calls that a stream consists of."""
    content = "".join(delta.text for delta in deltas if isinstance(delta, Text))
    calls: list[Call] = []
    for delta in deltas:
        if isinstance(delta, CallPart):
            if delta.name is not None:
                calls.append(Call(delta.name, ""))
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + delta.arguments)
    return content, calls


class ToolParser:
    """Tells calls of the tools `names` from text, in any pieces: what `feed` and `finish` return, gathered, depends on
    the answer alone.

    Text that may become a call is held back until that is certain: when the name is known and the arguments have begun.
    From then on their JSON is given out as it comes. A call that the model or the end of the answer cuts short keeps
    the arguments so far, which are no JSON then, so nobody takes a part for the whole; a call whose arguments are whole
    stands, even if what closes it is missing. White space around calls is no content.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = tuple(names)
        self._deltas: list[Delta] = []
        self._calls = 0
        self._space = ""  # white space that is content only if text follows
        self._held = ""  # what the reader took and did not give out
        self._reader: _Reader | None = None
        self._in_arguments = False
        self._may_call = True  # whether a call may begin here
        self._behind_call = False

    def feed(self, text: str) -> list[Delta]:
        """What is certain with this text."""
        for char in text:
            self._take(char)
        return self._given_out()

    def finish(self) -> list[Delta]:
        """What was held back, when no text follows."""
        left = self._space + self._held
        if not self._in_arguments and not (self._behind_call and not left.strip(_BETWEEN)):
            self._text(left)
        self._space = self._held = ""
        self._reader = None
        return self._given_out()

    def _given_out(self) -> list[Delta]:
        """What was found since the last time, neighbours of one kind joined."""
        deltas, self._deltas = self._deltas, []
        joined: list[Delta] = []
        for index, group in itertools.groupby(deltas, lambda delta: getattr(delta, "index", None)):
            pieces: list[Any] = list(group)
            if index is None:
                joined.append(Text("".join(piece.text for piece in pieces)))
            else:
                joined.append(CallPart(index, pieces[0].name, "".join(piece.arguments for piece in pieces)))
        return joined

    def _take(self, char: str) -> None:
        if self._reader is None:
            self._look(char)
            return
        self._held += char
        try:
            self._reader.send(char)
        except StopIteration:
            self._held, self._reader = "", None
        except Broken:
            held, self._held, self._reader = self._held[:-1], "", None
            self._in_arguments = False
            if held.strip():
                self._text(self._space + held)
            else:
                self._white(held)
            self._look(char)

    def _look(self, char: str) -> None:
        """Take a character that no reader takes; a call may begin with it."""
        if char.isspace() or (char == ";" and self._behind_call):
            self._white(char)
            return
        self._reader = self._reader_from(char)
        if self._reader is None:
            self._text(self._space + char)
        else:
            self._held = char
            next(self._reader)

    def _reader_from(self, char: str) -> _Reader | None:
        if char == "<":
            return self._tag_or_function()
        if self._may_call and char == "{":
            return self._object()
        if self._may_call and char == "[":
            return self._list()
        if self._may_call and any(name.startswith(char) for name in self._names):
            return self._built_in(char)
        return None

    def _white(self, space: str) -> None:
        self._space += space
        self._may_call = self._may_call or "\n" in space

    def _text(self, text: str) -> None:
        if text:
            self._deltas.append(Text(text))
            self._space = ""
            self._behind_call = False
            self._may_call = "\n" in text and not text.rpartition("\n")[2].strip()

    def _part(self, name: str | None, arguments: str, whole: bool) -> None:
        """Give out a part of a call, which begins if it has a name: what was held back is now part of it."""
        self._calls += name is not None
        self._deltas.append(CallPart(self._calls - 1, name, arguments))
        self._space = self._held = ""
        self._in_arguments = not whole
        self._behind_call = self._may_call = whole

    # The readers

    def _tag_or_function(self) -> _Reader:
        text = "<"
        while text not in (TAG, _FUNCTION):
            text += yield
            if not TAG.startswith(text) and not _FUNCTION.startswith(text):
                raise Broken
        if text == TAG:
            self._may_call = True
            return
        name = yield from self._name(">")
        yield from _expect("{")
        yield from self._arguments("{", name)
        yield from _expect(_END)

    def _object(self) -> _Reader:
        """Behind the brace of an object with a name and arguments."""
        name: str | None = None
        arguments: str | None = None
        while True:
            quote = yield from _next_char()
            if quote not in ("'", '"'):
                raise Broken
            key = yield from _until(quote)
            yield from _expect(":")
            first = yield from _next_char()
            if key in _ARGUMENTS and arguments is None and first == "{":
                arguments = yield from self._arguments(first, name)
            elif key == "name" and name is None and first in ("'", '"'):
                name = yield from self._name(first)
                if arguments is not None:
                    self._part(name, arguments, whole=True)
            elif key in _OTHERS and first in ("'", '"'):
                yield from _until(first)
            else:
                raise Broken
            follows = yield from _next_char()
            if follows == "}" and name is not None and arguments is not None:
                return
            if follows != ",":
                raise Broken

    def _list(self) -> _Reader:
        """Behind the bracket of a list of calls, Python's or objects."""
        while True:
            first = yield from _next_char()
            if first == "{":
                yield from self._object()
            else:
                name = yield from self._name("(", first)
                yield from self._arguments("(", name)
            follows = yield from _next_char()
            if follows == "]":
                return
            if follows != ",":
                raise Broken

    def _built_in(self, first: str) -> _Reader:
        called = yield from self._name("(", first, ".call")
        yield from self._arguments("(", called)

    def _name(self, end: str, text: str = "", behind: str = "") -> Generator[None, str, str]:
        """The name of a tool, of which `text` was read, and what comes `behind` it, up to the character `end`."""
        names = {name + behind + end: name for name in self._names}
        while text not in names:
            if not any(name.startswith(text) for name in names):
                raise Broken
            text += yield
        return names[text]

    def _arguments(self, opening: str, name: str | None) -> Generator[None, str, str]:
        """Arguments, and their JSON. It is given out as it comes, from the second part on, if the name is known."""
        scanner = Arguments()
        parts = [scanner.feed(opening)]
        begun = 0
        while not scanner.done:
            part = scanner.feed((yield))
            if not part:
                continue
            parts.append(part)
            if name is not None:
                self._part(None if begun else name, "".join(parts[begun:]), scanner.done)
                begun = len(parts)
        return "".join(parts)


def _next_char() -> Generator[None, str, str]:
    """The next character that is no white space."""
    while (char := (yield)).isspace():
        pass
    return char


def _expect(text: str) -> _Reader:
    """This text, white space before it aside."""
    char = yield from _next_char()
    for place, wanted in enumerate(text):
        if (char if place == 0 else (yield)) != wanted:
            raise Broken


def _until(quote: str) -> Generator[None, str, str]:
    """What a string without escapes holds, up to its closing quote."""
    text = ""
    while (char := (yield)) != quote:
        if char in "\\\n":
            raise Broken
        text += char
    return text
