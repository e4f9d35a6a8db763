"""``bayes``: two samplers, stored searches, tuned trials."""

from dataclasses import replace

import numpy as np
import pytest
from test_search import problem, random_problem, rugged

from mpsearch import ArtifactError, UsageError
from mpsearch.config import RunConfig
from mpsearch.registry import make
from mpsearch.run import Run
from mpsearch.search import SOLVERS, Bayes
from mpsearch.types import Measured


class Counting:
    """A true error that keeps a list of what it was asked."""

    def __init__(self, evaluate=None):
        self.evaluate, self.keys = evaluate or rugged(None), []

    def __call__(self, bitmap):
        self.keys.append(bitmap.key)
        return self.evaluate(bitmap)


def task_with(evaluate, tight=0.5):
    return random_problem(4, units=5, formats=4, budgets=2, tight=tight, evaluate=evaluate)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_spend_their_evaluations_and_beat_their_start(sampler):
    counting = Counting()
    task = task_with(counting)
    solver = make("solver", SOLVERS, "bayes", {"sampler": sampler, "evaluations": 40})
    answer = solver(task)
    assert len(counting.keys) == len(set(counting.keys)) <= 40
    assert task.feasible(answer.choice)
    assert (solver(task).choice == answer.choice).all()
    worst = task_with(rugged(None), tight=0.8)
    start = np.array([0, 3, 0, 3, 0])
    found = solver(replace(worst, starts=(start,)))
    assert worst.true_error(found.choice) < 0.5 * worst.true_error(start)


def test_the_front_holds_all_trade_offs_that_were_met():
    counting = Counting()
    task = task_with(counting, tight=0.9)
    front = Bayes(sampler="nsga2", evaluations=80).front(task)
    met = set(counting.keys)
    assert len(front) > 3
    points = []
    for choice, error in front:
        assert task.feasible(choice)
        assert task.bitmap(choice).key in met
        assert error == task.true_error(choice)
        points.append((*(limit.of(choice) for limit in task.limits), error))
    for one in points:
        assert not any(all(b <= a for a, b in zip(one, other, strict=True)) and other != one for other in points)
    best = Bayes(sampler="nsga2", evaluations=80)(task)
    assert min(error for _, error in front) == task.true_error(best.choice)


@pytest.mark.parametrize(("sampler", "kind"), [("tpe", "journal"), ("nsga2", "journal"), ("tpe", "url")])
def test_a_stored_search_continues_and_repeats_nothing(sampler, kind, tmp_path):
    storage = str(tmp_path / "search.log") if kind == "journal" else f"sqlite:///{tmp_path / 'search.db'}"
    first = Counting()
    task = task_with(first, tight=0.8)
    half = Bayes(evaluations=8, sampler=sampler, storage=storage)
    before = half(task)
    assert len(first.keys) == 8
    again = half(task)
    assert len(first.keys) == 8, "finished: nothing is left to measure"
    assert (again.choice == before.choice).all()
    after = Bayes(evaluations=15, sampler=sampler, storage=storage)(task)
    assert len(first.keys) == len(set(first.keys)) == 15
    assert task.true_error(after.choice) <= task.true_error(before.choice)
    other = Counting()
    Bayes(evaluations=5, sampler=sampler, storage=storage)(task_with(other, tight=0.7))
    assert len(other.keys) == 5, "other budgets are another study"


def test_a_search_that_was_killed_continues(tmp_path):
    class Stop(Exception):
        pass

    def evaluate(bitmap):
        if len(counting.keys) == 8:
            raise Stop
        return rugged(None)(bitmap)

    counting = Counting(evaluate)
    storage = str(tmp_path / "search.log")
    with pytest.raises(Stop):
        Bayes(evaluations=15, storage=storage)(task_with(counting))
    finished = counting.keys[:7]
    rest = Counting()
    Bayes(evaluations=15, storage=storage)(task_with(rest))
    assert len(rest.keys) == 8
    assert not set(rest.keys) & set(finished)


def test_a_study_is_that_of_one_generator(tmp_path):
    storage, start = str(tmp_path / "search.log"), np.zeros(5, int)
    for scale in (1.0, 2.0):
        asked = Counting(lambda bitmap, scale=scale: replace(own := rugged(None)(bitmap), value=scale * own.value))
        task = replace(task_with(asked), starts=(start,))
        Bayes(evaluations=5, storage=storage)(task)
        assert len(set(asked.keys)) == 5, "other errors are another study"


def test_a_storage_lies_where_the_config_does(tmp_path):
    solver = {"name": "bayes", "options": {"storage": "search.log", "evaluations": 4}}
    samples = {"calibration": 8, "heldback": 8, "distances": 40, "batch": 8}
    (tmp_path / "configs").mkdir()
    config = RunConfig(samples=samples, solver=solver, base=tmp_path / "configs")
    assert Run(config, tmp_path / "run").solution.evaluations
    assert (tmp_path / "configs" / "search.log").exists()


def test_foreign_storages_are_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no journal at all\n")
    with pytest.raises(ArtifactError, match=r"cannot continue the search in .*notes.txt"):
        Bayes(evaluations=3, storage=str(path))(task_with(Counting()))
    assert path.read_text() == "no journal at all\n"
    with pytest.raises(ArtifactError, match="cannot continue the search in sqlite"):
        Bayes(evaluations=3, storage=f"sqlite:///{path}")(task_with(Counting()))
    with pytest.raises(UsageError, match=r"lies in no folder: make .*nowhere first"):
        Bayes(evaluations=3, storage=str(tmp_path / "nowhere" / "a.log"))(task_with(Counting()))


def test_trials_may_be_tuned():
    """A tuning that heals one format: the search must find maps that need it, and ask nothing else."""

    def tuned(bitmap):
        tunings.append(bitmap.key)
        return Measured(sum(1.0 for format in bitmap.values() if format.bits != 2), 0.0, 4)

    tunings, counting = [], Counting()
    task = problem(
        np.outer(np.ones(4), [4.0, 2.0, 1.0]), (np.outer(np.ones(4), [2.0, 3.0, 4.0]), 14), evaluate=counting
    )
    answer = Bayes(evaluations=50, tune=tuned)(task)
    assert answer.choice.tolist() == [0, 0, 0, 0]
    assert not counting.keys
    assert len(tunings) == len(set(tunings)) <= 50


def test_samplers_are_named():
    with pytest.raises(UsageError, match="unknown sampler 'gp': use tpe or nsga2"):
        Bayes(sampler="gp")
    with pytest.raises(UsageError, match="solver 'bayes': sampler is 'gp'"):
        make("solver", SOLVERS, "bayes", {"sampler": "gp"})
