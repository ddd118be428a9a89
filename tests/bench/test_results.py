"""Result rows: what a ratio means, how rows are named and kept, and that a broken write loses nothing."""

import json
import os

import pytest

from bench import nanogpt, results


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_a_ratio_above_one_means_ours_is_better():
    assert results.row("a", "speed", "tokens/s", "float32", 300.0, peer_name="p", peer=150.0)["ratio"] == 2.0
    slower = results.row("a", "loss", "nats", "float32", 2.0, peer_name="p", peer=1.0, better="lower")
    assert slower["ratio"] == 0.5
    alone = results.row("a", "speed", "tokens/s", "float32", 300.0)
    assert alone["peer"] is None and alone["ratio"] is None
    with pytest.raises(ValueError, match="'higher' or 'lower', not 'more'"):
        results.row("a", "speed", "tokens/s", "float32", 1.0, better="more")


def test_written_rows_are_complete_and_replace_rows_of_their_id(folder):
    file = results.write("x", [results.row("case 1", "m", "s", "float32", 1.0, seed=3)], machine="box")
    results.write("x", [results.row("case 2", "m", "s", "float32", 5.0, seed=[1, 2])], machine="box")
    results.write(
        "x", [results.row("case 1", "m", "s", "float32", 2.0)], versions={"peer": "7"}, machine="box"
    )
    rows = json.loads(file.read_text())
    assert file == folder / "x.box.json" and [r["id"] for r in rows] == [
        "x/case-1/m/float32",
        "x/case-2/m/float32",
    ]
    assert rows[0]["ours"] == 2.0 and rows[0]["versions"]["peer"] == "7" and rows[1]["seeds"] == [1, 2]
    for row in rows:
        assert list(row)[: len(results.FIELDS)] == list(results.FIELDS)
        assert len(row["commit"].removesuffix("+changes")) == 40 and row["date"].endswith("+00:00")


def test_rows_of_other_cases_survive_a_write_that_fails(folder, monkeypatch):
    file = results.write("x", [results.row("a", "m", "s", "float32", 1.0)], machine="box")
    before = file.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        results.write("x", [results.row("a", "m", "s", "float32", 9.0)], machine="box")
    assert file.read_bytes() == before


def test_a_row_that_was_not_built_by_row_is_refused():
    with pytest.raises(ValueError, match=r"a row of x lacks .*spread"):
        results.write("x", [{"case": "a", "metric": "m", "dtype": "float32", "peer_name": None}])


def test_the_machine_has_a_name_for_a_file():
    name = results.machine_name()
    assert name.endswith(f"-{results.cores()}c") and "/" not in name and " " not in name


def test_medians_and_spreads():
    assert results.median_and_spread([3.0, 1.0]) == (2.0, [1.0, 3.0])
    assert results.median_and_spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, [2.0, 4.0])


def test_nanogpts_rows_hold_each_seed_and_the_mean():
    answers = {s: {"val_loss": v, "train_seconds": 60.0, "parameters": 9} for s, v in ((1, 1.9), (2, 1.8))}
    *seeds, mean = nanogpt.rows_of(answers, ours=1.85)
    assert [r["peer"] for r in seeds] == [1.9, 1.8] and [r["seed"] for r in seeds] == [1, 2]
    assert mean["peer"] == pytest.approx(1.85) and mean["spread"] == [1.8, 1.9] and mean["seeds"] == [1, 2]
    assert mean["ratio"] == pytest.approx(1.0)
