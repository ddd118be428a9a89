"""A conversation: what each turn sends, what an answer left early leaves behind, and the prefix cache."""

import dataclasses

import pytest

from min_llm.config import UserError
from min_llm.infer.conversation import Conversation
from min_llm.infer.engine import Engine, EngineConfig
from min_llm.infer.load import Loaded
from min_llm.infer.request import Sampling
from min_llm.nn.runtime import Runtime
from min_llm.tokenizers.byte import Bytes
from min_llm.tokenizers.chat import ChatTemplate
from tests.serve.fake import FakeEngine
from tests.toys import LLAMA, random_weights

TEMPLATE = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>")
TOY = dataclasses.replace(LLAMA, vocab_size=257, max_seq_len=200)


def conversation(engine, params=None, system="", **sampling):
    loaded = Loaded("toy", TOY, params, Runtime(dtype="float32"), Bytes(), template=TEMPLATE)
    return Conversation(loaded, engine or Engine(loaded, EngineConfig(max_sequences=1, chunk=16, page_size=4)),
                        Sampling(**sampling), system)  # fmt: skip


def prompts(monkeypatch, engine):
    """The prompts that an engine gets, as text."""
    seen, add = [], engine.add

    def adding(prompt, *rest):
        seen.append(bytes(prompt).decode())
        return add(prompt, *rest)

    monkeypatch.setattr(engine, "add", adding)
    return seen


def test_every_turn_sends_the_whole_of_it(monkeypatch):
    engine = FakeEngine(script=b"h\xc3\xa9!")
    seen = prompts(monkeypatch, engine)
    talk = conversation(engine, system="s")
    assert "".join(talk.ask("one")) == "hé!" and (talk.turn.generated, talk.turn.finish) == (4, "stop")
    assert talk.turn.rate > 0
    assert next(iter(talk.ask("two"))) == "h"
    assert seen == ["<system>s<user>one<a>", "<system>s<user>one<assistant>hé!<user>two<a>"]
    assert talk.turn.prompt == len(seen[1].encode())
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2


def test_an_answer_left_early_ends_there():
    engine = FakeEngine(script=b"hello")
    talk = conversation(engine)
    pieces = talk.ask("one")
    assert next(pieces) + next(pieces) == "he"
    pieces.close()
    assert talk.messages[1:] == [{"role": "assistant", "content": "he"}]
    assert (talk.turn.finish, engine.aborted, engine.busy) == ("abort", [1], False)
    assert "".join(talk.ask("two")) == "hello"


def test_what_cannot_be_asked_is_forgotten():
    engine = FakeEngine(script=b"hello", model_len=40)
    talk = conversation(engine)
    assert "".join(talk.ask("one")) == "hello"
    before = list(talk.messages)
    with pytest.raises(UserError, match="places"):
        next(talk.ask("long" * 10))
    engine.fail = 1
    with pytest.raises(RuntimeError):
        next(talk.ask("two"))
    assert talk.messages == before and not engine.busy


def test_the_prefix_cache_knows_what_was_said_before():
    talk = conversation(None, random_weights(TOY), temperature=0, max_tokens=5)
    list(talk.ask("a question of some length"))
    assert (talk.turn.cached, talk.turn.generated, talk.turn.finish) == (0, 5, "length")
    first = talk.turn.prompt
    list(talk.ask("more"))
    assert first - 4 - len("<a>") <= talk.turn.cached < talk.turn.prompt
