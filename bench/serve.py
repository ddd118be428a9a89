"""Serving under load against llama.cpp's server, and what a start costs: SmolLM2-135M over HTTP, streamed.

    python -m bench.serve [--clients 16] [--requests 32] [--precisions …] [--rounds N] [--starts N]
                          [--into FOLDER] [--quick] [--dry]

`min-llm serve` and llama.cpp's own server (through xllamacpp) run in processes of their own and are asked in turn, by
the same clients (bench/load.py) for the same completions: prompts of 16 to 512 random tokens, answers of 16 to 128,
lengths drawn once from a seed. Goodput is the tokens of complete answers over the time that all of them took.

A start is timed from the process to the first token of the first answer: with an empty $MIN_LLM_HOME (but for the
download), where kernels and programs are compiled, then again with what that left. Peak memory is VmHWM after the load.
Needs `make env-peers`; takes the machine's lock.
"""

import argparse
import asyncio
import dataclasses
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import load, models, results
from bench.race import alone, idle, say
from min_llm import machine, platform
from peers import client, memory

SEED = 0
PROMPTS, ANSWERS = (16, 512), (16, 128)  # tokens
LENGTH = 1024  # longest prompt and answer that the servers are set up for
OURS = ("float32", "bfloat16", *models.METHODS)  # what `min-llm serve` runs in on a CPU
LIMIT = 300.0  # seconds that a start may take


@dataclasses.dataclass(frozen=True)
class Side:
    ours: bool
    precision: str

    def __str__(self) -> str:
        return f"{'min_llm' if self.ours else 'llama.cpp'} {self.precision}"


@dataclasses.dataclass
class Record:
    """What one side did; figures are lists over the rounds. first, second: seconds of starts."""

    side: Side
    figures: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    first: list[float] = dataclasses.field(default_factory=list)
    second: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0
    build: str = ""


@dataclasses.dataclass(frozen=True)
class Running:
    address: str
    pid: int
    build: str = ""


FIGURES = {  # unit, and which way is better
    "goodput": ("tokens/s", "higher"),
    "first_token_p50": ("s", "lower"),
    "first_token_p99": ("s", "lower"),
    "between_tokens_p50": ("s", "lower"),
    "between_tokens_p99": ("s", "lower"),
}


def sides_of(precisions: Sequence[str]) -> list[Side]:
    return [Side(ours, p) for p in precisions for ours in (True, False) if not ours or p in OURS]


def file_of(side: Side) -> Path | str:
    """What the side's server is given: the model by its name where it has one."""
    if not side.ours:
        return models.gguf(models.SMOL, side.precision)
    return models.folder(models.SMOL, side.precision) if side.precision in models.METHODS else models.NAMED


@contextmanager
def running(side: Side, rows: int, home: Path | None = None) -> Iterator[Running]:
    """The side's server, told to start: ours may not answer yet. home: $MIN_LLM_HOME of ours."""
    if not side.ours:
        with client.start(str(side)) as child:
            told = child.call(
                "load", timeout=LIMIT, program="llama.cpp", path=str(file_of(side)),
                rows=rows, length=LENGTH, threads=results.cores(),
            )  # fmt: skip
            yield Running(told["address"], child.pid, told["build"])
        return
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    command = [
        sys.executable, "-m", "min_llm", "serve", str(file_of(side)), "--port", str(port),
        "--max-sequences", str(rows), "--model-len", str(LENGTH),
        "--dtype", "bfloat16" if side.precision == "bfloat16" else "float32",
    ]  # fmt: skip
    env = {**os.environ, **({} if home is None else {"MIN_LLM_HOME": str(home)})}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=client.ROOT, env=env, stdout=log, stderr=log)
        try:
            yield Running(f"http://127.0.0.1:{port}", process.pid)
        except Exception as error:
            log.seek(0)
            error.add_note(f"{side} said:\n{log.read().decode(errors='replace')[-3000:]}")
            raise
        finally:
            process.kill()
            process.wait()


