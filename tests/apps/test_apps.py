"""Every app's configuration loads and trains; the scripts read runs and keep rows as design.md says."""

import dataclasses
import json
import subprocess

import jax
import pytest

from apps import results
from apps.ablations import run as ablations
from apps.ablations import variants
from apps.annealing import run as annealing
from apps.nanogpt import run as nanogpt
from apps.shakespeare import publish
from apps.three_minutes import run as three_minutes
from bench.results import FIELDS, ROOT
from min_llm import config as config_lib
from min_llm import models, reporting, spec
from min_llm.train.config import RunConfig, check

CONFIGS = sorted((ROOT / "apps").glob("*/*.yaml"))
TINY_RUN = ("train.steps=3", "train.batch_size=2", "train.micro_batches=1", "train.seq_len=16",
            "train.log_every=1", "train.eval_every=0", "train.eval_tokens=0",
            "data.split=tail", "data.val_fraction=0.1", "runtime.dtype=float32",
            "log.tensorboard=false")  # fmt: skip
TINY_MODEL = {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "max_seq_len": 16}
QUICK = {"xla_backend_optimization_level": 0}
PEAKS = {"flops_float32": 1e11, "flops_bfloat16": 1e11, "bytes": 1e10}


def name(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(autouse=True)
def fresh_reporter(monkeypatch):
    """A reporter of the test's own: one made under captured output would write to a closed stream later."""
    monkeypatch.setattr(reporting, "_reporter", None)


def load(path, *overrides):
    return check(config_lib.load(RunConfig, path, overrides))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_configuration_loads_and_can_be_written_back(path):
    cfg = load(path)
    assert config_lib.build(RunConfig, config_lib.dump(cfg)) == cfg
    assert (path.parent / "README.md").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_configuration_trains(path, tmp_path, monkeypatch):
    """Three steps of its settings on a text of a few lines, the model and the batch made small."""
    from min_llm.train import loop
    from min_llm.train.pretrain import pretraining
    from min_llm.train.run import open_run

    monkeypatch.setattr("min_llm.kernels.peaks.measure", lambda: PEAKS)
    monkeypatch.setattr(
        "min_llm.train.step.jit_step",
        lambda step: jax.jit(step, donate_argnums=0, compiler_options=QUICK),
    )
    text = tmp_path / "text.txt"
    text.write_text(
        "To be, or not to be: that is the question. Whether 'tis nobler in the mind to suffer.\n" * 12
    )
    cfg = load(path, *TINY_RUN, f"data.source={text}", f"data.home={tmp_path}", f"out={tmp_path / 'runs'}")
    model = (
        config_lib.dump(cfg.model) | TINY_MODEL | ({"n_kv_heads": 1} if cfg.model.family == "llama" else {})
    )
    tokenizer = "chars" if cfg.data.tokenizer == "chars" else "bpe:280"
    cfg = dataclasses.replace(
        cfg,
        model=config_lib.build(models.ModelConfig, model, "model"),
        data=dataclasses.replace(cfg.data, tokenizer=tokenizer, sources={}, mix=()),
    )
    cfg, task, _ = pretraining(cfg)
    with open_run(cfg) as run:
        assert loop.train(run, task).finished
    done = results.read(tmp_path / "runs" / cfg.name)
    assert done.steps == 3 and 0 < done.loss < 10 and done.seconds > 0


def test_sizes_are_those_that_the_configurations_state():
    def parameters(app, name):
        cfg = load(ROOT / "apps" / app / f"{name}.yaml", "model.vocab_size=65")
        return spec.count(models.spec(cfg.model))

    assert parameters("nanogpt", "gpt2-cpu") == 804_096  # as bench/results/nanogpt.*.json counts nanoGPT's
    assert parameters("nanogpt", "llama-cpu") == 800_000
    assert parameters("nanogpt", "gpt2-gpu") - 256 * 384 == parameters("nanogpt", "llama-gpu") == 10_646_784


def test_a_pair_differs_in_the_model_alone():
    for size in ("cpu", "gpu"):
        gpt2, llama = (
            config_lib.dump(load(ROOT / "apps/nanogpt" / f"{m}-{size}.yaml")) for m in ("gpt2", "llama")
        )
        assert {key for key in gpt2 if gpt2[key] != llama[key]} == {"name", "model"}


def trained(seed, *losses, seconds=170.0):
    return results.Trained(
        folder=ROOT, seed=seed, dtype="bfloat16", losses=list(losses), bits_per_byte=2.0, seconds=seconds, steps=10,
        tokens=1000, parameters=800_000, flops=1e9, tokens_per_second=1e4, machine="a-machine",
    )  # fmt: skip


def test_rows_are_complete_and_replace_their_like(tmp_path):
    file = tmp_path / "results.json"
    for loss in (1.9, 1.7):
        runs = [trained(1, loss - 0.1), trained(2, loss + 0.1)]
        row = results.over_seeds("a case", "val_loss", "nats/char", runs, lambda run: run.loss)
        results.write("nanogpt", [row], file)
    (written,) = json.loads(file.read_text())
    assert set(FIELDS) <= set(written)
    assert written["id"] == "nanogpt/a-case/val_loss/bfloat16"
    assert written["seeds"] == [1, 2] and written["runs"] == 2
    assert written["ours"] == pytest.approx(1.7) and written["spread"] == pytest.approx([1.6, 1.8])


def test_rows_of_annealing_are_compared_seed_by_seed(monkeypatch):
    folders = [ROOT / "one", ROOT / "two"]
    monkeypatch.setattr(
        results, "read", lambda folder: dataclasses.replace(trained(len(folder.name), 1.0), folder=folder)
    )
    row = {"kind": "val", "loss": 9.0, "loss/wiki": 3.0, "loss/plays": 4.0, "loss/math": 2.0}
    better = row | {"loss/math": 1.0}
    before = annealing.Case("before", folders, [annealing.losses(row)] * 2)
    after = annealing.Case("after", folders, [annealing.losses(better), annealing.losses(row)])
    math, default, mean = after.rows(before)
    assert (math["ours"], math["difference"], math["differences"]) == (1.5, -0.5, [-1, 0])
    assert (math["against"], math["below"], math["metric"]) == ("before", "1 of 2", "loss_math")
    assert mean["ours"] == pytest.approx((3 + 8 / 3) / 2)
    assert default["difference"] == pytest.approx(-annealing.DEFAULT["math"] / 2)
    assert sum(annealing.UPSAMPLED.values()) == pytest.approx(1)


def test_our_gpt2_is_what_the_nanogpt_benchmark_looks_for():
    from bench.nanogpt import CASE

    assert nanogpt.CASES["gpt2-cpu"] == CASE
    assert set(nanogpt.CASES) == {path.stem for path in CONFIGS if path.parent.name == "nanogpt"}


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_an_ablation_changes_what_it_names_and_costs_as_many_flops(name):
    base, cfg = (variants.load(variants.settings(n, 2048), 2048) for n in (variants.BASE, name))
    assert variants.flops(cfg) == pytest.approx(variants.flops(base), rel=0.01)
    before, after = (config_lib.flatten(config_lib.dump(c)) for c in (base, cfg))
    changed = {key for key in before if before[key] != after[key]}
    follows = {"train.steps", "model.hidden_dim"}  # as many FLOPs, as many parameters
    assert changed - follows == set(variants.VARIANTS[name])


def test_an_ablation_within_the_seeds_is_called_so(monkeypatch):
    monkeypatch.setattr(ablations, "late_loss", lambda run: run.loss)
    base = [trained(1, 2.0), trained(2, 2.2)]
    better = ablations.row("a", [trained(1, 1.8), trained(2, 1.9)], base)
    assert better["verdict"] == "better" and better["difference"] == pytest.approx(-0.25)
    assert better["seed_differences"] == pytest.approx([-0.3, -0.2])
    assert ablations.row("b", [trained(1, 2.1), trained(2, 2.1)], base)["verdict"] == "within seeds"
    assert ablations.row("c", [trained(1, 2.3), trained(2, 2.4)], base)["verdict"] == "worse"


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Runs the leaderboard's command with trainings that take the given seconds; returns (exit status, calls, rows)."""

    def run(*arguments, seconds=170.0):
        calls = []

        def train(config, changes, out):
            calls.append(changes)
            return trained(changes["seed"], 1.5, seconds=seconds)

        file = tmp_path / "results.json"
        monkeypatch.setattr(three_minutes, "seconds_per_step", lambda *_: 0.12)
        monkeypatch.setattr(three_minutes.results, "train", train)
        monkeypatch.setattr(three_minutes, "cores", lambda: 2)
        monkeypatch.setattr(three_minutes.os, "sched_setaffinity", lambda *_: None, raising=False)
        monkeypatch.setattr("sys.argv", ["run", *arguments, "--into", str(file)])
        status = three_minutes.main()
        return status, calls, json.loads(file.read_text()) if file.exists() else []

    return run


def test_a_row_of_the_board_fills_its_budget(board):
    status, calls, rows = board("3min", "--margin", "0")
    assert status == 0
    assert [c["train.steps"] for c in calls] == [1500] * 3  # 180 s at 0.12 s a step
    assert {c["data.tune"] for c in calls} == {"false"}
    assert rows[0]["minutes"] == pytest.approx(170 / 60) and rows[0]["seeds"] == [1337, 1338, 1339]


def test_a_seed_over_the_budget_makes_the_row_invalid(board, capsys):
    status, _, rows = board("3min", seconds=181.0)
    assert status == 1 and rows == []
    assert "the budget is 180 s" in capsys.readouterr().out


def test_tuning_reads_no_validation_text_and_writes_no_row(board):
    status, calls, rows = board("10min", "optim.lr=2e-3", "--tune")
    assert status == 0 and rows == []
    assert [(c["data.tune"], c["optim.lr"], c["train.steps"]) for c in calls] == [("true", "2e-3", 4850)]


def test_settings_on_the_command_line_make_no_row(board):
    with pytest.raises(SystemExit):
        board("3min", "optim.lr=2e-3")


@pytest.fixture
def demo(tmp_path):
    """A run folder as the demo leaves it."""
    cfg = load(ROOT / "apps/shakespeare/config.yaml", "model.vocab_size=64", "train.steps=20")
    (tmp_path / "config.yaml").write_text(config_lib.to_yaml(cfg))
    train = [
        {"step": n, "kind": "train", "loss": 4 - n / 10, "tokens": n * 4096} | {"perf": {"elapsed": n / 2}}
        for n in range(5, 21, 5)
    ]
    val = [{"step": n, "kind": "val", "loss": 4.1 - n / 10} for n in (10, 20)]
    final = [{"step": 20, "kind": "final", "loss": 2.0, "bits_per_byte": 1.8}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train + val + final))
    start = {"commit": "abc+", "command": "min-llm train x", "time": "2026-01-01", "flops_per_token": 10.0}
    starts = {"starts": [start | {"runtime": {"dtype": "bfloat16"}, "platform": "cpu"}]}
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    found = {"xz_9": {"alone": 2.9, "conditional": 2.8}, "kneser_ney": {"order": 5, "bits_per_byte": 2.3}}
    (tmp_path / "baselines.json").write_text(json.dumps(found))
    return tmp_path


