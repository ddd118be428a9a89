"""Greedy generation, with and without a KV cache.

A causal model never changes its mind about the past: the keys and values of a place depend on that place and
earlier ones only. So they can be kept. Without a cache, each new token costs a pass over the whole text; with
one, a pass over one token that attends to what is stored. The tokens are the same; a test says so.

`model` is the module llama, gpt2 or mixtral. Temperature 0: the most likely token is taken each time.
"""

from __future__ import annotations

from min_llm.reference.batch import prompt
from min_llm.reference.params import unstack


def recompute(model, params, cfg, tokens, n_new):
    """`n_new` tokens that follow `tokens`, each from a full pass over all tokens before it."""
    params, tokens = unstack(params), list(tokens)
    for _ in range(n_new):
        logits, _, _ = model.forward(params, cfg, prompt(tokens))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[-n_new:]


def cached(model, params, cfg, tokens, n_new):
    """The same tokens: one pass over the prompt (prefill), then one over each new token (decode)."""
    params, tokens = unstack(params), list(tokens)
    batch, cache = prompt(tokens), None
    for _ in range(n_new):
        logits, cache, _ = model.forward(params, cfg, batch, past=cache)
        tokens.append(int(logits[0, -1].argmax()))
        batch = prompt(tokens[-1:], start=len(tokens) - 1)
    return tokens[-n_new:]


def cache_bytes(cache):
    """Bytes kept: 2 (k and v) x layers x key/value heads x head width x bytes of a number, for each token."""
    return sum(array.nbytes for pair in cache for array in pair)
