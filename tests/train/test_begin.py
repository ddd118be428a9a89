"""Runs that begin with given weights (`init_from`): from a run, a folder, a GGUF file; what does not fit is said."""

import jax
import numpy as np
import pytest

from min_llm import models, tokenizers
from min_llm.cli.main import app
from min_llm.config import UserError, load
from min_llm.formats import gguf_model, huggingface
from min_llm.models import llama
from min_llm.train import begin
from min_llm.train.config import RunConfig
from min_llm.train.pretrain import pretraining
from tests.train import runs

CFG = llama.Config(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=300, max_seq_len=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model as a folder and as a GGUF file, and its parameters."""
    folder = tmp_path_factory.mktemp("source")
    params = models.init(CFG, 7)
    huggingface.write(folder / "model", CFG, params)
    gguf_model.write(folder / "model.gguf", CFG, params, "F32")
    (folder / "text.txt").write_text(" ".join(f"the cat {i} sat on mat {i * i}." for i in range(4000)))
    return folder, params


def config(folder, init_from, *settings):
    return load(RunConfig, None, [
        f"init_from={init_from}", "train.batch_size=2", "train.seq_len=32", "train.steps=2", "train.eval_every=0",
        f"data.source={folder / 'text.txt'}", "data.tokenizer=bpe:300", f"out={folder}", *settings,
    ])  # fmt: skip


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


@pytest.mark.parametrize("form", ["model", "model.gguf"])
def test_model_and_weights_are_those_of_the_source(source, form):
    folder, params = source
    cfg = begin.with_model(config(folder, folder / form))
    assert cfg.model == CFG
    assert equal(begin.weights(cfg, models.spec(cfg.model)), params)


def test_a_run_from_a_folder_and_a_run_from_that_run(source, tmp_path):
    """Without updates the weights come out as they went in; the second run begins where the first ended."""
    folder, params = source

    def run(name, init_from, *settings):
        app(["train", f"init_from={init_from}", "train.batch_size=2", "train.seq_len=32", "train.steps=2",
             "train.eval_every=0", "sample.every=0", "sample.max_tokens=8", f"data.source={folder / 'text.txt'}",
             "data.tokenizer=bpe:300", f"out={tmp_path}", f"name={name}", "runtime.dtype=float32",
             "log.tensorboard=false", *settings], standalone_mode=False)  # fmt: skip
        return begin.read_run(tmp_path / name)

    cfg, step, still = run("still", folder / "model", "optim.lr=1e-30", "optim.weight_decay=0")
    assert (cfg.model, step) == (CFG, 2) and equal(still, params)
    first = run("first", folder / "model")[2]
    assert not equal(first, params)
    assert equal(run("again", tmp_path / "first", "optim.lr=1e-30", "optim.weight_decay=0")[2], first)


def test_another_model_than_the_configured_one_is_refused(source, capsys):
    folder, _ = source
    with pytest.raises(UserError, match=r"Leave out 'model', or set model\.dim=32"):
        begin.with_model(config(folder, folder / "model", "model.dim=64", "model.n_layers=2"))
    longer = (
        "model.n_layers=2",
        "model.dim=32",
        "model.n_heads=4",
        "model.n_kv_heads=2",
        "model.hidden_dim=64",
    )
    cfg = begin.with_model(
        config(folder, folder / "model", *longer, "model.max_seq_len=128", "model.dropout=0.1")
    )
    assert (cfg.model.max_seq_len, cfg.model.dropout, cfg.model.vocab_size) == (128, 0.1, 300)
    assert capsys.readouterr().err == ""
    stretched = ("model.rope_theta=2e6", "model.rope_scaling={kind: yarn, factor: 2, original_context: 64}")
    cfg = begin.with_model(config(folder, folder / "model", *longer, *stretched))
    assert cfg.model.rope_theta == 2e6 and cfg.model.rope_scaling.kind == "yarn"
    said = capsys.readouterr().err
    assert "model.rope_theta: 500000.0 in" in said and "2000000.0 from now on" in said
    with pytest.raises(UserError, match=r"no run folder, Hugging Face folder or GGUF file"):
        begin.with_model(config(folder, "nowhere"))


def test_another_tokenizer_is_refused_and_a_checkpoint_is_a_place_to_begin(tmp_path):
    """Of a run: its tokenizer.json says what its weights know, whatever kind it is."""
    path = runs.write_config(tmp_path, **{"data.tokenizer": "bpe:270", "train.eval_every": 0, "train.steps": 2,
                                          "checkpoint.keep_every": 1, "checkpoint.every": 1})  # fmt: skip
    app(["train", str(path)], standalone_mode=False)
    run = tmp_path / "runs/run"

    def next_run(tokenizer, init_from=run):
        cfg = load(RunConfig, path, [f"init_from={init_from}", f"data.tokenizer={tokenizer}", "name=next"])
        return pretraining(cfg)

    with pytest.raises(
        UserError, match=r"another tokenizer than data.tokenizer=chars.*Set data.tokenizer=.*run/tok"
    ):
        next_run("chars")
    _, task, data = next_run(run / "tokenizer.json", run / "checkpoints/1")
    assert data.tokenizer.fingerprint() == tokenizers.load(run / "tokenizer.json").fingerprint()
    assert equal(task.initial(), begin.read_run(run, 1)[2]) and not equal(
        task.initial(), begin.read_run(run)[2]
    )
    with pytest.raises(UserError, match=r"does not have the checkpoint of step 7 \(it has: 1, 2\)"):
        next_run(run / "tokenizer.json", run / "checkpoints/7")[1].initial()


PROGRAM = """
import sys
from min_llm import models
import jax, numpy as np
from min_llm.config import load
from min_llm.parallel import mesh as meshes
from min_llm.train import begin
from min_llm.train.config import RunConfig
cfg = begin.with_model(load(RunConfig, None, [f"init_from={sys.argv[1]}", "train.seq_len=32", "parallel.mesh.fsdp=2"]))
with meshes.use(cfg.parallel.mesh):
    found = begin.weights(cfg, models.spec(cfg.model))
    fresh = models.init(cfg.model, 7)
    equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), found, fresh)
    laid = jax.tree.map(lambda a, b: a.sharding == b.sharding, found, fresh)
print(jax.tree.all((equal, laid)), found.layers[0].wq.sharding.spec)
"""


@pytest.mark.devices
def test_weights_are_laid_out_over_a_mesh(source, run_python):
    done = run_python(PROGRAM, str(source[0] / "model"), devices=2)
    assert done.stdout.startswith("True") and "fsdp" in done.stdout
