"""``singles``: the exact solution of a table that is measured where it matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.ilp import Ilp
from mpsearch.types import Answer, BitMap, Problem


@dataclass(frozen=True)
class Singles:
    """Solve, measure the cells that the solution stands on, and solve again until it stands on measured ones.

    An estimate is first order: it misses that the damage of very few bits saturates, or explodes. Only cells that a
    good map uses can mislead the solver, so one unit at a time is quantized for real in these.

    Attributes:
        evaluations: true evaluations to spend, where most damage is predicted first.
    """

    evaluations: int = 32

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UsageError(f"singles needs at least 1 evaluation, not {self.evaluations}")

    def __call__(self, problem: Problem) -> Answer:
        if problem.evaluate is None:
            raise UsageError("this search needs a generator: the problem has no true error to evaluate")
        values, rows = problem.damage.values.copy(), np.arange(len(problem.units))
        known = np.zeros(values.shape, bool)
        while True:
            choice = Ilp()(replace(problem, damage=replace(problem.damage, values=values))).choice
            order = np.argsort(-values[rows, choice], kind="stable")
            wanted = [unit for unit in order if not known[unit, choice[unit]]]
            spare = self.evaluations - int(known.sum())
            if not wanted or spare < 1:
                status = "feasible" if wanted else "stands on measured cells"
                return Answer("singles", choice, status)
            for unit in wanted[:spare]:
                alone = BitMap.from_units({problem.units[unit]: problem.formats[choice[unit]]})
                values[unit, choice[unit]] = problem.evaluate(alone).value
                known[unit, choice[unit]] = True
