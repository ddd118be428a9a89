"""scripts/env.py finds the right interpreter, notices what changed, and deletes nothing that is not its own."""

import ast
import json
from pathlib import Path

import pytest

from scripts import env


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any Python; returns a function that installs a fake one on PATH or in pyenv."""
    home, bin_folder = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    bin_folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{bin_folder}:{tmp_path / 'shims'}")
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.delenv("MIN_LLM_PYTHON", raising=False)

    def install(version, path=None, **says):
        path = Path(path) if path else bin_folder / "python{}.{}".format(*version)
        path.parent.mkdir(parents=True, exist_ok=True)
        info = {
            "version": version,
            "final": True,
            "cpython": True,
            "gil": True,
            "bits64": True,
            "base": str(path),
        }
        path.write_text(f"#!/bin/sh\necho '{json.dumps(info | says)}'\n")
        path.chmod(0o755)
        return str(path)

    install.home = home
    return install


def test_any_python_from_3_8_can_read_the_script():
    ast.parse(Path(env.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_preferred_version_wins_wherever_it_is(machine):
    machine((3, 11, 9))
    machine((3, 14, 0))
    wanted = machine((3, 13, 1), machine.home / ".pyenv/versions/3.13.1/bin/python")
    machine((3, 12, 7))
    assert env.find_python(env.PREFERRED) == (wanted, (3, 13, 1))


def test_the_newest_patch_of_a_version_wins(machine):
    machine((3, 13, 0))
    wanted = machine((3, 13, 4), machine.home / ".pyenv/versions/3.13.4/bin/python")
    assert env.find_python(env.PREFERRED)[0] == wanted


@pytest.mark.parametrize("flaw", [{"final": False}, {"cpython": False}, {"gil": False}, {"bits64": False}])
def test_unsuitable_builds_are_passed_over(machine, flaw):
    machine((3, 13, 1), **flaw)
    wanted = machine((3, 11, 9))
    assert env.find_python(env.PREFERRED)[0] == wanted


def test_none_found_is_a_sentence(machine):
    old = machine((3, 10, 2), machine.home / ".pyenv/versions/3.10.2/bin/python")
    with pytest.raises(env.EnvError) as error:
        env.find_python(env.PREFERRED)
    assert "3.14 or 3.13 or 3.12 or 3.11" in str(error.value)
    assert "MIN_LLM_PYTHON=" in str(error.value) and old in str(error.value)


def test_the_override_is_the_only_one_looked_at(machine):
    machine((3, 13, 1))
    chosen = machine((3, 12, 1), machine.home / "mine/python")
    assert env.find_python(env.PREFERRED, chosen)[0] == chosen
    with pytest.raises(env.EnvError, match="is no CPython"):
        env.find_python(env.PREFERRED, str(machine.home / "none"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n\n[tool.ruff]\nline-length = 110\n')
    return tmp_path


def test_only_the_packaging_tables_make_a_new_installation(project):
    groups = [["-e", "."]]
    first = env.installed_from(project / ".venv", groups)
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace("110", "120"))
    assert env.installed_from(project / ".venv", groups) == first
    (project / "pyproject.toml").write_text(text.replace('"x"', '"y"'))
    assert env.installed_from(project / ".venv", groups) != first
    (project / "pyproject.toml").write_text(text)
    assert env.installed_from(project / ".venv", [["-e", ".[dev]"]]) != first
    assert env.installed_from(project / "moved", groups) != first


def test_a_foreign_folder_is_never_deleted(project):
    folder = project / ".venv"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(env.EnvError, match="not made by this project"):
        env.remove(folder, env.read_stamp(folder))
    assert (folder / "mine").exists()


@pytest.mark.parametrize("leftover", [env.STAMP, env.STAMP + ".tmp", None])
def test_the_rests_of_a_killed_run_are_cleared(project, leftover):
    folder = project / ".venv"
    folder.mkdir()
    (project / ".venv.removing").mkdir()
    if leftover:
        (folder / leftover).write_text("{}")
    env.remove(folder, env.read_stamp(folder))
    assert not folder.exists() and not (project / ".venv.removing").exists()


def test_nothing_happens_while_the_stamp_fits(project, monkeypatch):
    folder = project / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    commands = []
    monkeypatch.setattr(env, "run", commands.append)
    monkeypatch.delenv("MIN_LLM_PYTHON", raising=False)
    digest = env.installed_from(folder, env.RECIPES["main"][2])
    here = str(folder / "bin" / "python")
    env.write_stamp(
        folder, {"ready": True, "python": here, "asked": None, "version": [3, 13, 0], "digest": digest}
    )
    assert env.make("main") is False and commands == []
    (project / "pyproject.toml").write_text('[project]\nname = "y"\n')
    assert env.make("main") is True
    assert len(commands) == 1 and "install" in commands[0]
    assert env.make("main") is False
