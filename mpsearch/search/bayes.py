"""``bayes``: Optuna over the true paired error, the budgets as constraints."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna

from mpsearch.errors import UsageError
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, Problem


@dataclass(frozen=True)
class Bayes:
    """Tree-structured Parzen estimator (Bergstra et al. 2011; constraints as in Optuna), one integer a unit.

    Warm-started with the problem's starting points (the ILP answer and the uniform maps), so it is never worse than
    these on calibration data. An infeasible proposal costs no run of the generator: it is told its excess and a
    damage predicted by the table.

    Attributes:
        evaluations: true evaluations to spend, the warm starts included.
        seed: of the sampler.
    """

    evaluations: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UsageError(f"bayes needs at least 1 evaluation, not {self.evaluations}")

    def __call__(self, problem: Problem) -> Answer:
        starts = problem.starts or (Ilp()(problem).choice,)
        options = [_by_cost(problem, unit) for unit in range(len(problem.units))]
        tried: dict[tuple[int, ...], float] = {}
        with _quiet():
            sampler = optuna.samplers.TPESampler(seed=self.seed)
            study = optuna.create_study(sampler=sampler)
            for start in starts:
                study.enqueue_trial(
                    {str(u): options[u].index(int(c)) for u, c in enumerate(start)}, skip_if_exists=True
                )
            # Near a tight budget most proposals are infeasible and free; the second limit ends a search that stalls.
            for _ in range(20 * self.evaluations):
                if len(tried) >= self.evaluations:
                    break
                trial = study.ask()
                picks = [trial.suggest_int(str(u), 0, len(o) - 1) for u, o in enumerate(options)]
                choice = np.array([o[p] for o, p in zip(options, picks, strict=True)])
                for limit in problem.limits:
                    trial.set_constraint(str(limit.budget), limit.of(choice) / limit.limit - 1 - TOLERANCE)
                damage = problem.predicted(choice)
                if problem.feasible(choice):
                    if tuple(choice) not in tried:
                        tried[tuple(choice)] = problem.true_error(choice)
                    damage = tried[tuple(choice)]
                study.tell(trial, math.log10(max(damage, 1e-30)))
        best = np.array(min(tried, key=lambda key: tried[key]))
        return Answer("bayes", best, "evaluations spent")


def _by_cost(problem: Problem, unit: int) -> list[int]:
    """Allowed columns of a unit, cheapest first: neighbouring integers are then similar formats."""
    columns = np.flatnonzero(problem.allowed[unit])
    costs = [sum(limit.costs.values[unit, c] / limit.limit for limit in problem.limits) for c in columns]
    return [int(c) for c in columns[np.argsort(costs, kind="stable")]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna reports every study on standard error; a library must not."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
