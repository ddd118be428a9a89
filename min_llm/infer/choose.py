"""The next token of every row: what sampling asks for as arrays, one entry a row, so that nothing is compiled anew.

A row's token is a function of its own logits, arguments, seed and position. On a CPU neither its neighbours, nor their
number, nor its place among them changes a bit of what comes; elsewhere XLA may order the sums of more rows otherwise,
which can move a draw that falls within a rounding of the border between two tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from min_llm import platform
from min_llm.infer import filters
from min_llm.infer.request import Sampling
from min_llm.kernels import cpu

GREEDY_BELOW = 1e-5  # temperatures under it: a division by them would leave the range of float32
COLUMNS = 256  # the vocabulary as a matrix with so many columns; a draw chooses a column, then a row
HUGE = 1e30  # bounds a bias: sums with it stay in the range of float32
NEUTRAL = (0.0, 1.0, 0.0, 1.0, 1.0)  # reals of a greedy row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Arguments of R rows, packed into two arrays: each goes to the device at every step.

    reals: temperature, top_p, min_p, typical_p, repetition_penalty. words: top_k, the seed's low and high word, and the
    place in the sequence of the token to be drawn.
    """

    reals: Float[Array | np.ndarray, "r 5"]
    words: UInt32[Array | np.ndarray, "r 4"]

    temperature = property(lambda self: self.reals[:, 0])
    greedy = property(lambda self: self.temperature < GREEDY_BELOW)
    top_p = property(lambda self: self.reals[:, 1])
    min_p = property(lambda self: self.reals[:, 2])
    typical_p = property(lambda self: self.reals[:, 3])
    repetition_penalty = property(lambda self: self.reals[:, 4])
    top_k = property(lambda self: self.words[:, 0])
    seed = property(lambda self: self.words[:, 2:0:-1])
    position = property(lambda self: self.words[:, 3])

    def at(self, position: Int[Array, " r"]) -> Rows:
        """The same rows for tokens at other places."""
        words = jnp.asarray(self.words).at[:, 3].set(position.astype(jnp.uint32))
        return dataclasses.replace(self, words=words)


def rows(samplings: Sequence[Sampling], seeds: Sequence[int], positions: Sequence[int], size: int) -> Rows:
    """NumPy arrays for a batch of `size` rows; those beyond the samplings are greedy. Of a seed 64 bits count."""
    reals = np.tile(np.array(NEUTRAL, np.float32), (size, 1))
    words = np.zeros((size, 4), np.uint32)
    for i, (s, seed, position) in enumerate(zip(samplings, seeds, positions, strict=True)):
        seed = int(seed)
        reals[i, 4] = s.repetition_penalty
        words[i, 1:] = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, position
        if s.temperature >= GREEDY_BELOW:  # no filter changes the best token
            reals[i, :4] = s.temperature, s.top_p, s.min_p, s.typical_p
            words[i, 0] = s.top_k
    return Rows(reals, words)


def mixed(seed: int, index: int) -> int:
    """Seed number `index` of those that one seed gives: itself first, then unrelated ones (SplitMix64, Steele et al.
    2014)."""
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def bias_of(
    sampling: Sampling, counts: Int[np.ndarray, " v"], ends: Collection[int], produced: int
) -> Float[np.ndarray, " v"]:
    """What is added to a row's logits.

    counts: how often each token is in the answer so far, which has `produced` tokens. ends: the model's own end tokens.
    """
    bias = np.zeros(counts.shape, np.float32)
    answer = np.flatnonzero(counts)
    bias[answer] = -sampling.presence_penalty - sampling.frequency_penalty * counts[answer]
    for token, more in sampling.logit_bias:
        bias[token] += more if more == -np.inf else min(max(more, -HUGE), HUGE)
    if produced < sampling.min_tokens:
        bias[[*sampling.stop_ids, *(() if sampling.ignore_end else ends)]] = -np.inf
    return bias


def edit(
    logits: Float[Array, "r v"],
    seen: Bool[Array, "r v"] | UInt8[Array, "r v"],
    repetition: Float[Array, " r"],
    bias: Float[Array, "r v"],
) -> Float[Array, "r v"]:
    """Logits after the repetition penalty of the tokens seen in prompt or answer, and then the sums of `bias_of`."""
    by = repetition[:, None]
    penalised = jnp.where(logits > 0, logits / by, logits * by)
    return jnp.where(seen != 0, penalised, logits) + bias


