"""Pipeline schedules: legal for all sizes, as long as the paper's formula says, and no longer-lived activations."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.parallel import schedules
from min_llm.parallel.schedules import (
    Operation,
    Schedule,
    bubble,
    flexible,
    gpipe,
    in_flight,
    interleaved,
    layers_of_stages,
    one_f_one_b,
    timeline,
)

RANKS, VIRTUAL, BATCHES = st.integers(1, 6), st.integers(1, 4), st.integers(1, 14)
LEADS = st.sampled_from([1, 2])
UNITS = st.integers(1, 4)


@st.composite
def every_schedule(draw):
    """(schedule, PP, V, M, N) from any of the four functions."""
    pp, micro_batches = draw(RANKS), draw(BATCHES)
    if draw(st.booleans()):
        make = draw(st.sampled_from([gpipe, one_f_one_b]))
        return make(pp, micro_batches), pp, 1, micro_batches
    virtual = draw(VIRTUAL)
    if draw(st.booleans()):
        return interleaved(pp, virtual, micro_batches), pp, virtual, micro_batches
    n = draw(st.integers(min(pp, micro_batches), micro_batches))
    return flexible(pp, virtual, micro_batches, n, draw(LEADS)), pp, virtual, micro_batches


@st.composite
def any_legal_order(draw):
    """(schedule, PP, V, M): at every turn, any operation whose inputs are there."""
    pp, virtual, micro_batches = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    last = pp * virtual - 1
    possible = [("forward", 0, m) for m in range(micro_batches)]
    orders = [[] for _ in range(pp)]
    while possible:
        kind, stage, m = possible.pop(draw(st.integers(0, len(possible) - 1)))
        orders[stage % pp].append(Operation(kind, stage // pp, m))
        if (
            kind == "forward"
        ):  # backwards of earlier stages come from the last one, so their forwards are done
            possible.append(("forward", stage + 1, m) if stage < last else ("backward", last, m))
        elif stage:
            possible.append(("backward", stage - 1, m))
    return Schedule(virtual, micro_batches, tuple(map(tuple, orders))), pp, virtual, micro_batches


def letters(order):
    """'F0 f0 b0 B0': forward and backward of micro-batch 0; capitals are chunk 0, small letters chunk 1."""
    names = {("forward", 0): "F", ("forward", 1): "f", ("backward", 0): "B", ("backward", 1): "b"}
    return " ".join(f"{names[o.kind, o.chunk]}{o.micro_batch}" for o in order)


# Legality -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.one_of(every_schedule(), any_legal_order()), UNITS, UNITS, st.integers(0, 3))
def test_every_operation_happens_once_and_as_early_as_it_may(made, forward, backward, send):
    schedule, pp, virtual, micro_batches = made
    slots = timeline(schedule, forward, backward, send)
    assert [[slot.operation for slot in row] for row in slots] == [list(order) for order in schedule.ranks]

    stages = range(pp * virtual)
    when, rank_free = {}, {}
    for rank, row in enumerate(slots):
        free = 0
        for slot in row:
            key = slot.operation.kind, slot.operation.chunk * pp + rank, slot.operation.micro_batch
            assert key not in when
            when[key], rank_free[key], free = slot, free, slot.end
    assert set(when) == set(itertools.product(("forward", "backward"), stages, range(micro_batches)))

    for (kind, stage, m), slot in when.items():
        assert slot.end - slot.start == (forward if kind == "forward" else backward)
        step = -1 if kind == "forward" else 1
        ready = [rank_free[kind, stage, m]]
        if stage + step in stages:
            ready.append(when[kind, stage + step, m].end + (send if pp > 1 else 0))
        if kind == "backward":
            ready.append(when["forward", stage, m].end)
        assert slot.start == max(ready)


@settings(deadline=None)
@given(RANKS, st.integers(2, 4), BATCHES, LEADS, st.data())
def test_groups_are_of_n_micro_batches(pp, virtual, micro_batches, lead, data):
    """Exactly N where N divides M; else nearly equal, none smaller than PP, and at most N where that allows it."""
    n = data.draw(st.integers(min(pp, micro_batches), micro_batches))
    for kind in ("forward", "backward"):
        for order in flexible(pp, virtual, micro_batches, n, lead).ranks:
            passes = [o for o in order if o.kind == kind]
            runs = [[o.micro_batch for o in run] for _, run in itertools.groupby(passes, lambda o: o.chunk)]
            sizes = [len(run) for run in runs[::virtual]]
            assert all(runs[i : i + virtual] == [runs[i]] * virtual for i in range(0, len(runs), virtual))
            assert list(itertools.chain(*runs[::virtual])) == list(range(micro_batches))
            assert micro_batches % n or set(sizes) == {n}
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= min(pp, micro_batches)
            assert (
                max(sizes) <= n or micro_batches < (len(sizes) + 1) * pp
            )  # one group more would be too small


def test_figure_6():
    """Four ranks, eight stages, ten micro-batches, N = 5: not a multiple of four."""
    schedule = flexible(4, 2, 10, n=5)
    assert letters(schedule.ranks[3]) == (
        "F0 F1 F2 F3 F4 f0 b0 f1 b1 f2 b2 f3 b3 f4 b4 F5 B0 F6 B1 F7 B2 F8 B3 F9 B4 "
        "f5 b5 f6 b6 f7 b7 f8 b8 f9 b9 B5 B6 B7 B8 B9"
    )
    assert letters(schedule.ranks[0]).startswith(
        "F0 F1 F2 F3 F4 f0 f1 f2 f3 f4 F5 F6 b0 F7 b1 F8 b2 F9 b3 f5 b4"
    )
    assert bubble(schedule) == pytest.approx(0.15)
    assert in_flight(schedule) == (12, 10, 8, 6)
    assert interleaved(4, 2, 10) == schedule  # ten in groups of four would leave two over


def test_the_named_orders():
    assert [letters(order) for order in gpipe(2, 3).ranks] == ["F0 F1 F2 B0 B1 B2"] * 2
    assert [letters(order) for order in one_f_one_b(3, 3).ranks] == [
        "F0 F1 F2 B0 B1 B2", "F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2",
    ]  # fmt: skip
    assert [letters(order) for order in interleaved(2, 2, 4).ranks] == [
        "F0 F1 f0 f1 F2 b0 F3 b1 f2 B0 f3 B1 b2 b3 B2 B3",
        "F0 F1 f0 b0 f1 b1 F2 B0 F3 B1 f2 b2 f3 b3 B2 B3",
    ]
    breadth_first = "F0 F1 F2 f0 f1 f2 b0 b1 b2 B0 B1 B2"
    assert [letters(order) for order in flexible(2, 2, 3, n=3).ranks] == [breadth_first] * 2


# The bubble ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, share",
    [
        (gpipe(4, 8), 0.375),
        (one_f_one_b(4, 8), 0.375),
        (interleaved(4, 2, 8), 0.1875),
        (flexible(4, 2, 8, n=8), 0.1875),
        (flexible(4, 2, 8, n=4, lead=1), 0.1875),
        (gpipe(4, 1), 3),
        (gpipe(1, 5), 0),
    ],
)
def test_published_bubbles(schedule, share):
    assert bubble(schedule) == pytest.approx(share, abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(every_schedule(), UNITS, UNITS)
def test_the_bubble_is_the_formula(made, forward, backward):
    """Whatever N, whether or not it divides M, and whatever the passes take."""
    schedule, pp, virtual, micro_batches = made
    waits = (pp - 1) if micro_batches >= pp else (pp - micro_batches) * virtual + micro_batches - 1
    assert bubble(schedule, forward, backward) == pytest.approx(waits / (virtual * micro_batches), abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(any_legal_order(), UNITS, UNITS, st.integers(0, 2))
def test_no_order_has_a_smaller_bubble(made, forward, backward, send):
    schedule, pp, virtual, micro_batches = made
    assert bubble(schedule, forward, backward, send) >= (pp - 1) / (virtual * micro_batches) - 1e-9


def test_a_small_last_group_is_why_groups_are_nearly_equal():
    """Groups of PP and a rest, as one might do it: twice the bubble, and with three chunks it never ends."""
    ahead = [4 + 2 * (3 - rank) for rank in range(4)]
    rest = schedules._schedule(2, [4, 4, 2], ahead)
    assert bubble(rest) > 2 * bubble(interleaved(4, 2, 10))
    with pytest.raises(UserError, match="never ends"):
        timeline(schedules._schedule(3, [4, 1], [4 + k for k in ahead]))


def test_larger_groups_and_a_longer_lead_hide_slow_sends():
    """16 micro-batches, four ranks of two chunks; a send takes half a forward. Less waiting for more memory."""
    choices = [flexible(4, 2, 16, n=4, lead=1), *(flexible(4, 2, 16, n) for n in (4, 6, 8, 16))]
    assert [max(in_flight(schedule)) for schedule in choices] == [8, 11, 13, 15, 32]
    waits = [bubble(schedule, send=0.5) for schedule in choices]
    assert waits == pytest.approx([3 / 8, 1 / 6, 1 / 8, 1 / 8, 1 / 8])
    assert len({round(bubble(schedule), 9) for schedule in choices}) == 1


# Activations --------------------------------------------------------------------------------------------------


@given(RANKS, BATCHES)
def test_gpipe_holds_every_micro_batch_and_1f1b_one_for_each_rank_to_come(pp, micro_batches):
    assert in_flight(gpipe(pp, micro_batches)) == (micro_batches,) * pp
    assert in_flight(one_f_one_b(pp, micro_batches)) == tuple(min(micro_batches, pp - r) for r in range(pp))


@settings(deadline=None)
@given(RANKS, VIRTUAL, BATCHES, LEADS)
def test_activations_grow_with_n_from_depth_first_to_breadth_first(pp, virtual, micro_batches, lead):
    """On every rank."""
    smallest = min(pp, micro_batches)
    held = [
        in_flight(flexible(pp, virtual, micro_batches, n, lead)) for n in range(smallest, micro_batches + 1)
    ]
    assert all(a <= b for less, more in itertools.pairwise(held) for a, b in zip(less, more, strict=True))
    assert held[-1] == (virtual * micro_batches,) * pp
    if lead == 2:
        assert held[0] == in_flight(interleaved(pp, virtual, micro_batches))


def test_depth_first_holds_less_than_n_and_n_less_than_breadth_first():
    """Megatron's count is (V - 1) N + 2 (PP - 1 - r) + 1."""
    assert in_flight(flexible(4, 2, 24, n=4)) == in_flight(interleaved(4, 2, 24)) == (11, 9, 7, 5)
    assert in_flight(flexible(4, 2, 24, n=6)) == (13, 11, 9, 7)
    assert in_flight(flexible(4, 3, 24, n=8)) == (23, 21, 19, 17)
    assert in_flight(flexible(4, 2, 24, n=6, lead=1)) == (10, 9, 8, 7)
    assert in_flight(flexible(4, 2, 24, n=24)) == (48, 48, 48, 48)


