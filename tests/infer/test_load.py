"""Any model by path or name: runs, Hugging Face folders, GGUF files; out again as either; and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import min_llm
from min_llm import models
from min_llm.cli.main import app
from min_llm.config import UserError
from min_llm.formats import named, peft
from min_llm.infer.load import load
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime, RuntimeConfig
from tests import loras

EXACT = RuntimeConfig(dtype="float32")


def cli(*arguments):
    app([str(a) for a in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps with a BPE tokenizer."""
    folder = tmp_path_factory.mktemp("load")
    text = " ".join(f"the cat {i} sat on mat {i * i}." for i in range(4000))
    (folder / "text.txt").write_text(text)
    cli("train", "model.n_layers=2", "model.dim=32", "model.n_heads=4", "model.n_kv_heads=2", "model.hidden_dim=64",
        "model.max_seq_len=64", "train.steps=2", "train.batch_size=2", "train.seq_len=32", "train.eval_every=0",
        "data.tokenizer=bpe:300", f"data.source={folder / 'text.txt'}", f"out={folder}", "name=run",
        "sample.every=0", "sample.max_tokens=8", "runtime.dtype=float32", "log.tensorboard=false")  # fmt: skip
    return folder / "run"


def logits(loaded, tokens):
    return np.asarray(models.logits(loaded.params, loaded.cfg, Batch(tokens), Runtime("float32"))[0])


@pytest.mark.parametrize("target", ["folder", "model.gguf"])
def test_a_run_goes_out_and_comes_in_again(run, tmp_path, target, capsys):
    """Same logits, same tokens, same opening, same continuation."""
    dtype = ("--dtype", "F32") if target.endswith("gguf") else ()
    cli("export", run, tmp_path / target, *dtype)
    ours, theirs = load(run), load(tmp_path / target, runtime=EXACT)
    prompt = ours.prompt("the cat 12 sat")
    assert theirs.prompt("the cat 12 sat") == prompt
    assert theirs.ends == ours.ends
    assert (logits(ours, np.array([prompt], np.int32)) == logits(theirs, np.array([prompt], np.int32))).all()
    assert theirs.generate("the cat 12 sat", 8) == ours.generate("the cat 12 sat", 8)
    capsys.readouterr()
    cli("sample", tmp_path / target, "--prompt", "the cat", "--max-tokens", 3, "--temperature", 0)
    assert capsys.readouterr().out.startswith("the cat")


def test_an_adapter_is_merged_as_it_is_loaded(run, tmp_path):
    plain = load(run)
    adapter = loras.adapter(plain.cfg, rank=2, size=0.1)
    folder = peft.write(tmp_path / "adapter", plain.cfg, adapter)
    found, tokens = load(run, lora=folder), np.arange(12, dtype=np.int32)[None]
    want = logits(dataclasses.replace(plain, params=loras.merged(plain.params, adapter)), tokens)
    assert np.abs(want - logits(plain, tokens)).max() > 1e-3
    np.testing.assert_allclose(logits(found, tokens), want, atol=1e-5)
    assert str(folder) in found.about


def test_export_refuses_what_is_there_and_other_precisions(run, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="is there already"):
        cli("export", run, tmp_path / "x")
    with pytest.raises(UserError, match="there are float32, bfloat16"):
        cli("export", run, tmp_path / "y", "--dtype", "Q8_0")
    with pytest.raises(UserError, match="there are F32, F16"):
        cli("export", run, tmp_path / "y.gguf", "--dtype", "float32")


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(run, tmp_path):
    cli("export", run, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    tokenizer = tmp_path / "out" / "tokenizer.json"
    given = json.loads(tokenizer.read_text())
    given["added_tokens"][0]["id"] = 400
    tokenizer.write_text(json.dumps(given))
    with pytest.raises(UserError, match="do not belong together"):
        load(tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(UserError, match="architecture None"):
        load(tmp_path / "out")


@pytest.mark.parametrize("source", ["smollm2-135m-instrct", "nowhere", "/no/such/place", "no/such.gguf"])
def test_what_is_nothing_is_said(source):
    with pytest.raises(UserError, match=r"smollm2-135m-instruct|no/such\.gguf"):
        load(source)


def test_a_base_model_cannot_be_asked(run):
    with pytest.raises(UserError, match="no chat template"):
        load(run).generate([{"role": "user", "content": "hello"}])


@pytest.mark.newest
def test_smollm2_by_name_continues_and_answers():
    try:
        named.fetched("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"SmolLM2 could not be fetched: {error}")
    model = min_llm.load("smollm2-135m-instruct")
    assert model.generate("The capital of France is", 2).startswith(" Paris")
    answer = model.generate([{"role": "user", "content": "What is the capital of France?"}], 20)
    assert answer == "The capital of France is Paris."
