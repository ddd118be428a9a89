"""Which adapter lies in which slot (infer/lora_slots.py), under which name and in which version."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator

from min_llm.config import UserError


class UnknownAdapter(UserError):
    """A request names an adapter that is not, or no longer, loaded."""


@dataclasses.dataclass(frozen=True)
class Version:
    """What was loaded once. number: like no other's, so that the prefix cache never takes one for another."""

    slot: int = 0
    number: int = 0

    @property
    def root(self) -> str:
        """For `pages.root`."""
        return f"{self.number}" if self.number else ""


class Adapters(Collection[str]):
    """The names of the adapters that requests may ask for."""

    def __init__(self, slots: int) -> None:
        self._slots = range(1, slots + 1)
        self._named: dict[str, Version] = {}
        self._numbers = itertools.count(1)

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._named))

    def __len__(self) -> int:
        return len(self._named)

    def __getitem__(self, name: str | None) -> Version:
        """Of a name; that of None is the model's own."""
        if name is None:
            return Version()
        if name not in self._named:
            raise UnknownAdapter(
                f"There is no adapter {name[:100]!r}; loaded are: {', '.join(self) or 'none'}."
            )
        return self._named[name]

    def room(self, name: str, busy: Collection[int]) -> Version:
        """A new version for a name, in a slot without one; in that of the old version where there is no other. busy:
        slots of requests that have not ended."""
        others = {version.slot for other, version in self._named.items() if other != name}
        old = self._named[name].slot if name in self._named else None
        free = [slot for slot in self._slots if slot not in others and slot not in busy]
        if not free:
            raise UserError(
                f"All {len(self._slots)} places for adapters are taken or in use by requests. Unload one, wait, or set "
                "a larger max_loras."
            )
        return Version(min(free, key=lambda slot: slot == old), next(self._numbers))

    def set(self, name: str, version: Version) -> None:
        """From now on the name means this one."""
        self._named[name] = version

    def remove(self, name: str) -> None:
        """UnknownAdapter if it is not there."""
        self[name]
        del self._named[name]
