"""Where the tasks of a pass run: in this process, in several of this machine, or on the machines of a Ray cluster.

Each runs the same function, `walk.run_shard`, from files to files. Nothing but the task itself travels, so that Ray's
tasks are enough (Ray Data would carry the documents through its object store), and what comes out does not depend on
where it was made. The machines of a cluster share the files: inputs and output lie at the same paths on all of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from min_llm.config import UserError
from min_llm.data.curate.walk import Task, run_shard

Mapped = Callable[[list[Task]], Iterator[None]]

KILLED = (
    "A worker process was killed, most often because the memory was full. Run the same command again: finished shards "
    "are kept; a smaller `workers` or `longest` needs less memory."
)


def executor(name: str, workers: int) -> contextlib.AbstractContextManager[Mapped]:
    """A function that runs tasks and yields as each of them is done. workers: at most so many at once."""
    if name == "ray":
        return _on_ray(workers)
    return _in_processes(workers) if workers > 1 else _here()


@contextlib.contextmanager
def _here() -> Iterator[Mapped]:
    yield lambda tasks: map(run_shard, tasks)


@contextlib.contextmanager
def _in_processes(workers: int) -> Iterator[Mapped]:
    # spawn: a fork beside JAX's threads may hang
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_follow_parent)

    def mapped(tasks: list[Task]) -> Iterator[None]:
        for future in concurrent.futures.as_completed([pool.submit(run_shard, task) for task in tasks]):
            yield future.result()

    try:
        yield mapped
    except concurrent.futures.process.BrokenProcessPool as error:
        # Python 3.11 overlooks a worker that it was starting when another one died, and waits for it
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise UserError(KILLED) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End this worker when its parent is killed, and without a word at ^C."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _on_ray(workers: int) -> Iterator[Mapped]:
    """On the cluster of RAY_ADDRESS, or on one that this machine is by itself, for as long as it takes. A Ray that the
    program has begun is used and left alone."""
    try:
        import ray
    except ImportError as error:
        raise UserError("executor=ray needs Ray: pip install 'min_llm[ray]'.") from error
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": workers}
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, **local)
    run = ray.remote(_run_at)

    def mapped(tasks: list[Task]) -> Iterator[None]:
        waiting, folder = tasks[::-1], os.getcwd()
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(run.remote(folder, waiting.pop()))
            (done,), running = ray.wait(running)
            yield ray.get(done)

    try:
        yield mapped
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(KILLED) from error
    finally:
        if own:
            ray.shutdown()


def _run_at(folder: str, task: Task) -> None:
    """Run a task where its paths mean what they meant to the one who gave it."""
    os.chdir(folder)
    run_shard(task)
