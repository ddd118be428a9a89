"""Tokens to text as they come: whole characters only, and nothing that a stop string may still take back."""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Collection, Sequence

from min_llm.tokenizers import Tokenizer


class TextStream:
    """The text of one answer, token by token.

    What `feed` and `finish` return adds up to `tokenizer.decode` of all tokens fed that are not in `hidden`, cut
    before the stop string that is complete first, as it would be found by reading character by character; of
    several that are complete at the same character the longest counts. (vLLM looks after each token, so which of
    two it finds depends on the tokenizer.)

    hidden: ids that are not shown, such as special tokens; `decode` itself spells them. before: the tokens that the
    answer continues, if the text is to be read behind them: SentencePiece's kind of tokenizer takes away the space a
    text begins with, which is right for an answer in a chat and wrong for one that completes a sentence.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        hidden: Collection[int] = (),
        before: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._begun = any(tokenizer.spelled.get(i) for i in before)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text; whatever is fed behind it gives no text."""
        return self._stops.found

    def feed(self, token: int) -> str:
        """The text that is certain with this token. Raises TokenizerError for an id the tokenizer does not have."""
        if token in self._hidden:
            return ""
        data = self._tokenizer.spelled.get(token)
        if data is None or not self._begun:
            data = self._tokenizer.decode_bytes([token])  # takes away a first space, and refuses unknown ids
        self._begun = self._begun or bool(self._tokenizer.spelled[token])
        return self._stops.feed(self._characters.decode(data))

    def finish(self) -> str:
        """What was held back when no token follows; a character cut in the middle is U+FFFD."""
        return self._stops.feed(self._characters.decode(b"", final=True)) + self._stops.finish()


class StopStrings:
    """Text up to the stop string that is complete first; what may be the beginning of one is held back.

    The automaton of Aho and Corasick (Efficient String Matching, 1975): its state is the longest end of the text that
    a stop string begins with, so one step a character tells how much to hold back, however many strings there are.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: str | None = None
        self._held = ""
        self._root = self._state = _State()
        for string in stop:
            state = self._root
            for char in string:
                state = state.after.setdefault(char, _State(state.depth + 1, self._root))
            state.match = string
        self._link()

    def _link(self) -> None:
        """Tell each state the longest proper end of its text that is a state, shallow ones first."""
        queue = deque(self._root.after.values())
        while queue:
            state = queue.popleft()
            for char, longer in state.after.items():
                longer.shorter = self._step(state.shorter or self._root, char)
                longer.match = longer.match or longer.shorter.match
                queue.append(longer)

    def _step(self, state: _State, char: str) -> _State:
        while char not in state.after and state.shorter is not None:
            state = state.shorter
        return state.after.get(char, self._root)

    def feed(self, text: str) -> str:
        """The part of the text so far, behind what was given out, that no stop string can take back."""
        if self.found is not None or not self._root.after:
            return "" if self.found else text
        done = len(self._held)
        text = self._held + text
        for at in range(done, len(text)):
            self._state = self._step(self._state, text[at])
            if self._state.match is not None:
                self.found, self._held = self._state.match, ""
                return text[: at + 1 - len(self.found)]
        certain = len(text) - self._state.depth
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, when no text follows."""
        held, self._held = self._held, ""
        return held


@dataclasses.dataclass(eq=False, slots=True)
class _State:
    """The first `depth` characters of a stop string. match: the longest stop string they end with."""

    depth: int = 0
    shorter: _State | None = None
    match: str | None = None
    after: dict[str, _State] = dataclasses.field(default_factory=dict)
