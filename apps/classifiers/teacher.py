"""A language model as the teacher: it scores texts by how well it can predict them.

The score of a text is the share of all texts that need more bits a byte. CCNet (Wenzek et al. 2020) sorted the web
so, by a 5-gram model of Wikipedia; Llama 2, Llama 3's teacher, was asked in words: a model of 135 M parameters answers
those almost at random (README.md).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

import min_llm
from min_llm import models
from min_llm.data import sources
from min_llm.data.split import draw
from min_llm.infer.load import Loaded
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import RuntimeConfig

NAME = "smollm2-135m-instruct"
SOURCES = ("wiki-en", "wiki-fr", "sotu", "moby-dick", "gsm8k", "help-en", "python-stdlib", "spam-assassin")
ROWS, LENGTH = 16, 96  # texts scored at once, tokens of a text


def texts(loaded: Loaded, most: int) -> dict[str, str]:
    """text -> source: the first LENGTH tokens of up to `most` documents of each, drawn by their hash; of mails, of the
    body."""
    found: dict[str, str] = {}
    for source in SOURCES:
        documents = set(sources.documents(source))
        for document in sorted(documents, key=lambda text: draw(text, 0))[:most]:
            text = document.partition("\n\n")[2] if source == "spam-assassin" else document
            tokens = loaded.tokenizer.encode(text[: 8 * LENGTH].strip())[: LENGTH - 1]
            begun = loaded.tokenizer.decode(tokens).replace("\ufffd", "").strip()
            if len(begun) >= 100:
                found[begun] = source
    return found


class Teacher:
    """`bits(texts)`: bits a byte that the model needs for each of them, its first token being given."""

    def __init__(self) -> None:
        self.loaded = min_llm.load(NAME, runtime=RuntimeConfig(dtype="bfloat16"))
        self._nats = jax.jit(self._nats_of)

    def bits(self, given: Sequence[str]) -> Float64[np.ndarray, " texts"]:
        found = []
        for first in range(0, len(given), ROWS):
            part = given[first : first + ROWS]
            tokens = np.zeros((ROWS, LENGTH + 1), np.int32)
            weights = np.zeros((ROWS, LENGTH), np.float32)
            for row, text in enumerate(part):
                ids = self.loaded.prompt(text)[: LENGTH + 1]
                tokens[row, : len(ids)], weights[row, : len(ids) - 1] = ids, 1
            nats = np.asarray(self._nats(self.loaded.params, tokens, weights), np.float64)
            found += [n / math.log(2) / len(text.encode()) for n, text in zip(nats, part, strict=False)]
        return np.array(found)

    def _nats_of(
        self, params: object, tokens: Int[Array, "b s+1"], weights: Float[Array, "b s"]
    ) -> Float[Array, " b"]:
        logits, _ = models.logits(params, self.loaded.cfg, Batch(tokens[:, :-1]), self.loaded.runtime)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(weights * logprobs, axis=1)


def write(path: Path, most: int) -> float:
    """Score the texts into a .jsonl file; the seconds of a text."""
    teacher = Teacher()
    given = texts(teacher.loaded, most)
    teacher.bits(["Some text."])  # compiles
    began = time.perf_counter()
    bits = teacher.bits(list(given))
    seconds = (time.perf_counter() - began) / len(given)
    harder = 1 - np.argsort(np.argsort(bits)) / (len(bits) - 1)
    with path.open("w", encoding="utf-8") as file:
        for (text, source), score, value in zip(given.items(), harder, bits, strict=True):
            row = {"text": text, "score": float(score), "bits_per_byte": float(value), "source": source}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return seconds
