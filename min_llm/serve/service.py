"""The endpoints that a model answers: chat, completions, embeddings; and what it is called."""

from __future__ import annotations

import base64
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from min_llm.config import UserError
from min_llm.infer.adapters import UnknownAdapter
from min_llm.infer.request import Sampling
from min_llm.infer.text import prompt_tokens
from min_llm.serve import protocol
from min_llm.serve.answers import Answer, Chat, Completion
from min_llm.serve.body import Fields, read_object
from min_llm.serve.errors import Refused, json_response
from min_llm.serve.reply import reply
from min_llm.serve.runner import Runner
from min_llm.serve.stream import Job
from min_llm.serve.tool_parser import ToolParser
from min_llm.serve.tools import messages_for_template
from min_llm.tokenizers import Tokenizer, chat
from min_llm.tokenizers.chat import ChatTemplate

if TYPE_CHECKING:
    from min_llm.infer.engine import Engine

T = TypeVar("T")
EMBEDDED_AT_ONCE = 8  # texts; between them the engine turns to others
TEMPLATE_NAMES = ("tokenizer", "template", "messages", "tools", "add_generation_prompt")


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as its callers see it. opening: the tokens every text begins with. template: None, if it cannot chat."""

    name: str
    tokenizer: Tokenizer
    opening: Sequence[int] = ()
    template: ChatTemplate | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


class Service:
    def __init__(self, served: Served, engine: Engine, runner: Runner, most_bytes: int) -> None:
        self.served, self.engine, self.runner, self.most_bytes = served, engine, runner, most_bytes

    async def body(self, request: Request) -> Fields:
        return await read_object(request, self.most_bytes)

    async def chat(self, request: Request) -> Response:
        body = await self.body(request)
        asked = protocol.common(body, self.served.name, self.engine.adapters, protocol.chat_logprobs(body))
        tools = protocol.tools(body)
        if tools and tools.required:
            if asked.sampling.grammar:
                body.refuse(
                    "tool_choice", "An answer can be a required call or follow response_format, not both."
                )
            asked = dataclasses.replace(
                asked, sampling=dataclasses.replace(asked.sampling, grammar=tools.required)
            )
        prompt = await run_in_threadpool(self.conversation, body, tools)
        jobs = [Job(prompt, asked.sampling, asked.adapter, asked.salt)]
        parsers = [ToolParser(tools.names) for _ in range(asked.sampling.n)] if tools else []
        return await self._answer(Chat(asked, jobs, self.served.tokenizer, parsers), jobs)

    def conversation(self, body: Fields, tools: protocol.Tools | None) -> list[int]:
        """The tokens of a request's messages, up to where the assistant speaks."""
        if self.served.template is None:
            raise Refused(
                f"{self.served.name} has no chat template; use /v1/completions.", code="no_chat_template"
            )
        extra = body.object("chat_template_kwargs")
        names = extra.values if extra else {}
        if taken := next((name for name in names if name in TEMPLATE_NAMES), None):
            body.refuse("chat_template_kwargs", f"chat_template_kwargs may not hold {taken}.")
        try:
            return chat.encode_chat(
                self.served.tokenizer,
                self.served.template,
                messages_for_template([_message(m) for m in body.list("messages", dict, "objects")]),
                add_generation_prompt=body.flag("add_generation_prompt", True),
                tools=tools.shown if tools else None,
                **names,
            )
        except UserError as error:
            raise Refused(str(error), param="messages") from error

    async def completions(self, request: Request) -> Response:
        body = await self.body(request)
        logprobs, echo = body.integer("logprobs"), body.flag("echo")
        silent = body.get("max_tokens") == 0 and echo
        if silent:
            body = Fields(body.values | {"max_tokens": 1})
        asked = protocol.common(body, self.served.name, self.engine.adapters, logprobs)
        prompts = protocol.prompts(body, "prompt")
        if len(prompts) * asked.sampling.n > protocol.MOST_PROMPTS:
            body.refuse("n", f"There may be at most {protocol.MOST_PROMPTS} choices in all prompts together.")
        ids = await run_in_threadpool(lambda: [self.tokens(prompt, "prompt") for prompt in prompts])
        jobs = [
            Job(prompt, self._completing(asked.sampling, prompt, echo), asked.adapter, asked.salt)
            for prompt in ids
        ]
        repeated = [self._echo(prompt) for prompt in prompts] if echo else []
        return await self._answer(Completion(asked, jobs, self.served.tokenizer, repeated, silent), jobs)

    def _completing(self, sampling: Sampling, prompt: Sequence[int], echo: bool) -> Sampling:
        """How one prompt is continued: with an echo its own log-probabilities are told; few tokens are the default."""
        changes: dict[str, Any] = {}
        if sampling.max_tokens is None:
            changes["max_tokens"] = max(
                1, min(protocol.COMPLETION_TOKENS, self.engine.model_len - len(prompt))
            )
        if echo and sampling.logprobs is not None:
            changes["prompt_logprobs"] = max(sampling.logprobs, sampling.prompt_logprobs or 0)
        return dataclasses.replace(sampling, **changes)

    def tokens(self, prompt: str | list[int], field: str) -> list[int]:
        """A text as tokens, with those that every text begins with; tokens as they are."""
        if not isinstance(prompt, str):
            self._check_ids(prompt, field)
            return prompt
        try:
            return prompt_tokens(self.served.tokenizer, prompt, self.served.opening)
        except UserError as error:
            raise Refused(str(error), param=field) from error

    def _check_ids(self, ids: Sequence[int], field: str) -> None:
        known, vocab = self.served.tokenizer.spelled, self.engine.vocab
        wrong = next((i for i in ids if i >= vocab or i not in known), None)
        if wrong is not None:
            raise Refused(
                f"{field} holds {wrong}, which is no token of this model (0 to {vocab - 1}).", param=field
            )

    def _echo(self, prompt: str | list[int]) -> str:
        """What an echo repeats of a prompt: all but special tokens, which are no text in an answer either."""
        special = self.served.tokenizer.special.values()
        return (
            prompt
            if isinstance(prompt, str)
            else self.served.tokenizer.decode(i for i in prompt if i not in special)
        )

    async def _answer(self, answer: Answer, jobs: Sequence[Job]) -> Response:
        try:
            if (grammar := jobs[0].sampling.grammar) is not None:  # the same for all; may take seconds
                await run_in_threadpool(self.engine.compile_grammar, grammar)
            stream = await self.runner.open(jobs)
        except UnknownAdapter:  # unloaded in this moment
            raise
        except UserError as error:
            longest = max(len(job.prompt) + (job.sampling.max_tokens or 1) for job in jobs)
            code = "context_length_exceeded" if longest > self.engine.model_len else None
            raise Refused(str(error), code=code) from error
        return await reply(answer, stream)

    async def embeddings(self, request: Request) -> Response:
        body = await self.body(request)
        model = protocol.model_of(body, self.served.name, self.engine.adapters)
        adapter = None if model == self.served.name else model
        if "dimensions" in body:
            body.refuse("dimensions", "dimensions is not supported: vectors have the model's own size.")
        form = body.text("encoding_format", "float")
        if form not in ("float", "base64"):
            body.refuse("encoding_format", "encoding_format must be float or base64.")
        prompts = protocol.prompts(body, "input")
        ids = await run_in_threadpool(lambda: [self.tokens(prompt, "input") for prompt in prompts])
        vectors: list[np.ndarray] = []
        for i in range(0, len(ids), EMBEDDED_AT_ONCE):
            some = ids[i : i + EMBEDDED_AT_ONCE]
            vectors += [*await self.runner.call(functools.partial(self.engine.embed, some, adapter))]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": v.tolist()
                if form == "float"
                else base64.b64encode(np.asarray(v, "<f4").tobytes()).decode(),
            }
            for index, v in enumerate(vectors)
        ]
        count = sum(map(len, ids))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_response({"object": "list", "data": data, "model": model, "usage": usage})

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model(n) for n in self._names()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names():
            raise Refused(f"There is no model {name[:100]!r} here.", status=404, code="model_not_found")
        return json_response(self._model(name))

    def _names(self) -> list[str]:
        return [self.served.name, *self.engine.adapters]

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.served.created,
            "owned_by": "min_llm",
            "root": self.served.name,
            "parent": None if name == self.served.name else self.served.name,
            "max_model_len": self.engine.model_len,
        }


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Templates know the role that OpenAI now calls developer by its older name."""
    return message | {"role": "system"} if message.get("role") == "developer" else message
