"""The probe: its runs, what it refuses, a kill in the middle, and the differences it reports."""

import json
from pathlib import Path

import pytest

from min_llm import config as config_lib
from min_llm.config import UserError
from min_llm.recipe.probe import ProbeConfig, effects, plan, run_probe
from min_llm.train.metrics import Metrics
from min_llm.train.run import load_config
from tests.train import runs

WEIGHTS = {"words": 0.75, "digits": 0.25}


class Killed(BaseException):
    """Nothing catches it and nothing is saved on its way: for what is on disk, a kill."""


def base(folder: Path) -> dict:
    """Settings of a run on a mix of words and digits; a third text is written beside theirs."""
    for name, characters in (("words", "abcdefghij"), ("digits", "0123456789"), ("more", "5678901234")):
        text = "".join(characters[(k * k + k // 7) % 10] + " \n"[k % 50 == 0] for k in range(2000))
        (folder / f"{name}.txt").write_text(text)
    some = {name: str(folder / f"{name}.txt") for name in WEIGHTS}
    return {"data.sources": some, "data.mix": [{"weights": WEIGHTS}], "checkpoint.every": 3}


@pytest.fixture
def source(tmp_path):
    """The folder of such a run as far as a plan reads it, with checkpoints of the steps 6 and 12."""
    given = {"optim.schedule": "linear", "optim.warmup": 0, "optim.min_lr": 0.5}
    folder = tmp_path / "runs/base"
    for step in (6, 12):
        (folder / f"checkpoints/{step}").mkdir(parents=True)
    cfg = runs.configuration(tmp_path, "base", **given, **base(tmp_path))
    (folder / "config.yaml").write_text(config_lib.to_yaml(cfg))
    return folder


def probe(base_run: Path, /, **changes) -> ProbeConfig:
    more, words = (str(base_run.parents[1] / f"{name}.txt") for name in ("more", "words"))
    given = {"out": str(base_run.parent), "source": str(base_run / "checkpoints/6"), "steps": 6, "seeds": [1, 2],
             "candidates": {"good": more, "bad": [more, words]}}  # fmt: skip
    return config_lib.build(ProbeConfig, given | changes)


def test_its_runs_are_the_source_annealed(source):
    theirs = load_config(source)
    found = plan(probe(source))
    assert [a.run.name for a in found] == ["control-1", "good-1", "bad-1", "control-2", "good-2", "bad-2"]
    control, good, bad, *_ = (a.run for a in found)
    assert control.init_from == str(source / "checkpoints/6") and control.model == theirs.model
    assert control.optim.lr == pytest.approx(3e-3 * 0.75)  # half of the way from 1 to 0.5
    assert (control.optim.schedule, control.optim.min_lr, control.optim.warmup) == ("linear", 0, 0)
    assert control.data.mix[0].weights == WEIGHTS and list(control.data.sources) == list(WEIGHTS)
    assert control.data.tokenizer == str(source / "tokenizer.json")
    assert good.data.mix[0].weights == pytest.approx({"words": 0.525, "digits": 0.175, "good": 0.3})
    assert good.data.sources["good"].endswith("more.txt") and len(bad.data.sources["bad"]) == 2
    a, b = (config_lib.dump(run) for run in (control, good))
    assert {key for key in a if a[key] != b[key]} == {"name", "data"}


def test_it_takes_the_latest_checkpoint_and_settings_of_its_own(source):
    changed = {"optim": {"lr": 0.1}, "train": {"batch_size": 8}}
    (first, *_) = plan(probe(source, source=str(source), run=changed, warmup=2))
    assert first.run.init_from == str(source / "checkpoints/12")
    assert (first.run.optim.lr, first.run.optim.warmup) == (0.1, 2)
    assert (first.run.train.batch_size, first.run.train.seq_len, first.run.train.steps) == (8, 16, 6)


def test_differences_are_paired_by_seed_and_ranked(source):
    losses = {"control-1": 3.0, "control-2": 4.0, "good-1": 2.5, "good-2": 3.75, "bad-1": 3.25, "bad-2": 4.0}

    def planted(run):
        folder = Path(run.out) / run.name
        folder.mkdir(parents=True)
        row = {"step": 6, "kind": "val", "loss": 1.0, "loss/words": 2.0, "loss/digits": losses[run.name]}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return True

    cfg = probe(source, judges=["digits"])
    with pytest.raises(UserError, match=r"control-1 of .* is not finished"):
        effects(cfg)
    assert run_probe(plan(cfg), planted)
    good, bad = effects(cfg)
    assert (good.candidate, good.differences) == ("good", {"digits": (-0.5, -0.25)})
    assert (bad.candidate, bad.differences) == ("bad", {"digits": (0.25, 0.0)})
    assert good.mean == -0.375 and good.spread == (-0.5, -0.25)
    (good, _) = effects(probe(source))
    assert good.differences["words"] == (0, 0) and good.by_seed == (-0.25, -0.125)


def test_a_control_that_diverged_says_nothing(source):
    cfg = probe(source)
    for a in plan(cfg):
        folder = Path(a.run.out) / a.run.name
        folder.mkdir(parents=True)
        row = {"step": 3, "kind": "event", "event": "not finite"}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="The control control-1 diverged"):
        effects(cfg)


@pytest.mark.newest
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(source, monkeypatch):
    cfg, calls, write = probe(source, seeds=[1]), [], Metrics.write

    def train(run):
        calls.append(run.name)
        return runs.train(run).finished

    def dying(self, at, *rest):
        if (self.path.parent.name, at) == ("good-1", 4):  # behind the checkpoint of step 3
            raise Killed
        write(self, at, *rest)

    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", dying)
        run_probe(plan(cfg), train)
    assert calls == ["control-1", "good-1"]
    first = cfg.folder / "runs/control-1/metrics.jsonl"
    before = first.stat()
    calls.clear()
    assert run_probe(plan(cfg), train)
    assert calls == ["good-1", "bad-1"] and first.stat() == before
    whole = plan(probe(source, seeds=[1], name="whole"))[1].run
    assert train(whole) and runs.differences(cfg.folder / "runs/good-1", Path(whole.out) / "good-1") == []
    with pytest.raises(UserError, match=r"already holds a run with other settings \(data.mix"):
        run_probe(plan(probe(source, seeds=[1], share=0.5)), train)  # finished, with another share


def test_a_signal_ends_the_probe(source):
    calls = []
    assert not run_probe(plan(probe(source)), lambda run: calls.append(run.name) or False)
    assert calls == ["control-1"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": ""}, "'source' is empty"),
        ({"candidates": {}}, "'candidates' is empty"),
        ({"candidates": {"words": "x.txt"}}, "called 'words', which the default mix uses"),
        ({"candidates": {"control": "x.txt"}}, "called 'control'"),
        ({"judges": ["digit"]}, "'judges' has 'digit', no source of the default mix. Did you mean 'digits'"),
        ({"share": 1.0}, "'share' is 1.0"),
        ({"steps": 0}, "'steps' is 0 and 'warmup' 0"),
        ({"warmup": 6}, "'steps' is 6 and 'warmup' 6"),
        ({"seeds": [0, 1]}, r"not the run's own \(0\)"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"run": {"optim": {"schedule": "cosine"}}}, "'run.optim.schedule' is given by the probe"),
        ({"run": {"model": {"dim": 8}}}, "'run.model' is given by the probe"),
        ({"run": {"trian": {}}}, "Unknown configuration key 'run.trian'"),
        ({"run": {"data": {"mix": [{"until": 9, "weights": WEIGHTS}, {"weights": WEIGHTS}]}}}, "2 phases"),
    ],
)
def test_what_cannot_be_probed_is_refused(source, changes, says):
    with pytest.raises(UserError, match=says):
        plan(probe(source, **changes))


