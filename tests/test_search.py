import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpsearch import Budget, InfeasibleBudget, Table, Unit, UsageError
from mpsearch.search import SOLVERS, Bayes, Ilp, Refine, Singles, SizeOnly, Uniform, core, solve
from mpsearch.search.diverse import diverse
from mpsearch.search.relaxation import relaxed
from mpsearch.types import Format, Limit, Measured, Problem, parse_formats

FORMATS = parse_formats(["w2", "w3", "w4", "w6", "w8"])


def table(values, measure="mse", constant=0.0):
    values = np.asarray(values, float)
    units = tuple(Unit(f"layer{i}.weight") for i in range(len(values)))
    return Table(units, FORMATS[: values.shape[1]], values, np.zeros_like(values), measure, "test", constant)


def problem(damage, *limits, evaluate=None):
    made = []
    for cost, (costs, limit) in zip(("bits", "bops", "size"), limits, strict=False):
        made.append(Limit(Budget(cost, limit), table(costs), limit, 100.0))
    return Problem(table(damage), tuple(made), evaluate)


def random_problem(seed, units=4, formats=4, budgets=1, tight=0.5, evaluate=None):
    rng = np.random.default_rng(seed)
    damage = np.sort(rng.lognormal(0, 3, (units, formats)), axis=1)[:, ::-1].copy()
    limits = []
    for _ in range(budgets):
        costs = np.sort(rng.uniform(1, 10, (units, formats)), axis=1)
        low, high = costs[:, 0].sum(), costs[:, -1].sum()
        limits.append((costs, low + tight * (high - low)))
    return problem(damage, *limits, evaluate=evaluate)


def brute_force(task):
    best = np.inf
    for choice in itertools.product(*(np.flatnonzero(row) for row in task.allowed)):
        if task.feasible(np.array(choice)):
            best = min(best, task.predicted(np.array(choice)))
    return best


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    units=st.integers(1, 6),
    formats=st.integers(1, 4),
    budgets=st.integers(0, 2),
    tight=st.floats(0, 1),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
)
def test_ilp_is_brute_force(seed, units, formats, budgets, tight, scale):
    task = random_problem(seed, units, formats, budgets, tight)
    task = Problem(table(task.damage.values * scale), task.limits)
    best = brute_force(task)
    assume(np.isfinite(best))
    answer = Ilp()(task)
    assert task.feasible(answer.choice)
    assert task.predicted(answer.choice) == pytest.approx(best, rel=1e-6)
    assert answer.status == "optimal"
    assert answer.bound <= best * (1 + 1e-9)
    assert answer.bound >= best - 2e-6 * max(best, 1e-300) - 1e-6 * (
        task.damage.values.max() - task.damage.values.min()
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    budgets=st.integers(1, 3),
    width=st.sampled_from([1, 3, 1000]),
    price=st.sampled_from([0.0, 0.3, 30.0]),
    known=st.booleans(),
)
def test_the_core_bounds_and_answers_whatever_the_prices(seed, budgets, width, price, known):
    task = random_problem(seed, 6, 4, budgets, 0.4)
    best = brute_force(task)
    assume(np.isfinite(best))
    start = relaxed(task, np.full(budgets, price))
    cheapest = task.limits[0].costs.values.argmin(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "WIDTHS", (width,))
        choice, value, bound = core.search_core(task, start, cheapest if known else None, 0.0, np.inf)
    assert bound <= best * (1 + 1e-9)
    assert value >= best * (1 - 1e-9)
    if width == 1000:
        assert choice is not None
        assert task.feasible(choice)
        assert task.predicted(choice) == value == pytest.approx(best)
        assert bound == pytest.approx(best)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 0.9), st.floats(0.01, 0.1))
def test_a_looser_budget_never_raises_damage(seed, tight, more):
    tighter = random_problem(seed, tight=tight)
    looser = random_problem(seed, tight=tight + more)
    assert looser.predicted(Ilp()(looser).choice) <= tighter.predicted(Ilp()(tighter).choice) * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(2.2, 5.0))
