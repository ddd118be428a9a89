"""Distilling a larger model's opinion of texts into an encoder (encoder.py; L3-1.10).

A teacher has given each text a score from 0 to 1. The loss is the cross-entropy of the encoder's probability with that
score (Hinton et al. 2015, "Distilling the knowledge in a neural network"); AdamW, with a rate that rises over the first
tenth of the steps and falls to zero by a cosine. What is tested is the agreement with the teacher on texts held out:
whether the teacher is right is another question.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from min_llm import models
from min_llm.config import UserError, dump, option
from min_llm.data import readers, split
from min_llm.data.curate import encoder
from min_llm.data.curate.encoder import Encoder, EncoderShape, Rows, Weights
from min_llm.data.curate.train_linear import auc
from min_llm.reporting import reporter


class Scored(NamedTuple):
    text: str
    score: float
    held_out: bool


@dataclass(frozen=True)
class DistilConfig:
    """What `min-llm data distil` is told."""

    scores: str = field(
        metadata={"help": '.jsonl file: {"text": "…", "score": 0.7} in each line, scores from 0 to 1'}
    )
    teacher: str = field(metadata={"help": "who gave the scores, for the record"})
    name: str = option("quality", "what the score means; the column that labels are written to")
    output: str = option("encoder.safetensors", "file for the encoder")
    shape: EncoderShape = option(EncoderShape(), "of the encoder")
    dropout: float = option(0.1, "of what the layers add")
    held_out: float = option(0.2, "share of the texts for the test, drawn by their hash")
    epochs: int = option(10, "times that every text is seen")
    batch: int = option(32, "texts of a step")
    rate: float = option(2e-3, "highest learning rate")
    decay: float = option(0.1, "weight decay")
    seed: int = option(0, "of the split, the order and the first weights")

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out is {self.held_out}; it must lie between 0 and 1.")
        if min(self.epochs, self.batch) < 1 or self.rate <= 0:
            raise UserError("epochs and batch must be at least 1, and rate above 0.")


def read(cfg: DistilConfig) -> list[Scored]:
    """The texts in the order of the file, each once."""
    found: dict[str, Scored] = {}
    for number, row in readers.json_lines(Path(cfg.scores).expanduser()):
        score = row.get("score") if isinstance(row, dict) else None
        if not isinstance(score, int | float) or not 0 <= score <= 1 or not isinstance(row.get("text"), str):
            raise UserError(f"{cfg.scores}, line {number}: a row has a text and a score from 0 to 1.")
        held = split.draw(row["text"], cfg.seed) < cfg.held_out * 2**64
        found.setdefault(row["text"], Scored(row["text"], float(score), held))
    texts = list(found.values())
    for held in (False, True):
        if len({t.score >= 0.5 for t in texts if t.held_out == held}) < 2:
            raise UserError(f"{cfg.scores} needs scores on both sides of 0.5 to learn from and to hold out.")
    return texts


def train(cfg: DistilConfig) -> Encoder:
    """Read, fit, test on what was held out, save. Raises UserError for scores that are not there."""
    texts = read(cfg)
    model = fit(cfg, [t for t in texts if not t.held_out])
    about: dict[str, Any] = {
        "name": cfg.name,
        "teacher": cfg.teacher,
        "config": dump(cfg),
        "texts": sum(not t.held_out for t in texts),
        "held_out": agreement(model, [t for t in texts if t.held_out]),
    }
    model = replace(model, about=about)
    model.save(Path(cfg.output).expanduser())
    return model


def fit(cfg: DistilConfig, texts: list[Scored]) -> Encoder:
    """An encoder of these texts; the same for the same texts, settings and seed."""
    rows = cfg.shape.rows([t.text for t in texts])
    wanted = np.array([t.score for t in texts], np.float32)
    batches = -(-len(texts) // cfg.batch)
    weights = models.init_spec(encoder.spec(cfg.shape), cfg.seed)
    state = _optimizer(cfg, cfg.epochs * batches).init(weights)
    draw, key = np.random.default_rng(cfg.seed), jax.random.key(cfg.seed)
    for epoch in range(cfg.epochs):
        order = np.resize(
            draw.permutation(len(texts)), batches * cfg.batch
        )  # the last batch takes some again
        losses = []
        for taken in order.reshape(batches, cfg.batch):
            key, own = jax.random.split(key)
            batch = rows.of(taken), wanted[taken]
            weights, state, value = _step(cfg, cfg.epochs * batches, weights, state, own, *batch)
            losses.append(value)
        reporter().info(f"epoch {epoch + 1}: {float(np.mean(losses)):.4f} nats a text")
    return Encoder(cfg.shape, weights, {"name": cfg.name})


def _optimizer(cfg: DistilConfig, steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, cfg.rate, -(-steps // 10), steps)
    return optax.adamw(rate, weight_decay=cfg.decay)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(
    cfg: DistilConfig, steps: int, weights: Weights, state: Any, key: Array, rows: Rows, wanted: Array
) -> tuple[Weights, Any, Float[Array, ""]]:
    trunk = replace(cfg.shape.trunk(), dropout=cfg.dropout)
    value, grads = jax.value_and_grad(loss)(weights, trunk, key, rows, wanted)
    updates, state = _optimizer(cfg, steps).update(grads, state, weights)
    return optax.apply_updates(weights, updates), state, value


def loss(
    weights: Weights, trunk: Any, key: Array, rows: Rows, wanted: Float[Array, " b"]
) -> Float[Array, ""]:
    """The mean cross-entropy with the teacher's scores, in nats."""
    found = encoder.scores(weights, trunk, rows, key)
    return optax.sigmoid_binary_cross_entropy(found, wanted).mean()


def agreement(model: Any, texts: list[Scored]) -> dict[str, Any]:
    """texts; accuracy and area under the ROC curve, where the teacher's score of 0.5 and more is the truth. model: any
    classifier with the labels "low" and "high"."""
    high = model.predict([t.text for t in texts])[:, 1]
    truth = np.array([t.score >= 0.5 for t in texts])
    return {
        "texts": len(texts),
        "accuracy": float(((high >= 0.5) == truth).mean()),
        "auc": auc(high, truth),
    }
