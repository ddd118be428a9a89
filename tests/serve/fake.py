"""An engine without a model: each token is a function of those before it, the same on every run."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time

import numpy as np

from min_llm.config import UserError
from min_llm.infer.adapters import UnknownAdapter
from min_llm.infer.request import Output, Sampling, Token
from min_llm.infer.text_stream import TextStream
from min_llm.tokenizers.byte import Bytes


@dataclasses.dataclass
class Statistics:
    waiting: int = 0
    running: int = 0
    pages_total: int = 64
    pages_free: int = 64
    pages_cached: int = 0
    pages_used: int = 0
    compiles: int = 4
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    prefix_hits: int = 0


@dataclasses.dataclass
class Choice:
    request: int
    number: int
    prompt: list[int]
    sampling: Sampling
    seed: int
    text: TextStream
    tokens: list[int] = dataclasses.field(default_factory=list)


class FakeEngine:
    """script: the bytes of every answer instead of made-up letters. pace: seconds of a step. slots: choices that run
    at once. fail: raises at the next so many steps."""

    def __init__(self, script: bytes = b"", pace: float = 0.0, slots: int = 8, model_len: int = 256) -> None:
        self.tokenizer, self.model_len, self.vocab = Bytes(), model_len, 257
        self.script, self.pace, self.slots, self.fail = script, pace, slots, 0
        self.gate = threading.Event()  # steps wait for it
        self.gate.set()
        self.choices: list[Choice] = []
        self.numbers = Statistics()
        self.adapters: dict[str, int] = {}
        self.next_id = 0
        self.aborted: list[int] = []

    def check(self, prompt, sampling: Sampling) -> None:
        sampling.check_ids(self.vocab)
        length = len(prompt) + (sampling.max_tokens or 1)
        if not prompt or length > self.model_len:
            raise UserError(
                f"A prompt of {len(prompt)} tokens and {sampling.max_tokens or 1} new ones need {length} places; "
                f"the context has {self.model_len}."
            )
        if any(not 0 <= i < self.vocab for i in prompt):
            raise UserError("The prompt names a token the model does not have.")
        if sampling.grammar is not None and "bomb" in sampling.grammar.text:
            raise UserError("The grammar is too large.")

    def compile_grammar(self, grammar) -> None:
        pass

    def read_lora(self, path) -> str:
        if "bad" in path:
            raise UserError(f"{path} holds no adapter.")
        return path

    def load_lora(self, name, adapter) -> None:
        if len(self.adapters) == 8:
            raise UserError("All places for adapters are taken.")
        self.adapters[name] = sum(map(ord, adapter))

    def unload_lora(self, name) -> None:
        if name not in self.adapters:
            raise UnknownAdapter(f"There is no adapter {name!r}.")
        del self.adapters[name]

    def add(self, prompt, sampling, adapter=None, salt="") -> int:
        self.check(prompt, sampling)
        self.next_id += 1
        for number in range(sampling.n):
            seed = (sampling.seed or 0) * 1000 + number if sampling.temperature else 0
            seed += self.adapters[adapter] if adapter is not None else 0
            text = TextStream(self.tokenizer, sampling.stop, hidden={256})
            self.choices.append(Choice(self.next_id, number, list(prompt), sampling, seed, text))
        self.numbers.prompt_tokens += len(prompt)
        return self.next_id

    def abort(self, request: int) -> None:
        if any(c.request == request for c in self.choices):
            self.aborted.append(request)
        self.choices = [c for c in self.choices if c.request != request]

    @property
    def busy(self) -> bool:
        return bool(self.choices)

    def step(self) -> list[Output]:
        self.gate.wait(10)
        time.sleep(self.pace)
        if self.fail:
            self.fail -= 1
            raise RuntimeError("injected")
        self.numbers.steps += 1
        outputs = [self._advance(choice) for choice in self.choices[: self.slots]]
        done = {(o.request, o.choice) for o in outputs if o.finish}
        self.choices = [c for c in self.choices if (c.request, c.number) not in done]
        return outputs

    def _advance(self, choice: Choice) -> Output:
        sampling, before = choice.sampling, choice.prompt + choice.tokens
        token = self._token(before, choice)
        choice.tokens.append(token)
        self.numbers.generated_tokens += 1
        first = len(choice.tokens) == 1
        text = choice.text.feed(token)
        room = self.model_len - len(choice.prompt)
        finish, by = None, choice.text.stopped
        if by is not None or len(choice.tokens) == len(self.script):
            finish = "stop"
        elif len(choice.tokens) >= min(sampling.max_tokens or room, room):
            finish = "length"
        if finish and by is None:
            text += choice.text.finish()
        told = None
        if first and choice.number == 0 and sampling.prompt_logprobs is not None:
            told = (Token(choice.prompt[0]),) + tuple(
                self._told(choice.prompt[:i], choice.prompt[i], sampling.prompt_logprobs)
                for i in range(1, len(choice.prompt))
            )
        return Output(
            choice.request, choice.number, (self._told(before, token, sampling.logprobs),), text, finish, by,
            prompt=told, cached=3 if first and choice.number == 0 else 0,
        )  # fmt: skip

    def _token(self, before: list[int], choice: Choice) -> int:
        if self.script:
            return self.script[len(choice.tokens) % len(self.script)]
        return likeliest(before, choice.seed)

    @staticmethod
    def _told(before: list[int], token: int, tops: int | None) -> Token:
        if tops is None:
            return Token(token)
        table = logprobs(before)
        order = np.argsort(-table)[:tops].tolist()
        return Token(token, float(table[token]), tuple((i, float(table[i])) for i in order))

    def embed(self, prompts, adapter=None) -> np.ndarray:
        made = np.array([[len(p), sum(p) % 7 + 1, 1.0] for p in prompts], np.float32)
        return made / np.linalg.norm(made, axis=-1, keepdims=True)

    def statistics(self) -> Statistics:
        used = min(len(self.choices), 64)
        return dataclasses.replace(
            self.numbers, waiting=max(len(self.choices) - self.slots, 0), running=min(len(self.choices), self.slots),
            pages_used=used, pages_free=64 - used,
        )  # fmt: skip


def likeliest(before: list[int], seed: int = 0) -> int:
    """A letter that depends on what is before it."""
    digest = hashlib.sha256(repr((len(before), before[-8:], seed)).encode()).digest()
    return ord("a") + digest[0] % 26


def logprobs(before: list[int]) -> np.ndarray:
    """A distribution whose argmax is `likeliest`."""
    values = np.random.default_rng(sum(before)).normal(size=257)
    values[likeliest(before)] = values.max() + 1
    return values - np.log(np.exp(values).sum())
