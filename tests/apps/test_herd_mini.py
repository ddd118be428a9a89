"""herd_mini: its presets fit together, and a recipe made small runs to its report, once."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace

import pytest

from apps.herd_mini import bases, config, data, report, run, score, trainings
from min_llm import models, spec
from min_llm.config import UserError
from min_llm.data.mix import check_phases
from min_llm.data.needles import WORDS
from min_llm.infer.load import load_run
from min_llm.train.ramp import Ramp

PRESETS = ("small", "ci", "100M")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_together(preset, tmp_path):
    cfg = config.load([f"preset={preset}", f"out={tmp_path}"])
    mixes = [cfg.mix, cfg.late_mix, cfg.context_mix, cfg.anneal_mix]
    for mix in mixes:
        text = data.text(cfg, (mix, None))
        check_phases(text.mix, text.sources)
    assert len(cfg.context.lengths) == 6 and cfg.context.lengths[0] > data.base_length(cfg)
    assert sum(trainings.real(cfg.mix).values()) == pytest.approx(1) and "retrieval" not in trainings.real(
        cfg.mix
    )
    assert 0 < cfg.sweep.rungs <= len(cfg.ladder) and len(cfg.sweep.budgets) > 1


def test_a_preset_and_words_stand_over_the_file():
    cfg = config.load(["preset=ci", "context.tries=7", "mix={wiki: 0.5, other: 0.5}"])
    assert cfg.name == "herd-mini-ci" and cfg.context.tries == 7 and set(cfg.sources) == {"wiki", "other"}
    assert cfg.mix == {"wiki": 0.5, "other": 0.5}  # whole: the file's other shares would make it more than 1
    assert cfg.run["train"]["seq_len"] == 112 and cfg.run["optim"]["name"] == "muon"
    with pytest.raises(UserError, match=r"no preset 'big'; the file has"):
        config.load(["preset=big"])
    with pytest.raises(UserError, match=r"'mix' weighs 'wiky', which is no source. Did you mean 'wiki'"):
        config.load(["preset=ci", "mix={wiky: 1.0}"])


def test_the_gpt2_has_as_many_parameters_and_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_tokenizer", lambda cfg: SimpleNamespace(vocab_size=2304))
    cfg = config.load(["preset=small", f"out={tmp_path}"])
    for rung in cfg.ladder:
        start = trainings.pretrain(cfg, rung)
        final = trainings.anneal(cfg, start, start, 256)
        other = trainings.gpt2(cfg, start, [], final)
        ours, theirs = (spec.count(models.spec(r.model)) for r in (start, other))
        assert theirs == pytest.approx(ours, rel=0.03)
        together = trainings.tokens(start) + trainings.tokens(final)
        assert trainings.tokens(other) == pytest.approx(together, abs=16 * 256)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A recipe over sentences of drawn words, as small as it can be."""
    folder = tmp_path_factory.mktemp("herd")
    drawn = random.Random(0)
    sentence = lambda: " ".join(drawn.choices(WORDS, k=8)).capitalize() + "."
    for name in ("even", "odd"):
        texts = [" ".join(sentence() for _ in range(drawn.randint(6, 20))) for _ in range(60)]
        lines = [json.dumps({"name": f"{name}-{i}", "text": text}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    settings = f"""
        preset=ci out={folder} sources={{even: {folder}/even.jsonl, odd: {folder}/odd.jsonl}} take=1.0 held_out=0.1
        retrieval={{haystack: even, documents: 60, asks: 1}} curate={{exact: null}} tokenizer=bpe:300
        sweep.budgets=[2e9] pretrain.flops=3e9 pretrain.ramp=[] anneal.tokens=2000
        context.lengths=[192] context.thetas=[2e4] context.tokens=2000 context.recover=1.0
        run.model.max_seq_len=160 run.train.seq_len=160 run.train.batch_size=4 run.train.eval_tokens=1024
        run.runtime.dtype=float32 run.log.tensorboard=false"""
    sizes = [
        f"{{model: {{n_layers: 1, dim: {dim}, n_heads: 2, n_kv_heads: 1}}, lr: 1e-2}}" for dim in (16, 24, 32)
    ]
    settings += f" ladder=[{', '.join(sizes)}]"
    split = re.split(r"\s+(?=[a-z_.]+=)", settings.strip())
    return [*split, *(f"{key}={{even: 0.5, odd: 0.2, retrieval: 0.3}}" for key in config.MIXES)]


@pytest.mark.newest
def test_a_recipe_runs_to_its_report_and_is_not_run_twice(words, monkeypatch):
    cfg = config.load(words)
    page = run.Recipe(cfg).run()
    text = page.read_text()
    for said in (
        "bits per byte",
        "Kneser-Ney",
        "GPT-2, nearest size",
        "Long context",
        "No law could be fitted",
    ):
        assert said in text
    assert text.count("data:image/png") == 3 and "data-chart" in text  # the grid, needles twice; the loss
    steps = {p.stem: json.loads(p.read_text()) for p in (cfg.folder / "steps").glob("*.json")}
    assert steps["score"]["averaged"]["bits_per_byte"] < 8
    assert set(steps["score"]) >= {"gpt2", "extended", "whole"}
    start = trainings.pretrain(cfg, cfg.ladder[steps["size"]["chosen"]])
    assert Ramp.of(start.train).tokens(start.train.steps) == steps["pretrain"]["tokens"]

    pretrained, held_out = load_run(cfg.folder / "runs" / "pretrain"), score.corpus(cfg)
    short, grid = bases.measure(cfg, pretrained, 1e4, (192,), 1, held_out)  # its own base
    assert short == steps["context-before"]["short"] and grid.depths == bases.DEPTHS
    assert bases.measure(cfg, pretrained, 1e5, (192,), 1, held_out)[0] != short

    monkeypatch.setattr("min_llm.cli.train.run", lambda cfg: pytest.fail("trained again"))
    assert report.render(cfg) == text and run.Recipe(cfg).run() == page
    with pytest.raises(UserError, match=r"other settings \(anneal.tokens\). Give another name=NAME"):
        run.Recipe(config.load([*words, "anneal.tokens=3000"]))


@pytest.mark.newest
def test_a_signal_stops_the_recipe_and_it_goes_on(words, monkeypatch):
    """After the test above: only the last run is missing then."""
    cfg = config.load(words)
    run.Recipe(cfg).run()
    for name in ("gpt2", "score", "samples"):
        (cfg.folder / "steps" / f"{name}.json").unlink()
    monkeypatch.setattr("min_llm.cli.train.run", lambda cfg: (False, None))
    with pytest.raises(run.Stopped):
        run.Recipe(cfg).run()
    monkeypatch.undo()
    assert run.Recipe(cfg).run().is_file()
