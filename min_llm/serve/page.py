"""The chat page: one file without outside parts, and the header that keeps it so."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

PAGE = Path(__file__).with_name("chat.html")


async def page(request: Request) -> HTMLResponse:
    text, headers = _page()
    return HTMLResponse(text, headers=headers)


@functools.cache
def _page() -> tuple[str, dict[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    return text, {
        "Content-Security-Policy": policy(text),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def policy(text: str) -> str:
    """Only the page's own script and style run, known by their hashes; it talks to this server alone, nobody frames it,
    and no text of a user or a model can become HTML (trusted types)."""
    return "; ".join([
        "default-src 'none'",
        f"script-src {_hashes(text, 'script')}",
        f"style-src {_hashes(text, 'style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ])  # fmt: skip


def _hashes(text: str, tag: str) -> str:
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts
    )