def first_token(server: Running) -> None:
    """Wait for the server and for the first token of an answer. TimeoutError after LIMIT."""

    async def ask() -> None:
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    await load.complete(server.address, load.Request([1, 2, 3], 1))
                    return
                except ConnectionRefusedError:
                    if not Path(f"/proc/{server.pid}").exists() and Path("/proc").exists():
                        raise
                    await asyncio.sleep(0.01)

    asyncio.run(ask())


def started(side: Side, rows: int, home: Path) -> float:
    """Seconds from the process to its first token."""
    began = time.perf_counter()
    with running(side, rows, home) as server:
        first_token(server)
        return time.perf_counter() - began


@contextmanager
def fresh_home() -> Iterator[Path]:
    """A $MIN_LLM_HOME with nothing but the downloads."""
    downloads = platform.home() / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "packages").symlink_to(downloads.resolve())
        yield Path(made)


def starts(records: Sequence[Record], number: int, rows: int) -> None:
    """`number` pairs of starts of every side, in turn."""
    for _ in range(number):
        for record in records:
            with fresh_home() as home:
                record.first.append(started(record.side, rows, home))
                record.second.append(started(record.side, rows, home))
            say(
                f"  {record.side}: first token after {record.first[-1]:.2f} s, again {record.second[-1]:.2f} s"
            )


def figures(seconds: float, seen: Sequence[load.Seen]) -> dict[str, float]:
    """Of one round of load."""
    first, gaps = [s.first for s in seen], np.concatenate([s.gaps for s in seen])
    return {
        "goodput": sum(s.tokens for s in seen) / seconds,
        "first_token_p50": float(np.percentile(first, 50)),
        "first_token_p99": float(np.percentile(first, 99)),
        "between_tokens_p50": float(np.percentile(gaps, 50)),
        "between_tokens_p99": float(np.percentile(gaps, 99)),
    }


def under_load(records: Sequence[Record], clients: int, number: int, rounds: int, tries: int) -> None:
    """All servers up, then rounds in which each does the same work in its turn."""
    vocabulary = models.config(models.SMOL).vocab_size
    with ExitStack() as stack:
        servers = [stack.enter_context(running(r.side, clients)) for r in records]
        for record, server in zip(records, servers, strict=True):
            first_token(server)
            record.build = server.build
        idle({str(r.side): s.pid for r, s in zip(records, servers, strict=True)})
        for turn in range(rounds):
            work = load.requests(number, vocabulary, PROMPTS, ANSWERS, SEED + turn)
            for i in [*range(turn % len(records), len(records)), *range(turn % len(records))]:
                record, server = records[i], servers[i]
                made, others = alone(
                    [server.pid, os.getpid()],
                    functools.partial(load.run, server.address, work, clients),
                    tries,
                )
                record.others.append(others)
                for name, value in figures(*made).items():
                    record.figures.setdefault(name, []).append(value)
                record.peak = memory.peak(server.pid)
        for record in records:
            told = {name: results.median_and_spread(values)[0] for name, values in record.figures.items()}
            say(
                f"  {record.side}: {told['goodput']:.1f} tokens/s; first token {told['first_token_p50']:.2f} s "
                f"(p99 {told['first_token_p99']:.2f}), between tokens {told['between_tokens_p50'] * 1e3:.0f} ms "
                f"(p99 {told['between_tokens_p99'] * 1e3:.0f}); peak {record.peak / 2**20:.0f} MiB; "
                f"others used {max(record.others):.2f} cores"
            )


