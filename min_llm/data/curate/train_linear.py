"""Fitting a linear classifier (linear.py): fastText's objective and optimizer, in JAX.

The loss of a text is -ln p(its label). Each step is stochastic gradient descent on a batch of texts whose gradients are
added up, as fastText's threads do on one text each, and the rate falls linearly to zero over the epochs. The gradient
of a bin's row is the same for all n-grams of a text, so it is written down here and scattered; reverse-mode
differentiation would make a dense gradient of the whole table for a few hundred rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from min_llm.config import UserError, dump, option
from min_llm.data.curate import labelled
from min_llm.data.curate.labelled import LabelledConfig, Text
from min_llm.data.curate.linear import Linear
from min_llm.data.curate.ngrams import Bins, NGrams
from min_llm.reporting import reporter


@dataclass(frozen=True)
class ClassifierConfig:
    """What `min-llm data classifier` is told."""

    data: LabelledConfig = field(metadata={"help": "the texts and their labels"})
    name: str = option(
        "label", "what it tells apart: quality, language, …; the column that labels are written to"
    )
    output: str = option("classifier.safetensors", "file for the classifier")
    ngrams: NGrams = option(NGrams(), "what is looked at")
    dim: int = option(16, "of the embeddings")
    epochs: int = option(5, "times that every text is seen")
    rate: float = option(0.5, "learning rate of a text at the start; it falls to 0 linearly")
    batch: int = option(16, "texts of a step")
    seed: int = option(0, "of the split, the order and the first embeddings")

    def __post_init__(self) -> None:
        if self.data is None:
            raise UserError(
                "A classifier learns from texts: give data.sources (label -> texts) or data.rows."
            )
        if min(self.dim, self.epochs, self.batch) < 1 or self.rate <= 0:
            raise UserError("dim, epochs and batch must be at least 1, and rate above 0.")


Weights = tuple[Float[Array, "bins dim"], Float[Array, "dim labels"]]


@partial(jax.jit, donate_argnums=0)
def step(
    weights: Weights,
    bins: Int[Array, " grams"],
    shares: Float[Array, " grams"],
    texts: Int[Array, " grams"],
    targets: Int[Array, " texts"],
    rate: Float[Array, ""],
) -> tuple[Weights, Float[Array, ""]]:
    """One step of SGD; returns the weights and the sum of the losses in nats. `shares` are those of a text's n-grams
    that fall into each of its bins: 0 is padding, and so is a text with target -1."""
    embed, out = weights
    hidden = jax.ops.segment_sum(shares[:, None] * embed[bins], texts, len(targets))  # [texts, dim]
    scores = jax.nn.log_softmax(hidden @ out)
    real = (targets >= 0)[:, None]
    wanted = jax.nn.one_hot(targets, out.shape[1])
    d_scores = jnp.where(real, jnp.exp(scores) - wanted, 0.0)
    d_hidden = -rate * d_scores @ out.T
    updated = embed.at[bins].add(shares[:, None] * d_hidden[texts]), out - rate * hidden.T @ d_scores
    return updated, -jnp.sum(jnp.where(real, wanted * scores, 0.0))


def init(cfg: ClassifierConfig, labels: int) -> Weights:
    """As fastText: embeddings uniform in ±1/dim, zeros behind them."""
    bound = 1 / cfg.dim
    key = jax.random.key(cfg.seed)
    embed = jax.random.uniform(key, (1 << cfg.ngrams.bits, cfg.dim), minval=-bound, maxval=bound)
    return embed, jnp.zeros((cfg.dim, labels))


def train(cfg: ClassifierConfig) -> Linear:
    """Read, fit, test on what was held out, save. Raises UserError for texts that are not there."""
    began = time.perf_counter()
    labels, texts = labelled.read(cfg.data, cfg.seed)
    learnt = [text for text in texts if not text.held_out]
    tested = [text for text in texts if text.held_out]
    read = time.perf_counter()
    model = fit(cfg, labels, learnt)
    fitted = time.perf_counter()
    about: dict[str, Any] = {
        "name": cfg.name,
        "teacher": cfg.data.teacher(),
        "origins": cfg.data.origins(),
        "config": dump(cfg),
        "texts": len(learnt),
        "held_out": scores(model, tested),
    }
    if cfg.data.tested:
        about["tested"] = scores(model, labelled.read_tested(cfg.data, labels, cfg.seed))
    model = Linear(labels, cfg.ngrams, model.table, about)
    model.save(Path(cfg.output).expanduser())
    reporter().info(f"read in {read - began:.1f} s, trained in {fitted - read:.1f} s")
    return model


def fit(cfg: ClassifierConfig, labels: tuple[str, ...], texts: list[Text]) -> Linear:
    """A classifier of these texts; the same for the same texts, settings and seed."""
    grams = cfg.ngrams.shares([text.text for text in texts])
    targets = np.array([text.label for text in texts])
    weights = init(cfg, len(labels))
    draw = np.random.default_rng(cfg.seed)
    steps = -(-len(texts) // cfg.batch)
    for epoch in range(cfg.epochs):
        order = draw.permutation(len(texts))
        losses = []
        for number in range(steps):
            rows = order[number * cfg.batch : (number + 1) * cfg.batch]
            rate = cfg.rate * (1 - (epoch * steps + number) / (cfg.epochs * steps))
            weights, loss = step(weights, *_padded(*grams, targets, rows, cfg.batch), np.float32(rate))
            losses.append(loss)
        reporter().info(f"epoch {epoch + 1}: {sum(map(float, losses)) / len(texts):.4f} nats a text")
    embed, out = weights
    return Linear(labels, cfg.ngrams, np.asarray(embed @ out), {"name": cfg.name})


def _padded(
    grams: Bins, shares: np.ndarray, targets: np.ndarray, rows: np.ndarray, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `step` takes of these texts, as long as the next power of two: few shapes to compile."""
    bins, offsets = grams
    sizes = offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(sizes)
    places = np.arange(ends[-1]) + np.repeat(offsets[rows] - (ends - sizes), sizes)
    padded = np.zeros((3, 1 << max(int(ends[-1]) - 1, 1).bit_length()), np.int32)
    padded[:, : ends[-1]] = (
        bins[places],
        shares[places].view(np.int32),
        np.repeat(np.arange(len(rows)), sizes),
    )
    wanted = np.full(batch, -1, np.int32)
    wanted[: len(rows)] = targets[rows]
    return padded[0], padded[1].view(np.float32), padded[2], wanted


def scores(model: Linear, texts: list[Text]) -> dict[str, Any]:
    """texts; accuracy; recall of each label; for two labels the area under the ROC curve of the second one's
    probability."""
    found = model.predict([text.text for text in texts])
    targets = np.array([text.label for text in texts])
    right = found.argmax(axis=1) == targets
    recall = {model.labels[label]: float(right[targets == label].mean()) for label in np.unique(targets)}
    measured: dict[str, Any] = {"texts": len(texts), "accuracy": float(right.mean()), "recall": recall}
    if len(recall) == len(model.labels) == 2:
        measured["auc"] = auc(found[:, 1], targets == 1)
    return measured


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive text has the larger value, ties counting one half (Mann and Whitney)."""
    negatives = np.sort(values[~positive])
    below = np.searchsorted(negatives, values[positive], "left") + np.searchsorted(
        negatives, values[positive], "right"
    )
    return float(below.mean() / 2 / len(negatives))
