"""bench.quant: the measure tells apart what it must, and rows say what was measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import quant
from min_llm.infer.load import Loaded
from min_llm.nn.runtime import Runtime
from min_llm.tokenizers.byte import Bytes
from tests.toys import LLAMA, random_weights


@pytest.mark.newest
def test_the_measure_sees_damage_grow_from_floor_to_ceiling():
    cfg = dataclasses.replace(LLAMA, dim=64, hidden_dim=96)
    loaded = Loaded("toy", cfg, jax.tree.map(jnp.asarray, random_weights(cfg)), Runtime("float32"), Bytes())
    windows = np.random.default_rng(0).integers(0, cfg.vocab_size, (4, 33)).tolist()
    found = quant.quality(loaded, quant.changed(loaded, ["int8", "int4"]), windows)
    assert list(found) == ["bfloat16", "int8", "int4", quant.CEILING, quant.CACHE]
    lost = [some.mean_divergence for some in found.values()]
    assert lost[0] < lost[4] < lost[2] / 10
    assert lost[0] < lost[1] < lost[2] / 10 and lost[2] < lost[3] / 5
    rows = quant.rows_of(quant.Subject("toy", loaded, windows, {"text": "noise", "seed": 3}), found)
    assert len(rows) == 5 * len(quant.METRICS)
    assert all(row["tokens"] == 4 * 32 and row["seed"] == 3 and row["text"] == "noise" for row in rows)
