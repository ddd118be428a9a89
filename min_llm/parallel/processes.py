"""Several processes train one model: who they are, how they meet, how they end together.

Each process runs the same program on its own devices; a mesh spans the devices of all. A launcher (`parallel.launch`)
says in the environment where they meet and how many they are; `joined` makes this process one of them before JAX
starts. What is written down is written by the primary, process 0, into a run folder on a disk that all share; what
moves arrays between devices is called by all, in the same order.

Between steps processes talk through JAX's coordination service, a small key-value store in process 0, and not with
their devices. It also watches: whoever has been silent for `HEARTBEAT` seconds counts as dead, and JAX then aborts
all others (status 134). They abort at once when process 0 dies. The launcher turns that into a sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from min_llm.config import UserError

COORDINATOR, PROCESSES, PROCESS = "MIN_LLM_COORDINATOR", "MIN_LLM_PROCESSES", "MIN_LLM_PROCESS"
RANKS = (PROCESS, "SLURM_PROCID", "JOB_COMPLETION_INDEX")  # ours, SLURM's, a Kubernetes Indexed Job's

HEARTBEAT = 10  # seconds of silence after which a process counts as dead
PATIENCE = 3600  # seconds to wait where another process may be writing or preparing something

_count = (
    itertools.count()
)  # barriers and shared values are numbered: all processes come by them in the same order


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where they meet (HOST:PORT of process 0)."""

    rank: int
    count: int
    coordinator: str


def place(env: Mapping[str, str]) -> Place | None:
    """What the environment says; None for a process on its own."""
    if COORDINATOR not in env and PROCESSES not in env:
        return None
    given = {name: env.get(name, "") for name in (COORDINATOR, PROCESSES)}
    rank = next((env[name] for name in RANKS if name in env), "")
    address, _, port = given[COORDINATOR].rpartition(":")
    if not (address and port.isdigit() and given[PROCESSES].isdigit() and rank.isdigit()):
        raise UserError(
            f"A process of several needs {COORDINATOR}=HOST:PORT, {PROCESSES}=N and its number in one of "
            f"{', '.join(RANKS)}; the environment has {given | {PROCESS: rank}}. `min-llm launch` sets them."
        )
    found = Place(int(rank), int(given[PROCESSES]), given[COORDINATOR])
    if found.rank >= found.count:
        raise UserError(f"This is process {found.rank}, but there are only {found.count}: 0 is the first.")
    return found if found.count > 1 else None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Run the body as one of the processes the environment speaks of; on its own where it speaks of none.

    They leave together: one that fails says why and ends its process at once, without waiting for the others in the
    barriers that JAX puts at the end of a process.
    """
    here = place(os.environ)
    if here is None:
        yield
        return
    _join(here)
    try:
        yield
    except SystemExit:  # all have agreed to it
        _leave()
        raise
    except BaseException as error:
        _end(here, error)
    _leave()


def _join(here: Place) -> None:
    """To be called before JAX starts its backend."""
    import jax

    from min_llm import reporting

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.distributed.initialize(
        here.coordinator,
        here.count,
        here.rank,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
    if here.rank:
        reporting.silence()


def _leave() -> None:
    import jax

    barrier()
    jax.distributed.shutdown()


def _end(here: Place, error: BaseException) -> None:
    """Say why and end the process, with the statuses of `min-llm`."""
    known = isinstance(error, UserError) or type(error).__name__ == "TrainingStopped"
    text = str(error) if known else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if lost_connection(text):
        text = f"It has lost another process, which ended or cannot be reached. ({text})"
    elif not known:
        traceback.print_exception(error)
    sys.stderr.write(f"min-llm: process {here.rank} of {here.count} on {socket.gethostname()}: {text}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, UserError) else 1)


def lost_connection(text: str) -> bool:
    """Whether an error's text says that another process is gone: gloo's, NCCL's or the coordination service's."""
    return any(word in text for word in ("Gloo", "NCCL", "CoordinationService", "coordination service"))


def _state() -> Any:
    from jax._src import distributed  # the store has no public name; Orbax takes it from here too

    return distributed.global_state


def rank() -> int:
    """The number of this process."""
    return _state().process_id


def count() -> int:
    """How many there are."""
    return _state().num_processes


def primary() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Return when every process has come here."""
    if count() > 1:
        _state().client.wait_at_barrier(f"min_llm/{next(_count)}", PATIENCE * 1000)


def share(value: Any) -> Any:
    """The primary's value, which JSON can hold, in every process."""
    if count() == 1:
        return value
    key, client = f"min_llm/{next(_count)}", _state().client
    if primary():
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, PATIENCE * 1000))


def collect(value: Any) -> list[Any]:
    """Everybody's value, which JSON can hold, by process, in the primary; [] in the others, which do not wait."""
    if count() == 1:
        return [value]
    key, client = f"min_llm/{next(_count)}/", _state().client
    client.key_value_set(f"{key}{rank()}", json.dumps(value))
    if not primary():
        return []
    values = [json.loads(client.blocking_key_value_get(f"{key}{r}", PATIENCE * 1000)) for r in range(count())]
    client.key_value_delete(key)  # and all under it
    return values


class Agreement:
    """Whether any process wishes something: asked after every step, answered after the next one.

    The question is a sum over one number a device that runs behind the step, so nobody waits for it; all hear the
    same answer at the same step.
    """

    def __init__(self) -> None:
        self._asked: Any = None
        self._any: Any = None

    def __call__(self, wish: bool) -> bool:
        if count() == 1:
            return wish
        import jax
        import numpy as np
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = jax.sharding.get_mesh()
        if self._any is None:
            self._any = jax.jit(lambda wishes: wishes.max())
        sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        wishes = jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.full(1, wish, np.int32))
        before, self._asked = self._asked, self._any(wishes)
        return before is not None and bool(before)
