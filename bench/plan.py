"""The planner against what XLA plans: memory and collectives of training steps on meshes of 8 virtual devices.

    python -m bench.plan [--only PATTERN] [--dry]

Every case is compiled, none is run. Memory is `compiled.memory_analysis()` of one device (arguments, results and
temporaries, aliases once) without AdamW's moments, which are plain arrays; traffic is what the collectives in the
compiled HLO gather, reduce and pass on. The cases of SEEN were looked at while `min_llm.plan` was written, those of
UNSEEN were compiled for the first time when it was finished.
"""

import argparse
import dataclasses
import fnmatch
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
os.environ["JAX_PLATFORMS"] = "cpu"

from min_llm import models  # before jax, for the flags
from min_llm.config import build

# isort: split
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from bench import results
from min_llm.nn import axes
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.parallel import mesh as meshes
from min_llm.parallel.mesh import MeshConfig
from min_llm.plan import communication, hlo, mesh_memory
from min_llm.plan.job import Job
from min_llm.train.step import State, jit_step, language_model_loss, make_step

NARROW = dict(n_layers=4, dim=128, n_heads=8, n_kv_heads=4, hidden_dim=384, vocab_size=1024, max_seq_len=512)
WIDE = dict(n_layers=4, dim=512, n_heads=8, n_kv_heads=8, hidden_dim=1024, vocab_size=2048)
VOCABULARY = dict(n_layers=2, dim=128, n_heads=8, n_kv_heads=8, hidden_dim=384, vocab_size=16_384)
DEEP = dict(
    n_layers=8, dim=192, n_heads=8, n_kv_heads=2, head_dim=24, hidden_dim=512, vocab_size=512, max_seq_len=512
)
GPT = dict(family="gpt2", n_layers=4, dim=256, n_heads=8, vocab_size=1024)
BLOCKS = dict(attention="blockwise", scan=True)
SCAN = dict(scan=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """model and runtime: fields that differ from the defaults. rows: of the whole batch."""

    mesh: dict[str, int]
    model: dict[str, Any]
    runtime: dict[str, Any]
    rows: int = 16
    seq_len: int = 256
    micro_batches: int = 1


SEEN = {
    "fsdp": Case({"fsdp": 8}, NARROW, BLOCKS),
    "fsdp-full": Case({"fsdp": 8}, NARROW, BLOCKS | {"remat": "full"}),
    "dp-tp": Case({"dp": 2, "tp": 4}, NARROW, SCAN),
    "fsdp-cp-tp": Case({"fsdp": 2, "cp": 2, "tp": 2}, NARROW, BLOCKS),
    "fsdp-tp-selective": Case({"fsdp": 4, "tp": 2}, NARROW, BLOCKS | {"remat": "selective"}),
    "dp-unrolled": Case({"dp": 8}, WIDE, {}),
    "fsdp-keep": Case({"fsdp": 8}, WIDE, BLOCKS | {"keep_gathered": True}),
    "fsdp-wide": Case({"fsdp": 8}, WIDE, BLOCKS),
    "fsdp-dp-vocabulary": Case({"dp": 2, "fsdp": 4}, VOCABULARY, SCAN),
    "pp-fsdp": Case({"pp": 2, "fsdp": 4}, NARROW, BLOCKS | {"pipeline_parts": 4}),
    "pp-dp-tp-full": Case({"pp": 2, "dp": 2, "tp": 2}, WIDE, BLOCKS | {"pipeline_parts": 4, "remat": "full"}),
    "fsdp-micro": Case({"fsdp": 4, "dp": 2}, WIDE, BLOCKS | {"remat": "full"}, micro_batches=2),
    "cp-dp": Case({"cp": 4, "dp": 2}, NARROW, SCAN),
    "fsdp-tp-unrolled": Case({"fsdp": 4, "tp": 2}, WIDE, {"attention": "blockwise"}),
    "fsdp-tp-full": Case({"fsdp": 2, "tp": 4}, NARROW, BLOCKS | {"remat": "full"}, rows=32),
    "dp-fsdp-cp-selective": Case({"dp": 2, "fsdp": 2, "cp": 2}, WIDE, BLOCKS | {"remat": "selective"}),
    "fsdp-tp-vocabulary": Case({"fsdp": 4, "tp": 2}, VOCABULARY, SCAN),
    "pp-fsdp-full": Case(
        {"pp": 4, "fsdp": 2}, NARROW, BLOCKS | {"remat": "full", "pipeline_parts": 8}, rows=32
    ),
    "dp-tp-micro": Case({"dp": 4, "tp": 2}, WIDE, BLOCKS, micro_batches=2),
    "gpt2-fsdp": Case({"fsdp": 8}, GPT, SCAN),
    "cp-tp": Case({"cp": 2, "tp": 4}, NARROW, SCAN),
    "deep-fsdp-selective": Case({"fsdp": 8}, DEEP, BLOCKS | {"remat": "selective"}, seq_len=512),
    "pp-cp-tp-full": Case({"pp": 2, "cp": 2, "tp": 2}, WIDE, BLOCKS | {"remat": "full", "pipeline_parts": 2}),
    "fsdp-unrolled-full": Case({"fsdp": 8}, DEEP, {"attention": "blockwise", "remat": "full"}, seq_len=512),
    "fsdp-micro-4": Case({"dp": 2, "fsdp": 4}, WIDE, BLOCKS | {"remat": "full"}, rows=32, micro_batches=4),
    "fsdp-tp-keep": Case({"fsdp": 4, "tp": 2}, WIDE, BLOCKS | {"keep_gathered": True}),
    "gpt2-fsdp-tp": Case({"fsdp": 4, "tp": 2}, GPT, BLOCKS),
    "gpt2-dp-cp-full": Case({"dp": 4, "cp": 2}, GPT, BLOCKS | {"remat": "full"}),
    "pp-fsdp-rounds": Case({"pp": 2, "fsdp": 4}, WIDE, BLOCKS | {"pipeline_parts": 2, "pipeline_rounds": 2}),
    "pp-fsdp-uneven": Case({"pp": 2, "fsdp": 4}, WIDE | {"n_layers": 7}, BLOCKS | {"pipeline_parts": 4}),
    "pp-tp-selective": Case(
        {"pp": 2, "tp": 4}, NARROW, BLOCKS | {"remat": "selective", "pipeline_parts": 4}, rows=32
    ),
    "fsdp-unrolled-selective": Case(
        {"fsdp": 8}, NARROW, {"attention": "blockwise", "remat": "selective"}, rows=32
    ),
    "fsdp-cp-unrolled-full": Case({"dp": 2, "fsdp": 2, "cp": 2}, DEEP, {"remat": "full"}, seq_len=512),
    "tp": Case({"tp": 8}, WIDE, BLOCKS),
}
SHAKESPEARE = dict(
    n_layers=6, dim=384, n_heads=6, n_kv_heads=6, hidden_dim=1024, vocab_size=8192, max_seq_len=1024
)
GPT_SMALL = dict(family="gpt2", n_layers=6, dim=192, n_heads=6, vocab_size=4096)
SEEN |= {
    "small-fsdp": Case({"fsdp": 8}, SHAKESPEARE, BLOCKS),
    "small-fsdp-tp-selective": Case(
        {"fsdp": 4, "tp": 2}, SHAKESPEARE, BLOCKS | {"remat": "selective"}, 8, 512
    ),
    "small-dp-fsdp-tp-full-micro": Case(
        {"dp": 2, "fsdp": 2, "tp": 2}, SHAKESPEARE, BLOCKS | {"remat": "full"}, 32, 256, micro_batches=2
    ),
    "small-pp-fsdp-tp": Case({"pp": 2, "fsdp": 2, "tp": 2}, SHAKESPEARE, BLOCKS | {"pipeline_parts": 4}),
    "small-fsdp-cp": Case({"fsdp": 4, "cp": 2}, SHAKESPEARE, SCAN),
    "small-gpt2-dp": Case({"dp": 8}, GPT_SMALL, SCAN, 32),
    "small-dp-tp-unrolled": Case({"dp": 4, "tp": 2}, SHAKESPEARE, {"attention": "blockwise"}),
    "small-fsdp-keep": Case({"fsdp": 8}, SHAKESPEARE, BLOCKS | {"keep_gathered": True}, 8, 512),
    "small-pp-dp-gpt2-full": Case(
        {"pp": 2, "dp": 4}, GPT_SMALL, BLOCKS | {"remat": "full", "pipeline_parts": 2}, 32
    ),
    "small-cp-full": Case({"cp": 8}, SHAKESPEARE, BLOCKS | {"remat": "full"}, 2, 1024),
    "small-dp-cp-tp-selective-micro": Case(
        {"dp": 2, "cp": 2, "tp": 2}, SHAKESPEARE, BLOCKS | {"remat": "selective"}, 8, 512, micro_batches=2
    ),
}
MEDIUM = dict(n_layers=4, dim=256, n_heads=8, n_kv_heads=4, hidden_dim=704, vocab_size=3072, max_seq_len=1024)
GPT_WIDE = dict(family="gpt2", n_layers=3, dim=384, n_heads=6, vocab_size=2048)
UNSEEN = {
    "unseen-fsdp-full": Case({"fsdp": 8}, MEDIUM, BLOCKS | {"remat": "full"}, 32, 512),
    "unseen-fsdp-tp": Case({"fsdp": 2, "tp": 4}, MEDIUM, BLOCKS, 8, 512),
    "unseen-dp-cp-selective": Case({"dp": 4, "cp": 2}, MEDIUM, BLOCKS | {"remat": "selective"}),
    "unseen-fsdp-micro": Case({"fsdp": 8}, MEDIUM, BLOCKS, 32, 256, micro_batches=2),
    "unseen-dp-unrolled-selective": Case({"dp": 8}, MEDIUM, {"attention": "blockwise", "remat": "selective"}),
    "unseen-cp-tp-full": Case({"cp": 4, "tp": 2}, MEDIUM, BLOCKS | {"remat": "full"}, 4, 1024),
    "unseen-gpt2-fsdp-tp": Case({"fsdp": 4, "tp": 2}, GPT_WIDE, BLOCKS | {"remat": "selective"}),
    "unseen-dp-fsdp-keep": Case({"dp": 2, "fsdp": 4}, MEDIUM, BLOCKS | {"keep_gathered": True}, 8, 512),
    "unseen-pp-dp": Case({"pp": 2, "dp": 4}, MEDIUM, BLOCKS | {"pipeline_parts": 4}, 32),
    "unseen-pp-fsdp-full": Case(
        {"pp": 2, "fsdp": 4}, GPT_WIDE | {"n_layers": 4}, BLOCKS | {"remat": "full", "pipeline_parts": 2}
    ),
    "unseen-cp-fsdp": Case({"cp": 2, "fsdp": 4}, MEDIUM, SCAN, 8, 1024),
    "unseen-dp-fsdp-tp": Case({"dp": 2, "fsdp": 2, "tp": 2}, MEDIUM, BLOCKS, 32),
}
MIXTURE = dict(
    family="mixtral",
    n_layers=4,
    dim=128,
    n_heads=8,
    n_kv_heads=4,
    hidden_dim=256,
    vocab_size=1024,
    max_seq_len=512,
)
SEEN |= {
    "moe-ep-fsdp": Case({"ep": 4, "fsdp": 2}, MIXTURE, BLOCKS),
    "moe-ep-tp": Case({"ep": 2, "fsdp": 2, "tp": 2}, MIXTURE, BLOCKS | {"remat": "selective"}),
    "moe-pp-ep": Case({"pp": 2, "ep": 2, "dp": 2}, MIXTURE, BLOCKS | {"remat": "full", "pipeline_parts": 2}),
}
CASES = SEEN | UNSEEN


def compiled(case: Case) -> Any:
    """The training step of a case, compiled for its mesh from shapes alone."""
    cfg = model(case)
    with meshes.use(MeshConfig(**case.mesh)) as mesh:
        state = State(jax.ShapeDtypeStruct((), jnp.int32), axes.shapes(models.spec(cfg)), optax.EmptyState())
        shape = (case.rows, case.seq_len)
        sharding = None if mesh is None else NamedSharding(mesh, axes.to_partition(("batch", "seq"), shape))
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        places = {"positions": tokens, "index": tokens} if "cp" in case.mesh else {}
        loss = language_model_loss(cfg, Runtime(**case.runtime))
        step = jit_step(make_step(loss, optax.identity(), case.micro_batches))
        return step.lower(state, Batch(tokens, tokens, **places)).compile()


def model(case: Case) -> models.ModelConfig:
    return build(models.ModelConfig, {"family": "llama"} | case.model)


def held(program: Any) -> float:
    """Bytes of one device at the peak of a compiled step."""
    found = program.memory_analysis()
    arguments = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return arguments + found.temp_size_in_bytes


def job(case: Case) -> Job:
    runtime, mesh = Runtime(**case.runtime), MeshConfig(**case.mesh)
    return Job(model(case), case.rows, case.seq_len, runtime, mesh, case.micro_batches)


def rows_of(name: str, case: Case) -> list[results.Row]:
    """Planned beside XLA's: memory, and traffic by kind and axis."""
    program, planned = compiled(case), job(case)
    about = f"{meshes.words(planned.mesh)}; {case.rows} x {case.seq_len} tokens"
    facts = {"about": about, "remat": planned.runtime.remat, "seen": name in SEEN}

    def row(metric: str, unit: str, ours: float, found: float) -> results.Row:
        return results.row(name, metric, unit, "float32", ours, xla=found, of_xla=ours / found, **facts)

    need = mesh_memory.training(planned)
    made = [row("memory", "MiB", (need.total - need.optimizer) / 2**20, held(program) / 2**20)]
    counted = hlo.totals(hlo.collectives(program.as_text(), planned.mesh))
    expected = communication.totals(communication.transfers(planned))
    for kind, axis in sorted(counted.keys() | expected.keys()):
        ours, xla = expected.get((kind, axis), 0.0), counted.get((kind, axis), 0.0)
        if xla > 4096:  # scalars and the like
            made.append(row(f"{kind} {axis}", "MiB a step", ours / 2**20, xla / 2**20))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="cases whose name fits this pattern")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    for name, case in CASES.items():
        if fnmatch.fnmatch(name, arguments.only):
            rows = rows_of(name, case)
            print(name, *(f"{row['metric']} {row['of_xla']:.3f}" for row in rows), sep=", ", flush=True)
            if not arguments.dry:
                results.write("plan", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
