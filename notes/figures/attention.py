"""Numbers and figures of notes/attention.md.  Run:  python -m notes.figures.attention

Writes attention-mask.svg, attention-memory.svg, attention-kv.svg and attention.json beside this file, and the
tables between the markers of the chapter. Nothing is trained or timed: masks come from the oracle, cache sizes
from the model presets, and memory from XLA, which plans its buffers from shapes alone when it compiles.
"""

from __future__ import annotations

import json

import numpy as np

from min_llm.reference.attention import build_mask
from min_llm.reference.batch import pack
from notes.figures import drawing
from notes.figures.drawing import (
    BLUE,
    FOLDER,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    RED,
    new_figure,
    size,
    write_tables,
)

CHAPTER = FOLDER.parent / "attention.md"
MEASURED = FOLDER / "attention.json"
MODELS = ("llama3-8b", "llama3-70b", "llama3-405b")
LENGTHS = (256, 512, 1024, 2048, 4096)
IMPLEMENTATIONS = ("reference", "xla", "blockwise")
BF16, F32 = 2, 4  # bytes
TRAINED, EXTENDED = 8192, 131_072  # context of Llama 3, main training and after (Herd 3.4)


# Numbers ------------------------------------------------------------------------------------------------------


def packed_row():
    """Documents of 6, 4 and 3 places and 3 places of padding."""
    return pack([[range(7), range(5), range(4)]], seq_len=16)


def masks():
    """title -> mask [16, 16] of the packed row."""
    row = packed_row()
    return {
        "causal, three documents, padding": build_mask(row.index, row.segment_ids)[0],
        "the same, window of 3": build_mask(row.index, row.segment_ids, window=3)[0],
    }


def preset(name):
    from min_llm import models

    return models.preset(name)


def kv_bytes(cfg, n_kv_heads=None, bytes_per_number=BF16):
    """Cache bytes of one token: k and v x layers x key/value heads x head width x bytes of a number."""
    heads = cfg.n_kv_heads if n_kv_heads is None else n_kv_heads
    return 2 * cfg.n_layers * heads * cfg.head_dim * bytes_per_number


def kv_rows():
    """(model, cfg, {MHA, GQA, MQA: bytes per token})."""
    rows = []
    for name in MODELS:
        cfg = preset(name)
        kinds = {"MHA": cfg.n_heads, "GQA": cfg.n_kv_heads, "MQA": 1}
        rows.append((name, cfg, {kind: kv_bytes(cfg, heads) for kind, heads in kinds.items()}))
    return rows


def score_bytes(cfg, length, bytes_per_number=F32):
    """One score matrix of one layer and one row: heads x length^2."""
    return cfg.n_heads * length**2 * bytes_per_number


def xla_bytes(implementation, length, cfg):
    """Temporary memory XLA plans for one layer's attention and its gradient: one row, f32, causal, on a CPU."""
    import jax
    import jax.numpy as jnp

    from min_llm.kernels import attention
    from min_llm.kernels.mask import Mask

    attend = attention.get(implementation)

    def value_and_gradient(q, k, v, d_out):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, Mask()), q, k, v)
        return out, back(d_out)

    query, key = (
        jax.ShapeDtypeStruct((1, length, heads, cfg.head_dim), jnp.float32)
        for heads in (cfg.n_heads, cfg.n_kv_heads)
    )
    compiled = jax.jit(value_and_gradient).lower(query, key, key, query).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def measure():
    import jax

    cfg = preset(MODELS[0])
    return {
        "command": "python -m notes.figures.attention",
        "model": MODELS[0],
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "temp_bytes": {name: [xla_bytes(name, n, cfg) for n in LENGTHS] for name in IMPLEMENTATIONS},
        "lengths": list(LENGTHS),
    }


def online_example():
    """The running (m, l, o) of one query over the blocks (0, 2) and (3), their values 10, 20 and 30."""
    m, total, out, rows = -np.inf, 0.0, 0.0, []
    for scores, values in (((0, 2), (10, 20)), ((3,), (30,))):
        new = max(m, *scores)
        weights = np.exp(np.array(scores) - new)
        total = total * np.exp(m - new) + weights.sum()
        out = out * np.exp(m - new) + weights @ np.array(values)
        m = new
        rows.append((m, total, out))
    return rows


