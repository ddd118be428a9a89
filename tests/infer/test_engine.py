"""The engine answers as the model does without any cache, whatever else runs; nothing is compiled after its start."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from min_llm.config import UserError
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Sampling
from min_llm.kernels import cpu
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.reference import decode
from min_llm.tokenizers.byte import Bytes
from tests.toys import GPT2, LLAMA, MIXTRAL, oracle, random_weights

VOCAB = 19 + 238
CASES = {
    "llama": dataclasses.replace(LLAMA, vocab_size=VOCAB),
    "llama, window": dataclasses.replace(LLAMA, vocab_size=VOCAB, window=5, n_kv_heads=1),
    "llama, norms of heads, no gate": dataclasses.replace(LLAMA, vocab_size=VOCAB, qk_norm=True, gated=False),
    "mixtral": dataclasses.replace(MIXTRAL, vocab_size=VOCAB),
    "gpt2": dataclasses.replace(GPT2, vocab_size=VOCAB),
}
# wide enough that training's kernels would take a step with a chunk and leave one without
WIDE = dataclasses.replace(CASES["llama"], dim=192, head_dim=16, hidden_dim=200)
SMALL = EngineConfig(max_sequences=3, chunk=16, page_size=4, cache_tokens=72)
LARGE = EngineConfig(max_sequences=20, chunk=96, page_size=16, cache_tokens=2000)
INT8 = {"kv_dtype": "int8"}
GREEDY = Sampling(temperature=0, max_tokens=6)


@functools.cache
def weights(case):
    return random_weights((CASES | {"wide": WIDE})[case])


@functools.cache
def engine(case="llama", config=SMALL, dtype="float32"):
    return Engine(
        Loaded(case, (CASES | {"wide": WIDE})[case], weights(case), Runtime(dtype=dtype), Bytes()), config
    )


@functools.cache
def greedy(case, prompt, n):
    """The oracle runs over the whole text for every new token."""
    return decode.recompute(oracle(CASES[case]), weights(case), CASES[case], list(prompt), n)


def answers(engine, requests):
    """{request number: {choice: [tokens]}} in the order of `requests`, and all outputs."""
    numbers = [engine.add(prompt, sampling) for prompt, sampling in requests]
    outputs = []
    while engine.busy:
        outputs += engine.step()
        check_pages(engine)
    found = {n: {} for n in numbers}
    for o in outputs:
        if o.request in found:
            found[o.request].setdefault(o.choice, []).extend(o.tokens)
    return [found[n] for n in numbers], outputs


def ids(tokens):
    return [t.id for t in tokens]


def check_pages(engine):
    s = engine.statistics()
    assert s.pages_free + s.pages_cached + s.pages_used == s.pages_total
    assert s.pages_used == 0 or engine.busy


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, n).tolist() for n in lengths]


@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_equal_full_recomputation(case):
    """With less room than they need together: some are preempted and computed anew."""
    texts = prompts(3, 20, 7, 1, 25, 30)
    before = engine(case).statistics().preemptions
    found, _ = answers(engine(case), [(p, dataclasses.replace(GREEDY, max_tokens=12)) for p in texts])
    assert [ids(f[0]) for f in found] == [greedy(case, tuple(p), 12) for p in texts]
    assert engine(case).statistics().preemptions > before


class Traffic(RuleBasedStateMachine):
    """Requests that begin alike come and are cancelled in the middle of the work of others."""

    def __init__(self):
        super().__init__()
        self.engine = engine()
        self.live, self.found = {}, {}
        (self.text,) = prompts(50, seed=7)

    @rule(begin=st.integers(0, 30), odd=st.integers(0, 3), n=st.integers(1, 8))
    def add(self, begin, odd, n):
        prompt = self.text[:begin] + [odd]
        number = self.engine.add(prompt, dataclasses.replace(GREEDY, max_tokens=n))
        self.live[number], self.found[number] = (tuple(prompt), n), []

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        number = data.draw(st.sampled_from(list(self.live)))
        self.engine.abort(number)
        del self.live[number]

    @rule()
    def step(self):
        for o in self.engine.step():
            self.found[o.request] += ids(o.tokens)
            if o.finish:
                prompt, n = self.live.pop(o.request)
                assert self.found[o.request] == greedy("llama", prompt, n)

    @invariant()
    def every_page_is_somewhere(self):
        check_pages(self.engine)

    def teardown(self):
        while self.engine.busy:
            self.step()
        assert not self.live and self.engine.statistics().pages_used == 0


Traffic.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
test_traffic = Traffic.TestCase


@pytest.mark.parametrize(("dtype", "cache"), [("float32", {}), ("bfloat16", {}), ("float32", INT8)])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9, seed=5, max_tokens=12)])
def test_a_request_gets_the_same_tokens_alone_and_among_others(sampling, dtype, cache):
    """Alone it decodes in 8 rows, among 15 others in 16 and 24; what comes before fills the prefix cache."""
    one = engine("llama", dataclasses.replace(LARGE, **cache), dtype)
    mine, *others = prompts(23, *range(1, 46, 3), seed=3)
    (alone,), _ = answers(one, [(mine, sampling)])
    crowd = [(p, dataclasses.replace(sampling, max_tokens=3 + i, seed=i)) for i, p in enumerate(others)]
    crowd.insert(9, (mine, sampling))
    assert answers(one, crowd)[0][9] == alone


def test_several_choices_differ_and_each_has_its_seed():
    sampling = Sampling(temperature=2.0, seed=3, max_tokens=8, n=4)
    (mine,) = prompts(30, seed=9)
    (first,), outputs = answers(engine("llama", LARGE), [(mine, sampling)])
    assert len({tuple(ids(t)) for t in first.values()}) == 4
    assert answers(engine(), [(mine, sampling)])[0] == [first]
    assert {o.choice: o.finish for o in outputs if o.finish} == dict.fromkeys(range(4), "length")
    before = engine("llama", LARGE).statistics().prefix_hits
    answers(engine("llama", LARGE), [(prompts(30, seed=10)[0], sampling)])
    assert (
        engine("llama", LARGE).statistics().prefix_hits >= before + 3 * 16
    )  # the others wait for the first's prompt


def test_nothing_is_compiled_after_the_start():
    one = engine("llama", LARGE)
    before = one.statistics().compiles
    requests = [
        (p, Sampling(temperature=i % 3, top_k=i % 5, top_p=1 - i / 50, min_p=i / 90, presence_penalty=i % 2,
                     typical_p=1 - i % 4 / 10, repetition_penalty=1 + i % 4, logit_bias={i: -3.0}, min_tokens=i % 4,
                     max_tokens=5 + i, logprobs=i if i < 4 else None, n=1 + i % 3,
                     prompt_logprobs=i if i in (0, 1, 7) else None, logprobs_of=("raw", "processed")[i % 2]))
        for i, p in enumerate(prompts(*range(1, 44, 3), seed=11))
    ]  # fmt: skip
    answers(one, requests)
    one.embed(prompts(3, 50))
    assert one.statistics().compiles == before
    before = engine().statistics().compiles
    _, outputs = answers(engine(), [(prompts(33)[0], Sampling(max_tokens=1, prompt_logprobs=1))])
    assert (
        engine().statistics().compiles == before
    )  # the prompt's last token came alone, behind two chunks of 16
    assert [len(o.prompt) for o in outputs] == [33]


def test_log_probabilities_of_prompt_and_answer():
    (mine,) = prompts(37, seed=4)
    sampling = Sampling(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2)
    (found,), outputs = answers(engine(), [(mine, sampling)])
    text = [*mine, *ids(found[0])]
    logits = np.asarray(
        oracle(CASES["llama"]).logits(weights("llama"), CASES["llama"], Batch(np.array([text])))
    )[0]
    want = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    (prompt,) = [o.prompt for o in outputs if o.prompt]
    assert prompt[0].logprob is None and ids(prompt) == mine
    for i, token in enumerate([*prompt, *found[0]]):
        if i == 0:
            continue
        k = 2 if i < len(mine) else 3
        assert token.logprob == pytest.approx(want[i - 1, token.id], abs=2e-4)
        best = np.argsort(-want[i - 1], kind="stable")[:k]
        np.testing.assert_allclose([p for _, p in token.tops], want[i - 1, best], atol=2e-4)
        assert len(token.tops) == k
        if token.id == token.tops[0][0]:
            assert token.logprob == token.tops[0][1]  # the same float, which lm-eval compares


def test_biases_penalties_and_min_tokens():
    (mine,) = prompts(9, seed=5)
    one = engine()
    (found,), _ = answers(one, [(mine, Sampling(temperature=0, max_tokens=4, logit_bias={65: 1000.0}))])
    assert ids(found[0]) == [65] * 4
    (found,), _ = answers(
        one,
        [
            (
                mine,
                Sampling(
                    temperature=0, max_tokens=4, logit_bias={65: 50.0, 66: 49.0}, frequency_penalty=100.0
                ),
            )
        ],
    )
    assert ids(found[0])[:2] == [65, 66] and len(set(ids(found[0]))) == 4
    end = Sampling(temperature=0, max_tokens=6, logit_bias={65: 1000.0}, stop_ids=[65])
    (found,), outputs = answers(one, [(mine, end)])
    assert ids(found[0]) == [65] and outputs[-1].finish == "stop" and outputs[-1].stopped_by == 65
    assert outputs[-1].text == ""
    (found,), _ = answers(one, [(mine, dataclasses.replace(end, min_tokens=3))])
    assert len(ids(found[0])) == 4 and 65 not in ids(found[0])[:3]


def test_stop_strings_end_an_answer_and_are_not_in_it():
    (mine,) = prompts(9, seed=5)
    sampling = Sampling(temperature=0, max_tokens=9, logit_bias={65: 1000.0}, stop=["AAA"])
    _, outputs = answers(engine(), [(mine, sampling)])
    assert "".join(o.text for o in outputs) == "" and outputs[-1].stopped_by == "AAA"
    _, outputs = answers(engine(), [(mine, dataclasses.replace(sampling, stop=["B"], max_tokens=3))])
    assert "".join(o.text for o in outputs) == "AAA" and outputs[-1].finish == "length"


def test_a_row_that_allows_nothing_ends_its_request_and_no_other():
    every = dict.fromkeys(range(VOCAB), -np.inf)
    a, b = prompts(9, 12, seed=5)
    _, outputs = answers(engine(), [(a, Sampling(temperature=1.0, logit_bias=every)), (b, GREEDY)])
    finishes = {o.request: (o.finish, o.error) for o in outputs if o.finish}
    assert sorted(f for f, _ in finishes.values()) == ["error", "length"]


def test_a_failed_step_loses_nothing(monkeypatch):
    one = engine()
    text = prompts(20, 3, seed=8)
    for p in text:
        one.add(p, GREEDY)
    outputs = one.step()
    with monkeypatch.context() as m:
        m.setattr(one._program, "run", lambda plan: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.step()
    while one.busy:
        outputs += one.step()
    found = {}
    for o in outputs:
        found.setdefault(o.request, []).extend(ids(o.tokens))
    assert [found[n] for n in sorted(found)] == [greedy("llama", tuple(p), 6) for p in text]


def test_embeddings_are_means_of_hidden_states():
    text = prompts(3, 40, seed=6)
    one = engine()
    number = one.add(text[0], GREEDY)
    got = one.embed(text)
    assert got.shape == (2, 15) and np.allclose(np.linalg.norm(got, axis=1), 1)
    np.testing.assert_allclose(one.embed(text[1:])[0], got[1], atol=1e-6)
    outputs = []
    while one.busy:
        outputs += one.step()
    mine = [token.id for o in outputs if o.request == number for token in o.tokens]
    assert mine == greedy("llama", tuple(text[0]), 6)


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        ([], {}, "no tokens"),
        ([1, VOCAB], {}, f"token {VOCAB}"),
        ([1, -1], {}, "token -1"),
        ([1, True], {}, "token True"),
        ([1, 1.5], {}, "token 1.5"),
        ([1] * 64, {}, "at most 64 fit"),
        ([1] * 60, {"max_tokens": 5}, "60 tokens and 5"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias names"),
        ([1], {"stop_ids": [-2]}, "stop_ids names"),
        ([1], {"min_tokens": 7, "max_tokens": 6}, "min_tokens is 7"),
    ],
)
def test_what_can_never_be_served_is_refused(prompt, fields, message):
    with pytest.raises(UserError, match=message):
        engine().add(prompt, Sampling(**fields))
    assert not engine().busy


def speculative(draft=None, dtype="float32"):
    """An engine that guesses four tokens, from the prompt or by a draft model."""
    one = Loaded("llama", CASES["llama"], weights("llama"), Runtime(dtype=dtype), Bytes())
    config = dataclasses.replace(SMALL, speculate=4, cache_tokens=120)
    return Engine(one, config, draft)


def noisy(scale):
    """The model itself with some noise: a draft that is often right."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda w: np.float32(w + scale * rng.normal(size=np.shape(w))), weights("llama"))


