"""Training speed against PyTorch: transformers' Llama and a GPT of nanoGPT's shape, eager and compiled.

    python -m bench.train [--configs a,b,c] [--families llama,gpt2] [--pairs N] [--quick] [--dry]

All sides of a configuration run in one race (bench/race.py): same shapes, AdamW, clipping, batches cut on the host,
all cores. Rows at equal precision compare ours with each PyTorch variant of that precision; "best" rows compare the
fastest of ours with the fastest of theirs. Needs `make env-peers`; takes the machine's lock.
"""

import argparse
import dataclasses
import sys
from typing import Any

import numpy as np

from bench import results
from bench.race import Record, Side, race, ratio, say
from min_llm import machine
from peers import client
from peers.pipe import Child

SEED = 0
OPTIMIZER = {"learning_rate": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration: the shapes, the batch, and how many micro-batches each side does best with."""

    about: str
    shape: dict[str, int]
    rows: int
    length: int
    ours_micro: int = 1
    peer_micro: int = 1


CASES = {
    "a": Case(
        "4 layers, d 128, context 64, batch 12, vocabulary 65",
        {"n_layers": 4, "dim": 128, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 352, "vocab_size": 65},
        rows=12,
        length=64,
    ),
    "b": Case(
        "6 layers, d 384, context 256, batch 16, vocabulary 65",
        {"n_layers": 6, "dim": 384, "n_heads": 6, "n_kv_heads": 6, "hidden_dim": 1024, "vocab_size": 65},
        rows=16,
        length=256,
    ),
    "c": Case(
        "8 layers, d 512, 8/2 heads, context 512, batch 4, vocabulary 32000",
        {"n_layers": 8, "dim": 512, "n_heads": 8, "n_kv_heads": 2, "hidden_dim": 1376, "vocab_size": 32000},
        rows=4,
        length=512,
    ),
}

# (name, torch.compile mode, precision of peers/training.py). What was tried and lost is in bench/README.md.
VARIANTS = (
    ("eager", None, "float32"),
    ("compile", "default", "float32"),
    ("eager", None, "autocast"),
    ("compile", "default", "autocast"),
    ("compile max-autotune", "max-autotune-no-cudagraphs", "autocast"),
)
# glibc then keeps large blocks instead of mapping them anew (PyTorch gains 12% on a, 2-3% on b), in huge pages (2% on
# b, 6% on c). Our side does the same for itself (kernels/cpu/blocks.cc).
PEER_ENV = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
PEER_NAMES = {"llama": "transformers", "gpt2": "torch gpt"}


def model_of(family: str, case: Case) -> dict[str, Any]:
    """Our configuration of the case, as both sides read it."""
    shape: dict[str, Any] = {**case.shape, "max_seq_len": case.length, "norm_eps": 1e-5}
    if family == "llama":
        head_dim = shape["dim"] // shape["n_heads"]
        return shape | {"rope_theta": 500_000.0, "tie_embeddings": False, "head_dim": head_dim}
    del shape["n_kv_heads"]
    return shape | {"hidden_dim": 4 * shape["dim"], "bias": False}


def sides_of(family: str, case: Case) -> list[Side]:
    """Ours in both precisions, and PyTorch's variants."""
    model = model_of(family, case)
    tokens = np.random.default_rng(SEED).integers(0, model["vocab_size"], 1 << 18, dtype=np.uint16)
    common: dict[str, Any] = {
        "batch": {"tokens": tokens, "rows": case.rows, "length": case.length},
        "optimizer": OPTIMIZER,
        "seed": SEED,
    }
    made = [
        Side(
            "min_llm",
            True,
            dtype,
            {
                **common,
                "model": {"family": family, **model},
                "runtime": {"dtype": dtype},
                "micro_batches": case.ours_micro,
            },
        )
        for dtype in ("float32", "bfloat16")
    ]
    for name, mode, precision in VARIANTS:
        request = {
            **common,
            "family": family,
            "config": model,
            "compiled": mode,
            "precision": precision,
            "micro_batches": case.peer_micro,
            "threads": results.cores(),
        }
        imports = {"family": family, "compiled": mode is not None}
        dtype = "float32" if precision == "float32" else "bfloat16"
        made.append(Side(f"{PEER_NAMES[family]} {name}", False, dtype, request, imports, PEER_ENV))
    return made


def peaks() -> dict[str, tuple[float, str]]:
    """The highest measured FLOP/s of a matrix product for each dtype, and who reached it."""
    found: dict[str, list[tuple[float, str]]] = {"float32": [], "bfloat16": []}
    with (
        Child([sys.executable, "-m", "bench.ours"], name="min_llm", cwd=client.ROOT) as ours,
        client.start() as peer,
    ):
        answers = {"jax": ours.call("measured"), "torch": peer.call("measured", threads=results.cores())}
    for who, answer in answers.items():
        for dtype, values in found.items():
            values.append((answer[f"flops_{dtype}"], who))
    return {dtype: max(values) for dtype, values in found.items()}


def rows_of(
    label: str, case: Case, records: list[Record], top: dict[str, tuple[float, str]]
) -> list[results.Row]:
    """All rows of one race."""
    ours = {r.side.dtype: r for r in records if r.side.ours}
    peers = [r for r in records if not r.side.ours]
    tokens = case.rows * case.length
    facts = ours["float32"].started
    about = {"about": case.about, "parameters": facts["parameters"]}
    made = []
    for peer in peers:
        made += compared(label, ours[peer.side.dtype], peer, tokens, peer.side.dtype, "equal", about)
    fastest, rival = min(ours.values(), key=lambda r: r.step), min(peers, key=lambda r: r.step)
    both = f"{fastest.side.dtype}/{rival.side.dtype}"
    best = compared(label, fastest, rival, tokens, both, "best", about)
    made += [{**row, "id": f"train/{label}/{row['metric']}/best"} for row in best]
    for record in [*ours.values(), rival]:
        peak, who = top[record.side.dtype]
        share = tokens / record.step * facts["flops_per_token"] / peak
        note = {"formula": facts["formula"], "flops_per_token": facts["flops_per_token"], "measured_by": who}
        value = (
            {"ours": share}
            if record.side.ours
            else {"ours": None, "peer_name": record.side.name, "peer": share}
        )
        made.append(
            results.row(
                label, "mfu", "share of measured peak", record.side.dtype, **value,
                runs=len(record.step_seconds), seed=SEED, peak=peak, **note, **about,
            )
        )  # fmt: skip
    return made


def compared(
    label: str, ours: Record, peer: Record, tokens: int, dtype: str, precision: str, about: dict[str, Any]
) -> list[results.Row]:
    """Speed, peak memory above the imports and compilation time of ours beside one peer."""
    rounds = len(ours.step_seconds)
    faster, spread = ratio(ours, peer)
    shared: dict[str, Any] = {
        "peer_name": peer.side.name, "seed": SEED, "precision": precision,
        "others_cores": max(*ours.others, *peer.others), **about,
    }  # fmt: skip
    made = [
        results.row(
            label, "tokens_per_second", "tokens/s", dtype, tokens / ours.step, peer=tokens / peer.step,
            ratio=faster, runs=rounds, spread=spread, step_seconds=[ours.step, peer.step], **shared,
        ),
        results.row(
            label, "peak_memory", "MiB above imports", dtype, ours.memory / 2**20, peer=peer.memory / 2**20,
            better="lower", **shared,
        ),
    ]  # fmt: skip
    if "compile" in peer.side.name or precision == "best":
        made.append(
            results.row(
                label, "compile_seconds", "s", dtype, ours.compile_seconds, peer=peer.compile_seconds,
                better="lower", **shared,
            )
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default="a,b,c", help="which of a, b, c")
    parser.add_argument("--families", default="llama,gpt2", help="which of llama, gpt2")
    parser.add_argument("--pairs", type=int, default=12, help="rounds, each a pair of every two sides")
    parser.add_argument("--quick", action="store_true", help="3 rounds of short blocks")
    parser.add_argument("--dry", action="store_true", help="print the rows instead of writing them")
    options = parser.parse_args()
    rounds, seconds = (3, 0.5) if options.quick else (options.pairs, 1.5)
    if client.interpreter() is None:
        parser.error(client.MISSING)
    unknown = sorted(set(options.configs.split(",")) - CASES.keys())
    unknown += sorted(set(options.families.split(",")) - PEER_NAMES.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; configs are a, b, c and families llama, gpt2")
    with machine.exclusive(say):
        with client.start() as child:
            versions = {f"peer_{name}": number for name, number in child.call("versions").items()}
        top = peaks()
        for family in options.families.split(","):
            for name in options.configs.split(","):
                label = name if family == "llama" else f"{name} {family}"
                say(f"{label}: {CASES[name].about}")
                rows = rows_of(label, CASES[name], race(sides_of(family, CASES[name]), rounds, seconds), top)
                if options.dry:
                    print(*rows, sep="\n")
                else:
                    say(f"wrote {results.write('train', rows, versions=versions)}")


if __name__ == "__main__":
    main()