def rows_of(records: Sequence[Record], clients: int, number: int) -> list[results.Row]:
    """Ours beside llama.cpp's at the same precision; llama.cpp's alone where ours has none."""
    ours = {r.side.precision: r for r in records if r.side.ours}
    made = []
    loaded = {"clients": clients, "requests": number, "prompt_tokens": PROMPTS, "answer_tokens": ANSWERS}
    for peer in (r for r in records if not r.side.ours):
        mine = ours.get(peer.side.precision)
        facts: dict[str, Any] = {"build": peer.build, **loaded}
        others = [*peer.others, *(mine.others if mine else ())]
        facts["others_cores"] = max(others, default=None)
        made += [
            compared(
                f"{clients} clients",
                name,
                unit,
                better,
                peer,
                mine,
                lambda r, name=name: r.figures[name],
                facts,
            )
            for name, (unit, better) in FIGURES.items()
        ]
        made.append(
            compared(
                f"{clients} clients",
                "peak_memory",
                "MiB",
                "lower",
                peer,
                mine,
                lambda r: [r.peak / 2**20],
                facts,
            )
        )
        for metric, values in (("first_start", lambda r: r.first), ("second_start", lambda r: r.second)):
            if peer.first:
                made.append(compared("start to first token", metric, "s", "lower", peer, mine, values, {}))
    for mine in ours.values():
        if mine.first:
            shares = [b / a for a, b in zip(mine.first, mine.second, strict=True)]
            share, spread = results.median_and_spread(shares)
            made.append(
                results.row(
                    "start to first token", "second_start_share", "share of the first", mine.side.precision, share,
                    better="lower", runs=len(shares), spread=spread,
                )
            )  # fmt: skip
    return made


def compared(
    case: str, metric: str, unit: str, better: str, peer: Record, mine: Record | None,
    values: Any, facts: Mapping[str, Any],
) -> results.Row:  # fmt: skip
    theirs = values(peer)
    value, ratio, spread = None, None, results.median_and_spread(theirs)[1]
    if mine is not None:
        own = values(mine)
        pairs = zip(own, theirs, strict=True)
        ratio, spread = results.median_and_spread([a / b if better == "higher" else b / a for a, b in pairs])
        value = results.median_and_spread(own)[0]
    return results.row(
        f"{models.SMOL}, {case}", metric, unit, peer.side.precision, value, peer_name="llama.cpp",
        peer=results.median_and_spread(theirs)[0], better=better, ratio=ratio, runs=len(theirs), spread=spread,
        seed=SEED, **facts,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=16, help="requests that are under way at once")
    parser.add_argument("--requests", type=int, default=32, help="completions of a round")
    parser.add_argument("--precisions", default=",".join(models.KINDS))
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every side has its turn")
    parser.add_argument("--starts", type=int, default=3, help="pairs of starts")
    parser.add_argument("--into", type=Path, default=results.RESULTS, help="folder of the result file")
    parser.add_argument(
        "--quick", action="store_true", help="two clients, four requests, two rounds, one start"
    )
    parser.add_argument("--dry", action="store_true", help="print the rows instead of writing them")
    options = parser.parse_args()
    precisions = options.precisions.split(",")
    unknown = [p for p in precisions if p not in models.KINDS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; precisions are {', '.join(models.KINDS)}")
    clients, number, rounds, pairs, tries = (
        options.clients, options.requests, options.rounds, options.starts, 2,
    )  # fmt: skip
    if options.quick:
        clients, number, rounds, pairs, tries = 2, 4, 2, 1, 1
    if client.interpreter() is None:
        parser.error(client.MISSING)
    with machine.exclusive(say):
        with client.start() as child:
            versions = {f"peer_{name}": number for name, number in child.call("versions").items()}
        records = [Record(side) for side in sides_of(precisions)]
        for record in records:
            file_of(record.side)  # written before anything is timed
        models.forget()
        starts(records, pairs, clients)
        under_load(records, clients, number, rounds, tries)
    rows = rows_of(records, clients, number)
    if options.dry:
        print(*rows, sep="\n")
    else:
        say(f"wrote {results.write('serve', rows, versions=versions, into=options.into)}")


if __name__ == "__main__":
    main()
