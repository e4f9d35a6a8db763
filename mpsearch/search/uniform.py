"""``uniform``: one format everywhere, the baseline that every answer must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch.errors import InfeasibleBudget
from mpsearch.search.feasible import check_feasible
from mpsearch.types import Answer, Choice, Problem


@dataclass(frozen=True)
class Uniform:
    """The best feasible uniform map: by true error where it can be measured, by the table otherwise."""

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        maps = [choice for choice in uniform_choices(problem) if problem.feasible(choice)]
        if not maps:
            raise InfeasibleBudget("no uniform map meets the budgets")
        return Answer("uniform", min(maps, key=problem.damage_of), "feasible")


def uniform_choices(problem: Problem) -> list[Choice]:
    """One map a format; a unit that cannot take it takes its weight-only form, and without that there is no map."""
    found: dict[tuple[int, ...], Choice] = {}
    for column, format in enumerate(problem.formats):
        spare = problem.formats.index(format.weight_only) if format.weight_only in problem.formats else column
        choice = np.where(problem.allowed[:, column], column, spare)
        if problem.allowed[np.arange(len(choice)), choice].all():
            found.setdefault(tuple(choice), choice.astype(np.int64))
    return list(found.values())
