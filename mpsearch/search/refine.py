"""``refine``: search on the true paired error of the whole map, led by its slopes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UsageError
from mpsearch.search.diverse import diverse
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, Choice, Measured, Problem, Table

Array = NDArray[np.float64]
MOVES = 512  # proposals ranked at a time
DAMPING = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the curvature: the more, the shorter the leap
SECONDS = 2.0  # for the exact solution of one leap
SLIGHT = 0.005  # of the error, 0.02 dB: moves that change less do not matter,
HASTE = 4  # and try the patience as so many others
FAR = 10.0  # times the error of the first starting point: too far to descend from


@dataclass(frozen=True)
class Refine:
    """Descend from the best starting points: leap to the optimum of a local model, then try single and paired moves.

    Damage is not additive: errors of neighbouring layers cancel or add up, so that the table of single layers proposes
    poor maps where few bits are left. Around one map, though, the first-order change of its true error is known for
    every layer and format from one backward pass (``Problem.slopes``). With the table for curvature this is a local
    model, and the exact solver finds its best map; damping makes the leap shorter where it failed (Levenberg 1944).
    What the model leaves unsure is settled by running the map: moves are tried in the order of the model, and only a
    lower true error counts. How much of the curvature is real is learned from the maps tried so far.

    Attributes:
        evaluations: true evaluations to spend, those of the starting points included.
        restarts: starting points to descend from, best first; near-optimal maps of the table where too few are good.
        others: near-optimal maps of the table, as different as can be, among the starting points.
        patience: moves in a row that may fail before a map is called a local optimum; of slight ones a quarter: with
            hundreds of layers a single move is nothing beside a leap.
        doubt: standard errors of a gain over the first starting point that are not believed. A hundred maps judged on
            the same inputs: the one that looks best there owes it in part to a few of them.
        sure: standard errors of the paired difference by which the answer must beat what else is known.
    """

    evaluations: int = 100
    restarts: int = 1
    others: int = 0
    patience: int = 32
    doubt: float = 1.25
    sure: float = 0.0

    def __post_init__(self) -> None:
        if min(self.evaluations, self.restarts, self.patience) < 1 or min(self.others, self.doubt, self.sure) < 0:
            raise UsageError(
                "refine needs evaluations, restarts and patience of at least 1, others, doubt and sure of at least 0, "
                f"not {self.evaluations}, {self.restarts}, {self.patience}, {self.others}, {self.doubt} and {self.sure}"
            )

    def __call__(self, problem: Problem) -> Answer:
        starts = problem.starts or (Ilp()(problem).choice,)
        if self.others:
            starts = (*starts, *diverse(problem, self.others))
        tried = {tuple(start): problem.measured(start) for start in starts}
        base = tried[tuple(starts[0])]
        if sum(start.value <= FAR * base.value for start in tried.values()) < self.restarts:
            tried |= {tuple(start): problem.measured(start) for start in diverse(problem, self.restarts)}

        def error(choice: Choice | tuple[int, ...]) -> float:
            return tried[tuple(choice)].doubted(base, self.doubt)

        begun = sorted(tried, key=lambda choice: tried[choice].value)[: self.restarts]  # of so few none is lucky
        optimal = [self._descend(problem, np.array(start), tried, error) for start in begun]
        best = np.array(min(tried, key=error))
        return Answer("refine", best, "local optimum" if all(optimal) else "evaluations spent")

    def _descend(
        self,
        problem: Problem,
        best: Choice,
        tried: dict[tuple[int, ...], Measured],
        error: Callable[[Choice], float],
    ) -> bool:
        """Whether it ends in a local optimum."""
        model, failed = _Model(problem), 0
        while True:
            model.move_to(best)
            here, moved = tried[tuple(best)], False
            for choice in model.proposals():
                if failed >= self.patience:
                    break
                if tuple(choice) in tried:
                    continue
                if len(tried) >= self.evaluations:
                    return False
                found = tried[tuple(choice)] = problem.measured(choice, here)
                known = len(here.samples) // 4  # of maps given up half way, too
                old, new = _mean(here, known), _mean(found, known)
                model.learn(choice, new - old)
                slight = abs(new - old) < SLIGHT * old
                moved = error(choice) < error(best)
                failed = 0 if moved and not slight else failed + (HASTE if slight else 1)
                if moved:
                    best = choice
                    break
            if not moved:
                return True


class _Model:
    """Change of the true error around a map: slopes, and the share of the table's curvature that has proved real."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.seen: list[tuple[float, float]] = []  # (curvature predicted, curvature found) of the moves tried

    def move_to(self, choice: Choice) -> None:
        self.choice, rows = choice, np.arange(len(choice))
        damage = self.problem.damage.values
        now = damage[rows, choice][:, None]
        slope = None if self.problem.slopes is None else self.problem.slopes(self.problem.bitmap(choice))
        self.led = slope is not None
        self.slope = damage - now if slope is None else slope
        # Rounding errors of two widths have nothing to do with each other: their energies add up.
        self.curvature = (np.maximum(damage, 0) + np.maximum(now, 0)) * self.led
        self.curvature[rows, choice] = 0

    @property
    def share(self) -> float:
        """Least squares through the moves seen, and one imagined move that was as predicted."""
        if not self.seen:
            return 1.0
        predicted, found = np.array(self.seen).T
        one = float(np.abs(predicted).mean())
        return max(float(predicted @ found + one**2) / max(float(predicted @ predicted) + one**2, 1e-300), 0.01)

    def learn(self, choice: Choice, change: float) -> None:
        rows = np.arange(len(choice))
        self.seen.append((self.curvature[rows, choice].sum(), change - self.slope[rows, choice].sum()))

    def proposals(self) -> Iterator[Choice]:
        """Leaps, then single and paired moves, those of least predicted error first."""
        if self.led:
            for damping in DAMPING:
                local = self._table(damping * self.share)
                leap = Ilp(time_limit=SECONDS)(replace(self.problem, damage=local)).choice
                if (leap != self.choice).any():
                    yield leap
        yield from _neighbours(replace(self.problem, damage=self._table(self.share)), self.choice)

    def _table(self, share: float) -> Table:
        values = np.where(self.problem.allowed, self.slope + share * self.curvature, np.nan)
        return replace(self.problem.damage, values=values)


def _mean(measured: Measured, count: int) -> float:
    """Over the first samples; over all of them where ``count`` is 0."""
    return float(np.mean(measured.samples[:count])) if count else measured.value


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
