"""Peak resident memory of a process, from the standard library alone."""

import resource
import sys
from pathlib import Path


def peak(pid: int | None = None) -> int:
    """Bytes, of this process unless another is named. Linux's VmHWM where there is one: it starts anew with the
    program, ru_maxrss remembers the parent's. Elsewhere another process's is 0: not known."""
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if pid is not None:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
