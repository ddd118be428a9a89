"""The tokenizer over HTTP: what evaluation programs need to score a model from outside (vLLM's endpoints)."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from min_llm.config import UserError
from min_llm.serve import protocol
from min_llm.serve.body import Fields
from min_llm.serve.errors import Refused, json_response
from min_llm.serve.service import Service


class Texts:
    def __init__(self, service: Service) -> None:
        self.service, self.served = service, service.served

    async def tokenize(self, request: Request) -> Response:
        """add_special_tokens: with those every text begins with. parse_special: text that spells a special token is
        one, which elsewhere it never is."""
        body = await self.service.body(request)
        if "messages" in body:
            ids = await run_in_threadpool(self.service.conversation, body, protocol.tools(body))
        else:
            ids = await run_in_threadpool(self._encode, body)
        return json_response(
            {"tokens": ids, "count": len(ids), "max_model_len": self.service.engine.model_len}
        )

    def _encode(self, body: Fields) -> list[int]:
        text = body.text("prompt")
        if text is None:
            body.refuse("prompt", "Give a prompt, or messages.")
        opening = self.served.opening if body.flag("add_special_tokens", True) else ()
        try:
            ids = self.served.tokenizer.encode(text, allow_special=body.flag("parse_special", True))
        except UserError as error:
            raise Refused(str(error), param="prompt") from error
        return [*opening, *ids]

    async def detokenize(self, request: Request) -> Response:
        body = await self.service.body(request)
        try:
            return json_response(
                {"prompt": self.served.tokenizer.decode(body.list("tokens", int, "token ids"))}
            )
        except UserError as error:
            raise Refused(str(error), param="tokens") from error

    async def info(self, request: Request) -> Response:
        tokenizer, template = self.served.tokenizer, self.served.template
        names: dict[int | None, str] = {token: name for name, token in tokenizer.special.items()}
        return json_response({
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": names.get(getattr(tokenizer, "bos", None)),
            "eos_token": names.get(tokenizer.eos),
            "pad_token": None,
            "chat_template": None if template is None else template.source,
            "vocab_size": tokenizer.vocab_size,
        })  # fmt: skip
