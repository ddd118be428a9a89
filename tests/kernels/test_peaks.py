"""Peaks are measured once a machine; the compute dtype follows from them."""

import json

import pytest

from min_llm import platform
from min_llm.kernels import peaks


@pytest.fixture
def fresh_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(peaks, "_matmul_flops", lambda n, dtype, repeats: calls.append(dtype) or rates[dtype])
    monkeypatch.setattr(peaks, "_copy_bytes", lambda repeats: 5.0)
    monkeypatch.setattr(peaks.os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    calls, rates, load = [], {"float32": 10.0, "bfloat16": 20.0}, [0.0]
    peaks.measure.cache_clear()
    yield calls, rates, load
    peaks.measure.cache_clear()


def test_peaks_are_measured_once_a_machine(fresh_home):
    calls, _, _ = fresh_home
    assert peaks.measure() == {"flops_float32": 10.0, "flops_bfloat16": 20.0, "bytes": 5.0, "busy": 0.0}
    peaks.measure.cache_clear()  # as the next process does
    assert peaks.measure()["bytes"] == 5.0
    assert calls == ["float32", "bfloat16"]
    assert len(json.loads((platform.home() / "hardware.json").read_text())) == 1


def test_a_busy_machine_is_measured_again_and_the_higher_figures_stay(fresh_home):
    calls, rates, load = fresh_home
    load[0], rates["bfloat16"] = 100.0, 7.0
    assert peaks.measure()["busy"] == 1.0
    peaks.measure.cache_clear()
    load[0], rates["bfloat16"], rates["float32"] = 0.0, 20.0, 9.0
    assert peaks.measure() == {"flops_float32": 10.0, "flops_bfloat16": 20.0, "bytes": 5.0, "busy": 0.0}
    assert len(calls) == 4


def test_a_machine_that_is_always_busy_is_measured_three_times(fresh_home):
    calls, _, load = fresh_home
    load[0] = 100.0
    for _ in range(5):
        peaks.measure.cache_clear()
        peaks.measure()
    assert calls == ["float32", "bfloat16"] * 3


def test_a_broken_record_is_measured_anew(fresh_home):
    calls, _, _ = fresh_home
    platform.write_atomic(platform.home() / "hardware.json", "{broken")
    assert peaks.measure()["bytes"] == 5.0
    assert calls


def test_bfloat16_must_be_clearly_faster(fresh_home):
    _, rates, _ = fresh_home
    assert peaks.fast_dtype() == "bfloat16"
    rates["bfloat16"] = 12.0
    peaks.measure.cache_clear()
    (platform.home() / "hardware.json").unlink()
    assert peaks.fast_dtype() == "float32"
