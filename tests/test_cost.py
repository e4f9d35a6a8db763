import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch import (
    Budget,
    Format,
    InfeasibleBudget,
    Latency,
    Layer,
    Layers,
    Table,
    UsageError,
    allocate,
    export,
    find_layers,
    search,
)
from mpsearch.cost import COSTS, cost_models
from mpsearch.export import payload_bytes
from mpsearch.registry import lookup
from mpsearch.types import FLOAT, parse_formats

LAYERS = Layers(
    (
        Layer("a.weight", "Conv2d", (5, 3, 3, 3), 0, 1000, 64, 540, ("a.weight",)),
        Layer("b.weight", "ConvTranspose2d", (4, 7, 2, 2), 1, 500, 32, 448, ("b.weight",)),
        Layer("c.weight", "MultiheadAttention", (3, 3), 0, 10, 0, 36, ("c.weight",)),
    ),
    rest_bytes=123,
)


def test_bits_is_the_parameter_weighted_mean():
    table = COSTS["bits"]()(LAYERS, parse_formats(["w2", "w8", "float"]))
    assert table.values[:, 0].sum() == pytest.approx(2)
    assert table.values[:, 2].sum() == pytest.approx(32)
    assert table.values[0, 0] + table.values[1:, 1].sum() == pytest.approx((135 * 2 + 121 * 8) / 256)


def test_channels_of_their_own_width_cost_their_codes_and_the_say_so():
    format = Format.parse("w[2,2,4,8,2]")
    size, bits = (COSTS[name]()(LAYERS, [format]).values[:, 0] for name in ("size", "bits"))
    codes = 1 + 27 * 3 * 2 // 8 + 1 + 27 * 4 // 8 + 27 * 8 // 8
    said = 3 + 2  # three widths, five indices of two bits
    assert size[0] == codes + said + 5 * 4
    assert bits[0] == pytest.approx((27 * 18 + 8 * said) / 256)
    assert np.isnan(size[1:]).all(), "seven and three channels"