# Mistakes -----------------------------------------------------------------------------------------------------


def changed(schedule, rank, order):
    ranks = [*schedule.ranks]
    ranks[rank] = tuple(order)
    return dataclasses.replace(schedule, ranks=tuple(ranks))


def test_orders_that_are_not_legal():
    good = gpipe(2, 2)
    f0, f1, b0, b1 = good.ranks[0]
    for rank, order, says in [
        (
            0,
            (f0, f1, b0),
            r"Rank 0 never does the backward pass of micro-batch 1 through chunk 0 \(1 operation",
        ),
        (0, (f0, f1, b0, b1, f1), "Rank 0 does the forward pass of micro-batch 1 through chunk 0 2 times"),
        (
            1,
            (f0, f1, b0, Operation("backward", 1, 1)),
            "Rank 1 does .* there are 1 chunks and 2 micro-batches",
        ),
        (
            0,
            (f0, b0, f1, b1),
            r"ranks \[0, 1\] are stuck: rank 0 is at the backward pass of micro-batch 0 through chunk 0, "
            "which needs the backward pass of micro-batch 0 through chunk 0 on rank 1 first",
        ),
    ]:
        with pytest.raises(UserError, match=says):
            timeline(changed(good, rank, order))
    timeline(changed(good, 1, (f0, b0, f1, b1)))  # the last rank may


