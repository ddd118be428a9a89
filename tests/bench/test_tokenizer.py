"""The tokenizer benchmark: both sides learn the same merges from the same text."""

import sys

import pytest

from bench import tokenizer


def test_both_sides_learn_the_same(monkeypatch, capsys):
    texts = ["A benchmark says what it measured, and of what.\n" * 9, "Größe und Maß; 12345 tokens."]
    monkeypatch.setattr(tokenizer, "documents", lambda: iter(texts))
    monkeypatch.setattr(tokenizer.results, "cores", lambda: 1)
    words = ["--megabytes", "0.0004", "--vocabulary", "280", "--rounds", "1", "--dry"]
    monkeypatch.setattr(sys, "argv", ["bench.tokenizer", *words])
    assert tokenizer.main() == 0
    said = capsys.readouterr().out
    assert (
        "'equal_merges': 24" in said and "'merges': 24" in said and "'case': '0.0004 MB, 280 tokens'" in said
    )


def test_too_little_text_is_said(monkeypatch):
    monkeypatch.setattr(tokenizer, "documents", lambda: iter(["short"]))
    with pytest.raises(SystemExit, match="only 0 MB of text"):
        tokenizer.text_of(10**6)