@pytest.mark.parametrize("scale", [None, 0.0, 0.01, 10.0])
def test_speculation_changes_no_token(scale):
    """From the prompt, by the model itself, by one that is often right, by one that never is."""
    draft = scale is not None and Loaded("d", CASES["llama"], noisy(scale), Runtime(), Bytes())
    engine()  # compiled before the other one counts
    one = speculative(draft or None)
    repeats = [
        ([*p, *p, *p], s) for p in prompts(6, 3, seed=2) for s in (GREEDY, Sampling(seed=4, max_tokens=12))
    ]
    repeats += [
        (p, Sampling(temperature=2.0, top_k=9, seed=1, max_tokens=20)) for p in prompts(30, 2, 17, seed=1)
    ]
    repeats += [(p, dataclasses.replace(GREEDY, max_tokens=50)) for p in prompts(4, 2, 3, seed=2)]
    repeats += [(prompts(5)[0], Sampling(temperature=0, presence_penalty=1.0, max_tokens=9))]
    plain, _ = answers(engine(), repeats)
    assert answers(one, repeats)[0] == plain
    s = one.statistics()
    rate = s.accepted / s.drafted
    assert s.compiles == 0 and {None: rate < 1, 0.0: rate == 1, 0.01: 0.2 < rate < 1, 10.0: rate < 0.1}[scale]


