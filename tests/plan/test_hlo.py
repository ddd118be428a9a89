"""Collectives read from the text of a compiled program: all ways to write groups, loops, refusals."""

import pytest

from min_llm.parallel.mesh import MeshConfig
from min_llm.plan import hlo
from min_llm.plan.hlo import Collective

MESH = MeshConfig(fsdp=2, cp=2, tp=2)  # device = 4 fsdp + 2 cp + tp
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gather = f32[4,8]{1,0} all-gather(%piece), channel_id=1, replica_groups=GROUPS, dimensions={0}
}

%condition.1 (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.9 (a: f32[2,8]) -> f32[2,8] {
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition.1, body=%body.1TRIPS
  %both = (bf16[3]{0}, /*index=1*/f32[5]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %scattered = f32[2,8]{1,0} reduce-scatter(%c), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %next = f32[6]{0} collective-permute(%d), source_target_pairs={{0,2},{2,0},{1,3},{3,1},{4,6},{6,4},{5,7},{7,5}}
  %alone = f32[9]{0} all-reduce(%e), replica_groups=mesh['dp'=1,'fsdp'=2,'cp'=2,'tp'=2] {'dp'}, to_apply=%add
}
"""
TRIPS = ', backend_config={"known_trip_count":{"n":"3"}}'


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[4,2]<=[8]", ("tp",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("cp",)),
        ("[4,2]<=[2,2,2]T(2,1,0)", ("fsdp",)),
        ("[2,4]<=[2,4]", ("cp", "tp")),
        ("{{0,5},{1,4},{2,7},{3,6}}", ("fsdp", "tp")),
        ("{}", ("fsdp", "cp", "tp")),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("cp", "tp")),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", ("fsdp", "cp")),
        ("mesh['fsdp'=2,'cp'=2,'tp'=2] {'fsdp','tp'}", ("fsdp", "tp")),
    ],
)
def test_axes_are_those_in_which_a_group_differs(groups, axes):
    found = hlo.collectives(PROGRAM.replace("GROUPS", groups).replace("TRIPS", TRIPS), MESH)
    assert {one.kind: one for one in found} == {
        "all-gather": Collective("all-gather", axes, 4 * 8 * 4, 3),  # in a loop that runs three times
        "all-reduce": Collective("all-reduce", ("fsdp", "cp", "tp"), 3 * 2 + 5 * 4, 1),
        "reduce-scatter": Collective(
            "reduce-scatter", ("fsdp",), 2 * 2 * 8 * 4, 1
        ),  # what it takes: twice its result
        "collective-permute": Collective("collective-permute", ("cp",), 6 * 4, 1),
    }
    assert len(found) == 4  # nobody talks over an axis of one device


def test_what_is_started_holds_its_operands_and_its_results_and_the_larger_side_counts():
    """As XLA writes it for GPUs: several arrays in one collective, with layouts that have brackets of their own."""
    groups = "replica_groups={{0,4},{1,5},{2,6},{3,7}}"
    both = "((bf16[2,8]{1,0:T(8,128)}, f32[3]{0}), (bf16[4,8]{1,0}, /*index=1*/f32[6]{0}))"
    reduced = "((f32[4,8]{1,0}, f32[6]{0}), (f32[2,8]{1,0}, f32[3]{0}), s32[])"
    started = f"""ENTRY %main (a: f32[2,8]) -> f32[2,8] {{
      %gather = {both} all-gather-start(%a, %b), {groups}, dimensions={{0}}
      %one = (f32[2,8]{{1,0}}, f32[4,8]{{1,0}}) all-gather-start(%a), {groups}, dimensions={{0}}
      %scattered = {reduced} reduce-scatter-start(%c, %d), {groups}, dimensions={{0}}
      %done = (f32[2,8]{{1,0}}, f32[3]{{0}}) reduce-scatter-done(%scattered)
    }}"""
    assert [(one.kind, one.bytes) for one in hlo.collectives(started, MESH)] == [
        ("all-gather", 2 * 32 + 4 * 6),
        ("all-gather", 4 * 32),
        ("reduce-scatter", 4 * 32 + 4 * 6),
    ]


def test_totals_count_a_joint_collective_on_each_axis():
    found = hlo.collectives(PROGRAM.replace("GROUPS", "[2,4]<=[8]").replace("TRIPS", TRIPS), MESH)
    assert hlo.totals(found) == {
        ("gather", "cp"): 384, ("gather", "tp"): 384, ("shift", "cp"): 24,
        ("reduce", "fsdp"): 26 + 128, ("reduce", "cp"): 26, ("reduce", "tp"): 26,
    }  # fmt: skip


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="how often the loop body.1 runs"):
        hlo.collectives(PROGRAM.replace("GROUPS", "[4,2]<=[8]").replace("TRIPS", ""), MESH)
    for groups, message in (("mesh['a'=8] {'a':(1)2}", "a part of an axis"), ("V2", "not understood")):
        with pytest.raises(ValueError, match=message):
            hlo.collectives(PROGRAM.replace("GROUPS", groups).replace("TRIPS", TRIPS), MESH)
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("HloModule nothing", MESH)