def test_ilp_is_exact_over_many_orders_of_magnitude(seed, limit):
    """Damages of real generators: four decades between w2 and w8, and as many between layers."""
    rng = np.random.default_rng(seed)
    bits = np.array([f.bits for f in FORMATS], float)
    damage = rng.lognormal(0, 4, (6, 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, (6, 5))
    sizes = rng.integers(10, 10**6, 6)
    task = problem(damage, (np.outer(sizes, bits) / sizes.sum(), limit))
    best = brute_force(task)
    answer = Ilp()(task)
    assert task.predicted(answer.choice) == pytest.approx(best, rel=1e-6)
    assert best * (1 - 3e-6) <= answer.bound <= best * (1 + 1e-6)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(2, 3), st.floats(0.05, 0.5), st.sampled_from([0.0, 1e6]))
def test_several_tight_budgets_are_met_whenever_they_can_be(seed, budgets, tight, offset):
    """Unsorted costs: the cheapest format of one budget is dear in another, so that no start is feasible at first."""
    rng = np.random.default_rng(seed)
    limits = []
    for _ in range(budgets):
        costs = rng.uniform(1, 10, (4, 4))
        limits.append((costs, costs.min(1).sum() + tight * (costs.max(1).sum() - costs.min(1).sum())))
    task = problem(rng.random((4, 4)) + offset, *limits)
    best = brute_force(task)
    if np.isfinite(best):
        answer = Ilp()(task)
        assert task.predicted(answer.choice) == pytest.approx(best, rel=1e-6)
        assert answer.bound <= best * (1 + 1e-9)
    else:
        with pytest.raises(InfeasibleBudget, match="cannot be met"):
            Ilp()(task)


def test_damages_over_twenty_decades_and_a_time_limit():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        costs = rng.uniform(1, 10, (6, 4))
        task = problem(10 ** rng.uniform(0, 20, (6, 4)), (costs, costs.mean() * 6))
        assert task.predicted(Ilp()(task).choice) == pytest.approx(brute_force(task), rel=1e-5)
    task = random_problem(0, units=200, formats=4, budgets=2, tight=0.3)
    answer = Ilp(time_limit=0.01)(task)
    assert task.feasible(answer.choice)
    assert answer.bound <= task.predicted(answer.choice)


def test_a_budget_met_exactly_is_met_beside_tiny_layers():
    sizes, bits = np.array([16_000_000, 8, 8, 8]), np.array([2.0, 3.0, 4.0])
    costs = np.outer(sizes, bits) / sizes.sum()
    task = problem(np.outer(np.ones(4), 4.0**-bits), (costs, 2.0))
    assert Ilp()(task).choice.tolist() == [0, 0, 0, 0]


def test_choices_that_are_not_allowed_are_never_taken():
    damage = np.array([[9.0, np.nan, 0.1], [9.0, 3.0, np.nan]])
    costs = np.array([[1.0, 1.0, 5.0], [1.0, 2.0, 1.0]])
    answer = Ilp()(problem(damage, (costs, 100)))
    assert answer.choice.tolist() == [2, 1]


def test_a_budget_that_cannot_be_met_says_the_smallest_feasible_value():
    costs = np.array([[2.0, 4.0], [2.5, 8.0]])
    for solver in (Ilp(), SizeOnly(), Uniform(), Bayes(), Refine()):
        with pytest.raises(InfeasibleBudget, match=r"^bits<=4 cannot be met: the smallest feasible value is bits<=5$"):
            solver(problem(np.ones((2, 2)), (costs, 4)))


def test_the_stated_value_is_itself_feasible():
    rng = np.random.default_rng(3)
    costs = rng.uniform(1, 9, (7, 3))
    full = 321.7
    tables = table(costs, "bytes", constant=17.3)
    damage = table(np.ones((7, 3)))
    for budget in (Budget("size", 0.01, True), Budget("size", 3.0)):
        task = Problem(damage, (Limit(budget, tables, budget.absolute(full), full),))
        with pytest.raises(InfeasibleBudget) as caught:
            Ilp()(task)
        again = Budget.parse(str(caught.value).split("smallest feasible value is ")[1])
        Ilp()(Problem(damage, (Limit(again, tables, again.absolute(full), full),)))


def test_budgets_that_conflict_name_the_pair():
    first = np.array([[1.0, 9.0]])
    second = np.array([[9.0, 1.0]])
    with pytest.raises(InfeasibleBudget, match=r"bits<=5 and bops<=5 cannot be met together: .* is bits<=9 or bops<=9"):
        Ilp()(problem([[1.0, 1.0]], (first, 5), (second, 5)))


