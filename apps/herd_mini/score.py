"""Bits per byte of held-out text, source by source: of the recipe's models, of GPT-2 and of what is no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from apps.herd_mini import data
from apps.herd_mini.config import HerdConfig
from min_llm.data.prepare import prepare_corpus
from min_llm.data.prepared import Corpus
from min_llm.evals.baselines import baselines
from min_llm.evals.needles import Grid, longer, needles, spread
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded, load
from min_llm.infer.options import EngineConfig
from min_llm.train.evaluate import Evaluator
from min_llm.train.pretrain import score

PROMPT, WRITTEN = 24, 80  # tokens of a sample


def corpus(cfg: HerdConfig) -> Corpus:
    """The held-out text of every source, without the made documents."""
    return prepare_corpus(data.equally(cfg))


def loss(cfg: HerdConfig, loaded: Loaded, seq_len: int, held_out: Corpus) -> dict[str, float]:
    """Of the whole held-out text in rows of this length: loss (nats per token), bits_per_byte, and both by source."""
    rows = max(1, int(cfg.run["train"]["batch_size"]) * data.base_length(cfg) // seq_len)
    return score(Evaluator(loaded.cfg, loaded.runtime), loaded.params, held_out, rows, seq_len)


def grid(
    cfg: HerdConfig,
    loaded: Loaded,
    lengths: tuple[int, ...],
    held_out: Corpus,
    depths: tuple[float, ...] = (),
) -> Grid:
    """Needles in the held-out text of the haystack's source, also at lengths that the model was not trained on.
    depths: those of the configuration, if none are given."""
    hay = held_out.parts[cfg.retrieval.haystack].text("val").decode(errors="replace")
    model = longer(loaded, max(lengths))
    engine = Engine(model, EngineConfig(model_len=max(lengths) + 1, warm=False))
    return needles(
        engine,
        [hay],
        lengths,
        depths or spread(cfg.needles.depths),
        cfg.needles.trials,
        cfg.seed,
        opening=loaded.opening,
    )


def models(cfg: HerdConfig, folders: dict[str, Path], held_out: Corpus, context: int) -> dict[str, Any]:
    """Every model by its name, in rows of pretraining's length, and all in the precision of the first: a run loads in
    that which it was trained in, a folder for transformers in float32. "whole": the averaged model in rows of
    `context` tokens, as long as it has learnt to read."""
    loaded = {name: load(path) for name, path in folders.items()}
    runtime = next(iter(loaded.values())).runtime

    def bits(name: str, length: int) -> dict[str, float]:
        model = dataclasses.replace(loaded[name], runtime=runtime)
        scores = loss(cfg, model, length, held_out)
        return {k: v for k, v in scores.items() if k.startswith("bits_per_byte")}

    found = {name: bits(name, data.base_length(cfg)) for name in loaded}
    return found | {"whole": bits("averaged", context)}


def without_network(held_out: Corpus) -> dict[str, Any]:
    """xz -9 and a Kneser-Ney 5-gram, each knowing the training text of the source that it is scored on."""
    return {name: baselines(part) for name, part in held_out.parts.items()}


def samples(cfg: HerdConfig, model: Path, held_out: Corpus) -> dict[str, Any]:
    """What the model makes of the beginning of a held-out document of each source."""
    loaded, found = load(model), []
    for name, part in held_out.parts.items():
        begin = int(part.val.starts[1]) if part.val.n_documents > 1 else 0
        prompt = [int(token) for token in part.val.tokens[begin + 1 : begin + 1 + PROMPT]]
        text = loaded.generate(prompt, WRITTEN, temperature=0.8, seed=cfg.seed)
        found.append({"source": name, "prompt": loaded.tokenizer.decode(prompt), "text": text})
    return {"samples": found}
