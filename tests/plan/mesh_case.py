"""The process behind test_communication.py: cases of bench/plan.py compiled on 8 virtual devices, as JSON.

python -m tests.plan.mesh_case unseen-fsdp-tp …
"""

import json
import sys

from bench import plan
from min_llm.plan import communication, hlo, mesh_memory


def compare(case):
    """Planned and XLA's: bytes at the peak without AdamW's moments, and bytes by "kind axis"."""
    program, job = plan.compiled(case), plan.job(case)
    need = mesh_memory.training(job)
    found = hlo.totals(hlo.collectives(program.as_text(), job.mesh))
    planned = communication.totals(communication.transfers(job))
    return {
        "memory": [need.total - need.optimizer, plan.held(program)],
        "traffic": {
            " ".join(key): [planned.get(key, 0), found.get(key, 0)] for key in planned.keys() | found.keys()
        },
    }


if __name__ == "__main__":
    print(json.dumps({name: compare(plan.CASES[name]) for name in sys.argv[1:]}))