def facts():
    """Every number in the chapter's sentences, as it is written there."""
    cfg, rows = preset("llama3-8b"), {name: kinds for name, _, kinds in kv_rows()}
    planned = json.loads(MEASURED.read_text())["temp_bytes"]
    (m1, l1, o1), (m2, l2, o2) = online_example()
    q_k_v_out = cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    crossing = next(
        n
        for i, n in enumerate(LENGTHS)
        if planned["blockwise"][i] < min(planned[x][i] for x in ("reference", "xla"))
    )
    return {
        "context of the main training": f"{TRAINED:,}",
        "context after extension": f"{EXTENDED:,}",
        "scores of one 8B layer, trained context": size(score_bytes(cfg, TRAINED)),
        "q, k, v and output of that layer": size(F32 * TRAINED * q_k_v_out),
        "scores of one 8B layer, extended context": size(score_bytes(cfg, EXTENDED)),
        "bytes per token, 8B": f"{rows['llama3-8b']['GQA']:,} bytes",
        "bytes per token, 70B": f"{rows['llama3-70b']['GQA']:,}",
        "bytes per token, 405B": f"{rows['llama3-405b']['GQA']:,}",
        "8B cache, trained context": size(TRAINED * rows["llama3-8b"]["GQA"]),
        "8B cache, extended context": size(EXTENDED * rows["llama3-8b"]["GQA"]),
        "8B weights in bf16": size(BF16 * parameters("llama3-8b")),
        "405B cache, extended context": size(EXTENDED * rows["llama3-405b"]["GQA"]),
        "405B cache, one k and v per query head": size(EXTENDED * rows["llama3-405b"]["MHA"]),
        "growth of reference": f"{planned['reference'][-1] / planned['reference'][-2]:.1f} times",
        "growth of blockwise": f"{planned['blockwise'][-1] / planned['blockwise'][-2]:.1f} times",
        "blockwise is smallest from": f"{crossing:,}",
        "first block": f"m = {m1}, l = {l1:.3f}, o = {o1:.3f}",
        "second block": f"m = {m2}, l = {l2:.3f}, o = {o2:.3f}",
        "average": f"o / l = {o2 / l2:.3f}",
    }


def parameters(name):
    from min_llm import models
    from min_llm.spec import leaves

    return sum(param.size for _, param in leaves(models.spec(preset(name))))


# Tables -------------------------------------------------------------------------------------------------------


def kv_table():
    lines = ["| model | layers | query heads | MHA | GQA, 8 heads | MQA | cache of 131,072 tokens, GQA |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, cfg, kinds in kv_rows():
        counts = " | ".join(f"{n:,}" for n in kinds.values())
        total = size(EXTENDED * kinds["GQA"])
        lines.append(f"| {name} | {cfg.n_layers} | {cfg.n_heads} | {counts} | {total} |")
    return "\n".join(lines)


def memory_table():
    measured, cfg = json.loads(MEASURED.read_text()), preset(MODELS[0])
    lines = ["| places | one score matrix | " + " | ".join(f"`{name}`" for name in IMPLEMENTATIONS) + " |"]
    lines.append("|---:|---:|" + "---:|" * len(IMPLEMENTATIONS))
    for i, length in enumerate(measured["lengths"]):
        cells = [size(score_bytes(cfg, length))]
        cells += [size(measured["temp_bytes"][name][i]) for name in IMPLEMENTATIONS]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"kv": kv_table, "memory": memory_table}


# Figures ------------------------------------------------------------------------------------------------------

DOCUMENTS = ["#c9c9c9", BLUE, ORANGE, GREEN]  # padding, then documents 1, 2, 3
SERIES = {"reference": RED, "xla": "#d99a06", "blockwise": BLUE}


def plotted():
    """What each figure shows, as plain data; it is stored in the SVG so that a test can see if it is stale."""
    return {
        "mask": {
            title: ["".join(".#"[int(c)] for c in row) for row in mask] for title, mask in masks().items()
        },
        "memory": {n: json.loads(MEASURED.read_text())[n] for n in ("model", "lengths", "temp_bytes")},
        "kv": {name: kinds for name, _, kinds in kv_rows()},
    }


