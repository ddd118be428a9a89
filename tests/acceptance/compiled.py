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

CHIP = "h100"
MODEL = {
    "model.family": "llama", "model.n_layers": 12, "model.dim": 1024, "model.n_heads": 16, "model.n_kv_heads": 4,
    "model.hidden_dim": 4096, "model.vocab_size": 32_768, "model.max_seq_len": 2048, "train.seq_len": 2048,
    "train.batch_size": 32,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "fsdp 8": {"mesh.fsdp": 8},
    "fsdp 8, scanned": {"mesh.fsdp": 8, "layers": "scan"},
    "dp 8": {"mesh.dp": 8, "layers": "scan"},
    "fsdp 4 x tp 2": {"mesh.fsdp": 4, "mesh.tp": 2, "layers": "scan"},
    "fsdp 4 x cp 2": {"mesh.fsdp": 4, "mesh.cp": 2, "layers": "scan"},
    "fsdp 8, all recomputed": {"mesh.fsdp": 8, "layers": "scan", "remat": "full"},
    "pp 2 x fsdp 4": {"mesh.pp": 2, "mesh.fsdp": 4, "layers": "scan"},
    "one": {"train.batch_size": 4, "layers": "scan"},
    # not looked at while the planner was made to fit GPUs
    "unseen: dp 2 x fsdp 4, parts kept": {"mesh.dp": 2, "mesh.fsdp": 4, "layers": "scan", "remat": "selective"},
    "unseen: tp 8": {"mesh.tp": 8, "layers": "scan", "model.n_kv_heads": 8, "train.batch_size": 8},
    "unseen: fsdp 2 x cp 2 x tp 2": {"mesh.fsdp": 2, "mesh.cp": 2, "mesh.tp": 2, "train.batch_size": 8},
    "unseen: gpt2, fsdp 8": {"mesh.fsdp": 8, "layers": "scan", "model.family": "gpt2", "model.n_kv_heads": None},
    "unseen: gpt2, dp 4 x tp 2, all recomputed": {
        "mesh.dp": 4, "mesh.tp": 2, "remat": "full", "layers": "scan", "model.family": "gpt2", "model.n_kv_heads": None,
    },
    "unseen: fsdp 8, two micro-batches": {"mesh.fsdp": 8, "layers": "scan", "train.micro_batches": 2},
    "unseen: pp 4 x fsdp 2, all recomputed": {"mesh.pp": 4, "mesh.fsdp": 2, "layers": "scan", "remat": "full"},
    "unseen: one, unrolled, vocabulary of 128K": {"train.batch_size": 4, "model.vocab_size": 131_072},
}  # fmt: skip
WITHIN, FARTHEST = 0.1, 0.15  # of XLA's memory: three of four unseen cases, and every one


def checked(name: str, settings: dict[str, Any]) -> dict[str, float]:
    """Planned as a share of what XLA says: memory, and the traffic of each kind on each axis."""
    places = {"layers": "runtime.layers", "remat": "runtime.remat"}
    places |= {key: f"parallel.{key}" for key in settings if key.startswith("mesh.")}
    chosen = MODEL | {places.get(key, key): value for key, value in settings.items()}
    given = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    run, on = load(RunConfig, None, given), named(CHIP)
    with on.planned():
        job = job_of(check(run), on)
        facts = compiled_facts(compile_for(job, run, CHIP, job.mesh.size), job)
        planned = mesh_memory.training(job).total
    found = {"memory": planned / facts["total"]}
    for row in facts["traffic"]:
        if row["compiled"] > 2**16:  # scalars and the like
            found[f"{row['kind']} {row['axis']}"] = row["planned"] / row["compiled"]
    return found


def run() -> Iterator[Claim]:
    unseen = []
    for name, settings in CASES.items():
        found = checked(name, settings)
        memory = found.pop("memory")
        yield claim(f"{name}: planned memory, share of XLA's", round(memory, 3), f"1 within {FARTHEST}",
                    abs(memory - 1) <= FARTHEST)  # fmt: skip
        unseen += [abs(memory - 1) <= WITHIN] if name.startswith("unseen") else []
        for what, share in found.items():
            yield claim(f"{name}: planned bytes of {what}, share of XLA's", round(share, 3), "told", None)
    yield claim(f"unseen cases whose memory is planned within {WITHIN:.0%}", f"{sum(unseen)} of {len(unseen)}",
                "three of four", sum(unseen) >= 0.75 * len(unseen))  # fmt: skip
