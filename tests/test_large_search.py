"""The solver for large problems: bounds, answers, near-optimal maps and frontiers, against brute force."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from mpsearch import Budget, InfeasibleBudget, Table, Unit, UsageError
from mpsearch.search import Ilp, Lagrange, core, diverse, knee, pareto, solve
from mpsearch.search.dual import best_prices
from mpsearch.search.lagrange import approach, repaired
from mpsearch.search.relaxation import from_best, relaxed, room, shares
from mpsearch.types import Limit, Problem, parse_formats

FORMATS = parse_formats([f"w{bits}{more}" for bits in range(2, 9) for more in ("", "a8")] + ["fp16", "w6a6"])
COSTS = ("size", "bops", "bits")
seeds = st.integers(0, 10**6)


def problem(damage, costs, limits):
    units = tuple(Unit(f"layer{i}.weight") for i in range(len(damage)))
    formats = FORMATS[: damage.shape[1]]
    tables = [Table(units, formats, values, np.zeros_like(values), "mse", "test") for values in (damage, *costs)]
    budgets = [Budget(cost, limit) for cost, limit in zip(COSTS, limits, strict=False)]
    made = [Limit(budget, made, budget.limit, 1e9) for budget, made in zip(budgets, tables[1:], strict=True)]
    return Problem(tables[0], tuple(made))


def small(seed, budgets, tight=0.4, whole=False):
    """Up to 6 units and 4 formats, some not allowed, costs in any order: anything brute force can judge."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 7), rng.integers(2, 5)
    damage = rng.lognormal(0, rng.choice([0.1, 1, 5]), shape) - rng.choice([0, 2])
    damage[rng.random(shape) < 0.1] = np.nan
    damage[:, 0] = np.where(np.isnan(damage).all(axis=1), 1.0, damage[:, 0])
    costs = [rng.integers(0, 9, shape) * 1.0 if whole else rng.uniform(1, 10, shape) for _ in range(budgets)]
    spread = [(cost.min(axis=1).sum(), cost.max(axis=1).sum()) for cost in costs]
    return problem(damage, costs, [max(low + tight * (high - low), 0.5) for low, high in spread])


def like_real(seed, units, budgets=2, formats=8):
    """Damage falls as 4^-bits, sizes and sensitivities over some decades, limits at four fifths of the mean format."""
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + formats) + rng.uniform(0, 0.3, formats)
    damage = rng.lognormal(0, 1, (units, 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, (units, formats))
    costs = [np.round(rng.lognormal(8, 1, (units, 1)) * bits) for _ in range(budgets)]
    return problem(damage, costs, [0.8 * cost.mean(axis=1).sum() for cost in costs])


def feasible_values(task):
    """(choice, damage) of every feasible map."""
    choices = map(np.array, itertools.product(*(np.flatnonzero(row) for row in task.allowed)))
    return [(choice, task.predicted(choice)) for choice in choices if task.feasible(choice)]


def best_value(task):
    return min((value for _, value in feasible_values(task)), default=np.inf)


def hair(task):
    """Absolute room for rounding: damages may cancel."""
    return 1e-9 * np.nanmax(np.abs(task.damage.values)) * len(task.units)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(0, 3), st.floats(0, 1), st.booleans())
@pytest.mark.parametrize("solver", [Lagrange(), Ilp(), Lagrange(gap=0.0), Lagrange(time_limit=1e-9)], ids=repr)
def test_brute_force_agrees(solver, seed, budgets, tight, whole):
    task = small(seed, budgets, tight, whole)
    best = best_value(task)
    if not np.isfinite(best):
        with pytest.raises(InfeasibleBudget):
            solver(task)
        return
    answer = solver(task)
    value = task.predicted(answer.choice)
    assert task.feasible(answer.choice)
    assert answer.bound <= best + hair(task)
    assert best - hair(task) <= value
    if answer.status == "optimal":
        gains = best - np.nanmin(task.damage.values, axis=1).sum()
        assert value <= best + 1.1e-6 * gains + hair(task)
    assert answer.status == "optimal" or solver.time_limit < 1


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 3), st.sampled_from([(1,), (3,), (1, 2, 4), (1000,)]), st.booleans())
def test_short_stages_and_narrow_passes_prove_nothing_wrong(seed, budgets, widths, known):
    task, _ = from_best(small(seed, budgets, whole=seed % 2 == 0))
    values = feasible_values(task)
    assume(values)
    best = min(value for _, value in values)
    start = relaxed(task, np.random.default_rng(seed).random(budgets))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"STAGE": 2, "STAGES": 100, "BLOCK": 3, "MULTIPLIERS": 4}.items():
            patch.setattr(core, name, value)
        choice, value, bound = core.search_core(task, start, values[0][0] if known else None, 0.0, np.inf, widths)
    assert bound <= best + hair(task)
    assert value >= best - hair(task)
    if choice is not None:
        assert task.feasible(choice)
        assert task.predicted(choice) == pytest.approx(value)
    if widths == (1000,):
        assert value == pytest.approx(best)
        assert bound == pytest.approx(best)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 3))
