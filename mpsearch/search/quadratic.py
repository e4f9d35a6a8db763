"""``quadratic``: least damage with the terms of all pairs of units, under every budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.search.feasible import check_feasible
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, Choice, Problem

Array = NDArray[np.float64]
MOVES = 300  # single moves that are paired with each other at a time
MISSES = 4  # random sets of moves without gain after which a large problem counts as a local optimum
LOWERINGS = 50  # random steps a unit that may make a kicked choice feasible again
LEAST = 1e-9  # of the damage: gains below are rounding
SLACK = 1e-6  # taken off what SCIP calls proven, in units of the answer: it compares with tolerances


@dataclass(frozen=True)
class Quadratic:
    """``Σ_i d(i, c_i) + share · Σ_{i<j} 2⟨v(i, c_i), v(j, c_j)⟩``: the table, and the pair terms of ``problem.pairs``.

    The vectors give the angles and the table the lengths (:meth:`Pairs.scaled_to`), so that a measured table keeps its
    say; with the table of the same one-pass and ``share=1`` this is :meth:`Pairs.damage`, the quadratic model of CLADO
    (Deng et al., arXiv 2307.05657). Pair terms are of first order like the table: where errors saturate they promise
    too much, hence the share. Without pairs it is the additive problem.

    Local search over single and paired moves from every starting point, then from random kicks of the best answer. The
    sum of the vectors is kept, so that a move costs one inner product; all moves are scored at once. HiGHS takes no
    quadratic objective with integers, so a bound needs SCIP.

    Attributes:
        restarts: kicks.
        share: of the pair terms that is counted, 0 to 1.
        seed: of the kicks.
        time_limit: seconds for the search, and again for the bound.
        bound: prove a lower bound of the model by SCIP (``pip install pyscipopt``); tight up to some tens of units.
    """

    restarts: int = 100
    share: float = 0.5
    seed: int = 0
    time_limit: float = 30.0
    bound: bool = False

    def __post_init__(self) -> None:
        if self.restarts < 0 or not 0 <= self.share <= 1 or self.time_limit <= 0:
            raise UsageError(
                f"quadratic needs restarts >= 0, a share from 0 to 1 and time_limit > 0, not {self.restarts}, "
                f"{self.share} and {self.time_limit}"
            )

    def __call__(self, problem: Problem) -> Answer:
        check_feasible(problem)
        if self.bound:
            _need_scip()
        deadline = time.perf_counter() + self.time_limit
        model = _Model(problem, self.share)
        rng = np.random.default_rng(self.seed)
        starts = problem.starts or (Ilp()(problem).choice,)
        found = [model.descend(np.array(start), rng, deadline) for start in starts]
        best = min(found, key=model.value)
        for _ in range(self.restarts):
            if time.perf_counter() > deadline:
                break
            kicked = model.kick(best, rng)
            if kicked is not None:
                best = min(best, model.descend(kicked, rng, deadline), key=model.value)
        status = "local optimum" if time.perf_counter() <= deadline else "time limit"
        if not self.bound:
            return Answer("quadratic", best, status)
        best, bound = model.proven(best, self.time_limit)
        closed = bound >= model.value(best) * (1 - 2 * SLACK)
        return Answer("quadratic", best, "optimal" if closed else status, bound)


class _Model:
    """The objective ``Σ_i linear(i, c_i) + ‖Σ_i vectors(i, c_i)‖²``, and the moves that lower it."""

    def __init__(self, problem: Problem, share: float) -> None:
        self.problem, self.allowed = problem, problem.allowed
        self.rows = np.arange(len(problem.units))
        self.linear = np.where(self.allowed, problem.damage.values, 0.0)
        self.vectors = np.zeros((*self.linear.shape, 0))
        if problem.pairs is not None and share > 0:
            self.vectors = share**0.5 * problem.pairs.scaled_to(problem.damage).vectors
            self.linear = self.linear - np.square(self.vectors).sum(axis=-1)

    def value(self, choice: Choice) -> float:
        total = self.vectors[self.rows, choice].sum(axis=0)
        return float(self.linear[self.rows, choice].sum() + total @ total)

    def descend(self, choice: Choice, rng: np.random.Generator, deadline: float) -> Choice:
        """A choice that no feasible single or paired move improves; in large problems none of many tried."""
        choice, misses = choice.copy(), 0
        total = self.vectors[self.rows, choice].sum(axis=0)
        while time.perf_counter() <= deadline:
            least = LEAST * abs(self.value(choice))
            moves = self.allowed.copy()
            moves[self.rows, choice] = False
            units, columns = np.nonzero(moves)
            steps = self.vectors[units, columns] - self.vectors[units, choice[units]]
            gains = self.linear[units, columns] - self.linear[units, choice[units]]
            gains += 2 * steps @ total + np.square(steps).sum(axis=1)
            costs = np.stack(
                [np.zeros(len(units))]  # no budgets at all must work too
                + [
                    (limit.costs.values[units, columns] - limit.costs.values[units, choice[units]]) / limit.limit
                    for limit in self.problem.limits
                ]
            )
            slack = np.array([0.0] + [1 + TOLERANCE - limit.of(choice) / limit.limit for limit in self.problem.limits])
            single = np.where((costs <= slack[:, None]).all(axis=0), gains, np.inf)
            picked = [int(single.argmin())] if len(single) and single.min() < -least else []
            if not picked:
                some = np.arange(len(units))
                if len(units) > MOVES:
                    some = np.sort(rng.choice(len(units), MOVES, replace=False))
                pair = _best_pair(units[some], gains[some], steps[some], costs[:, some], slack, -least)
                misses = misses + 1 if pair is None else 0
                if pair is None and (len(units) <= MOVES or misses >= MISSES):
                    break
                picked = [] if pair is None else [int(some[move]) for move in pair]
            for move in picked:
                choice[units[move]] = columns[move]
                total = total + steps[move]
        return choice

    def kick(self, choice: Choice, rng: np.random.Generator) -> Choice | None:
        """Some units drawn anew, then units lowered by chance until the budgets hold; None when they do not."""
        choice = choice.copy()
        count = int(rng.integers(2, max(4, len(choice) // 8 + 1)))
        for unit in rng.choice(len(choice), min(count, len(choice)), replace=False):
            choice[unit] = rng.choice(np.flatnonzero(self.allowed[unit]))
        for _ in range(LOWERINGS * len(choice)):
            over = [limit for limit in self.problem.limits if limit.of(choice) > limit.limit * (1 + TOLERANCE)]
            if not over:
                return choice
            costs = over[0].costs.values
            unit = rng.integers(len(choice))
            cheaper = np.flatnonzero(self.allowed[unit] & (costs[unit] < costs[unit, choice[unit]]))
            if len(cheaper):
                choice[unit] = rng.choice(cheaper)
        return None

    def proven(self, best: Choice, seconds: float) -> tuple[Choice, float]:
        """(the better of ``best`` and SCIP's answer, a lower bound of every feasible choice)."""
        import cvxpy as cp

        cells = np.argwhere(self.allowed)
        unit = abs(self.value(best)) or 1.0
        x = cp.Variable(len(cells), boolean=True)
        once = (cells[:, 0][None] == self.rows[:, None]).astype(float)
        constraints: list[Any] = [once @ x == 1]
        for limit in self.problem.limits:
            costs = limit.costs.values[tuple(cells.T)] / limit.limit
            constraints.append(costs @ x <= 1 + TOLERANCE - limit.costs.constant / limit.limit)
        objective: Any = self.linear[tuple(cells.T)] / unit @ x
        if self.vectors.shape[2]:
            factor = np.linalg.qr(self.vectors[tuple(cells.T)].T / unit**0.5, mode="r")  # as few rows as will do
            objective = objective + cp.sum_squares(factor @ x)  # type: ignore[attr-defined]
        program = cp.Problem(cp.Minimize(objective), constraints)
        options = {"limits/time": seconds, "numerics/feastol": TOLERANCE}
        try:
            program.solve(solver=cp.SCIP, scip_params=options)  # type: ignore[no-untyped-call]
        except cp.SolverError as error:
            raise UsageError(f"SCIP gave up: {error}") from None
        if x.value is not None:
            weight = np.zeros(self.allowed.shape)
            weight[tuple(cells.T)] = x.value
            other: Choice = weight.argmax(axis=1)
            if self.problem.feasible(other):
                best = min(best, other, key=self.value)
        stats: Any = program.solver_stats.extra_stats
        return best, min((float(stats["model"].getDualbound()) - SLACK) * unit, self.value(best))


def _best_pair(
    units: NDArray[np.int64], gains: Array, steps: Array, costs: Array, slack: Array, target: float
) -> tuple[int, int] | None:
    """The two moves of different units that together fit and gain most, if that is more than ``target``."""
    both = gains[:, None] + gains[None, :] + 2 * steps @ steps.T
    both[units[:, None] == units[None, :]] = np.inf
    for cost, room in zip(costs, slack, strict=True):
        both[cost[:, None] + cost[None, :] > room] = np.inf
    if not both.size or both.min() >= target:
        return None
    one, two = np.unravel_index(both.argmin(), both.shape)
    return int(one), int(two)


def _need_scip() -> None:
    try:
        import pyscipopt  # noqa: F401
    except ImportError:
        raise UsageError("quadratic: bound=True needs SCIP: pip install pyscipopt, or leave it out") from None
