"""Tools in a chat: what a client says about them, for the template that shows them and the grammar of a call.

The model's chat template shows the tools (`ChatTemplate.render(tools=…)`), tool_parser.py finds the calls in what it
answers, and where a call is required `grammar_for` makes any other answer impossible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from min_llm.config import UserError
from min_llm.infer.request import Grammar

MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # keys of a schema that name others
_DATA = ("const", "enum", "default", "examples")  # keys of a schema that hold values, not schemas


def tool_names(tools: Sequence[Any]) -> list[str]:
    """The names of the functions of a request's `tools`. Raises UserError for what is no list of functions."""
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise UserError(f"tools must be a list of at most {MOST_TOOLS} functions.")
    names = [_function(tool, number)["name"] for number, tool in enumerate(tools, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"tools has the function {twice!r} twice; every function needs a name of its own.")
    return names


def _function(tool: Any, number: int) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise UserError(
            f'Tool {number} must be of the form {{"type": "function", "function": {{"name": …}}}}.'
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"Tool {number} must have a name of 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}."
        )
    if parameters is not None and (
        not isinstance(parameters, dict) or parameters.get("type", "object") != "object"
    ):
        raise UserError(f"The parameters of the function {name!r} must be a JSON schema of an object.")
    return function


def grammar_for(tools: Sequence[Any], choice: Any) -> Grammar | None:
    """What an answer must match under a `tool_choice`: one call, in Llama 3.1's JSON, of any of the tools for
    "required", of the named one for `{"type": "function", "function": {"name": …}}`; None for "auto" and "none".

    Raises UserError for a choice that is none of these, or not among the tools.
    """
    names = tool_names(tools)
    if choice in ("auto", "none"):
        return None
    wanted = names if choice == "required" else [_named(choice)]
    if not names or not set(wanted) <= set(names):
        raise UserError(
            f"tool_choice asks for {wanted[0] if wanted else 'a tool'!r}, but the tools are "
            f"{', '.join(names) or 'none'}."
        )
    functions = [tool["function"] for tool in tools if tool["function"]["name"] in wanted]
    try:
        return Grammar("json_schema", json.dumps(_one_call(functions)))
    except RecursionError as error:
        raise UserError("The parameters of the tools are nested too deep.") from error


def _named(choice: Any) -> str:
    function = (
        choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    )
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(
            'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}, '
            f"got {choice!r}."
        )
    return function["name"]


def _one_call(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call; the name comes first, as properties are written in their order."""
    calls, parameters = [], {}
    for number, function in enumerate(functions):
        place = f"#/$defs/{number}"
        given = function.get("parameters") or {"properties": {}, "additionalProperties": False}
        parameters[str(number)] = _moved(given if "$ref" in given else {**given, "type": "object"}, place)
        properties = {"name": {"const": function["name"]}, "parameters": {"$ref": place}}
        call = {"type": "object", "properties": properties, "required": [*properties]}
        calls.append({**call, "additionalProperties": False})
    return {"anyOf": calls, "$defs": parameters}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself (`#/…`) hold when it stands at a place in another one."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SCHEMAS and isinstance(value, dict):
            moved[key] = {name: _moved(item, place) for name, item in value.items()}
        elif key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = place + value[1:]
        else:
            moved[key] = value if key in _DATA else _moved(value, place)
    return moved


def messages_for_template(messages: Sequence[Any]) -> list[Any]:
    """Messages whose calls have their arguments as objects: OpenAI's clients send them as JSON text, which a template
    would quote once more. Raises UserError for arguments that are no JSON object."""
    return [
        {**message, "tool_calls": [_call_for_template(call) for call in message["tool_calls"]]}
        if isinstance(message, dict) and isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _call_for_template(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError('A call in tool_calls must be of the form {"function": {"name": …, "arguments": …}}.')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"The arguments of the call of {function['name']!r} must be JSON, but {error}."
            ) from error
    if not isinstance(arguments, dict):
        raise UserError(f"The arguments of the call of {function['name']!r} must be a JSON object.")
    return {**call, "function": {**function, "arguments": arguments}}