def rugged(task_bits):
    """A true error in which neighbouring layers interact: no sum of single damages."""

    def evaluate(bitmap):
        bits = np.array([format.bits for format in bitmap.values()], float)
        errors = 2.0**-bits
        return Measured(float((errors[:-1] - errors[1:]) @ (errors[:-1] - errors[1:]) + 0.01 * errors @ errors), 0.0, 8)

    return evaluate


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_keeps_the_contract(name):
    """A new solver in the registry is tested here: feasible, deterministic, NaN respected, starting points kept."""
    solver = SOLVERS[name]()
    task = random_problem(5, units=6, formats=5, budgets=2, tight=0.4, evaluate=rugged(None))
    start = Ilp()(task).choice
    values = task.damage.values.copy()
    column = next(c for c in range(5) if c != start[0])
    values[0, column] = np.nan
    task = Problem(table(values), task.limits, task.evaluate, (start,))
    answers = [solver(task) for _ in range(2)]
    assert (answers[0].choice == answers[1].choice).all()
    assert task.feasible(answers[0].choice)
    assert answers[0].choice[0] != column
    assert answers[0].method == name
    if name in ("refine", "bayes"):
        assert task.true_error(answers[0].choice) <= task.true_error(start)


@pytest.mark.parametrize("name", ["refine", "bayes", "singles"])
def test_searches_on_the_truth_need_a_generator_and_keep_to_their_evaluations(name):
    with pytest.raises(UsageError, match="needs a generator"):
        SOLVERS[name]()(random_problem(1))
    calls = []

    def evaluate(bitmap):
        calls.append(bitmap.key)
        return rugged(None)(bitmap)

    SOLVERS[name](evaluations=7)(random_problem(2, units=6, formats=5, evaluate=evaluate))
    assert len(set(calls)) <= 7


def test_refine_escapes_what_addition_cannot_see():
    bits = np.array([[f.bits for f in FORMATS]] * 6, float)
    damage = 4.0**-bits * np.array([1, 30, 1, 30, 1, 30])[:, None]
    task = problem(damage, (bits / 6, 4.0), evaluate=rugged(None))
    exact, refined = Ilp()(task), Refine(evaluations=150)(task)
    assert task.true_error(refined.choice) < 0.5 * task.true_error(exact.choice)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_no_answer_is_worse_than_the_best_feasible_uniform_map(seed, tight):
    task = random_problem(seed, units=5, formats=4, tight=tight, evaluate=rugged(None))
    solution = solve(task, (), task.limits)
    maps = [np.full(5, column) for column in range(4)]
    feasible = [task.true_error(choice) for choice in maps if task.feasible(choice)]
    if feasible:
        assert solution.error.value <= min(feasible)
        assert solution.baselines["uniform"].error.value == min(feasible)
    assert solution.costs["bits"] <= task.limits[0].limit * (1 + 1e-9)


def test_the_best_uniform_map_is_known_beside_a_far_better_answer():
    formats = tuple(map(Format.parse, ("w4", "w4z", "w3")))
    units = (Unit("a.weight"), Unit("b.weight"))
    values = np.array([[1.0, 1.1, 2.0], [1.1, 1.0, 2.0]])
    truth = {("w4", "w4"): 2.0, ("w4z", "w4z"): 1.5, ("w3", "w3"): 1.9, ("w4", "w4z"): 0.01}

    def race(bitmap, rival):
        value = truth[tuple(str(format) for format in bitmap.values())]
        return Measured(value, 0.0, 1 if value > rival.value else 4)

    def evaluate(bitmap):
        return race(bitmap, Measured(np.inf, 0.0, 4))

    bits = Table(units, formats, np.tile([2.0, 2.0, 1.5], (2, 1)), np.zeros((2, 3)), "bits", "test")
    limit = Limit(Budget("bits", 4), bits, 4.0, 32.0)
    task = Problem(Table(units, formats, values, np.zeros((2, 3)), "mse", "test"), (limit,), evaluate, race=race)
    solution = solve(task, (), task.limits)
    assert solution.error.value == 0.01
    assert solution.baselines["uniform"].error.value == 1.5


