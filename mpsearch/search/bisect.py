"""``bisect``: the cheapest map whose pictures are good enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleBudget, UsageError
from mpsearch.search.uniform import uniform_choices
from mpsearch.types import TOLERANCE, BitMap, Limit, Problem, Reached, Solution, Target

Array = NDArray[np.float64]
Search = Callable[[float], Solution]  # the most that the cost may be -> the best map
Judge = Callable[[BitMap], float]  # in the measure of the target
FIRST = 0.02  # step down from what the short search found, as a share of its cost; doubled while it succeeds


@dataclass(frozen=True)
class Bisect:
    """Bisection on the limit of one cost, every step a whole search; then single layers shrink.

    The best error under a limit falls as the limit rises, but what a search finds need not, for errors of layers are
    not additive: so of all maps that were judged the cheapest that meets the target is kept, whatever a step says. A
    short search brackets the answer, the long one narrows it. The limit at which it ends leaves some quality unused;
    cheaper formats of single layers spend it, those first that save most for what they are predicted to hurt, and each
    stays only if the pictures are still good enough.

    The answer is never dearer than the cheapest uniform map that meets the target.

    Attributes:
        tolerance: of the cost, at which the bisection ends.
        patience: formats in a row that may fail before the map is called as small as it gets.
    """

    tolerance: float = 0.005
    patience: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.patience < 1:
            raise UsageError(
                f"bisect needs tolerance between 0 and 1 and patience >= 1, not {self.tolerance} and {self.patience}"
            )

    def __call__(
        self, problem: Problem, cost: Limit, target: Target, judge: Judge, quick: Search, search: Search
    ) -> Solution:
        """The answer, stated as that of ``quick`` at what it costs: with bound, gap, and baselines that cost no more.

        Args:
            problem: the question with the budgets that hold besides.
            cost: what is to be small, its limit unused.
            target: the floor.
            judge: the true quality of a map.
            quick: a short search; raises ``InfeasibleBudget`` where no map meets the limit and the budgets.
            search: the long search.

        Raises:
            InfeasibleBudget: the budgets cannot be met together, or the target cannot be reached: with the best value.
        """
        started = time.perf_counter()
        values, join = cost.costs.values, cost.costs.total
        least = join(np.where(problem.allowed, values, np.inf).min(axis=1))
        most = join(np.where(problem.allowed, values, -np.inf).max(axis=1))
        trail = _Trail(cost.budget.cost, target, judge)
        uniform = self._uniform(problem, cost, trail)
        if not trail.found:
            any(trail.add(attempt(most)) for attempt in dict.fromkeys([quick, search]))
        if not trail.found:
            best = target.reachable(trail.best_value())
            given = [str(limit.budget) for limit in problem.limits if limit.limit < np.inf]
            under, more = (f" under {', '.join(given)}", "looser budgets or ") if given else ("", "")
            raise InfeasibleBudget(
                f"{target} cannot be reached{under}: the best found is {best}; allow {more}wider formats"
            )
        if not trail.meets(quick, least):
            self._narrow(trail, quick, least)
            if search is not quick:
                self._narrow(trail, search, self._descend(trail, search, least))
        limit = np.inf
        while trail.smallest.cost < limit:  # what is found while stating the answer may be cheaper, and shrink in turn
            self._shrink(problem, cost, trail)
            limit = trail.smallest.cost
            stated = self._stated(trail, quick)
        answer = trail.smallest
        return replace(
            stated,
            bitmap=answer.bitmap,
            predicted=answer.predicted,
            error=problem.evaluate(answer.bitmap) if problem.evaluate else None,
            costs={**stated.costs, **answer.costs},
            seconds=time.perf_counter() - started,
            method="bisect",
            target=Reached(target, trail.name, answer.value, uniform, tuple(trail.steps)),
        )

    def _uniform(self, problem: Problem, cost: Limit, trail: _Trail) -> float | None:
        """Cost of the cheapest uniform map that meets the target."""
        for choice in sorted(filter(problem.feasible, uniform_choices(problem)), key=cost.of):
            costs = {limit.budget.cost: limit.of(choice) for limit in (*problem.limits, cost)}
            if trail.judged(problem.bitmap(choice), problem.predicted(choice), costs):
                return cost.of(choice)
        return None

    def _descend(self, trail: _Trail, search: Search, least: float) -> float:
        """A limit that failed, below what is known: the steps grow while they succeed."""
        step = FIRST
        while (limit := trail.smallest.cost * (1 - step)) > least:
            if not trail.meets(search, limit):
                return limit
            step *= 2
        return least

    def _narrow(self, trail: _Trail, search: Search, low: float) -> None:
        """Bisect between a limit that failed and the smallest map that meets the target."""
        while trail.smallest.cost - low > self.tolerance * trail.smallest.cost:
            middle = (low + trail.smallest.cost) / 2
            if not trail.meets(search, middle):
                low = middle

    def _shrink(self, problem: Problem, cost: Limit, trail: _Trail) -> None:
        """Cheaper formats for single units, while the target is met."""
        refused: set[tuple[int, int]] = set()  # at a dearer map: tried last
        failed, moved = 0, True
        while moved and cost.costs.combine == "sum":
            here, moved = trail.smallest, False
            moves = sorted(self._cheaper(problem, cost, here), key=lambda move: move[:2] in refused)
            for row, column, predicted in moves:
                if failed >= self.patience:
                    return
                unit, format = problem.units[row], problem.formats[column]
                bitmap = BitMap({**here.bitmap, **dict.fromkeys((unit.layer, *unit.others), format)})
                at = problem.formats.index(here.bitmap[unit.layer])
                steps = {
                    limit.budget.cost: limit.costs.values[row, column] - limit.costs.values[row, at]
                    for limit in (*problem.limits, cost)
                }
                costs = {name: here.costs[name] + float(step) for name, step in steps.items()}
                if moved := trail.judged(bitmap, predicted, costs):
                    failed = 0
                    break
                refused.add((row, column))
                failed += 1

    @staticmethod
    def _stated(trail: _Trail, quick: Search) -> Solution:
        """What the short search says under the limit of what the answer costs."""
        while True:
            limit = trail.smallest.cost
            try:
                solution = quick(limit)
            except InfeasibleBudget:  # whole layers cannot be so cheap under several budgets, channels can
                assert trail.met is not None, "a map of whole layers is feasible where it stands"
                return trail.met
            trail.add(solution)
            if trail.smallest.cost == limit:
                return solution

    @staticmethod
    def _cheaper(problem: Problem, cost: Limit, here: _Candidate) -> Iterator[tuple[int, int, float]]:
        """(unit, column, damage predicted for the map) of every move that saves, least extra error a saving first.

        A layer whose channels have several widths is no column and stays as it is.
        """
        columns = {format: column for column, format in enumerate(problem.formats)}
        own = [columns.get(here.bitmap[unit.layer], -1) for unit in problem.units]
        rows, now = np.flatnonzero(np.array(own) >= 0), np.array([at for at in own if at >= 0], int)

        def change(values: Array) -> Array:
            moved: Array = np.full(values.shape, np.nan)
            moved[rows] = values[rows] - values[rows, now][:, None]
            return moved

        damage = problem.damage.values
        extra = change(damage)
        slopes = None if problem.slopes is None else problem.slopes(here.bitmap)
        hurt = extra
        if slopes is not None:  # the error is quadratic around the map, rounding errors of two widths are independent
            hurt = slopes + np.maximum(damage, 0) + np.maximum(damage - extra, 0)
        saved = -change(cost.costs.values)
        may = problem.allowed & (saved > TOLERANCE * here.cost)
        for limit in problem.limits:
            may &= here.costs[limit.budget.cost] + change(limit.costs.values) <= limit.limit * (1 + TOLERANCE)
        price = np.where(may, hurt / np.where(may, saved, 1), np.inf)
        for flat in np.argsort(price, axis=None, kind="stable")[: np.count_nonzero(may)]:
            row, column = divmod(int(flat), len(problem.formats))
            yield row, column, here.predicted + float(extra[row, column])


@dataclass(frozen=True, eq=False)
class _Candidate:
    bitmap: BitMap
    predicted: float
    costs: Mapping[str, float]
    cost: float
    value: float


class _Trail:
    """Every map that was judged, and the cheapest that meets the target."""

    def __init__(self, name: str, target: Target, judge: Judge) -> None:
        self.name, self.target, self.judge = name, target, judge
        self.steps: list[tuple[float, float]] = []
        self.found: list[_Candidate] = []  # cheaper and cheaper
        self.met: Solution | None = None  # the last search that met the target

    @property
    def smallest(self) -> _Candidate:
        return self.found[-1]

    def best_value(self) -> float:
        return max((value for _, value in self.steps), key=self.target.margin)

    def meets(self, search: Search, limit: float) -> bool:
        """Whether the search finds a map within the limit that meets the target."""
        try:
            return self.add(search(limit))
        except InfeasibleBudget:  # with the other budgets
            return False

    def add(self, solution: Solution) -> bool:
        met = self.judged(solution.bitmap, solution.predicted, solution.costs)
        self.met = solution if met else self.met
        return met

    def judged(self, bitmap: BitMap, predicted: float, costs: Mapping[str, float]) -> bool:
        """Whether a map meets the target; it is kept if it is cheaper than those known, or as cheap and better."""
        value, cost = self.judge(bitmap), costs[self.name]
        self.steps.append((cost, value))
        if not self.target.met(value):
            return False
        known = self.found[-1] if self.found else None
        if known is None or (cost, -self.target.margin(value)) < (known.cost, -self.target.margin(known.value)):
            self.found.append(_Candidate(bitmap, predicted, costs, cost, value))
        return True
