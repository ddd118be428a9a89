"""Keys, log lines, numbers."""

import pytest

from min_llm.config import UserError
from min_llm.serve.app import Settings
from tests.serve.servers import serving


@pytest.fixture(scope="module")
def locked():
    with serving(keys=["first-secret", "second-secret"]) as running:
        yield running


BODY = {"prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-secret"},
        {"Authorization": "bearer second-secret"},
        {"X-Api-Key": "second-secret"},
    ],
)
def test_every_key_opens(locked, headers):
    assert locked.post("/v1/completions", BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer first-secret2"},
        {"Authorization": "Bearer first-secre"},
        {"Authorization": "Basic first-secret"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": ""},
        {"Authorization": "Bearer wrong", "X-Api-Key": "first-secret"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/tokenize", "/nope"])
def test_nothing_else_does(locked, headers, path):
    reply = locked.post(path, BODY, headers=headers)
    assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
    assert "www-authenticate" in reply.headers


def test_health_needs_no_key(locked):
    assert (
        locked.client.get("/health/live").status_code == locked.client.get("/health/ready").status_code == 200
    )


@pytest.mark.parametrize("key", ["", " ", "ä", "a\nb"])
def test_a_key_that_no_header_can_carry(key):
    with pytest.raises(UserError):
        Settings(keys=[key])


def test_the_log_has_one_line_a_request_and_no_secrets(locked, monkeypatch):
    lines = []
    monkeypatch.setattr("min_llm.reporting.Reporter._line", lambda self, text, style="": lines.append(text))
    secret = {"Authorization": "Bearer first-secret"}
    locked.post("/v1/completions", BODY | {"model": "x\nFORGED"}, headers=secret)
    locked.client.get("/a%0d%0aFORGED%1b[31m\u2028", headers=secret)
    locked.client.get("/v1/models", headers={"Authorization": "Bearer guessed-secret"})
    locked.client.get("/" + "x" * 5000, headers=secret)
    assert len(lines) == 4 and all(line.isascii() and line.isprintable() for line in lines)
    assert max(map(len, lines)) < 1300 and "secret" not in "".join(lines)


def test_numbers():
    with serving() as running:
        for _ in range(2):
            running.complete(max_tokens=5)
        running.client.get("/nope")
        running.idle()
        text = running.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['min_llm_requests_total{path="/v1/completions",status="200"}']) == 2
    assert float(values['min_llm_requests_total{path="other",status="404"}']) == 1
    assert float(values["min_llm_generated_tokens_total"]) == 10
    assert float(values["min_llm_compiles_total"]) == running.engine.numbers.compiles
    assert float(values["min_llm_time_to_first_token_seconds_count"]) == 2
    assert float(values["min_llm_inter_token_latency_seconds_count"]) == 8
    assert float(values["min_llm_queued"]) == float(values["min_llm_running"]) == 0
    assert float(values["min_llm_pages_free"]) == 64