def test_a_failed_draft_loses_nothing(monkeypatch):
    one = speculative(Loaded("d", CASES["llama"], noisy(0.01), Runtime(), Bytes()))
    text = prompts(20, 3, seed=8)
    for p in text:
        one.add(p, dataclasses.replace(GREEDY, max_tokens=20))
    found = {}
    for turn in itertools.count():
        with monkeypatch.context() as m:
            if turn == 3:
                m.setattr(one._drafter._program, "run", lambda plan: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    one.step()
                continue
            for o in one.step():
                found.setdefault(o.request, []).extend(ids(o.tokens))
        if not one.busy:
            break
    assert turn > 3 and [found[n] for n in sorted(found)] == [greedy("llama", tuple(p), 20) for p in text]
    assert one.statistics().accepted > 0


def test_a_draft_model_must_fit():
    other = dataclasses.replace(LLAMA, vocab_size=VOCAB, max_seq_len=32)
    with pytest.raises(UserError, match="context of 32"):
        speculative(Loaded("d", other, random_weights(other), Runtime(), Bytes()))
    with pytest.raises(UserError, match="another tokenizer"):
        speculative(
            Loaded(
                "d", LLAMA, random_weights(LLAMA), Runtime(), Bytes(special_tokens=(), end_of_document=None)
            )
        )


def logits_of(one, requests, mine):
    """The logits of request number `mine`, token by token, while all run."""
    numbers = [one.add(prompt, sampling) for prompt, sampling in requests]
    wanted, rows, run = numbers[mine], [], one._program.draw

    def draw(logits, drawn):
        rows.extend(np.asarray(logits)[i] for i, (answer, _) in enumerate(drawn) if answer.request == wanted)
        return run(logits, drawn)

    one._program.draw = draw
    try:
        while one.busy:
            one.step()
    finally:
        del one._program.draw
    return np.stack(rows)


@pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("case", "cache"), [("llama", {}), ("wide", {}), ("gpt2", {}), ("wide", INT8)])
def test_logits_have_the_same_bits_whatever_runs_beside(case, cache, dtype):
    """Alone in 8 rows; among 15 others, whose prompts are computed in the same steps; with another prefix cached."""
    small, large = (dataclasses.replace(config, **cache) for config in (SMALL, LARGE))
    one = engine(case, large, dtype)
    mine, *others = prompts(23, *range(1, 46, 3), seed=13)
    sampling = Sampling(temperature=1.0, seed=2, max_tokens=12)
    alone = logits_of(one, [(mine, sampling)], 0)
    crowd = [(p, dataclasses.replace(sampling, max_tokens=3 + i, seed=i)) for i, p in enumerate(others)]
    together = logits_of(one, [*crowd[:9], (mine, sampling), *crowd[9:]], 9)
    assert alone.shape == (12, VOCAB) and (alone.view(np.uint32) == together.view(np.uint32)).all()
    assert (
        logits_of(engine(case, small, dtype), [(mine, sampling)], 0) == alone
    ).all()  # chunks of 16, not 96


