"""`min-llm plan --schedule`, and the totals of a run that ramps."""

import json

import pytest

from min_llm.config import UserError
from tests.cli.test_models import answer, peaks, run  # noqa: F401  the fixture is used by all

SETTINGS = [
    "model.preset=mini-1m", "train.steps=400", "train.batch_size=8", "train.seq_len=64", "optim.over=tokens",
    "optim.warmup=10000", "train.ramp=[{until_tokens: 20000, batch_size: 4, seq_len: 32}]",
]  # fmt: skip
FIRST = 157  # steps of 128 tokens until 20,000 are seen
TOKENS = FIRST * 128 + (400 - FIRST) * 512


def test_the_schedule_is_sketched_and_drawn(tmp_path):
    picture = tmp_path / "schedule.svg"
    text = run("plan", *SETTINGS, "--schedule", "--out", picture)
    assert "8 x 64 from step 157 on, 20.1 k tokens" in text
    assert "tokens of a batch, at most 512" in text and "learning rate, at most 0.001" in text
    assert text.count("⠉") > 20  # braille
    svg = picture.read_text()
    assert svg.startswith("<?xml") and svg.count('id="axes_') == 4


def test_the_schedule_as_numbers():
    columns = answer("plan", *SETTINGS, "--schedule")
    assert columns["step"] == sorted(range(400))
    assert columns["tokens"][FIRST - 1 : FIRST + 2] == [156 * 128, 157 * 128, 157 * 128 + 512]
    assert max(columns["lr"]) == pytest.approx(1e-3, rel=1e-2)
    assert json.dumps(columns["seq_len"]) == json.dumps([32.0] * FIRST + [64.0] * (400 - FIRST))


def test_a_plan_adds_up_the_phases():
    facts = answer("plan", *SETTINGS)
    assert facts["tokens"] == TOKENS
    assert "157 steps of 4 x 32, then 243 steps of 8 x 64 tokens" in run("plan", *SETTINGS)
    halves = [answer("plan", *SETTINGS[:1], *SETTINGS[4:6], f"train.steps={n}", f"train.batch_size={b}",
                     f"train.seq_len={s}") for n, b, s in ((FIRST, 4, 32), (243, 8, 64))]  # fmt: skip
    for what in ("tokens", "flops", "seconds", "seconds_at_peak"):
        assert facts[what] == pytest.approx(sum(h[what] for h in halves), rel=1e-6)


def test_a_plan_counts_the_state_of_the_optimizer():
    held = {name: answer("plan", *SETTINGS, f"optim.name={name}")["bytes"]["optimizer"]
            for name in ("adamw", "muon", "lion", "adafactor")}  # fmt: skip
    assert held["adamw"] == 2 * held["lion"]
    assert held["adamw"] > held["muon"] > held["lion"] > 10 * held["adafactor"]


def test_a_picture_of_no_known_kind_is_refused():
    with pytest.raises(UserError, match=r"must end in \.png, \.svg or \.pdf"):
        run("plan", *SETTINGS, "--schedule", "--out", "a.gif")
