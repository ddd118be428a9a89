"""The mean of checkpoints is exact and loads as a model everywhere; what cannot be averaged is refused."""

import shutil

import jax
import numpy as np
import pytest

import min_llm
from min_llm.cli.main import app
from min_llm.config import UserError
from min_llm.train import begin
from min_llm.train.average import average, last_steps
from min_llm.train.config import RunConfig
from tests.train import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of the steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("average")
    changes = {
        "checkpoint.keep_every": 4,
        "checkpoint.keep": 1,
        "data.tokenizer": "bpe:270",
        "train.eval_every": 0,
    }
    app(["train", str(runs.write_config(folder, **changes))], standalone_mode=False)
    return folder / "runs/run"


def cli(*words):
    app(["average", *map(str, words)], standalone_mode=False)


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def equal(a, b):
    return all((x == y).all() for x, y in zip(arrays(a), arrays(b), strict=True))


def test_it_is_the_mean_of_the_checkpoints(run):
    each = [arrays(begin.read_run(run, step)[2]) for step in (4, 8, 12)]
    for mean, *parts in zip(arrays(average(run, [4, 8, 12])), *each, strict=True):
        exact = np.mean(np.array(parts, np.float64), axis=0)
        assert mean.dtype == np.float32 and (mean == exact.astype(np.float32)).all()
        assert not (mean == parts[-1]).all()


def test_of_one_checkpoint_it_is_that_checkpoint(run):
    assert equal(average(run, [8]), begin.read_run(run, 8)[2])


def test_the_command_writes_a_model_that_loads_and_trains(run, tmp_path):
    cli(run, tmp_path / "mean", "--last", 2)
    cli(run, tmp_path / "same", "--steps", "12,8")
    ours, same = min_llm.load(tmp_path / "mean"), min_llm.load(tmp_path / "same")
    assert last_steps(run, 2) == [8, 12]
    assert equal(ours.params, average(run, [8, 12])) and equal(same.params, ours.params)
    assert ours.tokenizer.encode("abc def") == min_llm.load(run).tokenizer.encode("abc def")
    cfg = begin.with_model(RunConfig(init_from=str(tmp_path / "mean")))
    begin.check_tokenizer(cfg, min_llm.load(run).tokenizer)
    assert equal(begin.weights(cfg, None), ours.params)


def test_what_cannot_be_averaged_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"does not have the checkpoint of step 5 \(it has: 4, 8, 12\)"):
        cli(run, tmp_path / "x", "--steps", "4,5")
    with pytest.raises(UserError, match=r"\[4, 4\]; give at least one, and none of them twice"):
        cli(run, tmp_path / "x", "--steps", "4,4")
    with pytest.raises(UserError, match="last 9 checkpoints of .* were asked for; it has 3"):
        cli(run, tmp_path / "x", "--last", 9)
    with pytest.raises(UserError, match="--steps is '4:8'; give whole numbers"):
        cli(run, tmp_path / "x", "--steps", "4:8")
    with pytest.raises(UserError, match="Say which checkpoints"):
        cli(run, tmp_path / "x")
    with pytest.raises(UserError, match="Say which checkpoints"):
        cli(run, tmp_path / "x", "--steps", "4", "--last", 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="is there already"):
        cli(run, tmp_path / "x", "--last", 1)


def test_checkpoints_of_another_model_are_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("dim: 16", "dim: 32"))
    with pytest.raises(
        UserError, match="holds another model than the configuration describes: embed has shape"
    ):
        average(copy, [4, 8])


def test_a_quantized_model_is_no_run(run, tmp_path):
    app(["quantize", str(run), str(tmp_path / "int8"), "--method", "int8"], standalone_mode=False)
    with pytest.raises(UserError, match="is not a run: it has no config.yaml"):
        cli(tmp_path / "int8", tmp_path / "x", "--last", 1)
