"""``uniform``: one format everywhere, the baseline that every answer must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch.errors import InfeasibleBudget
from mpsearch.search.feasible import check_feasible
from mpsearch.types import FLOAT_BITS, Answer, Choice, Problem


@dataclass(frozen=True)
class Uniform:
    """The best feasible uniform map: by true error where it can be measured, by the table otherwise."""

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        maps = sorted(filter(problem.feasible, uniform_choices(problem)), key=problem.predicted)
        if not maps:
            raise InfeasibleBudget("no uniform map meets the budgets")
        best = maps[0]
        if problem.evaluate is not None:
            least = problem.measured(best)
            for choice in maps[1:]:
                found = problem.measured(choice, least)  # on a part of the samples where that is plainly enough
                if found.n == least.n and found.value < least.value:
                    best, least = choice, found
        return Answer("uniform", best, "feasible")


def uniform_choices(problem: Problem) -> list[Choice]:
    """One map a format. A unit that cannot take it (pinned, floored, no activations) takes what is nearest to it."""
    bits = problem.bits()
    acts = np.array([format.act_bits or FLOAT_BITS for format in problem.formats])
    found: dict[tuple[int, ...], Choice] = {}
    for column in range(len(bits)):
        # Nearest: as many weight bits, or more rather than fewer; then by the bits of the activations.
        fewer = np.where(bits < bits[column], FLOAT_BITS, 0)
        distance = (np.abs(bits - bits[column]) + fewer) * FLOAT_BITS + np.abs(acts - acts[column])
        nearest = np.where(problem.allowed, distance, np.inf).argmin(axis=1)
        choice = np.where(problem.allowed[:, column], column, nearest)
        found.setdefault(tuple(choice), choice.astype(np.int64))
    return list(found.values())
