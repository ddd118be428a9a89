"""Adapter folders in peft's form (peft itself: tests/parity/test_peft.py)."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from min_llm.config import UserError
from min_llm.formats import peft
from tests import loras, toys

CFG = toys.LLAMA
ATTENTION = "base_model.model.model.layers.{}.self_attn."


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "adapter"
    return peft.write(folder, CFG, loras.adapter(CFG, targets=("wq", "w_down")), base="toy")


@pytest.fixture
def change(good, tmp_path):
    """A copy of the good folder with other fields and other tensors."""

    def changed(fields=(), tensors=lambda found: found):
        folder = tmp_path / "changed"
        shutil.copytree(good, folder, dirs_exist_ok=True)
        given = json.loads((good / peft.CONFIG).read_text())
        (folder / peft.CONFIG).write_text(json.dumps(given | dict(fields)))
        save_file(tensors(load_file(good / peft.WEIGHTS)), folder / peft.WEIGHTS)
        return peft.read(folder, CFG)

    return changed


def test_what_is_written_is_read(good):
    want, found = loras.adapter(CFG, targets=("wq", "w_down")), peft.read(good, CFG)
    assert found.scale == want.scale and set(found.pairs) == {"wq", "w_down"}
    for name, pair in want.pairs.items():
        assert all((a == b).all() for a, b in zip(pair, found.pairs[name], strict=True))
    with pytest.raises(UserError, match="there already"):
        peft.write(good, CFG, want)


def test_several_ranks_are_written_and_read(tmp_path):
    wide, narrow = loras.adapter(CFG, targets=("wk",), rank=5), loras.adapter(CFG, targets=("wo",), rank=2)
    both = peft.Adapter({**wide.pairs, **narrow.pairs}, 2.0)
    found = peft.read(peft.write(tmp_path / "out", CFG, both), CFG)
    for name, (a, b) in both.pairs.items():
        np.testing.assert_allclose(np.matmul(*found.pairs[name]) * found.scale, a @ b * 2.0, rtol=1e-6)


def test_scales_of_single_modules_and_absent_layers(change):
    plain = change()

    def without_one(found):
        return {name: t for name, t in found.items() if ".layers.1.self_attn" not in name}

    some = change({"alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "use_rslora": True}, without_one)
    (a, b), (_, was) = some.pairs["wq"], plain.pairs["wq"]
    assert some.scale == pytest.approx(6 / 3**0.5)
    np.testing.assert_allclose(b[0] * some.scale, was[0] * 3 / 3**0.5, rtol=1e-6)
    assert not a[1].any() and not b[1].any() and plain.pairs["wq"][0][1].any()


def test_what_leaves_the_base_as_it_was_is_read(change):
    """Also with the settings of how it began, which peft writes beside it."""
    assert change({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}).scale == change().scale


REFUSED = {
    "a kind of its own": ({"peft_type": "LOHA"}, "LOHA"),
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "all"}, "bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "a changed base": ({"init_lora_weights": "pissa"}, "pissa"),
    "what nobody knows yet": ({"use_something": {"new": 1}}, "use_something"),
    "no rank": ({"r": None}, "rank of None"),
    "half a rank": ({"r": 1.5}, "rank of 1.5"),
    "no alpha": ({"lora_alpha": "8"}, "lora_alpha of '8'"),
    "nothing": ({"lora_alpha": 0}, "does nothing"),
    "another rank": ({"rank_pattern": {"q_proj": 2}}, r"\[3, 15\], not \[2, 15\]"),
    "no pattern": ({"rank_pattern": {"q_(": 2}}, "regular expression"),
    "more modules than tensors": (
        {"target_modules": ["q_proj", "down_proj", "v_proj"]},
        "nothing for v_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configurations(change, case):
    fields, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence):
        change(fields)


DAMAGED = {
    "half a pair": (lambda f: {n: t for n, t in f.items() if "1.mlp.down_proj.lora_A" not in n}, "lacks"),
    "a head": (lambda f: f | {"base_model.model.lm_head.lora_A.weight": np.ones((3, 15))}, "lm_head"),
    "DoRA": (lambda f: f | {ATTENTION.format(0) + "q_proj.lora_magnitude_vector": np.ones(24)}, "magnitude"),
    "more layers": (lambda f: f | {ATTENTION.format(2) + "q_proj.lora_A.weight": np.ones((3, 15))}, "layers.2"),
    "another width": (lambda f: {n: np.ones((3, 16)) if "lora_A" in n else t for n, t in f.items()}, "another model"),
    "no number": (lambda f: {n: t * np.float32("nan") for n, t in f.items()}, "not finite"),
    "nothing": (lambda f: {}, "holds nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(change, case):
    tensors, sentence = DAMAGED[case]
    with pytest.raises(UserError, match=sentence):
        change(tensors=tensors)


def test_what_is_no_folder(good, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        peft.read(tmp_path, CFG)
    shutil.copy(good / peft.CONFIG, tmp_path)
    for data in (None, b"", b"junk" * 9, (good / peft.WEIGHTS).read_bytes()[:-9]):
        if data is not None:
            (tmp_path / peft.WEIGHTS).write_bytes(data)
        with pytest.raises(UserError, match="no whole safetensors file"):
            peft.read(tmp_path, CFG)


def test_fused_layers_are_read_but_not_written(tmp_path):
    """GPT-2's queries, keys and values share lora_A."""
    cfg, rng = toys.GPT2, np.random.default_rng(0)
    with pytest.raises(UserError, match="merge"):
        peft.write(tmp_path / "out", cfg, loras.adapter(cfg))
    given = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["c_attn"],
        "fan_in_fan_out": True,
    }
    (tmp_path / peft.CONFIG).write_text(json.dumps(given))
    module = "base_model.model.transformer.h.1.attn.c_attn.lora_"
    a, b = rng.normal(size=(2, 15)).astype(np.float32), rng.normal(size=(45, 2)).astype(np.float32)
    save_file({module + "A.weight": a, module + "B.weight": b}, tmp_path / peft.WEIGHTS)
    found = peft.read(tmp_path, cfg).pairs
    assert set(found) == {"wq", "wk", "wv"} and not found["wk"][0][0].any()
    whole = np.concatenate([found[name][0][1] @ found[name][1][1] for name in ("wq", "wk", "wv")], axis=1)
    np.testing.assert_allclose(whole, (b @ a).T, rtol=1e-5, atol=1e-6)
