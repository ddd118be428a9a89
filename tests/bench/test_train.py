"""The training benchmark: pairs within a round, equal and best precision, and our child's steps."""

import sys

import numpy as np
import pytest

from bench import train
from bench.race import Record, Side, ratio
from peers.client import ROOT
from peers.pipe import Child


def record(name, ours, dtype, seconds, first=9.0, peak=300 << 20):
    started = {"first_step_seconds": first, "parameters": 10, "flops_per_token": 60.0, "formula": "6N"}
    return Record(Side(name, ours, dtype, {}), started, 100 << 20, list(seconds), [0.0] * len(seconds), peak)


def test_ratios_are_taken_within_a_round():
    ours, peer = record("min_llm", True, "float32", [1, 2, 4]), record("torch", False, "float32", [2, 4, 8])
    assert ratio(ours, peer) == (2.0, [2.0, 2.0])  # the machine slowed down by 4x meanwhile


def test_rows_compare_equal_precisions_and_each_sides_best():
    records = [
        record("min_llm", True, "float32", [4.0, 4.0]),
        record("min_llm", True, "bfloat16", [1.0, 1.0], peak=200 << 20),
        record("torch eager", False, "float32", [2.0, 2.0], first=2.0),
        record("torch compile", False, "bfloat16", [3.0, 3.0], first=33.0),
    ]
    rows = train.rows_of(
        "a", train.CASES["a"], records, {"float32": (1e6, "jax"), "bfloat16": (1e7, "torch")}
    )
    speed = [r for r in rows if r["metric"] == "tokens_per_second"]
    assert [(r["peer_name"], r["precision"], r["ratio"]) for r in speed] == [
        ("torch eager", "equal", 0.5),
        ("torch compile", "equal", 3.0),
        ("torch eager", "best", 2.0),
    ]
    assert speed[2]["dtype"] == "bfloat16/float32" and speed[2]["ours"] == 12 * 64
    memory = {r["precision"]: r["ratio"] for r in rows if r["metric"] == "peak_memory"}
    assert memory == {"equal": 2.0, "best": 2.0}
    compiling = [r for r in rows if r["metric"] == "compile_seconds" and r["precision"] == "equal"]
    assert [(r["ours"], r["peer"]) for r in compiling] == [(8.0, 30.0)]
    shares = [r for r in rows if r["metric"] == "mfu"]
    assert shares[0]["ours"] == pytest.approx(12 * 64 / 4 * 60 / 1e6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", train.CASES)
def test_sides_are_built_from_one_shape(family, name):
    sides = train.sides_of(family, train.CASES[name])
    assert [s.dtype for s in sides if s.ours] == ["float32", "bfloat16"]
    for side in sides:
        model = side.start["model" if side.ours else "config"]
        assert {k: v for k, v in model.items() if k != "family"} == train.model_of(family, train.CASES[name])


def test_our_child_trains_on_request():
    model = {"family": "llama", "n_layers": 1, "dim": 16, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 32}
    model |= {"vocab_size": 17, "max_seq_len": 8}
    tokens = np.tile(np.arange(17, dtype=np.uint16), 20)
    with Child([sys.executable, "-m", "bench.ours"], name="ours", cwd=ROOT) as child:
        imported = child.call("imports")["peak"]
        started = child.call(
            "start",
            model=model,
            runtime={"dtype": "float32"},
            micro_batches=2,
            batch={"tokens": tokens, "rows": 4, "length": 8},
            optimizer=train.OPTIMIZER,
            seed=0,
        )
        after = child.call("steps", n=30)
    assert after["loss"] < started["loss"] and after["peak"] > imported and after["seconds"] > 0
