"""Start several processes: on this machine, through SLURM, or as a Kubernetes JobSet.

Here they share the processor and talk through gloo; they are watched, and when one fails the others are ended. For
SLURM a script is written that restarts itself: a signal before the time limit or a preemption makes the run save a
checkpoint and end with status 143, and the script puts the job back into the queue.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import min_llm
from min_llm.parallel.processes import COORDINATOR, PROCESS, PROCESSES

TO_BE_CONTINUED = 143  # exit status of a run that a signal stopped after a checkpoint
GRACE = 3.0  # seconds the others have to say what they know when one has failed
SAVING = 120  # seconds a scheduler leaves between its signal and its kill
RESTARTS = 10  # times a failed job goes back into the queue


@dataclasses.dataclass(frozen=True)
class Job:
    """What is started: `min-llm train` with these arguments in so many processes, code taken from `code`."""

    name: str
    folder: Path  # of the run
    processes: int
    arguments: tuple[str, ...]
    code: Path | None = None

    def command(self, python: str) -> list[str]:
        return [python, "-m", "min_llm", "train", *self.arguments]


def snapshot(folder: Path, commit: str | None) -> Path:
    """Copy this package into `folder`/code, once for each content; what to put on PYTHONPATH.

    A job that waits in a queue for days, or restarts, runs the code it was started with.
    """
    package = Path(min_llm.__file__).parent
    files = sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    contents = hashlib.sha256()
    for path in files:
        contents.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    place = folder / "code" / contents.hexdigest()[:12]
    if not place.exists():
        part = place.with_name(f".{place.name}.{os.getpid()}")
        for path in files:
            target = part / "min_llm" / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (part / "COMMIT").write_text(f"{commit or 'unknown'}\n")
        os.replace(part, place)
    return place.absolute()


# On this machine


@dataclasses.dataclass(frozen=True)
class Ending:
    """How the processes of a job ended: `rank` was the first of them to fail, None when none did."""

    status: int  # as `min-llm` gives it: 0, 143, 2 or 1
    rank: int | None = None
    how: str = ""
    seconds: float = 0.0  # from its end to that of the last one
    output: str = ""  # its last lines, where nobody has seen them


def local(job: Job, devices: int, say: Callable[[str], None]) -> Ending:
    """Run the job in processes of this machine with so many virtual devices each, and wait for their end.

    The primary has this terminal; the others write to `processes/<rank>.txt` in the run folder. SIGTERM and SIGINT
    go on to all of them.
    """
    outputs = job.folder / "processes"
    outputs.mkdir(parents=True, exist_ok=True)
    meeting = {COORDINATOR: f"127.0.0.1:{free_port()}", PROCESSES: str(job.processes)}
    children: list[subprocess.Popen] = []
    with passed_on(children, say):
        try:
            for rank in range(job.processes):
                env = environment(os.environ, devices, job.code) | meeting | {PROCESS: str(rank)}
                with (outputs / f"{rank}.txt").open("w") as file:
                    children.append(
                        subprocess.Popen(
                            job.command(sys.executable),
                            env=env,
                            stdin=subprocess.DEVNULL,
                            stdout=file,  # gloo's chatter; the primary speaks on standard error
                            stderr=file if rank else None,
                            start_new_session=True,  # Ctrl-C comes through us
                        )
                    )
            return watch(children, lambda rank: tail(outputs / f"{rank}.txt") if rank else "")
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.wait()


def environment(given: Mapping[str, str], devices: int, code: Path | None) -> dict[str, str]:
    """The variables of a local process: virtual devices of the processor, code from the snapshot."""
    flags = [f for f in given.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    path = [str(code)] if code else []
    path += [given["PYTHONPATH"]] if given.get("PYTHONPATH") else []
    return {
        **given,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        **({"PYTHONPATH": os.pathsep.join(path)} if path else {}),
    }


def watch(children: Sequence[subprocess.Popen], output: Callable[[int], str]) -> Ending:
    """Wait for all. When one fails the others have `GRACE` seconds; then they are killed."""
    first, since = None, 0.0
    while any(child.poll() is None for child in children):
        failed = [rank for rank, child in enumerate(children) if child.poll()]
        if failed and first is None:
            first, since = culprit({rank: children[rank].returncode for rank in failed}), time.monotonic()
        patience = SAVING if first is not None and stopped(children[first].returncode) else GRACE
        if first is not None and time.monotonic() - since > patience:
            for child in children:
                child.kill()
        time.sleep(0.05)
    statuses = {rank: child.wait() for rank, child in enumerate(children)}
    if not any(statuses.values()):
        return Ending(0)
    if first is None:
        first, since = culprit({r: s for r, s in statuses.items() if s}), time.monotonic()
    if all(stopped(status) for status in statuses.values()):
        return Ending(TO_BE_CONTINUED)
    status = 2 if statuses[first] == 2 else 1
    return Ending(status, first, how(statuses[first]), time.monotonic() - since, output(first))


def stopped(status: int) -> bool:
    """Whether a process ended as a signal asked it to."""
    return status in (TO_BE_CONTINUED, -signal.SIGTERM)


def culprit(statuses: Mapping[int, int]) -> int:
    """Who of those that failed together failed first: JAX aborts a process when another one has gone."""
    return min(statuses, key=lambda rank: (statuses[rank] == -signal.SIGABRT, rank))


def how(status: int) -> str:
    """An exit status in words."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