def _apart(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, of arrays with R rows, called for one row after the other on a CPU and for all at once elsewhere.

    On a CPU a row stays in the cache of its core from pass to pass, rows that use no filter pass none, and no number
    of rows can change how XLA orders a row's sums.
    """

    @functools.wraps(f)
    def call(*arrays: Any) -> Any:
        if platform.backend() != "cpu":
            return f(*arrays)
        take = lambda row: f(*jax.tree.map(lambda a: a[None], row))
        return jax.lax.map(lambda row: jax.tree.map(lambda a: a[0], take(row)), arrays)

    return call


def choose(logits: Float[Array, "r v"], rows: Rows) -> Int[Array, " r"]:
    """Tokens; -1 where a row has nothing to draw: every token is forbidden, or a logit is NaN or plus infinity."""
    uniforms = _uniforms(rows)
    if cpu.takes_over():
        tokens = jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32)
        call = jax.ffi.ffi_call("min_llm_draw", tokens, vmap_method="sequential")
        return call(logits, jnp.asarray(rows.reals), jnp.asarray(rows.words), uniforms)
    return _choose(logits, rows, uniforms)


@_apart
def _choose(logits: Float[Array, "r v"], rows: Rows, uniforms: Float[Array, "r 2"]) -> Int[Array, " r"]:
    def draw() -> Int[Array, " r"]:
        token = pick(jnp.exp(_kept(_padded(logits), rows)), uniforms)
        return jnp.where(best(logits) < 0, -1, token)

    return jax.lax.cond(rows.greedy.all(), lambda: best(logits), draw)


def best(logits: Float[Array, "r v"]) -> Int[Array, " r"]:
    """What `choose` gives for greedy rows: the first token with the largest logit. That is the same in any order, so
    rows need not be taken one by one. XLA's argmax takes three times as long on a CPU, and its maximum of several rows
    can pass over a NaN."""
    peak = logits.max(-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    first = jnp.where(logits == peak, ids, jnp.where(logits < peak, logits.shape[1], -1)).min(-1)
    return jnp.where(jnp.isfinite(peak[:, 0]), first, -1)


@_apart
def logprobs(logits: Float[Array, "r v"], ids: Int[Array, "r n"]) -> Float[Array, "r n"]:
    """log-softmax of the logits at some tokens, the floats that `tops` gives for them; minus infinity for token -1."""
    values = _logprobs(jnp.take_along_axis(logits, ids, -1), *_partition(_padded(logits)))
    return jnp.where(ids < 0, -jnp.inf, values)


def tops(logits: Float[Array, "r v"], k: int) -> tuple[Int[Array, "r k"], Float[Array, "r k"]]:
    """The k likeliest tokens (or all, of fewer), likeliest first, and their log-probabilities."""

    @_apart
    def find(logits: Array) -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(logits, min(k, logits.shape[-1]))
        return ids, _logprobs(values, *_partition(_padded(logits)))

    return find(logits)


def processed(logits: Float[Array, "r v"], rows: Rows) -> Float[Array, "r v"]:
    """Logits whose softmax is what `choose` draws from: of the tokens that the filters left, at the row's temperature;
    of the best token alone in a greedy row."""
    if cpu.takes_over():
        kept = jax.ShapeDtypeStruct(logits.shape, jnp.float32)
        call = jax.ffi.ffi_call("min_llm_kept", kept, vmap_method="sequential")
        return call(logits, jnp.asarray(rows.reals), jnp.asarray(rows.words))
    return _processed(logits, rows)


@_apart
def _processed(logits: Float[Array, "r v"], rows: Rows) -> Float[Array, "r v"]:
    return _kept(_padded(logits), rows)[:, : logits.shape[1]]


def _padded(logits: Float[Array, "r v"]) -> Float[Array, "r w"]:
    """With forbidden tokens up to a whole number of rows of COLUMNS; XLA's sums of odd lengths are slow, too."""
    return jnp.pad(logits, ((0, 0), (0, -logits.shape[1] % COLUMNS)), constant_values=-jnp.inf)


def _partition(logits: Float[Array, "r v"]) -> tuple[Float[Array, "r 1"], Float[Array, "r 1"]]:
    """The largest logit, and the logarithm of Σ exp(logit − largest)."""
    peak = logits.max(-1, keepdims=True)
    return peak, jnp.log(jnp.exp(logits - peak).sum(-1, keepdims=True))


def _logprobs(values: Float[Array, "r n"], peak: Array, total: Array) -> Float[Array, "r n"]:
    return (values - peak) - total


def _kept(logits: Float[Array, "r v"], rows: Rows) -> Float[Array, "r v"]:
    """Logits at each row's temperature, the largest 0, of the tokens that its filters leave: the best, if greedy."""
    greedy = rows.greedy[:, None]
    scaled = (logits - logits.max(-1, keepdims=True)) / jnp.where(greedy, 1.0, rows.temperature[:, None])
    kept = filters.kept(scaled, rows.min_p, rows.typical_p, rows.top_k, rows.top_p)
    first = best(logits)[:, None] == jnp.arange(logits.shape[1])
    return jnp.where(greedy & ~first, -jnp.inf, kept)


def _uniforms(rows: Rows) -> Float[Array, "r 2"]:
    """Two numbers of [0, 1) a row, by Threefry whatever JAX's default generator: the seed is the key."""

    def of(seed: UInt32[Array, " 2"], position: UInt32[Array, ""]) -> Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, position), (2,))

    return jax.vmap(of)(jnp.asarray(rows.seed), jnp.asarray(rows.position))


def pick(weights: Float[Array, "r v"], uniforms: Float[Array, "r 2"]) -> Int[Array, " r"]:
    """A token drawn by weight, v being a multiple of COLUMNS; never one of weight 0.

    The first uniform chooses a column of the vocabulary by its sum, the second a token in it: that takes no running
    sum over the vocabulary, and one uniform of 23 bits would be too coarse for its rare tokens.
    """
    columns = weights.reshape(len(weights), -1, COLUMNS)
    column = _inverted(columns.sum(1), uniforms[:, 0])
    chosen = jnp.take_along_axis(columns, column[:, None, None], 2)[..., 0]
    return _inverted(chosen, uniforms[:, 1]) * COLUMNS + column


def _inverted(weights: Float[Array, "r n"], uniform: Float[Array, " r"]) -> Int[Array, " r"]:
    """The first index of positive weight at which the running sum exceeds `uniform` of the total."""
    sums = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0)
    # the largest sum, not the last: roundings differ, and below the largest there is always one to be found
    return (sums > uniform[:, None] * sums.max(-1, keepdims=True)).argmax(-1).astype(jnp.int32)
