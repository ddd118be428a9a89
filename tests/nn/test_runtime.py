"""What "auto" becomes, and that what a user says is left alone."""

import dataclasses

import jax
import pytest

from min_llm.config import UserError, build
from min_llm.kernels import peaks
from min_llm.nn.runtime import SCAN_FROM_LAYERS, Runtime, RuntimeConfig, resolve


@pytest.fixture
def machine(monkeypatch):
    """A machine of a given backend and fast dtype."""

    def be(backend, dtype):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(peaks, "fast_dtype", lambda: dtype)

    return be


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compute_dtype_is_the_one_that_was_measured_fast(machine, dtype):
    machine("cpu", dtype)
    assert resolve(RuntimeConfig(), 4).dtype == dtype


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_layers_are_unrolled_unless_they_are_many(machine, backend):
    machine(backend, "float32")
    assert not resolve(RuntimeConfig(), SCAN_FROM_LAYERS[backend] - 1).scan
    assert resolve(RuntimeConfig(), SCAN_FROM_LAYERS[backend]).scan


def test_what_was_not_measured_is_scanned(machine):
    machine("tpu", "bfloat16")
    assert resolve(RuntimeConfig(), 2).scan


def test_an_accelerator_holds_more_logits_at_once(machine):
    machine("cpu", "float32")
    few = resolve(RuntimeConfig(), 2).logits_per_chunk
    machine("gpu", "float32")
    assert resolve(RuntimeConfig(), 2).logits_per_chunk > few


def test_what_the_user_says_is_done(machine):
    machine("cpu", "bfloat16")
    asked = RuntimeConfig(
        dtype="float32", attention="blockwise", layers="scan", remat="full", logits_per_chunk=7
    )
    assert resolve(asked, 2) == Runtime("float32", "blockwise", True, "full", 7)
    assert not resolve(RuntimeConfig(layers="unroll"), 100).scan


def test_nothing_stays_automatic_and_the_result_can_be_static(machine):
    machine("cpu", "float32")
    runtime = resolve(RuntimeConfig(), 4)
    assert "auto" not in dataclasses.astuple(runtime)
    assert hash(runtime) == hash(resolve(RuntimeConfig(), 4))


def test_a_wrong_value_names_the_right_ones():
    with pytest.raises(
        UserError, match=r"'runtime.remat' is 'some'; it must be one of: none, selective, full, offload"
    ):
        build(RuntimeConfig, {"remat": "some"}, "runtime")
