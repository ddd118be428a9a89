"""The operations a peer process answers: `python -m peers.server`, in the environment of `make env-peers`.

Heavy imports happen inside the operations, so a child starts at once and pays only for what it is asked.
"""

from typing import Any

from peers.pipe import serve

CURATION = ("datatrove", "trafilatura", "spacy", "fasttext-numpy2-wheel")


def versions() -> dict[str, str]:
    """Python and the libraries of this environment."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy", "xllamacpp", "compressed-tensors", "peft", *CURATION):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def llama(**request: Any) -> dict[str, Any]:
    """config, params, batch -> logits, loss, gradients: peers.models.forward."""
    from peers.models import forward

    return forward("llama", **request)


def mixtral(**request: Any) -> dict[str, Any]:
    """config, params, batch -> logits, loss, gradients: peers.models.forward."""
    from peers.models import forward

    return forward("mixtral", **request)


def gpt2(**request: Any) -> dict[str, Any]:
    """config, params, batch -> logits, loss, gradients: peers.models.forward."""
    from peers.models import forward

    return forward("gpt2", **request)


def adamw_trace(**request: Any) -> dict[str, Any]:
    """family, config, params, batch and AdamW's settings: peers.models.adamw_trace."""
    from peers.models import adamw_trace as trace

    return trace(**request)


def imports(family: str, compiled: bool) -> dict[str, Any]:
    """Import what training this family needs, torch.compile's modules if asked; the peak memory then, in bytes."""
    import torch

    if family == "llama":
        import transformers.models.llama.modeling_llama  # noqa: F401
    if compiled:
        import torch._dynamo
        import torch._inductor.compile_fx  # noqa: F401
    import peers.training  # noqa: F401
    from peers.memory import peak

    return {"peak": peak()}


def measured(threads: int) -> dict[str, float]:
    """The machine's peaks as torch reaches them: peers.training.peaks."""
    from peers.training import peaks

    return peaks(threads)


def start(**request: Any) -> dict[str, Any]:
    """Build a model for timed steps and make the first: peers.training.start."""
    from peers.training import start as begin

    return begin(**request)


def steps(n: int) -> dict[str, Any]:
    """n timed training steps and the peak memory in bytes: peers.training.steps."""
    from peers.memory import peak
    from peers.training import steps as run

    return {**run(n), "peak": peak()}


def make_folder(**request: Any) -> None:
    """architecture, config, folder, seed, shard_size: peers.folders.make."""
    from peers.folders import make

    make(**request)


def folder_logits(**request: Any) -> dict[str, Any]:
    """folder, tokens: peers.folders.logits."""
    from peers.folders import logits

    return logits(**request)


def make_compressed(**request: Any) -> None:
    """folder, config, group, ignore: peers.compressed.make."""
    from peers.compressed import make

    make(**request)


def read_compressed(**request: Any) -> dict[str, Any]:
    """folder, tokens -> weights, logits: peers.compressed.read."""
    from peers.compressed import read

    return read(**request)


def make_adapter(**request: Any) -> None:
    """model, config, folder, seed: peers.adapters.make."""
    from peers.adapters import make

    make(**request)


def adapter_logits(**request: Any) -> Any:
    """model, folder, tokens: peers.adapters.logits."""
    from peers.adapters import logits

    return logits(**request)


def nanogpt(threads: int, **request: Any) -> dict[str, Any]:
    """checkout, text, seed: peers.nanogpt.train_and_score on `threads` threads."""
    import torch

    from peers.nanogpt import train_and_score

    torch.set_num_threads(threads)
    return train_and_score(**request)


def load_texts(files: list[str]) -> dict[str, int]:
    """files: peers.curation.load."""
    from peers.curation import load as read

    return read(files)


def stage(name: str) -> dict[str, Any]:
    """name: peers.curation.stage."""
    from peers.curation import stage as run

    return run(name)


def pipeline(**request: Any) -> dict[str, Any]:
    """folder, workers: peers.curation.pipeline."""
    from peers.curation import pipeline as run

    return run(**request)


def fasttext(**request: Any) -> dict[str, Any]:
    """train, test, positive, settings: peers.curation.fasttext."""
    from peers.curation import fasttext as run

    return run(**request)


GENERATORS = {"transformers": "peers.generation", "llama.cpp": "peers.llamacpp"}
_generator: Any = None


def load(program: str, **request: Any) -> dict[str, Any]:
    """program of GENERATORS and what its `load` takes: a model that continues prompts from then on."""
    global _generator
    import importlib

    _generator = importlib.import_module(GENERATORS[program])
    return _generator.load(**request)


def generate(**request: Any) -> dict[str, Any]:
    """prompts, n -> seconds and at: `generate` of the program that is loaded."""
    from peers.memory import peak

    return {**_generator.generate(**request), "peak": peak()}


def continuation(**request: Any) -> dict[str, Any]:
    """prompt, n -> tokens and text: peers.llamacpp.continuation."""
    return _generator.continuation(**request)


if __name__ == "__main__":
    operations = (versions, llama, mixtral, gpt2, adamw_trace, imports, measured, start, steps, nanogpt)
    folders = (make_folder, folder_logits, make_compressed, read_compressed, make_adapter, adapter_logits)
    curation = (load_texts, stage, pipeline, fasttext)
    serve({f.__name__: f for f in (*operations, *folders, *curation, load, generate, continuation)})