@pytest.mark.parametrize("pp, rank", [(1, 0), (2, 0), (2, 1)])
def test_a_backward_before_its_forward_never_ends(pp, rank):
    good = gpipe(pp, 2)
    f0, f1, b0, b1 = good.ranks[0]
    with pytest.raises(UserError, match="never ends"):
        timeline(changed(good, rank, (b0, f0, f1, b1)))


def test_sizes_that_make_no_schedule():
    for make, says in [
        (lambda: gpipe(0, 4), "pp is 0; it must be at least 1"),
        (lambda: one_f_one_b(4, 0), "micro_batches is 0"),
        (lambda: interleaved(4, 0, 8), "virtual is 0"),
        (
            lambda: flexible(4, 2, 8, n=3),
            "n is 3; with 4 ranks and 8 micro-batches it must be between 4 and 8",
        ),
        (lambda: flexible(4, 2, 2, n=4), "between 2 and 2"),
        (lambda: flexible(4, 2, 8, n=4, lead=3), "lead is 3; it must be 1 or 2"),
    ]:
        with pytest.raises(UserError, match=says):
            make()


# Layers -------------------------------------------------------------------------------------------------------


def test_layers_of_llama_3_405b():
    chunks = layers_of_stages(126, pp=16, virtual=8)
    assert [len(stage) for stage in chunks] == [0] + [1] * 126 + [0]  # the embedding alone, the head alone
    assert [len(stage) for stage in layers_of_stages(126, pp=16)] == [7] + [8] * 14 + [7]


@given(st.integers(1, 5), RANKS, VIRTUAL, st.booleans())
def test_every_layer_is_in_one_stage(each, pp, virtual, spare_ends):
    stages = pp * virtual
    n_layers = each * stages - 2 * spare_ends
    if n_layers < 1:
        return
    parts = layers_of_stages(n_layers, pp, virtual, spare_ends)
    assert len(parts) == stages
    assert [layer for part in parts for layer in part] == list(range(n_layers))
    assert all(
        len(part) == each - spare_ends * ((s == 0) + (s == stages - 1)) for s, part in enumerate(parts)
    )


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            (32, 4),
            "32 layers .* 4 stages, the first .* less; 30 or 34 would. So would these with spare_ends=False.",
        ),
        ((30, 4, 1, False), "30 layers do not divide into 4 stages; 28 or 32 would.$"),
        ((1, 4, 1, False), "stages; 4 would"),
        ((0, 4), "n_layers is 0"),
    ],
)
def test_layers_that_do_not_divide(arguments, says):
    with pytest.raises(UserError, match=says):
        layers_of_stages(*arguments)


def test_schedules_need_neither_jax_nor_matplotlib(run_python):
    code = "import sys, min_llm.parallel.schedules; print({'jax', 'matplotlib'} & set(sys.modules))"
    assert run_python(code).stdout == "set()\n"
