"""A small bidirectional encoder that scores texts as a larger model does: Llama 3's quality filter was a DistilRoBERTa
that had learnt what Llama 2 said of documents (section 3.1.1, "Model-based quality filtering"; L3-1.10).

    x = embed[tokens] through the layers of models/llama.py, in which every token sees every other
    p(high | text) = sigmoid(readout · mean of the tokens' states + density · (bytes a token - 4) + bias)

The layers are those of every model here (pre-norm, rotary positions, SwiGLU) and not BERT's. A text is what its first
tokens are. How many bytes they take on average is given besides, since a mean cannot count: where the tokenizer needs
many tokens, the text is unlike what it was made from. train_encoder.py fits the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from min_llm import models, tokenizers
from min_llm import spec as spec_lib
from min_llm.config import build, option
from min_llm.data.curate import model_file
from min_llm.kernels.mask import Mask
from min_llm.models import llama
from min_llm.nn.batch import Batch
from min_llm.nn.cache import NoCache
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param

FORMAT = "min_llm encoder 1"
LONGEST = 8  # bytes of a token on average: of a longer text no more than that is read
LABELS = ("low", "high")
ROWS = 32  # texts of a prediction, always so many: how a row is rounded may depend on the shape, not on other rows


@dataclass(frozen=True)
class EncoderShape:
    """How large an encoder is, and what it reads of a text."""

    tokenizer: str = option("gpt2", "name or file of a tokenizer")
    length: int = option(96, "tokens of a text that are read")
    n_layers: int = option(2, "layers")
    dim: int = option(64, "of the states")
    n_heads: int = option(4, "heads of a layer")

    def trunk(self) -> llama.Config:
        """The configuration of the layers, for this tokenizer."""
        return llama.Config(
            n_layers=self.n_layers,
            dim=self.dim,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            vocab_size=_tokenizer(self.tokenizer).vocab_size,
            max_seq_len=self.length,
            tie_embeddings=True,
        ).checked("shape")

    def rows(self, texts: list[str]) -> Rows:
        """A text without tokens has the token 0."""
        tokens = np.zeros((len(texts), self.length), np.int32)
        segments = np.zeros_like(tokens)
        density = np.zeros(len(texts), np.float32)
        begun = [text[: LONGEST * self.length] for text in texts]
        for k, ids in enumerate(_tokenizer(self.tokenizer).encode_documents(begun)):
            n = min(len(ids), self.length)
            tokens[k, :n], segments[k, : max(n, 1)] = ids[:n], 1
            density[k] = len(begun[k].encode(errors="replace")) / max(len(ids), 1) - 4
        return Rows(tokens, segments, density)


class Rows(NamedTuple):
    """Texts as an encoder sees them."""

    tokens: Any  # int32 [texts, length]
    segments: Any  # int32 [texts, length]: 1 for the tokens of a text, 0 for padding
    density: Any  # float32 [texts]: bytes a token, less 4

    def of(self, texts: Int[np.ndarray, " n"]) -> Rows:
        """Those of the texts with these numbers."""
        return Rows(*(x[texts] for x in self))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    trunk: Any  # as llama.spec says, the embedding never an output
    readout: Any
    density: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bidirectional(NoCache):
    """Attention within the batch that looks both ways."""

    def mask(self, batch: Batch, window: int | None) -> Mask:
        return dataclasses.replace(super().mask(batch, window), causal=False)


def spec(shape: EncoderShape) -> Weights:
    return Weights(
        trunk=llama.spec(shape.trunk()),
        readout=Param((shape.dim,), ("embed",), None, "bias"),
        density=Param((), (), None, "bias"),
        bias=Param((), (), None, "bias"),
    )


def scores(weights: Weights, cfg: llama.Config, rows: Rows, key: Array | None = None) -> Float[Array, " b"]:
    """The log-odds of "high". key: dropout (training only)."""
    batch = Batch(rows.tokens, segment_ids=rows.segments)
    states, _ = models.forward(weights.trunk, cfg, batch, Runtime(), Bidirectional(), key)
    real = (rows.segments > 0)[:, :, None]
    mean = jnp.sum(jnp.where(real, states, 0), axis=1) / real.sum(axis=1)
    return mean @ weights.readout + rows.density * weights.density + weights.bias


@dataclass(frozen=True)
class Encoder:
    """A trained encoder."""

    shape: EncoderShape
    weights: Weights
    about: Mapping[str, Any] = field(default_factory=dict)  # whose scores it has learnt, how well it does
    labels: tuple[str, ...] = LABELS

    def predict(self, texts: list[str]) -> Float32[np.ndarray, "texts labels"]:
        """The probabilities of "low" and "high"."""
        rows, trunk, found = self.shape.rows(texts), self.shape.trunk(), [np.zeros(0, np.float32)]
        for first in range(0, len(texts), ROWS):
            taken = np.arange(first, first + ROWS).clip(
                max=len(texts) - 1
            )  # the last one again, to fill the shape
            n = min(len(texts) - first, ROWS)
            found.append(np.asarray(_probabilities(self.weights, trunk, rows.of(taken)))[:n])
        high = np.concatenate(found)
        return np.stack([1 - high, high], axis=1)

    def save(self, path: Path) -> None:
        said = {"format": FORMAT, "shape": dataclasses.asdict(self.shape), "about": self.about}
        leaves = jax.tree_util.tree_leaves_with_path(self.weights)
        tensors = {jax.tree_util.keystr(at, simple=True, separator="."): np.asarray(x) for at, x in leaves}
        model_file.write(path, said, tensors)


def of(said: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Encoder:
    """What `save` has put into a file."""
    shape = build(EncoderShape, said["shape"], "shape")
    named = spec(shape)
    leaves = [jnp.asarray(tensors[name]) for name, _ in spec_lib.leaves(named)]
    tree = jax.tree.structure(named, is_leaf=spec_lib.is_param)
    return Encoder(shape, jax.tree.unflatten(tree, leaves), said["about"])


@functools.partial(jax.jit, static_argnums=1)
def _probabilities(weights: Weights, cfg: llama.Config, rows: Rows) -> Array:
    return jax.nn.sigmoid(scores(weights, cfg, rows))


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> tokenizers.Tokenizer:
    return tokenizers.load(name)
