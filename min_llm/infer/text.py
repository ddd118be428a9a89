"""Between text and tokens for generation."""

from __future__ import annotations

from min_llm.config import UserError
from min_llm.tokenizers import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a prompt, opened by the end-of-document token as every training document is, where there is one."""
    opening = [] if tokenizer.eos is None else [tokenizer.eos]
    tokens = opening + list(tokenizer.encode(text))
    if not tokens:
        raise UserError("The prompt is empty and this tokenizer has no token to start from. Give some text.")
    return tokens
