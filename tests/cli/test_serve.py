"""`min-llm serve`: what it takes from its caller."""

from pathlib import Path

import pytest

from min_llm.cli import main as cli
from min_llm.cli.serve import adapters, keys
from min_llm.config import UserError


def test_keys_come_from_the_command_line_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert keys(["zero"], file) == ["zero", "one", "two"] and keys([], None) == []


def test_a_file_without_keys_does_not_open_the_server(tmp_path):
    file = tmp_path / "keys"
    file.write_text("\n")
    with pytest.raises(UserError, match="no key"):
        keys([], file)


def test_adapters_have_names_of_their_own():
    assert list(adapters(["a=x", "b=y=z"], "model").items()) == [("a", Path("x")), ("b", Path("y=z"))]
    for given in (["=x"], ["a="], ["a=x", "a=y"], ["model=x"]):
        with pytest.raises(UserError, match="--lora"):
            adapters(given, "model")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--api-key", ""], "not be empty|printable"),
        (["--port", "99999"], "--port"),
        (["--lora", "pirate"], "NAME=FOLDER"),
    ],
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["min-llm", "serve", "no-such-model", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert any(word in error for word in said.split("|")) and "no-such-model" not in error
