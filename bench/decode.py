"""Generation speed against transformers, llama.cpp and the memory: time to first token, and tokens/s behind it.

    python -m bench.decode [--models …] [--cases 1x64,16x1024] [--precisions …] [--programs …] [--rounds N]
                           [--into FOLDER] [--quick] [--dry]

Every program holds its model warm in a process of its own and answers in turn (bench/race.py): BATCH prompts of the
same random tokens, the same number of greedy tokens behind each, whatever they are. The first token counts when every
prompt has its own; tokens per second are counted from there to the first row that ends. Beside them stands what the
memory allows: the bytes that a step must read, at the speed at which two threads read so many in the same round.
Needs `make env-peers`; takes the machine's lock.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import models, results
from bench.race import START_SECONDS, idle, say, timed
from bench.train import PEER_ENV
from min_llm import machine
from peers import client
from peers.pipe import Child

SEED = 0
STEADY = 32  # tokens of each row that are timed at least
PREFILL = 256  # prompt tokens of one step, at least: meanwhile rows that have begun go on
BOUND = "bandwidth bound"
OURS = {  # runtime of a precision; of quantized weights it is the activations'
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "q8_0": {"dtype": "bfloat16"},
    "q4_0": {"dtype": "bfloat16"},
}
PROGRAMS = ("min_llm", "transformers dynamic", "transformers static", "llama.cpp", BOUND)
MOST_PROMPT = {models.BILLION: 1024}  # tokens of all prompts of a case: more take minutes to read
LIGHT = {models.BILLION: ("bfloat16", "q8_0")}  # precisions that fit beside each other in memory


@dataclasses.dataclass(frozen=True)
class Case:
    batch: int
    prompt: int
    steady: int = STEADY

    @classmethod
    def named(cls, name: str) -> "Case":
        """BATCHxPROMPT. Raises ValueError."""
        batch, prompt = map(int, name.split("x"))
        return cls(batch, prompt)

    @property
    def tokens(self) -> int:
        """Of each row, so that `steady` are left when the last row begins, and one more: rows of one step end some
        microseconds apart."""
        return 2 + self.steady + -(-self.batch * self.prompt // PREFILL)

    @property
    def length(self) -> int:
        """Of prompt and answer, in whole pages."""
        return -(-(self.prompt + self.tokens) // 64) * 64

    def prompts(self, vocabulary: int, number: int) -> np.ndarray:
        """Those of round `number`, [batch, prompt]."""
        rng = np.random.default_rng([SEED, self.batch, self.prompt, number])
        return rng.integers(0, vocabulary, (self.batch, self.prompt), dtype=np.int32)


CASES = tuple(Case(batch, prompt) for batch in (1, 4, 16) for prompt in (64, 1024))


@dataclasses.dataclass(frozen=True)
class Side:
    program: str
    precision: str

    def __str__(self) -> str:
        return f"{self.program} {self.precision}"


@dataclasses.dataclass
class Record:
    """What one side did in one case, round by round. first: seconds. rate: tokens/s of all rows together. others:
    cores that other processes used."""

    side: Side
    first: list[float] = dataclasses.field(default_factory=list)
    rate: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def sides_of(precisions: Sequence[str], programs: Sequence[str]) -> list[Side]:
    """What there is: transformers has no quantised products on CPUs."""
    have = {"min_llm": OURS, "llama.cpp": models.KINDS, BOUND: models.KINDS}
    floats = ("float32", "bfloat16")
    return [Side(name, p) for p in precisions for name in programs if p in have.get(name, floats)]


def open_child(side: Side, model: str, cases: Sequence[Case]) -> tuple[Child, dict[str, Any]]:
    """The side's process with its model loaded, and what it told of that."""
    rows, length = max(case.batch for case in cases), max(case.length for case in cases)
    if side.program == "min_llm":
        child = Child([sys.executable, "-m", "bench.generation"], name=str(side), cwd=client.ROOT)
        request: dict[str, Any] = {"runtime": OURS[side.precision], "rows": rows, "length": length}
    else:
        child = client.start(str(side), env=PEER_ENV)
        program, _, cache = side.program.partition(" ")
        request = {"program": program, "threads": results.cores()}
        request |= {"dtype": side.precision, "cache": cache} if cache else {"rows": rows, "length": length}
    return child, child.call("load", timeout=START_SECONDS, path=str(file_of(side, model)), **request)


