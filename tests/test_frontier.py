"""The frontier of a cost and the predicted damage: Python, run folder and command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_cli import SMALL, call, project  # noqa: F401

import mpsearch
from mpsearch import Layer, Layers, Table, UsageError
from mpsearch.budgets import cost_of
from mpsearch.errors import InfeasibleBudget
from mpsearch.report import save_scatter
from mpsearch.types import parse_formats

WIDTHS = parse_formats(["w2", "w4", "w8"])


def layers_and_table(count=12, measure="mse"):
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 60, count)
    layers = Layers(
        tuple(
            Layer(f"l{i}.weight", "Conv2d", (n, 3, 3, 3), 0, 100 * n, 10, 108 * n, (f"l{i}.weight",))
            for i, n in enumerate(map(int, sizes))
        ),
        rest_bytes=10,
    )
    bits = np.array([format.bits for format in WIDTHS])
    values = rng.lognormal(0, 1, (count, 1)) * 4.0**-bits * rng.uniform(0.7, 1.3, (count, len(bits)))
    return layers, Table(layers.units, WIDTHS, values, np.zeros_like(values), measure, "test")


def pixels(path):
    with Image.open(path) as image:
        return np.array(image.convert("L"))


@pytest.mark.parametrize("cost", ["size", "bits", "bops"])
def test_every_point_is_the_exact_answer_for_its_cost(cost):
    layers, table = layers_and_table()
    found = mpsearch.frontier(table, layers, cost, points=12)
    costs, damages = [point.costs[cost] for point in found], [point.predicted for point in found]
    assert 6 <= len(found) <= 12
    assert (np.diff(costs) > 0).all()
    assert (np.diff(damages) < 0).all()
    assert sum(point.knee for point in found) == 1
    for point in found:
        assert point.optimal
        assert point.costs == {name: pytest.approx(cost_of(name, point.bitmap, layers)) for name in point.costs}
        exact = mpsearch.search(table, layers, [mpsearch.Budget(cost, point.costs[cost])])
        assert point.predicted == pytest.approx(exact.predicted, rel=2e-6)
    assert {str(format) for format in found[0].bitmap.values()} == {"w2"}
    assert {str(format) for format in found[-1].bitmap.values()} == {"w8"}


def test_every_point_meets_the_budgets():
    layers, table = layers_and_table()
    found = mpsearch.frontier(table, layers, "size", points=8, budgets=["bits<=5"])
    assert len(found) > 3
    assert all(point.costs["bits"] <= 5 for point in found)
    with pytest.raises(InfeasibleBudget, match="bits<=1 cannot be met"):
        mpsearch.frontier(table, layers, "size", budgets=["bits<=1"])


def test_pins_and_layers_together_hold_in_every_point():
    layers, table = layers_and_table()
    items = list(layers)
    items[0] = replace(items[0], pin=WIDTHS[2])
    items[1:3] = [replace(item, group="pair") for item in items[1:3]]
    ruled = Layers(tuple(items), rest_bytes=10)
    found = mpsearch.frontier(table, ruled, "size", points=8)
    assert len(found) > 3
    for point in found:
        assert str(point.bitmap["l0.weight"]) == "w8"
        assert point.bitmap["l1.weight"] == point.bitmap["l2.weight"]
        assert len(point.bitmap) == len(layers)
        assert point.costs["size"] == pytest.approx(cost_of("size", point.bitmap, ruled))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": "sise"}, "unknown cost 'sise'"),
        ({"points": 1}, "a frontier of 1 points"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    layers, table = layers_and_table()
    with pytest.raises(UsageError, match=message):
        mpsearch.frontier(table, layers, **options)


def test_the_command_writes_the_frontier(project):  # noqa: F811
    code, output, error = call("pareto", "small.yaml", "--out", "out", "--points", "6", "--cost", "bits")
    assert code == 0, error
    entry = json.loads((project / "out/frontier.json").read_text())
    points = entry["points"]
    assert entry["cost"] == ["bits"]
    assert 2 < len(points) <= 6
    assert [point["costs"]["bits"] for point in points] == sorted(point["costs"]["bits"] for point in points)
    for point in points:
        assert set(point["costs"]) >= {"size", "bits", "bops"}
        wanted = 10 * np.log10(entry["peak"] ** 2 / point["predicted"])
        assert point["predicted_db"] == pytest.approx(wanted)
    assert sum(point["knee"] for point in points) == 1
    assert "knee" in output
    assert pixels(project / "out/frontier.png").shape[0] > 100
    before = (project / "out/frontier.json").read_bytes()
    assert call("pareto", "small.yaml", "--out", "out", "--points", "6", "--cost", "bits")[0] == 0
    assert (project / "out/frontier.json").read_bytes() == before


def test_several_costs_are_traded_at_once(project):  # noqa: F811
    code, output, error = call(
        "pareto", "small.yaml", "--out", "out", "--points", "9", "--cost", "size", "--cost", "bops"
    )
    assert code == 0, error
    points = json.loads((project / "out/frontier.json").read_text())["points"]
    spent = [(point["costs"]["size"], point["costs"]["bops"], point["predicted"]) for point in points]
    assert spent == sorted(spent)
    assert not any(all(np.less_equal(a, b)) for a in spent for b in spent if a != b)
    assert sum(point["knee"] for point in points) == 1
    assert "damage over size, bops" in output


def test_a_damage_that_is_no_squared_error_has_no_decibels(project):  # noqa: F811
    (project / "fid.yaml").write_text(SMALL + "estimator: {name: fid-proxy}\n")
    code, _, error = call("pareto", "fid.yaml", "--out", "out", "--points", "4")
    assert code == 0, error
    entry = json.loads((project / "out/frontier.json").read_text())
    assert entry["peak"] is None
    assert all(point["predicted_db"] is None for point in entry["points"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--cost", "sise"), "unknown cost 'sise'"), (("--budget", "bits<=1"), "bits<=1 cannot be met")],
)
def test_the_command_refuses_before_it_measures(project, arguments, message):  # noqa: F811
    code, _, error = call("pareto", "small.yaml", "--out", "out", *arguments)
    assert code == 2
    assert message in error
    assert not (project / "out/sensitivity.json").exists()


def test_a_plot_writes_only_the_labels_that_are_asked_for(tmp_path):
    points = {"one": (1.0, 2.0), "two": (3.0, 4.0)}
    for name, named in (("all", None), ("one", ("one",)), ("none", ())):
        save_scatter(tmp_path / f"{name}.png", points, "x", "y", named)
    dark = {name: pixels(tmp_path / f"{name}.png").sum() for name in ("all", "one", "none")}
    assert dark["all"] < dark["one"] < dark["none"]
