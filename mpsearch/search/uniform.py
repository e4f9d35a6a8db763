"""``uniform``: one format everywhere, the baseline that every answer must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget
from mpsearch.search.feasible import check_feasible
from mpsearch.types import FLOAT_BITS, Answer, Choice, Problem

PLAIN = 3.0  # times the damage; one bit fewer has four times or more


@dataclass(frozen=True)
class Uniform:
    """The best feasible uniform map: by true error where it can be measured, by the table otherwise.

    The starting points of the problem are rivals: beside a better one, a map that is coarser than the best, and without
    hope, is given up early, and so are those that are coarser still.
    """

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        maps = sorted(filter(problem.feasible, uniform_choices(problem)), key=problem.predicted)
        if not maps:
            raise InfeasibleBudget("no uniform map meets the budgets")
        best = maps[0]
        if problem.evaluate is not None:
            least = problem.measured(best)
            rivals = [problem.measured(start) for start in problem.starts]
            given_up: list[Choice] = []
            for choice in maps[1:]:
                coarser = _coarser(problem, choice, best)
                if coarser and _plainly_worse(problem, choice, best, least.value):
                    continue
                if any(_coarser(problem, choice, hopeless) for hopeless in given_up):
                    continue
                rival = min([*rivals, least] if coarser else [least], key=lambda known: known.value)
                found = problem.measured(choice, rival)  # on a part of the samples where that is plainly enough
                if found.n < least.n:
                    given_up.append(choice)
                elif found.value < least.value:
                    best, least = choice, found
        return Answer("uniform", best, "feasible")


def _coarser(problem: Problem, choice: Choice, best: Choice) -> bool:
    """Whether a map is nowhere finer than the best, and not everywhere as fine."""
    fine = np.stack([problem.bits(), _act_bits(problem)])
    less = fine[:, best] - fine[:, choice]
    return bool((less >= 0).all() and (less > 0).any())


def _plainly_worse(problem: Problem, choice: Choice, best: Choice, error: float) -> bool:
    """Whether a map is far worse by a prediction that holds for the best.

    Where errors saturate the table says nothing, and a coarser map may well have less of them.
    """
    promised = problem.predicted(best)
    return error < PLAIN * promised and problem.predicted(choice) > PLAIN * max(promised, error)


def uniform_choices(problem: Problem) -> list[Choice]:
    """One map a format. A unit that cannot take it (pinned, floored, no activations) takes what is nearest to it."""
    bits = problem.bits()
    acts = _act_bits(problem)
    found: dict[tuple[int, ...], Choice] = {}
    for column in range(len(bits)):
        # Nearest: as many weight bits, or more rather than fewer; then by the bits of the activations.
        fewer = np.where(bits < bits[column], FLOAT_BITS, 0)
        distance = (np.abs(bits - bits[column]) + fewer) * FLOAT_BITS + np.abs(acts - acts[column])
        nearest = np.where(problem.allowed, distance, np.inf).argmin(axis=1)
        choice = np.where(problem.allowed[:, column], column, nearest)
        found.setdefault(tuple(choice), choice.astype(np.int64))
    return list(found.values())


def _act_bits(problem: Problem) -> NDArray[np.float64]:
    """Bits of the activations of each column, float as 32."""
    return np.array([format.act_bits or FLOAT_BITS for format in problem.formats], np.float64)
