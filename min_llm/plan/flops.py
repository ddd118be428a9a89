"""FLOPs per token, counted from the spec, and MFU.

A matrix of n parameters costs 2n FLOPs a token forward and 4n backward. Attention adds two products per layer, QKᵀ
and PV, of 2·H·K FLOPs for every key that a query sees. Projects differ in what they count (published-numbers.md,
section 6), so a Flops carries the three conventions and the formula that goes beside a printed MFU:

    full     6N + 12·L·H·K·S      nanoGPT, nanochat, torchtitan: every query pays for all S keys. Our default.
    causal   6N +  6·L·H·K·S      only the keys a causal query sees, on average S/2.
    lingua   6N' + 7·L·H·K·S      Lingua: causal, with flash attention's recomputation (3.5 forwards instead of 3);
                                  N' is every parameter outside the token embedding.

N counts the parameters that multiply a token: matrices and the output head. A tied embedding is the head and
counts once; an untied one is looked up and counts nothing, nor do norms, biases and learned positions. Of experts a
token pays for those it is sent to: in N and N' they count by their active share. Under a sliding window of W < S keys
the full convention pays for W (as nanochat does) and causal for what is seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from min_llm import models
from min_llm.config import UserError
from min_llm.spec import count, leaves

Convention = Literal["full", "causal", "lingua"]
FORMULAS = {
    "full": "6N + 12·L·H·K·S",
    "causal": "6N + 6·L·H·K·S",
    "lingua": "6N' + 7·L·H·K·S",
}


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one token in a sequence of `seq_len` tokens.

    n: parameters that multiply a token. forward: 2N + 4·L·H·K·S. training: forward and backward, 3 forwards.
    The plain names follow the full convention; `_causal` and `_lingua` the others.
    """

    n: int
    seq_len: int
    forward: float
    forward_causal: float
    training: float
    training_causal: float
    training_lingua: float
    formula: str

    def of(self, convention: Convention) -> float:
        """Training FLOPs per token under a named convention."""
        return {
            "full": self.training,
            "causal": self.training_causal,
            "lingua": self.training_lingua,
        }[convention]


def matmul_parameters(spec: Any) -> int:
    """N: matrices (of experts the active ones) and the head; where no leaf is the head, the token embedding is it."""
    n = count(spec, "matrix", "head", active=True)
    return n if count(spec, "head") else n + token_embedding(spec)


def token_embedding(spec: Any) -> int:
    """Parameters of the token embedding (learned positions are an embedding too, but not of tokens)."""
    return sum(p.size for _, p in leaves(spec) if p.role == "embedding" and p.axes[0] == "vocab")


def flops_per_token(cfg: models.ModelConfig, seq_len: int) -> Flops:
    """Count the FLOPs of one token among `seq_len`. A sliding window shortens what a query sees."""
    if seq_len < 1:
        raise UserError(f"seq_len is {seq_len}; FLOPs need a sequence of at least one token.")
    spec = models.spec(cfg)
    n = matmul_parameters(spec)
    window = getattr(cfg, "window", None)
    span = min(seq_len, window or seq_len)
    # One product over every key: 2·L·H·K·span. Causal order halves it, apart from what the window cuts away.
    product = 2.0 * cfg.n_layers * cfg.n_heads * cfg.head_dim  # type: ignore[attr-defined]
    full, causal = product * span, product * span * (1 - span / (2 * seq_len))
    outside = count(spec, active=True) - token_embedding(spec)
    return Flops(
        n=n,
        seq_len=seq_len,
        forward=2.0 * n + 2 * full,
        forward_causal=2.0 * n + 2 * causal,
        training=6.0 * n + 6 * full,
        training_causal=6.0 * n + 6 * causal,
        training_lingua=6.0 * outside + 3.5 * product * seq_len,
        formula=FORMULAS["full"] if span == seq_len else FORMULAS["full"].replace("S", "W"),
    )


def mfu(tokens_per_second: float, flops: Flops, peak: float, convention: Convention = "full") -> float:
    """Model FLOPs utilisation (PaLM, appendix B): the share of `peak` FLOP/s that useful training FLOPs take."""
    if peak <= 0:
        raise UserError(f"The peak is {peak} FLOP/s; MFU needs a positive one.")
    return tokens_per_second * flops.of(convention) / peak


def training_seconds(tokens: float, flops: Flops, peak: float, mfu: float = 1.0) -> float:
    """Seconds that training on `tokens` takes at that share of the peak; 1.0 is the floor."""
    return tokens * flops.training / (peak * mfu)
