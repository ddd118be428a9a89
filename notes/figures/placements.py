"""Who holds what on a mesh, and its figures in notes/parallelism.md (drawn by notes/figures/parallelism.py).

Layouts are the program's own: a layer of Llama is traced on an abstract mesh, which needs no devices, and each array
says its PartitionSpec. Parameters are drawn with their inputs as rows and their outputs as columns, activations with
tokens (the rows of the batch, one after the other) as rows and features as columns.
"""

from __future__ import annotations

import ast
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from min_llm.kernels.mask import Mask
from min_llm.models import llama
from min_llm.nn import axes, context, ring
from min_llm.nn.leaves import dot
from min_llm.nn.norm import rms_norm
from min_llm.parallel.mesh import MeshConfig, coordinates
from min_llm.spec import map_spec
from notes.figures.drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    PALE_RED,
    RED,
    boxes,
    new_figure,
)

MODEL = llama.Config(n_layers=1, dim=16, n_heads=8, n_kv_heads=4, head_dim=4, hidden_dim=24, vocab_size=32)
ROWS, PLACES = 8, 16
PAPER = MeshConfig(dp=2, pp=2, cp=2, tp=2)  # the example of figure 5 of the paper
COPIES, SHARDED = MeshConfig(dp=4), MeshConfig(fsdp=4)
TENSOR, CONTEXT, TOGETHER = MeshConfig(tp=4), MeshConfig(cp=4), MeshConfig(fsdp=2, cp=2, tp=2)
COLOURS = {4: (BLUE, ORANGE, GREEN, RED)}
COLOURS[8] = (BLUE, PALE_BLUE, ORANGE, PALE_ORANGE, GREEN, PALE_GREEN, RED, PALE_RED)


# Layouts ------------------------------------------------------------------------------------------------------


def abstract(cfg):
    """The mesh of a configuration without devices."""
    kinds = (AxisType.Explicit,) * len(cfg.shape)
    return AbstractMesh(tuple(cfg.shape.values()), tuple(cfg.shape), axis_types=kinds)


@functools.cache
def layouts(cfg):
    """name -> PartitionSpec of the arrays of one layer, in the order in which a forward pass meets them."""
    mesh = abstract(cfg)

    def array(shape, names):
        sharding = NamedSharding(mesh, axes.to_partition(names, shape))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def run(x, w):
        """The products of llama.attention and llama.mlp, with the names under which they are drawn."""
        n = axes.shard(rms_norm(x, w.attn_norm, MODEL.norm_eps), "batch", "seq", "features")
        q, k = dot("bsd,dhk->bshk", n, w.wq), dot("bsd,dgk->bsgk", n, w.wk)
        after = dot("bshk,hkd->bsd", q, w.wo, "batch", "residual", "features")
        hidden = dot("bsd,df->bsf", n, w.w_gate)
        end = dot("bsf,fd->bsd", hidden, w.w_down, "batch", "residual", "features")
        return {"x": x, "n": n, "q": q, "k": k, "x + attention": after, "hidden": hidden, "x + mlp": end}

    with jax.sharding.use_abstract_mesh(mesh):
        x = array((ROWS, PLACES, MODEL.dim), ("batch", "residual", "features"))
        layer = map_spec(lambda p: array(p.shape, p.axes), llama.layer_spec(MODEL))
        params = {name: a for name, a in vars(layer).items() if a is not None}
        activations = jax.eval_shape(run, x, layer)
    specs = {name: a.sharding.spec for name, a in (params | activations).items()}
    gathered = {f"{name}, gathered": axes.without(specs[name], "fsdp") for name in ("wq", "w_gate", "w_down")}
    return specs | gathered | {"k, gathered": axes.without(specs["k"], "cp")}


def piece(cfg, entries, device):
    """(piece, of how many) that a device has of the dimensions with these entries of a PartitionSpec, flattened."""
    where, index, cuts = coordinates(cfg, device), 0, 1
    for entry in entries:
        for name in (entry,) if isinstance(entry, str) else entry or ():
            index, cuts = index * cfg.shape[name] + where[name], cuts * cfg.shape[name]
    return index, cuts


