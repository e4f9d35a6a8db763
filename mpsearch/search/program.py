"""The knapsack as an integer program: cvxpy in matrix form, on HiGHS.

Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018.
"""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.types import TOLERANCE, Choice, Problem

Array = NDArray[np.float64]


class Program:
    """One boolean a cell, one cell a unit, every budget met.

    Args:
        problem: the question.
        cells: ``(cells, 2)`` unit and column of each variable.
    """

    def __init__(self, problem: Problem, cells: NDArray[np.int64]) -> None:
        self.cells = cells
        self.x = cp.Variable(len(cells), boolean=True)
        spots = (cells[:, 0], np.arange(len(cells)))
        once = sp.csr_array((np.ones(len(cells)), spots), shape=(len(problem.units), len(cells)))
        self.constraints: list[Any] = [cp.Constant(once) @ self.x == 1]
        if problem.limits:
            left = [max(limit.limit - limit.costs.constant, 1e-12 * limit.limit) for limit in problem.limits]
            costs = np.stack([limit.costs.values[tuple(cells.T)] for limit in problem.limits])
            self.constraints.append(cp.Constant(costs / np.array(left)[:, None]) @ self.x <= 1)

    def minimise(self, costs: Array, seconds: float, stop: float = 0.0) -> str | None:
        """Status, or None when nothing meets the constraints in time; ``costs`` is one number a cell."""
        self.program = cp.Problem(cp.Minimize(costs @ self.x), self.constraints)
        # By default HiGHS accepts rows violated by 1e-6, which is a byte in a megabyte too many.
        options = {"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE}
        options |= {"mip_rel_gap": 0.0, "mip_abs_gap": stop, "time_limit": seconds}
        try:
            with warnings.catch_warnings():  # cvxpy warns of a time limit, which the status says
                warnings.simplefilter("ignore", UserWarning)
                self.program.solve(solver=cp.HIGHS, highs_options=options)  # type: ignore[no-untyped-call]
        except cp.SolverError as error:
            raise UsageError(f"HiGHS gave up: {error}") from None
        if self.x.value is None:
            return None
        return {"optimal": "optimal", "user_limit": "time limit"}.get(self.program.status, self.program.status)

    @property
    def dual_bound(self) -> float:
        info: Any = self.program.solver_stats.extra_stats
        return float(info.mip_dual_bound)

    def choice(self) -> Choice:
        """The largest variable of every unit."""
        values: Array = np.asarray(self.x.value)
        order = np.lexsort((-values, self.cells[:, 0]))
        first = np.unique(self.cells[order, 0], return_index=True)[1]
        chosen: Choice = self.cells[order[first], 1]
        return chosen
