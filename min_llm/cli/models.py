"""`min-llm info|arithmetic`: what a model holds and costs, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.config import UserError

if TYPE_CHECKING:
    from min_llm.models import ModelConfig
    from min_llm.plan.arithmetic import Floor
    from min_llm.train.config import RunConfig

DEFAULT_VOCAB = 32_000

Model = Annotated[
    str, typer.Argument(help="preset, run folder, or the path of a config.yaml", show_default=False)
]
Vocab = Annotated[
    int,
    typer.Option(
        help=f"where the model leaves it to the tokenizer; 0: bpe:SIZE says it, else {DEFAULT_VOCAB}"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Dtype = Annotated[str, typer.Option(help="how weights are stored: float32, bfloat16, float8, int8, int4")]
KvDtype = Annotated[str, typer.Option(help="how keys and values are stored")]
OnHardware = Annotated[str, typer.Option("--hardware", help="name, or measured: this machine")]


def info(
    model: Model,
    vocab_size: Vocab = 0,
    seq_len: Annotated[int, typer.Option(help="tokens a sequence, for FLOPs; 0: the model's longest")] = 0,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs per token, key-value bytes per token and memory of MODEL."""
    from min_llm.plan.summary import summary

    cfg, note = resolve(model, vocab_size)
    facts = {"model": model, "note": note} | summary(cfg, seq_len or cfg.max_seq_len)
    if as_json:
        return print_json(facts)
    sparse = facts["active_parameters"] < facts["parameters"]
    active = f", of which a token uses {facts['active_parameters']:,}" if sparse else ""
    say(f"{model}: {facts['parameters']:,} parameters{active} ({cfg.family})", note)
    show(
        ("parameter", "shape", "role", "count", "share"),
        [
            (p["name"], " x ".join(map(str, p["shape"])), p["role"], f"{p['count']:,}", f"{p['share']:.1%}")
            for p in facts["components"]
        ],
        right=(3, 4),
    )
    show(("role", "count", "share"), [
        (role, f"{n:,}", f"{n / facts['parameters']:.1%}") for role, n in facts["roles"].items()
    ], right=(1, 2))  # fmt: skip
    flops = facts["flops_per_token"]
    formula = f"{flops['formula']} with N = {flops['n']:,}, S = {flops['seq_len']:,}"
    show(("FLOPs per token", "", ""), [
        ("training", quantity(flops["training"]), formula),
        ("training, causal", quantity(flops["training_causal"]), "half the attention"),
        ("forward", quantity(flops["forward"]), "a third of training"),
    ], right=(1,))  # fmt: skip
    show(("dtype", "weights", "KV cache a token", f"of {facts['max_seq_len']:,} tokens"), [
        (dtype, size(row["weights"]), size(row["kv_per_token"]), size(row["kv_per_sequence"]))
        for dtype, row in facts["bytes"].items()
    ], right=(1, 2, 3))  # fmt: skip
    state = facts["training_state_bytes"]
    say(f"Training state, float32 with AdamW and without activations: {size(sum(state.values()))}")


