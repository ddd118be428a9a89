"""`min-llm plan`: memory, time and traffic of a training run before it runs, and meshes for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.cli.models import (
    Json,
    OnHardware,
    Vocab,
    duration,
    load_run_config,
    print_json,
    quantity,
    say,
    show,
    size,
)

if TYPE_CHECKING:
    from min_llm.plan.communication import Transfer
    from min_llm.plan.hardware import Hardware
    from min_llm.plan.job import Job
    from min_llm.plan.memory import TrainingMemory
    from min_llm.plan.step import Step
    from min_llm.train.ahead import Compiled
    from min_llm.train.config import RunConfig

KEPT_FREE = 0.1  # of the memory, when meshes are proposed


def plan(
    settings: Annotated[list[str], typer.Argument(metavar="CONFIG.yaml [key=value ...]", show_default=False)],
    hardware: OnHardware = "measured",
    devices: Annotated[
        int, typer.Option(help="propose meshes of so many devices; 0: plan the configured one")
    ] = 0,
    proposals: Annotated[int, typer.Option(help="how many meshes to propose")] = 10,
    mfu: Annotated[
        float, typer.Option(help="share of the peak that training is assumed to reach; 0: predicted")
    ] = 0.0,
    compile_for: Annotated[
        str, typer.Option("--compile", help="also let XLA compile the step for devices like h100x8, not here")
    ] = "",
    schedule: Annotated[
        bool, typer.Option("--schedule", help="plot rate, decay, batch and row length over tokens instead")
    ] = False,
    out: Annotated[Path, typer.Option(help="picture that --schedule writes (.png, .svg, .pdf)")] = Path(
        "schedule.png"
    ),
    vocab_size: Vocab = 0,
    as_json: Json = False,
) -> None:
    """Memory, traffic, FLOPs and time of the training run that CONFIG describes, on one device of its mesh."""
    from min_llm.config import UserError
    from min_llm.parallel import absent
    from min_llm.plan.hardware import named
    from min_llm.train.config import check

    if not 0 <= mfu <= 1:
        raise UserError(f"--mfu is {mfu}; it is a share of the peak, above 0 and at most 1.")
    run, note = load_run_config(settings, vocab_size)
    if schedule:
        return plot_schedule(check(run), out, as_json)
    chip, count = absent.parse(compile_for) if compile_for else ("", 0)
    if chip and (hardware not in ("measured", chip) or devices):
        raise UserError(
            f"--compile {compile_for} plans for {chip}; it goes with no other --hardware, nor --devices."
        )
    on = named(chip or hardware)
    with on.planned():
        job = job_of(check(run), on)
        if devices:
            return propose(job, on, devices, proposals, note, as_json)
        compiled = compile_step(job, run, chip, count) if chip else None
        if as_json:
            facts = facts_of(job, on, phases(job, run), mfu) | {"note": note}
            return print_json(facts | ({"compiled": compiled_facts(compiled, job)} if compiled else {}))
        print_plan(job, on, phases(job, run), mfu, note)
        if compiled:
            print_compiled(compiled, job)


def plot_schedule(run: RunConfig, out: Path, as_json: bool) -> None:
    """The run's schedule as a sketch and a figure, or as columns of numbers."""
    from min_llm.cli.schedule import draw_figure, of_tokens, sketch
    from min_llm.config import UserError
    from min_llm.train.ramp import Ramp
    from min_llm.train.schedules import planned

    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out is {str(out)!r}; its name must end in .png, .svg or .pdf.")
    columns, ramp = planned(run.optim, run.train), Ramp.of(run.train)
    if as_json:
        return print_json({name: column.tolist() for name, column in columns.items()})
    end = run.train.steps
    say(f"{end:,} steps of {ramp.words()} tokens: {of_tokens(ramp.tokens(end))}")
    for span in ramp.spans[1:]:
        say(
            f"{span.batch_size} x {span.seq_len} from step {span.first_step:,} on, {of_tokens(span.first_token)}"
        )
    for line in sketch(columns):
        say(line)
    draw_figure(columns, run).savefig(out, dpi=130)
    say(str(out))


