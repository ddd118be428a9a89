"""Numbers and figures of notes/parallelism.md.  Run:  python -m notes.figures.parallelism

Writes parallelism-schedules.svg beside this file and the tables between the markers of the chapter. All of it is
read from timelines of min_llm/parallel/schedules.py; nothing is trained or timed.
"""

from __future__ import annotations

import json
import pathlib
import re

from min_llm.parallel.schedules import (
    bubble,
    flexible,
    gpipe,
    in_flight,
    interleaved,
    layers_of_stages,
    one_f_one_b,
    timeline,
)

FOLDER = pathlib.Path(__file__).parent
CHAPTER = FOLDER.parent / "parallelism.md"
FORWARD, BACKWARD = 1, 2  # time of a micro-batch in all layers of a rank; a chunk takes 1 / V of it


# Numbers ------------------------------------------------------------------------------------------------------


def drawn():
    """title -> schedule: four ranks, eight micro-batches, and the case of the paper's figure 6."""
    return {
        "GPipe": gpipe(4, 8),
        "1F1B": one_f_one_b(4, 8),
        "interleaved 1F1B, N = 4": interleaved(4, 2, 8),
        "Llama 3, N = 5": flexible(4, 2, 10, n=5),
    }


def compared():
    """title -> schedule: those and breadth-first."""
    return drawn() | {"breadth-first, N = 10": flexible(4, 2, 10, n=10)}


def swept():
    """(N, lead) -> schedule: 16 micro-batches on four ranks of two chunks."""
    return {(n, lead): flexible(4, 2, 16, n, lead) for n, lead in ((4, 1), (4, 2), (6, 2), (8, 2), (16, 2))}


def clock(schedule):
    """The timeline in the time of a micro-batch in all layers of a rank."""
    return timeline(schedule, FORWARD / schedule.virtual, BACKWARD / schedule.virtual)


def share(x):
    """0.1875 -> "18.75 %"."""
    return f"{100 * x:.4g} %"


def held(schedule):
    """Micro-batches that the first rank holds the activations of, in all of its layers."""
    return f"{in_flight(schedule)[0] / schedule.virtual:g}"


def facts():
    """Every number in the chapter's sentences, as it is written there."""
    all_forwards, in_turn, depth_first, llama = drawn().values()
    sweep = swept()
    first, *_, last = in_flight(in_turn)
    chunks = layers_of_stages(126, pp=16, virtual=8)
    return {
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


# Tables -------------------------------------------------------------------------------------------------------


def schedules_table():
    lines = ["| schedule | V | M | bubble | activations by rank, chunks | first rank, micro-batches |"]
    lines.append("|---|---:|---:|---:|---|---:|")
    for title, schedule in compared().items():
        chunks = ", ".join(map(str, in_flight(schedule)))
        lines.append(
            f"| {title} | {schedule.virtual} | {schedule.micro_batches} | {share(bubble(schedule))} "
            f"| {chunks} | {held(schedule)} |"
        )
    return "\n".join(lines)


def sends_table():
    sends = (0, 0.25, 0.5, 1)
    lines = [
        "| N | lead | first rank, micro-batches | " + " | ".join(f"send {send:g}" for send in sends) + " |"
    ]
    lines.append("|---:|---:|---:|" + "---:|" * len(sends))
    for (n, lead), schedule in swept().items():
        cells = " | ".join(share(bubble(schedule, send=send)) for send in sends)
        lines.append(f"| {n} | {lead} | {held(schedule)} | {cells} |")
    return "\n".join(lines)


TABLES = {"schedules": schedules_table, "sends": sends_table}


def write_tables():
    text = CHAPTER.read_text()
    for name, table in TABLES.items():
        block = f"<!-- table {name} -->\n{table()}\n<!-- end -->"
        text, n = re.subn(
            f"<!-- table {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
        if n != 1:
            raise ValueError(f"{CHAPTER} has {n} blocks '<!-- table {name} -->'; it needs one")
    CHAPTER.write_text(text)


# Figures ------------------------------------------------------------------------------------------------------

INK, MUTED, IDLE = "#222222", "#777777", "#eeeeee"
COLOURS = {
    ("forward", 0): "#2f6db3",
    ("forward", 1): "#9cc3ea",
    ("backward", 0): "#d97706",
    ("backward", 1): "#f6c98f",
}


def plotted():
    """What the figure shows, as plain data; it is stored in the SVG so that a test can see if it is stale."""

    def words(slots):
        return " ".join(
            f"{slot.operation.kind[0]}{slot.operation.chunk}.{slot.operation.micro_batch}@{slot.start:g}-{slot.end:g}"
            for slot in slots
        )

    return {title: [words(slots) for slots in clock(schedule)] for title, schedule in drawn().items()}


def draw_schedules():
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.hashsalt": "min_llm",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.sans-serif": [
                "DejaVu Sans"
            ],  # one name: the SVG repeats the list in each of its many texts
            "font.size": 10,
        }
    )
    panels = {title: (schedule, clock(schedule)) for title, schedule in drawn().items()}
    end = max(slots[-1].end for _, rows in panels.values() for slots in rows)
    figure, axes = plt.subplots(len(panels), 1, figsize=(10, 7.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)
    for ax, (title, (schedule, rows)) in zip(axes, panels.items(), strict=True):
        total = max(slots[-1].end for slots in rows)
        for (kind, chunk), colour in COLOURS.items():
            mine = [
                (r, slot)
                for r, slots in enumerate(rows)
                for slot in slots
                if (slot.operation.kind, slot.operation.chunk) == (kind, chunk)
            ]
            for r, slot in mine:
                ax.text(
                    (slot.start + slot.end) / 2,
                    r,
                    slot.operation.micro_batch,
                    ha="center",
                    va="center_baseline",
                    fontsize=7,
                    color="white" if chunk == 0 else INK,
                )
            boxes(ax, [(slot.start, slot.end, r) for r, slot in mine], colour, 2)
        boxes(ax, [(0, total, r) for r in range(schedule.pp)], IDLE, 1)
        ax.set_xlim(0, end)
        ax.set_ylim(schedule.pp - 0.5, -0.5)
        ax.set_yticks(range(schedule.pp), [f"rank {r}" for r in range(schedule.pp)])
        ax.tick_params(length=0, labelcolor=MUTED, labelsize=9)
        ax.set_xticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(
            f"{title}:  {schedule.micro_batches} micro-batches, V = {schedule.virtual}, "
            f"bubble {share(bubble(schedule))}, first rank holds {held(schedule)}",
            fontsize=10,
            loc="left",
            color=INK,
        )
    save(figure)


def boxes(ax, spans, colour, zorder):
    """One path for all boxes of a colour, which keeps the file small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [
        Path([(a, r - 0.42), (b, r - 0.42), (b, r + 0.42), (a, r + 0.42), (a, r - 0.42)], closed=True)
        for a, b, r in spans
    ]
    if corners:
        path = Path.make_compound_path(*corners)
        ax.add_patch(PathPatch(path, facecolor=colour, edgecolor="white", linewidth=0.6, zorder=zorder))


def save(figure):
    """Deterministic: no date, no version, ids from a fixed salt."""
    metadata = {"Date": None, "Creator": None, "Description": json.dumps(plotted(), separators=(",", ":"))}
    figure.savefig(FOLDER / "parallelism-schedules.svg", metadata=metadata, facecolor="white")


def main():
    draw_schedules()
    write_tables()


if __name__ == "__main__":
    main()
