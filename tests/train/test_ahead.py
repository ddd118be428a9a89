"""The step compiled for GPUs that are not here; skipped without JAX's CUDA plugin (the `cuda` extra)."""

import importlib.util

import pytest

from min_llm.config import UserError
from min_llm.parallel import absent
from tests.acceptance.compiled import CASES, checked

PLUGIN = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


@pytest.mark.parametrize(
    ("text", "expected"), [("h100", ("h100", 1)), ("h200x8", ("h200", 8)), ("b200x16", ("b200", 16))]
)
def test_devices_by_name(text, expected):
    assert absent.parse(text) == expected


@pytest.mark.parametrize("text", ["h100x0", "h100x12", "h10", "", "x8", "h100x8x8", "gb300x8"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(UserError, match="like h100x8"):
        absent.parse(text)


@pytest.mark.skipif(PLUGIN, reason="the plugin is here")
def test_without_the_plugin_a_sentence_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'min_llm\[cuda\]'"):
        absent.devices("h100", 8)


@pytest.mark.skipif(not PLUGIN, reason="JAX's CUDA plugin is not installed: pip install 'min_llm[cuda]'")
def test_a_step_compiled_for_eight_cards_moves_what_is_planned():
    found = checked("fsdp 8", CASES["fsdp 8"])
    assert found["memory"] == pytest.approx(1, abs=0.1)
    assert found["gather fsdp"] == pytest.approx(1, abs=0.1)
