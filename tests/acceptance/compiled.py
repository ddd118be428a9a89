"""The planner beside XLA's own compiler for eight H100 that are not here (about 5 minutes; needs the `cuda` extra).

Each case is a training step of a Llama of 0.3 billion parameters with AdamW, documents packed, compiled on a CPU for
the topology of one host. What is compared is memory and the bytes that collectives move.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from min_llm.cli.plan import compiled_facts, job_of
from min_llm.config import load
from min_llm.plan import mesh_memory
from min_llm.plan.hardware import named
from min_llm.train.ahead import compile_for
from min_llm.train.config import RunConfig, check
from scripts.evidence import Claim, claim

CHIP, COUNT = "h100", 8
MODEL = (
    "model.n_layers=12", "model.dim=1024", "model.n_heads=16", "model.n_kv_heads=4", "model.hidden_dim=4096",
    "model.vocab_size=32768", "model.max_seq_len=2048", "train.seq_len=2048", "train.batch_size=32",
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "fsdp 8": {"mesh.fsdp": 8},
    "fsdp 8, scanned": {"mesh.fsdp": 8, "layers": "scan"},
    "dp 8": {"mesh.dp": 8, "layers": "scan"},
    "fsdp 4 x tp 2": {"mesh.fsdp": 4, "mesh.tp": 2, "layers": "scan"},
    "fsdp 4 x cp 2": {"mesh.fsdp": 4, "mesh.cp": 2, "layers": "scan"},
    "fsdp 8, all recomputed": {"mesh.fsdp": 8, "layers": "scan", "remat": "full"},
    "pp 2 x fsdp 4": {"mesh.pp": 2, "mesh.fsdp": 4, "layers": "scan"},
}
WITHIN = 0.25  # of XLA's memory: the planner's counts were read from XLA's CPU compiler


def checked(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Planned as a share of what XLA says: memory, and the traffic of each kind on each axis."""
    places = {"layers": "runtime.", "remat": "runtime."}
    chosen = [f"{places.get(key, 'parallel.')}{key}={value}" for key, value in settings.items()]
    run, on = load(RunConfig, None, [*MODEL, *chosen]), named(CHIP)
    with on.planned():
        job = job_of(check(run), on)
        facts = compiled_facts(compile_for(job, run, CHIP, COUNT), job)
        planned = mesh_memory.training(job).total
    found = {"memory": planned / facts["total"]}
    for row in facts["traffic"]:
        if row["compiled"] > 2**16:  # scalars and the like
            found[f"{row['kind']} {row['axis']}"] = row["planned"] / row["compiled"]
    return found


def run() -> Iterator[Claim]:
    for name, settings in CASES.items():
        found = checked(name, settings)
        memory = found.pop("memory")
        yield claim(f"{name}: planned memory, share of XLA's", round(memory, 3), f"1 within {WITHIN}",
                    abs(memory - 1) <= WITHIN)  # fmt: skip
        for what, share in found.items():
            yield claim(f"{name}: planned bytes of {what}, share of XLA's", round(share, 3), "told", None)
