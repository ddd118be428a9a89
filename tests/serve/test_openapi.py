"""/openapi.json, and requests made up from it."""

import pytest

from min_llm.serve.app import application
from min_llm.serve.openapi import document
from min_llm.serve.service import Served
from tests.serve.fake import FakeEngine
from tests.serve.servers import serving

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402

schema = schemathesis.openapi.from_dict(document("toy"))


@pytest.fixture(scope="module")
def toy():
    with serving(FakeEngine(model_len=64), lora_updates=True) as running:
        yield running
        assert running.complete() and not running.engine.busy


@schema.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_made_up_requests(case, toy):
    """What the document allows and what it forbids: never a 500, always a form that the document tells."""
    case.call_and_validate(
        base_url=toy.url,
        checks=[
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ],
    )


def test_both_kinds_come():
    """What the document allows and what it forbids; otherwise the test above would show nothing."""
    with serving(FakeEngine(model_len=64)) as running:
        run = schema["/v1/completions"]["POST"].as_strategy()
        found = set()

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=run)
        def call(case):
            found.add(case.call(base_url=running.url).status_code)

        call()
    assert {200, 400} <= found


def test_every_path_of_the_server_is_described(toy):
    described = toy.client.get("/openapi.json").json()
    engine = FakeEngine()
    routes = application(Served("toy", engine.tokenizer), engine).routes
    paths = {route.path.replace("{name:path}", "{name}") for route in routes}
    assert paths - {"/", "/openapi.json"} == set(described["paths"])


def test_the_page_is_a_page_or_absent(toy):
    reply = toy.client.get("/")
    kind = {200: "text/html", 404: "application/json"}[reply.status_code]
    assert reply.headers["content-type"].startswith(kind)