def job_of(run: RunConfig, on: Hardware) -> Job:
    """The training step of a configuration, run as it would be on that hardware."""
    from min_llm.nn.runtime import resolve
    from min_llm.parallel import mesh as meshes
    from min_llm.plan.job import Job, runtime_on

    t, cfg = run.train, run.model
    n_layers: int = cfg.n_layers  # type: ignore[attr-defined]
    runtime = resolve(run.runtime, n_layers) if on.here else runtime_on(on, run.runtime, n_layers)
    job = Job(cfg, t.batch_size, t.seq_len, run.parallel.choose(runtime), run.parallel.mesh, t.micro_batches,
              run.optim.name)  # fmt: skip
    meshes.check(job.mesh, cfg, job.spec, t.batch_size // t.micro_batches, t.seq_len)
    return job


def phases(job: Job, run: RunConfig) -> list[tuple[int, Job]]:
    """The steps of each phase of the ramp, and the job with its batches; the last is the job itself."""
    from min_llm.train.ramp import Ramp

    spans, last = Ramp.of(run.train).spans, run.train.steps
    ends = [min(s.first_step, last) for s in spans[1:]] + [last]
    return [
        (end - min(s.first_step, last), dataclasses.replace(job, rows=s.batch_size, seq_len=s.seq_len))
        for s, end in zip(spans, ends, strict=True)
    ]


def totals(parts: list[tuple[int, Job]], on: Hardware, mfu: float) -> dict[str, float]:
    """Tokens, FLOPs and seconds of all steps: at the peak, and at that MFU or as predicted."""
    from min_llm.plan import step
    from min_llm.plan.flops import flops_per_token, training_seconds

    found: dict[str, float] = dict.fromkeys(("tokens", "flops", "seconds_at_peak", "seconds"), 0)
    for steps, job in parts:
        predicted, flops = step.predict(job, on), flops_per_token(job.model, job.seq_len)
        tokens, peak = steps * job.tokens, predicted.peak * predicted.devices
        found["tokens"] += tokens
        found["flops"] += tokens * flops.training
        found["seconds_at_peak"] += training_seconds(tokens, flops, peak)
        found["seconds"] += training_seconds(tokens, flops, peak, mfu) if mfu else steps * predicted.seconds
    return found


def compile_step(job: Job, run: RunConfig, chip: str, count: int) -> Compiled:
    """What XLA says of the step on devices that are not here; nothing is run, so JAX itself stays on the CPU."""
    import jax

    from min_llm.reporting import reporter
    from min_llm.train.ahead import compile_for

    jax.config.update("jax_platforms", "cpu")
    reporter().info(f"Compiling the step for {count} x {chip} (a minute or more for a deep, unrolled model)")
    return compile_for(job, run, chip, count)


def facts_of(job: Job, on: Hardware, parts: list[tuple[int, Job]], mfu: float) -> dict[str, Any]:
    """Everything that is printed, as plain data; bytes and seconds."""
    from min_llm.plan import communication, mesh_memory, step
    from min_llm.plan.flops import flops_per_token

    need, predicted = mesh_memory.training(job), step.predict(job, on)
    flops = flops_per_token(job.model, job.seq_len)
    return {
        "hardware": dataclasses.asdict(on),
        "mesh": job.mesh.shape,
        "runtime": dataclasses.asdict(job.runtime),
        **totals(parts, on, mfu),
        "flops_per_token": dataclasses.asdict(flops),
        "bytes": dataclasses.asdict(need) | {"total": need.total},
        "transfers": [dataclasses.asdict(t) | {"sent": t.sent} for t in communication.transfers(job)],
        "step": step_facts(predicted),
        "mfu": mfu or predicted.mfu,
    }


def compiled_facts(compiled: Compiled, job: Job) -> dict[str, Any]:
    from min_llm.plan import communication, hlo

    counted = hlo.totals(compiled.collectives)
    expected = communication.totals(communication.transfers(job))
    traffic = [
        {
            "kind": kind,
            "axis": axis,
            "planned": expected.get((kind, axis), 0.0),
            "compiled": counted.get((kind, axis), 0.0),
        }
        for kind, axis in sorted(counted.keys() | expected.keys(), key=lambda key: key[::-1])
    ]
    names = ("device", "seconds", "state", "temporary", "total", "memory")
    return {name: getattr(compiled, name) for name in names} | {"traffic": traffic}


def step_facts(predicted: Step) -> dict[str, Any]:
    names = ("seconds", "bound", "mfu", "tokens_per_second")
    return dataclasses.asdict(predicted) | {name: getattr(predicted, name) for name in names}


def print_plan(job: Job, on: Hardware, parts: list[tuple[int, Job]], mfu: float, note: str) -> None:
    from min_llm.parallel.mesh import words
    from min_llm.plan import communication, mesh_memory, step
    from min_llm.plan.flops import flops_per_token

    need, predicted = mesh_memory.training(job), step.predict(job, on)
    flops, n = flops_per_token(job.model, job.seq_len), job.mesh.size
    work = totals(parts, on, mfu)
    sizes = ", then ".join(f"{steps:,} steps of {part.rows} x {part.seq_len}" for steps, part in parts)
    say(f"{sizes} tokens on {words(job.mesh)}: {work['tokens']:,} tokens, "
        f"{quantity(work['flops'])}FLOPs ({flops.formula}, N = {flops.n:,})", note)  # fmt: skip
    print_memory(need, on.among(n), job)
    print_traffic(communication.transfers(job))
    print_step(predicted, job, on)
    how = f"at an assumed MFU of {mfu:.0%} (--mfu)" if mfu else "as predicted"
    say(f"All steps: {duration(work['seconds'])} {how}; {duration(work['seconds_at_peak'])} at the "
        f"{job.runtime.dtype} peak of {quantity(predicted.peak * n)}FLOP/s of {n} x {on.name}.")  # fmt: skip


def print_memory(need: TrainingMemory, one: Hardware, job: Job) -> None:
    where = "" if job.mesh.size == 1 else " of each device"
    show((f"memory{where} at the peak of a step", ""), [
        *((f.name, size(getattr(need, f.name))) for f in dataclasses.fields(need)
          if f.name != "logits" and (getattr(need, f.name) or f.name != "gathered")),
        ("total", size(need.total)),
    ], right=(1,))  # fmt: skip
    if one.memory:
        verdict = "fits" if need.total <= one.memory else "does NOT fit"
        remat = f"{job.runtime.dtype}, {job.runtime.attention} attention, remat {job.runtime.remat}"
        say(f"It {verdict} the {size(one.memory)} of {one.name} ({remat}).")


def print_traffic(transfers: list[Transfer]) -> None:
    if transfers:
        show(("axis", "what travels in a step", "how", "each", "times", "sent by a device"), [
            (t.axis, t.what, t.kind, size(t.bytes), f"{t.times:,}", size(t.sent))
            for t in sorted(transfers, key=lambda t: (t.axis, -t.sent))
        ], right=(3, 4, 5))  # fmt: skip


def print_step(predicted: Step, job: Job, on: Hardware) -> None:
    from min_llm.plan.step import EFFICIENCY, WAITED_FOR

    terms = [
        ("compute", predicted.compute, f"{quantity(predicted.flops)}FLOPs at {EFFICIENCY:.0%} of the peak"),
        ("memory", predicted.memory, "passes over activations, loss and optimizer"),
        *(
            (axis, t, "waited for" if axis in WAITED_FOR else "beside the rest")
            for axis, t in predicted.axes.items()
        ),
    ]
    show(("a step on each device", "", ""), [
        *((name, duration(t), how) for name, t, how in terms),
        ("step", duration(predicted.seconds), f"{predicted.bound} is the largest term"),
    ], right=(1,))  # fmt: skip
    say(f"{predicted.tokens_per_second:,.0f} tokens/s; MFU {predicted.mfu:.1%} = tokens/s x ({predicted.formula}) / "
        f"({predicted.devices} x {quantity(predicted.peak)}FLOP/s)")  # fmt: skip
    if job.mesh.pp > 1:
        n, m, v = job.mesh.pp, job.parts, job.rounds
        say(f"Pipeline: a bubble of {job.bubble:.1%}, idle turns for turns of work, (n - 1) / (M v) with "
            f"n = {n} ranks, M = {m} parts, v = {v} rounds.")  # fmt: skip


def print_compiled(compiled: Compiled, job: Job) -> None:
    from min_llm.plan import mesh_memory

    need, facts = mesh_memory.training(job), compiled_facts(compiled, job)
    planned = (need.parameters + need.optimizer, need.total - need.parameters - need.optimizer, need.total)
    found = (compiled.state, compiled.temporary, compiled.total)
    show((f"compiled for {job.mesh.size} x {compiled.device}", "XLA", "planned", "planned / XLA"), [
        (name, size(xla), size(ours), f"{ours / xla:.2f}")
        for name, xla, ours in zip(("parameters and optimizer", "temporary", "total"), found, planned, strict=True)
    ], right=(1, 2, 3))  # fmt: skip
    if facts["traffic"]:
        show(("axis", "what its collectives move in a step", "XLA", "planned"), [
            (t["axis"], t["kind"], size(t["compiled"]), size(t["planned"])) for t in facts["traffic"]
        ], right=(2, 3))  # fmt: skip
    verdict = "fits" if compiled.total <= compiled.memory else "does NOT fit"
    say(f"It {verdict} the {size(compiled.memory)} of {compiled.device}; XLA took {compiled.seconds:.0f} s.")


def propose(job: Job, on: Hardware, devices: int, limit: int, note: str, as_json: bool) -> None:
    """Meshes of so many devices, fastest first."""
    from min_llm.parallel.mesh import words
    from min_llm.plan.search import propose as search

    found, too_large = search(job, on, devices, KEPT_FREE)
    if as_json:
        return print_json({
            "note": note, "hardware": dataclasses.asdict(on), "devices": devices, "too_large": too_large,
            "proposals": [
                {"mesh": p.job.mesh.shape, "micro_batches": p.job.micro_batches, "bytes": p.memory.total,
                 "pipeline_parts": p.job.runtime.pipeline_parts} | step_facts(p.step) for p in found[:limit]
            ],
        })  # fmt: skip
    say(f"{job.rows} x {job.seq_len} tokens a step on {devices} x {on.name} ({job.runtime.dtype}, "
        f"{job.runtime.attention} attention, remat {job.runtime.remat}): {len(found)} meshes fit, {too_large} do not "
        f"({KEPT_FREE:.0%} of the memory kept free)", note)  # fmt: skip
    if not found:
        return say("Nothing fits. Try runtime.remat=full, more devices, or a batch that more devices divide.")
    show(("mesh", "micro-batches", "memory", "step", "tokens/s", "MFU", "bubble", "largest term"), [
        (words(p.job.mesh), str(p.job.micro_batches), size(p.memory.total), duration(p.step.seconds),
         f"{p.step.tokens_per_second:,.0f}", f"{p.step.mfu:.1%}", f"{p.step.bubble:.0%}" if p.job.mesh.pp > 1 else "",
         p.step.bound) for p in found[:limit]
    ], right=(1, 2, 3, 4, 5, 6))  # fmt: skip