def test_uniform_maps_coarser_than_one_without_hope_are_not_run():
    formats = tuple(map(Format.parse, ("w4", "w3", "w3a8", "w4z")))
    units = (Unit("a.weight"), Unit("b.weight"))
    truth = {"w4": 2.0, "w3": 2.4, "w3a8": 2.4, "w4z": 1.9}
    asked = []

    def race(bitmap, rival):
        asked.append({str(format) for format in bitmap.values()}.pop())
        value = truth[asked[-1]]
        return Measured(value, 0.0, 1 if value > rival.value else 4)

    def evaluate(bitmap):
        return race(bitmap, Measured(np.inf, 0.0, 4))

    damage = Table(units, formats, np.tile([1.0, 1.1, 1.2, 1.3], (2, 1)), np.zeros((2, 4)), "mse", "test")
    assert Uniform()(Problem(damage, (), evaluate, race=race)).choice.tolist() == [3, 3]
    assert asked == ["w4", "w3", "w4z"], "w3a8 is coarser than w3, w4z is not"


def test_uniform_falls_back_to_weights_where_activations_cannot_be_quantized():
    formats = (Format.parse("w4a8"), Format.parse("w4"))
    values = np.array([[1.0, np.nan], [np.nan, 1.0]])
    units = (Unit("a.weight"), Unit("b.weight"))
    task = Problem(Table(units, formats, values, np.zeros((2, 2)), "mse", "test"), ())
    assert Uniform()(task).choice.tolist() == [0, 1]


def test_size_only_ignores_the_damage_and_favours_small_layers():
    bits = np.array([f.bits for f in FORMATS], float)
    sizes = np.array([1000, 10, 10, 10])
    costs = np.outer(sizes, bits) / sizes.sum()
    first = SizeOnly()(problem(np.random.default_rng(0).random((4, 5)), (costs, 3.9))).choice
    second = SizeOnly()(problem(np.random.default_rng(1).random((4, 5)), (costs, 3.9))).choice
    assert (first == second).all()
    assert (bits[first[1:]] > bits[first[0]]).all()


def test_problems_check_their_tables():
    with pytest.raises(UsageError, match="other units or formats"):
        problem(np.ones((2, 3)), (np.ones((2, 2)), 1.0))
    with pytest.raises(UsageError, match=r"layer0.weight can take none"):
        problem(np.array([[np.nan, np.nan]]))
    with pytest.raises(UsageError, match="infinite values"):
        problem(np.array([[np.inf, 1.0]]))
    with pytest.raises(UsageError, match="lacks a choice"):
        problem(np.ones((1, 2)), (np.array([[1.0, np.nan]]), 5.0))


class Squared:
    """Damage is the squared length of a sum of vectors, one a unit: all pair terms are there, and slopes are exact."""

    def __init__(self, seed, units=6, dimensions=5, together=1.0):
        rng = np.random.default_rng(seed)
        scale = 2.0 ** -np.array([f.bits for f in FORMATS]) * rng.lognormal(0, 0.5, (units, 1))
        common = rng.normal(size=dimensions)
        self.vectors = (rng.normal(size=(units, len(FORMATS), dimensions)) + together * common) * scale[:, :, None]
        self.asked = []
        damage = np.square(self.vectors).sum(axis=2)
        bits = np.array([[f.bits for f in FORMATS]] * units, float) / units
        task = problem(damage, (bits, 4.0), evaluate=self.evaluate)
        self.task = Problem(task.damage, task.limits, self.evaluate, slopes=self.slopes)

    def _residual(self, bitmap):
        columns = [FORMATS.index(bitmap[f"layer{i}.weight"]) for i in range(len(self.vectors))]
        return columns, self.vectors[np.arange(len(columns)), columns].sum(axis=0)

    def evaluate(self, bitmap):
        self.asked.append(bitmap.key)
        return Measured(float(np.square(self._residual(bitmap)[1]).sum()), 0.0, 1)

    def slopes(self, bitmap):
        columns, residual = self._residual(bitmap)
        now = self.vectors[np.arange(len(columns)), columns]
        return 2 * (self.vectors - now[:, None]) @ residual

    def best(self):
        choices = map(np.array, itertools.product(range(len(FORMATS)), repeat=len(self.vectors)))
        return min(self.task.true_error(choice) for choice in choices if self.task.feasible(choice))