def test_keys_and_values_in_int8_change_logits_little():
    """And nothing else: preempted or not, from the prefix cache or not, an answer is the same."""
    texts = prompts(3, 20, 7, 1, 25, 30)
    asked = [(p, dataclasses.replace(GREEDY, max_tokens=12)) for p in texts]
    small, large = (engine(config=dataclasses.replace(c, **INT8)) for c in (SMALL, LARGE))
    found, _ = answers(small, asked)
    assert small.statistics().preemptions > 0
    assert [answers(large, [one])[0][0] for one in asked] == found
    hits = large.statistics().prefix_hits
    assert answers(large, asked[5:])[0] == found[5:] and large.statistics().prefix_hits > hits
    forced = dataclasses.replace(GREEDY, logit_bias={65: 1000.0})  # the same tokens to both
    plain, rounded = (logits_of(e, [(texts[4], forced)], 0) for e in (engine(), small))
    assert 0 < (rounded - plain).std() < 0.02 * plain.std()


def test_a_cache_of_int8_holds_more_tokens():
    cfg, config = CASES["llama"], EngineConfig(max_sequences=99, cache_bytes=2**14, warm=False)
    loaded = Loaded("llama", cfg, weights("llama"), Runtime(), Bytes())
    plain, rounded = (Engine(loaded, c) for c in (config, dataclasses.replace(config, **INT8)))
    bytes = cfg.head_dim * 4, cfg.head_dim + 4  # of a head of a token
    assert [e.statistics().pages_total for e in (plain, rounded)] == [
        2**14 // (2 * 16 * cfg.n_layers * cfg.n_kv_heads * n) for n in bytes
    ]
    with pytest.raises(UserError, match="kv_dtype is 'int4'; it must be one of same, int8"):
        EngineConfig(kv_dtype="int4")
