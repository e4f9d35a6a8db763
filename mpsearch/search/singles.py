"""``singles``: the exact solution of a table that is measured where it matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpsearch.errors import UsageError
from mpsearch.search.ilp import Ilp
from mpsearch.types import Answer, BitMap, Choice, Problem


@dataclass(frozen=True)
class Singles:
    """Solve, measure the cells that the solution stands on, and solve again until it stands on measured ones.

    An estimate is first order and of few probes: what it calls too dear may be cheap, and nobody would find out. So a
    cell counts in full only once one unit has been quantized for real; until then it has the benefit of the doubt.
    Where that end is out of reach, with evaluations for less than half of the units, it measures none: hundreds of
    small errors are a matter for a search that moves all units at once.

    Attributes:
        evaluations: true evaluations to spend, where most damage is predicted first.
        doubt: share of its estimate by which a cell not measured yet may turn out cheaper.
    """

    evaluations: int = 64
    doubt: float = 0.5

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not 0 <= self.doubt < 1:
            raise UsageError(
                "singles needs at least 1 evaluation and a doubt of at least 0 and below 1, "
                f"not {self.evaluations} and {self.doubt}"
            )

    def __call__(self, problem: Problem) -> Answer:
        if problem.evaluate is None:
            raise UsageError("this search needs a generator: the problem has no true error to evaluate")
        values, rows = problem.damage.values.copy(), np.arange(len(problem.units))
        known = np.zeros(values.shape, bool)

        def solved(trust: float) -> Choice:
            damage = np.where(known, values, trust * values)
            return Ilp()(replace(problem, damage=replace(problem.damage, values=damage))).choice

        if len(problem.units) > 2 * self.evaluations:
            return Answer("singles", solved(1.0), f"{len(problem.units)} units are too many to measure")
        while True:
            choice = solved(1 - self.doubt)
            order = np.argsort(-values[rows, choice], kind="stable")
            wanted = [unit for unit in order if not known[unit, choice[unit]]]
            if not wanted:  # so it is the best whatever the others turn out to be
                return Answer("singles", choice, "stands on measured cells")
            if (spare := self.evaluations - int(known.sum())) < 1:
                return Answer("singles", solved(1.0), "feasible")
            for unit in wanted[:spare]:
                alone = BitMap.from_units({problem.units[unit]: problem.formats[choice[unit]]})
                values[unit, choice[unit]] = problem.evaluate(alone).value
                known[unit, choice[unit]] = True
