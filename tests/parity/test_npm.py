"""OpenAI's client for Node, unmodified, against our server: whole answers, streams, tools, errors."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from min_llm import fetch
from tests.serve.fake import FakeEngine
from tests.serve.servers import TEMPLATE, serving

pytestmark = pytest.mark.peers

VERSION = "6.49.0"
ANSWER = '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}'


@pytest.fixture(scope="module")
def package():
    """Its files, which need no other package."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found: install Node.js 20 or newer to test its client")
    files = fetch.package_files("npm", "openai", VERSION, ["package/**/*.mjs", "package/package.json"])
    return next(path for path in files if path.as_posix().endswith("package/index.mjs"))


@pytest.fixture(scope="module")
def said(package):
    with serving(FakeEngine(script=ANSWER.encode()), template=TEMPLATE, keys=["secret"]) as running:
        script = Path(__file__).with_name("openai_client.mjs")
        done = subprocess.run(
            ["node", str(script), str(package), running.url], text=True, capture_output=True, timeout=60
        )
        running.idle()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_whole_answer(said):
    assert said["models"] == ["toy"]
    (choice,) = said["chat"]["choices"]
    assert choice["message"]["content"] == ANSWER and choice["finish_reason"] == "stop"
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == ANSWER
    assert said["chat"]["usage"]["completion_tokens"] == len(ANSWER.encode())


def test_streams_add_up_to_the_whole_answer(said):
    *chunks, last = said["chunks"]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == ANSWER
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == [] and last["usage"] == said["chat"]["usage"]
    assert len(said["pieces"]) > 1 and "".join(said["pieces"]) == ANSWER
    (choice,) = said["streamed"]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")


@pytest.mark.parametrize("how", ["tools", "toolsStreamed"])
def test_tools(said, how):
    (choice,) = said[how]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
    assert call["id"] and call["type"] == "function" and call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln", "days": 2}


def test_completions_and_embeddings(said):
    (choice,) = said["completion"]["choices"]
    assert (
        choice["text"] == "a" + ANSWER[:4] and len(choice["logprobs"]["tokens"]) == 6
    )  # one begins every text
    assert len(said["embedding"]) == 3 and sum(x * x for x in said["embedding"]) == pytest.approx(1, rel=1e-5)
    assert said["broken"] == 2


def test_errors_are_the_clients_own(said):
    assert said["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "field": ["BadRequestError", 400, None, "top_logprobs"],
        "key": ["AuthenticationError", 401, "invalid_api_key", None],
    }
