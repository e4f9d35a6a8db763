"""Answers are proposals; the true paired error decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpsearch.errors import InfeasibleBudget
from mpsearch.protocols import Solver
from mpsearch.search.dominated import undominated
from mpsearch.search.feasible import check_feasible
from mpsearch.search.ilp import Ilp
from mpsearch.search.lagrange import Lagrange
from mpsearch.search.size_only import SizeOnly
from mpsearch.search.uniform import Uniform, uniform_choices
from mpsearch.types import Answer, Baseline, Limit, Problem, Solution


def solve(problem: Problem, solvers: Sequence[Solver], costs: Sequence[Limit]) -> Solution:
    """Solve exactly, let ``solvers`` search on from there, and return the candidate of least true error.

    Without a generator the table decides. The best feasible uniform map and the size-only map are always candidates, so
    no answer is worse than them on the calibration inputs. Where there are richer formats than integers, so is the
    answer of the same search over integers and half floats alone.

    Args:
        problem: the question.
        solvers: asked in turn; the ILP answer, size-only, every feasible uniform map and the answers of those before
            are their starting points. The first ``ilp`` or ``lagrange`` among them gives the exact answer, too. One
            that has an attribute ``sure`` must beat what is known by so many standard errors: a long search fits the
            calibration inputs too.
        costs: every cost to report, budgets among them.

    Raises:
        InfeasibleBudget: with the smallest feasible value.
    """
    started = time.perf_counter()
    exact, best, baselines, searched = _searched(problem, solvers)
    proposed = problem.predicted(exact.choice)
    bitmap = problem.bitmap(best.choice)
    return Solution(
        bitmap=bitmap,
        predicted=problem.predicted(best.choice),
        error=problem.evaluate(bitmap) if problem.evaluate else None,
        costs={limit.budget.cost: limit.of(best.choice) for limit in costs},
        limits={str(limit.budget): limit.limit for limit in problem.limits},
        status=exact.status,
        bound=exact.bound,
        gap=None if exact.bound is None else max(proposed - exact.bound, 0.0) / max(abs(proposed), 1e-300),
        seconds=time.perf_counter() - started,
        method=best.method,
        baselines={name: _report(problem, answer, costs) for name, answer in baselines.items()},
        searches=tuple(f"{answer.method}: {answer.status}" for answer in searched),
    )


def _searched(problem: Problem, solvers: Sequence[Solver]) -> tuple[Answer, Answer, dict[str, Answer], list[Answer]]:
    """(the exact answer of the additive model, the best of all, what is reported beside it, those of the others)."""
    check_feasible(problem)
    proving = next((own for own in solvers if isinstance(own, (Ilp, Lagrange))), Ilp())
    exact, others = proving(problem), [own for own in solvers if own is not proving]
    baselines = _baselines(replace(problem, starts=(exact.choice,))) | _integers(problem, solvers)
    uniform = filter(problem.feasible, uniform_choices(problem))
    starts = (exact.choice, *(answer.choice for answer in baselines.values()), *uniform)
    searched: list[Answer] = []
    for solver in others:
        known = (*starts, *(answer.choice for answer in searched))
        searched.append(solver(undominated(replace(problem, starts=known))))
    best = min([exact, *baselines.values()], key=lambda answer: problem.damage_of(answer.choice))
    for solver, answer in zip(others, searched, strict=True):
        if _beats(problem, answer, best, getattr(solver, "sure", 0.0)):
            best = answer
    return exact, best, baselines, searched


def _beats(problem: Problem, answer: Answer, best: Answer, sure: float) -> bool:
    """Whether an answer is better by as many standard errors as its solver asks for."""
    if problem.evaluate is None:
        return problem.predicted(answer.choice) < problem.predicted(best.choice)
    return problem.measured(answer.choice).beats(problem.measured(best.choice), sure)


def _baselines(problem: Problem) -> dict[str, Answer]:
    """The maps that need no search. Under a tight budget not even one uniform map may exist."""
    found = {}
    for name, solver in (("uniform", Uniform()), ("size-only", SizeOnly())):
        try:
            found[name] = solver(problem)
        except InfeasibleBudget:
            continue
    return found


def _integers(problem: Problem, solvers: Sequence[Solver]) -> dict[str, Answer]:
    """The best map without zero points, groups, codebooks and the like; nothing where there are none of those."""
    simple = np.array([format.plain or format.kind in ("float", "fp16") for format in problem.formats])
    values = np.where(simple, problem.damage.values, np.nan)
    if not problem.allowed[:, ~simple].any() or np.isnan(values).all(axis=1).any():
        return {}
    try:
        _, best, *_ = _searched(replace(problem, damage=replace(problem.damage, values=values)), solvers)
    except InfeasibleBudget:
        return {}
    return {"integers": replace(best, method="integers")}


def _report(problem: Problem, answer: Answer, costs: Sequence[Limit]) -> Baseline:
    bitmap = problem.bitmap(answer.choice)
    return Baseline(
        bitmap=bitmap,
        costs={limit.budget.cost: limit.of(answer.choice) for limit in costs},
        predicted=problem.predicted(answer.choice),
        error=problem.evaluate(bitmap) if problem.evaluate else None,
    )
