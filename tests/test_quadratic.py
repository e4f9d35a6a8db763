"""Pair terms, and the solver that uses them."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_search import FORMATS, problem, random_problem, table

import mpsearch
from mpsearch import UsageError
from mpsearch.api import make_subject
from mpsearch.search import Ilp, Quadratic
from mpsearch.search.quadratic import _Model
from mpsearch.sensitivity import OnePass
from mpsearch.types import Pairs, Problem, parse_formats


def paired(seed, units=5, formats=3, budgets=1, tight=0.5, rank=4):
    """A problem whose pair terms are as large as its damages: vectors share directions within and between units."""
    task = random_problem(seed, units, formats, budgets, tight)
    rng = np.random.default_rng(seed + 1)
    vectors = rng.standard_normal((units, 1, rank)) + 0.5 * rng.standard_normal((units, formats, rank))
    vectors += rng.choice([0.0, 2.0]) * rng.standard_normal(rank)
    vectors *= np.sqrt(task.damage.values / np.square(vectors).sum(-1))[:, :, None]
    return replace(task, pairs=Pairs(task.units, task.formats, vectors))


def modelled(task, choice, share):
    """The documented objective, written out pair by pair."""
    damage = task.predicted(choice)
    for i, j in itertools.combinations(range(len(choice)), 2):
        damage += share * task.pairs.interaction(i, choice[i], j, choice[j])
    return damage


def feasible_choices(task):
    columns = (np.flatnonzero(row) for row in task.allowed)
    return [c for c in map(np.array, itertools.product(*columns)) if task.feasible(c)]


def test_pairs_are_their_matrix():
    task = paired(3)
    flat = task.pairs.vectors.reshape(15, -1)
    matrix = flat @ flat.T
    for choice in feasible_choices(task)[::7]:
        picked = np.zeros(15)
        picked[np.arange(5) * 3 + choice] = 1
        assert task.pairs.damage(choice) == pytest.approx(picked @ matrix @ picked)
        assert task.pairs.damage(choice) == pytest.approx(modelled(task, choice, 1.0))
    np.testing.assert_allclose(task.pairs.diagonal, task.damage.values)


def test_pairs_are_checked():
    task = random_problem(0)
    with pytest.raises(UsageError, match="pairs of 4 units and 4 formats have vectors of"):
        Pairs(task.units, task.formats, np.ones((4, 3, 2)))
    with pytest.raises(UsageError, match="NaN or infinite"):
        Pairs(task.units, task.formats, np.full((4, 4, 2), np.nan))
    other = Pairs(task.units[:3], task.formats, np.ones((3, 4, 2)))
    with pytest.raises(UsageError, match="the pairs have other units or formats"):
        replace(task, pairs=other)
    with pytest.raises(UsageError, match="the table has other units or formats"):
        other.scaled_to(task.damage)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    units=st.integers(1, 5),
    budgets=st.integers(0, 2),
    tight=st.floats(0, 1),
    rank=st.integers(1, 8),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_local_search_keeps_to_the_model_and_ends_in_a_local_optimum(seed, units, budgets, tight, rank, share):
    task = paired(seed, units, 3, budgets, tight, rank)
    choices = feasible_choices(task)
    assume(choices)
    answer = Quadratic(share=share)(task)
    assert task.feasible(answer.choice)
    found = modelled(task, answer.choice, share)
    assert found == pytest.approx(_Model(task, share).value(answer.choice), rel=1e-9, abs=1e-12)
    assert found <= modelled(task, Ilp()(task).choice, share) * (1 + 1e-9)
    near = [c for c in choices if (c != answer.choice).sum() <= 2]
    assert found <= min(modelled(task, c, share) for c in near) + 1e-8 * abs(found)


def test_restarts_find_the_optimum_of_nearly_every_small_problem():
    missed, count = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        task = paired(seed, int(rng.integers(2, 6)), 3, int(rng.integers(0, 3)), rng.uniform(), int(rng.integers(1, 8)))
        choices = feasible_choices(task)
        if choices:
            best = min(modelled(task, c, 1.0) for c in choices)
            count += 1
            missed += modelled(task, Quadratic(share=1.0)(task).choice, 1.0) > best * (1 + 1e-6)
    assert count > 100
    assert missed <= 0.02 * count


def test_a_large_problem_is_searched_in_parts():
    task = paired(0, units=120, formats=5, rank=16)
    first, second = (Quadratic(restarts=3, share=1.0)(task) for _ in range(2))
    assert (first.choice == second.choice).all()
    assert task.feasible(first.choice)
    assert task.pairs.damage(first.choice) < 0.99 * task.pairs.damage(Ilp()(task).choice)
    late = Quadratic(share=1.0, time_limit=1e-9)(task)
    assert late.status == "time limit"
    assert task.feasible(late.choice)


def test_without_pairs_it_is_the_additive_problem():
    for seed in range(20):
        task = random_problem(seed, units=6, formats=4, budgets=2)
        assert task.predicted(Quadratic()(task).choice) == pytest.approx(task.predicted(Ilp()(task).choice), rel=1e-6)
    task = paired(2)
    assert (Quadratic(share=0.0)(task).choice == Ilp()(task).choice).all()


def test_the_table_gives_the_lengths_and_the_pairs_the_angles():
    task = paired(5)
    other = table(task.damage.values * np.random.default_rng(0).uniform(0.5, 2, task.damage.values.shape))
    task = Problem(other, task.limits, pairs=task.pairs)
    model = _Model(task, 1.0)
    for choice in feasible_choices(task)[::5]:
        expected = task.predicted(choice)
        for i, j in itertools.combinations(range(5), 2):
            u, v = task.pairs.vectors[i, choice[i]], task.pairs.vectors[j, choice[j]]
            cosine = u @ v / np.sqrt((u @ u) * (v @ v))
            expected += 2 * cosine * np.sqrt(other.values[i, choice[i]] * other.values[j, choice[j]])
        assert model.value(choice) == pytest.approx(expected)


def test_choices_that_are_not_allowed_are_never_taken():
    values = np.array([[9.0, np.nan, 0.1], [9.0, 3.0, np.nan]])
    task = problem(values, (np.array([[1.0, 1.0, 5.0], [1.0, 2.0, 1.0]]), 6.5))
    units, formats = task.units, FORMATS[:3]
    task = replace(task, pairs=Pairs(units, formats, np.random.default_rng(0).standard_normal((2, 3, 4))))
    for seed in range(5):
        choice = Quadratic(seed=seed)(task).choice
        assert task.allowed[[0, 1], choice].all()


def test_options_are_checked():
    for options in ({"restarts": -1}, {"share": 1.5}, {"time_limit": 0.0}):
        with pytest.raises(UsageError, match="quadratic needs restarts >= 0, a share from 0 to 1"):
            Quadratic(**options)


def test_a_bound_needs_scip(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(UsageError, match="pip install pyscipopt"):
        Quadratic(bound=True)(paired(0))
    assert Quadratic()(paired(0)).bound is None


def test_scip_proves_a_bound_and_its_answer_counts():
    pytest.importorskip("pyscipopt")
    for seed in range(12):
        task = paired(seed, units=4, budgets=seed % 3, tight=0.6)
        choices = feasible_choices(task)
        if not choices:
            continue
        best = min(modelled(task, c, 1.0) for c in choices)
        answer = Quadratic(share=1.0, restarts=0, bound=True)(task)
        assert answer.status == "optimal"
        assert modelled(task, answer.choice, 1.0) == pytest.approx(best, rel=1e-6)
        assert best * (1 - 1e-5) <= answer.bound <= best * (1 + 1e-9)


def test_a_run_of_the_solver_by_name_has_its_pairs(deconv, monkeypatch):
    model, batches = deconv
    subject = make_subject(model, batches)
    table = OnePass(probes=8)(subject, parse_formats(["w2", "w4", "w8"]))
    seen = []
    asked = Quadratic.__call__
    monkeypatch.setattr(Quadratic, "__call__", lambda self, problem: seen.append(problem) or asked(self, problem))
    solution = mpsearch.search(table, subject.layers, ["bits<=4"], "quadratic", subject)
    (problem,) = seen
    assert problem.pairs.units == problem.units
    assert problem.pairs.vectors.any()
    assert solution.costs["bits"] <= 4