def test_the_prices_are_those_of_the_linear_program(seed, budgets):
    task, _ = from_best(like_real(seed, 30, budgets))
    costs = shares(task)
    rows = np.kron(np.eye(30), np.ones(8))
    scale = 1e6  # the tolerances of HiGHS are absolute
    exact = linprog(
        scale * task.damage.values.ravel(), costs.reshape(-1, budgets).T, np.ones(budgets), rows, np.ones(30), (0, None)
    )
    assert relaxed(task, best_prices(task, costs)).bound == pytest.approx(exact.fun / scale, rel=1e-8)


@settings(deadline=None, max_examples=15)
@given(seeds, st.floats(0.01, 0.2))
@pytest.mark.parametrize("solver", [Lagrange(), Ilp()], ids=repr)
def test_a_looser_budget_never_raises_damage(solver, seed, more):
    tight = like_real(seed, 40)
    loose = replace(tight, limits=tuple(replace(limit, limit=limit.limit * (1 + more)) for limit in tight.limits))
    assert loose.predicted(solver(loose).choice) <= tight.predicted(solver(tight).choice) * (1 + 1e-6)


@pytest.mark.parametrize("units", [300, 5001])
@pytest.mark.parametrize("solver", [Lagrange(time_limit=1e-9), Ilp(time_limit=1e-9)], ids=repr)
def test_a_time_limit_too_short_returns_the_best_feasible_map_known(solver, units):
    task = like_real(1, units, budgets=3)
    answer = solver(task)
    assert task.feasible(answer.choice)
    assert answer.bound < task.predicted(answer.choice)
    assert answer.status == "time limit"


@pytest.mark.parametrize("solver", [Lagrange(time_limit=1e-9), Ilp(time_limit=1e-9)], ids=repr)
def test_the_time_limit_of_a_solver_that_was_asked_for_holds(solver):
    task = like_real(1, 300, budgets=3)
    assert solve(task, [solver], task.limits).status == "time limit"
    assert solve(task, [], task.limits).status == "optimal"


def test_ilp_leaves_many_thousand_units_to_lagrange():
    task = like_real(1, 5001, budgets=1)
    answer = Ilp(gap=1e-4)(task)
    assert (answer.method, answer.status) == ("lagrange", "optimal")
    assert task.predicted(answer.choice) - answer.bound <= 1e-4 * task.predicted(answer.choice)
    assert Ilp()(like_real(1, 10)).method == "ilp"


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 3), st.booleans())
def test_a_conflict_names_the_smallest_feasible_values(seed, budgets, whole):
    task = small(seed, budgets, tight=0.15, whole=whole)
    assume(not np.isfinite(best_value(task)))
    assume(all(np.isfinite(best_value(replace(task, limits=(limit,)))) for limit in task.limits))
    with pytest.raises(InfeasibleBudget) as caught:
        Lagrange()(task)
    named = {
        name: float(value) for name, value in re.findall(r"(\w+)<=([\d.e+]+)", str(caught.value).partition(": ")[2])
    }
    pairs = (replace(task, limits=pair) for pair in itertools.combinations(task.limits, 2))
    blamed = next((pair for pair in pairs if not np.isfinite(best_value(pair))), task)
    assert set(named) <= {limit.budget.cost for limit in blamed.limits}
    for limit in blamed.limits:
        rest = replace(blamed, limits=tuple(other for other in blamed.limits if other is not limit))
        least = min((limit.of(choice) for choice, _ in feasible_values(rest)), default=None)
        if least is None:
            assert limit.budget.cost not in named
        else:
            assert np.ceil(least - 1e-6) - 1e-6 <= named[limit.budget.cost] <= np.ceil(least + 1e-6) + 1e-6


def test_prices_stop_where_rounding_begins():
    """The dual is flat in the price of a budget that the relaxed choice just uses up."""
    task = small(5102, 3, tight=0.5, whole=True)
    task = from_best(replace(task, limits=(*task.limits[:2], replace(task.limits[2], limit=9.0))))[0]
    start, _ = approach(task)
    assert start.prices.max() < 1e9
    assert start.bound <= best_value(task)


