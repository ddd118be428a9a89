"""Two and four processes give one process's losses; whoever is killed, the others end and the run goes on (20 minutes).

A tiny model on this machine, through gloo. Each of four processes is killed once under `min-llm launch`, in one run
that goes on after each kill; process 0 and another one are also killed without the launcher that watches them, so that
only JAX's heartbeats end the others. Then two processes and at last one finish the run. The losses of every step that
is logged are compared with those of one process that was never disturbed: another order of data would show at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from min_llm.parallel.launch import free_port
from min_llm.train.checkpoints import _verify
from scripts.evidence import Claim, claim
from tests.parallel.launched import Trainings, apart, children

BOUND = 30  # seconds in which the others end
NEAR = 1e-3  # losses, in nats
STEPS = "train.steps=400"


def killed(
    trainings: Trainings, name: str, rank: int, count: int, watched: bool
) -> tuple[float, list[int], str]:
    """Kill a process of the run once it has written a checkpoint: seconds to the end of all, statuses, damage."""
    before = max(trainings.checkpoints(name), default=0)
    group: list[subprocess.Popen]
    if watched:
        group = [trainings.launch(name, count, fsdp=count)]
    else:
        group = trainings.alone(name, count, free_port(), fsdp=count)
    try:
        trainings.wait_for_checkpoint(name, group[0], before)
        time.sleep(0.3)
        os.kill(children(group[0])[rank] if watched else group[rank].pid, signal.SIGKILL)
        began = time.monotonic()
        statuses = [process.wait(120) for process in group]
        seconds = time.monotonic() - began
    finally:
        for process in group:
            process.kill()
    latest = trainings.checkpoints(name)[-1]
    try:
        _verify(trainings.folder / "runs" / name / "checkpoints" / str(latest), "")
        damage = ""
    except ValueError as error:
        damage = str(error)
    return seconds, statuses, damage


def run() -> Iterator[Claim]:
    with tempfile.TemporaryDirectory(prefix="min_llm-processes-") as folder:
        trainings = Trainings(Path(folder), 400, STEPS)
        trainings.train("one")
        one = trainings.losses("one")
        for count, mesh in ((2, {"fsdp": 2, "tp": 2}), (4, {"fsdp": 4})):
            name = f"{count}-processes"
            began = time.monotonic()
            trainings.ends(trainings.launch(name, count, **mesh), name)
            seconds = time.monotonic() - began
            distance = apart(trainings.losses(name), one)
            yield claim(
                f"{count} processes, mesh {mesh}: largest difference of a loss from one process's, {len(one)} rows of "
                f"400 steps ({seconds:.0f} s)",
                f"{distance:.1e}",
                f"<= {NEAR:.0e}",
                distance <= NEAR,
                "nats",
            )
        for watched in (True, False):
            for rank in range(4) if watched else (0, 2):
                seconds, statuses, damage = killed(trainings, "killed", rank, 4, watched)
                how = "under the launcher" if watched else "without the launcher"
                text = f"process {rank} of 4 killed with kill -9 {how}: time to the end of all others"
                yield claim(text, round(seconds, 1), f"<= {BOUND}", seconds <= BOUND, "s")
                failed = all(statuses) and not damage
                text = f"process {rank} of 4 {how}: exit statuses; latest checkpoint whole"
                yield claim(text, f"{statuses}; {damage or 'whole'}", "none 0; whole", failed)
        step = trainings.checkpoints("killed")[-1]
        job = trainings.launch("killed", 2, fsdp=2)
        trainings.wait_for_checkpoint("killed", job, step)
        os.kill(children(job)[1], signal.SIGTERM)
        trainings.ends(job, "killed", status=143)
        stopped = trainings.checkpoints("killed")[-1]
        yield claim("SIGTERM to one of 2 processes: status of the launch", 143, "143", True)
        trainings.train("killed")
        distance = apart(trainings.losses("killed"), one)
        yield claim(
            f"after six kills, 4 -> 2 -> 1 processes (the last change at step {stopped}): largest difference of a loss",
            f"{distance:.1e}",
            f"<= {NEAR:.0e}",
            distance <= NEAR,
            "nats",
        )
