"""`min-llm eval`: three kinds of files, a table and a JSON file."""

import json

import pytest

from min_llm.cli.main import app
from min_llm.config import UserError
from tests import toy_folder

TEXT = "the theory, in all the rest, he said\n"
FILES = {
    "text.txt": TEXT * 6,
    "hay.txt": 6 * "In the theory he had, all was at rest. ",
    "questions.jsonl": '{"context": "the theory", "choices": ["a", "he said"], "answer": 0}\n' * 3,
    "tasks.jsonl": '{"prompt": "the theory", "answer": ["no", "nor this"]}\n' * 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("eval")
    toy_folder.write(work / "toy")
    for name, text in FILES.items():
        (work / name).write_text(text)
    return work


def evaluate(folder, file, *options):
    arguments = ["eval", folder / "toy", folder / file, "--out", folder / "out.json", *options]
    app([str(a) for a in arguments], standalone_mode=False)
    return json.loads((folder / "out.json").read_text())


def test_perplexity(folder, capsys):
    made = evaluate(folder, "text.txt")
    assert made["task"] == "perplexity" and made["bytes"] == len(FILES["text.txt"]) and made["documents"] == 1
    bits = made["numbers"]["bits per byte"]
    assert bits["interval"][0] < bits["value"] < bits["interval"][1]
    said = capsys.readouterr().out
    assert f"{bits['value']:.4f}" in said and f"tokens {made['tokens']}" in said
    assert evaluate(folder, "text.txt", "--model-len", 16, "--stride", 4)["nats"] != made["nats"]


def test_choices(folder, capsys):
    made = evaluate(folder, "questions.jsonl", "--task", "choices")
    assert made["numbers"]["accuracy"]["value"] in (0, 1) and made["numbers"]["guessing"]["value"] == 0.5
    assert [len(some) for some in made["scores"]] == [2, 2, 2] and "questions 3" in capsys.readouterr().out


def test_exact(folder):
    made = evaluate(folder, "tasks.jsonl", "--task", "exact", "--max-tokens", 4, "--stop", "zzz")
    assert made["numbers"]["exact match"]["value"] == 0 and len(made["texts"]) == 2 and all(made["texts"])
    with pytest.raises(UserError, match="no chat template"):
        evaluate(folder, "tasks.jsonl", "--task", "exact", "--chat")


def test_needles(folder, capsys):
    """The toy of random weights finds none, and reads texts longer than its context."""
    longer = ("--lengths", "100,300", "--depths", 2, "--trials", 2, "--picture", folder / "grid.png")
    made = evaluate(folder, "hay.txt", "--task", "needles", *longer)
    assert made["lengths"] == [100, 300] and made["depths"] == [0, 1] and made["questions"] == 8
    assert made["numbers"]["recall, 300 tokens"]["value"] == 0 and made["recall"][1][0]["count"] == 2
    assert (folder / "grid.png").stat().st_size > 5000 and "recall, 100 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="--lengths is ''"):
        evaluate(folder, "hay.txt", "--task", "needles")
