"""First use: what an import costs and needs, help everywhere, and mistakes that end in a sentence."""

import subprocess
import sys
import time

import pytest
import typer

from min_llm.cli import main as cli

COMMAND = "import sys; from min_llm.cli.main import main; main()"
OPTIONAL = ("torch", "tensorflow", "transformers", "datasets", "huggingface_hub", "wandb", "pyarrow", "ray")


def seconds(*arguments):
    """Of `python arguments` and of an empty Python: the fastest of six starts each, in turns."""
    fastest = [float("inf"), float("inf")]
    for _ in range(6):
        for i, command in enumerate((arguments, ("-c", "pass"))):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            fastest[i] = min(fastest[i], time.perf_counter() - start)
    return fastest


def test_importing_is_quick():
    """Under 0.3 s, or under twenty empty starts (0.01 s each on a free machine) where Python starts slowly."""
    taken, bare = seconds("-c", "import min_llm")
    assert taken < max(0.3, 20 * bare)


def test_help_answers_at_once():
    taken, bare = seconds("-c", COMMAND, "--help")
    assert taken < max(0.5, 35 * bare)


@pytest.mark.parametrize(
    "code", ["import min_llm", "import min_llm.cli.main, min_llm.config, min_llm.platform"]
)
def test_neither_jax_nor_anything_heavy_comes_along(run_python, code):
    heavy = ("jax", "numpy", "matplotlib", "optax", "orbax", "tiktoken", "tensorboardX", "omegaconf")
    run_python(
        f"{code}\nimport sys\nassert not {{*{heavy}, *{OPTIONAL}}} & set(sys.modules), sorted(sys.modules)"
    )


def test_every_module_imports_without_the_optional_packages(run_python):
    """torch above all, but every extra too: they are imported where they are used."""
    run_python(
        f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # an import of it raises
import importlib, pkgutil, min_llm
names = [m.name for m in pkgutil.walk_packages(min_llm.__path__, "min_llm.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 60
"""
    )


def commands(group=None, path=()):
    """The words of every verb: ("data", "show")."""
    group = group or typer.main.get_command(cli.app)
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield (*path, name)
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def run(monkeypatch, capsys, *arguments):
    """Exit status, standard output and standard error of `min-llm arguments`, in this process."""
    monkeypatch.setattr(sys, "argv", ["min-llm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = capsys.readouterr()
    return ended.value.code or 0, output.out, output.err


@pytest.mark.parametrize("words", [(), *commands()], ids=" ".join)
def test_help_everywhere(words, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, *words, "--help")
    assert status == 0, err
    assert "--help" in out or "Usage" in out
    assert len(out.splitlines()) > 5


def test_the_promised_verbs_are_there():
    verbs = {words[0] for words in commands()}
    assert verbs >= {
        "train",
        "sample",
        "data",
        "tokenizer",
        "info",
        "arithmetic",
        "plan",
        "report",
        "probe",
        "doctor",
    }
    assert {("data", "list"), ("data", "prepare"), ("data", "show"), ("probe", "plot")} <= set(commands())
    assert {("tokenizer", "train"), ("tokenizer", "encode"), ("tokenizer", "info")} <= set(commands())


def test_help_of_train_shows_every_default(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "train", "--help")
    for key in ("train.steps", "optim.lr", "runtime.dtype", "model.preset", "checkpoint.every"):
        assert key in out
    assert "0.001" in out


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "home"))
    path = tmp_path / "config.yaml"
    path.write_text(f"out: {tmp_path}/runs\nmodel: {{preset: mini-1m}}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "absent.yaml"), "There is no configuration file"),
        (("train", "CONFIG", "train.step=3"), "Did you mean 'steps'"),
        (("train", "CONFIG", "steps"), "One configuration file at a time"),
        (("train", "CONFIG", "model.n_heads=5"), "must be a multiple of 'model.n_kv_heads'"),
        (("train", "CONFIG", "train.steps=0"), "'train.steps' is 0; it must be at least 1"),
        (("train", "CONFIG", "train.seq_len=4096"), "longer than 'model.max_seq_len'"),
        (
            ("plan", "CONFIG", "model.family=gpt2"),
            "Preset 'mini-1m' is a llama, but 'model.family' says 'gpt2'",
        ),
        (("plan", "model.family=lama"), "Did you mean 'llama'"),
        (("info", "lama3-8b"), "Did you mean 'llama3-8b'"),
        (("sample", "absent", "--prompt", "a"), "absent"),
        (("report", "absent"), "absent"),
        (("probe", "plot", "absent"), "absent"),
        (("data", "show", "absent"), "absent"),
        (("tokenizer", "info", "absent"), "absent"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_a_mistake_is_a_sentence_and_exit_status_2(arguments, message, config, monkeypatch, capsys):
    arguments = [str(config) if word == "CONFIG" else word for word in arguments]
    status, out, err = run(monkeypatch, capsys, *arguments)
    assert status == 2, err
    assert out == ""
    assert message in err
    assert err.startswith("min-llm: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["trian"], "train"), (["info", "gpt2", "--jsn"], "--json"), (["sample"], "")]
)
def test_a_mistyped_verb_or_option_exits_with_status_2(arguments, hint, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert hint in err
    assert "Traceback" not in err


def test_a_mistake_in_a_process_of_its_own(run_python):
    done = run_python(COMMAND, "info", "lama3-8b", check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_the_version(monkeypatch, capsys):
    import min_llm

    assert run(monkeypatch, capsys, "--version") == (0, f"{min_llm.__version__}\n", "")
