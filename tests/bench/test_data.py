"""bench.data: what is timed does its work, and rows say how much of it."""

import json
import types

import numpy as np

from bench import batches, curation, data


def test_a_stage_is_timed_over_what_was_loaded(tmp_path):
    texts = ["the same six words again and again " * 20, "Every word of this text stands in it once.\u2028"]
    file = tmp_path / "a.jsonl"
    rows = [
        json.dumps({"id": str(k), "text": text}, ensure_ascii=False) + "\n" for k, text in enumerate(texts)
    ]
    file.write_text("".join(rows), encoding="utf-8")
    size = curation.load([str(file)])
    assert size == {"documents": 2, "bytes": sum(len(text.encode()) for text in texts)}
    found = {name: curation.stage(name) for name in (*data.STAGES, *data.ALONE)}
    assert found["repetition"]["kept"] == 1 and found["pii"]["kept"] == 2
    assert all(answer["seconds"] > 0 for answer in found.values())


def test_rows_are_medians_and_ratios_of_rounds():
    size = {"documents": 100, "bytes": 2_000_000}
    documents, megabytes = data.rows_of("pii", size, [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], kept=90)
    assert (documents["ours"], documents["peer"], megabytes["ours"]) == (50.0, 25.0, 1.0)
    assert documents["ratio"] == 2.0 and documents["spread"] == [1.0, 4.0] and documents["runs"] == 3
    assert documents["peer_name"] == "datatrove" and documents["kept"] == 90
    alone, _ = data.rows_of("kl", size, [2.0])
    assert alone["peer"] is None and alone["ratio"] is None


def test_the_corpus_is_shards_of_every_source(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TEXT", ("python-stdlib",))
    files = data.corpus(tmp_path, 0.2)
    rows = [json.loads(line) for file in files for line in open(file, encoding="utf-8")]
    size = sum(len(row["text"].encode()) for row in rows)
    assert (
        len(files) == data.FILES and 100_000 < size < 400_000
    )  # whole documents, of this Python's library too
    assert len({row["id"] for row in rows}) == len(rows)


def test_batches_are_what_they_are_called(monkeypatch):
    monkeypatch.setattr(batches, "TOKENS", 1 << 16)
    kinds = batches.kinds()
    plain, documents, mixed = (make(3) for make in kinds.values())
    assert all(b.tokens.shape == (batches.ROWS, batches.LENGTH) for b in (plain, documents, mixed))
    assert plain.segment_ids is None and documents.segment_ids.max() > 1 and mixed.segment_ids.max() > 1
    assert not np.array_equal(documents.tokens, mixed.tokens)
    assert 0 < batches.seconds(kinds["batch, plain"], 3) < 1


def test_rows_of_batches_are_shares_of_their_own_round():
    training = types.SimpleNamespace(parameters=7, runtime=types.SimpleNamespace(dtype="float32"))
    found = {r["metric"]: r for r in batches._rows("x", [(1, 10, 0), (2, 200, 2), (3, 10, 1)], training)}
    assert found["batch_seconds"]["ours"] == 2 and found["step_seconds"]["ours"] == 10
    assert found["batch_of_step"]["ours"] == 0.1 and found["batch_of_step"]["spread"] == [0.01, 0.3]
    assert found["wait_of_step"]["ours"] == 0.01 and found["wait_of_step"]["target"] == 0.01