def test_a_budget_of_nothing_is_met_by_what_costs_nothing():
    damage, costs = np.array([[5.0, 1.0, 0.0]] * 2), np.array([[0.0, 0.0, 3.0]] * 2)
    task = problem(damage, [costs], [0.0])
    assert Lagrange()(task).choice.tolist() == [1, 1]
    assert [task.predicted(answer.choice) for answer in pareto(task, points=5)] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_lagrange_and_ilp_agree_on_hundreds_of_units_and_repeat_themselves(seed):
    task = like_real(seed, 300, budgets=1 + seed % 3)
    first, again, exact = Lagrange()(task), Lagrange()(task), Ilp()(task)
    assert (first.choice == again.choice).all()
    assert first.bound == again.bound
    assert first.status == exact.status == "optimal"
    assert task.predicted(first.choice) == pytest.approx(task.predicted(exact.choice), rel=2e-6)
    assert first.method == "lagrange"


def test_thousands_of_units_are_certified():
    task = like_real(0, 5000, budgets=3, formats=16)
    answer = Lagrange(gap=1e-4)(task)
    assert task.feasible(answer.choice)
    assert answer.status == "optimal"
    assert task.predicted(answer.choice) - answer.bound <= 1e-4 * task.predicted(answer.choice)


def test_a_repair_meets_the_budgets_and_uses_what_they_leave():
    task, _ = from_best(like_real(1, 200, budgets=3))
    start, best = approach(task)
    fixed = repaired(task, start)
    assert task.feasible(fixed)
    assert task.predicted(fixed) == task.predicted(best)
    for unit, column in itertools.product(range(200), range(8)):
        other = fixed.copy()
        other[unit] = column
        assert task.predicted(other) >= task.predicted(fixed) or not task.feasible(other)


def test_formats_that_are_nowhere_better_do_no_harm():
    """Equal units and equal formats: without dropping the copies, every map would have a crowd of twins."""
    once = like_real(2, 60, budgets=1, formats=4)
    damage, costs = (np.tile(table.values, 2) for table in (once.damage, once.limits[0].costs))
    damage[:, 4:6] *= 1.5
    twice = problem(damage, [costs], [once.limits[0].limit])
    answer = Lagrange()(twice)
    assert answer.status == "optimal"
    assert twice.predicted(answer.choice) == pytest.approx(once.predicted(Lagrange()(once).choice), rel=2e-6)


def test_whole_costs_leave_whole_room():
    task = problem(np.array([[3.0, 1.0, 0.0]]), [np.array([[8.0, 16.0, 24.0]])], [23.9])
    assert room(task).tolist() == [16.0]
    assert shares(task)[0, :, 0].tolist() == [0.5, 1.0, 1.5]
    fractions = problem(np.ones((1, 2)), [np.array([[1.5, 2.0]])], [3.9])
    assert room(fractions) == pytest.approx([3.9])


def test_costs_of_what_is_not_allowed_may_be_missing():
    damage = np.array([[9.0, np.nan, 0.1], [9.0, 3.0, np.nan]])
    costs = np.array([[1.0, np.nan, 5.0], [1.0, 2.0, np.nan]])
    assert Lagrange()(problem(damage, [costs], [3.0])).choice.tolist() == [0, 1]
    assert Lagrange()(problem(damage, [costs], [7.0])).choice.tolist() == [2, 1]


@pytest.mark.parametrize("options", [{"gap": -1.0}, {"time_limit": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(UsageError, match="lagrange needs gap >= 0 and time_limit > 0"):
        Lagrange(**options)


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 3), st.sampled_from([0.05, 0.2]))
def test_diverse_maps_are_feasible_near_optimal_and_different(seed, budgets, slack):
    task = like_real(seed, 60, budgets)
    found = diverse(task, 4, slack, seed)
    best = task.predicted(Ilp()(task).choice)
    assert task.predicted(found[0]) == best
    assert all(task.feasible(choice) for choice in found)
    assert all(task.predicted(choice) <= best * (1 + slack) * (1 + 1e-8) for choice in found)
    assert 2 <= len(found) <= 4  # as a rule 4; no proof is asked of a further one
    assert all((one != other).mean() > 0.1 for one, other in itertools.combinations(found, 2))
    again = diverse(task, 4, slack, seed)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(0, 3), st.sampled_from([0.0, 0.3, 10.0]))
def test_diverse_maps_of_tiny_problems(seed, budgets, slack):
    task = small(seed, budgets, tight=0.6)
    values = feasible_values(task)
    assume(values)
    found, best = diverse(task, 5, slack), min(value for _, value in values)
    assert task.predicted(found[0]) <= best + 1e-5 * np.ptp(task.damage.values[task.allowed]) + hair(task)
    assert len({tuple(choice) for choice in found}) == len(found)
    for choice in found:
        assert task.feasible(choice)
        assert task.predicted(choice) <= task.predicted(found[0]) + slack * abs(task.predicted(found[0])) + hair(task)


