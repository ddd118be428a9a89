"""The chapter on many devices: its numbers, tables, figures and code are what the code gives."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from min_llm.kernels.mask import Mask
from min_llm.nn import ring
from min_llm.parallel.mesh import MeshConfig
from notes.figures import drawing, pipelines, placements
from notes.figures import parallelism as figures
from tests.parallel.test_mesh import LLAMA

TEXT = figures.CHAPTER.read_text()
PROSE = re.sub(r"<!-- table .*?<!-- end -->|```.*?```", "", TEXT, flags=re.DOTALL)
PROSE = PROSE[: PROSE.index("## To try")]  # exercises and sources state no results
FLAT = " ".join(PROSE.split())


def test_sentences_say_what_the_code_computes():
    for name, value in figures.facts().items():
        assert value in FLAT, f"{name}: the chapter does not say {value!r}"


def test_sentences_say_no_other_number():
    """Shares, sizes and numbers with a thousands separator or a decimal point must be among the facts."""
    plain = re.sub(r"arXiv [\d.]+|sections? [\d.]+|Llama 3\.\d", "", FLAT)
    said = re.findall(r"\d[\d,]*(?:\.\d+)?(?: (?:%|B|KiB|MiB|GiB|TiB|million)(?!\w))?", plain)
    said = [n.rstrip(",") for n in said]
    known = " ".join(figures.facts().values())
    assert not [n for n in said if re.search(r"[,. ]", n) and n not in known]
    assert len([n for n in said if "%" in n]) >= 7 and len([n for n in said if "iB" in n]) >= 7


@pytest.mark.parametrize("name", figures.TABLES)
def test_tables_are_up_to_date(name):
    assert f"<!-- table {name} -->\n{figures.TABLES[name]()}\n<!-- end -->" in TEXT


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_up_to_date(name):
    assert f"figures/{figures.path(name).name}" in TEXT
    assert drawing.stored(figures.path(name)) == json.loads(json.dumps(figures.plotted()[name]))


@pytest.mark.parametrize("name", ["mesh", "context"])
def test_figures_are_the_same_bytes_each_time(name, tmp_path):
    paths = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in paths:
        drawing.save(figures.FIGURES[name](), path, figures.plotted()[name])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_code_blocks_run():
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, namespace)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (figures.CHAPTER.parent / target).exists(), target


# Who holds what -----------------------------------------------------------------------------------------------

MESHES = [placements.COPIES, placements.SHARDED, placements.TENSOR, placements.CONTEXT, placements.TOGETHER]


@pytest.mark.parametrize("cfg", MESHES, ids=str)
def test_pieces_make_up_the_whole(cfg):
    for name in placements.layouts(cfg):
        if name.split(",")[0] in placements.DRAWN:
            held = placements.held(cfg, name)
            (rows, columns) = {(rows, columns) for _, rows, _, columns in held}.pop()
            pieces = {(row, column) for row, _, column, _ in held}
            assert pieces == set(itertools.product(range(rows), range(columns))), name


@pytest.mark.devices
def test_pieces_are_those_of_jax(run_python):
    """On eight real (virtual) devices every array that is drawn lies as it is drawn."""
    run_python(
        """
from min_llm.parallel import mesh as meshes
import jax, math
from notes.figures import placements
cfg = placements.TOGETHER
mesh = meshes.make(cfg)
for name in placements.ALL:
    spec, n = placements.layouts(cfg)[name], placements.DRAWN[name.split(",")[0]][1]
    shape = (24,) * len(spec)
    where = jax.sharding.NamedSharding(mesh, spec).devices_indices_map(shape)
    for device, (row, rows, column, columns) in enumerate(placements.held(cfg, name)):
        slices = [s.indices(24)[:2] for s in where[jax.devices()[device]]]
        for part, index, cuts in ((slices[:n], row, rows), (slices[n:], column, columns)):
            piece = of = 0
            for start, stop in part:
                of = (of or 1) * 24 // (stop - start)
                piece = piece * 24 // (stop - start) + start // (stop - start)
            assert (piece, of) == (index, cuts), (name, device)
