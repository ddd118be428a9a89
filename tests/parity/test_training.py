"""The PyTorch side of the training benchmark: every precision trains alike, and the GPT has our GPT-2's shape."""

import numpy as np
import pytest

from bench import train
from min_llm import models
from min_llm.spec import count

pytestmark = pytest.mark.peers

SHAPE = {"n_layers": 2, "dim": 32, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 64, "vocab_size": 31}
CASE = train.Case("tiny", SHAPE, rows=4, length=16)
TOKENS = np.tile(np.arange(31, dtype=np.uint16), 20)


def begin(peer, family, precision, micro_batches=1):
    return peer.call(
        "start",
        family=family,
        config=train.model_of(family, CASE),
        precision=precision,
        compiled=None,
        batch={"tokens": TOKENS, "rows": CASE.rows, "length": CASE.length},
        optimizer=train.OPTIMIZER,
        threads=1,
        seed=0,
        micro_batches=micro_batches,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_precision_makes_the_same_training(peer, family):
    first, last = {}, {}
    for precision in (
        "float32",
        "autocast",
        "weights",
        "matmul",
    ):  # matmul is a switch of the whole process: last
        first[precision] = begin(peer, family, precision)["loss"]
        last[precision] = peer.call("steps", n=40)["loss"]
    assert last["float32"] < first["float32"] - 1
    for precision in first:
        assert first[precision] == pytest.approx(first["float32"], abs=0.01)
        assert last[precision] == pytest.approx(last["float32"], abs=0.1)


def test_micro_batches_change_nothing_but_round_off(peer):
    whole, parts = (begin(peer, "llama", "float32", micro)["loss"] for micro in (1, 2))
    assert parts == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_sides_have_as_many_parameters(peer, family):
    ours = models.ModelConfig.from_mapping({"family": family, **train.model_of(family, CASE)}, "model")
    assert begin(peer, family, "float32")["parameters"] == count(models.spec(ours))
