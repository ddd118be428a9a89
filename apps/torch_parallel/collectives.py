"""Counts what a process says to others: the collective operations and messages that PyTorch issues."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

# DTensor's and FSDP's names of an operation -> the usual one
NAMES = {
    "all_reduce": "all_reduce",
    "allreduce_": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "_allgather_base_": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast": "broadcast",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "recv",
}


class Counting(TorchDispatchMode):
    """`with Counting() as talking:` fills talking.counts, a Counter of the names above. Sees every operation of this
    process, backward passes included, so it slows the work a little."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it becomes operations on its local tensor and collectives, which come back here
        if getattr(func, "namespace", "") in ("c10d", "_c10d_functional"):
            name = func._overloadpacket.__name__
            if name in NAMES:
                self.counts[NAMES[name]] += 1
        return func(*args, **(kwargs or {}))
