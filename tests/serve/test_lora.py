"""Adapters over HTTP: asked for by name, loaded and unloaded under traffic."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from min_llm.formats import peft
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded
from min_llm.infer.options import EngineConfig
from min_llm.nn.runtime import Runtime
from min_llm.tokenizers.byte import Bytes
from tests import loras
from tests.serve.servers import serving
from tests.serve.test_abuse import refused
from tests.toys import LLAMA, random_weights

CFG = dataclasses.replace(LLAMA, vocab_size=257, max_seq_len=96)
POOL = EngineConfig(max_sequences=4, chunk=16, page_size=4, cache_tokens=400, max_loras=3, max_lora_rank=4)
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters that fit, one that is too wide, and one that is cut off."""
    place = tmp_path_factory.mktemp("adapters")
    made = {
        name: peft.write(place / name, CFG, loras.adapter(CFG, seed, rank, size=0.3))
        for name, seed, rank in (("one", 1, 3), ("two", 2, 4), ("wide", 3, 5), ("broken", 4, 3))
    }
    file = made["broken"] / peft.WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def toy(folders):
    loaded = Loaded("toy", CFG, random_weights(CFG), Runtime(dtype="float32"), Bytes())
    engine = Engine(loaded, POOL)
    engine.load_lora("kept", folders["one"])
    with serving(engine, lora_updates=True) as running:
        yield running
        running.idle()
        assert running.runner.statistics.compiles == 0, "something was compiled after the start"
        assert running.runner.statistics.pages_used == 0


def load(toy, name, path, **fields):
    return toy.post(LOAD, {"lora_name": name, "lora_path": path} | fields)


def text(toy, model, i=0):
    """A greedy answer to one of several prompts."""
    reply = toy.complete(prompt="abc" * (i % 5 + 1), model=model, max_tokens=10 + i % 7, temperature=0)
    assert reply["model"] == model
    return reply["choices"][0]["text"]


def test_adapters_are_listed_and_answer(toy, folders):
    assert load(toy, "two", folders["two"]).text == "Success: LoRA adapter 'two' added successfully."
    cards = toy.client.get("/v1/models").json()["data"]
    assert [(c["id"], c["parent"]) for c in cards] == [("toy", None), ("kept", "toy"), ("two", "toy")]
    assert toy.client.get("/v1/models/two").json()["parent"] == "toy"
    assert len({text(toy, model) for model in ("toy", "kept", "two")}) == 3
    assert toy.post("/v1/chat/completions", {
        "model": "two", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2,
    }).json()["model"] == "two"  # fmt: skip
    first, second = (
        toy.post("/v1/embeddings", {"input": "abc", "model": m}).json()["data"] for m in ("toy", "two")
    )
    assert first[0]["embedding"] != pytest.approx(second[0]["embedding"], abs=1e-3)
    assert toy.post(UNLOAD, {"lora_name": "two"}).text == "Success: LoRA adapter 'two' removed successfully."
    for body in ({"model": "two", "prompt": "a"}, {"model": "two", "prompt": "a", "max_tokens": 10**6}):
        assert refused(toy.post("/v1/completions", body), 404)["code"] == "model_not_found"
    refused(toy.post("/v1/embeddings", {"input": "abc", "model": "two"}), 404)
    refused(toy.client.get("/v1/models/two"), 404)
    refused(toy.post(UNLOAD, {"lora_name": "two"}), 404)


def test_a_bad_adapter_is_refused_and_the_old_one_stays(toy, folders):
    want = text(toy, "kept")
    for path in (
        folders["broken"],
        folders["wide"],
        "/no/such/folder",
        "",
        "a\0b",
        "~nobody/x",
        "/etc/passwd",
    ):
        assert refused(load(toy, "kept", path, load_inplace=True))["param"] == "lora_path"
    for name in ("toy", "", " ", "x" * 300):
        assert refused(load(toy, name, folders["two"]))["param"] == "lora_name"
    assert "load_inplace" in refused(load(toy, "kept", folders["two"]))["message"]
    for body in ({}, {"lora_name": "x"}, {"lora_path": "x"}, {"lora_name": 7, "lora_path": "x"}):
        refused(toy.post(LOAD, body))
    refused(toy.post(UNLOAD, {}))
    assert text(toy, "kept") == want and list(toy.engine.adapters) == ["kept"]


def test_of_two_that_load_one_name_at_once_one_is_refused(toy, folders, monkeypatch):
    read, both = toy.engine.read_lora, threading.Barrier(2)
    monkeypatch.setattr(toy.engine, "read_lora", lambda path: (both.wait(20), read(path))[1])
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda name: load(toy, "twice", folders[name]), ("one", "two")))
    assert toy.post(UNLOAD, {"lora_name": "twice"}).status_code == 200
    assert sorted(reply.status_code for reply in replies) == [200, 400]


def test_load_and_unload_under_traffic(toy, folders):
    """Requests for the model and for an adapter that stays do not notice that another one comes, goes and changes;
    whoever asks for that one gets all of one version, or is told that it is gone."""
    alone = {(m, i): text(toy, m, i) for m in ("toy", "kept") for i in range(8)}
    load(toy, "other", folders["two"])
    versions = [{text(toy, "kept", i), text(toy, "other", i)} for i in range(8)]
    together, others, gone, over = [], [], [], threading.Event()

    def ask(model):
        for i in range(8):
            together.append(text(toy, model, i) == alone[model, i])

    def ask_for_the_other():
        while not over.is_set():
            for i in range(8):
                body = {
                    "prompt": "abc" * (i % 5 + 1),
                    "model": "other",
                    "max_tokens": 10 + i % 7,
                    "temperature": 0,
                }
                reply = toy.post("/v1/completions", body)
                if reply.status_code == 404:
                    gone.append(i)
                else:
                    others.append(reply.json()["choices"][0]["text"] in versions[i])

    def change():
        for _ in range(6):
            for path in (folders["one"], folders["broken"], folders["two"]):
                assert load(toy, "other", path, load_inplace=True).status_code in (200, 400)
            assert toy.post(UNLOAD, {"lora_name": "other"}).status_code == 200
        over.set()

    threads = [threading.Thread(target=ask, args=(m,)) for m in ("toy", "kept", "toy", "kept")]
    threads += [threading.Thread(target=ask_for_the_other), threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert over.is_set() and len(together) == 32 and all(together)
    assert others and all(others)


def test_without_lora_updates_nothing_is_read(folders):
    with serving() as running:
        for path in (LOAD, UNLOAD):
            error = refused(running.post(path, {"lora_name": "x", "lora_path": folders["one"]}), 403)
            assert "--lora-updates" in error["message"]
