"""A model for lm-evaluation-harness in its own process: the numbers that it also gets from our server over HTTP.

    import lm_eval
    from min_llm.evals.lm_eval import MinLLM
    lm_eval.simple_evaluate(MinLLM("smollm2-135m-instruct"), tasks=["hellaswag"])

lm_eval (pip install 'min_llm[evals]', 0.4.13 is tested) needs neither torch nor transformers for this.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from min_llm.config import UserError
from min_llm.evals.exact import answers
from min_llm.evals.scoring import Pair, first_token, scores, split, windows
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded, load
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Sampling

try:
    from lm_eval.api.model import LM
except ImportError:  # the class below does the same without it, for whoever calls it
    LM = object

SEED = 1234  # lm-eval's own, for what is drawn
GIVEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class MinLLM(LM):
    """model: anything that `min_llm.load` takes, or what it gave. max_gen_toks: tokens of an answer where a task says
    nothing. Text that spells a special token is one, since chats come as text; texts begin with no other token than
    those, and an empty context is `scoring.first_token`."""

    def __init__(
        self,
        model: str | Loaded,
        model_len: int = 0,
        max_sequences: int = 16,
        max_gen_toks: int = 256,
        step: int | None = None,
    ) -> None:
        super().__init__()
        self.loaded = load(model, step) if isinstance(model, str) else model
        self.engine = Engine(
            self.loaded, EngineConfig(model_len=model_len, max_sequences=max_sequences, warm=False)
        )
        self.max_gen_toks = max_gen_toks

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """requests: lm-eval's Instances; the args of each are (context, continuation). (nats, whether greedy)."""
        found = scores(self.engine, [self._pair(*request.args) for request in requests])
        return [(score.logprob, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """args: (text,). Nats of each text, in windows that do not overlap."""
        size = self.engine.model_len - 1
        cut = [list(windows([self._first(), *self._encode(*r.args)], 1, size, size - 1)) for r in requests]
        found = iter(scores(self.engine, [pair for pairs in cut for pair in pairs]))
        return [math.fsum(next(found).logprob for _ in pairs) for pairs in cut]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """args: (context, settings). settings: until, max_gen_toks, do_sample and fields of Sampling; without a
        temperature an answer is greedy. A context loses its beginning where it does not fit."""
        return answers(self.engine, [self._generation(*request.args) for request in requests])

    def _generation(self, context: str, settings: dict[str, Any]) -> tuple[list[int], Sampling]:
        until = settings.get("until") or ()
        most = settings.get("max_tokens", settings.get("max_gen_toks", self.max_gen_toks))
        known = (*GIVEN, "until", "max_tokens", "max_gen_toks", "do_sample")
        if unknown := sorted(set(settings) - set(known)):
            raise UserError(
                f"The task's generation_kwargs has {', '.join(unknown)}; known are {', '.join(known)}."
            )
        sampling = dataclasses.replace(
            Sampling(
                temperature=0, max_tokens=most, stop=(until,) if isinstance(until, str) else until, seed=SEED
            ),
            **{name: settings[name] for name in GIVEN if name in settings},
        )
        room = self.engine.model_len - 1 - most
        if room < 1:
            raise UserError(
                f"max_gen_toks is {most}, which leaves no room for a context in {self.engine.model_len} tokens."
            )
        return (self._encode(context) or [self._first()])[-room:], sampling

    def _pair(self, context: str, after: str) -> Pair:
        if context.strip():
            return split(self._encode, context, after)
        first, tokens = self._first(), self._encode(context + after)
        return ([first], tokens) if tokens[:1] != [first] else (tokens[:1], tokens[1:])

    def _encode(self, text: str) -> list[int]:
        return self.loaded.tokenizer.encode(text, allow_special=True)

    def _first(self) -> int:
        first = first_token(self.loaded.tokenizer)
        if first is None:
            raise UserError(
                f"{self.loaded.about}: its tokenizer has no token that begins or ends a text, so the first token of a "
                "text cannot be scored."
            )
        return first

    @property
    def tokenizer_name(self) -> str:
        """Tells lm-eval's caches of chats apart."""
        source = self.chat_template(True)
        return f"{self.loaded.tokenizer.fingerprint()}-{hashlib.sha256(source.encode()).hexdigest()}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the model's template, or nothing."""
        return self.loaded.template.source if chat_template and self.loaded.template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as text."""
        if self.loaded.template is None:
            raise UserError(f"{self.loaded.about} has no chat template; leave out apply_chat_template.")
        return self.loaded.template.render(chat_history, add_generation_prompt=add_generation_prompt)
