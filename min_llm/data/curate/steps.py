"""The steps by name, and what they need from a run: `steps` of the configuration.

filters        judge documents by themselves (document.py): all between two barriers run in one pass
keyed steps    need equal keys of the whole corpus (keyed.py): a barrier
kl             needs the counts of the whole corpus (kl.py): a barrier
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from min_llm import config as config_lib
from min_llm.config import UserError, nearest
from min_llm.data.curate.classify import Classify
from min_llm.data.curate.decontaminate import Decontaminate
from min_llm.data.curate.dirty import Dirty
from min_llm.data.curate.document import Filter
from min_llm.data.curate.domains import Domains
from min_llm.data.curate.exact import Exact
from min_llm.data.curate.extract import Extract
from min_llm.data.curate.keyed import Duplicates, Keyed
from min_llm.data.curate.kl import KL
from min_llm.data.curate.lines import Lines
from min_llm.data.curate.minhash import MinHash
from min_llm.data.curate.pii import PII
from min_llm.data.curate.repetition import Repetition
from min_llm.data.curate.urls import Url

STEPS: dict[str, type] = {
    "extract": Extract,
    "domains": Domains,
    "pii": PII,
    "url": Url,
    "exact": Exact,
    "minhash": MinHash,
    "lines": Lines,
    "repetition": Repetition,
    "dirty": Dirty,
    "kl": KL,
    "decontaminate": Decontaminate,
    "quality": Classify,
    "kind": Classify,
    "language": Classify,
    "topic": Classify,
}
USUAL = ("extract", "pii", "url", "exact", "minhash", "lines", "repetition", "dirty", "kl")

Step = Filter | Keyed | KL


class Named(NamedTuple):
    """A step of a run."""

    name: str
    step: Step
    sources: tuple[str, ...] = ()  # it passes over the documents of others; none: it takes all

    def takes(self, source: str) -> bool:
        return not self.sources or source in self.sources


@dataclass(frozen=True)
class Steps:
    """The steps of a run in their order: a mapping from names to sections of settings, `null` for none of them and
    `false` to leave a step out. Any section may name the `sources` that the step is for."""

    steps: tuple[Named, ...]

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], path: str = "") -> Steps:
        found: list[Named] = []
        for name, section in given.items():
            if name not in STEPS:
                raise UserError(f"There is no step '{path}.{name}'.{nearest(str(name), list(STEPS))}")
            if section is False:
                continue
            if not isinstance(section, Mapping | None):
                raise UserError(
                    f"'{path}.{name}' is {section!r}; write a section of settings, null or false."
                )
            settings = dict(section or {})
            sources = config_lib.convert(
                settings.pop("sources", ()), tuple[str, ...], f"{path}.{name}.sources"
            )
            found.append(Named(name, config_lib.build(STEPS[name], settings, f"{path}.{name}"), sources))
        return cls(tuple(found))

    def to_mapping(self) -> dict[str, Any]:
        return {
            name: {**config_lib.dump(step), **({"sources": sources} if sources else {})}
            for name, step, sources in self.steps
        }


@dataclass(frozen=True)
class Pass:
    """One walk over all shards: the decisions of the last barrier, then filters, then what the next barrier needs."""

    applied: tuple[Named, ...] = ()
    filters: tuple[Named, ...] = ()
    collected: tuple[Named, ...] = ()


def passes(steps: Steps) -> list[Pass]:
    """The walks that the steps take. Steps that drop duplicates need no walk between them: a decision counts only
    what the ones before have left. What rewrites documents, or counts all words, ends a group."""
    walks: list[Pass] = []
    applied: tuple[Named, ...] = ()
    filters: list[Named] = []
    collected: list[Named] = []
    for named in steps.steps:
        barrier = isinstance(named.step, KL | Keyed)
        ended = isinstance(named.step, KL) or (collected and not isinstance(collected[-1].step, Duplicates))
        if collected and (ended or not barrier):
            walks.append(Pass(applied, tuple(filters), tuple(collected)))
            applied, filters, collected = walks[-1].collected, [], []
        (collected if barrier else filters).append(named)
    if collected:
        walks.append(Pass(applied, tuple(filters), tuple(collected)))
        applied, filters = walks[-1].collected, []
    return [*walks, Pass(applied, tuple(filters))]


@runtime_checkable
class ReadsFiles(Protocol):
    """A step whose outcomes depend on files: their content belongs to the identity of a run."""

    def files(self) -> list[Path]:
        """Files, and folders of files."""
        ...
