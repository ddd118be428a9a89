"""What /openapi.json says of this server: the fields it reads, the forms of its answers, every status it sends."""

from __future__ import annotations

from typing import Any

from min_llm import __version__
from min_llm.infer import request
from min_llm.serve.adapters import LONGEST_NAME
from min_llm.serve.protocol import MOST_PROMPTS

Schema = dict[str, Any]


def _of(kind: str, **limits: Any) -> Schema:
    return {"type": [kind, "null"], **limits}


def _list(items: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": items, **limits}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


STRING, INTEGER, FLAG, OBJECT = _of("string"), _of("integer"), _of("boolean"), {"type": "object"}
ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
PROMPTS = {
    "anyOf": [
        {"type": "string"},
        _list({"type": "string"}, minItems=1, maxItems=MOST_PROMPTS),
        _list(ID, minItems=1),
        _list(_list(ID, minItems=1), minItems=1, maxItems=MOST_PROMPTS),
    ]
}
SAMPLING: Schema = {
    "model": STRING,
    "stream": FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": FLAG}},
    "temperature": _of("number", minimum=0, maximum=1e4),
    "top_k": _of("integer", minimum=-1, maximum=2**31 - 1),
    "top_p": _of("number", exclusiveMinimum=0, maximum=1),
    "min_p": _of("number", minimum=0, maximum=1),
    "typical_p": _of("number", exclusiveMinimum=0, maximum=1),
    "repetition_penalty": _of("number", exclusiveMinimum=0, maximum=1e4),
    "presence_penalty": _of("number", minimum=-100, maximum=100),
    "frequency_penalty": _of("number", minimum=-100, maximum=100),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": ["number", "null"]},
        "maxProperties": request.MOST_BIASES,
    },
    "min_tokens": _of("integer", minimum=0),
    "max_tokens": _of("integer", minimum=0),
    "max_completion_tokens": _of("integer", minimum=1),
    "stop": {
        "anyOf": [
            _of("string", minLength=1),
            _list({"type": "string", "minLength": 1}, maxItems=request.MOST_STOPS),
        ]
    },
    "stop_token_ids": {"anyOf": [_list(ID, maxItems=request.MOST_STOPS), {"type": "null"}]},
    "ignore_eos": FLAG,
    "n": _of("integer", minimum=1, maximum=request.MOST_CHOICES),
    "seed": _of("integer", minimum=-(2**63), maximum=2**64 - 1),
    "prompt_logprobs": _of("integer", minimum=0, maximum=request.MOST_TOPS),
    "response_format": {
        "type": ["object", "null"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object"},
        },
    },
    "structured_outputs": {
        "type": ["object", "null"],
        "properties": {"regex": STRING, "grammar": STRING, "json_object": FLAG},
    },
    "cache_salt": STRING,
}
MESSAGE = _object({
    "role": {"type": "string", "minLength": 1},
    "content": {"anyOf": [
        _of("string"),
        _list(_object({"type": {"const": "text"}, "text": {"type": "string"}}, "type", "text")),
    ]},
}, "role")  # fmt: skip
MESSAGES = _list(MESSAGE, minItems=1)
NAME = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
TEXT = {"text/plain": {"schema": {"type": "string"}}}

