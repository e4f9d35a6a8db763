"""``refine``: local search on the true paired error of the whole map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, Choice, Problem

MOVES = 512  # proposals ranked at a time


@dataclass(frozen=True)
class Refine:
    """From the best starting point, try single and paired moves; keep what truly helps.

    Damage is not additive: errors of neighbouring layers cancel or add up, so the table only orders the moves, and the
    paired error of the whole map decides. A move that helps by chance, on a few calibration inputs, does not help on
    others: it must be better by more than the standard error of its paired difference.

    Attributes:
        evaluations: true evaluations to spend, those of the starting points included.
        sure: standard errors by which a move must be better.
    """

    evaluations: int = 100
    sure: float = 1.0

    def __post_init__(self) -> None:
        if self.evaluations < 1 or self.sure < 0:
            raise UsageError(
                f"refine needs at least 1 evaluation and sure >= 0, not {self.evaluations} and {self.sure}"
            )

    def __call__(self, problem: Problem) -> Answer:
        starts = problem.starts or (Ilp()(problem).choice,)
        tried = {tuple(start): problem.measured(start) for start in starts}
        best = np.array(min(tried, key=lambda key: tried[key].value))
        exhausted = False
        while len(tried) < self.evaluations and not exhausted:
            exhausted = True
            for choice in _neighbours(problem, best):
                if tuple(choice) in tried:
                    continue
                if len(tried) >= self.evaluations:
                    exhausted = False
                    break
                tried[tuple(choice)] = problem.measured(choice)
                if tried[tuple(choice)].beats(tried[tuple(best)], self.sure):
                    best, exhausted = choice, False
                    break
        return Answer("refine", best, "local optimum" if exhausted else "evaluations spent")


def _neighbours(problem: Problem, choice: Choice) -> list[Choice]:
    """Feasible maps that differ in one or two units, those of least predicted damage first."""
    here = np.arange(len(choice))
    allowed = problem.allowed.copy()
    allowed[here, choice] = False
    units, columns = np.nonzero(allowed)
    damage = problem.damage.values
    gain = damage[units, columns] - damage[units, choice[units]]
    # Move 0 is "stay", so that a single move is a pair with it.
    units, columns = np.append(0, units), np.append(choice[0], columns)
    gain = np.append(0.0, gain)
    fits = np.triu(units[:, None] != units[None, :], 1)
    fits[0, 1:] = True
    for limit in problem.limits:
        step = limit.costs.values[units, columns] - limit.costs.values[units, choice[units]]
        fits &= step[:, None] + step[None, :] <= limit.limit * (1 + TOLERANCE) - limit.of(choice)
    first, second = np.nonzero(fits)
    order = np.argsort(gain[first] + gain[second], kind="stable")[:MOVES]
    found = []
    for one, two in zip(first[order], second[order], strict=True):
        new = choice.copy()
        for move in (one, two):
            if move:
                new[units[move]] = columns[move]
        if problem.feasible(new):
            found.append(new)
    return found
