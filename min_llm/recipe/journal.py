"""What of a long recipe is done: a folder with a JSON file of facts for each finished step.

A step is anything that can be told to go on where it was: a run, a sweep, a curation. After a kill it is begun again;
when it ends its facts are written, whole, and from then on they are read and the step is never run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from min_llm.config import UserError
from min_llm.platform import write_atomic
from min_llm.reporting import reporter

Facts = dict[str, Any]


class Stopped(Exception):
    """A signal has ended a training, which has saved a checkpoint; the recipe goes on from it another time."""


class Journal:
    """The steps of one recipe, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self, name: str, work: Callable[[], Facts]) -> Facts:
        """The facts of a step: of its file, or of `work`, which is done now and written down with its seconds (those of
        the process that finished it)."""
        if (known := self.read(name)) is not None:
            return known
        reporter().info(f"— {name}")
        began = time.monotonic()
        facts = work()
        self.write(name, facts | {"seconds": time.monotonic() - began})
        return facts | {"seconds": time.monotonic() - began}

    def read(self, name: str) -> Facts | None:
        """None: it is not done."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}). Remove it: the step is then done again."
            ) from error

    def forget(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def write(self, name: str, facts: Facts) -> None:
        write_atomic(self.folder / f"{name}.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
