"""Checkpoints are whole or absent: round trip, retention, kills, and every kind of damage as one sentence."""

import json
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm.config import UserError
from min_llm.spec import Param
from min_llm.train import checkpoints as module
from min_llm.train.checkpoints import Checkpoints, describe

SPEC = {"w": Param((64, 33), (None, None), 1.0, "matrix"), "b": Param((33,), (None,), None, "bias")}
OTHER = {"w": Param((64, 32), (None, None), 1.0, "matrix"), "b": Param((33,), (None,), None, "bias")}


def state(seed=0):
    random = np.random.default_rng(seed)
    params = {k: jnp.asarray(random.normal(size=p.shape), jnp.float32) for k, p in SPEC.items()}
    bits = jnp.asarray(random.integers(0, 2**16, 50), jnp.uint16).view(jnp.bfloat16)
    return {"step": jnp.int32(seed), "params": params, "moment": bits}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def same(a, b):
    return all(
        jax.tree.leaves(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))
    )


def save(checkpoints, *steps, **meta):
    for step in steps:
        checkpoints.save(step, state(step), {"parameters": describe(SPEC), **meta})
    checkpoints.wait()


def restore(checkpoints, step, spec=SPEC):
    return checkpoints.restore(step, shapes(state()), spec)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints 3 and 5; copied, never changed."""
    folder = tmp_path_factory.mktemp("saved")
    save(Checkpoints(folder), 3, 5, note="hello")
    return folder


@pytest.fixture
def checkpoints(saved, tmp_path):
    return Checkpoints(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_round_trip(checkpoints):
    found, meta = restore(checkpoints, 5)
    assert same(found, state(5)) and not same(found, state(3))
    assert meta["note"] == "hello" and meta["format"] == "min_llm.checkpoint"
    assert checkpoints.steps() == [3, 5] and checkpoints.latest() == 5


def test_an_empty_or_absent_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path / "absent").latest() is None
    assert Checkpoints(tmp_path).steps() == []


def test_the_state_may_be_donated_while_it_is_written(tmp_path, monkeypatch):
    """The loop goes on at once and reuses the arrays' memory."""
    go, write = threading.Event(), module._save_arrays
    monkeypatch.setattr(module, "_save_arrays", lambda *a: (go.wait(60), write(*a)))
    checkpoints, live, losses = Checkpoints(tmp_path), state(1), [1.0]
    checkpoints.save(1, live, {"parameters": describe(SPEC), "losses": losses})
    losses.append(2.0)
    live = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(live)
    assert checkpoints.steps() == []  # and nothing half-written has the name of a checkpoint
    go.set()
    checkpoints.wait()
    found, meta = restore(checkpoints, 1)
    assert same(found, state(1)) and meta["losses"] == [1.0]


@pytest.mark.parametrize(
    "keep, keep_every, left",
    [(1, 0, [7]), (2, 0, [6, 7]), (2, 3, [3, 6, 7]), (1, 2, [2, 4, 6, 7]), (0, 0, [7])],
)
def test_retention(tmp_path, monkeypatch, keep, keep_every, left):
    """The latest ones, and for ever those at multiples."""
    monkeypatch.setattr(module, "_save_arrays", lambda path, _: path.mkdir())
    checkpoints = Checkpoints(tmp_path, keep, keep_every)
    save(checkpoints, *range(1, 8))
    assert checkpoints.steps() == left
    assert sorted(p.name for p in tmp_path.iterdir()) == [str(step) for step in left]


def test_the_same_step_can_be_saved_again(checkpoints):
    save(checkpoints, 5, note="again")
    assert restore(checkpoints, 5)[1]["note"] == "again"
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["3", "5"]


# Kills


def test_what_a_kill_leaves_is_ignored_and_removed(checkpoints):
    for name in (".7.saving", ".3.deleting"):
        shutil.copytree(checkpoints.folder / "5", checkpoints.folder / name)
        (checkpoints.folder / name / "meta.json").unlink()
    assert checkpoints.steps() == [3, 5]
    checkpoints.clean()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["3", "5"]


@pytest.mark.parametrize("call", ["_save_arrays", "_manifest", "_sync", "_sync_folder"])
def test_an_error_while_saving_leaves_the_last_checkpoint(checkpoints, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, call, full)
    with pytest.raises(
        UserError, match="step 8 could not be written to .*No space left.*last complete one is step"
    ):
        save(checkpoints, 8)
    assert not list(checkpoints.folder.glob(".*"))
    monkeypatch.undo()
    assert same(restore(checkpoints, 5)[0], state(5))
    save(checkpoints, 9)  # and the error is not raised twice
    assert checkpoints.latest() == 9


