import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch import Format, Layer, Layers, UsageError, export, find_layers
from mpsearch.cost import COSTS
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