def save(figure, name):
    drawing.save(figure, FOLDER / f"attention-{name}.svg", plotted()[name])


def draw_mask():
    from matplotlib.patches import Rectangle

    figure, axes = new_figure(8.2, 4.3, columns=2)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    segments = packed_row().segment_ids[0]
    for ax, (title, mask) in zip(axes, masks().items(), strict=True):
        for s, t in np.argwhere(mask):
            ax.add_patch(Rectangle((t - 0.5, s - 0.5), 1, 1, color=DOCUMENTS[segments[s]], linewidth=0))
        ax.set_aspect("equal")
        ax.set_xlim(-0.5, len(segments) - 0.5)
        ax.set_ylim(len(segments) - 0.5, -0.5)
        ticks = np.arange(len(segments))
        ax.set_xticks(ticks - 0.5, minor=True)
        ax.set_yticks(ticks - 0.5, minor=True)
        ax.grid(which="minor", color=GRID, linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.set_xticks(ticks, packed_row().positions[0])
        ax.set_yticks(ticks, packed_row().positions[0])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("key: position in its document")
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("query: position in its document")
    save(figure, "mask")


def draw_memory():
    figure, ax = new_figure(6.6, 4.0)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    measured, cfg = json.loads(MEASURED.read_text()), preset(MODELS[0])
    lengths = np.array(measured["lengths"])
    mib = 2.0**20
    ax.plot(lengths, score_bytes(cfg, lengths) / mib, color=MUTED, linestyle=":")
    ax.annotate("one score matrix", (lengths[1], score_bytes(cfg, int(lengths[1])) / mib), (6, -8),
                textcoords="offset points", color=MUTED, va="top")  # fmt: skip
    for name in IMPLEMENTATIONS:
        values = np.array(measured["temp_bytes"][name]) / mib
        ax.plot(lengths, values, color=SERIES[name], marker="o", markersize=4)
        ax.annotate(
            name,
            (lengths[-1], values[-1]),
            (8, 0),
            textcoords="offset points",
            color=SERIES[name],
            va="center",
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xlim(lengths[0] * 0.9, lengths[-1] * 2.1)
    ax.set_ylim(6, 2**14)
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths])
    ticks = 4.0 ** np.arange(2, 8)
    ax.set_yticks(ticks, [size(t * mib) for t in ticks])
    ax.minorticks_off()
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_xlabel("places in the row")
    ax.set_title(
        "temporary memory of one attention layer of Llama 3 8B, forward and backward", fontsize=10, loc="left"
    )
    save(figure, "memory")


def draw_kv():
    figure, ax = new_figure(6.6, 2.7)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    rows = kv_rows()
    for y, (_, cfg, kinds) in enumerate(reversed(rows)):
        ax.plot(list(kinds.values()), [y] * 3, color=GRID, zorder=1)
        for (kind, value), colour in zip(
            kinds.items(), (SERIES["reference"], SERIES["blockwise"], MUTED), strict=True
        ):
            heads = {"MHA": cfg.n_heads, "GQA": cfg.n_kv_heads, "MQA": 1}[kind]
            ax.scatter([value], [y], color=colour, s=45, zorder=2)
            ax.annotate(
                size(value), (value, y), (0, -16), textcoords="offset points", ha="center", fontsize=9
            )
            ax.annotate(f"{kind}, {heads}", (value, y), (0, 8), textcoords="offset points", ha="center",
                        fontsize=9, color=colour)  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = 2 ** np.arange(14, 25, 2)
    ax.set_xticks(ticks, [size(t) for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.spines["left"].set_visible(False)
    ax.set_title("KV cache per token in bf16, by number of key/value heads", fontsize=10, loc="left")
    save(figure, "kv")


def main():
    MEASURED.write_text(json.dumps(measure(), indent=1) + "\n")
    draw_mask()
    draw_memory()
    draw_kv()
    write_tables(CHAPTER, TABLES)


if __name__ == "__main__":
    main()