""",
        devices=8,
    )


def test_what_a_device_holds_of_the_layer_in_the_last_figure():
    """The fractions in the sentence before it."""
    fraction = {}
    for name in placements.ALL:
        _, rows, _, columns = placements.held(placements.TOGETHER, name)[0]
        fraction[name] = 1 / (rows * columns)
    assert fraction["w_gate"] == 1 / 4 and fraction["w_gate, gathered"] == 1 / 2
    assert fraction["x"] == 1 / 8 and fraction["n"] == 1 / 4
    assert fraction["k, gathered"] == 2 * fraction["k"] == 2 * fraction["q"]


def test_the_papers_neighbours():
    """Row L3-3.1: of sixteen GPUs, 0 and 1 share tp, 0 and 2 cp, 0 and 4 pp, 0 and 8 dp; tp is innermost."""
    partners = {axis: placements.groups(placements.PAPER, axis)[0] for axis in ("tp", "cp", "pp", "dp")}
    assert partners == {"tp": [0, 1], "cp": [0, 2], "pp": [0, 4], "dp": [0, 8]}
    assert placements.axes_of(placements.PAPER) == list(partners)


# Context parallelism ------------------------------------------------------------------------------------------


def test_every_step_of_the_ring_brings_other_keys():
    steps = placements.round_the_ring(4)
    assert steps[0] == [0, 1, 2, 3]
    assert all(sorted(there) == [0, 1, 2, 3] for there in [*steps, *zip(*steps, strict=True)])
    for balanced in (False, True):
        by_step = placements.pairs_by_step(4, balanced)
        assert [sum(rank) for rank in zip(*by_step, strict=True)] == placements.pairs(4, balanced)


def test_the_loop_of_the_ring_keeps_all_keys():
    """As the chapter says of training. When this fails, the ring has got better and the chapter must say so."""
    mesh = AbstractMesh((4,), ("cp",), axis_types=(AxisType.Auto,))
    part = P(None, "cp")

    def run(q, k, v):
        return ring.attention(q, k, v, Mask(causal=False))

    over_ranks = jax.shard_map(run, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    q, k = (jax.ShapeDtypeStruct((1, 64, heads, 16), jnp.float32) for heads in (8, 2))
    kept = jax.eval_shape(lambda *qkv: jax.vjp(over_ranks, *qkv)[1], q, k, k)
    assert [x for x in jax.tree.leaves(kept) if x.shape[-2:] == (2, 16) and x.size == 4 * k.size]


# What travels -------------------------------------------------------------------------------------------------


def test_what_travels_grows_as_the_chapter_says():
    one = figures.travel(figures.BIG, figures.LONG, 1, figures.LONG_PLACES)
    two = figures.travel(figures.BIG, figures.LONG, 2, figures.LONG_PLACES)
    assert two["fsdp"] == one["fsdp"] and two["copies"] == one["copies"]
    assert all(two[axis][0] == 2 * one[axis][0] for axis in ("tp", "cp", "pp"))
    kept = figures.travel(figures.BIG, figures.LONG, 1, figures.LONG_PLACES, kept=True)
    assert one["fsdp"][1] - kept["fsdp"][1] == one["fsdp"][0] == kept["fsdp"][0]


def test_gathered_keys_do_not_depend_on_query_heads():
    """Row L3-3.7: 2 S G K numbers, all but one's own piece of which travel."""
    cfg = figures.BIG
    forward, backward = figures.travel(cfg, MeshConfig(cp=4), 1, 8192)["cp"]
    assert forward == backward == 3 / 4 * 2 * 8192 * cfg.n_kv_heads * cfg.head_dim * 2


def test_the_papers_meshes():
    """Row L3-3.2: devices, and tokens of a batch: 16 rows for each part of the batch."""
    assert figures.SHORT.size == figures.LONG.size == 16_384
    assert (
        16 * figures.SHORT.rows * figures.SHORT_PLACES
        == 16 * figures.LONG.rows * figures.LONG_PLACES
        == 2**24
    )


def test_the_meshes_that_the_chapter_counts():
    assert len(LLAMA) == 9 and "on nine meshes" in FLAT


# Pipelines ----------------------------------------------------------------------------------------------------


def test_the_sweep_bears_out_what_the_chapter_concludes():
    sweep = pipelines.swept()
    waits = {key: pipelines.bubble(schedule, send=0.5) for key, schedule in sweep.items()}
    assert waits[8, 2] == waits[16, 2] < waits[4, 2] < waits[4, 1]
    assert 2 * pipelines.in_flight(sweep[8, 2])[0] < pipelines.in_flight(sweep[16, 2])[0]
