"""llama.cpp on the GGUF files that we write: the same greedy tokens as ours on the same file."""

import pytest

from min_llm.config import UserError
from min_llm.formats import gguf_model, named
from min_llm.infer.load import load
from min_llm.infer.request import Sampling
from min_llm.infer.sample import generate
from min_llm.nn.runtime import RuntimeConfig
from min_llm.tokenizers import export

pytestmark = pytest.mark.peers

TEXTS = ("The capital of France is", "def fibonacci(n):\n    if n", "Water boils at a temperature of")
TOKENS = 8


@pytest.fixture(scope="module")
def smollm2():
    try:
        named.fetched("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    return load("smollm2-135m-instruct")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_llama_cpp_continues_as_we_do(peer, smollm2, tmp_path, kind):
    """Q8_0: llama.cpp rounds activations to eight bits too, so only prompts whose answer is clear are the same."""
    path = tmp_path / "model.gguf"
    metadata = export.gguf_metadata(smollm2.tokenizer, smollm2.template, smollm2.opening)
    gguf_model.write(path, smollm2.cfg, smollm2.params, kind, metadata)
    ours = load(path, runtime=RuntimeConfig(dtype="float32"))
    prompts = [ours.prompt(text) for text in TEXTS]
    vocab, sampling = ours.tokenizer.vocab_size, Sampling(temperature=0.0)
    want = generate(ours.params, ours.cfg, ours.runtime, prompts, TOKENS, sampling, 0, None, vocab)
    peer.call("load", program="llama.cpp", path=str(path), rows=1, length=256, threads=1)
    for text, prompt, continued in zip(TEXTS, prompts, want, strict=True):
        theirs = peer.call("continuation", prompt=prompt, n=TOKENS)
        assert theirs == {"tokens": list(continued), "text": ours.tokenizer.decode(continued)}
        assert peer.call("continuation", prompt=text, n=TOKENS) == theirs  # their tokenizer agrees
    assert ours.tokenizer.decode(want[0]).startswith(" Paris")
