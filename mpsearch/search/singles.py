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

    An estimate is first order: it misses that the damage of very few bits saturates, or explodes. Only the few cells
    that carry most of the predicted damage of a good map can mislead the solver much, so one unit at a time is
    quantized for real in these.

    Attributes:
        evaluations: true evaluations to spend.
        share: of the predicted damage that measured cells must carry.
    """

    evaluations: int = 24
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not 0 < self.share <= 1:
            raise UsageError(
                f"singles needs at least 1 evaluation and a share of 0 … 1, not {self.evaluations} and {self.share}"
            )

    def __call__(self, problem: Problem) -> Answer:
        if problem.evaluate is None:
            raise UsageError("this search needs a generator: the problem has no true error to evaluate")
        values, rows = problem.damage.values.copy(), np.arange(len(problem.units))
        known = np.zeros(values.shape, bool)
        while True:
            choice = Ilp()(replace(problem, damage=replace(problem.damage, values=values))).choice
            damage = values[rows, choice]
            order = np.argsort(-damage, kind="stable")
            carried = np.cumsum(damage[order]) - damage[order]  # by the units before
            wanted = [u for u in order[carried < self.share * damage.sum()] if not known[u, choice[u]]]
            spare = self.evaluations - int(known.sum())
            if not wanted or spare < 1:
                status = "feasible" if wanted else "stands on measured cells"
                return Answer("singles", choice, status)
            for unit in wanted[:spare]:
                alone = BitMap.from_units({problem.units[unit]: problem.formats[choice[unit]]})
                values[unit, choice[unit]] = problem.evaluate(alone).value
                known[unit, choice[unit]] = True
