"""The two shapes of an answer, chat and completion, as chunks.

There is one way from the engine's outputs to a client: chunks. An answer that is not streamed is the same chunks folded
into one object, so both are equal by construction.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from min_llm.infer.request import Output, Token
from min_llm.serve import spell
from min_llm.serve.protocol import Common
from min_llm.serve.stream import Job
from min_llm.serve.tool_parser import CallPart, Text, ToolParser
from min_llm.tokenizers import Tokenizer

Chunk = dict[str, Any]


class Answer:
    """Makes the chunks of one call, and counts its tokens."""

    prefix, kind, chunk_kind = "", "", ""

    def __init__(self, asked: Common, jobs: Sequence[Job], tokenizer: Tokenizer) -> None:
        self.asked, self.jobs, self.tokenizer = asked, jobs, tokenizer
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.served,
        }
        self.generated = 0
        self.cached = [0] * len(jobs)
        self.prompts: dict[int, tuple[Token, ...]] = {}  # of each job, where prompt_logprobs were asked for
        self.spelling = [
            spell.Spelling(tokenizer, self.before(job)) for job in jobs for _ in range(job.sampling.n)
        ]

    def before(self, job: Job) -> Sequence[int]:
        """The tokens that the text of an answer continues."""
        return job.prompt

    def opening(self) -> list[Chunk]:
        """What is sent before anything is known."""
        return []

    def chunks(self, number: int, output: Output) -> list[Chunk]:
        """What an output of a job adds."""
        self.generated += len(output.tokens)
        self.cached[number] = max(self.cached[number], output.cached)
        if output.prompt is not None:
            self.prompts[number] = output.prompt
        return [self._chunk([choice]) for choice in self.choices(number, output)]

    def choices(self, number: int, output: Output) -> list[Chunk]:
        raise NotImplementedError

    def closing(self) -> list[Chunk]:
        """What is sent when all choices have ended."""
        return [self._chunk([]) | {"usage": self.usage()}] if self.asked.include_usage else []

    def _chunk(self, choices: list[Chunk]) -> Chunk:
        made = self.head | {"object": self.chunk_kind, "choices": choices}
        return made | {"usage": None} if self.asked.include_usage else made

    def usage(self) -> dict[str, Any]:
        prompt = sum(len(job.prompt) for job in self.jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached)},
        }

    def whole(self, chunks: Iterable[Chunk]) -> dict[str, Any]:
        """The answer that the chunks make together."""
        parts: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            for choice in chunk["choices"]:
                parts.setdefault(choice["index"], []).append(choice)
        choices = [self.fold(index, parts[index]) for index in sorted(parts)]
        return self.head | {"object": self.kind, "choices": choices, "usage": self.usage()}

    def fold(self, index: int, parts: list[Chunk]) -> Chunk:
        raise NotImplementedError

    def reason(self, output: Output) -> str | int | None:
        """vLLM's field: which of the stops that were asked for ended a choice; not the model's own end."""
        by = output.stopped_by
        return by if isinstance(by, str) or by in self.asked.sampling.stop_ids else None

    def told(self, number: int) -> dict[str, Any]:
        """vLLM's field for the log-probabilities of a prompt, where they were asked for."""
        if self.asked.sampling.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": spell.of_prompt(self.tokenizer, self.prompts.get(number, ()))}


