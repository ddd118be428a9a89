"""Benchmarks hold the machine, trainings wait, and a dead holder holds nothing."""

import subprocess
import sys
import threading
import time

import pytest

from min_llm import machine

HOLDER = """
import sys, time
from min_llm import machine
with machine.exclusive():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(machine.HELD, raising=False)


def hold() -> "subprocess.Popen[str]":
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_nobody_waits_for_a_free_machine():
    assert machine.wait_while_taken() == 0.0  # no lock file yet
    with machine.exclusive():
        pass
    assert machine.wait_while_taken() == 0.0


def test_a_training_waits_for_the_holder_and_says_so_once():
    holder = hold()
    said: list[str] = []
    threading.Timer(0.3, holder.kill).start()
    assert machine.wait_while_taken(said.append) >= 0.2
    assert len(said) == 1 and "benchmark" in said[0]
    holder.wait()


def test_a_second_benchmark_waits_for_the_first():
    holder = hold()
    threading.Timer(0.3, holder.kill).start()
    began = time.monotonic()
    with machine.exclusive():
        assert time.monotonic() - began >= 0.2
    holder.wait()


def test_the_holders_children_do_not_wait_for_it():
    with machine.exclusive():
        assert machine.wait_while_taken() == 0.0
        code = "from min_llm import machine; assert machine.wait_while_taken() == 0.0"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
    assert machine.HELD not in __import__("os").environ


def test_asking_is_cheap_enough_for_every_step():
    with machine.exclusive():
        pass
    began = time.perf_counter()
    for _ in range(100):
        machine.wait_while_taken()
    assert (time.perf_counter() - began) / 100 < 1e-3