def file_of(side: Side, model: str) -> Path:
    """The model as the side's program reads it, written if it is not there."""
    quantized_by_us = side.program == "min_llm" and side.precision in models.METHODS
    as_folder = quantized_by_us or side.program.startswith("transformers")
    return (models.folder if as_folder else models.gguf)(model, side.precision)


def read(answer: Mapping[str, Any], case: Case) -> tuple[float, float]:
    """Seconds until every row has its first token, and tokens/s from there until one has its last."""
    at = answer["at"]
    first, end = at[:, 0].max(), at[:, -1].min()
    if not np.isfinite(at).all():
        raise RuntimeError("a row has fewer tokens than were asked for")
    between = int(((at > first) & (at <= end)).sum())
    if between < case.steady * case.batch:
        raise RuntimeError(
            f"only {between} tokens came between the last row's first and the first row's last"
        )
    return float(first), between / float(end - first)


def bytes_per_step(model: str, precision: str, case: Case) -> int:
    """The weights, and keys and values of 16 bits of every row in the middle of its answer."""
    return weight_bytes(model, precision) + case.batch * cached_bytes(model) * (
        case.prompt + case.tokens // 2
    )


weight_bytes = functools.cache(models.weight_bytes)


@functools.cache
def cached_bytes(model: str) -> int:
    """Of the keys and values of a token, in 16 bits."""
    cfg = models.config(model)
    return 2 * 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim


def bandwidth(size: int, threads: int, repeats: int = 7) -> float:
    """Bytes/s at which threads together read a buffer of `size` bytes that they have read before, the fastest time."""
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - began)
    return size / min(seconds)


def race(
    model: str, cases: Sequence[Case], sides: Sequence[Side], rounds: int, tries: int
) -> Iterator[tuple[Case, list[Record]]]:
    """Load every side, then the cases, each with rounds in which all sides have their turn; a turn that other processes
    disturbed is taken again, up to `tries` times."""
    vocabulary = models.config(model).vocab_size
    for side in sides:
        file_of(side, model)
    models.forget()
    with ExitStack() as stack:
        children: dict[Side, Child] = {}
        builds: dict[Side, str] = {}
        for side in sides:
            if side.program == BOUND:
                continue
            children[side], loaded = open_child(side, model, cases)
            stack.enter_context(children[side])
            builds |= {side: loaded["build"]} if "build" in loaded else {}
            say(f"  {side}: loaded in {loaded['seconds']:.1f} s")
        for child in children.values():
            child.call("generate", timeout=START_SECONDS, prompts=cases[0].prompts(vocabulary, rounds), n=4)
        idle({str(side): child.pid for side, child in children.items()})
        for case in cases:
            records = [
                Record(side, facts={"build": builds[side]} if side in builds else {}) for side in sides
            ]
            for turn in range(rounds):
                prompts = case.prompts(vocabulary, turn)
                first = turn % len(sides)
                for record in [*records[first:], *records[:first]]:
                    if record.side.program == BOUND:
                        bound(record, model, case)
                        continue
                    child = children[record.side]
                    answer, others = timed(child, "generate", tries, prompts=prompts, n=case.tokens)
                    seconds, rate = read(answer, case)
                    record.first.append(seconds)
                    record.rate.append(rate)
                    record.others.append(others)
            for record in records:
                say(f"  {case.batch} x {case.prompt}, {summary(record)}")
            yield case, records


def bound(record: Record, model: str, case: Case) -> None:
    """One round's measurement of the memory."""
    size = bytes_per_step(model, record.side.precision, case)
    speed = bandwidth(size, results.cores())
    record.rate.append(case.batch * speed / size)
    record.facts |= {"bytes_per_step": size, "bytes_per_second": speed}


