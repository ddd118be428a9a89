"""Which data mix a large model should get, from small models of each (Llama 3 section 3.1.2; L3-1.14).

    each mix:   loss = A · N^−β      over the sizes N that were trained on it

All losses are on one and the same held-out text. What is predicted is the order of the mixes at a larger size; the
verdict says which pairs came out the other way round.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from min_llm.config import UserError
from min_llm.scaling.power import PowerLaw, fit_power_law


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model of `parameters` trained on a mix: its loss in nats per token or bits per byte."""

    mix: str
    parameters: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Mixes, best first, as predicted and as measured; pairs in the wrong order; relative error of each loss."""

    predicted: tuple[str, ...]
    measured: tuple[str, ...]
    swapped: tuple[tuple[str, str], ...]
    errors: dict[str, float]


def fit_mixes(runs: Sequence[Trained]) -> dict[str, PowerLaw]:
    """The law of each mix. Raises UserError unless every mix was trained at the same three sizes or more: laws of
    other sizes are not comparable."""
    sizes = {mix: {r.parameters for r in runs if r.mix == mix} for mix in dict.fromkeys(r.mix for r in runs)}
    every = set().union(*sizes.values())
    for mix, its in sizes.items():
        if len(its) < 3 or its != every:
            raise UserError(
                f"The mix {mix!r} was trained at {len(its)} of {len(every)} sizes; every mix needs the same three "
                "sizes or more."
            )
    of = {mix: [r for r in runs if r.mix == mix] for mix in sizes}
    return {mix: fit_power_law([r.parameters for r in its], [r.loss for r in its]) for mix, its in of.items()}


def ranking(laws: Mapping[str, PowerLaw], parameters: int) -> list[tuple[str, float]]:
    """(mix, predicted loss) at a size, best first."""
    return sorted(((mix, law(parameters)) for mix, law in laws.items()), key=lambda pair: pair[1])


def verify(laws: Mapping[str, PowerLaw], parameters: int, losses: Mapping[str, float]) -> Verdict:
    """The prediction against runs of that size, one of each mix."""
    if losses.keys() != laws.keys():
        raise UserError(
            f"Measured are the mixes {', '.join(sorted(losses))}, predicted {', '.join(sorted(laws))}; give the same."
        )
    predicted = dict(ranking(laws, parameters))
    swapped = [(a, b) for a, b in itertools.combinations(predicted, 2) if losses[a] > losses[b]]
    errors = {mix: loss / losses[mix] - 1 for mix, loss in predicted.items()}
    return Verdict(tuple(predicted), tuple(sorted(losses, key=losses.__getitem__)), tuple(swapped), errors)
