"""Writes the case that PyTorch is given: a Llama of ours, a packed batch, and the loss and gradients JAX finds.

    python -m apps.torch_parallel.export

The format is described in weights.py. This side runs in the environment of min_llm, without PyTorch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from min_llm import models
from min_llm.data.packing import pack_documents
from min_llm.models import llama
from min_llm.nn.batch import Batch
from min_llm.nn.rope import RopeScaling
from min_llm.nn.runtime import Runtime
from min_llm.train.step import normalised

# 6 layers, the embedding and the head make eight stages. Neither the dimension nor the vocabulary can be shared evenly.
# The weights are large for a model of this size, so that every part of it matters to the loss.
CONFIG = llama.Config(
    n_layers=6,
    dim=30,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    hidden_dim=52,
    vocab_size=61,
    max_seq_len=32,
    rope_theta=100.0,
    rope_scaling=RopeScaling(original_context=64),
    init_std=0.15,
)


def random_batch(cfg: models.ModelConfig, rows: int = 8, seed: int = 0) -> Batch:
    """At least `rows` rows of documents of random tokens and lengths, packed."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, cfg.max_seq_len, 3 * rows)
    documents = [rng.integers(0, cfg.vocab_size, n + 1) for n in lengths]
    packed = pack_documents(documents, cfg.max_seq_len)
    return jax.tree.map(lambda x: x[:rows], packed)


def by_layer(params: llama.Llama) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every parameter, stacks taken apart: layers.0.wq, layers.1.wq …"""
    yield "embed", np.asarray(params.embed)
    number = 0
    for stack in params.layers:
        fields = {name: np.asarray(value) for name, value in vars(stack).items() if value is not None}
        for i in range(len(fields["wq"])):
            yield from ((f"layers.{number}.{name}", value[i]) for name, value in fields.items())
            number += 1
    yield "final_norm", np.asarray(params.final_norm)
    if params.head is not None:
        yield "head", np.asarray(params.head)


def write(path: Path, cfg: llama.Config, params: llama.Llama, batch: Batch) -> None:
    """The case file. The batch's weights are written as shares of 1, as a training step uses them."""
    batch = normalised(batch)

    @jax.jit
    def loss_and_gradients(params: Any) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(models.loss_sum)(params, cfg, batch, Runtime())

    loss, gradients = loss_and_gradients(params)
    arrays: dict[str, Any] = {"config": np.array(json.dumps(dataclasses.asdict(cfg))), "loss": np.array(loss)}
    for field in ("tokens", "targets", "positions", "segment_ids", "weights"):
        arrays[f"batch/{field}"] = np.asarray(getattr(batch, field))
    arrays |= {f"params/{name}": value for name, value in by_layer(params)}
    arrays |= {f"gradients/{name}": value for name, value in by_layer(gradients)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/torch_parallel/case.npz"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.out, CONFIG, models.init(CONFIG, options.seed), random_batch(CONFIG, seed=options.seed))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