# array -> (letters, dimensions that are rows); the others are columns
DRAWN = {
    "x": ("B·S × D", 2),
    "n": ("B·S × D", 2),
    "q": ("B·S × H", 2),
    "k": ("B·S × G", 2),
    "hidden": ("B·S × F", 2),
    "x + attention": ("B·S × D", 2),
    "x + mlp": ("B·S × D", 2),
    "wq": ("D × H", 1),
    "wo": ("H × D", 2),
    "w_gate": ("D × F", 1),
    "w_down": ("F × D", 1),
}


def held(cfg, name):
    """For each device what it has of an array: (row, rows, column, columns), counted in pieces."""
    spec = layouts(cfg)[name]
    n_rows = DRAWN[name.split(",")[0]][1]
    return [(*piece(cfg, spec[:n_rows], d), *piece(cfg, spec[n_rows:], d)) for d in range(cfg.size)]


def groups(cfg, axis):
    """The devices that differ in their place on one axis only."""
    by_rest = {}
    for device in range(cfg.size):
        rest = tuple(place for name, place in coordinates(cfg, device).items() if name != axis)
        by_rest.setdefault(rest, []).append(device)
    return list(by_rest.values())


# Context parallelism ------------------------------------------------------------------------------------------


def places(cp, balanced):
    """rank -> its places of the sequence."""
    order = context.order(PLACES, cp) if balanced else np.arange(PLACES)
    return order.reshape(cp, -1)