def test_size_by_hand():
    table = COSTS["size"]()(LAYERS, parse_formats(["w3", "w3a8", "fp16", "float"]))
    assert table.constant == 123
    assert table.values[0].tolist() == [-(-135 * 3 // 8) + 5 * 4, -(-135 * 3 // 8) + 5 * 4 + 8, 270, 540]
    assert table.values[1, 0] == 112 * 3 / 8 + 7 * 4, "seven output channels on axis 1"
    assert np.isnan(table.values[2, 1]), "a layer that is never called takes no activations"


def test_bops_by_hand():
    table = COSTS["bops"]()(LAYERS, parse_formats(["w4", "w4a8", "float"]))
    assert table.values[0].tolist() == [1000 * 4 * 32, 1000 * 4 * 8, 1000 * 32 * 32]


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_model_keeps_the_contract(name, case):
    """A new model in the registry is tested here: shape, exactness, monotone in bits, NaN exactly where not allowed."""
    model, batches = case
    layers = find_layers(model, batches[0])
    formats = parse_formats(["w2", "w3", "w8", "w8a8", "fp16", "float"])
    table = COSTS[name]()(layers, formats)
    assert table.units == layers.units
    assert table.formats == formats
    assert (table.stderr[~np.isnan(table.values)] == 0).all()
    for row, layer in zip(table.values, layers, strict=True):
        assert [not np.isnan(v) for v in row] == [layer.allows(f) for f in formats]
        assert row[0] <= row[1] <= row[2]  # scales may make w8 dearer than fp16 on a handful of weights
        assert row[4] <= row[5]
        assert row[4] < row[5] or np.isnan(row[3]) or row[3] < row[2]


def test_an_unknown_cost_names_the_closest():
    with pytest.raises(UsageError, match=r"unknown cost 'sizes'; the closest is 'size' of bits, size, bops, memory"):
        lookup("cost", COSTS, "sizes")


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_predicted_bytes_are_bytes_on_disk(tmp_path_factory, data):
    from conftest import MODELS, build

    name = data.draw(st.sampled_from(list(MODELS)))
    model, batches = build(name), MODELS[name][1]()
    layers = find_layers(model, batches[0])
    choices = ["w2", "w3", "w5", "w7", "w8", "fp16", "float", "w4a8", "a4", "fp16a6"]
    bitmap = {}
    for layer in layers:
        format = Format.parse(data.draw(st.sampled_from(choices)))
        bitmap[layer.name] = format if layer.allows(format) else format.weight_only
    out = tmp_path_factory.mktemp("export")
    files = export(model, bitmap, out, batches, kinds=["packed"], layers=layers)
    columns = tuple(dict.fromkeys([*bitmap.values(), FLOAT]))
    table = COSTS["size"]()(layers, columns)
    predicted = sum(table.value(n, f) for n, f in bitmap.items()) + table.constant
    assert payload_bytes(files["packed"]) == predicted
    assert torch.isfinite(torch.tensor(predicted))


# Peak memory


def test_memory_by_hand():
    table = COSTS["memory"]()(LAYERS, parse_formats(["w4", "w4a8", "a6", "float"]))
    assert table.combine == "max"
    assert table.values[0].tolist() == [64 * 4, 64, 64 * 6 / 8, 64 * 4]
    assert table.values[2, 0] == 0, "nobody sees what a layer reads that is never called"
    assert table.total(table.values[:, 0]) == 64 * 4
    assert Table.from_json(json.loads(json.dumps(table.to_json()))).combine == "max"


def test_a_layer_that_is_called_twice_has_the_memory_of_one_call():
    from conftest import MODELS, build

    layers = find_layers(build("volume"), MODELS["volume"][1]()[0])
    assert layers["line.weight"].act_elements == 2 * layers["line.weight"].largest_input == 32


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("memory<=64KiB", 65536, "memory<=65536"),
        ("memory<=50%", 0.5, "memory<=50%"),
        ("latency<=8ms", 8, "latency<=8ms"),
        ("latency<=8", 8, "latency<=8ms"),
        ("latency<=0.5s", 500, "latency<=500ms"),
        ("latency<=250us", 0.25, "latency<=0.25ms"),
        ("latency<=60%", 0.6, "latency<=60%"),
    ],
)
def test_budgets_on_memory_and_latency(text, limit, shown):
    budget = Budget.parse(text)
    assert budget.limit == pytest.approx(limit)
    assert str(budget) == shown
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["latency<=8KiB", "size<=8ms", "memory<=3s", "latency<=0ms"])
def test_budgets_of_another_kind_are_refused(text):
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        Budget.parse(text)


# Latency from a table


TIMES = "layer,format,milliseconds\na.weight,w4,1.5\na.weight,float,4\nb.weight,w4,2\nb.weight,float,3\n"
LAST = "c.weight,w4,0.25\nc.weight,float,1\n"


