"""Accuracy on a benchmark before the model exists, in two stages (Llama 3 section 3.2.1, figure 4; L3-2.9).

    FLOPs -> loss:      nll = offset + slope · ln C
    loss -> accuracy:   p = chance + (1 − chance) · σ(bias − steepness · nll)

nll is the negative log-likelihood of the right answer in nats per character, which stays comparable between
tokenizers and moves long before a model answers above chance. The second stage may use models of other recipes, too
(the paper adds Llama 2): they need no FLOPs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from min_llm.config import UserError
from min_llm.evals.choices import Choices, Question
from min_llm.evals.intervals import Accuracy


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model on a benchmark: training FLOPs (NaN where stage 2 alone uses it), nats per character, answers."""

    flops: float
    nll: float
    accuracy: Accuracy


@dataclasses.dataclass(frozen=True)
class Line:
    """nll = offset + slope · ln FLOPs."""

    offset: float
    slope: float

    def __call__(self, flops: float) -> float:
        return self.offset + self.slope * math.log(flops)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Accuracy by nll, between chance and 1."""

    chance: float
    bias: float
    steepness: float

    def __call__(self, nll: float) -> float:
        return float(_sigmoid(np.array([self.bias, self.steepness]), np.array([nll]), self.chance)[0][0])


@dataclasses.dataclass(frozen=True)
class TwoStage:
    line: Line
    sigmoid: Sigmoid

    def __call__(self, flops: float) -> float:
        """Predicted accuracy of a model trained with so many FLOPs."""
        return self.sigmoid(self.line(flops))


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The accuracy of the largest model as the others predict it, and as it was measured."""

    predicted: float
    measured: Accuracy

    @property
    def inside(self) -> bool:
        """Whether it lies in the 95 % interval of the measurement."""
        low, high = self.measured.interval
        return low <= self.predicted <= high


def scored(flops: float, questions: Sequence[Question], found: Choices) -> Scored:
    """What a model's answers to a benchmark say: accuracy is that of the choice likeliest per byte."""
    right = [scores[q.answer] for q, scores in zip(questions, found.scores, strict=True)]
    characters = sum(len(q.choices[q.answer]) for q in questions)
    return Scored(flops, -math.fsum(score.logprob for score in right) / characters, found.per_byte)


def fit_two_stage(models: Sequence[Scored], chance: float, others: Sequence[Scored] = ()) -> TwoStage:
    """chance: accuracy of guessing, 1 / options. others: models for the second stage only."""
    every = [*models, *others]
    sigmoid = fit_sigmoid([m.nll for m in every], [m.accuracy for m in every], chance)
    return TwoStage(fit_line([m.flops for m in models], [m.nll for m in models]), sigmoid)


def leave_largest_out(models: Sequence[Scored], chance: float, others: Sequence[Scored] = ()) -> HeldOut:
    """What the smaller models say of the one with the most FLOPs."""
    *smaller, largest = sorted(models, key=lambda m: m.flops)
    return HeldOut(fit_two_stage(smaller, chance, others)(largest.flops), largest.accuracy)


def fit_line(flops: Sequence[float], nlls: Sequence[float]) -> Line:
    """Stage 1, by least squares."""
    if len(set(flops)) < 2:
        raise UserError(f"A line needs models of two different FLOPs or more; given: {len(set(flops))}.")
    slope, offset = np.polyfit(np.log(flops), nlls, 1)
    return Line(float(offset), float(slope))


def fit_sigmoid(nlls: Sequence[float], accuracies: Sequence[Accuracy], chance: float) -> Sigmoid:
    """Stage 2, by maximum likelihood of the binomial answers: Gauss-Newton steps weighted by the questions' variance
    (Fisher scoring), halved while they do not improve."""
    if not 0 <= chance < 1:
        raise UserError(f"chance is {chance}; it is the accuracy of guessing, from 0 to below 1.")
    if len(set(nlls)) < 2:
        raise UserError(f"A sigmoid needs models of two different losses or more; given: {len(set(nlls))}.")
    if all(a.interval[0] <= chance for a in accuracies):
        raise UserError(
            f"No model answers clearly above chance ({chance:.0%}), so nothing says how loss becomes accuracy. Add "
            "larger models (those of other recipes serve, too) or more questions."
        )
    x = np.asarray(nlls, np.float64)
    count = np.array([a.count for a in accuracies], np.float64)
    share = np.array([a.value for a in accuracies])
    begin = np.clip((share - chance) / (1 - chance), 0.02, 0.98)
    slope, offset = np.polyfit(x, np.log(begin / (1 - begin)), 1)
    theta, best = np.array([offset, -slope]), -np.inf
    for _ in range(100):
        p, jacobian = _sigmoid(theta, x, chance)
        best, weights = _likelihood(p, share, count), count / (p * (1 - p))
        step = np.linalg.lstsq((jacobian.T * weights) @ jacobian, (jacobian.T * weights) @ (share - p))[0]
        for _ in range(30):
            if _likelihood(_sigmoid(theta + step, x, chance)[0], share, count) >= best:
                break
            step = step / 2
        else:
            break
        theta = theta + step
        if np.abs(step).max() < 1e-9 * (1 + np.abs(theta).max()):
            break
    return Sigmoid(chance, float(theta[0]), float(theta[1]))


def _sigmoid(
    theta: Float[np.ndarray, " 2"], x: Float[np.ndarray, " n"], chance: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"]]:
    """Accuracy and its derivative by (bias, steepness); kept off 0 and 1, where a likelihood ends."""
    s = 1 / (1 + np.exp(-np.clip(theta[0] - theta[1] * x, -30, 30)))
    slope = (1 - chance) * s * (1 - s)
    return np.clip(chance + (1 - chance) * s, 1e-9, 1 - 1e-9), np.stack([slope, -slope * x], axis=1)


def _likelihood(p: np.ndarray, share: np.ndarray, count: np.ndarray) -> float:
    return float(count @ (share * np.log(p) + (1 - share) * np.log1p(-p)))
