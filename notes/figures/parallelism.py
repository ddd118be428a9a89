"""Numbers and figures of notes/parallelism.md.  Run:  python -m notes.figures.parallelism

Writes parallelism-*.svg beside this file and the tables between the markers of the chapter. Schedules are drawn by
pipelines.py, who holds what by placements.py; nothing is trained or timed.
"""

from __future__ import annotations

from min_llm import models
from min_llm.models.llama import layer_spec
from min_llm.parallel.mesh import MeshConfig
from min_llm.parallel.schedules import bubble, in_flight, layers_of_stages
from min_llm.spec import leaves
from notes.figures import drawing, pipelines, placements
from notes.figures.drawing import FOLDER, share, size
from notes.figures.pipelines import drawn, held, swept

CHAPTER = FOLDER.parent / "parallelism.md"


BF16, F32 = 2, 4  # bytes
STATE = 4 * F32  # bytes of a parameter in training: itself, its gradient, and Adam's m and v
BIG = models.preset("llama3-405b")
# the paper's table 4: the main training, and the one with long sequences; here its data parallelism is all fsdp
SHORT, LONG = MeshConfig(fsdp=128, pp=16, tp=8), MeshConfig(fsdp=8, pp=16, cp=16, tp=8)
SHORT_PLACES, LONG_PLACES = 8192, 131_072


# Numbers ------------------------------------------------------------------------------------------------------


def matrices(cfg):
    """Numbers in the matrices of a layer."""
    return sum(p.size for _, p in leaves(layer_spec(cfg)) if p.role == "matrix")


def travel(cfg, mesh, rows, places, kept=False):
    """kind -> (forward, backward): bytes that a device receives for one layer and one micro-batch of bf16.

    rows: of a micro-batch, on each of the parts into which the mesh divides the batch. kept: gathered parameters are
    kept for the backward pass. pp: for one cut between two stages. copies: gradients of parameters that several devices
    have, summed.
    """
    size = matrices(cfg) / mesh.tp
    tokens = rows * places / mesh.cp  # of a group of tp
    stream = BF16 * tokens * cfg.dim
    keys_and_values = BF16 * 2 * rows * places * cfg.n_kv_heads * cfg.head_dim / mesh.tp
    fsdp, tp, cp, copies = ((n - 1) / n for n in (mesh.fsdp, mesh.tp, mesh.cp, mesh.dp * mesh.cp))
    again = 0 if kept else BF16
    return {
        "tp": (tp * 4 * stream, tp * 4 * stream),
        "cp": (cp * keys_and_values, cp * keys_and_values),
        "pp": (stream / mesh.tp, stream / mesh.tp) if mesh.pp > 1 else (0, 0),
        "fsdp": (fsdp * BF16 * size, fsdp * (again + F32) * size),
        "copies": (0, copies * 2 * F32 * size / mesh.fsdp),
    }


def facts():
    """Every number in the chapter's sentences, as it is written there."""
    all_forwards, in_turn, depth_first, llama = drawn().values()
    sweep = swept()
    first, *_, last = in_flight(in_turn)
    chunks = layers_of_stages(126, pp=16, virtual=8)
    state = STATE * sum(p.size for _, p in leaves(models.spec(BIG)))
    pairs = {balanced: placements.pairs(4, balanced) for balanced in (False, True)}
    steps = {balanced: placements.pairs_by_step(4, balanced) for balanced in (False, True)}
    waits = {balanced: sum(map(max, steps[balanced])) for balanced in steps}
    (even,) = set(pairs[True])
    short, long = (travel(BIG, mesh, 1, n) for mesh, n in ((SHORT, SHORT_PLACES), (LONG, LONG_PLACES)))
    batch = SHORT.fsdp * 16 * SHORT_PLACES
    return {
        "training state of 405B": size(state),
        "training state by all devices": size(state / SHORT.size),
        "devices": f"{SHORT.tp} · {SHORT.pp} · {SHORT.fsdp} = {SHORT.size:,}",
        "batch": f"{SHORT.fsdp} · 16 · {SHORT_PLACES:,}",
        "tokens": f"{batch / 1e6:.1f} million",
        "long context": f"{LONG_PLACES:,}",
        "a gathered layer": size(BF16 * matrices(BIG) / SHORT.tp),
        "its gathering": size(short["fsdp"][0]),
        "tp": size(short["tp"][0]),
        "cp": size(long["cp"][0]),
        "pp": size(short["pp"][0]),
        "heads of 405B": f"{BIG.n_heads} query heads and {BIG.n_kv_heads} for keys",
        "pairs in order": ", ".join(map(str, pairs[False])),
        "pairs balanced": f"{even} for everybody",
        "ring in order": f"{waits[False]} pairs",
        "ring balanced": f"{waits[True]} pairs",
        "bubble of GPipe": share(bubble(all_forwards)),
        "bubble of interleaved": share(bubble(depth_first)),
        "1F1B holds": f"{first} on the first rank and {last} on the last",
        "interleaved holds": f"{held(depth_first)} micro-batches",
        "figure 6 holds": f"{held(llama)} micro-batches",
        "figure 6 bubble": share(bubble(llama)),
        "free sends": share(bubble(sweep[16, 2])),
        "half a forward a send, N = 4": share(bubble(sweep[4, 2], send=0.5)),
        "half a forward a send, N = 8": share(bubble(sweep[8, 2], send=0.5)),
        "a lead of one": share(bubble(sweep[4, 1], send=0.5)),
        "405B, 16 ranks": f"{len(chunks)} - {sum(not len(stage) for stage in chunks)}",
        "405B, first rank": f"{len(layers_of_stages(126, pp=16)[0])} layers on the first and the last rank",
    }


def travel_table():
    what = {
        "tp": "activations, 4 times each way",
        "cp": "keys and values",
        "pp": "activations, at a cut",
        "fsdp": "parameters; back also gradients",
        "copies": "gradients over dp and cp",
    }
    short, long = (travel(BIG, mesh, 1, n) for mesh, n in ((SHORT, SHORT_PLACES), (LONG, LONG_PLACES)))
    lines = ["| axis | what travels | forward | backward | long: forward | long: backward |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for axis, words in what.items():
        cells = " | ".join(size(n) if n else "–" for n in (*short[axis], *long[axis]))
        lines.append(f"| {axis} | {words} | {cells} |")
    return "\n".join(lines)


TABLES = {
    "travel": travel_table,
    "schedules": pipelines.schedules_table,
    "sends": pipelines.sends_table,
}
FIGURES = placements.FIGURES | {"schedules": pipelines.draw_schedules}


def plotted():
    """What each figure shows, as plain data; it is stored in the SVG so that a test can see if it is stale."""
    return placements.plotted() | {"schedules": pipelines.plotted()}


def path(name):
    return FOLDER / f"parallelism-{name}.svg"


def main():
    shown = plotted()
    for name, draw in FIGURES.items():
        drawing.save(draw(), path(name), shown[name])
    drawing.write_tables(CHAPTER, TABLES)


if __name__ == "__main__":
    main()
