"""`min-llm tokenizer`: train, extend and compare from the command line."""

import pytest
from typer.testing import CliRunner

from min_llm import reporting, tokenizers
from min_llm.cli.tokenizer import app, first
from min_llm.config import UserError

runner = CliRunner()


def run(*words):
    reporting._reporter = None  # the runner closes the stream that the last one wrote to
    return runner.invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def files(tmp_path_factory, english, foreign):
    """English and other text, and a tokenizer trained on the first."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "english.txt").write_text(english[0][:40_000], encoding="utf-8")
    (folder / "other.txt").write_text(foreign, encoding="utf-8")
    done = run("train", folder / "english.txt", "--vocab-size", 600, "--out", folder / "base.json")
    assert done.exit_code == 0 and done.stdout.strip() == str(folder / "base.json")
    return folder


def test_extend_leaves_protected_text_alone_and_compare_shows_it(files):
    words = ("--extra", 100, "--protect", files / "english.txt", "--out", files / "more.json")
    assert run("extend", files / "base.json", files / "other.txt", *words).exit_code == 0
    base, more = (tokenizers.load(files / f"{name}.json") for name in ("base", "more"))
    text = (files / "english.txt").read_text(encoding="utf-8")
    assert more.tokens[: len(base.tokens)] == base.tokens and more.vocab_size == 700
    assert more.encode(text) == base.encode(text)

    on = ("--on", files / "english.txt", "--on", files / "other.txt")
    english, other = run("compare", files / "base.json", files / "more.json", *on).stdout.splitlines()[-2:]
    assert english.split()[1] == english.split()[2] == f"{tokenizers.chars_per_token(base, [text]):.3f}"
    assert float(other.split()[2]) > 1.3 * float(other.split()[1])


def test_tiktoken_format_comes_back(files):
    out = files / "ranks.tiktoken"
    assert run("train", files / "english.txt", "--vocab-size", 600, "--out", out).exit_code == 0
    assert tokenizers.load(out).tokens == tokenizers.load(files / "base.json").tokens


def test_only_bpe_is_extended(files):
    done = run("extend", "byte", files / "other.txt")
    assert isinstance(done.exception, UserError) and "byte is no byte-level BPE" in str(done.exception)


def test_the_first_characters():
    assert list(first(iter(["abc", "defg", "h"]), 5)) == ["abc", "de"]
    assert list(first(iter(["abc", "de"]), 9)) == ["abc", "de"]
