"""Bits per byte of held-out text, source by source: of the recipe's models, of GPT-2 and of what is no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.herd_mini import data
from apps.herd_mini.config import HerdConfig
from min_llm.data.prepare import prepare_corpus
from min_llm.data.prepared import Corpus
from min_llm.evals.baselines import baselines
from min_llm.evals.needles import Grid, longer, needles
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded, load
from min_llm.infer.options import EngineConfig
from min_llm.train.evaluate import Evaluator
from min_llm.train.pretrain import score


def corpus(cfg: HerdConfig) -> Corpus:
    """The held-out text of every source, without the made documents."""
    return prepare_corpus(data.equally(cfg))


def loss(cfg: HerdConfig, loaded: Loaded, seq_len: int, held_out: Corpus) -> dict[str, float]:
    """Of the whole held-out text in rows of this length: loss (nats per token), bits_per_byte, and both by source."""
    rows = max(1, int(cfg.run["train"]["batch_size"]) * data.base_length(cfg) // seq_len)
    return score(Evaluator(loaded.cfg, loaded.runtime), loaded.params, held_out, rows, seq_len)


def grid(cfg: HerdConfig, loaded: Loaded, lengths: tuple[int, ...], held_out: Corpus) -> Grid:
    """Needles in the held-out text of the haystack's source, also at lengths that the model was not trained on."""
    hay = held_out.parts[cfg.retrieval.haystack].text("val").decode(errors="replace")
    depths = [i / max(cfg.needles.depths - 1, 1) for i in range(cfg.needles.depths)]
    model = longer(loaded, max(lengths))
    engine = Engine(model, EngineConfig(model_len=max(lengths) + 1, warm=False))
    return needles(engine, [hay], lengths, depths, cfg.needles.trials, cfg.seed, opening=loaded.opening)


def models(cfg: HerdConfig, folders: dict[str, Path], held_out: Corpus) -> dict[str, Any]:
    """Every model by its name, in rows of pretraining's length."""
    return {
        name: {k: v for k, v in loss(cfg, load(path), data.base_length(cfg), held_out).items() if "bits" in k}
        for name, path in folders.items()
    }


def without_network(held_out: Corpus) -> dict[str, Any]:
    """xz -9 and a Kneser-Ney 5-gram, each knowing the training text of the source that it is scored on."""
    return {name: baselines(part) for name, part in held_out.parts.items()}
