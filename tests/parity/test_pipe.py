"""The pipe protocol: values survive, errors come back as text, nothing hangs and nothing is left running."""

import os
import sys
import textwrap
import time

import numpy as np
import pytest

from peers.client import ROOT
from peers.pipe import Child, ChildError, pack, unpack

CHILD = textwrap.dedent("""
    import os, time
    import numpy as np
    from peers.pipe import serve

    def echo(**value):
        print("a print of the child, on its way to standard error")
        os.system("echo and one of a program it runs")
        return value

    def fail(number):
        raise ValueError(f"{number} is not a good number")

    def sleep(seconds):
        time.sleep(seconds)

    def die():
        print("last words", flush=True)
        os._exit(3)

    serve({f.__name__: f for f in (echo, fail, sleep, die)})
""")


@pytest.fixture
def child():
    with Child([sys.executable, "-c", CHILD], name="a child", cwd=ROOT) as running:
        yield running


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_trees_with_arrays_survive_both_ways(child):
    value = {
        "a": {"b": [1, 2.5, "text \u2713", None, True]},
        "f": np.linspace(0, 1, 300_000, dtype=np.float32).reshape(3, -1),
        "i": [np.arange(4, dtype=np.int32), np.float32(0.5)],
        "none": np.zeros((0, 2)),
    }
    for _ in range(2):  # the stream is in step after a large answer
        answer = child.call("echo", **value)
        assert answer["a"] == value["a"] and answer["i"][1] == 0.5
        np.testing.assert_array_equal(answer["f"], value["f"])
        np.testing.assert_array_equal(answer["i"][0], value["i"][0])
        assert answer["f"].dtype == np.float32 and answer["none"].shape == (0, 2)


def test_an_error_comes_back_with_its_traceback_and_the_child_lives_on(child):
    with pytest.raises(ChildError, match=r"fail failed: ValueError: 7 is not a good number") as caught:
        child.call("fail", number=7)
    assert "Traceback" in str(caught.value)
    with pytest.raises(
        ChildError, match="unknown operation 'ecko'; this child answers die, echo, fail, sleep"
    ):
        child.call("ecko")
    assert child.call("echo", x=1) == {"x": 1}


def test_a_child_that_does_not_answer_in_time_is_ended(child):
    began = time.monotonic()
    with pytest.raises(ChildError, match="sleep: no answer within the time limit"):
        child.call("sleep", seconds=60, timeout=0.3)
    assert time.monotonic() - began < 10 and gone(child.pid)


def test_a_child_that_dies_is_reported_with_its_last_words(child):
    with pytest.raises(ChildError, match=r"(?s)ended with status 3.*last words"):
        child.call("die")


def test_leaving_the_block_ends_the_child():
    with Child([sys.executable, "-c", CHILD], name="a child", cwd=ROOT) as running:
        assert running.call("echo", x=1) == {"x": 1}
    assert gone(running.pid)


def test_arrays_that_would_arrive_as_something_else_are_refused():
    with pytest.raises(TypeError, match="dtype object"):
        pack({}, {"x": np.array([None])})
    line, payload = pack({"op": "x"}, [np.eye(2)]).split(b"\n", 1)
    np.testing.assert_array_equal(unpack(line, payload)["value"][0], np.eye(2))