def summary(record: Record) -> str:
    words = f"{record.side}: {results.median_and_spread(record.rate)[0]:.1f} tokens/s"
    if record.first:
        words += f", first after {results.median_and_spread(record.first)[0] * 1e3:.0f} ms"
    return words + (f"; others used {max(record.others):.2f} cores" if record.others else "")


def rows_of(model: str, case: Case, records: Sequence[Record]) -> list[results.Row]:
    """Ours beside each program at the same precision; a program alone where ours has none."""
    ours = {r.side.precision: r for r in records if r.side.program == "min_llm"}
    peers = [r for r in records if r.side.program != "min_llm"]
    made = []
    for peer in peers:
        mine = ours.get(peer.side.precision)
        made.append(compared(model, case, mine, peer, "tokens_per_second", "rate", "tokens/s", "higher"))
        if peer.first:
            made.append(compared(model, case, mine, peer, "first_token", "first", "s", "lower"))
    return made


def compared(
    model: str, case: Case, mine: Record | None, peer: Record, metric: str, field: str, unit: str, better: str
) -> results.Row:
    theirs = getattr(peer, field)
    value, spread, ratio = None, results.median_and_spread(theirs)[1], None
    if mine is not None:
        own = getattr(mine, field)
        pairs = zip(own, theirs, strict=True)
        ratio, spread = results.median_and_spread([a / b if better == "higher" else b / a for a, b in pairs])
        value = results.median_and_spread(own)[0]
    return results.row(
        f"{model}, batch {case.batch}, prompt {case.prompt}", metric, unit, peer.side.precision, value,
        peer_name=peer.side.program, peer=results.median_and_spread(theirs)[0], better=better, ratio=ratio,
        runs=len(theirs), spread=spread, seed=SEED, model=model, batch=case.batch, prompt=case.prompt,
        tokens=case.tokens, others_cores=max([*peer.others, *(mine.others if mine else ()), 0.0]),
        ours_as=models.METHODS.get(peer.side.precision) if mine else None, **peer.facts,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(models.MODELS))
    parser.add_argument(
        "--cases", default=",".join(f"{c.batch}x{c.prompt}" for c in CASES), help="BATCHxPROMPT"
    )
    parser.add_argument("--precisions", default=",".join(models.KINDS))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every side has its turn")
    parser.add_argument("--into", type=Path, default=results.RESULTS, help="folder of the result file")
    parser.add_argument("--quick", action="store_true", help="one short case of one model, two rounds")
    parser.add_argument("--dry", action="store_true", help="print the rows instead of writing them")
    options = parser.parse_args()
    named, precisions, programs = (
        getattr(options, name).split(",") for name in ("models", "precisions", "programs")
    )
    unknown = [m for m in named if m not in models.MODELS]
    unknown += [p for p in precisions if p not in models.KINDS] + [p for p in programs if p not in PROGRAMS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; see the defaults in --help for what there is")
    try:
        cases = [Case.named(name) for name in options.cases.split(",")]
    except ValueError:
        parser.error(f"--cases {options.cases}: a case is BATCHxPROMPT, such as 4x64")
    rounds, tries = options.rounds, 2
    if options.quick:
        named, cases, rounds, tries = [models.SMOL], [Case(1, 16, steady=4)], 2, 1
    if client.interpreter() is None:
        parser.error(client.MISSING)
    with machine.exclusive(say):
        with client.start() as child:
            versions = {f"peer_{name}": number for name, number in child.call("versions").items()}
        for model in named:
            say(model)
            sides = sides_of([p for p in precisions if p in LIGHT.get(model, precisions)], programs)
            fit = [c for c in cases if c.batch * c.prompt <= MOST_PROMPT.get(model, c.batch * c.prompt)]
            for case, records in race(model, fit, sides, rounds, tries) if fit else ():
                rows = rows_of(model, case, records)
                if options.dry:
                    print(*rows, sep="\n")
                else:
                    say(f"wrote {results.write('decode', rows, versions=versions, into=options.into)}")


if __name__ == "__main__":
    main()
