"""The batches of a run with and without the document mask."""

import dataclasses
import json

import numpy as np

from min_llm import config as config_lib
from min_llm.data.prepare import prepare_corpus
from min_llm.train.config import RunConfig
from min_llm.train.stream import Stream
from tests.train.runs import write_config


def test_without_the_document_mask_the_rows_are_the_same_text_as_one_document(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{k} and {k * k}"}) + "\n" for k in range(200)))
    path = write_config(tmp_path, **{"data.source": str(texts), "data.split": "documents"})
    masked = config_lib.load(RunConfig, path)
    data = prepare_corpus(masked.data)
    across = dataclasses.replace(masked, train=dataclasses.replace(masked.train, document_mask=False))
    with_mask, without = (Stream(cfg, data).batch(2) for cfg in (masked, across))
    assert with_mask.segment_ids.max() > 1 and with_mask.positions.max() < masked.train.seq_len - 1
    assert without.segment_ids is None and without.positions is None
    for name in ("tokens", "targets", "weights"):
        np.testing.assert_array_equal(getattr(with_mask, name), getattr(without, name))
