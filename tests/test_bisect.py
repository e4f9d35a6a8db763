"""The cheapest map for a quality floor, and every map on both sets of inputs."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_cli import SMALL, call, project  # noqa: F401
from test_search import random_problem
from torch import nn

import mpsearch
from mpsearch import ArtifactError, BitMap, CalibrationError, InfeasibleBudget, ModelError, Solution, Target, UsageError
from mpsearch.api import make_subject
from mpsearch.budgets import cost_of
from mpsearch.features import frechet_distance, moments, pooled_pixels, principal_axes
from mpsearch.quality import Reference, paired_quality
from mpsearch.search import Bisect, solve
from mpsearch.types import Budget, Limit, Measured, Problem, Reached, decibels

FORMATS = ["w2", "w3", "w4", "w6", "w8"]


def smaller_maps_fail(solution):
    """The maps that were judged and cost less; at least one, and none of them is good enough."""
    reached, own = solution.target, solution.costs[solution.target.cost]
    less = [value for cost, value in reached.trace if cost < own]
    assert less
    assert not any(map(reached.target.met, less))


@given(st.sampled_from(["psnr", "fd"]), st.floats(0, 1e308, exclude_min=True))
def test_targets_are_read_as_they_are_written(measure, limit):
    target = Target(measure, limit)
    assert Target.parse(str(target)) == target


def test_targets_in_words():
    assert Target.parse(" psnr >= 35 dB ") == Target("psnr", 35.0)
    assert Target.parse("fd<=float+.5") == Target("fd", 0.5)
    assert str(Target.parse("fd<=float+0")) == "fd<=float+0"
    assert Target("psnr", 35).margin(36) == 1 == Target("fd", 2).margin(1)
    assert Target("psnr", 35).met(35)
    assert not Target("fd", 1).met(1.5)
    assert Target("psnr", 99).reachable(41.239) == "psnr>=41.23"
    assert Target("fd", 0).reachable(0.231) == "fd<=float+0.24"


@pytest.mark.parametrize(
    "text", ["psnr<=35", "psnr>35", "psnr>=35%", "psnr>=-3", "ssim>=0.9", "fd<=0.5", "fd<=1.1x", "fd<=float-1", "", 35]
)
def test_what_is_no_target_is_one_line(text):
    with pytest.raises(UsageError, match=r"cannot read the target .*: write it like psnr>=35 or fd<=float") as caught:
        Target.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("psnr>=0", "above zero and finite"), ("fd<=float+1e999", "be finite")])
def test_targets_out_of_range(text, message):
    with pytest.raises(UsageError, match=message):
        Target.parse(text)


def additive(seed, units, formats, spread=0.0):
    """(problem, its cost, search under a limit, truth): damages of random units, and how far the truth is from them."""
    task = random_problem(seed, units, formats, budgets=0)
    rng = np.random.default_rng(seed + 1)
    costs = np.sort(rng.uniform(1, 10, task.damage.values.shape), axis=1)
    pairs = rng.normal(0, spread, (units, units, formats, formats)) if spread else None

    def truth(choice):
        single = task.predicted(choice)
        if pairs is None:
            return single
        more = sum(pairs[i, j, choice[i], choice[j]] for i in range(units) for j in range(i))
        return single * math.exp(more)

    def evaluate(bitmap):
        choice = np.array([task.formats.index(bitmap[unit.layer]) for unit in task.units])
        return Measured(truth(choice), 0.0, 1)

    free = Limit(Budget("size", math.inf), task.damage.__class__(**{**vars(task.damage), "values": costs}), math.inf, 1)
    problem = Problem(task.damage, (), evaluate)

    def search(limit):
        own = Limit(Budget("size", limit), free.costs, limit, 1)
        return solve(Problem(task.damage, (own,), evaluate), (), [own])

    return problem, free, search, truth


def all_choices(problem):
    return map(np.array, itertools.product(*(np.flatnonzero(row) for row in problem.allowed)))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 4), st.floats(0.05, 0.95))
def test_where_errors_add_up_it_is_brute_force_up_to_its_tolerance(seed, units, formats, share):
    problem, cost, search, truth = additive(seed, units, formats)
    maps = [(cost.of(choice), truth(choice)) for choice in all_choices(problem)]
    errors = sorted(error for _, error in maps)
    target = Target("psnr", 500 - 10 * math.log10(errors[int(share * (len(errors) - 1))]))
    judge = lambda bitmap: 500 - 10 * math.log10(problem.evaluate(bitmap).value)  # noqa: E731
    solution = Bisect()(problem, cost, target, judge, search, search)
    best = min(spent for spent, error in maps if target.met(500 - 10 * math.log10(error)))
    assert solution.target.margin >= 0
    assert best <= solution.costs["size"] * (1 + 1e-9)
    assert solution.costs["size"] <= best * 1.0051


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
@example(114, 0.4375)  # stating the answer finds a cheaper map, which shrinks further
def test_whatever_the_errors_it_meets_the_target_and_no_cheaper_map_it_saw_does(seed, share):
    problem, cost, search, truth = additive(seed, 4, 4, spread=0.3)
    value = lambda error: 500 - 10 * math.log10(error)  # noqa: E731
    columns = [np.full(4, column) for column in range(4)]
    best, worst = value(truth(columns[-1])), value(truth(columns[0]))
    assume(best > worst)
    target = Target("psnr", worst + share * (best - worst))
    solution = Bisect()(problem, cost, target, lambda m: value(problem.evaluate(m).value), search, search)
    assert target.met(value(problem.evaluate(solution.bitmap).value))
    assert solution.error == problem.evaluate(solution.bitmap)
    uniform = min(cost.of(choice) for choice in columns if target.met(value(truth(choice))))
    assert solution.target.uniform == uniform
    assert solution.costs["size"] <= uniform
    assert not any(target.met(v) for spent, v in solution.target.trace if spent < solution.costs["size"] - 1e-9)
    # Nothing is left to shrink: no single cheaper format is good enough.
    choice = np.array([problem.formats.index(solution.bitmap[unit.layer]) for unit in problem.units])
    for unit, column in itertools.product(range(4), range(4)):
        other = choice.copy()
        other[unit] = column
        assert cost.of(other) >= cost.of(choice) - 1e-9 or not target.met(value(truth(other)))


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"patience": 0}])
def test_bisect_refuses_what_makes_no_sense(options):
    with pytest.raises(UsageError, match="bisect needs tolerance between 0 and 1"):
        Bisect(**options)


@pytest.mark.parametrize("effort", ["fast", "standard"])
def test_smallest_meets_its_target_on_every_kind_of_model(case, snapshot, effort):
    model, batches = case
    shot = snapshot(model)
    solution = mpsearch.smallest(model, batches, "psnr>=30", formats=FORMATS, effort=effort)
    shot.check()
    subject = make_subject(model, batches)
    error = subject.error(solution.bitmap)
    assert error == solution.error
    with mpsearch.quantized(model, solution.bitmap) as small:
        again = make_subject(small, batches).reference
    _, psnr, _ = paired_quality(subject.reference, again)
    assert psnr.value == pytest.approx(solution.psnr_db, abs=0.01)
    assert solution.psnr_db == pytest.approx(solution.target.value)
    assert solution.target.value >= 30
    assert solution.target.margin == solution.target.value - 30
    assert solution.costs["size"] == cost_of("size", solution.bitmap, subject.layers)
    assert solution.costs["size"] <= solution.target.uniform
    assert solution.limits == {}
    assert solution.method == "bisect"
    assert solution.evaluations > 0
    assert all(list(b.costs) == list(solution.costs) for b in solution.baselines.values())
    assert all(b.costs["size"] <= solution.costs["size"] for b in solution.baselines.values())
    assert solution.gain_db >= 0
    smaller_maps_fail(solution)
    payload = json.loads(json.dumps(solution.to_json()))
    read = Solution.from_json(payload)
    assert read.to_json() == payload
    assert read.target == solution.target


@pytest.mark.parametrize("target", ["psnr>=20", "psnr>=28", "psnr>=33.3"])
def test_smallest_is_the_smallest_of_all_maps(deconv, target):
    model, batches = deconv
    subject = make_subject(model, batches)
    names = [layer.name for layer in subject.layers]
    good = []
    for formats in itertools.product(FORMATS, repeat=len(names)):
        bitmap = BitMap(dict(zip(names, formats, strict=True)))
        if Target.parse(target).met(decibels(subject.error(bitmap).value, subject.peak)):
            good.append(cost_of("size", bitmap, subject.layers))
    solution = mpsearch.smallest(model, batches, target, formats=FORMATS)
    assert solution.costs["size"] == min(good)


def test_same_seed_same_smallest(deconv):
    first, second = (mpsearch.smallest(*deconv, target="psnr>=28", seed=3) for _ in range(2))
    assert first.bitmap == second.bitmap
    assert first.target == second.target


def test_a_target_that_the_cheapest_map_meets(deconv):
    solution = mpsearch.smallest(*deconv, target="psnr>=0.1", formats=FORMATS, cost="bits")
    assert {format.short for format in solution.bitmap.values()} == {"w2"}
    assert solution.costs["bits"] == 2
    assert len(solution.target.trace) <= 4


def test_a_target_out_of_reach_says_what_is_in_reach(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    pattern = r"psnr>=90 cannot be reached: the best found is (psnr>=[\d.]+); allow wider formats$"
    with pytest.raises(InfeasibleBudget, match=pattern) as caught:
        mpsearch.smallest(model, batches, "psnr>=90", formats=FORMATS)
    shot.check()
    best = str(caught.value).split("is ")[1].split(";")[0]
    solution = mpsearch.smallest(model, batches, best, formats=FORMATS)
    assert 0 <= solution.target.margin < 0.01 + 1e-9
    with pytest.raises(
        InfeasibleBudget, match=r"reached under bits<=2.5: the best found is psnr>=2\d.* allow looser b"
    ):
        mpsearch.smallest(model, batches, "psnr>=30", budgets=["bits<=2.5"], formats=FORMATS)


def test_other_budgets_hold_besides(deconv):
    model, batches = deconv
    free = mpsearch.smallest(model, batches, "psnr>=25", formats=["w2a8", "w4a8", "w6a8", "w8a8", "w4a4"])
    limit = free.costs["bops"] * 0.9
    solution = mpsearch.smallest(
        model, batches, "psnr>=18", budgets=f"bops<={limit:.0f}", formats=["w2a8", "w4a8", "w6a8", "w8a8", "w4a4"]
    )
    assert solution.costs["bops"] <= limit * (1 + 1e-9)
    assert list(solution.limits) == [f"bops<={limit:.0f}"]
    assert set(solution.bitmap.ranges) == set(solution.bitmap)
    with pytest.raises(InfeasibleBudget, match="bits<=1 cannot be met: the smallest feasible value is bits<=2"):
        mpsearch.smallest(model, batches, "psnr>=25", budgets=["bits<=1"])


@pytest.mark.parametrize(("cost", "target"), [("bits", "psnr>=33"), ("bops", "psnr>=33"), ("memory", "psnr>=42")])
def test_other_costs_can_be_made_small(deconv, cost, target):
    model, batches = deconv
    solution = mpsearch.smallest(model, batches, target, cost, formats=["w3a4", "w3a8", "w6a4", "w6a8", "w8"])
    dear = mpsearch.allocate(model, batches, ["bits<=8"], ["w8"], "fast")
    assert solution.costs[cost] < dear.costs[cost]
    assert solution.target.margin >= 0
    smaller_maps_fail(solution)


def test_rules_of_layers_hold(deconv):
    model, batches = deconv
    layers = [layer.name for layer in mpsearch.find_layers(model, batches[0])]
    solution = mpsearch.smallest(
        model, batches, "psnr>=25", formats=FORMATS, pin={layers[0]: "w8"}, together=[layers[1:]]
    )
    formats = [solution.bitmap[name].short for name in layers]
    assert formats[0] == "w8"
    assert formats[1] == formats[2] != "w8"


def test_channels_may_have_widths_of_their_own(deconv):
    whole = mpsearch.smallest(*deconv, target="psnr>=32", cost="bits", formats=FORMATS, effort="fast")
    solution = mpsearch.smallest(*deconv, target="psnr>=32", cost="bits", formats=FORMATS, effort="fast", groups=4)
    assert any(format.channel_bits for format in solution.bitmap.values())
    assert solution.target.margin >= 0
    assert solution.error == make_subject(*deconv).error(solution.bitmap)
    assert solution.costs["bits"] < whole.costs["bits"]
    smaller_maps_fail(solution)


@pytest.mark.parametrize("own", [False, True])
def test_distances_within_so_much_of_the_float_generator(deconv, own):
    model, batches = deconv
    subject = make_subject(model, batches)
    base = torch.cat([pooled_pixels(images) for images in subject.reference])
    reference = Reference(base - 0.3, "shifted") if own else None
    target = moments(base - 0.3 if own else base)
    axes, few = principal_axes(target, len(base))
    assert "12 generated and 12 of the reference for 192 feature dimensions" in few

    def excess(bitmap):
        found = moments(torch.cat([pooled_pixels(images) for images in subject.images(bitmap)]))
        distances = [frechet_distance(of.on(axes), target.on(axes)) for of in (found, moments(base))]
        return distances[0] - distances[1]

    solution = mpsearch.smallest(model, batches, "fd<=float+0.002", formats=FORMATS, effort="fast", reference=reference)
    assert solution.target.value == pytest.approx(excess(solution.bitmap), abs=1e-6)
    assert solution.target.value <= 0.002
    smaller_maps_fail(solution)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "psnr=35"}, UsageError, "cannot read the target 'psnr=35'"),
        ({"cost": "bites"}, UsageError, "unknown cost 'bites'; the closest is 'bits'"),
        ({"cost": "latency"}, UsageError, "the cost latency needs measured times"),
        ({"budgets": ["bits<4"]}, UsageError, "cannot read the budget 'bits<4'"),
        ({"effort": "heroic"}, UsageError, "unknown effort 'heroic'"),
        ({"groups": 0}, UsageError, "groups is 0"),
        ({"target": "fd<=float+1", "reference": Reference(torch.zeros(4, 3), "r")}, CalibrationError, "has 3 features"),
        ({"target": "fd<=float+1", "features": lambda images: 3}, ModelError, "the feature network gives a int"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_measured(
    deconv, snapshot, monkeypatch, arguments, error, message
):
    def fail(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("mpsearch.sensitivity.projection.pull_back", fail)
    shot = snapshot(deconv[0])
    with pytest.raises(error, match=message) as caught:
        mpsearch.smallest(*deconv, **{"target": "psnr>=30", **arguments})
    assert "\n" not in str(caught.value)
    shot.check()


def test_constant_images_have_no_psnr():
    class Blank(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0

    with pytest.raises(ModelError, match="psnr>=30 means nothing here: the float images are constant"):
        mpsearch.smallest(Blank(4, 4), [(torch.ones(4, 4),)], "psnr>=30")


def test_one_sample_has_no_distance(deconv):
    with pytest.raises(CalibrationError, match="needs 2 calibration inputs or more, there is 1"):
        mpsearch.smallest(deconv[0], [(torch.ones(1, 6),)], "fd<=float+1")


def test_gain_over_uniform_is_that_of_the_errors(deconv):
    solution = mpsearch.allocate(*deconv, ["bits<=4"], FORMATS)
    uniform = solution.baselines["uniform"]
    assert solution.gain_db == pytest.approx(10 * math.log10(uniform.error.value / solution.error.value))
    assert solution.peak == make_subject(*deconv).peak
    assert solution.to_json()["gain_db"] == solution.gain_db
    old = {k: v for k, v in solution.to_json().items() if k not in ("peak", "gain_db", "target")}
    assert Solution.from_json(old).psnr_db is None
    assert Solution.from_json(old).gain_db == solution.gain_db
    with pytest.raises(ArtifactError, match="not a met target"):
        Solution.from_json({**old, "target": {"target": "psnr>=3"}})
    assert Reached.from_json(json.loads(json.dumps(Reached(Target("fd", 1), "size", 0.5).to_json()))).uniform is None


# The command line, on a generator of four layers.

DEEP = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [m for n in (6, 24, 24) for m in (nn.Linear(n, 24), nn.LeakyReLU(0.3))]
        return nn.Sequential(*body, nn.Linear(24, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
"""