def test_diverse_checks_its_options():
    with pytest.raises(UsageError, match="diverse needs count >= 1 and slack >= 0"):
        diverse(like_real(0, 5), 0)


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(1, 3), st.booleans())
def test_a_frontier_of_tiny_problems_is_that_of_brute_force(seed, budgets, whole):
    task = small(seed, budgets, tight=0.5, whole=whole)
    varied = task.limits[-1]
    others = replace(task, limits=task.limits[:-1])
    values = feasible_values(others)
    assume(values)
    found = pareto(task, [budgets - 1], points=12)
    costs = [varied.of(answer.choice) for answer in found]
    damages = [task.predicted(answer.choice) for answer in found]
    assert all(answer.status == "optimal" and others.feasible(answer.choice) for answer in found)
    assert (np.diff(costs) > 0).all()
    assert (np.diff(damages) < 0).all()
    for cost, damage, answer in zip(costs, damages, found, strict=True):
        best = min(value for choice, value in values if varied.of(choice) <= cost * (1 + 1e-9))
        gains = best - np.nanmin(task.damage.values, axis=1).sum()
        assert best - hair(task) <= damage <= best + 1.1e-6 * gains + hair(task)
        assert answer.bound <= best + hair(task)
    assert costs[0] == pytest.approx(min(varied.of(choice) for choice, _ in values), rel=1e-5)
    assert damages[-1] == pytest.approx(min(value for _, value in values), rel=1e-5, abs=hair(task))


@pytest.mark.parametrize("budgets", [1, 2])
def test_every_point_of_a_frontier_is_the_exact_answer_for_its_cost(budgets):
    task = like_real(3, 80, budgets)
    found = pareto(task, points=10)
    assert len(found) == 10
    assert {answer.method for answer in found} == {"pareto"}
    for answer in found:
        limit = replace(task.limits[0], limit=task.limits[0].of(answer.choice))
        exact = replace(task, limits=(limit, *task.limits[1:]))
        assert answer.status == "optimal"
        assert task.predicted(answer.choice) == pytest.approx(task.predicted(Ilp()(exact).choice), rel=1e-6)
    again = pareto(task, points=10)
    assert all((one.choice == other.choice).all() for one, other in zip(found, again, strict=True))


@settings(deadline=None, max_examples=25)
@given(seeds, st.booleans())
def test_no_map_beats_a_point_of_a_surface_in_both_costs(seed, whole):
    task = small(seed, 2, tight=0.5, whole=whole)
    values = feasible_values(replace(task, limits=()))
    found = pareto(task, [0, 1], points=25)
    spent = [[limit.of(answer.choice) for limit in task.limits] for answer in found]
    assert len(found) <= 25
    assert spent == sorted(spent)
    gains = task.predicted(found[0].choice) - np.nanmin(task.damage.values, axis=1).sum()
    for answer, costs in zip(found, spent, strict=True):
        within = [v for c, v in values if all(o.of(c) <= s for o, s in zip(task.limits, costs, strict=True))]
        assert task.predicted(answer.choice) <= min(within) + 1.1e-6 * abs(gains) + hair(task)
    assert min(task.predicted(a.choice) for a in found) == pytest.approx(min(v for _, v in values), abs=hair(task))


def test_a_frontier_needs_a_limit_and_two_points():
    task = like_real(0, 5, budgets=1)
    with pytest.raises(UsageError, match="no frontier over limit 1: the problem has 1"):
        pareto(task, [1])
    with pytest.raises(UsageError, match="a frontier of 1 points over 1 costs: ask for at least 2"):
        pareto(task, points=1)


def test_a_frontier_cut_short_says_so():
    task = like_real(1, 300)
    found = pareto(task, points=5, time_limit=1e-9)
    assert found
    assert all(replace(task, limits=task.limits[1:]).feasible(answer.choice) for answer in found)
    for answer in found:
        value = task.predicted(answer.choice)
        assert answer.bound <= value
        assert answer.status == ("optimal" if value - answer.bound <= 1e-6 * value else "time limit")


def test_the_knee_is_the_corner():
    costs = np.arange(1.0, 12.0)
    assert knee(costs, [10.0**-i for i in range(5)] + [10**-4.1 - i * 1e-7 for i in range(6)]) == 4
    assert knee([1, 2, 3], [1e3, 10.0, 0.0]) == 1
    assert knee([5.0], [1.0]) == 0
    assert knee([1.0, 2.0], [0.0, 0.0]) == 0
    with pytest.raises(UsageError, match="as many damages as costs"):
        knee([1.0], [])


def test_the_knee_of_a_surface_takes_the_mean_of_its_costs():
    costs = [[0, 0], [0, 10], [10, 0], [10, 10], [3, 3]]
    assert knee(costs, [1.0, 0.5, 0.5, 1e-4, 2e-4]) == 4
    with pytest.raises(UsageError, match="a knee needs as many damages as costs, not 1 and 5"):
        knee(costs, [1.0])
