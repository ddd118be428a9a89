"""Between text and tokens for generation."""

from __future__ import annotations

from collections.abc import Sequence

from min_llm.config import UserError
from min_llm.tokenizers import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, text: str, opening: Sequence[int]) -> list[int]:
    """Tokens of a prompt, with those that every text begins with before them."""
    tokens = [*opening, *tokenizer.encode(text)]
    if not tokens:
        raise UserError("The prompt is empty and this tokenizer has no token to start from. Give some text.")
    return tokens


def opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What documents of our own training begin with: the token that ends the one before, where there is one."""
    return () if tokenizer.eos is None else (tokenizer.eos,)
