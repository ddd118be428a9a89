"""fastText's classifier (Joulin et al. 2016, "Bag of tricks for efficient text classification"):

    p(label | text) = softmax(W^T · mean of E[bin] over the n-grams of the text)

Mean and product commute, so a trained model keeps one table, E · W, of a number for each bin and label: a prediction is
a look-up and a sum, in NumPy alone. train_linear.py fits E and W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from min_llm.config import build
from min_llm.data.curate import model_file
from min_llm.data.curate.ngrams import NGrams

FORMAT = "min_llm linear classifier 1"


@dataclass(frozen=True)
class Linear:
    """A trained classifier."""

    labels: tuple[str, ...]
    ngrams: NGrams
    table: Float32[np.ndarray, "bins labels"]
    about: Mapping[str, Any] = field(default_factory=dict)  # where its labels come from, how well it does

    def predict(self, texts: list[str]) -> Float32[np.ndarray, "texts labels"]:
        """The probability of each label; all the same for a text without n-grams."""
        sums = np.zeros((len(texts), len(self.labels)), np.float32)
        counts = np.zeros(len(texts), np.int64)
        for bins, offsets in self.ngrams.each(texts):
            sizes = np.diff(offsets)
            having = sizes > 0
            if having.any():
                found = np.take(self.table, bins, axis=0)  # four times as fast as table[bins]
                sums[having] += np.add.reduceat(found, offsets[:-1][having])
                counts += sizes
        scores = sums / np.maximum(counts, 1)[:, None]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def save(self, path: Path) -> None:
        said = {"format": FORMAT, "labels": self.labels, "ngrams": asdict(self.ngrams), "about": self.about}
        model_file.write(path, said, {"table": self.table})


def of(said: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Linear:
    """What `save` has put into a file."""
    ngrams = build(NGrams, said["ngrams"], "ngrams")
    return Linear(tuple(said["labels"]), ngrams, tensors["table"], said["about"])