@pytest.fixture
def deep(project):  # noqa: F811
    (project / "net.py").write_text(DEEP)
    (project / "small.yaml").write_text(SMALL.replace("[w2, w4, w6]", "[w2, w3, w4, w5, w6]"))
    return project


def test_run_with_a_target_writes_it_down_and_a_second_run_measures_nothing(deep, monkeypatch):
    command = ("run", "small.yaml", "--out", "out", "--target", "psnr>=30")
    code, output, error = call(*command)
    assert code == 0, error
    bitmap = json.loads((deep / "out/bitmap.json").read_text())
    assert bitmap["target"]["target"] == "psnr>=30"
    assert bitmap["target"]["value"] >= 30
    assert bitmap["limits"] == {}
    quality = json.loads((deep / "out/quality.json").read_text())
    report = (deep / "out/report.md").read_text()
    for words in (
        "least size with psnr>=30",
        f"| calibration | `psnr>=30` | {bitmap['target']['value']:.2f} | {bitmap['target']['margin']:+.2f} |",
        f"| held-back | `psnr>=30` | {quality['psnr_db']['value']:.2f} |",
        "The cheapest uniform map that meets it:",
        "No budget was given",
    ):
        assert words in report
    assert "target psnr>=30 at the least size" in output

    def fail(*args, **kwargs):
        raise AssertionError("measured twice")

    before = {p: p.read_bytes() for p in (deep / "out").glob("*.json")}
    for name in (
        "subject.paired_errors",
        "sensitivity.projection.pull_back",
        "validation.featurise",
        "validation.paired_quality",
    ):
        monkeypatch.setattr(f"mpsearch.{name}", fail)
    assert call(*command)[0] == 0
    assert before == {p: p.read_bytes() for p in (deep / "out").glob("*.json")}
    (deep / "out/bitmap.json").unlink()  # as if killed while it was written: the journal has it all
    assert call("search", *command[1:])[0] == 0
    again = json.loads((deep / "out/bitmap.json").read_text())
    assert again.pop("seconds") > 0
    assert again == {k: v for k, v in bitmap.items() if k != "seconds"}


