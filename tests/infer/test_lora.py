"""Adapters in the engine: every row has its own, and the rows beside it do not notice."""

import dataclasses
import functools

import pytest

from min_llm import models
from min_llm.config import UserError
from min_llm.formats import peft
from min_llm.infer.adapters import UnknownAdapter
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.infer.request import Sampling
from min_llm.kernels import cpu
from min_llm.nn.lora import adapt, merge
from min_llm.nn.runtime import Runtime
from min_llm.quant.quantize import quantize
from min_llm.reference import decode
from min_llm.tokenizers.byte import Bytes
from tests import loras
from tests.infer.test_engine import CASES, GREEDY, ids, prompts
from tests.toys import oracle, random_weights

CONFIG = EngineConfig(max_sequences=5, chunk=16, page_size=4, cache_tokens=400, max_loras=2, max_lora_rank=4)
TOLD = Sampling(temperature=0, max_tokens=8, logprobs=2, prompt_logprobs=1)
ADAPTERS = {None: None, "one": 1, "two": 2}


def adapter(case, name):
    """The second has nothing for some matrices."""
    targets = () if name == "one" else ("wq", "wo")
    return loras.adapter(CASES[case], ADAPTERS[name], 2 + ADAPTERS[name], targets, size=0.3)


def new_engine(case="llama", dtype="float32", method=None, **changes):
    params = random_weights(CASES[case])
    if method:
        params = quantize(params, models.spec(CASES[case]), method)
    loaded = Loaded(case, CASES[case], params, Runtime(dtype=dtype), Bytes())
    made = Engine(loaded, dataclasses.replace(CONFIG, **changes))
    if made.config.max_loras:
        for name in ("one", "two"):
            made.load_lora(name, adapter(case, name))
    return made


engine = functools.cache(new_engine)


def answers(engine, requests):
    """[(tokens of the prompt, those of the answer)] of (prompt, sampling, adapter), all at once."""
    numbers = [engine.add(prompt, sampling, name) for prompt, sampling, name in requests]
    prompt, found = {}, {n: [] for n in numbers}
    while engine.busy:
        for o in engine.step():
            found[o.request] += o.tokens
            prompt[o.request] = o.prompt or prompt.get(o.request)
    return [(prompt[n], found[n]) for n in numbers]


NEWEST = pytest.mark.newest


@pytest.mark.parametrize(
    "case, method",
    [
        ("llama", None),
        ("gpt2", None),
        pytest.param("gpt2", "int8", marks=NEWEST),
        pytest.param("mixtral", None, marks=NEWEST),
    ],
)
def test_a_mixed_batch_answers_as_merged_models_do(case, method):
    params, cfg = random_weights(CASES[case]), CASES[case]
    if method:
        nothing = loras.adapter(cfg, size=0)
        params = merge(adapt(quantize(params, models.spec(cfg), method), nothing))
    one = engine(case, "float32", method)
    texts = prompts(3, 20, 7, 9, 25, 18, seed=5)
    names = [None, "one", "two", "one", None, "two"]
    found = answers(one, [(p, GREEDY, n) for p, n in zip(texts, names, strict=True)])
    want = []
    for prompt, name in zip(texts, names, strict=True):
        weights = loras.merged(params, adapter(case, name)) if name else params
        want.append(decode.recompute(oracle(cfg), weights, cfg, prompt, GREEDY.max_tokens))
    assert [ids(tokens) for _, tokens in found] == want
    assert one.statistics().compiles == 0


@pytest.mark.skipif(not cpu.available(), reason=f"no kernels: {cpu.unavailable()}")
@pytest.mark.parametrize(
    "case, dtype, method",
    [
        ("llama", "float32", None),
        pytest.param("llama", "bfloat16", None, marks=NEWEST),
        pytest.param("llama", "float32", "w8a8", marks=NEWEST),
    ],
)
def test_nobody_notices_the_others(case, dtype, method):
    """Log-probabilities to the last bit: alone and among others, in whichever slot; and without an adapter those of an
    engine that has none."""
    one, plain = engine(case, dtype, method), engine(case, dtype, method, max_loras=0)
    texts = prompts(3, 30, 17, 9, seed=6)
    requests = [(p, TOLD, name) for p in texts for name in ADAPTERS]
    together = answers(one, requests)
    assert together == [answers(one, [request])[0] for request in requests]
    assert together[::3] == answers(plain, requests[::3])
    assert len({tuple(ids(tokens)) for _, tokens in together}) > 2 * len(texts)
    swapped = new_engine(case, dtype, method, warm=False, max_loras=3)
    swapped.load_lora("three", adapter(case, "one"))
    assert swapped.adapters["three"].slot != one.adapters["one"].slot
    assert answers(swapped, [(p, TOLD, "three") for p in texts]) == together[1::3]


