"""Pins, floors, layers that are together, what is no choice, and what is kept out of the search."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import MODELS, build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import SMALL, call, project  # noqa: F401
from torch import nn

import mpsearch
from mpsearch import (
    ArtifactError,
    BitMap,
    Budget,
    Format,
    InfeasibleBudget,
    Latency,
    Layer,
    Layers,
    Solution,
    Table,
    Unit,
    UsageError,
    find_layers,
)
from mpsearch.api import make_subject, tables
from mpsearch.budgets import check_budgets, cost_of, limit_of
from mpsearch.cost import cost_models
from mpsearch.search import SOLVERS, Ilp, Refine, counted, merged, problem_of, solve, splittable, undominated
from mpsearch.sensitivity import ESTIMATORS, OnePass
from mpsearch.types import Limit, Measured, Problem, parse_formats, ruled

FORMATS = parse_formats(["w2", "w4", "w8"])
MIXED = parse_formats(["w2", "w4", "w8", "w4a8", "w8a8"])
BITS = ["bits<=5"]


def layers_of(*names, acts=()):
    """One layer a name, of growing size; ``acts`` = input elements, 100 where not given."""
    elements = itertools.chain(acts, itertools.repeat(100))
    items = [
        Layer(name, "Conv2d", (4 * (i + 1), 3), 0, 10 * (i + 1), next(elements), 48 * (i + 1), (name,))
        for i, name in enumerate(names)
    ]
    return Layers(tuple(items), 10)


def table_of(layers, formats=FORMATS, seed=0, measure="mse", **cells):
    """Random damage, less with more bits; ``cells`` = {layer: {format: value}}."""
    rng = np.random.default_rng(seed)
    bits = np.array([(f.weight_bits or 32) - (0.5 if f.act_bits else 0) for f in formats])
    values = rng.lognormal(0, 2, (len(layers), 1)) * 4.0**-bits
    names = [layer.name for layer in layers]
    for name, row in cells.items():
        for format, value in row.items():
            values[names.index(name), formats.index(Format.parse(format))] = value
    return Table(layers.units, formats, values, np.zeros_like(values), measure, "test")


def formats_of(bitmap):
    return {name: str(format) for name, format in bitmap.items()}


# Rules


def test_pins_floors_and_groups_hold_in_the_map(deconv, snapshot):
    model, batches = deconv
    shot = snapshot(model)
    rules = {"pin": {"main.0.*": "w8"}, "floor": {"main.5*": 6}, "together": [["main.3.*", "main.5.*"]]}
    solution = mpsearch.allocate(model, batches, ["bits<=7.5"], effort="fast", **rules)
    shot.check()
    bits = {name: format.bits for name, format in solution.bitmap.items()}
    assert bits["main.0.weight"] == 8
    assert bits["main.3.weight"] == bits["main.5.weight"] >= 6
    for baseline in solution.baselines.values():
        assert baseline.bitmap["main.0.weight"].bits == 8
        assert baseline.bitmap["main.3.weight"] == baseline.bitmap["main.5.weight"]
    assert "uniform" in solution.baselines, "as uniform as the rules let it be"
    assert solution.error.value <= solution.baselines["uniform"].error.value
    free = mpsearch.allocate(model, batches, ["bits<=7.5"], effort="fast")
    assert free.bitmap["main.0.weight"].bits != 8, "the pin was at work"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_obeys_the_rules(name):
    model, batches = build("deconv"), MODELS["deconv"][1]()
    rules = {"pin": {"main.0.*": "w7"}, "floor": {"main.3.*": 4}, "together": [["main.3.*", "main.5.*"]]}
    subject = make_subject(model, batches[:2], **rules)
    options = {"reference": None} if name == "fid-proxy" else {}
    table = ESTIMATORS[name](**options)(subject, parse_formats(["w2", "w4"]))
    assert [str(f) for f in table.formats] == ["w2", "w4", "w7"], "a pin has its column"
    assert np.isnan(table.values).tolist() == [[True, True, False], [True, False, True], [True, False, True]]


def test_json_round_trip_of_the_rules():
    layers = ruled(layers_of("a.w", "b.w", "c.w"), {"a*": "w4a8"}, {"c*": 5}, [["b*", "c*"]])
    again = Layers.from_json(json.loads(json.dumps(layers.to_json())))
    assert again == layers
    assert again["a.w"].pin == Format.parse("w4a8")
    assert (again["b.w"].floor, again["b.w"].group) == (5, "b.w")
    old = layers_of("a.w").to_json()
    for field in ("pin", "floor", "group", "largest_input"):
        del old["layers"][0][field]
    assert Layers.from_json(old) == layers_of("a.w"), "files of an earlier version"
    with pytest.raises(ArtifactError):
        Layers.from_json({"rest_bytes": 0, "layers": [old["layers"][0] | {"pin": "w99"}]})


def test_groups_with_a_layer_in_common_are_one():
    layers = ruled(layers_of("q.w", "k.w", "v.w", "o.w"), together=[["q*", "k*"], ["v*", "o*"], ["k*", "v*"]])
    assert {layer.group for layer in layers} == {"q.w"}
    assert merged(table_of(layers), layers).units == (Unit("q.w", None, ("k.w", "v.w", "o.w")),)


def test_tied_names_and_single_layers():
    layers = find_layers(build("attentive"), MODELS["attentive"][1]()[0], pin={"right.weight": "w3"})
    assert layers["left.weight"].pin == Format.parse("w3")
    assert all(layer.group is None for layer in ruled(layers_of("a.w", "b.w"), together=[["a*"], ["b*"]]))


def test_weight_only_for_all_that_share_with_a_layer_without_activations():
    layers = layers_of("a.w", "b.w", "c.w", acts=(100, 0, 100))
    formats = parse_formats(["w4a8", "w8a8"])
    together = ruled(layers, together=[["a*", "b*"]])
    assert [tuple(map(str, together.choices(layer, formats))) for layer in together] == [
        ("w4", "w8"), ("w4", "w8"), ("w4a8", "w8a8"),
    ]  # fmt: skip
    pinned = ruled(layers, {"*": "w8a8"})
    assert [str(layer.pin) for layer in pinned] == ["w8a8", "w8", "w8a8"]
    assert [str(x.pin) for x in ruled(layers, {"a*": "w8a8"}, together=[["a*", "b*"]])] == ["w8", "w8", "None"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pin": {"b": "w8"}}, r"the pattern 'b' matches no layer; the closest is '\w\.w'"),
        ({"floor": {"q.x": 6}}, r"the pattern 'q.x' matches no layer; the closest is 'q.w'"),
        ({"together": [["q*", "z*"]]}, r"the pattern 'z\*' matches no layer"),
        ({"pin": {"*": "w4", "k*": "w8"}}, r"k.w is pinned twice: '\*' to w4, 'k\*' to w8"),
        ({"pin": {"q*": "w4"}, "floor": {"q*": 6}}, r"q.w is pinned to w4, under its floor of 6 bits"),
        (
            {"pin": {"q*": "w4"}, "floor": {"k*": 6}, "together": [["q*", "k*"]]},
            r"q.w is pinned to w4, under the floor of k.w, with which it is together, of 6 bits",
        ),
        (
            {"pin": {"q*": "w4", "k*": "w8"}, "together": [["q*", "k*"]]},
            r"q.w and k.w are together but pinned to w4 and w8",
        ),
        ({"pin": {"q*": "w11"}}, "unknown format 'w11'"),
        ({"pin": {"q*": "w[2*3,4]"}}, r"the pin 'q\*' is w\[2\*3,4\]: a pinned layer has one width"),
        ({"pin": ["q*"]}, r"pin is \['q\*'\]: expected a mapping"),
        ({"floor": {"q*": "six"}}, r"the floor 'q\*' is 'six': expected a number of weight bits"),
        ({"floor": {"q*": True}}, r"the floor 'q\*' is True"),
        ({"together": ["q*", "k*"]}, r"together holds 'q\*': expected a list of globs"),
        ({"together": "q*"}, r"together is 'q\*'"),
        ({"together": [[3]]}, r"3 is no pattern"),
    ],
)
def test_rules_that_contradict_are_one_clear_line(rules, message):
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        ruled(layers_of("q.w", "k.w", "v.w"), **rules)
    assert "\n" not in str(caught.value)


def test_formats_that_leave_a_layer_nothing():
    layers = ruled(layers_of("a.w", "b.w"), floor={"b*": 9})
    with pytest.raises(UsageError, match=r"^b.w has a floor of 9 bits, above every format of w2, w4, w8$"):
        check_budgets(layers, FORMATS, [Budget.parse("bits<=4")])
    layers = ruled(layers_of("a.w", "b.w"), together=[["a*", "b*"]])
    with pytest.raises(UsageError, match=r"^a.w \+ b.w can take none of w\[2\*3,4\]: 4 widths for 8 output channels$"):
        layers.columns([Format.parse("w[2*3,4]")])


@pytest.mark.parametrize(
    ("rules", "budgets", "message"),
    [
        ({"pin": {"b*": "w8"}}, ["bits<=3"], r"bits<=3 cannot be met with b.w pinned to w8: the smallest .* bits<=6$"),
        (
            {"pin": {"a*": "w8"}, "floor": {"b*": 3}}, ["bits<=2.5"],
            r"bits<=2.5 cannot be met with a.w pinned to w8 and b.w held to 3 bits or more: .* is bits<=5.333334$",
        ),
        ({"pin": {"*": "w8"}}, ["bits<=3"], r"bits<=3 cannot be met with a.w pinned to w8 and b.w pinned to w8: .*8$"),
        ({"pin": {"b*": "w2"}}, ["bits<=1"], r"bits<=1 cannot be met: the smallest feasible value is bits<=2$"),
        ({"pin": {"b*": "w8"}}, ["memory<=30%"], r"memory<=30% cannot be met with b.w pinned to w8: .* memory<=100%$"),
        ({}, ["memory<=26%", "bits<=3"], r"bits<=3 cannot be met with memory<=26%: the smallest .* bits<=4$"),
        ({}, ["memory<=99"], r"memory<=99 cannot be met: the smallest feasible value is memory<=100$"),
    ],
)  # fmt: skip
def test_budgets_that_contradict_the_rules_name_them(rules, budgets, message):
    layers = ruled(layers_of("a.w", "b.w"), **rules)
    table = table_of(layers, MIXED)
    table.values[:] = np.where([[f in layers.choices(x, MIXED) for f in MIXED] for x in layers], table.values, np.nan)
    for ask in (
        lambda: mpsearch.search(table, layers, budgets),
        lambda: check_budgets(layers, MIXED, list(map(Budget.parse, budgets))),
    ):
        with pytest.raises(InfeasibleBudget, match=f"^{message}"):
            ask()


def test_the_stated_value_can_be_met():
    layers = ruled(layers_of("a.w", "b.w", "c.w"), {"b*": "w8"}, {"c*": 4})
    for text in ("bits<=1", "size<=1%", "bops<=1%", "memory<=1%"):
        with pytest.raises(InfeasibleBudget) as caught:
            mpsearch.search(table_of(layers, MIXED), layers, [text])
        mpsearch.search(table_of(layers, MIXED), layers, [str(caught.value).split("feasible value is ")[1]])


def test_many_pins_are_counted():
    layers = ruled(layers_of(*(f"l{i}.w" for i in range(9))), {"*": "w8"})
    with pytest.raises(InfeasibleBudget, match=r"with l0.w pinned to w8 and l1.w .* and l2.w .* and 6 more: the smal"):
        mpsearch.search(table_of(layers), layers, ["bits<=3"])


def test_budgets_that_conflict_because_of_a_pin_name_it():
    layers = ruled(layers_of("a.w", "b.w"), {"b*": "w8"})
    table = table_of(layers, parse_formats(["w2", "w8", "w8a4"]))
    with pytest.raises(InfeasibleBudget, match=r"cannot be met together.*, with b.w pinned to w8$"):
        mpsearch.search(table, layers, ["bits<=7", "bops<=18%"])


@pytest.mark.parametrize(("floor", "named"), [(2, ""), (3, ", with b.w held to 3 bits or more")])
def test_only_floors_that_forbid_something_are_named_in_a_conflict(floor, named):
    layers = ruled(layers_of("a.w", "b.w"), floor={"b*": floor})
    table = table_of(layers, parse_formats(["w2", "w8", "w8a4"]))
    with pytest.raises(InfeasibleBudget, match=rf"cannot be met together[^,]*{named}$"):
        mpsearch.search(table, layers, ["bits<=7", "bops<=3.5%"])


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_the_answer_is_the_best_of_all_maps_that_keep_the_rules(data, seed):
    names = [f"l{i}.w" for i in range(4)]
    layers = layers_of(*names, acts=(100, 60, 30, 0))
    pins = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(["w4", "w8a8"]), max_size=1))
    floors = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from([3, 4]), max_size=2))
    together = data.draw(st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=3), max_size=1))
    peak = data.draw(st.sampled_from(["memory<=100%", "memory<=60%", "memory<=25%"]))
    try:
        layers = ruled(layers, pins, floors, together)
    except UsageError:
        return
    damage = table_of(layers, MIXED, seed)
    budgets = [f"bits<={data.draw(st.floats(4, 8))}", peak]
    best = np.inf
    for picks in itertools.product(*(layers.choices(layer, MIXED) for layer in layers)):
        bitmap = BitMap(dict(zip(names, picks, strict=True)))
        same = all(bitmap[x.name] == bitmap[y.name] for x in layers for y in layers.together(x))
        met = all(
            cost_of(b.cost, bitmap, layers) <= b.absolute(cost_of(b.cost, {}, layers)) * (1 + 1e-9)
            for b in map(Budget.parse, budgets)
        )
        if same and met:
            best = min(best, sum(damage.value(name, format) for name, format in bitmap.items()))
    if not np.isfinite(best):
        with pytest.raises(InfeasibleBudget):
            mpsearch.search(damage, layers, budgets)
        return
    solution = mpsearch.search(damage, layers, budgets)
    assert solution.predicted == pytest.approx(best, rel=1e-6)
    for text, limit in solution.limits.items():
        assert solution.costs[text.split("<=")[0]] <= limit * (1 + 1e-9)
    for name, cost in solution.costs.items():
        assert cost == pytest.approx(cost_of(name, solution.bitmap, layers))
    assert len(solution.limits) == 2, "the peak is a budget like all others"


def test_together_adds_damage_and_costs_and_errors_in_quadrature():
    layers = ruled(layers_of("a.w", "b.w", "c.w"), together=[["a*", "c*"]])
    values = np.array([[1.0, 2.0], [10.0, 20.0], [3.0, np.nan]])
    table = Table(layers.units, FORMATS[:2], values, values / 10, "mse", "test")
    small = merged(table, layers)
    assert [str(unit) for unit in small.units] == ["a.w + c.w", "b.w"]
    np.testing.assert_allclose(small.values, [[4, np.nan], [10, 20]])
    np.testing.assert_allclose(small.stderr, [[np.hypot(0.1, 0.3), np.nan], [1, 2]])
    assert Table.from_json(json.loads(json.dumps(small.to_json()))).units == small.units
    memory = merged(cost_models()["memory"](layers_of("a.w", "b.w", "c.w", acts=(5, 6, 7)), FORMATS[:1]), layers)
    assert memory.values.tolist() == [[28], [24]], "one after the other, not at once"
    assert BitMap.from_units({small.units[0]: FORMATS[0]}) == BitMap({"a.w": "w2", "c.w": "w2"})


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_keeps_layers_together(name):
    layers = ruled(layers_of("a.w", "b.w", "c.w", "d.w"), {"d*": "w8"}, {"b*": 4}, [["a*", "c*"]])
    solver = SOLVERS[name](evaluations=20) if hasattr(SOLVERS[name], "evaluations") else SOLVERS[name]()
    solution = mpsearch.search(table_of(layers), layers, ["bits<=6.5"])
    seen = []

    def evaluate(bitmap):
        seen.append(bitmap)
        return Measured(sum(4.0**-f.bits for f in bitmap.values()), 0.0, 1)

    limit = limit_of(Budget.parse("bits<=6.5"), layers, FORMATS)
    problem = problem_of(table_of(layers), layers, [limit], evaluate)
    answer = solve(problem, [solver], problem.limits)
    for bitmap in [solution.bitmap, answer.bitmap, *seen]:  # a solver may also measure single units
        assert bitmap.get("a.w") == bitmap.get("c.w")
        assert "d.w" not in bitmap or bitmap["d.w"].bits == 8
        assert "b.w" not in bitmap or bitmap["b.w"].bits >= 4
    assert set(answer.bitmap) == {"a.w", "b.w", "c.w", "d.w"}


# Channel groups


def test_channels_respect_pins_floors_and_groups(deconv):
    model, batches = deconv
    rules = {"pin": {"main.5.*": "w8"}, "floor": {"main.3.*": 3}}
    solution = mpsearch.allocate(model, batches, BITS, effort="fast", groups=4, **rules)
    assert solution.method == "channels"
    assert str(solution.bitmap["main.5.weight"]) == "w8"
    assert min(solution.bitmap["main.3.weight"].channel_bits or [solution.bitmap["main.3.weight"].bits]) >= 3
    assert solution.bitmap["main.0.weight"].channel_bits
    assert solution.costs["bits"] <= 5
    together = {"together": [["main.0.*", "main.3.*"]]}
    solution = mpsearch.allocate(model, batches, BITS, effort="fast", groups=4, **together)
    assert solution.bitmap["main.0.weight"] == solution.bitmap["main.3.weight"]
    assert solution.bitmap["main.0.weight"].channel_bits is None, "they stay whole"


def test_the_column_of_a_pin_is_no_width_for_other_channels(deconv):
    model, batches = deconv
    solution = mpsearch.allocate(
        model, batches, ["bits<=4"], ["w2", "w4"], effort="fast", groups=3, pin={"main.5.*": "w8"}
    )
    for name in ("main.0.weight", "main.3.weight"):
        assert set(solution.bitmap[name].channel_bits or [solution.bitmap[name].bits]) <= {2, 4}


def test_channels_with_quantized_activations_everywhere(deconv):
    model, batches = deconv
    solution = mpsearch.allocate(model, batches, BITS, ["w2a8", "w4a8", "w8a8"], effort="fast", groups=3)
    assert all(format.act_bits == 8 for format in solution.bitmap.values())
    assert solution.method == "channels"
    assert solution.costs["memory"] == 5 * 64, "the last layer reads most, a byte an element"


def test_channels_take_only_widths_that_go_with_their_activations(deconv):
    model, batches = deconv
    subject = make_subject(model, batches)
    table, channels = tables(OnePass(probes=4), subject, parse_formats(["w2", "w4a8", "w8a8"]), 4)
    bitmap = {"main.0.weight": "w4a8", "main.3.weight": "w2", "main.5.weight": "w8a8"}
    kept = splittable(channels, Problem(table, ()), BitMap(bitmap))
    assert [str(format) for format in kept.formats] == ["w2", "w4", "w8"]
    for unit, row in zip(kept.units, kept.values, strict=True):
        expected = [False, True, True] if bitmap[unit.layer] == "w2" else [True, False, False]
        assert np.isnan(row).tolist() == expected


def test_nobody_measures_single_channels(deconv):
    """Under a budget on latency layers keep one width; where it is only known, it is not reported for channels."""
    model, batches = deconv
    layers = find_layers(model, batches[0])
    times = Latency.of([(x.name, f"w{b}", b) for x in layers for b in (2, 4, 8)])
    asked = {"formats": ["w2", "w4", "w8"], "effort": "fast", "groups": 4, "latency": times}
    whole = mpsearch.allocate(model, batches, ["latency<=14ms"], **asked)
    assert all(format.channel_bits is None for format in whole.bitmap.values())
    assert whole.costs["latency"] == sum(format.bits for format in whole.bitmap.values()) <= 14
    split = mpsearch.allocate(model, batches, BITS, **asked)
    assert split.method == "channels"
    assert "latency" not in split.costs
    assert all(set(b.costs) == set(split.costs) for b in split.baselines.values())


# Weights and activations together


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_activations_under_three_budgets(name, snapshot):
    model, batches = build(name), MODELS[name][1]()
    shot = snapshot(model)
    budgets = ["bits<=6", "bops<=6%", "size<=60%"]
    solution = mpsearch.allocate(
        model, batches, budgets, ["w4a8", "w8a8", "w4", "w3a4"], effort="standard" if name == "deconv" else "fast"
    )
    shot.check()
    layers = find_layers(model, batches[0])
    for text, limit in solution.limits.items():
        assert solution.costs[text.split("<=")[0]] <= limit * (1 + 1e-9)
    for layer in layers:
        assert layer.allows(solution.bitmap[layer.name])
    assert any(format.act_bits for format in solution.bitmap.values())
    assert set(solution.bitmap.ranges) == {n for n, f in solution.bitmap.items() if f.act_bits}
    assert solution.error.value <= solution.baselines["uniform"].error.value
    assert make_subject(model, batches).error(solution.bitmap).value == solution.error.value
    assert Solution.from_json(json.loads(json.dumps(solution.to_json()))).to_json() == solution.to_json()


def test_memory_is_the_largest_input_and_a_budget_on_it_holds(deconv):
    model, batches = deconv
    solution = mpsearch.allocate(
        model, batches, ["memory<=512", "bits<=6"], ["w4", "w8", "w4a8", "w8a8"], effort="fast"
    )
    # Inputs of 6, 8·4² and 5·8² elements: the middle one fits in floats, the last one does not.
    assert solution.bitmap["main.5.weight"].act_bits == 8
    assert solution.costs["memory"] <= 512
    assert solution.limits == {"memory<=512": 512, "bits<=6": 6}
    for budget in ("memory<=50%", "memory<=64KiB"):
        parsed = Budget.parse(budget)
        assert mpsearch.allocate(model, batches, [budget], ["w4", "w4a8"], effort="fast").costs["memory"] <= (
            parsed.absolute(5 * 64 * 4)
        )


# Tables from elsewhere


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"b.w": {"w4": -0.25}}, "the damage of b.w in w4 is -0.25: a mean squared error is 0 or more"),
        ({"b.w": {"w4": np.inf}}, "the damage of b.w in w4 is inf: mark what is not allowed as NaN"),
        ({"a.w": dict.fromkeys(["w2", "w4", "w8"], np.nan)}, "a.w can take none of the formats: its whole row"),
    ],
)
def test_entries_that_are_no_damage_are_named(cell, message):
    layers = layers_of("a.w", "b.w")
    with pytest.raises(UsageError, match=f"^{message}"):
        mpsearch.search(table_of(layers, **cell), layers, BITS)


def test_tables_of_other_layers_are_refused_and_their_order_does_not_matter():
    layers = layers_of("a.w", "b.w")
    table = table_of(layers)
    turned = Table(table.units[::-1], FORMATS, table.values[::-1], table.stderr[::-1], "mse", "test")
    assert mpsearch.search(turned, layers, BITS).bitmap == mpsearch.search(table, layers, BITS).bitmap
    with pytest.raises(UsageError, match=r"^the damage table has no row for c.w$"):
        mpsearch.search(table, layers_of("a.w", "b.w", "c.w"), BITS)
    with pytest.raises(UsageError, match=r"^the damage table has a row for b.w, which is no searched layer$"):
        mpsearch.search(table, layers_of("a.w"), BITS)
    with pytest.raises(
        UsageError, match=r"^the damage table allows a.w no format that it may take: it is pinned to w3$"
    ):
        mpsearch.search(table, ruled(layers, {"a*": "w3"}), BITS)


def test_a_foreign_table_obeys_the_rules():
    layers = ruled(layers_of("a.w", "b.w"), {"a*": "w2"}, {"b*": 8})
    assert formats_of(mpsearch.search(table_of(layers), layers, ["bits<=8"]).bitmap) == {"a.w": "w2", "b.w": "w8"}


def test_signed_tables_may_be_negative(deconv):
    layers = layers_of("a.w", "b.w", "c.w")
    table = table_of(layers, measure="loss")
    table.values[:] -= 5.0
    best = min(
        sum(table.values[np.arange(3), list(picks)])
        for picks in itertools.product(range(3), repeat=3)
        if sum(x.numel * FORMATS[p].bits for x, p in zip(layers, picks, strict=True)) <= 5 * layers.numel
    )
    solution = mpsearch.search(table, layers, BITS)
    assert solution.predicted == pytest.approx(best)
    assert solution.bound == pytest.approx(best, rel=1e-5)
    assert mpsearch.allocate(*deconv, BITS, effort="fast", estimator="signed").costs["bits"] <= 5


def test_units_of_no_channels_are_refused():
    with pytest.raises(UsageError, match=r"a unit of a.w has no channels"):
        Unit("a.w", ())
    payload = table_of(layers_of("a.w")).to_json()
    payload["units"][0]["channels"] = []
    with pytest.raises(ArtifactError, match=r"a unit of a.w has no channels"):
        Table.from_json(payload)


def test_layers_without_elements(snapshot):
    class Hollow(nn.Sequential):
        def forward(self, x):
            return self[2](torch.cat([x, self[0](x), self[1](x)], 1))

    with pytest.warns(UserWarning, match="zero-element"):
        model = Hollow(nn.Linear(4, 0), nn.Linear(4, 0), nn.Linear(4, 6))
    shot = snapshot(model)
    solution = mpsearch.allocate(model, [(torch.linspace(-1, 1, 32).reshape(8, 4),)], ["bits<=4"], effort="fast")
    shot.check()
    assert list(solution.bitmap) == ["2.weight"]
    layers = Layers((*layers_of("a.w", "b.w").items, Layer("c.w", "Linear", (0, 4), 0, 0, 4, 0, ("c.w",))), 0)
    table = table_of(layers, **{"c.w": dict.fromkeys(["w2", "w4", "w8"], 0.0)})
    solution = mpsearch.search(table, layers, ["bits<=5", "size<=40%"])
    assert solution.costs["bits"] <= 5
    empty = Layers(layers.items[2:], 0)
    assert cost_models()["bits"](empty, FORMATS).values.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("effort", ["fast", "standard"])
def test_one_allowed_format(deconv, effort):
    solution = mpsearch.allocate(*deconv, ["bits<=4"], ["w4"], effort=effort)
    assert set(formats_of(solution.bitmap).values()) == {"w4"}
    assert solution.status == "optimal"
    with pytest.raises(InfeasibleBudget, match="bits<=3 cannot be met: the smallest feasible value is bits<=4"):
        mpsearch.allocate(*deconv, ["bits<=3"], ["w4"], effort=effort)


# Dominated choices


def dominated_table(stderr=0.0):
    layers = layers_of("a.w", "b.w", "c.w")
    table = table_of(layers, **{"b.w": {"w2": 3.0, "w4": 5.0, "w8": 1.0}})
    table.stderr[:] = stderr
    return layers, table


def test_dominated_choices_are_kept_out_and_reported():
    layers, table = dominated_table()
    solution = mpsearch.search(table, layers, ["bits<=7"])
    assert solution.dominated == {"w4": 1}
    assert Solution.from_json(json.loads(json.dumps(solution.to_json()))).dominated == {"w4": 1}
    assert mpsearch.search(table_of(layers), layers, ["bits<=7"]).dominated == {}
    layers, table = dominated_table(stderr=1.5)
    assert mpsearch.search(table, layers, ["bits<=7"]).dominated == {}, "an estimate that is not sure"


def test_no_search_tries_a_dominated_choice():
    layers, table = dominated_table()
    share = np.array([[x.numel * f.bits / layers.numel for f in FORMATS] for x in layers])
    costs = Table(layers.units, FORMATS, share, np.zeros_like(share), "bits", "test")
    tried = []

    def evaluate(bitmap):
        tried.append(formats_of(bitmap))
        return Measured(sum(4.0**-f.bits for f in bitmap.values()), 0.0, 1)

    problem = Problem(table, (Limit(Budget.parse("bits<=7"), costs, 7.0, 32.0),), evaluate)
    assert counted(problem) == {"w4": 1}

    def refine(given):
        tried.clear()
        answer = Refine(evaluations=30)(given)
        assert all(found["b.w"] != "w4" for found in tried)
        assert len(tried) > 5
        return answer

    solution = solve(problem, [refine], problem.limits)
    assert solution.baselines["uniform"].bitmap["b.w"].bits == 4, "the best uniform map stays a candidate"


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), tight=st.floats(0, 1))
def test_leaving_dominated_choices_out_costs_nothing(seed, tight):
    rng = np.random.default_rng(seed)
    layers = layers_of("a.w", "b.w", "c.w", "d.w")
    damage, costs = rng.integers(0, 6, (2, 4, 3)).astype(float)
    table, spent = (
        Table(layers.units, FORMATS, v, np.zeros((4, 3)), m, "t") for v, m in ((damage, "mse"), (costs, "x"))
    )
    low, high = costs.min(1).sum(), costs.max(1).sum()
    limit = low + tight * (high - low) + 0.5
    problem = Problem(table, (Limit(Budget("bits", limit), spent, limit, 100.0),))
    kept = undominated(problem)
    assert kept.allowed.any(axis=1).all()
    before, after = Ilp()(problem), Ilp()(kept)
    assert problem.predicted(after.choice) == pytest.approx(problem.predicted(before.choice))


# Run and command line


LATENCY = "layer,format,milliseconds\n" + "".join(
    f"{layer},w{bits},{time}\n" for layer in ("0.weight", "2.weight") for bits, time in ((2, 1), (4, 2), (6, 4))
)


def test_rules_and_latency_of_a_run(project):  # noqa: F811
    (project / "tables").mkdir()
    (project / "tables/times.csv").write_text(LATENCY + "rest,,0.5\n")
    rules = "layers: {pin: {'0.*': w8}, floor: {'2.*': 4}}\nlatency: tables/times.csv\n"
    (project / "small.yaml").write_text(SMALL + rules)
    code, _, error = call("search", "small.yaml", "--out", "out", "--budget", "latency<=7ms", "--effort", "fast")
    assert code == 2
    assert error == "latency<=7ms: no format that 0.weight may take has a known cost: it is pinned to w8"
    (project / "tables/times.csv").write_text(LATENCY + "rest,,0.5\n0.weight,w8,3\n")
    code, output, error = call("run", "small.yaml", "--out", "out", "--budget", "latency<=6ms", "--effort", "fast")
    assert code == 0, error
    assert "budget latency<=6ms: 5.5 <= 6" in output
    found = json.loads((project / "out/bitmap.json").read_text())
    assert {name: entry["format"] for name, entry in found["layers"].items()} == {"0.weight": "w8", "2.weight": "w4"}
    report = (project / "out/report.md").read_text()
    assert "**w8** (pinned to w8)" in report
    assert "**w4** (held to 4 bits or more)" in report
    code, output, _ = call("layers", "small.yaml", "--out", "out")
    assert "0.weight: pinned to w8" in output
    code, _, error = call("search", "small.yaml", "--out", "out", "--budget", "latency<=5ms", "--effort", "fast")
    assert error == (
        "latency<=5ms cannot be met with 0.weight pinned to w8 and 2.weight held to 4 bits or more: "
        "the smallest feasible value is latency<=5.5ms"
    )
    (project / "tables/times.csv").write_text(LATENCY.replace("2.weight,w4,2", "2.weight,w4,9") + "0.weight,w8,3\n")
    code, output, _ = call("search", "small.yaml", "--out", "out", "--budget", "latency<=7ms", "--effort", "fast")
    assert json.loads((project / "out/bitmap.json").read_text())["layers"]["2.weight"]["format"] == "w6", "read anew"


def test_latency_of_the_command_line(project):  # noqa: F811
    (project / "times.csv").write_text(LATENCY)
    for command in ("search", "run"):
        asked = ("--out", command, "--latency", "times.csv", "--budget", "latency<=4ms", "--effort", "fast")
        code, output, error = call(command, "small.yaml", *asked)
        assert code == 0, error
        assert "budget latency<=4ms" in output
    code, _, error = call("search", "small.yaml", "--out", "x", "--budget", "latency<=4ms")
    assert code == 2
    assert "latency<=4ms needs measured times" in error
    code, _, error = call("search", "small.yaml", "--out", "x", "--budget", "latency<=40%", "--latency", "times.csv")
    assert error == "latency<=40% is a share of the float generator, but the time of 0.weight,float is missing"


def test_dominated_choices_are_reported(project):  # noqa: F811
    """Under a budget on weights alone, quantized activations cost the same and hurt more."""
    code, output, _ = call(
        "run", "small.yaml", "--out", "out", "--effort", "fast", "--format", "w4", "--format", "w4a4", "--format", "w6"
    )
    assert code == 0
    assert "left out, for they cost more and hurt more than others: w4a4 (2 of the layers)" in output
    assert "hurt more than others: `w4a4` (2 of the layers)." in (project / "out/report.md").read_text()


def test_bad_rules_of_a_config_are_one_line(project):  # noqa: F811
    for line, message in (
        ("layers: {pin: {'9.*': w8}}", "matches no layer"),
        ("layers: {together: ['0.*', '2.*']}", "layers.together.0"),
        ("layers: {floor: {'0.*': high}}", "layers.floor"),
        ("latency: nowhere.csv\nbudgets: ['latency<=3ms']", "cannot read the latency table"),
    ):
        (project / "small.yaml").write_text(SMALL + line + "\n")
        code, _, error = call("search", "small.yaml", "--out", "bad")
        assert code == 2
        assert message in error
        assert "\n" not in error


def test_together_in_a_run_and_compare_with_times(project):  # noqa: F811
    (project / "times.csv").write_text(LATENCY)
    (project / "small.yaml").write_text(SMALL + "layers: {together: [['0.*', '2.*']]}\nlatency: times.csv\n")
    code, _, error = call("search", "small.yaml", "--out", "out", "--effort", "fast")
    assert code == 0, error
    found = json.loads((project / "out/bitmap.json").read_text())
    assert len({entry["format"] for entry in found["layers"].values()}) == 1
    assert found["costs"]["latency"] == 4
    for name, format in (("one", "w4"), ("two", "w8")):
        entries = {layer: {"format": format} for layer in ("0.weight", "2.weight")}
        (project / f"{name}.json").write_text(json.dumps({"schema": "mpsearch-bitmap/1", "layers": entries}))
    code, _, error = call("compare", "one.json", "--config", "small.yaml", "--out", "out")
    assert code == 0, error
    assert json.loads((project / "out/comparison.json").read_text())["maps"]["one"]["costs"]["latency"] == 4
    code, _, error = call("compare", "one.json", "two.json", "--config", "small.yaml", "--out", "out")
    assert code == 0, error
    assert "latency" not in json.loads((project / "out/comparison.json").read_text())["maps"]["one"]["costs"]


def test_a_pin_that_a_layer_has_not_the_shape_for_is_refused():
    with pytest.raises(UsageError, match=r"a\.w, pinned by 'a\*', cannot take w4g7: groups of 7 do not divide"):
        ruled(layers_of("a.w", "b.w"), {"a*": "w4g7"})


def test_the_two_budgets_that_contradict_each_other_are_named():
    layers = ruled(layers_of("a.w", "b.w"), {"b*": "w8"})
    table = table_of(layers, parse_formats(["w2", "w8", "w8a4"]))
    with pytest.raises(InfeasibleBudget, match=r"^bits<=7 and bops<=18% cannot be met together"):
        mpsearch.search(table, layers, ["size<=90%", "bits<=7", "bops<=18%"])


def test_a_foreign_table_of_whole_numbers_is_one_of_floats():
    layers = ruled(layers_of("a.w", "b.w"), {"a*": "w8"})
    formats = parse_formats(["w2", "w8"])
    table = Table(layers.units, formats, np.array([[4, 1], [4, 1]]), np.zeros((2, 2), int), "mse", "another tool")
    assert formats_of(mpsearch.search(table, layers, ["bits<=8"]).bitmap) == {"a.w": "w8", "b.w": "w8"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": ("a.w", "b.w")}, r"the rows of a table are of the type Unit"),
        ({"formats": ("w2", "w8")}, r"the columns of a table are of the type Format"),
        ({"stderr": np.full((2, 2), -1.0)}, r"a standard error is -1: expected 0 or more"),
        ({"units": (Unit("a.w"), Unit("a.w"))}, r"the damage table has two rows for a\.w"),
    ],
)
def test_a_foreign_table_that_is_none_is_one_line(change, message):
    layers = layers_of("a.w")
    about = {"units": (Unit("a.w"), Unit("b.w")), "formats": parse_formats(["w2", "w8"]), "stderr": np.zeros((2, 2))}
    with pytest.raises(UsageError, match=message):
        mpsearch.search(
            Table(**{**about, **change}, values=np.ones((2, 2)), measure="mse", source=""), layers, ["bits<=8"]
        )
