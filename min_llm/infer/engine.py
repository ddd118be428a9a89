"""Many requests at once on one model: continuous batching over a paged cache.

    engine = Engine(load("smollm2-135m-instruct"))
    engine.add(prompt_tokens, Sampling(max_tokens=20))
    while engine.busy:
        for output in engine.step(): ...

A step computes the next token of every running answer and a chunk of the prompts that wait, in one compiled program.
The same request with the same seed gives the same tokens whatever else runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from min_llm.config import UserError
from min_llm.formats import peft
from min_llm.infer import compiles, drawing, paged, speculate, step
from min_llm.infer.adapters import Adapters, Version
from min_llm.infer.answer import Answer
from min_llm.infer.choose import mixed
from min_llm.infer.constrain import Constrainer, Matcher
from min_llm.infer.look_back import look_back
from min_llm.infer.options import EngineConfig, Statistics
from min_llm.infer.pages import Pages, root
from min_llm.infer.request import Grammar, Output, Sampling, Token
from min_llm.infer.scheduler import Part, Plan, Scheduler
from min_llm.infer.scheduler import Sequence as Text
from min_llm.infer.text_stream import TextStream
from min_llm.nn.lora import Adapter

if TYPE_CHECKING:
    from min_llm.infer.load import Loaded

SMALLEST_CHUNK = 64  # a shape for short prompts beside the largest one
MOST_GUESSES = 48  # of all answers together in a step
FEWEST_ROWS = 8  # products of fewer rows are computed in another way by XLA, with other rounding


class Engine:
    """One thread at a time may use it."""

    def __init__(
        self,
        loaded: Loaded,
        config: EngineConfig = EngineConfig(),
        draft: Loaded | None = None,
        release: bool = False,
    ) -> None:
        """Compiles everything that it will ever run. draft: a smaller model that guesses config.speculate tokens.
        release: take the parameters for itself, so that `loaded` and `draft` can be used no more."""
        self.config, self.cfg, self.tokenizer = config, loaded.cfg, loaded.tokenizer
        self.vocab = min(loaded.tokenizer.vocab_size, loaded.cfg.vocab_size)
        self.ends = frozenset(loaded.ends)
        size = config.page_size
        longest = min(config.model_len or self.cfg.max_seq_len, self.cfg.max_seq_len)
        per_page = paged.page_bytes(self.cfg, size, config.cache_dtype(loaded.runtime.dtype))
        total = config.cache_tokens // size or config.cache_bytes // per_page
        total = max(1, min(total, config.max_sequences * -(-longest // size)))
        self.model_len = min(longest, total * size)
        self._pages = Pages(total, size)
        guesses = min(config.max_sequences * config.speculate, MOST_GUESSES)
        most = -(-(config.max_sequences + guesses) // FEWEST_ROWS) * FEWEST_ROWS
        self._scheduler = Scheduler(self._pages, config.max_sequences, most, config.chunk)
        loras = config.max_loras, config.max_lora_rank
        self._program = self._compiled(loaded, self._pages, most, release, loras)
        self._drafter: speculate.Drafter | None = None
        if config.speculate:
            self._drafter = self._draft(draft, release) if draft else speculate.Prompt()
        self.adapters = Adapters(config.max_loras)
        self._answers: dict[Text, Answer] = {}
        self._later: dict[
            Text, list[Answer]
        ] = {}  # choices that wait for another one to compute their prompt
        self._stash: list[Output] = []
        self._constrainer = Constrainer(self.tokenizer, self.vocab, self.ends)
        self._next = 0
        self._steps = self._prompt_tokens = self._generated = self._drafted = self._accepted = 0
        self._compiles = compiles.count()

    def _compiled(
        self, loaded: Loaded, pages: Pages, most: int, release: bool, loras: tuple[int, int] = (0, 0)
    ) -> step.Program:
        """The steps of a model with up to `most` single rows."""
        config = self.config
        singles = {FEWEST_ROWS << i for i in range(8) if FEWEST_ROWS << i < most} | {most}
        program = step.Program(
            loaded.params,
            loaded.cfg,
            loaded.runtime,
            self.vocab,
            pages,
            (config.max_sequences, -(-self.model_len // pages.size)),
            config.cache_dtype(loaded.runtime.dtype),
            sorted(singles),
            sorted({min(SMALLEST_CHUNK, config.chunk), config.chunk}),
            release,
            loras,
        )
        if config.warm:
            program.warm_up()
        return program

    def _draft(self, loaded: Loaded, release: bool) -> speculate.Draft:
        if loaded.tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise UserError(f"{loaded.about} has another tokenizer; a draft model must have the same one.")
        if loaded.cfg.max_seq_len < self.model_len:
            raise UserError(
                f"{loaded.about} has a context of {loaded.cfg.max_seq_len} tokens, less than the {self.model_len} of "
                "the model that it drafts for. Give the engine a smaller model_len."
            )
        pages = Pages(self._pages.total, self._pages.size)
        most = -(-self.config.max_sequences // FEWEST_ROWS) * FEWEST_ROWS
        return speculate.draft(
            self._compiled(loaded, pages, most, release), pages, self.config.max_sequences, self.config.chunk
        )

    # -- requests

    def check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """UserError if this can never be served."""
        if not prompt:
            raise UserError("The prompt has no tokens. Give at least one.")
        for token in prompt:
            if (
                not isinstance(token, (int, np.integer))
                or isinstance(token, bool)
                or not 0 <= token < self.vocab
            ):
                raise UserError(
                    f"The prompt has token {token!r}; the model has tokens 0 to {self.vocab - 1}."
                )
        sampling.check_ids(self.vocab)
        new = sampling.max_tokens or 1
        if len(prompt) + new > self.model_len:
            raise UserError(
                f"The prompt has {len(prompt)} tokens and {new} are to follow, {len(prompt) + new} together; at most "
                f"{self.model_len} fit. Shorten the prompt or ask for fewer."
            )
        if sampling.min_tokens > new and sampling.max_tokens is not None:
            raise UserError(
                f"min_tokens is {sampling.min_tokens}, more than max_tokens ({sampling.max_tokens})."
            )

    def add(
        self, prompt: Sequence[int], sampling: Sampling, adapter: str | None = None, salt: str = ""
    ) -> int:
        """Queue a request; its number. UserError as in `check`. adapter: a name that was given to `load_lora`; the
        request keeps what it means now. salt: only requests with the same one share pages."""
        version = self.adapters[adapter]
        self.check(prompt, sampling)
        matcher = self.compile_grammar(sampling.grammar) if sampling.grammar else None
        request, self._next = self._next, self._next + 1
        if sampling.seed is None:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(64))
        text = list(map(int, prompt))
        answers = [
            self._answer(request, i, text, sampling, matcher and matcher.copy(), salt, version)
            for i in range(sampling.n)
        ]
        self._begin(answers[0])
        if len(answers) > 1:
            self._later[answers[0].sequence] = answers[1:]
        return request

    def compile_grammar(self, grammar: Grammar) -> Matcher:
        """UserError if it cannot be followed. Any thread may do this, which can take seconds, before `add` does it
        again and finds it done."""
        return self._constrainer.compile(grammar)

    def abort(self, request: int) -> None:
        """Nobody wants it any more; nothing if it has ended."""
        for first, answers in list(self._later.items()):
            if answers[0].request == request:
                del self._later[first]
        for answer in [a for a in self._answers.values() if a.request == request]:
            self._end(answer)

    @property
    def busy(self) -> bool:
        return bool(self._answers or self._stash)

    def statistics(self) -> Statistics:
        pages, scheduler = self._pages, self._scheduler
        return Statistics(
            waiting=len(scheduler.waiting) + sum(map(len, self._later.values())),
            running=len(scheduler.running),
            pages_total=pages.total,
            pages_free=pages.free,
            pages_cached=pages.cached,
            pages_used=pages.used,
            compiles=compiles.count() - self._compiles,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated,
            preemptions=scheduler.preemptions,
            prefix_hits=scheduler.prefix_hits,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    def run(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> Iterator[Output]:
        """All of these, as their outputs come; their numbers follow the order given."""
        for prompt, sampling in requests:
            self.add(prompt, sampling)
        while self.busy:
            yield from self.step()

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str | None = None) -> np.ndarray:
        """[n, dim] float32: the mean of each prompt's final hidden states, of length 1. Other requests go on
        meanwhile."""
        sampling, version = Sampling(max_tokens=1, seed=0), self.adapters[adapter]
        wanted = []
        for prompt in prompts:
            self.check(prompt, sampling)
        for prompt in prompts:
            answer = self._answer(-1, 0, list(map(int, prompt)), sampling, None, "", version)
            answer.embedding = np.zeros(self._program.dim, np.float32)
            answer.sequence.fresh = True
            self._begin(answer)
            wanted.append(answer)
        while any(a.sequence in self._answers for a in wanted):
            self._stash += self._step()
        sums = np.stack([a.embedding for a in wanted if a.embedding is not None])
        return sums / np.linalg.norm(sums, axis=-1, keepdims=True)

    # -- adapters

    def read_lora(self, path: str | Path) -> Adapter:
        """The adapter of a folder in peft's form, for `load_lora`; any thread may do this, which can take seconds.
        UserError as in `peft.read`."""
        return peft.read(Path(path), self.cfg)

    def load_lora(self, name: str, adapter: Adapter | str | Path) -> None:
        """Let requests ask for an adapter by this name. A name that is known means the new one from now on; requests
        that run end with the old one. UserError where it does not fit the model or the engine, or there is no room;
        then nothing has changed."""
        if not self.config.max_loras:
            raise UserError("This engine has no room for adapters; set max_loras.")
        if not isinstance(adapter, Adapter):
            adapter = self.read_lora(adapter)
        waiting = itertools.chain.from_iterable(self._later.values())
        busy = {answer.sequence.adapter for answer in (*self._answers.values(), *waiting)}
        version = self.adapters.room(name, busy)
        self._program.fill(version.slot, adapter)
        self.adapters.set(name, version)

    def unload_lora(self, name: str) -> None:
        """Nobody can ask for it any more; requests that run end with it. UnknownAdapter if there is none."""
        self.adapters.remove(name)

    # -- a step

    def step(self) -> list[Output]:
        """One step of the model, and what it added to answers; [] when there is nothing to do. If it raises, every
        request is kept and computed anew by the next step."""
        stash, self._stash = self._stash, []
        return stash + self._step()

    def _step(self) -> list[Output]:
        try:
            self._guess()
            plan = self._scheduler.plan()
            if plan.parts:
                return self._run(plan)
            if self._answers:
                raise RuntimeError("The scheduler made no progress; this is a bug.")
            return []
        except Exception:
            self._recover()
            raise

    def _guess(self) -> None:
        """Drafts for answers that only lack their next token. What edits logits depends on each token before, so those
        answers get none."""
        if self._drafter is None:
            return
        running = [self._answers[s] for s in self._scheduler.running if s.missing == 1]
        plain = [a for a in running if not a.edited and a.embedding is None]
        self._drafter.propose(plain, self.config.speculate)
        for answer in plain:
            del answer.sequence.drafts[max(0, answer.most - answer.produced - 1) :]

    def _run(self, plan: Plan) -> list[Output]:
        logits, hidden, starts = self._program.run(plan)
        rows = [
            (self._answers[part.sequence], part.start + part.count - n + 1 + i)
            for part in plan.parts
            if part.samples
            for n in [part.count if part in plan.singles else 1]
            for i in range(n)
        ]
        drawn = iter(self._program.draw(logits, rows))
        wanted = [(p, at, self._answers[p.sequence]) for p, at in zip(plan.parts, starts, strict=True)]
        look_back(self._program, wanted, hidden)
        outputs: list[Output] = []
        for part in plan.parts:
            n = part.count if part in plan.singles else 1
            outputs += self._commit(part, list(itertools.islice(drawn, n if part.samples else 0)))
        self._steps += 1
        return outputs

    def _commit(self, part: Part, drawn: list[Token]) -> list[Output]:
        """What the tokens drawn behind a part mean: those behind a wrong draft are dropped."""
        answer = self._answers[part.sequence]
        if answer.embedding is not None or not drawn:
            self._scheduler.commit(part, part.count)
            self._prompt_tokens += part.count
            if part.samples:
                self._end(answer)
            return []
        outputs, drafts = [], answer.sequence.drafts
        for i, token in enumerate(drawn):
            outputs.append(self._take(answer, token))
            if outputs[-1].finish is not None or i == len(drafts) or token.id != drafts[i]:
                break
        self._drafted += len(drafts)
        self._accepted += len(outputs) - 1
        drafts.clear()
        self._generated += len(outputs)
        self._prompt_tokens += part.count - len(drawn)
        self._scheduler.commit(part, part.count - len(drawn) + len(outputs))
        for later in self._later.pop(answer.sequence, ()):
            self._begin(later)
        if outputs[-1].finish is not None:
            self._end(answer)
        return outputs

    def _take(self, answer: Answer, token: Token) -> Output:
        """One token more; what goes wrong with it ends this answer and no other."""
        if answer.cached is None:
            answer.cached = answer.sequence.cached
        if token.id == drawing.FORBIDDEN:
            return answer.fail(answer.stuck)
        try:
            return answer.take(token)
        except UserError as error:
            return answer.fail(str(error))

    # -- the lives of answers

    def _answer(
        self, request: int, choice: int, prompt: list[int], sampling: Sampling, matcher: Any, salt: str,
        version: Version,
    ) -> Answer:  # fmt: skip
        assert sampling.seed is not None
        scores = [Token(prompt[0])] if sampling.prompt_logprobs is not None and choice == 0 else None
        special = frozenset(self.tokenizer.special.values())
        before = () if prompt[-1] in special else prompt  # an answer in a chat begins a text of its own
        penalised = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        )
        seen = None
        if penalised:
            seen = np.zeros(self.vocab, bool)
            seen[prompt] = True
        fresh = scores is not None or not self.config.prefix_cache
        return Answer(
            request=request,
            choice=choice,
            sampling=sampling,
            seed=mixed(sampling.seed, choice),
            sequence=Text(list(prompt), root(version.root, salt), fresh, version.slot),
            prompt=len(prompt),
            most=min(sampling.max_tokens or self.model_len, self.model_len - len(prompt)),
            ends=(frozenset() if sampling.ignore_end else self.ends) | frozenset(sampling.stop_ids),
            text=TextStream(self.tokenizer, sampling.stop, hidden=special, before=before),
            matcher=matcher,
            counts=np.zeros(self.vocab, np.int32) if penalised else None,
            seen=seen,
            scores=scores,
        )

    def _begin(self, answer: Answer) -> None:
        self._answers[answer.sequence] = answer
        self._scheduler.add(answer.sequence)

    def _end(self, answer: Answer) -> None:
        del self._answers[answer.sequence]
        self._scheduler.remove(answer.sequence)

    def _recover(self) -> None:
        """A step has failed and what the pages hold is lost."""
        self._scheduler.stop_all()
        self._pages.clear()
        self._program.empty()
        if self._drafter is not None:
            self._drafter.forget()
