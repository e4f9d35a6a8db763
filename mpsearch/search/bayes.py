"""``bayes``: Optuna over the true paired error, the budgets as constraints."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from mpsearch.errors import ArtifactError, UsageError
from mpsearch.search.ilp import Ilp
from mpsearch.types import TOLERANCE, Answer, BitMap, Choice, Measured, Problem

Array = NDArray[np.float64]
TRIALS = 20  # a true evaluation: near a tight budget most proposals are infeasible and free, and a search may stall
POPULATION = 50
ERROR = "error"  # attribute of a trial that was measured


@dataclass(frozen=True)
class Bayes:
    """Optuna over the true paired error, one integer a unit: a Parzen estimator (Bergstra et al. 2011) or NSGA-II.

    Warm-started with the problem's starting points (the ILP answer and the uniform maps), so it is never worse than
    these on calibration data. An infeasible proposal costs no run of the generator: it is told its excess and a
    damage predicted by the table.

    ``nsga2`` (Deb et al. 2002) minimises the error and the costs of all budgets together; the answer is again the
    least error under the budgets, and :meth:`front` has all trade-offs met on the way.

    With ``storage`` a search continues where it was stopped, and more ``evaluations`` later add to it; what was
    measured is not measured again. Other tables, budgets, seeds or samplers make another study in the same place.

    Attributes:
        evaluations: true evaluations to spend, the warm starts and those found in ``storage`` included.
        seed: of the sampler.
        sampler: ``tpe`` or ``nsga2``.
        storage: an Optuna URL (``sqlite:///search.db``), or the path of a journal file; None = memory.
        tune: measures a map in place of the problem's evaluation, after a short tuning of the quantized generator as
            BOMP-NAS does (van Son et al., arXiv 2301.11810). The answer is then the best map *after* such a tuning; who
            compares it with others must tune these too.
        sure: standard errors of the paired difference by which the answer must beat what was known before.
    """

    evaluations: int = 60
    seed: int = 0
    sampler: Literal["tpe", "nsga2"] = "tpe"
    storage: str | None = None
    tune: Callable[[BitMap], Measured] | None = field(default=None, repr=False)
    sure: float = 0.0

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UsageError(f"bayes needs at least 1 evaluation, not {self.evaluations}")
        if self.sampler not in ("tpe", "nsga2"):
            raise UsageError(f"bayes: unknown sampler {self.sampler!r}: use tpe or nsga2")

    def __call__(self, problem: Problem) -> Answer:
        tried = self._search(problem)
        best = np.array(min(tried, key=lambda key: tried[key]), np.int64)
        return Answer("bayes", best, "evaluations spent")

    def front(self, problem: Problem) -> list[tuple[Choice, float]]:
        """(choice, true error) of every map met that no other beats in error and in all costs, cheapest first.

        All within the budgets: for a wide front they must be wide.
        """
        tried = self._search(problem)
        choices = [np.array(key, np.int64) for key in tried]
        points: Array = np.array([[*_costs(problem, choice), tried[tuple(choice)]] for choice in choices])
        no_worse, better = points[None] <= points[:, None], points[None] < points[:, None]  # than the row, the column
        beaten_by = (no_worse.all(axis=2) & better.any(axis=2)).sum(axis=1)
        kept = np.flatnonzero(beaten_by == 0)
        order = kept[np.lexsort((-points[kept, -1], points[kept, :-1].sum(axis=1)))]
        return [(choices[at], float(points[at, -1])) for at in order]

    def _search(self, problem: Problem) -> dict[tuple[int, ...], float]:
        """Feasible choice → true error, of all that was measured."""
        starts = problem.starts or (Ilp()(problem).choice,)
        options = [_by_cost(problem, unit) for unit in range(len(problem.units))]
        with _quiet():
            study = self._study(problem)
            tried = {
                tuple(options[u][trial.params[str(u)]] for u in range(len(options))): float(trial.user_attrs[ERROR])
                for trial in study.get_trials(deepcopy=False)
                if ERROR in trial.user_attrs and len(trial.params) == len(options)
            }
            for start in starts:
                params = {str(u): options[u].index(int(c)) for u, c in enumerate(start)}
                study.enqueue_trial(params, skip_if_exists=True)
            for _ in range(TRIALS * self.evaluations):
                if len(tried) >= self.evaluations:
                    break
                trial = study.ask()
                picks = [trial.suggest_int(str(u), 0, len(o) - 1) for u, o in enumerate(options)]
                choice = np.array([o[p] for o, p in zip(options, picks, strict=True)])
                costs = _costs(problem, choice)
                for limit, cost in zip(problem.limits, costs, strict=True):
                    trial.set_constraint(str(limit.budget), cost - 1 - TOLERANCE)
                damage = problem.predicted(choice)
                if problem.feasible(choice):
                    if tuple(choice) not in tried:
                        tried[tuple(choice)] = self._measured(problem, choice)
                    damage = tried[tuple(choice)]
                    trial.set_user_attr(ERROR, damage)
                told = math.log10(max(damage, 1e-30))
                study.tell(trial, told if self.sampler == "tpe" else [told, *costs])
        return tried

    def _measured(self, problem: Problem, choice: Choice) -> float:
        return problem.true_error(choice) if self.tune is None else self.tune(problem.bitmap(choice)).value

    def _study(self, problem: Problem) -> optuna.Study:
        """The study of this very question, found in the storage or begun; its sampler goes on from where it is."""
        storage = None if self.storage is None else _opened(self.storage)
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=f"mpsearch {self.sampler} {_digest(problem, self.seed, self.tune is not None)}",
                directions=["minimize"] * (1 if self.sampler == "tpe" else 1 + len(problem.limits)),
                load_if_exists=True,
            )
        except Exception as error:  # whatever a database says of a file that is not its own
            raise ArtifactError(f"cannot continue the search in {self.storage}: {_line(error)}") from error
        # From where the study is: the same draws again would only repeat.
        seed = (self.seed + len(study.get_trials(deepcopy=False))) % 2**32
        if self.sampler == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=seed)
        else:
            population = max(2, min(POPULATION, self.evaluations // 3))
            study.sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        return study


def _costs(problem: Problem, choice: Choice) -> list[float]:
    return [limit.of(choice) / limit.limit for limit in problem.limits]


def _opened(storage: str) -> str | BaseStorage:
    """A URL is left to Optuna; anything else is the path of a journal."""
    if "://" in storage:
        return storage
    folder = os.path.dirname(os.path.abspath(storage))
    if not os.path.isdir(folder):
        raise UsageError(f"bayes: the storage {storage} lies in no folder: make {folder} first")
    try:
        if os.path.exists(storage):
            with open(storage, encoding="utf-8") as file:
                first = file.readline()
            if first and "op_code" not in json.loads(first):  # Optuna would append to whatever is there
                raise ValueError("it is no journal of Optuna")
        return JournalStorage(JournalFileBackend(storage))
    except Exception as error:  # also whatever Optuna says of a damaged one
        raise ArtifactError(f"cannot continue the search in {storage}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _digest(problem: Problem, seed: int, tuned: bool) -> str:
    """Short hash of the question: equal exactly when stored trials answer it."""
    # The true error of one map stands for the generator and its inputs; its last digits vary with the machine.
    known = None if problem.evaluate is None or not problem.starts else f"{problem.true_error(problem.starts[0]):.3g}"
    limits = [[str(limit.budget), limit.limit, limit.costs.to_json()["values"]] for limit in problem.limits]
    asked = [problem.damage.to_json(), limits, seed, tuned, known]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


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
