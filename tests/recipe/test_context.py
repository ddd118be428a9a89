"""The long-context stage: gates that open, gates that stay closed, and signals in between."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.prepare import DataConfig
from min_llm.models.llama import Config
from min_llm.recipe.context import ContextConfig, GateClosed, Measured, Stage, extend, gates
from min_llm.recipe.journal import Journal, Stopped
from min_llm.train.config import OptimConfig, RunConfig, TrainConfig

CFG = ContextConfig(
    lengths=(128, 256), rows=1.0, thetas=(1e6, 4e6), tokens=64_000, more=0.25, tries=2, lr=0.5
)
START = RunConfig(
    name="base",
    model=Config(vocab_size=256, max_seq_len=64),
    train=TrainConfig(steps=10, batch_size=8, seq_len=64),
    optim=OptimConfig(lr=1e-3),
)


class World:
    """Trainings that always end, and measurements by the name of the run."""

    def __init__(self, folder: Path, found: dict[str, Measured]) -> None:
        self.journal = Journal(folder)
        self.found = found
        self.trained: list[RunConfig] = []
        self.stop_at = -1

    def train(self, run: RunConfig) -> bool:
        if len(self.trained) == self.stop_at:
            return False
        self.trained.append(run)
        return True

    def measure(self, run: RunConfig, lengths: tuple[int, ...]) -> Measured:
        found = self.found[run.name]
        return dataclasses.replace(found, recall={n: found.recall[n] for n in lengths})

    def extend(self, cfg: ContextConfig = CFG) -> list[Stage]:
        text = lambda length: DataConfig(source=f"needles-{length}")
        return extend(cfg, START, self.journal, text, self.train, self.measure)


def measured(short: float, at128: float, at256: float) -> Measured:
    return Measured(short, {128: at128, 256: at256})


BEFORE = {"base": measured(2.0, 0.5, 0.0)}
OPEN = {"context-128": measured(2.0, 1.0, 0.2), "context-256": measured(1.9, 1.0, 1.0)}


def test_each_stage_begins_with_the_one_before(tmp_path: Path) -> None:
    world = World(tmp_path, BEFORE | OPEN)
    stages = world.extend()
    assert [s.length for s in stages] == [128, 256]
    first, second = world.trained
    assert first.init_from == "runs/base" and second.init_from == "runs/context-128"
    assert (
        isinstance(first.model, Config) and first.model.rope_theta == 1e6 and first.model.max_seq_len == 128
    )
    assert [(r.train.batch_size, r.train.seq_len, r.train.steps) for r in world.trained] == [
        (4, 128, 125),
        (2, 256, 125),
    ]
    assert (
        first.optim.lr == 5e-4 and first.optim.schedule == "constant" and first.data.source == "needles-128"
    )
    assert first.seed != second.seed != START.seed


def test_rows_are_longer_than_the_context(tmp_path: Path) -> None:
    world = World(tmp_path, BEFORE | OPEN)
    world.extend(dataclasses.replace(CFG, rows=1.5))
    assert [r.train.seq_len for r in world.trained] == [192, 384]
    assert [r.name for r in world.trained] == ["context-128", "context-256"]


def test_a_closed_gate_trains_on_and_what_is_done_is_kept(tmp_path: Path) -> None:
    late = {"context-128-more1": OPEN["context-128"], "context-128": measured(2.0, 0.97, 0.0)}
    world = World(tmp_path, BEFORE | OPEN | late)
    world.stop_at = 1
    with pytest.raises(Stopped):
        world.extend()
    world.stop_at = -1
    assert [s.run.name for s in world.extend()] == ["context-128-more1", "context-256"]
    assert [r.name for r in world.trained] == ["context-128", "context-128-more1", "context-256"]
    extended = world.trained[1]
    assert extended.init_from == "runs/context-128" and extended.train.steps == 31  # a quarter
    assert world.trained[2].init_from == "runs/context-128-more1"


def test_a_stage_that_never_passes_stops_with_its_numbers_and_may_be_given_more(tmp_path: Path) -> None:
    names = [f"context-256{more}" for more in ("", "-more1", "-more2")]
    world = World(tmp_path, BEFORE | OPEN | dict.fromkeys(names, measured(2.1, 1.0, 0.75)))
    with pytest.raises(GateClosed, match=r"2 times by 25%.*2.1000 and was 2.0000.*\+5.00%.*75.0% at 256"):
        world.extend()
    world.found["context-256-more3"] = measured(2.0, 1.0, 1.0)
    assert world.extend(dataclasses.replace(CFG, tries=3))[-1].run.name == "context-256-more3"
    assert [r.name for r in world.trained] == ["context-128", *names, "context-256-more3"]


@given(st.floats(0.5, 2), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_gates(ratio: float, near: float, far: float) -> None:
    closed = gates(CFG, 2.0, measured(2.0 * ratio, near, far))
    assert len(closed) == (ratio > 1.01) + (near < 1 or far < 1)


def test_lengths_that_do_not_grow_are_refused() -> None:
    with pytest.raises(UserError, match="each stage is longer"):
        ContextConfig(lengths=(256, 128))
    with pytest.raises(UserError, match="3 values for 2 lengths"):
        ContextConfig(lengths=(128, 256), thetas=(1e6, 2e6, 3e6))


def test_a_damaged_journal_says_what_to_remove(tmp_path: Path) -> None:
    (tmp_path / "pretrain.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"pretrain.json is damaged .* Remove it"):
        Journal(tmp_path).step("pretrain", dict)