def test_a_new_version_shares_no_pages_and_running_requests_keep_the_old_one():
    one = new_engine(max_loras=3)
    (prompt,) = prompts(30, seed=8)
    sampling = dataclasses.replace(GREEDY, max_tokens=20)
    ((_, old),) = answers(one, [(prompt, sampling, "one")])
    running = one.add(prompt, sampling, "one")
    found, hits = [], one.statistics().prefix_hits
    for _ in range(5):
        found += [t for o in one.step() for t in o.tokens]
    assert one.statistics().prefix_hits > hits  # the same version does share them
    one.load_lora("one", adapter("llama", "two"))
    assert one.adapters["one"].slot not in (1, 2)
    hits = one.statistics().prefix_hits
    later = one.add(prompt, sampling, "one")
    with pytest.raises(UserError, match="places for adapters"):
        one.load_lora("three", adapter("llama", "two"))
    new = []
    while one.busy:
        for o in one.step():
            (found if o.request == running else new).extend(o.tokens)
            assert o.request in (running, later)
    assert one.statistics().prefix_hits == hits
    assert found == old and new == answers(one, [(prompt, sampling, "two")])[0][1] != old
    one.load_lora("three", adapter("llama", "two"))  # there is room again
    assert one.statistics().compiles == 0


def test_what_is_unloaded_goes_on_for_those_who_have_it():
    one = new_engine()
    (prompt,) = prompts(12, seed=9)
    ((_, want),) = answers(one, [(prompt, GREEDY, "one")])
    one.add(prompt, GREEDY, "one")
    one.unload_lora("one")
    for act in (
        lambda: one.add(prompt, GREEDY, "one"),
        lambda: one.unload_lora("one"),
        lambda: one.embed([prompt], "one"),
    ):
        with pytest.raises(UnknownAdapter, match="no adapter 'one'"):
            act()
    assert list(one.adapters) == ["two"] and len(one.adapters) == 1
    found = []
    while one.busy:
        found += [t for o in one.step() for t in o.tokens]
    assert found == want


def test_guesses_change_no_token():
    """What the model alone would say is guessed, and what the adapter says is kept."""
    one = engine(speculate=3)
    asked = [
        ((p * 3)[:40], dataclasses.replace(GREEDY, max_tokens=20), n) for p in prompts(6, 9) for n in ADAPTERS
    ]
    assert answers(one, asked) == answers(engine(), asked)
    assert one.statistics().drafted > 0


def test_several_choices_and_embeddings():
    one, (prompt,) = engine(), prompts(14, seed=10)
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=6, n=3)
    number = one.add(prompt, sampling, "one")
    tokens = {0: [], 1: [], 2: []}
    while one.busy:
        for o in one.step():
            assert o.request == number
            tokens[o.choice] += ids(o.tokens)
    assert len(set(map(tuple, tokens.values()))) == 3
    vectors = [one.embed([prompt], name)[0] for name in ADAPTERS]
    assert abs(vectors[0] - vectors[1]).max() > 1e-2 < abs(vectors[1] - vectors[2]).max()


def test_from_a_folder_and_refused(tmp_path):
    one, cfg = new_engine(), CASES["llama"]
    peft.write(tmp_path / "good", cfg, adapter("llama", "one"))
    peft.write(tmp_path / "wide", cfg, loras.adapter(cfg, rank=9))
    before = one.adapters["one"]
    for path, sentence in ((tmp_path / "wide", "rank 9"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(UserError, match=sentence):
            one.load_lora("one", path)
    with pytest.raises(UserError, match="another model: wq"):
        one.load_lora("one", loras.adapter(CASES["gpt2"], targets=("wq",)))
    assert one.adapters["one"] == before
    one.load_lora("one", str(tmp_path / "good"))
    (prompt,) = prompts(12, seed=9)
    assert answers(one, [(prompt, GREEDY, "one")]) == answers(engine(), [(prompt, GREEDY, "one")])
    with pytest.raises(UserError, match="set max_loras"):
        engine(max_loras=0).load_lora("one", tmp_path / "good")