def arithmetic(
    model: Model,
    hardware: OnHardware = "h100",
    batch: Annotated[int, typer.Option(help="sequences at once; 0: a table from 1 to 256")] = 0,
    context: Annotated[
        int, typer.Option(help="tokens in each sequence; 0: the model's longest, at most 8192")
    ] = 0,
    dtype: Dtype = "bfloat16",
    kv_dtype: KvDtype = "bfloat16",
    reserve: Annotated[
        float, typer.Option(help="share of the memory kept for all but weights and cache")
    ] = 0.1,
    vocab_size: Vocab = 0,
    as_json: Json = False,
) -> None:
    """Inference arithmetic of MODEL: latency floors, what bounds them, and how many sequences fit."""
    import dataclasses

    from min_llm.models import spec
    from min_llm.plan import memory
    from min_llm.plan.arithmetic import crossover, decode, prefill, serving_capacity
    from min_llm.plan.hardware import named
    from min_llm.spec import count

    cfg, note = resolve(model, vocab_size)
    on = named(hardware)
    length = context or min(cfg.max_seq_len, 8192)
    sizes = [batch] if batch else [2**i for i in range(9)]
    decoding = [decode(cfg, on, b, length, dtype, kv_dtype) for b in sizes]
    filling = prefill(cfg, on, 1, length, dtype, kv_dtype)
    room = serving_capacity(cfg, on, length, dtype, kv_dtype, reserve) if on.memory else None
    facts: dict[str, Any] = {
        "model": model,
        "note": note,
        "hardware": dataclasses.asdict(on),
        "dtype": dtype,
        "kv_dtype": kv_dtype,
        "context": length,
        "weight_bytes": memory.bytes_of(count(spec(cfg)), dtype),
        "kv_bytes_per_token": memory.kv_bytes_per_token(cfg, kv_dtype),
        "crossover_batch": crossover(on, dtype),
        "decode": [floor_facts(f) for f in decoding],
        "prefill": floor_facts(filling),
        "capacity": None if room is None else dataclasses.asdict(room) | {"reserve": reserve},
    }
    if as_json:
        return print_json(facts)
    say(
        f"{model} in {dtype} on {on.name}: {quantity(on.peak(dtype))}FLOP/s, {quantity(on.bandwidth)}B/s, "
        f"{size(on.memory) if on.memory else 'unknown memory'}",
        note,
    )
    say(f"Weights {size(facts['weight_bytes'])}; cache {size(facts['kv_bytes_per_token'])} a token, "
        f"{size(facts['kv_bytes_per_token'] * length)} a sequence of {length:,}.")  # fmt: skip
    if room is not None and not room.cache_bytes:
        say(f"The weights do not fit: nothing is left of the memory with {reserve:.0%} of it reserved.")
    elif room is not None:
        say(f"The memory left holds {room.tokens:,} tokens ({size(room.cache_bytes)}): {room.paged:,} sequences of "
            f"{length:,} in blocks of 16, {room.reserved:,} if each reserves {cfg.max_seq_len:,}.")  # fmt: skip
    say(
        f"Decoding is bound by compute from a batch of {facts['crossover_batch']:.0f} on, were the cache free."
    )
    say(f"Prefill of one sequence: {duration(filling.seconds)} at least ({filling.bound}-bound).")
    header = ("batch", "memory", "compute", "step at least", "bound", "tokens/s", "a sequence", "fits")
    rows = []
    for f in decoding:
        times = (duration(f.memory_seconds), duration(f.compute_seconds), duration(f.seconds))
        fits = "?" if room is None else "yes" if f.batch <= room.paged else "no"
        speed = (f"{f.tokens_per_second:,.0f}", f"{1 / f.seconds:,.1f}")
        rows.append((str(f.batch), *times, f.bound, *speed, fits))
    show(header, rows, right=(0, 1, 2, 3, 5, 6))


def resolve(model: str, vocab_size: int) -> tuple[ModelConfig, str]:
    """The model of a preset, a run folder or a configuration file, and what was assumed about it."""
    from min_llm.models import preset

    path = Path(model)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        run, note = load_run_config([str(path / "config.yaml" if path.is_dir() else path)], vocab_size)
        return run.model, note
    return with_vocabulary(preset(model), vocab_size)


def load_run_config(settings: list[str], vocab_size: int) -> tuple[RunConfig, str]:
    """A run's configuration with a vocabulary size, and what was assumed about it."""
    import dataclasses

    from min_llm import config as config_lib
    from min_llm.train.config import RunConfig

    run = config_lib.from_words(RunConfig, settings)
    kind, _, learned = run.data.tokenizer.partition(":")
    if kind == "bpe" and learned.isdigit() and not vocab_size and not run.model.vocab_size:
        vocab_size = int(learned)
    cfg, note = with_vocabulary(run.model, vocab_size)
    return dataclasses.replace(run, model=cfg), note


def with_vocabulary(cfg: ModelConfig, vocab_size: int) -> tuple[ModelConfig, str]:
    import dataclasses

    if cfg.vocab_size and vocab_size in (0, cfg.vocab_size):
        return cfg, ""
    chosen = vocab_size or DEFAULT_VOCAB
    note = f"with a vocabulary of {chosen:,}"
    if not vocab_size:
        note += ", assumed because the tokenizer decides it (--vocab-size)"
    return dataclasses.replace(cfg, vocab_size=chosen), note


def floor_facts(floor: Floor) -> dict[str, Any]:
    return vars(floor) | {
        "seconds": floor.seconds,
        "bound": floor.bound,
        "tokens_per_second": floor.tokens_per_second,
    }


def print_json(facts: Any) -> None:
    import json

    print(json.dumps(facts, indent=1))


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """ "128,256" -> (128, 256)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{option} is {text!r}; give whole numbers with commas between them, as 128,256.")
    return tuple(map(int, parts))


def say(text: str, note: str = "") -> None:
    from rich.console import Console

    Console(highlight=False).print(f"{text}, {note}" if note else text, markup=False, soft_wrap=True)


def show(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """A table on standard output, blank line first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide = (
        Console(width=1000).measure(table).maximum
    )  # a line that wraps is read more easily than a number cut short
    console = Console(highlight=False, width=max(Console().width, wide))
    console.print()
    console.print(table)


def quantity(value: float) -> str:
    """1.234e13 -> "12.3 T" (units of 1000)."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} Z"


def size(count: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} TiB"


def duration(seconds: float) -> str:
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds / 3600:,.3g} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.3g} days"
