"""From the fields of a request to what the engine is asked: OpenAI's names, and vLLM's for what OpenAI lacks.

Fields that nobody knows are ignored, for clients send what other servers understand. Known fields that this server
cannot honour are refused: an answer that silently lacks what was asked is worse than none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from min_llm.config import UserError
from min_llm.infer.request import Grammar, Sampling
from min_llm.serve.body import Fields
from min_llm.serve.errors import Refused
from min_llm.serve.tools import grammar_for, tool_names

MOST_PROMPTS = 256  # prompts of a call, and choices of all of them together
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions; a chat goes on to the end of the context

UNSUPPORTED = {
    "suffix": "Text is only continued, not filled in.",
    "functions": "Give `tools`.",
    "function_call": "Give `tool_choice`.",
    "use_beam_search": "Tokens are sampled.",
    "best_of": "Ask for n choices and take one.",
    "audio": "Answers are text.",
    "modalities": "Answers are text.",
    "prediction": "Answers cannot be predicted.",
    "web_search_options": "There is no search.",
    "guided_choice": "Give a regular expression.",
}


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a chat may call. shown: as the template gets them. names: of the functions. required: what a required call
    must match."""

    shown: list[dict[str, Any]]
    names: list[str]
    required: Grammar | None


@dataclasses.dataclass(frozen=True)
class Common:
    """What both kinds of generation share. served: the name of the model or adapter that answers."""

    served: str
    sampling: Sampling
    stream: bool
    include_usage: bool
    adapter: str | None
    salt: str


def model_of(body: Fields, name: str, adapters: Collection[str]) -> str:
    """The model a request names; the one that is served, if it names none."""
    given = body.text("model", name)
    if given != name and given not in adapters:
        raise Refused(
            f"There is no model {given[:100]!r} here; /v1/models lists those there are.",
            status=404,
            param="model",
            code="model_not_found",
        )
    return given


def common(body: Fields, name: str, adapters: Collection[str], logprobs: int | None) -> Common:
    """logprobs: how many likeliest tokens to tell, read from fields that differ between the two kinds."""
    _check_supported(body)
    served = model_of(body, name, adapters)
    stream = body.flag("stream")
    options = body.object("stream_options")
    if options is not None and not stream:
        body.refuse("stream_options", "stream_options need stream to be true.")
    prompt_logprobs = body.integer("prompt_logprobs")
    if prompt_logprobs is not None and stream:
        body.refuse("prompt_logprobs", "prompt_logprobs are not streamed; leave out stream.")
    sampling = Sampling(
        temperature=body.number("temperature", 1.0),
        top_k=_top_k(body),
        top_p=body.number("top_p", 1.0),
        min_p=body.number("min_p", 0.0),
        typical_p=body.number("typical_p", 1.0),
        repetition_penalty=body.number("repetition_penalty", 1.0),
        presence_penalty=body.number("presence_penalty", 0.0),
        frequency_penalty=body.number("frequency_penalty", 0.0),
        logit_bias=_logit_bias(body),
        min_tokens=body.integer("min_tokens", 0),
        max_tokens=_max_tokens(body),
        stop=body.texts("stop"),
        stop_ids=body.list("stop_token_ids", int, "token ids"),
        ignore_end=body.flag("ignore_eos"),
        n=body.integer("n", 1),
        seed=body.integer("seed"),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar(body),
    )
    return Common(
        served,
        sampling,
        stream,
        options is not None and options.flag("include_usage"),
        None if served == name else served,
        body.text("cache_salt", ""),
    )


def _check_supported(body: Fields) -> None:
    for name, instead in UNSUPPORTED.items():
        value = body.get(name)
        harmless = value in (None, False, "", []) or (name, value) in (
            ("modalities", ["text"]),
            ("best_of", 1),
        )
        if not harmless:
            body.refuse(name, f"{name} is not supported. {instead}")


def _top_k(body: Fields) -> int:
    """-1 is vLLM's way to say all of them."""
    k = body.integer("top_k", 0)
    return 0 if k == -1 else k


def _max_tokens(body: Fields) -> int | None:
    newer, older = body.integer("max_completion_tokens"), body.integer("max_tokens")
    return older if newer is None else newer


