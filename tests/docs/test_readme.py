"""What the documents say can be done can be done: links, Python blocks, commands."""

import ast
import re
import shlex

import pytest

from min_llm.config import UserError
from min_llm.formats import named
from scripts.tables import ROOT, documents

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [*documents(), *ROOT.glob("nbs/*.md"), *ROOT.glob("playground/*.md")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).exists(), target


@pytest.mark.newest
def test_the_python_of_the_readme_runs():
    first, loading, serving = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    space = {}
    exec(first, space)
    assert space["logits"].shape == (1, 8, 256)
    try:
        named.fetched("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"SmolLM2 could not be fetched: {error}")
    for block in (loading, serving):
        *lines, call = block.strip().splitlines()
        exec("\n".join(lines), space)
        asked, _, answer = call.partition("  # ")
        assert eval(asked, space) == ast.literal_eval(answer)


def commands():
    """Every `min-llm ...` line of a code block or in backticks, in all documents."""
    found = set()
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^ {4}(min-llm [^#\n]+)", text, flags=re.MULTILINE))
        found |= set(re.findall(r"`(min-llm [^`]+)`", text))
    return sorted(line.strip() for line in found)


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_options_exist(line):
    import typer.main

    from min_llm.cli.main import app

    command = typer.main.get_command(app)
    words = [word for word in shlex.split(line)[1:] if word not in ("...", "<verb>") and not word.isupper()]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands or words[0].startswith("-"), line
        command = command.commands.get(words.pop(0), command)
    if command.name == "train":  # takes key=value and reads --help itself
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = words[: words.index("--")] if "--" in words else words
    assert {word for word in options if word.startswith("-")} <= known | {"--help"}, line


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)`?", README))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


def test_modules_that_are_run_exist():
    for path in FILES:
        for name in re.findall(r"python -m ([a-z_.]+)", path.read_text(encoding="utf-8")):
            place = ROOT / name.replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{path}: {name}"
