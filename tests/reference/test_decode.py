import numpy as np
import pytest

from min_llm.reference import gpt2, llama
from min_llm.reference.batch import prompt
from min_llm.reference.decode import cache_bytes, cached, recompute

PROMPT = [3, 14, 1, 5]


@pytest.mark.parametrize("changes", [{}, {"window": 3}, {"n_kv_heads": 1}])
def test_llama_with_a_cache_says_what_it_says_without(make_llama, changes):
    cfg, params = make_llama(**changes)
    said = cached(llama, params, cfg, PROMPT, 12)
    assert said == recompute(llama, params, cfg, PROMPT, 12)
    assert len(said) == 12
    assert len(set(said)) > 1  # a model that repeats one token would prove little


def test_gpt2_with_a_cache_says_what_it_says_without(make_gpt2):
    cfg, params = make_gpt2()
    assert cached(gpt2, params, cfg, PROMPT, 12) == recompute(gpt2, params, cfg, PROMPT, 12)


@pytest.mark.parametrize("module", [llama, gpt2])
def test_logits_place_by_place_equal_those_of_one_pass(module, make_llama, make_gpt2):
    cfg, params = (make_llama if module is llama else make_gpt2)()
    tokens = [3, 14, 1, 5, 9, 2]
    whole, whole_cache, _ = module.forward(params, cfg, prompt(tokens))
    first, cache, _ = module.forward(params, cfg, prompt(tokens[:3]))
    pieces = [first]
    for i in range(3, 6):
        logits, cache, _ = module.forward(params, cfg, prompt(tokens[i : i + 1], start=i), past=cache)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-12)
    for pair, whole_pair in zip(cache, whole_cache, strict=True):
        np.testing.assert_allclose(pair, whole_pair, atol=1e-12)


def test_cache_bytes_are_counted_by_the_formula(make_llama):
    cfg, params = make_llama()
    _, cache, _ = llama.forward(params, cfg, prompt(PROMPT))
    per_token = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * 8  # k and v in float64
    assert cache_bytes(cache) == len(PROMPT) * per_token
