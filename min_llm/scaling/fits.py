"""From the runs of an IsoFLOP grid to the compute-optimal model of a budget nobody has trained yet
(Llama 3 section 3.2.1; Hoffmann et al. 2022, approach 2).

    each budget C:   loss = lowest + curvature · (ln D − ln D*)²      over the tokens D of its runs
    all budgets:     D*(C) = A · C^α                                   the optimal number of training tokens

The paper calls D* N*. Its text rounds (α, A) to (0.53, 0.29), which gives 10.5T tokens at 3.8e25 FLOPs and not the
16.55T that it states; the legend of its figure has the digits that do (16.29T): `LLAMA3`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from min_llm.config import UserError
from min_llm.evals.intervals import Interval
from min_llm.scaling.power import PowerLaw, fit_power_law

LLAMA3 = PowerLaw(coefficient=0.299, exponent=0.537)
LOST = 0.05  # share of resamples without a minimum beyond which an interval means nothing


@dataclasses.dataclass(frozen=True)
class Measured:
    """One finished run: FLOPs it was given, parameters, training tokens, validation loss in nats per token (infinite
    where training diverged)."""

    budget: float
    parameters: int
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The IsoFLOP curve of one budget. optimum: tokens at its vertex; loss: its value there; curvature: nats per
    (ln tokens)²; tokens: the fewest and the most that were measured; diverged: runs that are left out, since no
    parabola passes through an infinite loss."""

    budget: float
    optimum: float
    loss: float
    curvature: float
    tokens: Interval
    diverged: int = 0

    @property
    def interior(self) -> bool:
        """Whether the vertex is a minimum that runs on both sides of it have seen."""
        return self.curvature > 0 and self.tokens[0] < self.optimum < self.tokens[1]

    def __call__(self, tokens: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self.loss + self.curvature * (np.log(tokens) - np.log(self.optimum)) ** 2


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The compute-optimal training of a budget: tokens, their 95 % interval, and parameters by C = 6 · N · D."""

    budget: float
    tokens: float
    interval: Interval

    @property
    def parameters(self) -> float:
        return self.budget / (6 * self.tokens)


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The law of a grid and what resampling says of it. flattening: how the curvature changes with the budget
    (a negative exponent: they flatten, L3-2.10). optima, curvatures: their logarithms, of every resample and budget."""

    curves: tuple[Parabola, ...]
    law: PowerLaw
    flattening: PowerLaw
    optima: Float[np.ndarray, "draws budgets"]
    curvatures: Float[np.ndarray, "draws budgets"]

    def predict(self, budget: float) -> Prediction:
        exponents, offsets = self._lines(self.optima)
        logs = offsets + exponents * np.log(budget)
        low, high = np.exp(_quantiles(logs))
        return Prediction(budget, self.law(budget), (float(low), float(high)))

    @property
    def exponent_interval(self) -> Interval:
        """95 % interval of α."""
        return _quantiles(self._lines(self.optima)[0])

    @property
    def flattening_interval(self) -> Interval:
        """95 % interval of the exponent of the curvature."""
        return _quantiles(self._lines(self.curvatures)[0])

    def _lines(self, logs: Float[np.ndarray, "draws budgets"]) -> tuple[np.ndarray, np.ndarray]:
        """Exponent and ln A of the power law of each resample."""
        exponents, offsets = np.polyfit(np.log([c.budget for c in self.curves]), logs.T, 1)
        return exponents, offsets


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The optimum of the largest budget as the smaller ones predict it, and as its own runs have it (tokens)."""

    predicted: Prediction
    found: float

    @property
    def off(self) -> float:
        """Relative error of the prediction."""
        return self.predicted.tokens / self.found - 1

    @property
    def inside(self) -> bool:
        low, high = self.predicted.interval
        return low <= self.found <= high


def fit_isoflop(runs: Sequence[Measured]) -> tuple[Parabola, ...]:
    """The parabola of each budget, smallest first, interior or not."""
    return tuple(_vertex(curve, curve.solve(curve.losses)) for curve in _curves(runs))


def fit_law(curves: Sequence[Parabola]) -> PowerLaw:
    """Optimal tokens by budget. Raises UserError for a minimum at the edge of the grid, which is no measurement."""
    if len(curves) < 2:
        raise UserError(f"A scaling law needs two budgets or more; the grid has {len(curves)}.")
    if edge := [curve for curve in curves if not curve.interior]:
        raise UserError(" ".join(map(_why_not, edge)) + " The law is fitted to interior minima only.")
    return fit_power_law([c.budget for c in curves], [c.optimum for c in curves])


def fit(runs: Sequence[Measured], draws: int = 2000, seed: int = 0) -> IsoFlop:
    """Curves, law and bootstrap (Davison & Hinkley 1997, section 6.3).

    The grid was fixed beforehand, so what is drawn anew is the noise of the runs: their residuals, each divided by
    √(1 − leverage) because the fit has swallowed a part of it, pooled over all budgets. Intervals hold that noise
    (seeds, data order); they know nothing of a law that bends beyond the grid. With 5 budgets of 5 runs, whose noise
    ten degrees of freedom estimate, they hold the truth 90 to 92 % of the time.
    """
    grid, curves = _curves(runs), fit_isoflop(runs)
    law = fit_law(curves)
    flattening = fit_power_law([c.budget for c in curves], [c.curvature for c in curves])
    noise, random = _noise(grid), np.random.default_rng(seed)
    optima, curvatures = np.empty((2, draws, len(grid)))
    for i, curve in enumerate(grid):
        losses = curve.design @ curve.solve(curve.losses) + random.choice(noise, (draws, len(curve.losses)))
        _, slope, curvature = curve.solve(losses.T)
        curvature = np.where(curvature > 0, curvature, np.nan)  # NaN: no minimum, left out below
        optima[:, i], curvatures[:, i] = curve.centre - slope / (2 * curvature), np.log(curvature)
    kept = np.isfinite(optima).all(axis=1)
    if (lost := 1 - kept.mean()) > LOST:
        raise UserError(
            f"In {lost:.0%} of the resamples some curve has no minimum: the noise of the runs hides its curvature, so "
            "the law has no interval. Measure sizes further apart, or more of them."
        )
    return IsoFlop(curves, law, flattening, optima[kept], curvatures[kept])


def hold_out_largest(runs: Sequence[Measured], draws: int = 2000, seed: int = 0) -> HeldOut:
    """Predict the largest budget's optimum from the others (needs three budgets, all minima interior)."""
    *smaller, largest = fit_isoflop(runs)
    fit_law([*smaller, largest])
    rest = fit([run for run in runs if run.budget != largest.budget], draws, seed)
    return HeldOut(rest.predict(largest.budget), largest.optimum)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The runs of one budget as a linear least-squares problem in 1, t and t², t = ln tokens − centre."""

    budget: float
    tokens: Float[np.ndarray, " runs"]
    losses: Float[np.ndarray, " runs"]
    diverged: int

    @property
    def centre(self) -> float:
        return float(np.log(self.tokens).mean())

    @property
    def design(self) -> Float[np.ndarray, "runs 3"]:
        return np.vander(np.log(self.tokens) - self.centre, 3, increasing=True)

    def solve(self, losses: np.ndarray) -> np.ndarray:
        """Coefficients [3] or [3, draws] of losses [runs] or [runs, draws]."""
        return np.linalg.lstsq(self.design, losses, rcond=None)[0]


def _curves(runs: Sequence[Measured]) -> list[_Curve]:
    curves = []
    for budget in sorted({run.budget for run in runs}):
        tokens, losses = np.array([(r.tokens, r.loss) for r in runs if r.budget == budget]).T
        finite = np.isfinite(losses)
        if len(set(tokens[finite])) < 3:
            raise UserError(
                f"The budget of {budget:.3g} FLOPs has runs of {len(set(tokens[finite]))} sizes"
                f"{'' if finite.all() else f' beside {(~finite).sum()} that diverged'}; a parabola needs three, and "
                "its interval four. Add sizes to the grid."
            )
        curves.append(_Curve(budget, tokens[finite], losses[finite], int((~finite).sum())))
    return curves


def _vertex(curve: _Curve, coefficients: np.ndarray) -> Parabola:
    constant, slope, curvature = map(float, coefficients)
    with np.errstate(
        divide="ignore", over="ignore", invalid="ignore"
    ):  # a flat curve has its vertex anywhere
        at = np.float64(-slope) / (2 * curvature)
        optimum, loss = float(np.exp(curve.centre + at)), float(constant - curvature * at**2)
    ends = (float(curve.tokens.min()), float(curve.tokens.max()))
    return Parabola(curve.budget, optimum, loss, curvature, ends, curve.diverged)


def _why_not(curve: Parabola) -> str:
    low, high = curve.tokens
    where = f"The curve of {curve.budget:.3g} FLOPs, measured from {low:.3g} to {high:.3g} tokens,"
    if not curve.curvature > 0:
        return f"{where} has no minimum: its runs bend downwards. Measure sizes further apart."
    beyond = "larger" if curve.optimum <= low else "smaller"
    return (
        f"{where} has its minimum at {curve.optimum:.3g}, outside of them. Add {beyond} models to the grid."
    )


def _noise(grid: Sequence[_Curve]) -> np.ndarray:
    """Residuals of all runs with their leverage made up for, of mean 0."""
    parts = []
    for curve in grid:
        design = curve.design
        free = 1 - np.einsum("ij,ji->i", design, np.linalg.pinv(design))  # 0: the curve goes through the run
        left = curve.losses - design @ curve.solve(curve.losses)
        parts.append(left[free > 1e-9] / np.sqrt(free[free > 1e-9]))
    noise = np.concatenate(parts)
    if not len(noise):
        raise UserError(
            "Every budget has runs of three sizes, through which a parabola goes whatever their noise, so the law has "
            "no interval. Add a fourth size to the grid."
        )
    return noise - noise.mean()


def _quantiles(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