def test_the_demo_publishes_its_run(demo):
    results.write("shakespeare", publish.rows(demo), demo / "results.json")
    rows = {row["id"]: row for row in json.loads((demo / "results.json").read_text())}
    xz, gram = (rows[f"shakespeare/demo/bits_per_byte/bfloat16/{name}"] for name in ("xz--9", "5-gram"))
    assert (xz["ours"], xz["peer"], xz["ratio"]) == (1.8, 2.9, pytest.approx(2.9 / 1.8))
    assert (gram["peer"], gram["commit"], gram["command"]) == (2.3, "abc+changes", "min-llm train x")
    assert rows["shakespeare/demo/train_seconds/bfloat16"]["ours"] == 10
    assert rows["shakespeare/demo/throughput/bfloat16"]["ours"] == 8192


def test_the_demo_draws_the_same_picture_each_time(demo):
    drawn = []
    for name in ("one.svg", "two.svg"):
        publish.draw(demo, demo / name)
        drawn.append((demo / name).read_text())
    assert drawn[0] == drawn[1]
    assert "5-gram: 2.30" in drawn[0] and "bits per byte" in drawn[0]


def test_an_unfinished_run_is_no_result(demo):
    cfg = load(demo / "config.yaml", "train.steps=30")
    (demo / "config.yaml").write_text(config_lib.to_yaml(cfg))
    with pytest.raises(ValueError, match="stopped after step 20 of 30"):
        results.read(demo)


