"""Peak resident memory of this process, from the standard library alone."""

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Bytes. Linux's VmHWM where there is one: it starts anew with the program, ru_maxrss remembers the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