def test_slopes_lead_refine_to_the_optimum_that_the_table_does_not_see():
    within_a_tenth, ilp = 0, 0
    for seed in range(12):
        truth = Squared(seed)
        best = truth.best()
        truth.asked.clear()
        found = Refine(evaluations=60)(truth.task)
        assert len(set(truth.asked)) <= 60
        assert truth.task.feasible(found.choice)
        within_a_tenth += truth.task.true_error(found.choice) <= 1.1 * best
        ilp += truth.task.true_error(Ilp()(truth.task).choice) <= 1.1 * best
    assert within_a_tenth >= 10 > ilp


def test_slopes_save_evaluations():
    """Led by slopes, a few maps do; by the table alone, it takes a walk."""
    led, blind = [], []
    for seed in range(8):
        for evaluations, slopes in ((8, True), (8, False)):
            truth = Squared(seed)
            task = truth.task if slopes else Problem(truth.task.damage, truth.task.limits, truth.evaluate)
            (led if slopes else blind).append(task.true_error(Refine(evaluations=evaluations)(task).choice))
    assert np.mean(np.log(led)) < np.mean(np.log(blind)) - 0.05


def test_refine_without_gradients_goes_by_the_table():
    truth = Squared(3)
    task = Problem(truth.task.damage, truth.task.limits, truth.evaluate, slopes=lambda bitmap: None)
    plain = Problem(truth.task.damage, truth.task.limits, truth.evaluate)
    assert (Refine()(task).choice == Refine()(plain).choice).all()


def test_more_starts_are_never_worse():
    for seed in range(4):
        truth = Squared(seed, together=3.0)
        one = truth.task.true_error(Refine(evaluations=300)(truth.task).choice)
        four = truth.task.true_error(Refine(evaluations=300, restarts=4, others=4)(truth.task).choice)
        assert four <= one


@pytest.mark.parametrize(("effect", "spent"), [(1e-4, 1 + 8), (0.1, 1 + 32)])
def test_refine_ends_where_moves_do_not_matter(effect, spent):
    """The exact solution is the best map; every other one is worse, by next to nothing or by a tenth."""
    bits = np.array([[f.bits for f in FORMATS]] * 12, float) / 12
    damage = 4.0 ** -np.array([[f.bits for f in FORMATS]] * 12, float)
    plain = problem(damage, (bits, 4.0))
    best = plain.bitmap(Ilp()(plain).choice)
    tried = set()

    def evaluate(bitmap, rival=None):
        tried.add(bitmap)
        return Measured(1.0 if bitmap == best else 1.0 + effect, 0.0, 1)

    answer = Refine(evaluations=500)(replace(plain, evaluate=evaluate))
    assert plain.bitmap(answer.choice) == best
    assert len(tried) == spent


@pytest.mark.parametrize("times", [5.0, 50.0])
def test_refine_does_not_descend_from_afar(times):
    """A start many times as bad as the first makes room for a near-optimal map of the table."""
    truth, asked = Squared(1), []
    near, other = diverse(truth.task, 2)
    far = truth.task.bitmap(np.zeros_like(near))

    def evaluate(bitmap, rival=None):
        asked.append(bitmap)
        return Measured(times if bitmap == far else 1.0, 0.0, 1)

    Refine(restarts=2)(replace(truth.task, evaluate=evaluate, starts=(near, np.zeros_like(near))))
    assert (truth.task.bitmap(other) in asked[2:4]) == (times > 10)


def test_refine_doubts_what_a_few_samples_say():
    """One map is better on all inputs, another looks better still, but only for one of them."""
    bits = np.array([[f.bits for f in FORMATS[:2]]] * 2, float) / 2
    start = np.full(8, 1.0)
    errors = {(0, 1): start, (1, 0): start - 0.1, (0, 0): start + 1.0}
    lucky = start.copy()
    lucky[0] = 0.0

    def evaluate(bitmap, rival=None):
        key = tuple(FORMATS.index(format) for format in bitmap.values())
        samples = errors[key]
        return Measured(float(samples.mean()), 0.0, len(samples), samples=tuple(samples))

    task = problem([[2.0, 1.0], [3.0, 1.0]], (bits, 2.5), evaluate=evaluate)
    assert Ilp()(task).choice.tolist() == [0, 1]
    assert Refine()(task).choice.tolist() == [1, 0]
    errors[1, 0] = lucky
    assert lucky.mean() < start.mean() - 0.1
    assert Refine(doubt=0.0)(task).choice.tolist() == [1, 0]
    assert Refine()(task).choice.tolist() == [0, 1]