def written(folder, text, name="times.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_latency_adds_up_what_was_measured(tmp_path):
    rows = [
        dict(zip(("layer", "format", "milliseconds"), r.split(","), strict=True)) for r in (TIMES + LAST).split()[1:]
    ]
    files = [
        written(tmp_path, TIMES + LAST + "*,,0.125\n"),
        written(tmp_path, json.dumps([*rows, {"layer": "rest", "milliseconds": 0.125}]), "times.json"),
    ]
    for path in files:
        table = Latency.read(path)(LAYERS, parse_formats(["w4", "w8", "float"]))
        assert table.measure == "ms"
        assert table.constant == 0.125
        np.testing.assert_array_equal(table.values, [[1.5, np.nan, 4], [2, np.nan, 3], [0.25, np.nan, 1]])
        assert table.total(table.values[:, 0]) == 3.875
    damage = Table(LAYERS.units, table.formats, np.array([[9.0, 5, 0]] * 3), np.zeros((3, 3)), "mse", "test")
    for text, formats in (("latency<=60%", ["w4", "w4", "float"]), ("latency<=3.9ms", ["w4"] * 3)):
        solution = search(damage, LAYERS, [text], costs=cost_models(path))
        assert solution.costs["latency"] <= solution.limits[text]
        assert [str(format) for format in solution.bitmap.values()] == formats
    assert search(damage, LAYERS, ["latency<=60%"], costs=cost_models(path)).limits["latency<=60%"] == 0.6 * 8.125
    with pytest.raises(InfeasibleBudget, match=r"latency<=1ms cannot be met: the .* value is latency<=3.875ms$"):
        search(damage, LAYERS, ["latency<=1ms"], costs=cost_models(path))
    assert "latency" not in search(damage, LAYERS, ["bits<=20"], costs=cost_models(path)).costs, "w8 was not measured"


def test_tied_layers_take_the_time_of_both_places_and_others_that_of_float():
    tied = Layer("a.weight", "Linear", (4, 4), 0, 16, 4, 64, ("a.weight",), ("b.weight",))
    rows = [("a.weight", "w4", 1), ("b.weight", "w4", 2), ("z.weight", "float", 10), ("z.weight", "w4", 1)]
    table = Latency.of(rows)(Layers((tied,), 0), parse_formats(["w4"]))
    assert (table.values[0, 0], table.constant) == (3, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIMES, r"times.csv lacks the layer c.weight; the closest is '[ab].weight'"),
        (TIMES + LAST + "d.weight,w4,1\n", "times.csv lacks d.weight,float, and the layer is not searched"),
        (TIMES + "c.weight,w4,nan\n", "times.csv: c.weight,w4 is nan: expected milliseconds, 0 or more"),
        (TIMES + "c.weight,w4,-1\n", "times.csv: c.weight,w4 is -1: expected milliseconds"),
        (TIMES + "c.weight,w4,inf\n", "times.csv: c.weight,w4 is inf"),
        (TIMES + "c.weight,w4,fast\n", "times.csv: c.weight,w4 is fast"),
        (TIMES + "*,,-2\n", r"times.csv: \* is -2"),
        (TIMES + "c.weight,w11,1\n", "times.csv: c.weight,w11: unknown format 'w11'"),
        (TIMES + LAST + "c.weight,w4,2\n", "times.csv: c.weight,w4 is there twice"),
        (TIMES + "*,,1\nrest,,1\n", "times.csv: rest is there twice"),
        (TIMES + "c.weight,w4\n", "times.csv: entry 5 has no milliseconds"),
        ("layer,bits\na.weight,4\n", "times.csv: entry 1 has no format; it needs layer, format, milliseconds"),
        ("", "times.csv is no latency table: expected rows"),
    ],
)
def test_bad_latency_tables_name_the_entry(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Latency.read(written(tmp_path, text))(LAYERS, parse_formats(["w4"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "times.json is no latency table"),
        ("{}", "times.json is no latency table: expected rows"),
        ("[1]", "times.json is no latency table: expected rows"),
        ('[{"layer": 3, "format": "w4", "milliseconds": 1}]', "the layer 3 is no name"),
        ('[{"layer": "a.weight", "format": "w4", "milliseconds": true}]', "a.weight,w4 is True"),
        ('[{"layer": "a.weight", "format": "w4", "milliseconds": [1]}]', r"a.weight,w4 is \[1\]"),
        ('[{"layer": ["a"], "format": ["w4"], "milliseconds": 1}]', "no name"),
    ],
)
def test_bad_json_tables_name_the_entry(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Latency.read(written(tmp_path, text, "times.json"))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the latency table .*nowhere.csv: No such file"):
        Latency.read(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00layer")
    with pytest.raises(UsageError, match=r"bytes.csv is no latency table"):
        Latency.read(tmp_path / "bytes.csv")


def test_a_bad_table_is_refused_before_anything_is_measured(deconv, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("mpsearch.sensitivity.projection.pull_back", fail)
    path = written(tmp_path, TIMES)
    with pytest.raises(UsageError, match=r"times.csv lacks the layer main.0.weight"):
        allocate(*deconv, latency=path)
