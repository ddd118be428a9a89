"""`min-llm data`: results on standard output, mistakes as sentences."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from min_llm import reporting
from min_llm.cli.data import app
from min_llm.config import UserError
from min_llm.data.sources import documents

runner = CliRunner()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "home"))
    (tmp_path / "story.txt").write_text("Once upon a time\nthere was a token.\n" * 50)
    done = run("prepare", tmp_path / "story.txt", "--tokenizer", "bpe:270")
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def run(*words):
    reporting._reporter = None  # the runner closes the stream that the last one wrote to
    return runner.invoke(app, [str(word) for word in words])


def test_prepare_prints_the_folder_and_nothing_else(folder):
    assert json.loads(Path(folder, "meta.json").read_text())["config"]["tokenizer"] == "bpe:270"


def test_show(folder):
    shown = run("show", "story", "--verify", "--baselines").stdout
    for part in (
        "tokens in 1 documents",
        "licence: ",
        "verified: 5 files",
        "xz -9",
        "Kneser-Ney 5-gram",
        "--- document 0 of the training text\nOnce upon a time\nthere was a token.",
        "<|end_of_text|>|On|ce| |",
        "⏎|",
    ):
        assert part in shown, part
    assert json.loads(run("show", folder, "--json").stdout)["format"] == "min_llm.data"


def test_list_has_sources_and_prepared_data(folder):
    shown = run("list").stdout
    assert "shakespeare" in shown and "CC BY-SA 4.0" in shown and "Debian's apt" in shown
    assert folder.rpartition("/")[2] in shown
    listed = json.loads(run("list", "--json").stdout)
    assert listed["prepared"] == [folder]
    assert {"name", "MB", "licence", "needs", "cached", "text"} == set(listed["sources"][0])


def test_mix_says_what_each_phase_takes(folder, tmp_path):
    (tmp_path / "sums.txt").write_text("1 + 2 = 3\n" * 50)
    sources = {"story": str(tmp_path / "story.txt"), "sums": str(tmp_path / "sums.txt")}
    mix = [{"until": 64, "weights": {"story": 1}}, {"weights": {"story": 0.25, "sums": 0.75}}]
    data = {"sources": sources, "mix": mix, "tokenizer": "bpe:260"}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"data": data, "train": {"steps": 25, "batch_size": 4, "seq_len": 8}}))
    first, second = run("mix", path).stdout.splitlines()
    assert first.startswith("0 to 64 tokens: story 100.00% (") and "sums" not in first
    assert second.startswith("64 to 800 tokens: story 2") and " epochs), sums 7" in second
    assert "has no data.mix" in str(run("mix", "train.steps=1").exception)


def test_needles_are_a_source(folder, tmp_path):
    out = tmp_path / "needles.jsonl"
    words = ("needles", out, "--haystack", tmp_path / "story.txt", "--documents", 3, "--length", 500)
    assert run(*words, "--seed", 1).stdout.strip() == str(out)
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(texts) == 3 and all("Remember" in text and "there was a token." in text for text in texts)
    assert list(documents(str(out))) == texts


@pytest.mark.parametrize(
    "words, said",
    [
        (("show", "stroy"), "There is no prepared data 'stroy'"),
        (("prepare", "shakespear"), "Did you mean 'shakespeare'"),
        (("prepare", "shakespeare", "--split", "half"), "must be one of: auto, tail"),
    ],
)
def test_mistakes_are_user_errors(folder, words, said):
    error = run(*words).exception
    assert isinstance(error, UserError) and said in str(error)


def test_ambiguous_names_are_listed(folder, tmp_path):
    assert run("prepare", tmp_path / "story.txt", "--tokenizer", "bytes").exception is None
    assert "begins several names" in str(run("show", "story").exception)
