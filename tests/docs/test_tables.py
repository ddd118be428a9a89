"""The tables in README and docs say what the result files say."""

import json

import pytest

from scripts import tables

ROWS = [
    {
        "id": "train/a/speed/bf16",
        "case": "a",
        "dtype": "bf16",
        "ours": 12345.678,
        "peer": None,
        "machine": "m",
    },
    {
        "id": "train/b/speed/f32",
        "case": "b",
        "dtype": "f32",
        "ours": 1.23456,
        "peer": 0.01234,
        "spread": [1.0, 2.5],
    },
]
OPEN, END = "<!-- table: ", "<!-- end -->"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "bench" / "results" / "train.m.json").write_text(json.dumps(ROWS))
    return tmp_path


def test_all_documents_are_up_to_date():
    assert tables.stale() == []


def test_a_table_is_filled_and_then_stable(root):
    text = f"before\n{OPEN}bench/train columns=case,ours,peer,spread -->\nold\n{END}\nafter\n"
    made = tables.filled(text, root)
    assert made.splitlines()[2:6] == [
        "| case | min_llm | peer's value | spread |",
        "| --- | --- | --- | --- |",
        "| a | 12,346 | – | – |",
        "| b | 1.235 | 0.0123 | 1 to 2.5 |",
    ]
    assert tables.filled(made, root) == made
    assert made.startswith("before\n") and made.endswith("\nafter\n")


def test_rows_are_chosen_by_pattern_and_columns_by_what_is_there(root):
    made = tables.table("bench/train dtype=b*,f64", root)
    assert made.splitlines() == [
        "| case | dtype | min_llm | machine |",
        "| --- | --- | --- | --- |",
        made.splitlines()[2],
    ]
    assert "| a |" in made and "| b |" not in made


def test_a_number_in_a_sentence(root):
    text = "It reaches <!-- value: bench/train train/b/speed/f32 peer -->9<!-- end --> nats."
    assert tables.filled(text, root) == text.replace(">9<", ">0.0123<")


def test_a_drifted_document_is_named(root):
    (root / "README.md").write_text(f"{OPEN}bench/train -->\nold\n{END}\n")
    (root / "docs").mkdir()
    (root / "docs" / "a.md").write_text("no blocks\n")
    assert tables.stale(root) == ["README.md is out of date: run `make tables`"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("files/train", "source is bench"),
        ("bench/none", "no result file"),
        ("bench/train nothing=1", "no field 'nothing'"),
        ("bench/train dtype=f64", "no row of bench/train fits"),
    ],
)
def test_a_block_that_cannot_be_filled_is_a_sentence(root, text, says):
    with pytest.raises(tables.TableError, match=says):
        tables.table(text, root)
