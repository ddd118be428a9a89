"""`min-llm chat`: talk with a model in the terminal, or through pipes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from min_llm.infer.conversation import Conversation

COMMANDS = {
    "/help": "this list",
    "/system TEXT": "what every answer should follow; without TEXT it is shown",
    "/reset": "begin anew; the system prompt stays",
    "/save FILE": "write the conversation to a new file, as JSON",
    "/quit": "end, as Ctrl-D does",
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey


def chat(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    system: Annotated[str, typer.Option(help="what every answer should follow")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.7,
    top_p: Annotated[float, typer.Option(help="draw among the likeliest tokens of this probability")] = 0.95,
    top_k: Annotated[int, typer.Option(help="draw among the k likeliest tokens; 0: all")] = 0,
    min_p: Annotated[
        float, typer.Option(help="least probability, as a share of the likeliest token's")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="of an answer; 0: what fits the context")] = 0,
    seed: Annotated[int | None, typer.Option(help="of the draws; default: another one each time")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: float32 on a CPU")] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="of the key-value cache: same as dtype, or int8")] = "same",
    lora: Annotated[str, typer.Option(help="folder of an adapter in peft's form")] = "",
    step: Annotated[int | None, typer.Option(help="checkpoint to use; default: the latest")] = None,
) -> None:
    """Chat with MODEL. Ctrl-C stops an answer, Ctrl-D ends.

    Where standard input is no terminal, each of its lines is a message, and standard output gets the answers alone.
    """
    from rich.console import Console

    from min_llm import platform
    from min_llm.config import UserError, build
    from min_llm.infer.conversation import Conversation
    from min_llm.infer.engine import Engine
    from min_llm.infer.load import load
    from min_llm.infer.options import EngineConfig
    from min_llm.infer.request import Sampling
    from min_llm.kernels import cpu
    from min_llm.nn.runtime import RuntimeConfig
    from min_llm.reporting import reporter

    sampling = Sampling(
        temperature, top_k=top_k, top_p=top_p, min_p=min_p, max_tokens=max_tokens or None, seed=seed
    )
    platform.use_compilation_cache()
    cpu.keep_blocks()  # weights in huge pages are read a tenth faster
    loaded = load(model, step, build(RuntimeConfig, {"dtype": dtype}, "runtime"), lora or None)
    if loaded.template is None:
        raise UserError(
            f"{loaded.about} has no chat template, so it cannot chat; `min-llm sample` continues a text."
        )
    reporter().info(f"{loaded.about}, {loaded.cfg.family}: compiling")
    engine = Engine(loaded, EngineConfig(max_sequences=1, kv_dtype=kv_dtype), release=True)
    talk = Conversation(loaded, engine, sampling, system)
    if sys.stdin.isatty():
        converse(talk, Console(highlight=False, emoji=False, markup=False), platform.home() / "chat_history")
    else:
        pipe(talk)


def pipe(talk: Conversation) -> None:
    """One message a line; what goes wrong ends it."""
    from min_llm.reporting import reporter

    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for line in sys.stdin:
        if not (message := line.strip()):
            continue
        if message.startswith("/"):
            if message == "/quit":
                return
            reporter().info(command(talk, message))
            continue
        for text in talk.ask(message):
            print(text, end="", flush=True)
        print(flush=True)


def converse(talk: Conversation, console: Console, history: Path) -> None:
    """At a terminal; what goes wrong is told, and the conversation goes on."""
    from min_llm.config import UserError

    console.print(f"{talk.loaded.about}: {talk.engine.model_len:,} tokens of context. /help", style="dim")
    with remembered(history):
        for message in typed():
            try:
                if message == "/quit":
                    return
                if message.startswith("/"):
                    console.print(command(talk, message), style="dim")
                else:
                    answer(talk, message, console)
            except (UserError, OSError) as error:
                console.print(str(error), style="red")


def command(talk: Conversation, line: str) -> str:
    """Does what a command says; what there is to tell of it."""
    from min_llm.config import UserError

    name, _, rest = line.partition(" ")
    rest = rest.strip()
    match name:
        case "/help":
            width = max(map(len, COMMANDS))
            return "\n".join(f"{name:{width}}  {what}" for name, what in COMMANDS.items())
        case "/system":
            talk.system = rest or talk.system
            return f"System prompt: {talk.system}" if talk.system else "There is no system prompt."
        case "/reset":
            talk.messages.clear()
            return "A new conversation."
        case "/save" if rest:
            with Path(rest).expanduser().open("x", encoding="utf-8") as file:
                json.dump({"messages": talk.whole}, file, ensure_ascii=False, indent=2)
            return f"Saved to {rest}."
    raise UserError(f"{line[:80]} is no command; /help lists those there are.")


def answer(talk: Conversation, message: str, console: Console) -> None:
    """Writes it as it comes, and below it what it took. Ctrl-C ends it."""
    with (
        interruption() as stopped,
        console.status("") as waiting,
        contextlib.closing(talk.ask(message)) as pieces,
    ):
        for text in pieces:
            if text:
                waiting.stop()
                console.out(CONTROL.sub("\ufffd", text), end="", highlight=False)
            if stopped.is_set():
                break
    turn = talk.turn
    parts = [
        f"{turn.generated} tokens",
        f"{turn.rate:.1f} tokens/s",
        f"prompt {turn.prompt:,}, {turn.cached:,} cached",
    ]
    ends = {"abort": ["stopped"], "length": ["cut at the limit of tokens"]}
    console.print("\n" + " · ".join(parts + ends.get(turn.finish, [])) + "\n", style="dim")


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """Set by Ctrl-C, so that no step of the engine is torn apart. A second Ctrl-C ends the program."""
    pressed = threading.Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def typed() -> Iterator[str]:
    """Messages, until Ctrl-D. A line that ends in a backslash goes on in the next; Ctrl-C drops it."""
    while True:
        try:
            message = input("› ")
            while message.endswith("\\"):
                message = f"{message[:-1]}\n{input('  ')}"
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if message.strip():
            yield message.strip()


@contextlib.contextmanager
def remembered(history: Path) -> Iterator[None]:
    """The arrow keys find what was typed, today and before."""
    try:
        import readline
    except ImportError:  # Windows: its terminal has a history of its own
        yield
        return
    with contextlib.suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            readline.write_history_file(history)
