"""fastText's classifier (Joulin et al. 2016, "Bag of tricks for efficient text classification"):

    p(label | text) = softmax(W^T · mean of E[bin] over the n-grams of the text)

Mean and product commute, so a trained model keeps one table, E · W, of a number for each bin and label: a prediction is
a look-up and a sum, in NumPy alone. train_linear.py fits E and W.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from min_llm.config import UserError, build
from min_llm.data.curate.listing import Stamp
from min_llm.data.curate.ngrams import NGrams
from min_llm.platform import replacing

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
        """One safetensors file with everything in it. The same model gives the same bytes."""
        from safetensors.numpy import save

        about = {"format": FORMAT, "labels": self.labels, "ngrams": asdict(self.ngrams), "about": self.about}
        text = json.dumps(about, ensure_ascii=False, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(
                save({"table": self.table}, {"classifier": text})
            )  # several keys would be in any order


def load(path: Path) -> Linear:
    """What `save` wrote. Raises UserError for a file that is not there or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            found = json.loads((file.metadata() or {}).get("classifier", "{}"))
            if found.get("format") != FORMAT:
                raise UserError(
                    f"{path} is no classifier of this version: make one with `min-llm data classifier`."
                )
            table = file.get_tensor("table")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The classifier {path} cannot be read: {error}. `min-llm data classifier` makes one."
        ) from error
    return Linear(tuple(found["labels"]), build(NGrams, found["ngrams"], "ngrams"), table, found["about"])


@lru_cache(maxsize=4)
def loaded(file: Stamp) -> Linear:
    """`load`, once for each state of a file."""
    return load(file.path)
