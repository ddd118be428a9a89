"""Chat templates: messages to the text, and to the ids, that a model was trained to answer.

A template is a Jinja program that comes with the weights (chat_template.jinja, `chat_template` in
tokenizer_config.json, `tokenizer.chat_template` in a GGUF file). It is rendered as Hugging Face's transformers does it
(utils/chat_template_utils.py), in a sandbox, for it is somebody else's program.

A template mixes its own special tokens with text of strangers. `encode_chat` keeps the two apart: a message that
spells "<|im_end|>" ends nothing.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

from min_llm.config import UserError
from min_llm.tokenizers import base
from min_llm.tokenizers.base import Tokenizer

Message = Mapping[str, Any]
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """The source of a template, and the tokens it knows as `bos_token` and `eos_token`.

    Raises UserError with the line for a source that is no Jinja template.
    """

    source: str
    bos: str | None = None
    eos: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise UserError(f"A chat template must be text, got {type(self.source).__name__}.")
        try:
            _compiled(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"The chat template has an error in line {error.lineno}: {error.message}"
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The text of a chat.

        messages: dicts with `role` and `content`, a str or a list of `{"type": "text", "text": …}` parts (joined by
        newlines where the template knows no parts); an assistant's `tool_calls` may stand for its content.
        tools: JSON schemas of functions. extra: more names for the template (`enable_thinking=False`).
        Raises UserError for messages that make no sense and, with its words, where the template refuses them.
        """
        messages = _checked(messages, parts="text" in _names(self.source))
        given = _plain({"tools": None if tools is None else list(tools), **extra}, "The template's arguments")
        return self._render(
            messages, {**given, "add_generation_prompt": add_generation_prompt}, datetime.datetime.now()
        )

    def _render(self, messages: Any, given: Mapping[str, Any], now: datetime.datetime) -> str:
        tokens = {"bos_token": self.bos, "eos_token": self.eos}
        names: dict[str, Any] = {name: token for name, token in tokens.items() if token is not None}
        names |= {"documents": None, "strftime_now": now.strftime, **given}
        try:
            return _compiled(self.source).render({**names, "messages": messages})
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template refuses this chat: {error.message or error}") from error
        except Exception as error:  # a program of somebody else: it can raise anything
            raise UserError(
                f"The chat template fails on this chat ({type(error).__name__}: {error}); does it expect other "
                "roles, or fields that a message lacks?"
            ) from error


def from_folder(folder: str | Path) -> ChatTemplate | None:
    """The template of a model's folder: chat_template.jinja, else the one in tokenizer_config.json. None: it is a base
    model, which cannot chat."""
    folder = Path(folder).expanduser()
    settings = folder / "tokenizer_config.json"
    config = base.read_json(settings) if settings.is_file() else {}
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'tokenizer_config.json'} must hold a JSON object.")
    file, source = folder / "chat_template.jinja", config.get("chat_template")
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    elif isinstance(source, list):  # several named ones: tools, rag, …
        source = next((named["template"] for named in source if named.get("name") == "default"), None)
    if source is None:
        return None
    tokens = [config.get(key) for key in ("bos_token", "eos_token")]
    bos, eos = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    return ChatTemplate(source, bos, eos)