@contextmanager
def passed_on(children: Sequence[subprocess.Popen], say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and SIGINT reach all children as SIGTERM; a second SIGINT kills them."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        again = number == signal.SIGINT and received
        received.append(number)
        say(f"{signal.Signals(number).name} goes on to {len(children)} processes.")
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a process's output, without gloo's chatter."""
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join([line for line in text if not line.startswith("[Gloo]")][-lines:])


# Through SLURM


def slurm(job: Job, options: Mapping[str, str], gpus: int = 0, limit: str = "") -> str:
    """An sbatch script: a node a process, requeued when it was stopped, and `RESTARTS` times when it failed.

    options: further ones of sbatch, {"partition": "gpu"}. gpus: on each node. limit: of time, as sbatch reads it.
    """
    given = {
        "job-name": job.name,
        "nodes": str(job.processes),
        "ntasks": str(job.processes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(gpus)} if gpus else {}),
        **({"time": limit} if limit else {}),
        "signal": f"TERM@{SAVING}",
        "requeue": "",
        "open-mode": "append",
        "output": str(job.folder.absolute() / "slurm-%j.txt"),
        **options,
    }
    header = "\n".join(
        f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in given.items()
    )
    code = (
        f"export PYTHONPATH={shlex.quote(str(job.code))}${{PYTHONPATH:+:$PYTHONPATH}}\n" if job.code else ""
    )
    return f"""#!/bin/bash
{header}
# Written by `min-llm launch`. Before the time limit and on preemption every task gets SIGTERM: the run saves a
# checkpoint and ends with status {TO_BE_CONTINUED}, and the job goes back into the queue.
trap : TERM
cd {shlex.quote(str(Path.cwd()))} || exit 1
{code}first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export {COORDINATOR}="$first:$((20000 + SLURM_JOB_ID % 20000))"
export {PROCESSES}="$SLURM_NTASKS"

srun --kill-on-bad-exit=1 {shlex.join(job.command(sys.executable))}
status=$?

checkpoint="$(ls {shlex.quote(str(job.folder.absolute() / "checkpoints"))} 2>/dev/null | sort -n | tail -n 1)"
echo "min-llm: status $status, restart ${{SLURM_RESTART_COUNT:-0}}, last checkpoint: step ${{checkpoint:-none}}"
if [ "$status" -eq {TO_BE_CONTINUED} ]; then
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


# On Kubernetes


def jobset(job: Job, image: str, gpus: int = 0, claim: str = "", port: int = 8476) -> dict[str, Any]:
    """A JobSet (jobset.x-k8s.io/v1alpha2): an indexed Job with a pod a process, all started again when one fails.

    claim: a PersistentVolumeClaim for the run folder, shared by all pods and mounted at its place.
    """
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:40] or "run"
    mount = str(job.folder.absolute().parent)
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": job.command("python"),
        "env": [
            {"name": COORDINATOR, "value": f"{name}-train-0-0.{name}:{port}"},
            {"name": PROCESSES, "value": str(job.processes)},
        ],
        "ports": [{"containerPort": port}],
    }
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING,
        "containers": [container],
    }
    if claim:
        container["volumeMounts"] = [{"name": "runs", "mountPath": mount}]
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}]
    work = {
        "parallelism": job.processes,
        "completions": job.processes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": RESTARTS},
            "replicatedJobs": [{"name": "train", "replicas": 1, "template": {"spec": work}}],
        },
    }