def test_a_doubted_error_is_worse_by_what_its_samples_disagree():
    base, sure, unsure = (
        Measured(sum(e) / 4, 0.0, 4, samples=e) for e in ((2.0, 2, 2, 2), (1.0, 1, 1, 1), (-1.0, 1, 2, 2))
    )
    assert sure.doubted(base, 2.0) == 1.0
    assert sure.doubted(base, 50.0) == 1.0, "beyond what a float can hold of a probability"
    stderr = np.std([-3, -1, 0, 0], ddof=1) / 2
    assert unsure.doubted(base, 0.0) == 1.0
    assert unsure.doubted(base, 1.6449) == pytest.approx(1 + 2.3534 * stderr, rel=1e-3), "Student: 95 % of 4 samples"
    many = [Measured(1.0, 0.0, 400, samples=100 * own.samples) for own in (base, unsure)]
    assert many[1].doubted(many[0], 1.6449) == pytest.approx(
        1 + 1.6449 * stderr / 10 * np.sqrt(400 / 399 * 3 / 4), rel=5e-3
    )
    assert Measured(0.1, 0.0, 2, samples=(0.1, 0.1)).doubted(base, 0.0) == np.inf, "given up half way"
    assert Measured(0.1, 0.0, 4).doubted(base, 2.0) == 0.1, "nothing is known of its samples"


def test_singles_stand_on_measured_cells():
    """The table says that layer 0 is safe at two bits; it is not."""
    bits = np.array([[f.bits for f in FORMATS]] * 4, float) / 4
    told = np.array([[0.1, 0.05, 0.02, 0.01, 0.0]] + [[4.0, 2.0, 1.0, 0.5, 0.1]] * 3)
    true = told.copy()
    true[0] = [50.0, 5.0, 0.02, 0.01, 0.0]
    measured = []

    def evaluate(bitmap):
        measured.append(bitmap)
        columns = {name: FORMATS.index(format) for name, format in bitmap.items()}
        return Measured(sum(true[int(name[5])][column] for name, column in columns.items()), 0.0, 1)

    task = problem(told, (bits, 4.0), evaluate=evaluate)
    answer = Singles()(task)
    assert Ilp()(task).choice[0] < 2 <= answer.choice[0]
    assert answer.status == "stands on measured cells"
    assert all(len(bitmap) == 1 for bitmap in measured)
    assert len(measured) <= 32
    short = Singles(evaluations=4)(task)
    assert short.status == "feasible"
    assert task.feasible(short.choice)
    none = Singles(evaluations=1)(task)
    assert none.status == "4 units are too many to measure"
    assert none.choice.tolist() == Ilp()(task).choice.tolist()


def test_singles_doubt_what_was_not_measured():
    """The table calls two bits in layer 0 too dear to be taken; they are cheap, which only a measurement shows."""
    bits = np.array([[f.bits for f in FORMATS]] * 2, float) / 2
    told = np.array([[2.0, 1.0, 0.5, 0.3, 0.0], [3.0, 2.0, 1.5, 0.8, 0.0]])
    true = told.copy()
    true[0, 0] = 0.8

    def evaluate(bitmap):
        columns = {name: FORMATS.index(format) for name, format in bitmap.items()}
        return Measured(sum(true[int(name[5])][column] for name, column in columns.items()), 0.0, 1)

    task = problem(told, (bits, 5.0), evaluate=evaluate)
    assert Singles(doubt=0.0)(task).choice.tolist() == Ilp()(task).choice.tolist() == [2, 3]
    assert Singles()(task).choice.tolist() == [0, 4] == Ilp()(problem(true, (bits, 5.0))).choice.tolist()


@pytest.mark.parametrize("options", [{"evaluations": 0}, {"doubt": 1.0}, {"doubt": -0.1}])
def test_singles_refuse_nonsense(options):
    with pytest.raises(UsageError, match="at least 1 evaluation and a doubt"):
        Singles(**options)
