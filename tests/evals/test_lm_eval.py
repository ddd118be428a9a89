"""The class for lm-eval, given what lm-eval gives; tests/parity/test_lm_eval.py has lm-eval itself."""

from types import SimpleNamespace

import pytest

from min_llm.config import UserError
from min_llm.evals.lm_eval import MinLLM
from min_llm.evals.perplexity import perplexity
from min_llm.evals.scoring import scores
from min_llm.tokenizers.chat import ChatTemplate


@pytest.fixture(scope="module")
def lm(loaded):
    return MinLLM(loaded, model_len=32, max_sequences=4, max_gen_toks=8)


def ask(method, *args):
    return method([SimpleNamespace(args=a) for a in args])


def test_log_likelihoods(lm, loaded):
    encode, eos = loaded.tokenizer.encode, loaded.tokenizer.eos
    asked = [
        ("the theory ", "he said"),
        ("", "the rest"),
        ("a", ""),
        ("<|eot_id|>", "the"),
        ("", "<|end_of_text|>the"),
    ]
    cut = [(encode("the theory"), encode(" he said")), ([eos], encode("the rest")), (encode("a"), []),
           ([loaded.tokenizer.special["<|eot_id|>"]], encode("the")), ([eos], encode("the"))]  # fmt: skip
    assert [a + b for a, b in cut[:1]] == [encode("the theory he said")]
    expected = scores(lm.engine, cut)
    found = ask(lm.loglikelihood, *asked)
    assert [logprob for logprob, _ in found] == pytest.approx([s.logprob for s in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [s.greedy for s in expected]


def test_rolling(lm):
    texts = ["the theory, in all the rest, he said " * 3, "a"]
    found = ask(lm.loglikelihood_rolling, *((text,) for text in texts))
    assert found == pytest.approx([-perplexity(lm.engine, [text]).nats for text in texts], abs=1e-4)


def test_generation(lm, loaded):
    context = "the theory"
    (whole,) = ask(lm.generate_until, (context, {"do_sample": False}))
    (short,) = ask(lm.generate_until, (context, {"max_gen_toks": 3}))
    assert short and len(short) < len(whole) and whole.startswith(short)
    stop = whole[2:4]
    (stopped,) = ask(lm.generate_until, (context, {"until": [stop, "zzz"], "temperature": 0.0}))
    assert stopped == whole[: whole.index(stop)]
    assert ask(lm.generate_until, (context, {"until": stop})) == [stopped]
    long, cut = "a b c d e f g h i j k l m n o p q r s t" * 3, loaded.tokenizer.encode
    assert len(cut(long)) > 32 and ask(lm.generate_until, (long, {}))
    assert ask(lm.generate_until, ("", {}))[0]


def test_settings_that_nobody_knows_are_refused(lm):
    with pytest.raises(UserError, match="num_beams"):
        ask(lm.generate_until, ("a", {"num_beams": 4}))
    with pytest.raises(UserError, match="no room"):
        ask(lm.generate_until, ("a", {"max_gen_toks": 31}))


def test_chats(lm, loaded):
    with pytest.raises(UserError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert lm.chat_template(True) == ""
    plain = lm.tokenizer_name
    lm.loaded = SimpleNamespace(
        tokenizer=loaded.tokenizer, template=ChatTemplate("{{ messages[0].content }}!")
    )
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi!"
    assert lm.chat_template(True).endswith("!") and lm.tokenizer_name != plain
