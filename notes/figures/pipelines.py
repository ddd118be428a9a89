"""Pipeline schedules of notes/parallelism.md: numbers, tables and figure (written by notes/figures/parallelism.py).

All of it is read from timelines of min_llm/parallel/schedules.py; nothing is trained or timed.
"""

from __future__ import annotations

from min_llm.parallel.schedules import (
    bubble,
    flexible,
    gpipe,
    in_flight,
    interleaved,
    one_f_one_b,
    timeline,
)
from notes.figures.drawing import (
    BLUE,
    IDLE,
    INK,
    MUTED,
    ORANGE,
    PALE_BLUE,
    PALE_ORANGE,
    boxes,
    new_figure,
    share,
)

FORWARD, BACKWARD = 1, 2  # time of a micro-batch in all layers of a rank; a chunk takes 1 / V of it


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


def held(schedule):
    """Micro-batches that the first rank holds the activations of, in all of its layers."""
    return f"{in_flight(schedule)[0] / schedule.virtual:g}"


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


# Figure -------------------------------------------------------------------------------------------------------

COLOURS = {
    ("forward", 0): BLUE,
    ("forward", 1): PALE_BLUE,
    ("backward", 0): ORANGE,
    ("backward", 1): PALE_ORANGE,
}


def plotted():
    """What the figure shows, as plain data."""

    def words(slots):
        return " ".join(
            f"{slot.operation.kind[0]}{slot.operation.chunk}.{slot.operation.micro_batch}@{slot.start:g}-{slot.end:g}"
            for slot in slots
        )

    return {title: [words(slots) for slots in clock(schedule)] for title, schedule in drawn().items()}


def draw_schedules():
    panels = {title: (schedule, clock(schedule)) for title, schedule in drawn().items()}
    end = max(slots[-1].end for _, rows in panels.values() for slots in rows)
    figure, axes = new_figure(10, 7.4, rows=len(panels))
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
            boxes(ax, [(slot.start, r - 0.42, slot.end, r + 0.42) for r, slot in mine], colour)
        boxes(ax, [(0, r - 0.42, total, r + 0.42) for r in range(schedule.pp)], IDLE, zorder=1)
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
    return figure
