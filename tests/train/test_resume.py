"""A run that was stopped, by a signal or by kill -9, ends bit-identical to one that never was.

The twenty random kills of both dtypes with cold and warm caches are the acceptance part `kill`
(tests/acceptance/kill.py); here every moment that matters is hit once.
"""

import dataclasses
import json
import os
import signal

import pytest

from min_llm.config import UserError
from min_llm.nn.runtime import RuntimeConfig, resolve
from min_llm.train.loop import Hook
from min_llm.train.pretrain import keep
from min_llm.train.run import Run, begun_with
from tests.train import runs
from tests.train.runs import configuration, differences, train

EVENTFUL = {"train.steps": 40, "optim.lr": 0.1, "train.eval_every": 6, "train.log_every": 3}


def signal_at(step, number=signal.SIGTERM):
    """A hook that sends this process a signal when `step` is done."""

    def call(done, _):
        if done == step:
            os.kill(os.getpid(), number)

    return Hook("signal", 1, call)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_by_signals(tmp_path, dtype):
    changes = {"runtime.dtype": dtype, **EVENTFUL}
    assert train(configuration(tmp_path, "whole", **changes)).finished
    stopped = configuration(tmp_path, "stopped", **changes)
    for at in (5, 30):  # between rows of metrics, after spikes
        outcome = train(stopped, [signal_at(at)])
        # The hook runs after the loop has asked for signals: the step after it is the last.
        assert not outcome.finished and outcome.done == at + 1
        assert Run(tmp_path / "runs/stopped", stopped).checkpoints.latest() == at + 1
    assert train(stopped, [signal_at(39, signal.SIGINT)]).finished
    assert differences(tmp_path / "runs/stopped", tmp_path / "runs/whole") == []
    rows = runs.comparable(tmp_path / "runs/whole")
    assert {row["kind"] for row in rows} == {"train", "val", "event"}  # the spike monitor resumed, too


def test_a_signal_between_two_steps_is_not_lost(tmp_path, monkeypatch):
    """Wherever in a step it arrives, the state is saved before the process ends."""
    cfg = configuration(tmp_path, **{"checkpoint.every": 0})
    from min_llm.train import loop

    class Asked(list):
        """Received signals, of which one arrives right after the loop has asked for the third time."""

        times = 0

        def __bool__(self):
            self.times += 1
            said = len(self) > 0
            if self.times == 3:
                self.append(signal.SIGTERM)
            return said

    class Signals:
        def __enter__(self):
            return Asked()

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(loop, "stop_signals", Signals)
    outcome = train(cfg)
    assert not outcome.finished
    assert Run(tmp_path / "runs/run", cfg).checkpoints.latest() == outcome.done


# What a child process does before it starts: SIGKILL itself when the checkpoint of step 8 is on disk under its
# temporary name, or when it has gone two steps beyond it.
KILLS = {
    "while saving": (
        "from min_llm.train import checkpoints as c; sync = c._sync\n"
        "c._sync = lambda p: kill() if p.name == '.8.saving' else sync(p)"
    ),
    "between checkpoints": (
        "from min_llm.train import metrics as m; write = m.Metrics.write\n"
        "m.Metrics.write = lambda s, step, *a: kill() if step == 10 else write(s, step, *a)"
    ),
}


@pytest.mark.parametrize("dtype, moment", [("float32", "while saving"), ("bfloat16", "between checkpoints")])
def test_killed_outright(tmp_path, capsys, dtype, moment):
    """The real model, its data and samples; what is killed runs in processes of its own."""
    path = runs.write_config(tmp_path, **{"runtime.dtype": dtype})
    assert runs.command_line(capsys, "train", path, "name=whole")[0] == 0
    for prelude in (f"import os\ndef kill(): os.kill(os.getpid(), 9)\n{KILLS[moment]}", ""):
        child = runs.start("train", path, "name=killed", prelude=prelude)
        said, _ = child.communicate(timeout=600)
        assert child.returncode == (-signal.SIGKILL if prelude else 0), said
    folder = tmp_path / "runs/killed"
    assert differences(folder, tmp_path / "runs/whole") == []
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["12", "8"]
    assert (folder / "report.html").exists()


def test_a_finished_run_is_left_as_it_is(tmp_path):
    cfg = configuration(tmp_path)
    train(cfg)
    before = (tmp_path / "runs/run/metrics.jsonl").read_bytes()
    outcome = train(cfg)
    assert outcome.finished and (tmp_path / "runs/run/metrics.jsonl").read_bytes() == before


def test_rows_after_the_checkpoint_are_forgotten(tmp_path):
    cfg = configuration(tmp_path)
    train(cfg)
    metrics = tmp_path / "runs/run/metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"step": 14, "kind": "train", "loss": 1.0}\n{"step": 1')
    train(cfg)
    assert metrics.read_bytes() == whole


def test_a_lost_row_is_said(tmp_path, capsys):
    cfg = configuration(tmp_path)
    train(cfg)
    metrics = tmp_path / "runs/run/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-10])
    train(cfg)
    assert "has lost 10 bytes since the checkpoint" in capsys.readouterr().err


def test_auto_means_what_it_meant_when_the_run_began(tmp_path, monkeypatch, capsys):
    """The compute dtype is measured; a measurement that comes out otherwise later must not change a run on its way."""
    auto = configuration(tmp_path, **{"runtime.dtype": "auto"})
    assert begun_with(auto) == {}

    def peaks(bfloat16):
        found = {"flops_float32": 1e11, "flops_bfloat16": bfloat16, "bytes": 1e10}
        monkeypatch.setattr("min_llm.kernels.peaks.measure", lambda: found)
        return resolve(RuntimeConfig(), 1)

    task = runs.toy(configuration(tmp_path))
    began = peaks(1e12)
    assert began.dtype == "bfloat16"
    train(auto, [signal_at(5)], dataclasses.replace(task, runtime=began))

    today = peaks(1e11)
    assert today.dtype == "float32"
    kept = keep(today, auto.runtime, begun_with(auto))
    assert kept == began
    assert (
        "began with dtype bfloat16 and keeps it; chosen today it would be float32" in capsys.readouterr().err
    )
    explicit = keep(today, RuntimeConfig(dtype="float32"), begun_with(auto))
    assert explicit.dtype == "float32"  # the configuration is compared when the run is opened

    with pytest.raises(UserError, match="trained with another runtime \\(dtype bfloat16 -> float32"):
        train(auto, task=dataclasses.replace(task, runtime=today))
    assert train(auto, task=dataclasses.replace(task, runtime=kept)).finished


def test_other_software_is_said(tmp_path, capsys, monkeypatch):
    cfg = configuration(tmp_path)
    train(cfg, [signal_at(5)])
    monkeypatch.setenv("XLA_FLAGS", "--xla_made_up")
    train(cfg)
    assert "-> --xla_made_up); its numbers may differ" in capsys.readouterr().err


def test_what_a_checkpoint_keeps_beside_the_arrays(tmp_path):
    cfg = configuration(tmp_path)
    train(cfg, [signal_at(6)])
    meta = Run(tmp_path / "runs/run", cfg).checkpoints.read_meta(7)
    assert meta["step"] == 7 and len(meta["losses"]) == 1 and len(meta["monitor"]) == 7
    assert meta["runtime"]["dtype"] == "float32" and meta["software"]["jaxlib"] and meta["software"]["cores"]
    assert meta["config"]["train"]["steps"] == 12
    json.dumps(meta)
