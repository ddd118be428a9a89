"""Constrained decoding: which tokens may come next so that the answer matches a grammar (llguidance parses).

Masks are of bytes: a token is allowed if its bytes continue some text that matches, however the tokenizer would have
cut that text. So a mask says exactly what may follow, and is the same behind drawn tokens and behind drafted ones.
Anything that cannot be compiled is refused; nothing is ever generated without its grammar.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from min_llm.config import UserError
from min_llm.infer import grammar_trial
from min_llm.infer.request import Grammar
from min_llm.tokenizers import Tokenizer
from min_llm.tokenizers.base import utf8

MOST_BYTES = 1 << 18
MOST_COMPILED = 64
# White space between the parts of JSON is bounded: a weak model that may write it without end does.
_JSON = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}"}


class Constrainer:
    """Compiles grammars for one tokenizer.

    vocab_size: the width of the masks, the model's: ids beyond the tokenizer's are never allowed. end_ids: the tokens
    that end an answer, allowed where the grammar is satisfied; no other special token ever is. Building it takes half a
    second for 128,000 tokens, which the first grammar pays.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.end_ids = sorted(set(end_ids))
        self._compiled = functools.lru_cache(MOST_COMPILED)(self._compile)

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of an answer. Takes a tenth of a second in a new process, up to 5 s for the worst,
        and next to nothing for a grammar that was seen before. Raises UserError saying why a grammar is refused."""
        size = len(utf8(grammar.text))
        if size > MOST_BYTES:
            raise UserError(
                f"The grammar ({grammar.kind}) has {size} bytes; at most {MOST_BYTES} are allowed."
            )
        return Matcher(self._compiled(grammar).deep_copy(), self.vocab_size, self.end_ids)

    def _compile(self, grammar: Grammar) -> Any:
        lark = _lark(grammar)
        reason = grammar_trial.refusal(lark)
        if reason is None:
            made = grammar_trial.matcher(self._vocabulary, lark)
            reason = grammar_trial.error(made)
        if reason is not None:
            raise UserError(f"The grammar ({grammar.kind}) cannot be used: {reason}.")
        return made

    @functools.cached_property
    def _vocabulary(self) -> Any:
        """llguidance's trie of the tokens' bytes."""
        library = _library()
        vocabulary = _Vocabulary(self._tokenizer, self.vocab_size, self.end_ids)
        return library.LLTokenizer(library.TokenizerWrapper(vocabulary), n_vocab=self.vocab_size)


class Matcher:
    """How far an answer matches its grammar, and how it may go on."""

    def __init__(self, matcher: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing but its end may follow."""
        return self._ended or (self._accepting and self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Why nothing is allowed, when a mask is empty although the answer is not complete: the grammar takes too much
        work here, or needs bytes for which the tokenizer has no token."""
        return grammar_trial.error(self._matcher)

    @property
    def _accepting(self) -> bool:
        return not self._matcher.is_error() and self._matcher.is_accepting()

    def mask(self) -> Bool[np.ndarray, " vocab"]:
        """Which tokens may come next; the end tokens only where the answer matches. All False behind an end token, and
        where `error` says why."""
        if self._ended:
            return np.zeros(self._vocab_size, bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)
        if self._matcher.is_error():  # the library then allows the end
            mask[:] = False
        mask[self._end_ids] = self._accepting
        return mask

    def advance(self, token: int) -> None:
        """Take a token of the answer. Raises UserError, and stays where it is, for one that is not allowed."""
        if not self._ended and token in self._end_ids and self._accepting:
            self._ended = True
        elif (
            self._ended
            or token in self._end_ids
            or not self._follows(token)
            or not self._matcher.consume_token(token)
        ):
            raise UserError(f"The token {token} does not match the answer's grammar at this place.")

    def _follows(self, token: int) -> bool:
        return 0 <= token < self._vocab_size and not self.done and self._matcher.validate_tokens([token]) == 1

    def masks(self, draft: Sequence[int]) -> Bool[np.ndarray, "n vocab"]:
        """The mask here and behind each token of a draft, up to the first that is not allowed: n - 1 of them are. The
        matcher stays where it is."""
        ahead = self.copy()
        found = [ahead.mask()]
        for token in draft:
            if not (0 <= token < self._vocab_size and found[-1][token]):
                break
            ahead.advance(token)
            found.append(ahead.mask())
        return np.stack(found)

    def copy(self) -> Matcher:
        """One that goes its own way from here."""
        made = Matcher(self._matcher.deep_copy(), self._vocab_size, self._end_ids)
        made._ended = self._ended
        return made


class _Vocabulary:
    """A tokenizer as llguidance takes it; end tokens and holes have no bytes that a grammar could match."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self.tokens = [tokenizer.spelled.get(i, b"") for i in range(vocab_size)]
        self.special_token_ids = [i for i in {*tokenizer.special.values(), *end_ids} if i < vocab_size]
        self.eos_token_id = end_ids[0] if end_ids else None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _lark(grammar: Grammar) -> str:
    """The grammar in llguidance's Lark. no_forcing: else the library puts, where bytes are certain, the tokenizer's own
    token alone into the mask, which is wrong with SentencePiece's first space."""
    if grammar.kind == "lark":
        start = grammar.text
    elif grammar.kind == "regex":
        start = f"start: /{_library().regex_to_lark(grammar.text)}/"
    else:
        start = f"start: %json {json.dumps(_schema(grammar))}"
    return f'{start}\n%llguidance {{"no_forcing": true}}\n'


def _schema(grammar: Grammar) -> dict[str, Any]:
    """The JSON schema, with our own directions to the library and none of the user's (such as to skip what it does not
    implement)."""
    try:
        schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"The grammar (json_schema) must be a JSON schema, but it is not JSON: {error}."
        ) from error
    if not isinstance(schema, dict):
        raise UserError("The grammar (json_schema) must be a JSON schema, which is an object.")
    return schema | {"x-guidance": _JSON}


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UserError("Answers with a grammar need llguidance: pip install 'min_llm[serve]'.") from error
    return llguidance
