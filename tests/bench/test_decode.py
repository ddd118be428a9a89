"""The generation benchmark: equal work, what counts as steady, rows at equal precision, and our child's engine."""

import sys

import numpy as np
import pytest

from bench import decode, models
from bench.decode import Case, Record, Side
from min_llm.formats import gguf_model
from min_llm.models import ModelConfig, init
from min_llm.tokenizers import export
from peers.client import ROOT
from peers.pipe import Child


def test_tokens_count_from_the_last_row_s_first_to_the_first_row_s_last():
    at = np.array([[1.0, 2, 3, 4, 5, 6], [3.0, 4, 5, 6, 7, 8]])  # the first row began earlier
    first, rate = decode.read({"at": at}, Case(2, 8, steady=3))
    assert first == 3.0 and rate == 6 / 3
    with pytest.raises(RuntimeError, match="only 6 tokens"):
        decode.read({"at": at}, Case(2, 8, steady=4))
    with pytest.raises(RuntimeError, match="fewer tokens"):
        decode.read({"at": np.array([[1.0, np.inf]])}, Case(1, 8))


def test_rows_that_wait_for_the_last_prompt_still_have_steady_tokens_left():
    for case in decode.CASES:
        waiting = -(-case.batch * case.prompt // decode.PREFILL)
        assert case.tokens - waiting - 2 == decode.STEADY
        assert case.length >= case.prompt + case.tokens and case.length % 16 == 0


def test_prompts_are_the_same_for_all_sides_and_new_in_every_round():
    case = Case(4, 16)
    assert (case.prompts(100, 0) == case.prompts(100, 0)).all()
    rows = np.concatenate([case.prompts(100, turn) for turn in range(3)])
    assert len(np.unique(rows, axis=0)) == 12 and rows.min() >= 0 and rows.max() < 100


def test_transformers_has_no_quantised_side():
    sides = decode.sides_of(["bfloat16", "q8_0"], decode.PROGRAMS)
    assert Side("transformers static", "bfloat16") in sides and Side("llama.cpp", "q8_0") in sides
    assert {s.program for s in sides if s.precision == "q8_0"} - {"min_llm"} == {"llama.cpp", decode.BOUND}


def test_rows_compare_equal_precisions_and_keep_peers_that_stand_alone():
    records = [
        Record(Side("min_llm", "float32"), first=[1.0, 2.0], rate=[10.0, 5.0], others=[0.0, 0.2]),
        Record(Side("llama.cpp", "float32"), first=[2.0, 4.0], rate=[5.0, 2.5], others=[0.0, 0.1]),
        Record(Side("llama.cpp", "q4_0"), first=[1.0, 1.0], rate=[80.0, 60.0], others=[0.0, 0.0]),
        Record(Side(decode.BOUND, "float32"), rate=[20.0, 10.0], facts={"bytes_per_step": 7}),
    ]
    rows = decode.rows_of("m", Case(1, 64), records)
    found = {(r["metric"], r["dtype"], r["peer_name"]): r for r in rows}
    faster = found["tokens_per_second", "float32", "llama.cpp"]
    assert (faster["ours"], faster["peer"], faster["ratio"]) == (7.5, 3.75, 2.0)
    assert faster["spread"] == [2.0, 2.0] and faster["others_cores"] == 0.2
    assert found["first_token", "float32", "llama.cpp"]["ratio"] == 2.0
    alone = found["tokens_per_second", "q4_0", "llama.cpp"]
    assert alone["ours"] is None and alone["ratio"] is None and alone["spread"] == [60.0, 80.0]
    share = found["tokens_per_second", "float32", decode.BOUND]
    assert share["ratio"] == 0.5 and share["bytes_per_step"] == 7
    assert ("first_token", "float32", decode.BOUND) not in found


def test_the_bound_falls_with_precision_and_with_what_is_cached(monkeypatch):
    monkeypatch.setattr(
        decode, "weight_bytes", lambda model, precision: {"float32": 400, "q8_0": 100}[precision]
    )
    monkeypatch.setattr(decode, "cached_bytes", lambda model: 2)
    case = Case(4, 64)
    assert decode.bytes_per_step("m", "q8_0", case) == 100 + 4 * 2 * (64 + case.tokens // 2)
    assert decode.bytes_per_step("m", "float32", case) - decode.bytes_per_step("m", "q8_0", case) == 300
    assert decode.bandwidth(1 << 20, threads=2) > 1e8


def test_a_vocabulary_of_any_size():
    made = models.every_pair(256 + 65_536 + 10)
    assert made.vocab_size == 256 + 65_536 + 10
    assert made.decode_bytes([65, 256 + 65 * 256 + 66]) == b"A" + b"AB"


def test_our_child_gives_every_row_its_tokens(tmp_path):
    shape = {"family": "llama", "n_layers": 1, "dim": 32, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 32}
    cfg = ModelConfig.from_mapping(shape | {"vocab_size": 300, "max_seq_len": 64}, "model")
    path = tmp_path / "m.gguf"
    gguf_model.write(path, cfg, init(cfg, 0), "F32", export.gguf_metadata(models.every_pair(300), None, ()))
    case = Case(3, 8, steady=4)
    with Child([sys.executable, "-m", "bench.generation"], name="ours", cwd=ROOT) as child:
        child.call("load", path=str(path), runtime={"dtype": "float32"}, rows=3, length=64)
        answer = child.call("generate", prompts=case.prompts(300, 0), n=case.tokens)
    first, rate = decode.read(answer, case)
    assert 0 < first < answer["seconds"] and rate > 0
    assert answer["at"].shape == (3, case.tokens) and (np.diff(answer["at"]) > 0).all()
