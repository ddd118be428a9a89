"""Rows of bench/results/<bench>.<machine>.json: what a row holds, and the one function that writes them.

A row is one case and metric (design.md, "Results files"). Benchmarks build rows with `row`, then call
`write`, which adds machine, versions, commit, command and date, and replaces rows of the same id in the file.
"""

import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FIELDS = (
    "id", "bench", "case", "metric", "unit", "dtype", "ours", "peer_name", "peer", "ratio", "runs", "spread",
    "machine", "versions", "commit", "command", "date", "seed",
)  # fmt: skip
Row = dict[str, Any]


def row(
    case: str,
    metric: str,
    unit: str,
    dtype: str,
    ours: float | None,
    *,
    peer_name: str | None = None,
    peer: float | None = None,
    better: str = "higher",
    ratio: float | None = None,
    runs: int = 1,
    spread: Sequence[float] | None = None,
    seed: int | Sequence[int] | None = None,
    **extra: Any,
) -> Row:
    """A row before `write` completes it.

    `dtype` names ours, or "ours/peer" where they differ. `ratio` above 1 means ours is better: computed from
    the two values and `better` ("higher" or "lower") unless a median of paired ratios is given. `spread` is
    [low, high] of the row's ratio (with a peer) or value (without) over `runs` runs. `seed` is one number or
    several (then written as "seeds"). `extra` fields are kept.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    if ratio is None and ours is not None and peer is not None:
        ratio = ours / peer if better == "higher" else peer / ours
    made: Row = {
        "case": case, "metric": metric, "unit": unit, "dtype": dtype, "ours": ours, "peer_name": peer_name,
        "peer": peer, "ratio": ratio, "runs": runs,
        "spread": None if spread is None else list(spread), "seed": None,
    }  # fmt: skip
    if seed is not None:
        made["seed" if isinstance(seed, int) else "seeds"] = seed if isinstance(seed, int) else list(seed)
    return {**made, **extra}


def machine_name(accelerator: str | None = None) -> str:
    """A short name: of the accelerator where one is given ("NVIDIA H200": nvidia-h200), else from the processor and the
    cores this process may use, for example xeon-amx-2c."""
    if accelerator:
        return re.sub(r"[^\w]+", "-", accelerator).strip("-").lower()
    model, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        for key, value in re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, flags=re.MULTILINE):
            model, flags = (value, flags) if key == "model name" else (model, value)
    brands = ("xeon", "epyc", "ryzen", "threadripper", "core", "apple", "graviton", "neoverse")
    brand = next((name for name in brands if name in model.lower()), platform.machine().lower())
    features = (("amx_bf16", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "neon"))
    feature = [short for flag, short in features if flag in flags.split()][:1]
    return "-".join([brand, *feature, f"{cores()}c"])


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_versions() -> dict[str, str]:
    """Python and the installed libraries that decide our side's speed."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "optax"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit() -> str:
    """The commit of the working tree, with "+changes" when tracked files differ from it.

    $MIN_LLM_COMMIT names it where the tree is a copy of a commit that git knows nothing of (bench/gpu.py on a card)."""
    if given := os.environ.get("MIN_LLM_COMMIT"):
        return given

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + (
        "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def command() -> str:
    """The command line that started this process, as a person would type it."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", main.name.removesuffix(".__main__")] if main else [sys.argv[0]]
    return shlex.join(["python", *script, *sys.argv[1:]])


def path(bench: str, machine: str | None = None, into: Path | None = None) -> Path:
    return (into or RESULTS) / f"{bench}.{machine or machine_name()}.json"


def read(bench: str, machine: str | None = None, into: Path | None = None) -> list[Row]:
    """The rows written so far, or none."""
    file = path(bench, machine, into)
    return json.loads(file.read_text()) if file.exists() else []


def identity(bench: str, made: Row) -> str:
    """bench/case/metric/dtype[/peer], spaces as dashes: stable over runs, so documents can name a row."""
    parts = [bench, made["case"], made["metric"], made["dtype"], made["peer_name"]]
    return re.sub(r"[^\w.+/-]+", "-", "/".join(str(p).replace("/", "-") for p in parts if p)).lower()


def write(
    bench: str,
    rows: Sequence[Row],
    *,
    versions: Mapping[str, str] | None = None,
    machine: str | None = None,
    into: Path | None = None,
) -> Path:
    """Complete `rows` and put them in the bench's file of this machine; atomic. Rows of other ids stay.

    `versions` adds the peers' libraries; `machine` overrides the name (a GPU benchmark names its card); `into`
    the folder.
    """
    machine = machine or machine_name()
    common: Row = {
        "bench": bench,
        "machine": machine,
        "versions": {**own_versions(), **(versions or {})},
        "commit": commit(),
        "command": command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    done = {old["id"]: old for old in read(bench, machine, into)}
    for made in rows:
        full = {"id": identity(bench, made), **common, **made}
        missing = [name for name in FIELDS if name not in full]
        if missing:
            raise ValueError(
                f"a row of {bench} lacks {', '.join(missing)}; build rows with bench.results.row"
            )
        done[full["id"]] = {name: full[name] for name in (*FIELDS, *(k for k in full if k not in FIELDS))}
    file = path(bench, machine, into)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(list(done.values()), indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, file)
    return file


def median_and_spread(values: Sequence[float]) -> tuple[float, list[float]]:
    """Median, and [lower quartile, upper quartile]; with fewer than four values [min, max]."""
    if len(values) < 4:
        return statistics.median(values), [min(values), max(values)]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, [low, high]