def test_deleting_never_leaves_half_a_checkpoint_under_its_name(checkpoints, monkeypatch):
    """Killed while it deletes: the name is gone before the first file is."""
    seen, remove = [], shutil.rmtree

    def watch(path, **how):
        if path.exists():
            seen.append(path.name)
            assert checkpoints.steps() == [5, 6]
        remove(path, **how)

    monkeypatch.setattr(module.shutil, "rmtree", watch)
    save(checkpoints, 6)
    assert seen == [".3.deleting"]


# Damage


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def sentence(error):
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 700
    return text


def test_every_file_is_guarded(checkpoints):
    """Cut off, changed or missing, in turn: always a sentence that names the folder, and nothing is deleted."""
    folder = checkpoints.folder / "5"
    assert len(files(folder)) > 5
    for path in files(folder):
        whole, before = path.read_bytes(), files(folder)
        flipped = bytearray(whole or b"x")
        flipped[len(flipped) // 2] ^= 1
        for damage in (whole[: len(whole) // 2] if whole else b"longer", bytes(flipped), None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            with pytest.raises(UserError, match=re.escape(str(folder))) as error:
                restore(checkpoints, 5)
            sentence(error)
            assert files(folder) == [p for p in before if damage is not None or p != path]
            path.write_bytes(whole)
    assert same(restore(checkpoints, 5)[0], state(5))


def damaged(checkpoints, name="5"):
    with pytest.raises(UserError) as error:
        restore(checkpoints, int(name))
    return sentence(error)


def test_what_is_said(checkpoints):
    folder = checkpoints.folder / "5"
    array = max(files(folder / "arrays"), key=lambda p: p.stat().st_size)
    name = re.escape(str(array.relative_to(folder)))
    whole, advice = array.read_bytes(), f"Remove {re.escape(str(folder))} to continue from step 3"

    array.write_bytes(whole[:-1])
    assert re.search(
        f"damaged: {name} has {len(whole) - 1} bytes, not {len(whole)}. {advice}", damaged(checkpoints)
    )
    array.write_bytes(bytes([whole[0] ^ 128]) + whole[1:])
    assert re.search(f"damaged: the contents of {name} have changed.*{advice}", damaged(checkpoints))
    array.unlink()
    assert re.search(f"damaged: {name} is missing. {advice}", damaged(checkpoints))
    (folder / "manifest.json").write_text("[]")
    assert re.search(
        f"no readable manifest.json; it is not a whole checkpoint. {advice}", damaged(checkpoints)
    )
    shutil.rmtree(checkpoints.folder / "3")
    assert "There is no other checkpoint in this run" in damaged(checkpoints)


def test_a_foreign_folder(checkpoints):
    folder = checkpoints.folder / "9"
    folder.mkdir()
    assert "is not a min_llm checkpoint: its meta.json cannot be read" in damaged(checkpoints, "9")
    for foreign in ("[1]", "{}", '{"format": "theirs", "version": 1}'):
        (folder / "meta.json").write_text(foreign)
        assert "was not written by min_llm" in damaged(checkpoints, "9")
    (folder / "meta.json").write_text('{"format": "min_llm.checkpoint", "version": 1}')
    assert "has no readable manifest.json" in damaged(checkpoints, "9")
    (checkpoints.folder / "notes").mkdir()
    (checkpoints.folder / "12").write_text("a file")
    assert checkpoints.steps() == [3, 5, 9]


@pytest.mark.parametrize("version", [2, 99, "two", None])
def test_a_newer_version(checkpoints, version):
    path = checkpoints.folder / "5" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    assert f"format version {version!r}; this min_llm reads up to 1. Update min_llm" in damaged(checkpoints)


def test_another_models_checkpoint(checkpoints):
    with pytest.raises(UserError, match=r"another model .*: w has shape \[64, 33\], not \[64, 32\]\. Remove"):
        restore(checkpoints, 5, OTHER)
    with pytest.raises(UserError, match=r"another model .*: b has shape \[33\], not none"):
        restore(checkpoints, 5, {"w": SPEC["w"]})


def test_a_part_that_is_absent_may_come_and_go(checkpoints):
    """A model's class gets a field that is None unless it is asked for; its older checkpoints are still read."""
    found, _ = checkpoints.restore(5, {"before": None, **shapes(state())}, SPEC)
    assert found["before"] is None and same({k: found[k] for k in state()}, state(5))
    checkpoints.save(7, {**state(7), "dropped": None}, {"parameters": describe(SPEC)})
    checkpoints.wait()
    assert same(restore(checkpoints, 7)[0], state(7))


def test_another_state_of_the_same_model(checkpoints):
    """For example of another optimizer."""
    for target in ({"params": state()["params"]}, {**state(), "second": jnp.zeros(3)}):
        with pytest.raises(UserError, match="holds another state than this run's"):
            checkpoints.restore(5, shapes(target), SPEC)
