"""What goes wrong while training: each a clear sentence with the right exit status, and nothing lost.

Exit status 2: something the user can fix; 1: the training itself failed; 143: stopped by a signal.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.cli import train as cli
from min_llm.config import UserError
from min_llm.train.loop import Hook, TrainingStopped
from min_llm.train.run import Run, open_run, read_rows
from tests.train import runs
from tests.train.runs import command_line, comparable, configuration, toy, toy_loss, train, write_config


@pytest.fixture
def trained(tmp_path):
    """A run that stopped at step 8 of 12: (configuration, its folder)."""
    cfg = configuration(tmp_path)
    with contextlib.suppress(KeyboardInterrupt):
        train(cfg, [Hook("stop", 1, stop_at(9))])
    folder = tmp_path / "runs/run"
    assert Run(folder, cfg).checkpoints.steps() == [4, 8]
    return cfg, folder


def stop_at(step):
    def call(done, _):
        if done == step:
            raise KeyboardInterrupt

    return call


def everything(folder):
    """Every file of a run's checkpoints with its contents."""
    return {p: p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}


def wait_for(checkpoint):
    """It is written while the training goes on."""
    deadline = time.monotonic() + 60
    while not checkpoint.is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(
            f"no disk can be mounted here ({mounted.stderr.strip()}); the RLIMIT_FSIZE test stands in"
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_nothing(tmp_path, small_disk):
    whole = configuration(tmp_path, "whole")
    train(whole)
    cfg = configuration(tmp_path, "full", out=str(small_disk))
    filler = small_disk / "filler"

    def fill(done, _):
        if done == 5:
            wait_for(small_disk / "full/checkpoints/4")
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(UserError, match="No space left|cannot be written|could not be written") as error:
        train(cfg, [Hook("fill", 1, fill)])
    assert "start the same command again" in str(error.value)
    checkpoints = Run(small_disk / "full", cfg).checkpoints
    assert checkpoints.steps() == [4]
    filler.unlink()
    assert train(cfg).finished
    assert runs.differences(small_disk / "full", tmp_path / "runs/whole") == []


def test_a_disk_that_is_full_only_for_the_checkpoint(tmp_path):
    """RLIMIT_FSIZE: no file may be larger than 4 KB, which the metrics are not and the arrays are."""
    cfg = configuration(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(done, _):
        if done == 5:
            wait_for(tmp_path / "runs/run/checkpoints/4")
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(
            UserError, match="checkpoint of step 8 could not be written.*last complete one is step 4"
        ):
            train(cfg, [Hook("limit", 1, limit)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    run = Run(tmp_path / "runs/run", cfg)
    assert run.checkpoints.steps() == [4] and not list(run.checkpoints.folder.glob(".*"))
    assert train(cfg).finished


@pytest.mark.parametrize("kept", [0, 24_000])
def test_a_full_disk_at_the_command_line(tmp_path, small_disk, capsys, kept):
    """No room for the run folder's first files, or none for long."""
    (small_disk / "filler").write_bytes(bytes(2**21 - kept))
    words = ("train", write_config(tmp_path, out=str(small_disk)), "train.steps=2000", "train.log_every=1")
    status, out, err = command_line(capsys, *words, "train.eval_every=0", "checkpoint.every=0")
    last = err.strip().splitlines()[-1]
    assert status == 2 and out == "" and "Traceback" not in err
    assert (
        last.startswith(f"min-llm: {small_disk}/run") and "cannot be written: No space left on device" in last
    )
    assert "start the same command again" in last


def test_a_read_only_folder(tmp_path, capsys):
    folder = tmp_path / "read-only"
    folder.mkdir()
    with read_only(folder):
        status, _, err = command_line(capsys, "train", write_config(tmp_path, out=str(folder)))
    assert status == 2
    assert f"The run folder {folder}/run cannot be written" in err and "out=FOLDER" in err


def test_a_run_that_became_read_only_can_be_sampled_but_not_trained(trained, tmp_path):
    cfg, folder = trained
    before = everything(folder)
    with (
        read_only(folder),
        pytest.raises(UserError, match="cannot be written: .*Give another with out=FOLDER"),
    ):
        train(cfg)
    assert everything(folder) == before
    assert train(cfg).finished


@contextlib.contextmanager
def read_only(folder):
    """Permissions do not bind root, a read-only mount does."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"root can write everywhere and nothing can be mounted here ({mounted.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# Two trainers, two configurations


def test_a_second_trainer_is_turned_away(tmp_path, capsys):
    path = write_config(tmp_path)
    cfg = configuration(tmp_path)
    with open_run(cfg):
        status, _, err = command_line(capsys, "train", path)
    assert status == 2
    assert f"Another process is training in {tmp_path}/runs/run" in err and "name=NAME" in err


def test_a_changed_configuration_names_the_keys(trained, tmp_path):
    _, folder = trained
    before = everything(folder)
    changed = configuration(tmp_path, **{"optim.lr": 0.5, "train.batch_size": 8})
    with pytest.raises(UserError, match=r"optim.lr: 0.003 -> 0.5; train.batch_size: 4 -> 8\).*name=NAME"):
        train(changed)
    assert everything(folder) == before
    free = configuration(tmp_path, **{"checkpoint.keep": 1, "train.log_every": 1, "sample.temperature": 0.1})
    assert train(free).finished
    assert Run(folder, free).checkpoints.steps() == [12]


def test_another_models_checkpoint(trained, tmp_path, capsys):
    """The toy's checkpoint in a folder whose configuration describes a transformer."""
    cfg, folder = trained
    before = everything(folder)
    write_config(tmp_path)
    status, _, err = command_line(capsys, "train", tmp_path / "config.yaml", f"model.vocab_size={runs.VOCAB}")
    assert status == 2 and "holds another model than the configuration describes: " in err
    status, _, err = command_line(capsys, "sample", folder)
    assert (status == 2 and "tokenizer" in err) or "another model" in err
    assert everything(folder) == before
    assert train(cfg).finished


# Numbers


def exploding(at):
    """A loss that is not a number when a batch has this token everywhere."""
    plain = toy_loss()

    def loss(params, batch, key):
        return plain(params, batch, key) + jnp.where((batch.tokens == at).all(), jnp.nan, 0.0)

    return loss


@pytest.mark.parametrize("step, good", [(10, 8), (8, 4), (2, None)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, step, good):
    cfg = configuration(tmp_path)
    task = toy(cfg, exploding(7))

    def batch(i):
        made = runs.toy_batch(i)
        return jax.tree.map(lambda x: np.full_like(x, 7), made) if i == step - 1 else made

    task = dataclasses.replace(task, batch=batch)
    place = f"last good checkpoint is step {good}, .*/checkpoints/{good}" if good else "no checkpoint yet"
    with pytest.raises(TrainingStopped, match=f"Step {step} has loss nan .*{place}.*smaller optim.lr"):
        train(cfg, task=task)
    run = Run(tmp_path / "runs/run", cfg)
    assert run.checkpoints.latest() == good  # nothing was saved that is not known to be finite
    last = list(read_rows(run.folder))[-1]
    assert (last["event"], last["step"], last["loss"]) == ("not finite", step, "nan")
    with pytest.raises(TrainingStopped, match=f"Step {step} has loss nan"):  # and again at the same place
        train(cfg, task=task)


def test_a_huge_learning_rate_ends_with_status_1(tmp_path, capsys):
    path = write_config(tmp_path, **{"train.batch_size": 2})
    status, out, err = command_line(capsys, "train", path, "optim.lr=1e30", "optim.clip=0")
    assert status == 1 and out == ""
    said = err.strip().splitlines()[-1]
    assert (
        said.startswith("min-llm: Step ") and "There is no checkpoint yet" in said and "Traceback" not in err
    )
    assert (tmp_path / "runs/run/report.html").exists()


# Input


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.stepz=3"], "Unknown configuration key 'train.stepz'. Did you mean 'steps'?"),
        (["trian.steps=3"], "Unknown configuration key 'trian'. Did you mean 'train'?"),
        (["model.n_head=3"], "Did you mean 'n_heads'?"),
        (["train.steps=many"], "'train.steps' is 'many' (str); expected int."),
        (["train.steps=1.5"], "'train.steps' is 1.5 (float); expected int."),
        (["train.probe=3"], "'train.probe' is 3 (int); expected bool."),
        (["optim.schedule=cosin"], "must be one of: cosine, linear"),
        (["train=5"], "train must be a section with keys"),
        (["train.steps=0"], "'train.steps' is 0; it must be at least 1."),
        (["train.batch_size=4", "train.micro_batches=3"], "must be a multiple of 'train.micro_batches' (3)"),
        (["train.seq_len=64"], "longer than 'model.max_seq_len' (16)"),
        (["optim.lr=-1"], "'optim.lr' is -1.0; it must be above 0."),
        (["name=a/b"], "no '/'"),
        (["train.profile=9-x"], "FIRST-LAST"),
        (["model.vocab_size=3"], "'model.vocab_size' is 3, but the tokenizer has"),
        (["model.n_heads=3"], "'model.n_heads' (3) must be a multiple of 'model.n_kv_heads'"),
        (["sample.max_tokens=50"], "do not fit the model's max_seq_len of 16"),
        (["sample.temperature=-1"], "temperature is -1.0"),
        (["data.source=/nowhere.txt"], "/nowhere.txt"),
        (["data.tokenizer=bpe:many"], "bpe:SIZE"),
        (["other.yaml"], "One configuration file at a time"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, capsys, words, said):
    overrides = ["model.n_kv_heads=2"] if words == ["model.n_heads=3"] else []
    status, out, err = command_line(capsys, "train", write_config(tmp_path), *words, *overrides)
    last = err.strip().splitlines()[-1]
    assert status == 2 and out == "" and last.startswith("min-llm: ") and said in last, err
    assert "Traceback" not in err
    assert not (tmp_path / "runs/run/metrics.jsonl").exists()  # before anything was trained


@pytest.mark.parametrize("text", ["train: {steps: 3", "just words", "- a\n- list", "\x00"])
def test_broken_configuration_files(tmp_path, capsys, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    status, _, err = command_line(capsys, "train", path)
    assert status == 2 and (str(path) in err or "Unknown configuration key" in err) and "Traceback" not in err


@pytest.mark.parametrize(
    "name, contents, said",
    [
        ("bad.txt", b"good text \xff\xfe", "not UTF-8|UTF-8"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2"),
        ("bad.jsonl", b'{"other": "fine"}\n', "text"),
        ("empty.txt", b"", "tokens|empty|nothing"),
    ],
)
def test_broken_data_files(tmp_path, capsys, name, contents, said):
    (tmp_path / name).write_bytes(contents)
    status, _, err = command_line(
        capsys, "train", write_config(tmp_path, **{"data.source": str(tmp_path / name)})
    )
    last = err.strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in err
    assert any(word in last for word in said.split("|")) and last.startswith("min-llm: "), last
    assert not (tmp_path / "runs/run/config.yaml").exists()


def test_prepared_data_that_was_cut_off(tmp_path, capsys):
    path = write_config(tmp_path)
    cli.run(configuration_with(path, "train.steps=1", "sample.max_tokens=1"))
    tokens = next((tmp_path / "home/data").glob("*/train.bin"))
    tokens.write_bytes(tokens.read_bytes()[:-2])
    status, _, err = command_line(capsys, "train", path, "train.steps=1", "sample.max_tokens=1")
    assert status == 2 and f"{tokens} has " in err and "prepare the data again" in err


def configuration_with(path, *words):
    return runs.config_lib.load(runs.RunConfig, path, words)


def test_a_broken_run_folder(trained):
    cfg, folder = trained
    (folder / "config.yaml").write_text("train: {steps")
    with pytest.raises(UserError, match="config.yaml is not readable YAML"):
        train(cfg)
    (folder / "config.yaml").unlink()
    assert train(cfg).finished
    assert [row["step"] for row in comparable(folder) if row["kind"] == "train"] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest", "foreign", "newer"])
def test_damaged_checkpoints_at_the_command_line(trained, tmp_path, capsys, damage):
    """Exit status 2, one sentence, nothing deleted; and the way that it names works."""
    cfg, folder = trained
    checkpoint = folder / "checkpoints/8"
    array = max((checkpoint / "arrays").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    if damage == "truncated":
        array.write_bytes(array.read_bytes()[:-7])
    elif damage == "flipped":
        data = bytearray(array.read_bytes())
        data[len(data) // 3] ^= 4
        array.write_bytes(data)
    elif damage == "missing":
        array.unlink()
    elif damage == "manifest":
        (checkpoint / "manifest.json").unlink()
    elif damage == "foreign":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
        (checkpoint / "weights.bin").write_bytes(b"theirs")
    else:
        meta = json.loads((checkpoint / "meta.json").read_text())
        (checkpoint / "meta.json").write_text(json.dumps({**meta, "version": 7}))
    before = everything(folder)
    path = write_config(tmp_path)
    status, out, err = command_line(capsys, "train", path, f"model.vocab_size={runs.VOCAB}")
    last = err.strip().splitlines()[-1]
    assert status == 2 and out == "" and "Traceback" not in err
    assert last.startswith(f"min-llm: {checkpoint} ") and last.endswith("."), last
    assert everything(folder) == before
    if damage != "newer":
        assert f"Remove {checkpoint} to continue from step 4." in last
    shutil.rmtree(checkpoint)
    assert train(cfg).finished
