"""Pages and scheduler against a pretended pool, in which a page remembers what was written into each of its places."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from min_llm.infer.pages import Pages, root
from min_llm.infer.scheduler import BLOCK, Scheduler, Sequence

SIZE, TOTAL, ROWS, CHUNK = 4, 12, 3, 2 * BLOCK
LONGEST = TOTAL * SIZE - 1
TOKENS = st.integers(0, 1)  # so few that prompts begin alike


def next_token(tokens):
    """What the pretended model says."""
    return (sum(tokens) * 31 + len(tokens)) % 2


class Schedules(RuleBasedStateMachine):
    """Requests come, are cancelled, guess their next tokens; every step must find what it reads."""

    def __init__(self):
        super().__init__()
        self.pages = Pages(TOTAL, SIZE)
        self.scheduler = Scheduler(self.pages, ROWS, ROWS + 2, CHUNK)
        self.pool = {}  # (page, place) -> everything that its numbers depend on
        self.live = {}  # sequence -> (prompt, how long it is to become)

    @rule(
        prompt=st.lists(TOKENS, min_size=1, max_size=LONGEST - 8),
        new=st.integers(1, 8),
        salt=st.sampled_from("ab"),
    )
    def add(self, prompt, new, salt):
        sequence = Sequence(list(prompt), root("", salt))
        self.scheduler.add(sequence)
        self.live[sequence] = (prompt, len(prompt) + new)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        sequence = data.draw(st.sampled_from(list(self.live)))
        self.scheduler.remove(sequence)
        del self.live[sequence]

    @precondition(lambda self: self.live)
    @rule(guesses=st.lists(TOKENS, max_size=3))
    def step(self, guesses):
        for sequence in self.scheduler.running:
            if sequence.missing == 1:
                room = self.live[sequence][1] - len(sequence.tokens) - 1
                sequence.drafts = guesses[: max(0, room)]
        plan = self.scheduler.plan()
        assert plan.parts, "no progress"
        assert sum(p.count for p in plan.singles) <= ROWS + 2
        assert sum(-(-p.count // BLOCK) * BLOCK for p in plan.chunks) <= CHUNK
        assert len({id(p.sequence) for p in plan.parts}) == len(plan.parts)
        source = [{i: self.pool.get((a, i)) for i in range(SIZE)} for a, _ in plan.copies]
        for (_, b), content in zip(plan.copies, source, strict=True):
            self.pool.update({(b, i): value for i, value in content.items()})
        texts = [(part, [*part.sequence.tokens, *part.sequence.drafts]) for part in plan.parts]
        for part, text in texts:  # all are written before any is read
            for place in range(part.start, part.start + part.count):
                page = part.sequence.pages[place // SIZE]
                self.pool[page, place % SIZE] = (part.sequence.root, tuple(text[: place + 1]))
        for part, text in texts:
            for place in range(part.start + part.count):
                found = self.pool[part.sequence.pages[place // SIZE], place % SIZE]
                assert found == (part.sequence.root, tuple(text[: place + 1]))
        for part in plan.parts:
            self.finish(part)

    def finish(self, part):
        sequence, drafts = part.sequence, list(part.sequence.drafts)
        if not part.samples:
            self.scheduler.commit(part, part.count)
            return
        took = 0
        n = len(drafts) + 1 if part.count == len(drafts) + 1 else 1
        for i in range(n):
            sequence.tokens.append(next_token(sequence.tokens))
            took += 1
            if i == len(drafts) or sequence.tokens[-1] != drafts[i]:
                break
        sequence.drafts = []
        self.scheduler.commit(part, part.count - n + took)
        assert sequence.missing == 1
        if len(sequence.tokens) >= self.live[sequence][1]:
            prompt, _ = self.live.pop(sequence)
            self.scheduler.remove(sequence)
            want = list(prompt)
            while len(want) < len(sequence.tokens):
                want.append(next_token(want))
            assert sequence.tokens == want

    @invariant()
    def every_page_is_somewhere_once(self):
        assert self.pages.free + self.pages.cached + self.pages.used == TOTAL
        held = [page for s in self.scheduler.running for page in s.pages]
        assert len(set(held)) == self.pages.used
        assert not any(s.pages for s in self.scheduler.waiting)

    def teardown(self):
        for _ in range(10_000):
            if not self.live:
                break
            self.step([])
        assert not self.live and self.pages.used == 0


Schedules.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_schedules = Schedules.TestCase


def run(scheduler, sequence):
    """All of its prompt; how many tokens were computed."""
    computed = 0
    while sequence.missing:
        for part in scheduler.plan().parts:
            scheduler.commit(part, part.count)
            computed += part.count if part.sequence is sequence else 0
    return computed


def test_a_prompt_that_begins_like_another_computes_the_rest_only():
    """Two whole pages are shared; the third begins alike for two tokens and is copied."""
    pages = Pages(20, 4)
    scheduler = Scheduler(pages, 4, 4, 64)
    first = Sequence(list(range(14)), root("", ""))
    scheduler.add(first)
    assert run(scheduler, first) == 14
    second = Sequence([*range(10), 77, 78], root("", ""))
    scheduler.add(second)
    plan = scheduler.plan()
    assert (plan.copies, second.computed) == ([(first.pages[2], second.pages[2])], 10)
    assert second.pages[:2] == first.pages[:2] and second.cached == 10


@pytest.mark.parametrize("other", [("", "salt"), ("adapter", ""), ("a", "dapter")], ids="-".join)
def test_other_adapters_and_salts_share_nothing(other):
    pages = Pages(20, 4)
    scheduler = Scheduler(pages, 4, 4, 64)
    for start in (root("", ""), root(*other)):
        sequence = Sequence(list(range(9)), start)
        scheduler.add(sequence)
        assert run(scheduler, sequence) == 9


def test_the_least_recently_used_page_is_forgotten_and_the_end_of_a_text_before_its_beginning():
    pages = Pages(4, 2)
    a = pages.take(2)
    digest = pages.keep(a[0], b"", [1, 2])
    pages.keep(a[1], digest, [3, 4])
    b = pages.take(1)
    pages.keep(b[0], b"", [5, 6])
    pages.release(a)
    pages.release(b)
    assert (pages.free, pages.cached) == (1, 3)
    pages.take(2)
    assert pages.match([1, 2, 3, 4], b"").pages == (a[0],)
    assert pages.match([5, 6], b"").pages == (b[0],)


def test_decoding_goes_on_while_a_long_prompt_is_computed():
    pages = Pages(100, 4)
    scheduler = Scheduler(pages, 4, 4, 16)
    short, long = Sequence([1], root("", "")), Sequence([2] * 100, root("", ""))
    scheduler.add(short)
    for part in scheduler.plan().parts:
        short.tokens.append(1)
        scheduler.commit(part, part.count)
    scheduler.add(long)
    for _ in range(5):
        plan = scheduler.plan()
        assert [p.sequence for p in plan.singles] == [short] and [p.count for p in plan.chunks] == [16]
        short.tokens.append(1)
        for part in plan.parts:
            scheduler.commit(part, part.count)


def test_the_prefix_cache_is_not_cleared_under_anybody():
    pages = Pages(4, 2)
    pages.take(1)
    with pytest.raises(RuntimeError, match="in use"):
        pages.clear()
