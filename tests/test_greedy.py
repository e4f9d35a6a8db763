"""``greedy``: feasible wherever anything is, close to the exact answer, and fast."""

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_search import brute_force, problem, random_problem

from mpsearch import InfeasibleBudget
from mpsearch.search import Greedy, Ilp
from mpsearch.search.greedy import _hull_steps


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3), st.floats(0, 1), st.booleans())
def test_greedy_is_feasible_and_no_single_step_up_is_left(seed, units, budgets, tight, crossed):
    task = random_problem(seed, units, 4, budgets, tight)
    if crossed:  # the second budget dislikes what the first likes
        for limit in task.limits[1:2]:
            limit.costs.values[:] = limit.costs.values[:, ::-1].copy()
    best = brute_force(task)
    assume(np.isfinite(best))
    answer = Greedy()(task)
    assert task.feasible(answer.choice)
    found = task.predicted(answer.choice)
    assert found >= best * (1 - 1e-9)
    for unit in range(units):
        for column in range(4):
            other = answer.choice.copy()
            other[unit] = column
            assert not task.feasible(other) or task.predicted(other) >= found


def test_greedy_is_close_to_exact():
    ratios = []
    for seed in range(60):
        task = random_problem(seed, units=40, formats=5, budgets=1 + seed % 2, tight=0.4)
        ratios.append(task.predicted(Greedy()(task).choice) / task.predicted(Ilp()(task).choice))
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) < 1.02
    assert np.quantile(ratios, 0.9) < 1.2


def test_greedy_lowers_what_costs_least_for_what_it_saves():
    """Rates by hand: 4.1 a bit for the first, whose hull skips a format, 4 and then 5 for the second."""
    damage = [[8.2, 8.1, 0.0], [9.0, 4.0, 0.0]]
    costs = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    units, columns, rates = _hull_steps(np.array(damage), costs, np.array([2, 2]))
    assert [(int(u), int(c), r) for u, c, r in zip(units, columns, rates, strict=True)] == [
        (0, 0, 4.1),
        (1, 1, 4.0),
        (1, 0, 5.0),
    ]
    assert Greedy()(problem(damage, (costs, 3.0))).choice.tolist() == [2, 1], "one bit less is asked for"
    assert Greedy()(problem(damage)).choice.tolist() == [2, 2]


def test_greedy_takes_large_problems():
    task = random_problem(1, units=20_000, formats=5, budgets=2, tight=0.4)
    start = time.perf_counter()
    answer = Greedy()(task)
    assert time.perf_counter() - start < 10
    assert task.feasible(answer.choice)


def test_what_cannot_be_met_is_said():
    with pytest.raises(InfeasibleBudget, match="the smallest feasible value is bits<=5"):
        Greedy()(problem(np.ones((2, 2)), (np.array([[2.0, 4.0], [3.0, 8.0]]), 4)))