USAGE = _object(
    {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    "prompt_tokens",
)
ERROR = _object({
    "error": _object({"message": {"type": "string"}, "type": {"type": "string"}, "param": STRING, "code": STRING},
                     "message", "type", "param", "code"),
}, "error")  # fmt: skip


def _answer(kind: str, choice: Schema) -> Schema:
    head = {"id": {"type": "string"}, "object": {"const": kind}, "created": {"type": "integer"}}
    properties = head | {"model": {"type": "string"}, "choices": _list(choice), "usage": USAGE}
    return _object(properties, *properties)


CHAT = _answer(
    "chat.completion", _object({"index": INTEGER, "message": OBJECT}, "index", "message", "finish_reason")
)
COMPLETION = _answer(
    "text_completion", _object({"text": {"type": "string"}}, "index", "text", "finish_reason")
)
LISTED = _object({"object": {"const": "list"}, "data": _list(OBJECT)}, "object", "data")
STATUS = _object({"status": {"type": "string"}}, "status")
TOKENS = _object({"tokens": _list(ID), "count": {"type": "integer"}}, "tokens", "count")

REFUSED = {
    400: "The request cannot be served as it is",
    401: "No API key this server knows",
    403: "This server does not allow it",
    404: "No such model or path",
    408: "The request took too long to arrive",
    413: "The body is too large",
    429: "Too many requests wait",
    500: "The server or the engine failed",
    503: "The engine is dead or the server is shutting down",
}


def document(name: str) -> Schema:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": f"min_llm serves {name}", "version": __version__},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/chat/completions": _post(
                "Answer a conversation",
                _object(
                    SAMPLING
                    | {
                        "messages": MESSAGES,
                        "logprobs": FLAG,
                        "top_logprobs": _of("integer", minimum=0, maximum=request.MOST_TOPS),
                        "chat_template_kwargs": _of("object"),
                    },
                    "messages",
                ),
                CHAT,
                streams=True,
            ),
            "/v1/completions": _post(
                "Continue a text",
                _object(
                    SAMPLING
                    | {
                        "prompt": PROMPTS,
                        "echo": FLAG,
                        "logprobs": _of("integer", minimum=0, maximum=request.MOST_TOPS),
                    },
                    "prompt",
                ),
                COMPLETION,
                streams=True,
            ),
            "/v1/embeddings": _post(
                "Vectors of texts",
                _object(
                    {
                        "model": STRING,
                        "input": PROMPTS,
                        "encoding_format": {"enum": ["float", "base64", None]},
                    },
                    "input",
                ),
                LISTED,
            ),
            "/v1/load_lora_adapter": _post(
                "Load an adapter from the server's disk, to be asked for by its name",
                _object(
                    {"lora_name": NAME, "lora_path": {"type": "string"}, "load_inplace": FLAG},
                    "lora_name",
                    "lora_path",
                ),
                None,
            ),
            "/v1/unload_lora_adapter": _post(
                "Forget an adapter", _object({"lora_name": NAME}, "lora_name"), None
            ),
            "/tokenize": _post(
                "The tokens of a text or a conversation",
                {
                    "type": "object",
                    "properties": {
                        "prompt": STRING,
                        "messages": {"anyOf": [MESSAGES, {"type": "null"}]},
                        "add_special_tokens": FLAG,
                        "parse_special": FLAG,
                    },
                },
                TOKENS,
            ),
            "/detokenize": _post(
                "The text of tokens",
                _object({"tokens": _list(ID)}),
                _object({"prompt": {"type": "string"}}, "prompt"),
            ),
            "/tokenizer_info": _get("What the tokenizer is", OBJECT),
            "/v1/models": _get("The model and its adapters", LISTED),
            "/v1/models/{name}": _get("One of them", _object({"id": {"type": "string"}}, "id"), "name"),
            "/health/live": _get("The process runs", STATUS),
            "/health/ready": _get("It takes requests", STATUS),
            "/metrics": _get("Numbers for Prometheus", None),
        },
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _responses(content: Schema) -> Schema:
    refused = {
        str(status): {"description": text, "content": _json(ERROR)} for status, text in REFUSED.items()
    }
    return {"200": {"description": "Done", "content": content}} | refused


def _post(summary: str, body: Schema, answer: Schema | None, streams: bool = False) -> Schema:
    content = (_json(answer) if answer else TEXT) | (
        {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
    )
    operation = {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body)},
        "responses": _responses(content),
    }
    return {"post": operation}


def _get(summary: str, answer: Schema | None, parameter: str | None = None) -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": _responses(_json(answer) if answer else TEXT),
    }
    if parameter:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return {"get": operation}