def passes(cp):
    """rank -> the rank that it passes keys and values on to: read from the traced ring."""
    x = jax.ShapeDtypeStruct((1, cp, 1, 2), jnp.float32)
    index = jax.ShapeDtypeStruct((1, cp), jnp.int32)
    mesh = AbstractMesh((cp,), ("cp",), axis_types=(AxisType.Auto,))

    def run(q, k, v, i):
        return ring.attention(q, k, v, Mask(q_index=i, kv_index=i))

    part = P(None, "cp")
    over_ranks = jax.shard_map(run, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    text = str(jax.make_jaxpr(over_ranks)(x, x, x, index))
    ways = {ast.literal_eval(way) for way in re.findall(r"perm=(\(\(.*?\)\))", text, flags=re.DOTALL)}
    (way,) = ways  # the same for all that travels
    return [dict(way)[rank] for rank in range(cp)]


def round_the_ring(cp):
    """step -> rank -> the rank whose keys and values are there."""
    to, there = passes(cp), list(range(cp))
    steps = []
    for _ in range(cp):
        steps.append(list(there))
        moved = list(there)
        for rank, target in enumerate(to):
            moved[target] = there[rank]
        there = moved
    return steps


def visible(queries, keys):
    """Pairs that a causal mask lets see each other."""
    return int((np.asarray(queries)[:, None] >= np.asarray(keys)[None]).sum())


def pairs(cp, balanced):
    """rank -> visible pairs of its queries with all keys."""
    return [visible(mine, np.arange(PLACES)) for mine in places(cp, balanced)]


def pairs_by_step(cp, balanced):
    """step -> rank -> visible pairs with the keys that are there."""
    cut = places(cp, balanced)
    return [[visible(cut[r], cut[source]) for r, source in enumerate(row)] for row in round_the_ring(cp)]


# What each figure shows, as plain data ------------------------------------------------------------------------

STORED = ("wq", "w_down", "w_gate", "w_gate, gathered", "x")
ATTENTION = ("x", "n", "wq", "q", "wo", "x + attention")
MLP = ("x", "n", "w_gate", "hidden", "w_down", "x + mlp")
ALL = ("w_gate", "w_gate, gathered", "x", "n", "q", "k", "k, gathered", "hidden")


def plotted():
    panels = {
        "fsdp": [(COPIES, STORED), (SHARDED, STORED)],
        "tp": [(TENSOR, ATTENTION), (TENSOR, MLP)],
        "together": [(TOGETHER, ALL)],
    }
    shown = {
        figure: [{name: [list(h) for h in held(cfg, name)] for name in names} for cfg, names in rows]
        for figure, rows in panels.items()
    }
    shown["mesh"] = {axis: groups(PAPER, axis) for axis in axes_of(PAPER)}
    shown["context"] = {
        title: {
            "places": places(CONTEXT.cp, balanced).tolist(),
            "pairs": pairs(CONTEXT.cp, balanced),
            "ring": round_the_ring(CONTEXT.cp),
            "pairs by step": pairs_by_step(CONTEXT.cp, balanced),
        }
        for title, balanced in (("in order", False), ("balanced", True))
    }
    return shown


def axes_of(cfg):
    """The axes of more than one device, from the inside out."""
    return [name for name, n in reversed(cfg.shape.items()) if n > 1]


# Figures ------------------------------------------------------------------------------------------------------


def canvas(width, height, right, bottom):
    """A figure whose coordinates run from (0, 0) at the upper left to (right, bottom)."""
    figure, ax = new_figure(width, height)
    ax.set_xlim(0, right)
    ax.set_ylim(bottom, 0)
    ax.set_axis_off()
    return figure, ax


def draw_mesh():
    from matplotlib.patches import Arc

    lines = {"tp": BLUE, "cp": GREEN, "pp": ORANGE, "dp": RED}
    figure, ax = canvas(9.6, 4.2, 17.4, 7.4)
    y = 0.1
    for axis, members in plotted()["mesh"].items():
        distance = members[0][1] - members[0][0]
        y += 0.45 + 0.13 * distance
        ax.text(0, y + 0.4, axis, fontsize=12, color=lines[axis], va="center", weight="bold")
        boxes(ax, [(1.45 + d, y, 2.15 + d, y + 0.8) for d in range(PAPER.size)], "#eef2f7", GRID)
        for d in range(PAPER.size):
            ax.text(1.8 + d, y + 0.42, d, ha="center", va="center", fontsize=10, color=INK)
        for one, other in members:
            middle, height = 1.8 + (one + other) / 2, 0.4 + 0.26 * distance
            ax.add_patch(
                Arc((middle, y), distance, height, theta1=180, theta2=360, color=lines[axis], linewidth=1.4)
            )
        y += 0.9
    return figure


def draw_pieces(ax, left, top, width, height, part, colour):
    """An array with the piece that a device holds."""
    row, rows, column, columns = part
    dx, dy = width / columns, height / rows
    boxes(ax, [(left, top, left + width, top + height)], "white", MUTED, linewidth=0.7)
    cuts = [(left + i * dx, top, left + i * dx, top + height) for i in range(1, columns)]
    cuts += [(left, top + i * dy, left + width, top + i * dy) for i in range(1, rows)]
    boxes(ax, cuts, "none", GRID, linewidth=0.6)
    held_box = (left + column * dx, top + row * dy, left + (column + 1) * dx, top + (row + 1) * dy)
    boxes(ax, [held_box], colour, "none")


def draw_table(ax, top, cfg, names, label, moves=None):
    """Devices as rows, arrays as columns; returns where it ends. moves: column -> what happens before it."""
    x0, step, width, height = 1.7, 1.62, 0.94, 0.66
    for j, name in enumerate(names):
        x = x0 + j * step + width / 2
        title, *state = name.split(", ")
        ax.text(x, top, title, ha="center", fontsize=10.5, color=INK)
        under = f"{DRAWN[title][0]}" + (f", {state[0]}" if state else "")
        ax.text(x, top + 0.28, under, ha="center", fontsize=8.5, color=MUTED)
    for d in range(cfg.size):
        y = top + 0.44 + d * (height + 0.16)
        ax.text(0, y + height / 2, label(d), va="center", fontsize=9, color=INK)
        for j, name in enumerate(names):
            draw_pieces(ax, x0 + j * step, y, width, height, held(cfg, name)[d], COLOURS[cfg.size][d])
    end = top + 0.44 + cfg.size * (height + 0.16)
    for j, word in (moves or {}).items():
        x, y = x0 + j * step - (step - width) / 2, (top + 0.44 + end) / 2 - 0.08
        ax.text(x, y, word, ha="center", va="center", fontsize=9, color=MUTED, rotation=90)
    return end


def draw_fsdp():
    figure, ax = canvas(8.2, 7.4, 1.2 + 1.62 * len(STORED), 9.0)
    for top, cfg, title in ((0.3, COPIES, "dp 4: copies"), (4.75, SHARDED, "fsdp 4: pieces")):
        ax.text(0, top, title, fontsize=10.5, color=INK, weight="bold")
        moves = {3: "all-gather"} if cfg.fsdp > 1 else {}
        draw_table(ax, top + 0.42, cfg, STORED, lambda d: f"device {d}", moves)
    return figure


def draw_tp():
    figure, ax = canvas(9.6, 6.5, 1.2 + 1.62 * len(MLP), 8.2)
    for top, names in ((0.3, ATTENTION), (4.4, MLP)):
        moves = {1: "all-gather", 5: "reduce-scatter"}
        draw_table(ax, top, TENSOR, names, lambda d: f"device {d}", moves)
    return figure


def draw_together():
    figure, ax = canvas(11.2, 6.2, 1.2 + 1.62 * len(ALL), 7.5)

    def label(d):
        where = coordinates(TOGETHER, d)
        return f"{d}:  " + "  ".join(f"{name} {where[name]}" for name in ("fsdp", "cp", "tp"))

    moves = {1: "all-gather over fsdp", 3: "all-gather over tp", 6: "all-gather over cp"}
    draw_table(ax, 0.3, TOGETHER, ALL, label, moves)
    return figure


def draw_context():
    figure, panels = new_figure(9.6, 7.4, rows=2, columns=2, width_ratios=(1, 1.05))
    figure.get_layout_engine().set(h_pad=0.12)
    for (mask_ax, ring_ax), (title, shown) in zip(panels, plotted()["context"].items(), strict=True):
        owner = {place: rank for rank, mine in enumerate(shown["places"]) for place in mine}
        for rank, colour in enumerate(COLOURS[4]):
            seen = [(t, s, t + 1, s + 1) for s in shown["places"][rank] for t in range(s + 1)]
            boxes(mask_ax, seen, colour, "white", linewidth=0.5)
        mask_ax.set_xlim(0, PLACES)
        mask_ax.set_ylim(PLACES, 0)
        mask_ax.set_aspect("equal")
        mask_ax.set_yticks(np.arange(PLACES) + 0.5, [f"{owner[s]}" for s in range(PLACES)], fontsize=8)
        for tick, s in zip(mask_ax.get_yticklabels(), range(PLACES), strict=True):
            tick.set_color(COLOURS[4][owner[s]])
        mask_ax.set_xticks([])
        mask_ax.set_xlabel("key", fontsize=9)
        mask_ax.set_ylabel("query, by the rank that has it", fontsize=9)
        mask_ax.tick_params(length=0)
        mask_ax.spines[:].set_visible(False)
        counts = ", ".join(map(str, shown["pairs"]))
        mask_ax.set_title(f"{title}: visible pairs by rank {counts}", fontsize=10, loc="left")
        draw_ring(ring_ax, shown, title)
    return figure


def draw_ring(ax, shown, title):
    cp = len(shown["ring"])
    for step, (sources, seen) in enumerate(zip(shown["ring"], shown["pairs by step"], strict=True)):
        for rank, (source, n) in enumerate(zip(sources, seen, strict=True)):
            box = (rank + 0.06, step + 0.1, rank + 0.94, step + 0.9)
            colour = COLOURS[4][source]
            boxes(ax, [box], colour if n else "white", colour, linewidth=1.2)
            ink = "white" if n else MUTED
            ax.text(
                rank + 0.5, step + 0.38, f"keys of {source}", ha="center", va="center", fontsize=9, color=ink
            )
            ax.text(rank + 0.5, step + 0.66, f"{n} pairs", ha="center", va="center", fontsize=8.5, color=ink)
    waits = sum(max(row) for row in shown["pairs by step"])
    ax.set_xlim(0, cp)
    ax.set_ylim(cp, 0)
    ax.set_xticks(np.arange(cp) + 0.5, [f"rank {r}" for r in range(cp)])
    ax.set_yticks(np.arange(cp) + 0.5, [f"step {t}" for t in range(cp)])
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    ax.set_title(f"ring, {title}: the largest of each step sum to {waits}", fontsize=10, loc="left")


FIGURES = {
    "mesh": draw_mesh,
    "fsdp": draw_fsdp,
    "tp": draw_tp,
    "context": draw_context,
    "together": draw_together,
}
