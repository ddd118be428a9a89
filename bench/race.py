"""Sides that take turns: each is a warm child process, one computes while the others wait, block after block.

Absolute speed drifts on shared machines, so only figures of one round are compared: the ratio of two sides is the
median of their ratios round by round.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from bench.results import median_and_spread
from peers import client
from peers.pipe import Child

START_SECONDS = 1200.0  # a compilation with autotuning takes minutes
QUIET = 0.1  # cores that others may use while a block is timed: this process, the system, waiting sides

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Side:
    """One competitor: `start` is the request its child gets; `dtype` what a row calls its precision."""

    name: str
    ours: bool
    dtype: str
    start: Mapping[str, Any]
    imports: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Record:
    """What one side did: seconds of a step, round by round; the first step's; bytes above the imports."""

    side: Side
    started: dict[str, Any]
    imported: int
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)  # cores that others used, round by round
    peak: int = 0
    loss: float = float("nan")

    @property
    def step(self) -> float:
        return statistics.median(self.step_seconds)

    @property
    def compile_seconds(self) -> float:
        return max(0.0, self.started["first_step_seconds"] - self.step)

    @property
    def memory(self) -> int:
        return self.peak - self.imported


def open_child(side: Side, scratch: str) -> Child:
    """The side's process; a cold compilation cache of its own, and what it prints goes to a file."""
    cold = {"TORCHINDUCTOR_CACHE_DIR": scratch, "TRITON_CACHE_DIR": scratch}
    if side.ours:
        return Child([sys.executable, "-m", "bench.ours"], name=side.name, cwd=client.ROOT, env=side.env)
    return client.start(side.name, env={**side.env, **cold})


def race(sides: Sequence[Side], rounds: int, block_seconds: float) -> list[Record]:
    """Start every side, then `rounds` rounds in which each makes about `block_seconds` of steps, in turn."""
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        children, records = [], []
        for number, side in enumerate(sides):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            child = stack.enter_context(open_child(side, str(folder)))
            imported = child.call("imports", **side.imports)["peak"]
            started = child.call("start", timeout=START_SECONDS, **side.start)
            children.append(child)
            records.append(Record(side, started, imported))
            say(f"  {side.name} {side.dtype}: first step {started['first_step_seconds']:.1f} s")
        blocks = [block_length(child, block_seconds) for child in children]
        for turn in range(rounds):
            first = turn % len(sides)
            for i in [*range(first, len(sides)), *range(first)]:
                answer, others = timed(children[i], "steps", n=blocks[i])
                records[i].others.append(others)
                records[i].step_seconds.append(answer["seconds"] / blocks[i])
                records[i].peak, records[i].loss = answer["peak"], answer["loss"]
        for record in records:
            say(
                f"  {record.side.name} {record.side.dtype}: {record.step * 1e3:.1f} ms a step; "
                f"others used {max(record.others):.2f} cores"
            )
        return records


def block_length(child: Child, block_seconds: float) -> int:
    """Steps that take about `block_seconds`, after two that warm the process."""
    child.call("steps", timeout=START_SECONDS, n=2)
    probe = child.call("steps", timeout=START_SECONDS, n=2)["seconds"] / 2
    return max(1, round(block_seconds / probe))


def ratio(ours: Record, peer: Record) -> tuple[float, list[float]]:
    """How many times as fast ours is: median over the rounds, and the quartiles."""
    paired = zip(ours.step_seconds, peer.step_seconds, strict=True)
    return median_and_spread([theirs / mine for mine, theirs in paired])


def timed(child: Child, op: str, tries: int = 3, **request: Any) -> tuple[dict[str, Any], float]:
    """The answer of a block of work, and the cores that everybody but this child used meanwhile."""
    return alone([child.pid], lambda: child.call(op, timeout=START_SECONDS, **request), tries)


def alone(pids: Sequence[int], work: Callable[[], Answer], tries: int = 3) -> tuple[Answer, float]:
    """What a block of work gives, and the cores that everybody but these processes used meanwhile.

    A block that others disturbed is made again, until it is the last of `tries`: threads that wait for each other lose
    far more than the time that is taken from them.
    """
    for _ in range(tries):
        own, everybody = sum(map(cpu_seconds, pids)), machine_seconds()
        began = time.perf_counter()
        answer = work()
        seconds = time.perf_counter() - began
        used = (machine_seconds() - everybody) - (sum(map(cpu_seconds, pids)) - own)
        others = max(0.0, used / seconds)
        if others <= QUIET:
            break
    return answer, others


def idle(children: Mapping[str, int], seconds: float = 0.5) -> None:
    """RuntimeError if one of these waiting processes (names and their ids) keeps a core busy."""
    before = {name: cpu_seconds(pid) for name, pid in children.items()}
    time.sleep(seconds)
    for name, pid in children.items():
        used = (cpu_seconds(pid) - before[name]) / seconds
        if used > QUIET:
            raise RuntimeError(f"{name} uses {used:.1f} cores while it waits, so no other side can be timed")


def cpu_seconds(pid: int) -> float:
    """Processor seconds that a process has used so far; 0.0 where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """Processor seconds that all processes have used so far; 0.0 where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
