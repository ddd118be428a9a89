"""The file of a classifier: safetensors, with what it is as JSON under one key, so that the same model gives the same
bytes. linear.py and encoder.py say what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from min_llm.config import UserError
from min_llm.data.curate.listing import Stamp
from min_llm.platform import replacing

Tensors = dict[str, np.ndarray]


class Classifier(Protocol):
    """What tells texts apart. about: its name, where its labels come from, how well it does."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def predict(self, texts: list[str]) -> Float32[np.ndarray, "texts labels"]:
        """The probability of each label; that of a text does not depend on the others."""
        ...


def write(path: Path, said: Mapping[str, Any], tensors: Tensors) -> None:
    from safetensors.numpy import save

    text = json.dumps(said, ensure_ascii=False, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(save(tensors, {"classifier": text}))  # several keys would be in any order


def read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """What was written. Raises UserError for a file that is not there or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            said = json.loads((file.metadata() or {}).get("classifier", "{}"))
            return said, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The classifier {path} cannot be read: {error}. `min-llm data classifier` makes one."
        ) from error


def load(path: Path) -> Classifier:
    """The classifier in a file, of whichever kind it is. Raises UserError for another file."""
    from min_llm.data.curate import linear

    said, tensors = read(path)
    if said.get("format") == linear.FORMAT:
        return linear.of(said, tensors)
    from min_llm.data.curate import encoder  # imports JAX, which linear classifiers need not

    if said.get("format") == encoder.FORMAT:
        return encoder.of(said, tensors)
    raise UserError(f"{path} is no classifier of this version: make one with `min-llm data classifier`.")


@lru_cache(maxsize=4)
def loaded(file: Stamp) -> Classifier:
    """`load`, once for each state of a file."""
    return load(file.path)