class Chat(Answer):
    """parsers: one for each choice, where tools were given."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, asked: Common, jobs: Sequence[Job], tokenizer: Tokenizer, parsers: Sequence[ToolParser] = ()
    ) -> None:
        super().__init__(asked, jobs, tokenizer)
        self.parsers = parsers
        self.called: set[int] = set()  # choices that call a tool

    def opening(self) -> list[Chunk]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([_choice(index, delta)]) for index in range(self.asked.sampling.n)]

    def choices(self, number: int, output: Output) -> list[Chunk]:
        index = output.choice
        deltas = self._deltas(index, output)
        made = [_choice(index, delta) for delta in deltas]
        tops = self.asked.sampling.logprobs
        if tops is not None and output.tokens:
            made = made or [_choice(index, {"content": ""})]
            made[0]["logprobs"] = {"content": spell.content(self.spelling[index], output.tokens, tops)}
        if output.finish is not None:
            made = made or [_choice(index, {})]
            calls = index in self.called and output.finish == "stop"
            made[-1] |= {
                "finish_reason": "tool_calls" if calls else output.finish,
                "stop_reason": self.reason(output),
            }
        return made

    def _deltas(self, index: int, output: Output) -> list[dict[str, Any]]:
        if not self.parsers:
            return [{"content": output.text}] if output.text else []
        parser = self.parsers[index]
        found = parser.feed(output.text) + (parser.finish() if output.finish is not None else [])
        self.called |= {index for delta in found if isinstance(delta, CallPart)}
        return [_delta(delta) for delta in found]

    def fold(self, index: int, parts: list[Chunk]) -> Chunk:
        deltas = [part["delta"] for part in parts]
        calls: dict[int, dict[str, Any]] = {}
        for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
            made = calls.setdefault(
                call["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            made["id"] = call.get("id", made["id"])
            made["function"]["name"] = call["function"].get("name", made["function"]["name"])
            made["function"]["arguments"] += call["function"]["arguments"]
        text = "".join(delta.get("content", "") for delta in deltas)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = [calls[i] for i in sorted(calls)]
        told = [part["logprobs"]["content"] for part in parts if part["logprobs"] is not None]
        return {
            "index": index,
            "message": message,
            "logprobs": None
            if self.asked.sampling.logprobs is None
            else {"content": list(itertools.chain(*told))},
            "finish_reason": parts[-1]["finish_reason"],
            "stop_reason": parts[-1]["stop_reason"],
        }

    def whole(self, chunks: Iterable[Chunk]) -> dict[str, Any]:
        return super().whole(chunks) | self.told(0)


def _choice(index: int, delta: dict[str, Any]) -> Chunk:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _delta(delta: Text | CallPart) -> dict[str, Any]:
    if isinstance(delta, Text):
        return {"content": delta.text}
    call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
    if delta.name is not None:
        call |= {"id": f"call_{uuid.uuid4().hex}", "type": "function"}
        call["function"]["name"] = delta.name
    return {"tool_calls": [call]}


class Completion(Answer):
    """echo: texts of the prompts, to be repeated before the answers. silent: nothing but them is wanted."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        asked: Common,
        jobs: Sequence[Job],
        tokenizer: Tokenizer,
        echo: Sequence[str] = (),
        silent: bool = False,
    ) -> None:
        self.echo, self.silent = echo, silent
        super().__init__(asked, jobs, tokenizer)
        self.echoed: set[int] = set()
        self.early: list[tuple[int, Output]] = []  # outputs that came before the tokens of their prompt

    def before(self, job: Job) -> Sequence[int]:
        return () if self.echo else job.prompt

    def choices(self, number: int, output: Output) -> list[Chunk]:
        if self.silent:
            output = self._silenced(output)
        wait = bool(self.echo) and self.asked.sampling.logprobs is not None and number not in self.prompts
        self.early.append((number, output))
        if wait and output.finish != "abort":
            return []
        ready = [o for n, o in self.early if n == number]
        self.early = [(n, o) for n, o in self.early if n != number]
        return [choice for o in ready for choice in self._choices(number, o)]

    def _silenced(self, output: Output) -> Output:
        """The engine makes one token at least; here it never was."""
        self.generated = 0
        finish = "length" if output.finish == "stop" else output.finish
        return dataclasses.replace(output, tokens=(), text="", finish=finish, stopped_by=None)

    def _choices(self, number: int, output: Output) -> list[Chunk]:
        index = number * self.asked.sampling.n + output.choice
        text, tokens, tops = output.text, output.tokens, self.asked.sampling.logprobs
        first = bool(self.echo) and index not in self.echoed
        if first:
            self.echoed.add(index)
            text, tokens = self.echo[number] + text, self.prompts.get(number, ()) + tokens
        if not text and output.finish is None and (tops is None or not tokens):
            return []
        return [
            {
                "index": index,
                "text": text,
                "logprobs": None if tops is None else spell.legacy(self.spelling[index], tokens, tops),
                "finish_reason": output.finish,
                "stop_reason": self.reason(output),
            }
        ]

    def fold(self, index: int, parts: list[Chunk]) -> Chunk:
        told = [part["logprobs"] for part in parts]
        lists = (
            None if None in told else {k: list(itertools.chain(*(some[k] for some in told))) for k in told[0]}
        )
        made = parts[-1] | {"text": "".join(part["text"] for part in parts), "logprobs": lists}
        return made | self.told(index // self.asked.sampling.n)
