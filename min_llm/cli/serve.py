"""`min-llm serve`: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    host: Annotated[
        str, typer.Option(help="address to listen at; 0.0.0.0: every one of this machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one")] = 8000,
    name: Annotated[
        str, typer.Option(help="what clients call the model; default: the last part of MODEL")
    ] = "",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="a key that opens the server, again for more", envvar="MIN_LLM_API_KEY", show_envvar=True
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="a file of keys, one a line")] = None,
    max_sequences: Annotated[int, typer.Option(help="answers that are computed at once")] = 16,
    model_len: Annotated[int, typer.Option(help="longest prompt and answer; 0: the model's context")] = 0,
    cache_tokens: Annotated[
        int, typer.Option(help="tokens the key-value cache holds; 0: 512 MiB of them")
    ] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: float32 on a CPU")] = "auto",
    kv_dtype: Annotated[
        str, typer.Option(help="of the key-value cache: same as dtype, or int8, about half the bytes")
    ] = "same",
    speculate: Annotated[int, typer.Option(help="tokens to guess for each step of an answer; 0: none")] = 0,
    draft: Annotated[
        str, typer.Option(help="a smaller model that guesses; without it the prompt is looked up")
    ] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: an adapter in peft's form that clients call NAME; again for more"),
    ] = None,
    lora_updates: Annotated[
        bool, typer.Option("--lora-updates", help="clients may load adapters from this machine's disk")
    ] = False,
    max_loras: Annotated[
        int, typer.Option(help="adapters at once; 0: those of --lora, with --lora-updates 4 more")
    ] = 0,
    max_lora_rank: Annotated[int, typer.Option(help="the largest rank of an adapter")] = 16,
    tp: Annotated[int, typer.Option(help="devices that share every layer (tensor parallelism)")] = 1,
    max_queue: Annotated[int, typer.Option(help="answers that may wait to begin; others are refused")] = 256,
    drain: Annotated[float, typer.Option(help="seconds that running answers have after SIGTERM")] = 30.0,
    step: Annotated[int | None, typer.Option(help="checkpoint to use; default: the latest")] = None,
) -> None:
    """Serve MODEL through OpenAI's API until SIGTERM or Ctrl-C."""
    from min_llm import platform
    from min_llm.config import build
    from min_llm.formats import peft
    from min_llm.infer.engine import Engine
    from min_llm.infer.load import load
    from min_llm.infer.options import EngineConfig
    from min_llm.kernels import cpu
    from min_llm.nn.runtime import RuntimeConfig
    from min_llm.parallel import mesh
    from min_llm.reporting import reporter
    from min_llm.serve.app import Settings
    from min_llm.serve.server import Server, listen
    from min_llm.serve.service import Served

    settings = Settings(
        keys=keys(api_key or [], api_key_file), max_queue=max_queue, drain=drain, lora_updates=lora_updates
    )
    known_as = name or Path(model).name
    folders = adapters(lora or [], known_as)
    place = listen(host, port)  # before anything that takes long: a taken port is told at once
    platform.use_compilation_cache()
    cpu.keep_blocks()  # weights in huge pages are read a tenth faster
    runtime = build(RuntimeConfig, {"dtype": dtype}, "runtime")
    loaded = load(model, step, runtime)
    guesser = load(draft, runtime=runtime) if draft else None
    loras = {called: peft.read(folder, loaded.cfg) for called, folder in folders.items()}
    reporter().info(f"{loaded.about}, {loaded.cfg.family}: compiling")
    config = EngineConfig(
        max_sequences=max_sequences,
        model_len=model_len,
        cache_tokens=cache_tokens,
        kv_dtype=kv_dtype,
        speculate=speculate or (4 if draft else 0),
        max_loras=max_loras or len(folders) + 4 * lora_updates,
        max_lora_rank=max_lora_rank,
    )
    with mesh.use(mesh.MeshConfig(tp=tp)):
        engine = Engine(loaded, config, guesser, release=True)
    for called, read in loras.items():
        engine.load_lora(called, read)
    served = Served(known_as, loaded.tokenizer, loaded.opening, loaded.template)
    reporter().info(f"{known_as}: context of {engine.model_len:,} tokens, {max_sequences} answers at once")
    if host not in ("127.0.0.1", "::1", "localhost") and not settings.keys:
        reporter().warn("everybody who reaches this address may use the model; --api-key closes it")
    Server(served, engine, settings).run(sockets=[place])


def adapters(given: list[str], model: str) -> dict[str, Path]:
    """The folder of each NAME=FOLDER. UserError where a name is empty, or taken."""
    from min_llm.config import UserError

    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"--lora takes NAME=FOLDER, not {text!r}.")
        if name == model or name in found:
            raise UserError(f"--lora {text} gives a name that is taken. Choose another one.")
        found[name] = Path(folder).expanduser()
    return found


def keys(given: list[str], file: Path | None) -> list[str]:
    """Keys of the command line and of a file, whose empty lines do not count."""
    from min_llm.config import UserError

    if file is None:
        return given
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"{file} holds no key; put one on a line, or leave out --api-key-file.")
    return given + found
