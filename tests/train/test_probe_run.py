"""`train.probe=true`: rows of statistics in metrics.jsonl, one value a layer."""

import math

from min_llm.train.run import read_rows
from tests.train.runs import configuration, train_model

LAYERS = 3


def test_probe_rows_have_a_value_for_every_layer(tmp_path):
    probed = {"train.probe": True, "train.probe_every": 2, "train.micro_batches": 2}
    train_model(configuration(tmp_path, "probed", **{"model.n_layers": LAYERS, "train.steps": 4}, **probed))
    all_rows = list(read_rows(tmp_path / "runs/probed"))
    assert [row["step"] for row in all_rows if row["kind"] == "train"] == [2, 4]
    rows = [row for row in all_rows if row["kind"] == "probe"]
    assert [row["step"] for row in rows] == [1, 3]
    for name in ("attention/rms", "mlp/max", "residual/kurtosis", "attention_entropy/mean", "attention_entropy/min",
                 "grad/layers.0.wq/rms", "param/layers.0.w_down/std"):  # fmt: skip
        for row in rows:
            assert len(row[name]) == LAYERS and all(math.isfinite(x) for x in row[name]), name
    assert isinstance(rows[0]["grad/embed/rms"], float) and isinstance(
        rows[0]["param/final_norm/mean"], float
    )
    assert all(0 < x < math.log(16) for x in rows[0]["attention_entropy/mean"])
    assert len(set(rows[0]["residual/rms"])) == LAYERS  # no layer's value stands for another's
