"""llama.cpp through xllamacpp: a server in this process that is asked directly, or over HTTP at its address."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import xllamacpp

_server: xllamacpp.Server | None = None


def load(path: str, rows: int, length: int, threads: int) -> dict[str, Any]:
    """Serve a GGUF file with `rows` slots of `length` tokens: seconds until it is ready, its HTTP address, and the
    processor features this build uses."""
    global _server
    began = time.perf_counter()
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = rows, rows * length
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cont_batching = True
    params.cache_prompt, params.cache_ram_mib = False, 0  # every prompt is computed
    params.fit_params = False  # the context asked for, not what seems to fit
    params.verbosity = -1
    _server = xllamacpp.Server(params)
    return {
        "seconds": time.perf_counter() - began,
        "address": _server.listening_address,
        "build": xllamacpp.get_system_info().strip(" |"),
    }


def generate(prompts: np.ndarray, n: int) -> dict[str, Any]:
    """n greedy tokens behind each row of prompts [B, S]: seconds [B, n] at which each was there, and of all."""
    seconds = np.full((len(prompts), n), np.inf)
    began = time.perf_counter()

    def note(chunk: dict[str, Any] | None) -> None:
        """A chunk tells how many tokens its row has; a cut character holds the text of one back."""
        if chunk and "timings" in chunk:
            row = seconds[chunk["choices"][0]["index"], : chunk["timings"]["predicted_n"]]
            row[np.isinf(row)] = time.perf_counter() - began

    _ask(
        {"prompt": prompts.tolist(), "max_tokens": n, "stream": True, "timings_per_token": True, **GREEDY},
        note,
    )
    return {"seconds": time.perf_counter() - began, "at": seconds}


def continuation(prompt: Sequence[int] | str, n: int) -> dict[str, Any]:
    """The n greedy tokens behind one prompt, and their text."""
    given = prompt if isinstance(prompt, str) else list(map(int, prompt))
    choice = _ask({"prompt": given, "max_tokens": n, "logprobs": 1, **GREEDY})["choices"][0]
    return {"text": choice["text"], "tokens": [t["id"] for t in choice["logprobs"]["content"]]}


GREEDY = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False}


def _ask(request: dict[str, Any], callback: Any = None) -> Any:
    if _server is None:
        raise RuntimeError("no model is loaded in this process: ask for `load` first")
    answer = _server.handle_completions(request, *([callback] if callback else []))
    if answer and "error" in answer:
        raise RuntimeError(f"llama.cpp: {answer['error']['message']}")
    return answer
