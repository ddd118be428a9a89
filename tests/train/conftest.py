import pytest

from min_llm import reporting


@pytest.fixture(autouse=True)
def fresh_reporter(monkeypatch):
    """A reporter of the test's own: one made under captured output would write to a closed stream later."""
    monkeypatch.setattr(reporting, "_reporter", None)