def _logit_bias(body: Fields) -> dict[int, float]:
    given = body.object("logit_bias")
    made: dict[int, float] = {}
    for name in given.values if given else ():
        assert given is not None
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            body.refuse("logit_bias", f"logit_bias has the name {name[:40]!r}; its names are token ids.")
        made[int(name)] = given.number(name, 0.0)
    return made


def chat_logprobs(body: Fields) -> int | None:
    """`logprobs: true` tells each token's own, `top_logprobs` so many others beside it."""
    tops = body.integer("top_logprobs")
    if body.flag("logprobs"):
        return tops or 0
    if tops:
        body.refuse("top_logprobs", "top_logprobs need logprobs to be true.")
    return None


def tools(body: Fields) -> Tools | None:
    """The functions that an answer may call; None where there are none, or none shall be called."""
    given, choice = body.list("tools", dict, "functions"), body.get("tool_choice")
    if not given:
        if choice not in (None, "none", "auto"):
            body.refuse("tool_choice", "tool_choice needs tools to choose from.")
        return None
    try:
        names, required = tool_names(given), grammar_for(given, "auto" if choice is None else choice)
    except UserError as error:
        body.refuse("tools", str(error))
    return None if choice == "none" else Tools(list(given), names, required)


def grammar(body: Fields) -> Grammar | None:
    """What the answer must match, however it is said."""
    found = [g for g in (_response_format(body), *_structured(body)) if g is not None]
    if len(found) > 1:
        body.refuse("response_format", "An answer can follow one format; several were given.")
    return found[0] if found else None


def _response_format(body: Fields) -> Grammar | None:
    given = body.object("response_format")
    kind = None if given is None else given.text("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json")
    if kind != "json_schema":
        given.refuse("type", "response_format.type must be text, json_object or json_schema.")
    format = given.object("json_schema")
    if format is None or "schema" not in format:
        given.refuse("json_schema", "response_format.json_schema must be an object with a schema.")
    return _schema(format, "schema")


def _structured(body: Fields) -> list[Grammar | None]:
    """vLLM's ways: `structured_outputs`, and `guided_…` of its older versions."""
    made = [_named(body, "guided_" + name, name) for name in ("json", "regex", "grammar")]
    inside = body.object("structured_outputs")
    if inside is not None:
        known = ("json", "regex", "grammar")
        other = next((name for name in inside.values if name not in (*known, "json_object")), None)
        if other is not None:
            inside.refuse(other[:40], f"structured_outputs may hold {', '.join(known)} or json_object.")
        made += [_named(inside, name, name) for name in known]
        made += [Grammar("json") if inside.flag("json_object") else None]
    return made


def _named(body: Fields, field: str, kind: str) -> Grammar | None:
    if field not in body:
        return None
    if kind == "json":
        return _schema(body, field)
    return Grammar("regex" if kind == "regex" else "lark", body.text(field))


def _schema(body: Fields, field: str) -> Grammar:
    """A JSON schema: an object, a boolean, or text of either."""
    value: Any = body.get(field)
    if type(value) not in (dict, bool, str):
        body.refuse(field, f"{body.where}{field} must be a JSON schema.")
    return Grammar("json_schema", value if isinstance(value, str) else json.dumps(value))


def prompts(body: Fields, field: str) -> list[str] | list[list[int]]:
    """One prompt or several, as text or as token ids."""
    value = body.get(field)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        body.refuse(field, f"{field} must be a text, a list of token ids, or a non-empty list of either.")
    if type(value[0]) is int:
        return [_ids(body, field, value)]
    if len(value) > MOST_PROMPTS:
        body.refuse(
            field, f"{field} holds {len(value)} prompts; at most {MOST_PROMPTS} are answered at once."
        )
    if isinstance(value[0], str):
        return list(body.list(field, str, "texts"))
    return [_ids(body, field, prompt) for prompt in value]


def _ids(body: Fields, field: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value or any(type(i) is not int for i in value):
        body.refuse(field, f"A prompt of token ids must be a non-empty list of integers ({field}).")
    return value