def test_a_checkpoint_that_is_not_there_is_refused(source):
    with pytest.raises(UserError, match=r"does not have the checkpoint of step 5 \(it has: 6, 12\)"):
        plan(probe(source, source=str(source / "checkpoints/5")))


@pytest.mark.newest
def test_the_command(tmp_path, capsys):
    """A real model is annealed; asked for a second time it is not."""
    changes = {"data.tokenizer": "bytes", "train.eval_every": 0, "train.steps": 2, "name": "base"}
    config = runs.write_config(tmp_path, **base(tmp_path), **changes)
    assert runs.command_line(capsys, "train", config)[0] == 0
    given = {"source": str(tmp_path / "runs/base"), "out": str(tmp_path / "runs"), "steps": 2, "seeds": [1],
             "candidates": {"more": str(tmp_path / "more.txt")}, "judges": ["digits"]}  # fmt: skip
    path = tmp_path / "probe.yaml"
    path.write_text(json.dumps(given))  # JSON is YAML
    status, out, first = runs.command_line(capsys, "anneal-probe", path)
    assert status == 0 and "more" in out and "held-out digits, 1 seeds" in out, first
    status, out, second = runs.command_line(capsys, "anneal-probe", path, "--json")
    (effect,) = json.loads(out)["effects"]
    rows = [runs.comparable(tmp_path / f"runs/probe/runs/{text}-1")[-1] for text in ("more", "control")]
    assert effect["mean"] == rows[0]["loss/digits"] - rows[1]["loss/digits"] != 0
    assert "annealing on" in first and "annealing on" not in second
