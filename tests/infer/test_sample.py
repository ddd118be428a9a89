"""Generation with a cache equals recomputation of everything; sampling keeps to its distribution; bad input."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from min_llm import models
from min_llm.config import UserError
from min_llm.infer import cache as caches
from min_llm.infer import sample
from min_llm.infer.request import Sampling
from min_llm.infer.sample import generate
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime
from min_llm.reference import decode
from tests.toys import GPT2, LLAMA, MIXTRAL, QUICK, oracle, random_weights

GREEDY = Sampling(temperature=0)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]  # ragged, in one batch
CASES = {
    "llama": (LLAMA, Runtime()),
    "llama, scan, window, norms of heads, reference": (
        dataclasses.replace(LLAMA, window=4, n_kv_heads=1, qk_norm=True),
        Runtime(scan=True, attention="reference"),
    ),
    "mixtral": (MIXTRAL, Runtime(scan=True)),
    "gpt2, blockwise": (GPT2, Runtime(attention="blockwise")),
    "gpt2, scan": (dataclasses.replace(GPT2, bias=False), Runtime(scan=True)),
}


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICK)
def forward(params, cfg, runtime, batch, cache):
    return models.logits(params, cfg, batch, runtime, cache)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_those_of_full_recomputation(case):
    """The oracle runs over the whole text for every new token."""
    cfg, runtime = CASES[case]
    params = random_weights(cfg)
    got = generate(params, cfg, runtime, PROMPTS, 6, GREEDY)
    assert got == [decode.recompute(oracle(cfg), params, cfg, prompt, 6) for prompt in PROMPTS]


@pytest.mark.parametrize("case", CASES)
def test_cached_logits_equal_those_of_one_pass(case):
    """A prefill of 4 tokens, then 1, 1, 3 and 1 more, each row from a place of its own."""
    cfg, runtime = CASES[case]
    params = random_weights(cfg)
    texts = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 16)).astype(np.int32)
    whole, _ = forward(params, cfg, runtime, Batch(texts), None)
    cache = caches.empty(cfg, 2, 20, runtime.dtype)
    _, cache = forward(params, cfg, runtime, Batch(texts[:, :4]), cache)
    place = np.array([4, 2])  # the second row keeps only two of the four
    for n in (1, 1, 3, 1):
        places = (place[:, None] + np.arange(n)).astype(np.int32)
        some = Batch(np.take_along_axis(texts, places, 1), positions=places, index=places)
        logits, cache = forward(params, cfg, runtime, some, cache)
        want = np.take_along_axis(np.asarray(whole), places[..., None], 1)
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
        place = place + n


def test_neighbours_and_room_do_not_matter():
    """A prompt continues alike, alone or beside others, with a small or a large buffer."""
    params = random_weights(LLAMA)
    together = generate(params, LLAMA, Runtime(), PROMPTS, 20, GREEDY)
    assert generate(params, LLAMA, Runtime(), PROMPTS[1:2], 20, GREEDY) == together[1:2]
    assert [row[:5] for row in together] == generate(params, LLAMA, Runtime(), PROMPTS, 5, GREEDY)


def test_a_prompt_and_its_continuation_may_fill_the_context():
    """Lengths are rounded up for few compilations, but never over the positions that a GPT-2 has learned."""
    cfg = dataclasses.replace(GPT2, max_seq_len=12)
    params = random_weights(cfg)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert generate(params, cfg, Runtime(), [prompt], 3, GREEDY) == [
        decode.recompute(oracle(cfg), params, cfg, prompt, 3)
    ]


def test_generation_ends_before_the_end_of_document():
    params = random_weights(LLAMA)
    whole = generate(params, LLAMA, Runtime(), PROMPTS, 6, GREEDY)
    eos = whole[0][3]
    cut = generate(params, LLAMA, Runtime(), PROMPTS, 6, GREEDY, eos=eos)
    assert len(cut[0]) <= 3
    for row, full in zip(cut, whole, strict=True):
        assert row == (full[: full.index(eos)] if eos in full else full)


def test_sampling_is_a_function_of_the_seed():
    params = random_weights(LLAMA)
    take = lambda seed: generate(params, LLAMA, Runtime(), PROMPTS, 12, Sampling(1.0), seed=seed)
    assert take(0) == take(0)
    assert take(0) != take(1)


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([], 3, "at least one token"),
        ([[1], []], 3, "at least one token"),
        ([[1]], 0, "max_tokens is 0"),
        ([[1] * 60], 5, "60 tokens and 5 new ones do not fit the model's max_seq_len of 64"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(prompts, max_tokens, message):
    with pytest.raises(UserError, match=message):
        generate(None, LLAMA, Runtime(), prompts, max_tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p, typical_p and repetition_penalty"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Sampling(**fields)


def test_packed_rows_cannot_be_decoded():
    with pytest.raises(UserError, match="one document a row"):
        caches.empty(LLAMA, 1, 4, "float32").mask(
            Batch(np.zeros((1, 4), np.int32), segment_ids=np.ones((1, 4))), None
        )


def test_equal_prompts_get_different_draws():
    """And each row its own, whatever stands beside it."""
    params = random_weights(LLAMA)
    three = generate(params, LLAMA, Runtime(), [[5, 3]] * 3, 12, Sampling(2.0), seed=4)
    assert len({tuple(row) for row in three}) == 3
    assert generate(params, LLAMA, Runtime(), [[5, 3], [1, 2, 3]], 12, Sampling(2.0), seed=4)[0] == three[0]


def test_each_row_is_drawn_from_the_models_distribution():
    """First tokens of 2,000 rows, and second tokens that follow the likeliest of them, against softmax(logits / T)."""
    params = random_weights(LLAMA)
    rows = generate(params, LLAMA, Runtime(), [[5, 3]] * 2000, 2, Sampling(1.5, top_k=4))
    firsts = np.bincount([first for first, _ in rows], minlength=LLAMA.vocab_size)
    likeliest = int(firsts.argmax())
    seconds = np.bincount([b for a, b in rows if a == likeliest], minlength=LLAMA.vocab_size)
    for text, counts in (([5, 3], firsts), ([5, 3, likeliest], seconds)):
        logits, _ = forward(params, LLAMA, Runtime(), Batch(np.int32([text])), None)
        scaled = np.float64(logits[0, -1]) / 1.5
        p = np.where(scaled >= np.sort(scaled)[-4], np.exp(scaled - scaled.max()), 0)
        p /= p.sum()
        deviations = np.sqrt(counts.sum() * p * (1 - p))
        assert np.all(np.abs(counts - counts.sum() * p) <= 4.5 * deviations)


def test_other_sampling_compiles_nothing():
    params = random_weights(LLAMA)
    generate(params, LLAMA, Runtime(), PROMPTS, 5, GREEDY)
    before = sample._generate._cache_size()
    generate(params, LLAMA, Runtime(), PROMPTS, 5, Sampling(0.7, 3, 0.9, 0.01, 0.9), seed=9)
    assert sample._generate._cache_size() == before


@pytest.mark.parametrize("field", ["repetition_penalty", "n", "logprobs", "seed"])
def test_what_is_the_engines_is_refused(field):
    with pytest.raises(UserError, match=f"{field} is 2.*engine"):
        generate(None, LLAMA, Runtime(), [[1]], 3, Sampling(**{field: 2}))


def test_a_row_ends_where_logits_are_not_numbers():
    params = random_weights(LLAMA)
    params = dataclasses.replace(params, head=np.full_like(params.head, np.nan))
    assert generate(params, LLAMA, Runtime(), PROMPTS, 3, GREEDY) == [[], [], []]


def test_only_the_tokenizers_ids_are_drawn():
    """A padded vocabulary: without the bound some of the ids beyond it come, with it none, whatever the temperature."""
    params = models.init(LLAMA, 0)
    for sampling in (GREEDY, Sampling(5.0)):
        free = generate(params, LLAMA, Runtime(), PROMPTS, 20, sampling)
        assert any(i >= 7 for row in free for i in row)
        bound = generate(params, LLAMA, Runtime(), PROMPTS, 20, sampling, vocab=7)
        assert all(i < 7 for row in bound for i in row)
