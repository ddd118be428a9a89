"""The encoder: every token sees every other and no padding; it learns a teacher's scores; a step that uses its file."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import models
from min_llm.config import UserError, build
from min_llm.data.curate import encoder, model_file, train_encoder
from min_llm.data.curate.classify import Classify
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.encoder import EncoderShape
from min_llm.data.curate.train_encoder import DistilConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime

TINY = EncoderShape(tokenizer="byte", length=24, n_layers=1, dim=16, n_heads=2)


def weights(shape=TINY, seed=0):
    found = models.init_spec(encoder.spec(shape), seed)
    return encoder.Weights(found.trunk, jnp.ones(shape.dim), jnp.float32(0.1), jnp.float32(0.5))


def rows(*texts):
    return TINY.rows(list(texts))


@jax.jit
def score(seen):
    return encoder.scores(weights(), TINY.trunk(), seen)


@jax.jit
def states(seen):
    batch = Batch(seen.tokens, segment_ids=seen.segments)
    return models.forward(weights().trunk, TINY.trunk(), batch, Runtime(), encoder.Bidirectional())[0]


def test_rows_are_the_first_tokens_and_padding():
    tokens, segments, density = rows("abc", "", "x" * 100)
    assert density.tolist() == [-3, -4, -3]
    assert tokens[0, :4].tolist() == [97, 98, 99, 0] and segments.sum(axis=1).tolist() == [3, 1, 24]


def test_a_token_sees_those_behind_it():
    """Causal attention would give the first token the same state whatever follows."""
    first, second = np.asarray(states(rows("abcd", "abce")))[:, 0]
    assert not np.allclose(first, second, atol=1e-4)


def test_padding_is_not_seen():
    seen = rows("some text")
    other = seen._replace(tokens=np.where(seen.segments > 0, seen.tokens, 77))
    shorter = seen._replace(tokens=seen.tokens[:, :9], segments=seen.segments[:, :9])
    np.testing.assert_allclose(score(seen), score(other), atol=1e-6)
    np.testing.assert_allclose(score(seen), score(shorter), atol=1e-5)
    assert not np.allclose(score(seen), score(rows("some")), atol=1e-3)


def scored(folder, n=160, seed=0):
    """The share of vowels of a text is the teacher's score."""
    draw = random.Random(seed)
    path = folder / "scores.jsonl"
    with path.open("w") as file:
        for _ in range(n):
            share = draw.random()
            text = "".join(draw.choice("aeiou" if draw.random() < share else "bcdfg") for _ in range(20))
            file.write(json.dumps({"text": text, "score": share}) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    given = {"scores": str(scored(folder)), "teacher": "vowels", "output": str(folder / "e.safetensors"),
             "epochs": 8, "rate": 0.01, "dropout": 0.0, "batch": 16}  # fmt: skip
    cfg = build(DistilConfig, given | {"shape": vars(TINY)})
    return cfg, train_encoder.train(cfg)


def test_it_learns_the_scores_of_a_teacher(trained):
    cfg, model = trained
    assert model.about["held_out"]["auc"] > 0.9 and model.about["teacher"] == "vowels"
    high = model.predict(["aeiouaeiouaeiouaeiou", "bcdfgbcdfgbcdfgbcdfg"])
    assert high[0, 1] > 0.7 > 0.3 > high[1, 1] and np.allclose(high.sum(axis=1), 1)
    again = train_encoder.fit(cfg, [t for t in train_encoder.read(cfg) if not t.held_out])
    assert np.array_equal(again.predict(["abcde"]), model.predict(["abcde"]))


def test_a_prediction_does_not_depend_on_other_texts(trained):
    _, model = trained
    texts = ["aaaa", "", "bcdfg" * 9, "abab"] * 12
    together = model.predict(texts)
    assert np.array_equal(together, np.concatenate([model.predict([text]) for text in texts]))
    assert model.predict([]).shape == (0, 2)


def test_a_step_labels_by_the_file(trained):
    cfg, model = trained
    loaded = model_file.load(train_encoder.Path(cfg.output))
    assert np.array_equal(loaded.predict(["abc"]), model.predict(["abc"])) and loaded.about == model.about
    documents = [Document("a", "aeiou" * 4), Document("b", "bcdfg" * 4)]
    kept, dropped = Classify(file=cfg.output, keep=("high",))(documents)
    assert kept.meta == {"quality": "high"} and isinstance(dropped, Drop) and dropped.kind == "low"


@pytest.mark.parametrize("row", ['{"text": "a"}', '{"text": "a", "score": 2}', '{"score": 0.5}', "[]"])
def test_a_row_without_a_score_is_named(tmp_path, row):
    (tmp_path / "s.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match="line 1: a row has a text and a score from 0 to 1"):
        train_encoder.read(build(DistilConfig, {"scores": str(tmp_path / "s.jsonl"), "teacher": "x"}))