def test_a_step_is_measured_without_the_first_ones(tmp_path, monkeypatch):
    """60 steps: 20 that take a second each, then 40 of a quarter of a second."""

    def train(config, changes, out):
        assert changes["train.steps"] == 60 and changes["data.tune"] == "true"
        elapsed = {n: min(n, 20) + max(n - 20, 0) / 4 for n in range(10, 61, 10)}
        lines = [
            {"step": n, "kind": "train", "loss": 1.0, "perf": {"elapsed": s}} for n, s in elapsed.items()
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return dataclasses.replace(trained(1, 1.0), folder=tmp_path)

    monkeypatch.setattr(three_minutes.results, "train", train)
    assert three_minutes.seconds_per_step(ROOT, {"data.tune": "true"}, tmp_path) == 0.25


def test_training_is_the_command_line_in_a_process_of_its_own(tmp_path, monkeypatch):
    """What an earlier run left is removed first, and a failure is the caller's to see."""
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.yaml").write_text("stale")
    monkeypatch.setattr(results, "read", lambda folder: folder)
    monkeypatch.setattr(results, "MIN_LLM", ["echo"])
    assert results.train(ROOT / "x.yaml", {"name": "again", "train.steps": 3}, tmp_path) == tmp_path / "again"
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(results, "MIN_LLM", ["false"])
    with pytest.raises(subprocess.CalledProcessError):
        results.train(ROOT / "x.yaml", {"name": "again"}, tmp_path)
