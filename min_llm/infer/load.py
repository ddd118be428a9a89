"""A model ready to use: parameters, tokenizer, chat template, from a run or from other programs' files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from min_llm import platform, tokenizers
from min_llm.config import UserError
from min_llm.formats import gguf_model, huggingface, model, peft
from min_llm.infer.engine import Engine
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Output, Sampling
from min_llm.infer.text import opening, prompt_tokens
from min_llm.models import ModelConfig
from min_llm.nn.lora import adapt, merge
from min_llm.nn.runtime import Runtime, RuntimeConfig, resolve
from min_llm.tokenizers import Tokenizer, chat, hf
from min_llm.tokenizers.chat import ChatTemplate, Message
from min_llm.train.begin import read_run

Prompt = str | Sequence[Message] | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """about: what it is, for people. opening: the tokens that every text begins with. ends: those that end an
    answer. template: None where it is no chat model."""

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
        return prompt_tokens(self.tokenizer, text, self.opening)

    def ask(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation that the model is to answer."""
        if self.template is None:
            raise UserError(f"{self.about} has no chat template; it continues text (prompt).")
        return chat.encode_chat(self.tokenizer, self.template, messages)

    @functools.cached_property
    def engine(self) -> Engine:
        """For a few answers at once; it compiles what it needs when it first needs it."""
        return Engine(self, EngineConfig(max_sequences=8, chunk=64, warm=False))

    def generate(
        self, prompt: Prompt, max_tokens: int = 200, temperature: float = 0.0, **sampling: Any
    ) -> str:
        """What comes after a text, the answer to messages, or what comes after tokens. sampling: fields of
        `infer.request.Sampling`."""
        return "".join(self.stream(prompt, max_tokens, temperature, **sampling))

    def stream(
        self, prompt: Prompt, max_tokens: int = 200, temperature: float = 0.0, **sampling: Any
    ) -> Iterator[str]:
        """`generate`, piece by piece as it is made."""
        if isinstance(prompt, str):
            tokens: Sequence[Any] = self.prompt(prompt)
        else:
            tokens = self.ask(prompt) if prompt and not isinstance(prompt[0], int) else prompt  # type: ignore[arg-type]
        room = max(1, self.engine.model_len - len(tokens))
        asked = Sampling(max_tokens=min(max_tokens, room), temperature=temperature, **sampling)
        request = self.engine.add(tokens, asked)
        try:
            while self.engine.busy:
                yield from (
                    o.text for o in self._outputs() if o.request == request and o.choice == 0 and o.text
                )
        finally:
            self.engine.abort(request)

    def choices(self, tokens: Sequence[int], sampling: Sampling) -> list[str]:
        """The texts of sampling.n answers."""
        request = self.engine.add(tokens, sampling)
        texts = [""] * sampling.n
        while self.engine.busy:
            for output in self._outputs():
                if output.request == request:
                    texts[output.choice] += output.text
        return texts

    def _outputs(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            if output.error:
                raise UserError(output.error)
        return outputs


def load(
    source: str | Path,
    step: int | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    lora: str | Path | None = None,
) -> Loaded:
    """A run folder, a Hugging Face folder, a GGUF file, a name in `formats.named`, or OWNER/NAME on Hugging Face.

    step: the checkpoint of a run; the latest without it. runtime: how the model is to run; a run's is its own. lora:
    the folder of an adapter in peft's form, which is merged into the parameters. Raises UserError that says what was
    looked for.
    """
    path = model.found(source)
    if path is None:
        found = load_run(Path(source).expanduser(), step)
    elif path.is_dir():
        found = _from_folder(path, str(source), runtime)
    else:
        found = _from_gguf(path, str(source), runtime)
    if lora is None:
        return found
    merged = merge(adapt(found.params, peft.read(Path(lora).expanduser(), found.cfg)))
    return dataclasses.replace(found, about=f"{found.about} with {lora}", params=merged)


def load_run(folder: Path, step: int | None = None) -> Loaded:
    """The latest checkpoint of a run (or that of `step`)."""
    cfg, step, params = read_run(folder, step)
    tokenizer = tokenizers.load(str(folder / "tokenizer.json"))
    runtime = resolve(cfg.runtime, _layers(cfg.model))
    return Loaded(
        f"{folder} at step {step}",
        cfg.model,
        params,
        runtime,
        tokenizer,
        opening(tokenizer),
        _ends(tokenizer),
    )


def _from_folder(folder: Path, name: str, runtime: RuntimeConfig) -> Loaded:
    cfg, params = huggingface.read(folder)
    tokenizer = hf.from_folder(folder)
    ends = _ends(tokenizer, huggingface.end_ids(folder))
    return _loaded(name, cfg, params, runtime, tokenizer, ends, chat.from_folder(folder))


def _from_gguf(path: Path, name: str, runtime: RuntimeConfig) -> Loaded:
    cfg, params, metadata = gguf_model.read(path)
    tokenizer = hf.from_gguf(metadata)
    named = [metadata.get(f"tokenizer.ggml.{what}_token_id") for what in ("eot", "eom")]
    ends = _ends(tokenizer, [int(i) for i in named if i is not None])
    return _loaded(name, cfg, params, runtime, tokenizer, ends, chat.from_gguf(metadata))


# special tokens that end an answer in some model, whether or not its files say so (llama.cpp knows them by name too)
END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "</s>")


def _ends(tokenizer: Tokenizer, named: Sequence[int] = ()) -> tuple[int, ...]:
    """What ends an answer: the tokenizer's end of text first, then what the model's files name."""
    known = [tokenizer.special[token] for token in END_TOKENS if token in tokenizer.special]
    first = [] if tokenizer.eos is None else [tokenizer.eos]
    return tuple(dict.fromkeys([*first, *named, *known]))


def _loaded(
    name: str, cfg: ModelConfig, params: Any, runtime: RuntimeConfig, tokenizer: hf.HuggingFaceTokenizer,
    ends: tuple[int, ...], template: ChatTemplate | None,
) -> Loaded:  # fmt: skip
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} ids, the model {cfg.vocab_size}. They do not belong "
            "together."
        )
    if runtime.dtype == "auto" and platform.backend() == "cpu":
        # small chat models answer worse in bfloat16; who wants its speed says so
        runtime = dataclasses.replace(runtime, dtype="float32")
    run = resolve(runtime, _layers(cfg))
    return Loaded(name, cfg, params, run, tokenizer, tokenizer.opening, ends, template)


def _layers(cfg: ModelConfig) -> int:
    return getattr(cfg, "n_layers", 1)