def test_a_search_cut_off_half_way_continues_where_it_stopped(deep, monkeypatch):
    command = ("search", "small.yaml", "--target", "psnr>=32", "--effort", "fast", "--out")
    assert call(*command, "whole")[0] == 0
    from mpsearch import subject

    measure, made = subject.paired_errors, []

    def counted(*args):
        made.append(1)
        if len(made) == 15:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(subject, "paired_errors", counted)
    call(*command, "cut")
    assert len(made) == 15
    assert call(*command, "cut")[0] == 0
    names = [json.loads(line)[0] for line in (deep / "cut/measurements.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names))
    assert len(made) - 1 == 2 * sum(name.startswith("errors") for name in names), "two batches a map, each once"
    whole, cut = (json.loads((deep / out / "bitmap.json").read_text()) for out in ("whole", "cut"))
    whole.pop("seconds"), cut.pop("seconds")
    assert whole == cut


def test_another_target_or_cost_in_the_same_folder_is_another_answer(deep):
    found = {}
    for target, cost in (("psnr>=20", "size"), ("psnr>=35", "size"), ("psnr>=35", "bops"), ("fd<=float+0.01", "size")):
        text = (deep / "small.yaml").read_text() + f"target: {target}\ncost: {cost}\neffort: fast\n"
        (deep / "t.yaml").write_text(text)
        code, _, error = call("search", "t.yaml", "--out", "out")
        assert code == 0, error
        found[target, cost] = json.loads((deep / "out/bitmap.json").read_text())
        assert (found[target, cost]["target"]["target"], found[target, cost]["target"]["cost"]) == (target, cost)
    assert found["psnr>=20", "size"]["costs"]["size"] < found["psnr>=35", "size"]["costs"]["size"]
    assert found["psnr>=35", "bops"]["costs"]["bops"] <= found["psnr>=35", "size"]["costs"]["bops"]


def test_budgets_of_a_config_hold_beside_a_target(deep):
    (deep / "both.yaml").write_text((deep / "small.yaml").read_text() + "budgets: ['bits<=3.5']\ntarget: psnr>=15\n")
    assert call("run", "both.yaml", "--out", "out", "--effort", "fast")[0] == 0
    assert json.loads((deep / "out/bitmap.json").read_text())["limits"] == {"bits<=3.5": 3.5}
    assert "under least size with psnr>=15, bits<=3.5" in (deep / "out/report.md").read_text()
    code, _, error = call("search", "both.yaml", "--out", "out", "--target", "psnr>=60")
    assert code == 2
    assert "psnr>=60 cannot be reached under bits<=3.5: the best found is psnr>=" in error


def test_a_distance_as_target_is_reported_on_held_back_inputs(deep):
    assert call("run", "small.yaml", "--out", "out", "--effort", "fast", "--target", "fd<=float+0.02")[0] == 0
    quality = json.loads((deep / "out/quality.json").read_text())
    fd = quality["figures"]["fd"]
    excess = fd["quantized"]["value"] - fd["float"]["value"]
    assert f"| held-back | `fd<=float+0.02` | {excess:.2f} |" in (deep / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("target: psnr>35", "cannot read the target 'psnr>35': write it like psnr>=35"),
        ("target: 35", "target: "),
        ("target: psnr>=35\ncost: bites", "unknown cost 'bites'; the closest is 'bits'"),
        ("target: psnr>=35\ncost: latency", "the cost latency needs measured times"),
        ("budgets: []", "no budget given"),
    ],
)
def test_bad_targets_in_a_config_are_one_line(deep, config, message):
    (deep / "bad.yaml").write_text((deep / "small.yaml").read_text() + config + "\n")
    code, _, error = call("run", "bad.yaml", "--out", "out")
    assert code == 2
    assert message in error
    assert "\n" not in error
    assert not (deep / "out/sensitivity.json").exists()


def test_every_map_stands_on_both_sets_of_inputs(deep):
    code, output, error = call("run", "small.yaml", "--out", "out", "--budget", "bits<=4", "--groups", "3")
    assert code == 0, error
    bitmap = json.loads((deep / "out/bitmap.json").read_text())
    quality = json.loads((deep / "out/quality.json").read_text())
    maps = quality["maps"]
    assert list(maps) == ["found", *bitmap["baselines"]]
    assert {"uniform", "size-only"} <= set(maps)
    assert maps["found"]["psnr_db"] == quality["psnr_db"]
    for name, entry in bitmap["baselines"].items():
        assert maps[name]["calibration_mse"] == entry["error"]["value"]
        assert maps[name]["calibration_db"] == pytest.approx(
            10 * math.log10(bitmap["peak"] ** 2 / entry["error"]["value"])
        )
        (deep / f"{name}.json").write_text(
            json.dumps({"layers": {n: {"format": f} for n, f in entry["formats"].items()}})
        )
        assert call("validate", "small.yaml", "--out", "out", "--bitmap", f"{name}.json")[0] == 0
        alone = json.loads((deep / f"out/quality-{name}.json").read_text())
        assert alone["psnr_db"] == maps[name]["psnr_db"]
        assert alone["maps"] == {}
    gain = 10 * math.log10(maps["uniform"]["calibration_mse"] / maps["found"]["calibration_mse"])
    unseen = 10 * math.log10(maps["uniform"]["mse"]["value"] / maps["found"]["mse"]["value"])
    sentence = f"ain over uniform: {gain:.1f} dB on calibration inputs, {unseen:.1f} dB on held-back inputs"
    report = (deep / "out/report.md").read_text()
    assert sentence in report
    assert sentence in output.replace("\n", " ")
    assert gain == pytest.approx(bitmap["gain_db"])
    assert f"| {gain:+.2f} dB | {unseen:+.2f} dB | {gain - unseen:+.2f} dB |" in report


def test_held_back_errors_of_baselines_with_activations_use_calibrated_ranges(deep):
    from mpsearch.config import load_config
    from mpsearch.run import Run
    from mpsearch.workload import HELDBACK

    run = Run(
        load_config("small.yaml", formats=["w3a4", "w4a6", "w6a8"], budgets=["bits<=4"], effort="fast"), deep / "o"
    )
    quality = run.quality
    held = make_subject(run.model, run.inputs(8, HELDBACK))
    uniform = run.subject.with_ranges(run.solution.baselines["uniform"].bitmap)
    with mpsearch.quantized(run.model, uniform) as small:
        images = make_subject(small, run.inputs(8, HELDBACK)).reference
    mse, _, _ = paired_quality(held.reference, images)
    assert quality.maps["uniform"].mse.value == pytest.approx(mse.value)
