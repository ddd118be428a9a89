"""Runs that begin with given weights (`init_from`): from a run, a folder, a GGUF file; what does not fit is said."""

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm.cli.main import app
from min_llm.config import UserError, load
from min_llm.formats import gguf_model, huggingface
from min_llm.models import llama
from min_llm.train import begin
from min_llm.train.config import RunConfig
from min_llm.train.pretrain import pretraining

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


def train(folder, name, init_from, *settings):
    """Two steps in folder/name; the run folder."""
    app(["train", f"init_from={init_from}", "train.batch_size=2", "train.seq_len=32", "train.steps=2",
         "train.eval_every=0", "sample.every=0", "sample.max_tokens=8", f"data.source={folder / 'text.txt'}",
         "data.tokenizer=bpe:300", f"out={folder}", f"name={name}", "runtime.dtype=float32",
         "log.tensorboard=false", *settings], standalone_mode=False)  # fmt: skip
    return folder / name


STILL = ("optim.lr=1e-30", "optim.weight_decay=0")


@pytest.fixture(scope="module")
def first(source):
    """A run that began with the folder and has checkpoints of the steps 1 and 2."""
    return train(source[0], "first", source[0] / "model", "checkpoint.every=1")


def test_a_run_from_a_folder_and_a_run_from_that_run(source, first):
    """Without updates the weights come out as they went in; the second run begins where the first ended."""
    folder, params = source
    cfg, step, still = begin.read_run(train(folder, "still", folder / "model", *STILL))
    assert (cfg.model, step) == (CFG, 2) and equal(still, params)
    trained = begin.read_run(first)[2]
    assert not equal(trained, params)
    assert equal(begin.read_run(train(folder, "again", first, *STILL))[2], trained)


def test_a_checkpoint_is_a_place_to_begin(source, first):
    cfg = begin.with_model(config(source[0], first / "checkpoints/1"))
    found = begin.weights(cfg, models.spec(cfg.model))
    assert equal(found, begin.read_run(first, 1)[2]) and not equal(found, begin.read_run(first)[2])
    with pytest.raises(UserError, match=r"does not have the checkpoint of step 7 \(it has: 1, 2\)"):
        begin.weights(config(source[0], first / "checkpoints/7"), models.spec(cfg.model))


def test_a_run_keeps_its_tokenizer(source, first):
    """Other ids are refused; the same ones are known by what they spell, not by the name of a file."""
    folder, _ = source
    for other in ("chars", "bpe:290"):
        with pytest.raises(
            UserError, match=rf"another tokenizer than data.tokenizer={other}.*=.*first/tokenizer"
        ):
            pretraining(config(folder, first, f"data.tokenizer={other}"))
    for same in ("bpe:300", first / "tokenizer.json"):
        pretraining(config(folder, first, f"data.tokenizer={same}"))


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
