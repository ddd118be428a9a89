"""What is said of prompts after a step has computed them: log-probabilities and embeddings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from min_llm.infer.answer import Answer
from min_llm.infer.scheduler import Part
from min_llm.infer.step import Program


def look_back(program: Program, parts: list[tuple[Part, int, Answer]], hidden: Float[Array, "t d"]) -> None:
    """For those answers that want it. parts: of the step's plan, where they begin among its T places, and whose they
    are. hidden: the final hidden states of all places."""
    scored = [(p, at, a) for p, at, a in parts if a.scores is not None and p.start + 1 < a.prompt]
    if scored:
        targets = np.zeros(hidden.shape[0], np.int32)
        for part, at, _ in scored:
            following = part.sequence.tokens[part.start + 1 : part.start + part.count + 1]
            targets[at : at + len(following)] = following
        k = max(answer.sampling.prompt_logprobs or 0 for *_, answer in scored)
        found = program.score(hidden, targets, k)
        for part, at, answer in scored:
            answer.scored(part.start, part.count, [f[at : at + part.count] for f in found])
    for part, at, answer in parts:
        if answer.embedding is not None:
            if part.start == 0:
                answer.embedding[:] = 0
            answer.embedding += np.asarray(hidden)[at : at + part.count].astype(np.float32).sum(0)
