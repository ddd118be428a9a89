"""What `min-llm data curate` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from min_llm.config import UserError, build, nearest, option
from min_llm.data.curate.steps import USUAL, Steps


@dataclass(frozen=True)
class Fields:
    """Which columns of .jsonl and .parquet rows hold what; the others are carried through."""

    text: str = option("text", "the text")
    name: str = option("name", "a name for it; without one, file and line")
    url: str = option("url", "its address")
    time: str = option("time", "when it was fetched: ISO 8601, or seconds since 1970")


@dataclass(frozen=True)
class CurateConfig:
    """Which texts, through which steps, to where."""

    inputs: dict[str, str | tuple[str, ...]] = field(
        metadata={
            "help": "name of a source -> files, folders, patterns such as crawl/*.jsonl.gz, or names of sources"
        }
    )
    output: str = field(metadata={"help": "folder for the result and its report"})
    steps: Steps = field(default_factory=lambda: build(Steps, dict.fromkeys(USUAL), "steps"))
    fields: Fields = option(Fields(), "columns of the input")
    format: Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"] = option("jsonl.gz", "of the output")
    executor: Literal["processes", "ray"] = option(
        "processes",
        "of this machine, or tasks on the Ray cluster of RAY_ADDRESS, whose machines share the files",
    )
    workers: int = option(0, "processes, or tasks on Ray, at once; 0: one a core of this machine")
    longest: int = option(1 << 24, "bytes; longer lines and files are dropped, which bounds the memory")
    together: int = option(
        1 << 26, "bytes of a shard: smaller files share one, larger .jsonl files are read in parts"
    )

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError(
                "curate needs inputs: a name for each source and its files, as in inputs.web=crawl/*.gz."
            )
        if self.workers < 0 or self.longest < 1 or self.together < 1:
            raise UserError("workers must be 0 or more, longest and together at least 1.")
        for name, _, chosen in self.steps.steps:
            for source in chosen:
                if source not in self.inputs:
                    raise UserError(
                        f"steps.{name}.sources names {source!r}, which is not under inputs."
                        f"{nearest(source, list(self.inputs))}"
                    )
