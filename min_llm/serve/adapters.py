"""Adapters come and go while the server answers: vLLM's two endpoints.

Paths name folders on the server's disk, so that whoever may call these reads it to a degree: they are off unless the
server was started with --lora-updates (vLLM: VLLM_ALLOW_RUNTIME_LORA_UPDATING).
"""

from __future__ import annotations

import functools

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from min_llm.config import UserError
from min_llm.serve.body import Fields
from min_llm.serve.errors import Refused
from min_llm.serve.service import Service

LONGEST_NAME = 200


class AdapterUpdates:
    def __init__(self, service: Service, allowed: bool) -> None:
        self.service, self.allowed = service, allowed

    async def load(self, request: Request) -> Response:
        """load_inplace: the name may be taken; from now on it means the new adapter."""
        body = await self._body(request)
        name, path = self._text(body, "lora_name"), self._text(body, "lora_path")
        engine = self.service.engine
        if name == self.service.served.name or not name.strip() or len(name) > LONGEST_NAME:
            body.refuse(
                "lora_name",
                f"lora_name must be another name than the model's, of 1 to {LONGEST_NAME} characters.",
            )
        in_place = body.flag("load_inplace")
        if "\0" in path:
            body.refuse("lora_path", "lora_path must be the path of a folder.")

        def put() -> None:  # by the engine's thread: two may load one name at once
            if name in engine.adapters and not in_place:
                body.refuse(
                    "lora_name",
                    f"{name!r} is loaded already; unload it first, or set load_inplace to replace it.",
                )
            engine.load_lora(name, adapter)

        try:
            adapter = await run_in_threadpool(engine.read_lora, path)
            await self.service.runner.call(put)
        except UserError as error:
            raise Refused(str(error), param="lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        body = await self._body(request)
        name = self._text(body, "lora_name")
        await self.service.runner.call(functools.partial(self.service.engine.unload_lora, name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _body(self, request: Request) -> Fields:
        if not self.allowed:
            raise Refused(
                "Adapters cannot be changed while this server runs; start it with --lora-updates.", status=403
            )
        return await self.service.body(request)

    @staticmethod
    def _text(body: Fields, field: str) -> str:
        if field not in body:
            body.refuse(field, f"Give a {field}.")
        return str(body.text(field))
