"""A model ready to use: parameters, tokenizer, chat template, from a run or from other programs' files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from min_llm import models, platform, tokenizers
from min_llm import spec as spec_lib
from min_llm.config import UserError, nearest
from min_llm.formats import gguf_model, huggingface, named
from min_llm.infer.sample import Sampling, generate
from min_llm.models import ModelConfig
from min_llm.nn.runtime import Runtime, RuntimeConfig, resolve
from min_llm.tokenizers import Tokenizer, chat, hf
from min_llm.tokenizers.chat import ChatTemplate, Message
from min_llm.train.optim import optimizer
from min_llm.train.run import Run, load_config
from min_llm.train.step import init_state


@dataclasses.dataclass(frozen=True)
class Loaded:
    """about: what it is, for people. opening: the tokens that every text begins with. template: None where it is no
    chat model. ends: tokens that end an answer."""

    about: str
    cfg: ModelConfig
    params: Any
    runtime: Runtime
    tokenizer: Tokenizer
    opening: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    template: ChatTemplate | None = None

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text to be continued."""
        tokens = [*self.opening, *self.tokenizer.encode(text)]
        if not tokens:
            raise UserError(
                "The prompt is empty and this tokenizer has no token to start from. Give some text."
            )
        return tokens

    def ask(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation that the model is to answer."""
        if self.template is None:
            raise UserError(f"{self.about} has no chat template; it continues text (prompt).")
        return chat.encode_chat(self.tokenizer, self.template, messages)

    def generate(
        self,
        prompt: str | Sequence[Message] | Sequence[int],
        max_tokens: int = 200,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """What comes after a text, the answer to messages, or what comes after tokens."""
        if isinstance(prompt, str):
            tokens: Sequence[Any] = self.prompt(prompt)
        else:
            tokens = self.ask(prompt) if prompt and not isinstance(prompt[0], int) else prompt  # type: ignore[arg-type]
        return self.continuations([list(tokens)], max_tokens, Sampling(temperature, top_k, top_p), seed)[0]

    def continuations(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: Sampling, seed: int
    ) -> list[str]:
        """Texts that follow these tokens, each up to what ends an answer."""
        end = self.ends[0] if self.ends else None
        vocab = self.tokenizer.vocab_size
        out = generate(self.params, self.cfg, self.runtime, prompts, max_tokens, sampling, seed, end, vocab)
        return [self.tokenizer.decode(ids) for ids in out]


def load(source: str | Path, step: int | None = None, runtime: RuntimeConfig = RuntimeConfig()) -> Loaded:
    """A run folder, a Hugging Face folder, a GGUF file, a name in `formats.named`, or OWNER/NAME on Hugging Face.

    step: the checkpoint of a run; the latest without it. runtime: how the model is to run; a run's is its own. Raises
    UserError that says what was looked for.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf" or str(source) in named.NAMED:
        file = named.fetched(str(source)) if str(source) in named.NAMED else path
        return _from_gguf(file, str(source), runtime)
    if path.is_dir():
        return _from_folder(path, runtime) if huggingface.is_folder(path) else load_run(path, step)
    if str(source).count("/") == 1 and not path.is_absolute() and not str(source).startswith("."):
        return _from_folder(huggingface.downloaded(str(source)), runtime, str(source))
    raise UserError(
        f"{str(source)!r} is no run folder, Hugging Face folder or GGUF file, and no name that is known "
        f"({', '.join(named.NAMED)}).{nearest(str(source), list(named.NAMED))}"
    )


def load_run(folder: Path, step: int | None = None) -> Loaded:
    """The latest checkpoint of a run (or that of `step`)."""
    cfg = load_config(folder)
    run = Run(folder, cfg)
    have = run.checkpoints.steps()
    if not have or (step is not None and step not in have):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise UserError(
            f"{folder} does not have {wanted} (it has: {', '.join(map(str, have)) or 'none'}). Train it first."
        )
    step = have[-1] if step is None else step
    spec = models.spec(cfg.model)
    opt = optimizer(cfg.optim, spec, cfg.train.steps)
    target = jax.eval_shape(lambda p: init_state(p, opt), spec_lib.shapes(spec))
    state, _ = run.checkpoints.restore(step, target, spec)
    tokenizer = tokenizers.load(str(folder / "tokenizer.json"))
    end = () if tokenizer.eos is None else (tokenizer.eos,)  # documents begin with what ends the one before
    runtime = resolve(cfg.runtime, _layers(cfg.model))
    return Loaded(f"{folder} at step {step}", cfg.model, state.params, runtime, tokenizer, end, end)


def _from_folder(folder: Path, runtime: RuntimeConfig, name: str = "") -> Loaded:
    cfg, params = huggingface.read(folder)
    tokenizer = hf.from_folder(folder)
    template = chat.from_folder(folder)
    return _loaded(name or str(folder), cfg, params, runtime, tokenizer, template)


def _from_gguf(path: Path, name: str, runtime: RuntimeConfig) -> Loaded:
    cfg, params, metadata = gguf_model.read(path)
    return _loaded(name, cfg, params, runtime, hf.from_gguf(metadata), chat.from_gguf(metadata))


def _loaded(
    name: str, cfg: ModelConfig, params: Any, runtime: RuntimeConfig, tokenizer: hf.HuggingFaceTokenizer,
    template: ChatTemplate | None,
) -> Loaded:  # fmt: skip
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} ids, the model {cfg.vocab_size}. They do not belong "
            "together."
        )
    ends = () if tokenizer.eos is None else (tokenizer.eos,)
    if runtime.dtype == "auto" and platform.backend() == "cpu":
        # generation on CPU waits for memory: bfloat16 would save nothing, and small chat models answer worse in it
        runtime = dataclasses.replace(runtime, dtype="float32")
    run = resolve(runtime, _layers(cfg))
    return Loaded(name, cfg, params, run, tokenizer, tokenizer.opening, ends, template)


def _layers(cfg: ModelConfig) -> int:
    return getattr(cfg, "n_layers", 1)
