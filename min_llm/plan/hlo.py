"""Collectives in a compiled program: what really travels, counted in the text of XLA's HLO.

    report = collectives(compiled.as_text(), mesh)        [Collective("all-gather", ("fsdp",), 4096.0, 8.0), …]

A collective says which devices talk in its replica groups; the coordinates in which the members of a group differ are
the axes of the mesh that it runs over. What stands in the body of a loop counts as often as the loop runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from min_llm.parallel.mesh import MeshConfig, coordinates

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
)
WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
         "f64": 8, "s64": 8, "u64": 8}  # fmt: skip

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
ASSIGNED = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ")
OPCODE = re.compile(r" ([\w\-]+)\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
CALLED = re.compile(r"(body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
EXPLICIT = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
OVER = re.compile(r"replica_groups=@?\w*mesh\[(.*?)\](?:,? ?device_ids=\((.*?)\))? ?\{(.*?)\}")
RANGE = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    axes: of the mesh, outermost first. bytes: on one device, of the larger side: what a gather makes, what a reduction
    takes, what a permutation passes on. times: how often a step runs it.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int

    @property
    def total(self) -> float:
        return self.bytes * self.times


def collectives(text: str, mesh: MeshConfig) -> list[Collective]:
    """Every collective of a program that was compiled for that mesh, with how often it runs."""
    bodies, entry = _computations(text)
    found = []
    for lines, times in _reached(bodies, entry):
        for line in lines:
            result, opcode = _instruction(line)
            kind = opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            axes = _axes(line, mesh)
            if axes:  # a group of one says nothing to anybody
                if opcode != kind:  # its operands, its results, and what the runtime wants
                    size = max(_bytes(part) for part in _parts(result)[:2])
                else:
                    size = _bytes(result)
                    if kind == "reduce-scatter":  # the result is a part
                        size *= math.prod(mesh.shape[name] for name in axes)
                found.append(Collective(kind, axes, size, times))
    return found


def totals(found: list[Collective]) -> dict[tuple[str, str], float]:
    """Bytes by ("gather", "reduce", "shift" or "exchange", axis).

    One over several axes counts on each of them, as if done one axis after the other. A reduction that leaves every
    device its piece and one that leaves it everything count alike: XLA's CPU backend writes the first as the second
    and a slice.
    """
    names = {"all-gather": "gather", "collective-permute": "shift", "all-to-all": "exchange",
             "ragged-all-to-all": "exchange"}  # fmt: skip
    result: dict[tuple[str, str], float] = defaultdict(float)
    for one in found:
        for axis in one.axes:
            result[names.get(one.kind, "reduce"), axis] += one.total
    return dict(result)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start and not line.startswith("HloModule"):
            lines = bodies[start.group(2)] = []
            entry = start.group(2) if start.group(1) else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("This is not the text of a compiled program: it has no ENTRY computation.")
    return bodies, entry


def _reached(bodies: dict[str, list[str]], name: str, times: int = 1) -> Iterator[tuple[list[str], int]]:
    """The computation and all that it calls, each with how often it runs."""
    yield bodies[name], times
    for line in bodies[name]:
        called = [found[1] for found in CALLED.findall(line)]
        for branches in BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for inner in called:
            trips = TRIPS.search(line)
            if " while(" in line and trips is None:
                if any(
                    f" {kind}" in deep
                    for lines, _ in _reached(bodies, inner)
                    for deep in lines
                    for kind in KINDS
                ):
                    raise ValueError(
                        f"XLA does not say how often the loop {inner} runs, and it holds collectives."
                    )
                continue
            yield from _reached(
                bodies, inner, times * (int(trips.group(1)) if trips and " while(" in line else 1)
            )


def _axes(line: str, mesh: MeshConfig) -> tuple[str, ...]:
    """The axes over which an instruction talks: coordinates in which the members of a group differ."""
    groups = [[coordinates(mesh, device) for device in group] for group in _groups(line, mesh.size)]
    return tuple(
        name for name in mesh.shape if any(len({place[name] for place in group}) > 1 for group in groups)
    )


def _groups(line: str, devices: int) -> list[list[int]]:
    """Who talks to whom, in any of the three ways in which XLA writes it; the pairs of a permutation.

    [[0, 1], [2, 3]] is {{0,1},{2,3}}, a transposed range [2,2]<=[4], or over an axis, mesh['a'=2,'b'=2] {'b'}.
    """
    if over := OVER.search(line):
        dims = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", over.group(1))}
        chosen = re.findall(r"'(\w+)'", over.group(3))
        if ":" in over.group(3):
            raise ValueError(f"Replica groups over a part of an axis are not understood: {over.group(0)}")
        order = over.group(2) or f"[{math.prod(dims.values())}]"  # in which the mesh has the devices
        ids = _range(*RANGE.fullmatch(order).groups()).reshape(tuple(dims.values()))  # type: ignore[union-attr]
        last = [list(dims).index(name) for name in chosen]
        ids = ids.transpose([i for i in range(len(dims)) if i not in last] + last)
        return ids.reshape(-1, math.prod(dims[name] for name in chosen)).tolist()
    if iota := IOTA.search(line):
        return _range(*iota.group(2, 3)).reshape([int(n) for n in iota.group(1).split(",")]).tolist()
    if explicit := EXPLICIT.search(line):
        return [
            [int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", explicit.group(1))
        ]
    if "replica_groups={}" in line:
        return [list(range(devices))]
    raise ValueError(f"The replica groups of this instruction are not understood: {line.strip()[:200]}")


def _range(shape: str, permutation: str | None) -> np.ndarray:
    """0, 1, 2, … in a shape, "2,4", with its axes in another order, "1,0"."""
    sizes = [int(n) for n in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in permutation.split(",")]) if permutation else ids


def _instruction(line: str) -> tuple[str, str]:
    """Type of the result and opcode, ("f32[4]{0}", "add"); empty where the line is none."""
    assigned = ASSIGNED.match(line)
    if assigned is None:
        return "", ""
    rest = line[assigned.end() :]
    end = len(_parts(f"({rest})", " ")[0])
    opcode = OPCODE.match(rest, end)
    return (rest[:end], opcode.group(1)) if opcode else ("", "")


def _parts(text: str, separator: str = ",") -> list[str]:
    """The elements of a tuple, "(f32[4], (s32[], f32[2,3]))": what separators outside inner brackets part."""
    depth, parts, begin = 0, [], 1
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == separator and depth == 1) or depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return parts


def _bytes(type_text: str) -> float:
    """Bytes of a result, "f32[4,8]{1,0}" or a tuple of such."""
    return sum(
        WIDTH[dtype] * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in ARRAY.findall(type_text)
        if dtype in WIDTH
    )