def from_gguf(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The template inside a GGUF file, from its metadata; None: it is a base model, which cannot chat."""
    source, tokens = metadata.get("tokenizer.chat_template"), metadata["tokenizer.ggml.tokens"]
    if source is None:
        return None
    ids = [metadata.get(f"tokenizer.ggml.{what}_token_id") for what in ("bos", "eos")]
    return ChatTemplate(source, *(None if i is None else str(tokens[int(i)]) for i in ids))


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> list[int]:
    """Ids of a chat: special tokens that the template writes are special, those in anyone's text are text.

    The ids are those of the rendered text as a whole (no border between template and message that the model has
    not seen in training), and only spelled special tokens are told apart. A BOS is there if the template writes one;
    none is added. Raises UserError as `render`, and where the template changes text that spells a special token so
    much that it cannot be found again.
    """
    messages = _checked(messages, parts="text" in _names(template.source))
    given = _plain({"tools": None if tools is None else list(tools), **extra}, "The template's arguments")
    now = datetime.datetime.now()  # all renderings tell the same time

    def render(messages: Any, given: Mapping[str, Any]) -> str:
        return template._render(messages, {**given, "add_generation_prompt": add_generation_prompt}, now)

    text = render(messages, given)
    special = _special_pattern(tokenizer)
    if special is None:
        return tokenizer.encode(text)
    found = [match.span() for match in special.finditer(text)]
    for whole in (True, False):
        spans = _user_spans(text, messages, given, render, special, whole)
        if spans is not None:
            break
    else:
        spelled = special.search(json.dumps([messages, given], ensure_ascii=False))
        raise UserError(
            f"The chat contains {f'the text {spelled[0]!r}' if spelled else 'text'} that is a special token of this "
            "model, and the chat template changes that text; take it out."
        )
    written = list(_template_special(text, spans, special))
    if written == found:  # nobody spelled one: the tokenizer's own way, spaces around special tokens included
        return tokenizer.encode(text, allow_special=True)
    ids: list[int] = []
    done = 0
    for start, end in [*written, (len(text), len(text))]:
        ids += tokenizer.encode(text[done:start]) if done < start else []
        ids += [tokenizer.special[text[start:end]]] if start < end else []
        done = end
    return ids


# Who wrote what


def _user_spans(
    text: str,
    messages: Any,
    given: Any,
    render: Callable[[Any, Any], str],
    special: re.Pattern[str],
    whole: bool,
) -> Spans | None:
    """Where users' strings lie in the rendered text; None if the template changes them too much to tell.

    The chat is rendered once more with one private-use character for each string: of a message's content all but the
    space around it (which templates strip), or only its special tokens (`whole` False: for templates that look
    inside); of other strings (roles, tool calls, tools) their special tokens. With the strings put back, the result
    must be the text itself, so a template that branches on, escapes or shortens them is found out.
    """
    letters = _unused_letters(text + json.dumps([messages, given], ensure_ascii=False))
    stands_for: dict[str, str] = {}

    def hide(string: str) -> str:
        letter = next(letters)
        stands_for[letter] = string
        return letter

    def mark(value: Any, content: bool = False) -> Any:
        if isinstance(value, str):
            if content and whole and value.strip():
                core = value.strip()
                start = value.index(core)
                return value[:start] + hide(core) + value[start + len(core) :]
            return special.sub(lambda match: hide(match[0]), value)
        if isinstance(value, dict):
            return {mark(key): mark(item, content and key == "text") for key, item in value.items()}
        return [mark(item, content) for item in value] if isinstance(value, list) else value

    marked = [
        {mark(key): mark(value, content=key == "content") for key, value in message.items()}
        for message in messages
    ]
    try:
        hidden = render(marked, mark(given))
    except UserError:  # the template looks inside: it took the real strings
        return None
    spans: Spans = []
    at = 0
    for part in re.split("([" + "".join(stands_for) + "])", hidden) if stands_for else [hidden]:
        string = stands_for.get(part, part)
        if not text.startswith(string, at):
            return None
        if part in stands_for:
            spans.append((at, at + len(string)))
        at += len(string)
    return spans if at == len(text) else None


def _unused_letters(text: str) -> Iterator[str]:
    """Private-use characters (planes 15 and 16) that a text does not contain."""
    used = set(text)
    return (
        chr(code) for code in range(0xF0000, 0x10FFFE) if code & 0xFFFE != 0xFFFE and chr(code) not in used
    )


def _template_special(text: str, users: Spans, special: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Spans of the special tokens that lie between what users wrote."""
    done = 0
    for start, end in [*users, (len(text), len(text))]:
        yield from (match.span() for match in special.finditer(text, done, start))
        done = end


def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


# Messages


def _checked(messages: Any, parts: bool) -> list[dict[str, Any]]:
    """The messages as plain dicts without fields that are None; `parts` leaves lists of text parts as they are."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UserError(f"A chat must be a non-empty list of messages, got {_short(messages)}.")
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise UserError(
                f"Message {number} must be a dict with 'role' and 'content', got {_short(message)}."
            )
        plain = _plain({k: v for k, v in message.items() if v is not None}, f"Message {number}")
        role, content = plain.get("role"), plain.get("content")
        if not isinstance(role, str) or not role:
            raise UserError(f"Message {number} must have a role, such as 'user'; got {_short(role)}.")
        if content is None and "tool_calls" not in plain:
            raise UserError(f"Message {number} (of the {role}) has no content.")
        if isinstance(content, list):
            for part in content:
                if (
                    not isinstance(part, dict)
                    or part.get("type") != "text"
                    or not isinstance(part.get("text"), str)
                ):
                    raise UserError(
                        f"Message {number} (of the {role}) may hold parts of the form "
                        f'{{"type": "text", "text": "…"}} only, got {_short(part)}.'
                    )
            if not parts:
                plain["content"] = "\n".join(part["text"] for part in content)
        elif content is not None and not isinstance(content, str):
            raise UserError(
                f"The content of message {number} (of the {role}) must be text or a list of text parts, got "
                f"{_short(content)}."
            )
        checked.append(plain)
    return checked


def _plain(value: Any, where: str) -> Any:
    """JSON values only: an object with methods has no business in a sandbox."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        base.utf8(value)
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    raise UserError(f"{where} must consist of JSON values, but holds {_short(value)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Jinja as transformers sets it up


class _Generation(ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says, for losses; rendering ignores it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.cache
def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    return made


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.lru_cache(maxsize=16)
def _names(source: str) -> frozenset[str]:
    """What a template looks up by name (`part.text`, `part['text']`) or compares with."""
    tree = _environment().parse(source)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    return frozenset(attributes | {n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)})
