"""A conversation with one model, answer by answer, without a server.

talk = Conversation(loaded, Engine(loaded, EngineConfig(max_sequences=1)))
for text in talk.ask("Hello"): ...
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from min_llm.config import UserError
from min_llm.infer.load import Loaded
from min_llm.infer.request import Finish, Sampling
from min_llm.tokenizers.chat import Message

if TYPE_CHECKING:
    from min_llm.infer.engine import Engine


@dataclasses.dataclass
class Turn:
    """What an answer took. prompt: tokens of the conversation before it; cached: those that the prefix cache had.
    seconds: from the first token to the last. finish: "abort" where it was left early."""

    prompt: int
    cached: int = 0
    generated: int = 0
    seconds: float = 0.0
    finish: Finish = "abort"

    @property
    def rate(self) -> float:
        """Tokens per second; 0 where there are too few to tell."""
        return (self.generated - 1) / self.seconds if self.seconds else 0.0


class Conversation:
    """The whole of it is the prompt of every turn: the engine's prefix cache knows all but what is new.

    messages: what was said, without the system prompt.
    """

    def __init__(
        self, loaded: Loaded, engine: Engine, sampling: Sampling = Sampling(), system: str = ""
    ) -> None:
        self.loaded, self.engine, self.sampling, self.system = loaded, engine, sampling, system
        self.messages: list[Message] = []
        self.turn = Turn(0)

    @property
    def whole(self) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to a message, a piece with each step, empty ones too; `turn` says what it took. Left early, it
        ends with what was said.

        UserError where the template or the context does not take the message, or the engine fails. A message to which
        nothing was said is forgotten.
        """
        asked = {"role": "user", "content": text}
        prompt = self.loaded.ask([*self.whole, asked])
        request = self.engine.add(prompt, self.sampling)
        self.turn = Turn(len(prompt))
        said: list[str] = []
        try:
            for piece in self._pieces():
                said.append(piece)
                yield piece
        finally:
            self.engine.abort(request)
            if answer := "".join(said):
                self.messages += [asked, {"role": "assistant", "content": answer}]

    def _pieces(self) -> Iterator[str]:
        turn, begun = self.turn, 0.0
        while self.engine.busy:
            for output in self.engine.step():
                if output.finish == "error":
                    raise UserError(output.error or "The engine cannot go on with this answer.")
                begun = begun or time.monotonic()
                turn.cached = max(turn.cached, output.cached)
                turn.generated += len(output.tokens)
                turn.seconds = time.monotonic() - begun
                turn.finish = output.finish or turn.finish
                yield output.text
