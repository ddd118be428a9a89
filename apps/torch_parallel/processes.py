"""A process among others: joining them, and never waiting for ever.

Three things end a wait. A process that died closes its connections, and the others fail within a second. Collectives
on the group of all processes give up after `timeout`. And `deadline` ends a process that is stuck anywhere else,
with the stack of each of its threads; torchrun then stops the others.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist


@contextlib.contextmanager
def joined(timeout: float) -> Iterator[torch.device]:
    """Join the processes that torchrun started: NCCL where there are GPUs, gloo where not. Gives this one's device.

    timeout: seconds that a collective may take.
    """
    if "RANK" not in os.environ:
        raise SystemExit(
            "start this with torchrun: torchrun --nproc-per-node 4 -m apps.torch_parallel.train …"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(1)  # as many processes as cores, or more
        one_machine = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
        if sys.platform == "linux" and one_machine:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks the host's name up
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def deadline(seconds: float) -> None:
    """End this process in so many seconds, unless a later call moves the deadline."""
    faulthandler.dump_traceback_later(seconds, exit=True)
