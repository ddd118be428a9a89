"""Tiny runs: a text, a configuration, a training in this process or in one of its own, and two run folders compared."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from min_llm import config as config_lib
from min_llm import reporting
from min_llm.cli.main import main
from min_llm.nn.batch import Batch
from min_llm.nn.cross_entropy import cross_entropy
from min_llm.nn.dropout import dropout
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param
from min_llm.train.config import RunConfig
from min_llm.train.loop import train as train_loop
from min_llm.train.pretrain import Task, pretraining
from min_llm.train.run import begun_with, open_run

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from min_llm.cli.main import main; main()"

TINY = {
    "data": {"tokenizer": "chars"},
    "model": {"n_layers": 1, "dim": 16, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 16, "dropout": 0.1},
    "train": {"steps": 12, "batch_size": 4, "seq_len": 16, "log_every": 2, "eval_every": 6},
    "optim": {"lr": 3e-3, "warmup": 3},
    "checkpoint": {"every": 4},
    "sample": {"every": 0, "max_tokens": 8},
    "log": {"tensorboard": False},
    "runtime": {"dtype": "float32"},
}


def text(folder: Path, words: int = 2000) -> Path:
    """A file of made-up words, always the same."""
    path = folder / "text.txt"
    if not path.exists():
        draw = random.Random(0)
        stock = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(40)]
        path.write_text("".join(" ".join(draw.choices(stock, k=8)) + "\n" for _ in range(words // 8)))
    return path


def write_config(folder: Path, **changes) -> Path:
    """config.yaml of a tiny run on that text, its data and runs inside `folder`."""
    tree = json.loads(json.dumps(TINY))
    given = {"data.source": str(text(folder)), "data.home": str(folder / "home"), "out": str(folder / "runs")}
    for key, value in {**given, **changes}.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    path = folder / "config.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def configuration(folder: Path, name: str = "run", **changes) -> RunConfig:
    """The same as a RunConfig; changes as {"train.steps": 5}."""
    return config_lib.load(
        RunConfig, write_config(folder, name=name, **changes), [f"model.vocab_size={VOCAB}"]
    )


VOCAB = 17
TOY = {
    "embed": Param((VOCAB, 32), (None, None), 1.0, "embedding"),
    "head": Param((32, VOCAB), (None, None), 0.3, "head"),
}


def toy_loss(dtype="float32", rate=0.0):
    """A bigram model in two layers, which compiles ten times faster than a transformer."""

    def loss(params, batch, key):
        x = dropout(jnp.tanh(params["embed"][batch.tokens].astype(dtype)), rate, key)
        return cross_entropy(x, params["head"], batch.targets, batch.weights, 2**20)

    return loss


def toy_batch(step: int) -> Batch:
    """Four rows of a made-up language in which each token mostly says which one follows; step 30 is another one."""
    draw = np.random.default_rng(step)
    tokens = np.cumsum(1 + (draw.uniform(size=(4, 17)) < 0.2), axis=1, dtype=np.int32) % VOCAB
    tokens = tokens[:, ::-1] if step == 30 else tokens
    return Batch(tokens[:, :-1], tokens[:, 1:])


def toy(cfg: RunConfig, loss=None) -> Task:
    """A task for the loop that needs neither data nor a transformer (`cfg.model` is only counted)."""
    evaluate = jax.jit(toy_loss())

    def validate(params):
        return {"loss": float(evaluate(params, toy_batch(10**6), None)) / 64}

    runtime = Runtime(dtype=cfg.runtime.dtype)
    return Task(cfg.model, TOY, runtime, loss or toy_loss(cfg.runtime.dtype, 0.1), toy_batch, validate)


def train(cfg: RunConfig, hooks=(), task: Task | None = None):
    """Train or resume the toy (or another task) in this process; the Outcome."""
    with open_run(cfg) as run:
        return train_loop(run, task or toy(cfg), hooks)


def train_model(cfg: RunConfig, hooks=()):
    """The same with the model and the data of the configuration."""
    cfg, task, _ = pretraining(cfg, begun_with(cfg))
    return train(cfg, hooks, task)


def start(*words: object, prelude: str = "", env: dict[str, str] | None = None) -> subprocess.Popen:
    """`min-llm words…` in a process of its own; `prelude` is run before."""
    command = [sys.executable, "-c", f"{prelude}\n{MAIN}", *map(str, words)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, text=True, **streams)


def command_line(capsys, *words: object) -> tuple[int, str, str]:
    """`min-llm words…` in this process: (exit status, standard output, standard error)."""
    capsys.readouterr()
    reporting._reporter, argv, sys.argv = None, sys.argv, ["min-llm", *map(str, words)]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        reporting._reporter, sys.argv = None, argv
    out, err = capsys.readouterr()
    return status, out, err


def comparable(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without "perf": what must be the same in every run of one configuration."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "perf"} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """Every array of the latest checkpoint (step, parameters, optimizer), as bytes."""
    import orbax.checkpoint as ocp

    from min_llm.train.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    path = checkpoints.folder / str(checkpoints.latest()) / "arrays"
    with ocp.StandardCheckpointer() as loader:
        tree = loader.restore(path.absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


def differences(ours: Path, other: Path) -> list[str]:
    """What is not bit-identical in two finished runs, as sentences; [] when all of it is."""
    found = []
    a, b = comparable(ours), comparable(other)
    if a != b:
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905
        found.append(
            f"row {at + 1} of metrics.jsonl ({len(a)} and {len(b)} rows): {a[at:][:1]} and {b[at:][:1]}"
        )
    if (ours / "samples.md").exists() and (ours / "samples.md").read_bytes() != (
        other / "samples.md"
    ).read_bytes():
        found.append("samples.md")
    x, y = weights(ours), weights(other)
    if not x or x.keys() != y.keys():
        found.append("the arrays of the checkpoints are not the same ones")
    return found + [f"array {name}" for name in x if x[name] != y.get(name)]
